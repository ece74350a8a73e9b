//! Processes in a running container.

use crate::rig::{Agent, program, refusal};

#[tokio::test]
#[ignore = "needs root"]
async fn an_executed_process_is_in_the_container() {
    let agent = Agent::start().await;
    agent.run("c1", "echo secret > /tmp/file; echo ready; cat").await;
    agent.read_until("c1", "", "ready").await;
    agent.exec("c1", "e1", "cat /tmp/file; hostname; tr '\\0' ' ' < /proc/1/cmdline").await;
    let output = String::from_utf8(agent.end("c1", "e1").await.stdout).unwrap();
    assert!(output.starts_with("secret\npod\n/bin/sh -c echo secret"), "{output}");
}

#[tokio::test]
#[ignore = "needs root"]
async fn fifty_processes_follow_each_other_and_old_ones_are_forgotten() {
    let agent = Agent::start().await;
    agent.run("c1", "cat").await;
    for number in 0..50 {
        let exec = format!("e{number}");
        agent.exec("c1", &exec, &format!("echo {number}")).await;
        let output = agent.end("c1", &exec).await;
        assert_eq!(output.stdout, format!("{number}\n").into_bytes());
    }
    let (_, text) = refusal(agent.try_wait("c1", "e0").await);
    assert!(text.contains("no process 'e0'"), "{text}");
    assert_eq!(agent.wait("c1", "e49").await, 0);
}

#[tokio::test]
#[ignore = "needs root"]
async fn ten_processes_run_at_once() {
    let agent = Agent::start().await;
    agent.run("c1", "cat").await;
    let all = (0..10).map(|number| {
        let agent = &agent;
        async move {
            let exec = format!("e{number}");
            agent.exec("c1", &exec, &format!("cat; echo {number}; exit {number}")).await;
            agent.write("c1", &exec, b"input\n").await;
            agent.write("c1", &exec, b"").await;
            let output = agent.end("c1", &exec).await;
            assert_eq!(output.stdout, format!("input\n{number}\n").into_bytes());
            assert_eq!(output.status, number);
        }
    });
    futures_util::future::join_all(all).await;
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_program_that_is_not_there_is_told_by_name_and_its_name_is_free_again() {
    let agent = Agent::start().await;
    agent.run("c1", "cat").await;
    let missing = program(&["no-such-program"]);
    let (_, text) = refusal(agent.exec_process("c1", "e1", missing).await);
    assert!(text.contains("no-such-program"), "{text}");
    agent.exec("c1", "e1", "exit 6").await;
    assert_eq!(agent.wait("c1", "e1").await, 6);
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_name_is_taken_while_its_process_runs() {
    let agent = Agent::start().await;
    agent.run("c1", "cat").await;
    agent.exec("c1", "e1", "cat").await;
    let (code, text) = refusal(agent.exec_process("c1", "e1", program(&["true"])).await);
    assert_eq!(code, ttrpc::Code::ALREADY_EXISTS, "{text}");
}

#[tokio::test]
#[ignore = "needs root"]
async fn nothing_is_executed_in_a_container_that_does_not_run() {
    let agent = Agent::start().await;
    agent.run("c1", "exit 0").await;
    agent.wait("c1", "").await;
    let (_, text) = refusal(agent.exec_process("c1", "e1", program(&["true"])).await);
    assert!(text.contains("does not run"), "{text}");
}
