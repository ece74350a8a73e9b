//! What a runtime is told that asks for what cannot be, and that nothing changes by it.

use kata_agent_protocol::agent::*;
use kata_agent_protocol::health::CheckRequest;
use ttrpc::Code;

use crate::rig::{Agent, call, refusal};

#[tokio::test]
#[ignore = "needs root"]
async fn the_agent_tells_that_it_serves_and_what_it_is() {
    let agent = Agent::bare().await;
    let health = agent.health.check(call(), &CheckRequest::new()).await.unwrap();
    assert_eq!(health.status.value(), 1);
    let version = agent.health.version(call(), &CheckRequest::new()).await.unwrap();
    assert_eq!(version.grpc_version, "0.0.1");
    let request = GuestDetailsRequest { mem_block_size: true, ..Default::default() };
    let details = agent.client.get_guest_details(call(), &request).await.unwrap().agent_details;
    assert!(!details.supports_seccomp);
    assert!(details.storage_handlers.contains(&"virtio-fs".to_owned()), "{details:?}");
    let metrics = agent.client.get_metrics(call(), &GetMetricsRequest::new()).await.unwrap();
    assert!(metrics.metrics.contains("\nkata_guest_meminfo{item=\"memtotal\"} "));
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_container_needs_a_sandbox() {
    let agent = Agent::bare().await;
    let request = agent.container("c1", "true");
    let (code, text) = refusal(agent.client.create_container(call(), &request).await);
    assert_eq!(code, Code::FAILED_PRECONDITION, "{text}");
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_second_sandbox_and_a_second_container_of_a_name_are_refused() {
    let agent = Agent::start().await;
    let sandbox = agent.client.create_sandbox(call(), &CreateSandboxRequest::new()).await;
    assert_eq!(refusal(sandbox).0, Code::ALREADY_EXISTS);
    agent.run("c1", "cat").await;
    let again = agent.client.create_container(call(), &agent.container("c1", "true")).await;
    assert_eq!(refusal(again).0, Code::ALREADY_EXISTS);
    agent.exec("c1", "e1", "exit 2").await;
    assert_eq!(agent.wait("c1", "e1").await, 2, "the first one is as it was");
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_container_that_is_not_there_is_told_by_name() {
    let agent = Agent::start().await;
    let container_id = "ghost".to_owned();
    let start = StartContainerRequest { container_id: container_id.clone(), ..Default::default() };
    let stats = StatsContainerRequest { container_id: container_id.clone(), ..Default::default() };
    let read = ReadStreamRequest { container_id, len: 1, ..Default::default() };
    for (code, text) in [
        refusal(agent.try_wait("ghost", "").await),
        refusal(agent.client.start_container(call(), &start).await),
        refusal(agent.client.stats_container(call(), &stats).await),
        refusal(agent.client.read_stdout(call(), &read).await),
    ] {
        assert_eq!(code, Code::INVALID_ARGUMENT);
        assert!(text.contains("'ghost'"), "{text}");
    }
}

#[tokio::test]
#[ignore = "needs root"]
async fn names_that_are_paths_are_refused() {
    let agent = Agent::start().await;
    for id in ["..", "a/../../b", "x"] {
        let mut request = agent.container("c1", "true");
        request.container_id = id.to_owned();
        let (code, text) = refusal(agent.client.create_container(call(), &request).await);
        assert_eq!(code, Code::INVALID_ARGUMENT, "{text}");
    }
}

#[tokio::test]
#[ignore = "needs root"]
async fn methods_that_are_not_served_say_so() {
    let agent = Agent::start().await;
    let policy = agent.client.set_policy(call(), &SetPolicyRequest::new()).await;
    let tables = agent.client.get_ip_tables(call(), &GetIPTablesRequest::new()).await;
    // Generated code answers NOT_FOUND for what a service leaves out, as Kata's agent does.
    for code in [refusal(policy).0, refusal(tables).0] {
        assert!(matches!(code, Code::NOT_FOUND | Code::UNIMPLEMENTED), "{code:?}");
    }
}

#[tokio::test]
#[ignore = "needs root"]
async fn reading_no_bytes_is_not_mistaken_for_the_end() {
    let agent = Agent::start().await;
    agent.run("c1", "cat").await;
    let read = ReadStreamRequest { container_id: "c1".to_owned(), ..Default::default() };
    assert_eq!(refusal(agent.client.read_stdout(call(), &read).await).0, Code::INVALID_ARGUMENT);
}
