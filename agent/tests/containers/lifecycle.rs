//! Creation, start, end and removal.

use std::fs;

use kata_agent_protocol::agent::*;
use kata_agent_protocol::protobuf::MessageField;

use crate::rig::{Agent, Ended, call, refusal};

#[tokio::test]
#[ignore = "needs root"]
async fn a_container_prints_exits_and_leaves_nothing() {
    let agent = Agent::start().await;
    agent.run("c1", "echo to stdout; echo to stderr >&2; exit 7").await;
    let expected =
        Ended { status: 7, stdout: b"to stdout\n".to_vec(), stderr: b"to stderr\n".to_vec() };
    assert_eq!(agent.end("c1", "").await, expected);
    assert_eq!(agent.wait("c1", "c1").await, 7, "late waiters are told as well");
    assert!(!agent.cgroups("c1").is_empty());
    agent.remove("c1").await;
    assert!(!agent.path("/run/kata-containers/c1").exists());
    assert!(!agent.path("/run/slipway-agent/state/c1").exists());
    assert!(agent.cgroups("c1").is_empty());
    let mounts = fs::read_to_string(agent.path("/proc/1/mounts")).unwrap();
    assert!(!mounts.contains("c1"), "{mounts}");
}

#[tokio::test]
#[ignore = "needs root"]
async fn nothing_runs_before_the_start() {
    let agent = Agent::start().await;
    let request = agent.container("c1", "echo it runs");
    agent.client.create_container(call(), &request).await.unwrap();
    // The program in the process is still the agent's own.
    let output = agent.read_all("c1", "");
    tokio::pin!(output);
    let early = tokio::time::timeout(std::time::Duration::from_millis(300), &mut output).await;
    assert!(early.is_err(), "{early:?}");
    agent.begin("c1").await;
    assert_eq!(output.await, b"it runs\n");
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_running_container_is_killed_by_its_removal() {
    let agent = Agent::start().await;
    agent.run("c1", "sleep 1000 & sleep 1000").await;
    agent.remove("c1").await;
    assert!(agent.cgroups("c1").is_empty());
    let request = RemoveContainerRequest { container_id: "c1".to_owned(), ..Default::default() };
    let again = agent.client.remove_container(call(), &request).await;
    let (_, text) = refusal(again);
    assert!(text.contains("no container 'c1'"), "{text}");
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_container_of_the_same_name_can_follow() {
    let agent = Agent::start().await;
    for status in [0, 1] {
        agent.run("c1", &format!("exit {status}")).await;
        assert_eq!(agent.wait("c1", "").await, status);
        agent.remove("c1").await;
    }
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_program_that_is_not_there_fails_the_creation_by_its_name_and_leaves_nothing() {
    let agent = Agent::start().await;
    let mut request = agent.container("c1", "");
    let spec = request.OCI.mut_or_insert_default();
    spec.Process.mut_or_insert_default().Args = vec!["no-such-program".to_owned()];
    let (_, text) = refusal(agent.client.create_container(call(), &request).await);
    assert!(text.contains("no-such-program"), "{text}");
    assert!(!text.contains('\n'), "{text}");
    assert!(!agent.path("/run/kata-containers/c1").exists());
    assert!(agent.cgroups("c1").is_empty());
    agent.run("c1", "exit 3").await;
    assert_eq!(agent.wait("c1", "").await, 3);
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_paused_container_stands_still_and_goes_on() {
    let agent = Agent::start().await;
    agent.run("c1", "while read line; do echo \"$line\"; done").await;
    agent.write("c1", "", b"before\n").await;
    agent.read_until("c1", "", "before").await;
    let pause = PauseContainerRequest { container_id: "c1".to_owned(), ..Default::default() };
    agent.client.pause_container(call(), &pause).await.unwrap();
    agent.write("c1", "", b"after\n").await;
    let read = agent.read("c1", "");
    tokio::pin!(read);
    let early = tokio::time::timeout(std::time::Duration::from_millis(300), &mut read).await;
    assert!(early.is_err(), "{early:?}");
    let resume = ResumeContainerRequest { container_id: "c1".to_owned(), ..Default::default() };
    agent.client.resume_container(call(), &resume).await.unwrap();
    assert_eq!(read.await, b"after\n");
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_paused_container_can_be_removed() {
    let agent = Agent::start().await;
    agent.run("c1", "sleep 1000").await;
    let pause = PauseContainerRequest { container_id: "c1".to_owned(), ..Default::default() };
    agent.client.pause_container(call(), &pause).await.unwrap();
    agent.remove("c1").await;
    assert!(agent.cgroups("c1").is_empty());
}

#[tokio::test]
#[ignore = "needs root"]
async fn usage_is_told_and_grows() {
    let agent = Agent::start().await;
    agent.run("c1", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo done; cat").await;
    agent.read_until("c1", "", "done").await;
    let request = StatsContainerRequest { container_id: "c1".to_owned(), ..Default::default() };
    let stats = agent.client.stats_container(call(), &request).await.unwrap();
    let cgroup = stats.cgroup_stats;
    assert!(cgroup.cpu_stats.cpu_usage.total_usage > 1_000_000, "{cgroup:?}");
    assert!(cgroup.memory_stats.usage.usage > 0, "{cgroup:?}");
    assert!(cgroup.pids_stats.current >= 1, "{cgroup:?}");
}

#[tokio::test]
#[ignore = "needs root"]
async fn limits_can_be_changed() {
    let agent = Agent::start().await;
    agent.run("c1", "cat").await;
    let mut request =
        UpdateContainerRequest { container_id: "c1".to_owned(), ..Default::default() };
    let resources = request.resources.mut_or_insert_default();
    resources.Memory.mut_or_insert_default().Limit = 64 << 20;
    agent.client.update_container(call(), &request).await.unwrap();
    let request = StatsContainerRequest { container_id: "c1".to_owned(), ..Default::default() };
    let stats = agent.client.stats_container(call(), &request).await.unwrap();
    assert_eq!(stats.cgroup_stats.memory_stats.usage.limit, 64 << 20);
}

#[tokio::test]
#[ignore = "needs root"]
async fn two_containers_live_side_by_side_and_share_name_and_memory_but_not_processes() {
    let agent = Agent::start().await;
    for id in ["c1", "c2"] {
        agent.run(id, "hostname; readlink /proc/self/ns/ipc; echo pid $$; cat").await;
    }
    let first = agent.read_until("c1", "", "pid").await;
    let second = agent.read_until("c2", "", "pid").await;
    assert!(first.starts_with("pod\nipc:[") && first.contains("pid 1\n"), "{first}");
    assert_eq!(first, second);
    agent.remove("c1").await;
    agent.write("c2", "", b"still here\n").await;
    agent.read_until("c2", "", "still here").await;
}

#[tokio::test]
#[ignore = "needs root"]
async fn containers_with_a_shared_pid_namespace_see_each_other() {
    let agent = Agent::start().await;
    for (id, script) in [("pause", "echo up; sleep 1000"), ("c1", "ps -e -o args; exit 0")] {
        let mut request = agent.container(id, script);
        request.sandbox_pidns = true;
        agent.client.create_container(call(), &request).await.unwrap();
        agent.begin(id).await;
        if id == "pause" {
            agent.read_until(id, "", "up").await;
        }
    }
    let processes = String::from_utf8(agent.end("c1", "").await.stdout).unwrap();
    assert!(processes.contains("sleep 1000"), "{processes}");
}

#[tokio::test]
#[ignore = "needs root"]
async fn every_exit_code_is_told() {
    let agent = Agent::start().await;
    agent.run("c1", "cat").await;
    for code in 0..=255 {
        let exec = format!("exec-{code}");
        agent.exec("c1", &exec, &format!("exit {code}")).await;
        assert_eq!(agent.wait("c1", &exec).await, code);
    }
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_user_and_a_working_directory_are_taken_from_the_specification() {
    let agent = Agent::start().await;
    let mut request = agent.container("c1", "id -u; id -g; pwd; echo $WHO");
    let process = request.OCI.mut_or_insert_default().Process.mut_or_insert_default();
    process.User = MessageField::some(kata_agent_protocol::oci::User {
        UID: 1234,
        GID: 567,
        ..Default::default()
    });
    process.Cwd = "/tmp".to_owned();
    process.Env.push("WHO=me".to_owned());
    agent.client.create_container(call(), &request).await.unwrap();
    agent.begin("c1").await;
    let output = agent.end("c1", "").await;
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "1234\n567\n/tmp\nme\n");
}
