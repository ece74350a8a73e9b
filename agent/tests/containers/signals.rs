//! Signals and what processes end with.

use crate::rig::Agent;

const TERM: i32 = 15;
const KILL: i32 = 9;
const USR1: i32 = 10;

#[tokio::test]
#[ignore = "needs root"]
async fn an_init_without_a_handler_is_killed_when_it_is_asked_to_end() {
    let agent = Agent::start().await;
    agent.run("c1", "exec sleep 1000").await;
    agent.signal("c1", "", TERM).await;
    assert_eq!(agent.wait("c1", "").await, 128 + KILL);
}

#[tokio::test]
#[ignore = "needs root"]
async fn an_init_with_a_handler_ends_as_it_likes() {
    let agent = Agent::start().await;
    agent.run("c1", "trap 'exit 42' TERM; echo ready; while :; do sleep 0.05; done").await;
    agent.read_until("c1", "", "ready").await;
    agent.signal("c1", "", TERM).await;
    assert_eq!(agent.wait("c1", "").await, 42);
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_signal_goes_to_the_process_named_and_to_no_other() {
    let agent = Agent::start().await;
    agent.run("c1", "trap 'echo caught' USR1; echo ready; while :; do sleep 0.05; done").await;
    agent.read_until("c1", "", "ready").await;
    agent.exec("c1", "e1", "exec sleep 1000").await;
    agent.exec("c1", "e2", "exec sleep 1000").await;
    agent.signal("c1", "e1", TERM).await;
    assert_eq!(agent.wait("c1", "e1").await, 128 + TERM);
    agent.signal("c1", "", USR1).await;
    agent.read_until("c1", "", "caught").await;
    agent.signal("c1", "e2", KILL).await;
    assert_eq!(agent.wait("c1", "e2").await, 128 + KILL);
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_real_time_signal_is_delivered() {
    let agent = Agent::start().await;
    agent.run("c1", "cat").await;
    agent.exec("c1", "e1", "exec sleep 1000").await;
    agent.signal("c1", "e1", 37).await;
    assert_eq!(agent.wait("c1", "e1").await, 128 + 37);
}

#[tokio::test]
#[ignore = "needs root"]
async fn killing_without_a_name_ends_all_processes_of_the_container() {
    let agent = Agent::start().await;
    agent.run("c1", "cat").await;
    agent.exec("c1", "e1", "exec sleep 1000").await;
    agent.signal("c1", "", KILL).await;
    assert_eq!(agent.wait("c1", "").await, 128 + KILL);
    assert_eq!(agent.wait("c1", "e1").await, 128 + KILL);
    // And once more, as a runtime does that is not sure.
    agent.signal("c1", "", KILL).await;
}
