//! Creation, start, end and removal.

use crate::rig::{Agent, Ended};

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
}
