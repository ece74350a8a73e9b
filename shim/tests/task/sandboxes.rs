//! containerd's sandbox API: a pod without a container that stands for it.

use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::sandbox_api as api;
use containerd_shim_protos::ttrpc::{self, Code};

use crate::rig::{PATIENCE, Rig, ctx, map, refused};

async fn create(rig: &Rig) -> ttrpc::Result<api::CreateSandboxResponse> {
    let mut request = api::CreateSandboxRequest::new();
    request.sandbox_id = "pod1".to_owned();
    request.options = MessageField::some(rig.options());
    request.annotations = map(&[("io.kubernetes.cri.sandbox-name", "web-0")]).into_iter().collect();
    rig.shim.sandbox.create_sandbox(ctx(), &request).await
}

async fn start(rig: &Rig) -> ttrpc::Result<api::StartSandboxResponse> {
    let mut request = api::StartSandboxRequest::new();
    request.sandbox_id = "pod1".to_owned();
    rig.shim.sandbox.start_sandbox(ctx(), &request).await
}

async fn status(rig: &Rig) -> api::SandboxStatusResponse {
    let mut request = api::SandboxStatusRequest::new();
    request.sandbox_id = "pod1".to_owned();
    rig.shim.sandbox.sandbox_status(ctx(), &request).await.unwrap()
}

async fn stop(rig: &Rig) {
    let mut request = api::StopSandboxRequest::new();
    request.sandbox_id = "pod1".to_owned();
    rig.shim.sandbox.stop_sandbox(ctx(), &request).await.unwrap();
}

async fn wait(rig: &Rig) -> api::WaitSandboxResponse {
    let mut request = api::WaitSandboxRequest::new();
    request.sandbox_id = "pod1".to_owned();
    let answer = rig.shim.sandbox.wait_sandbox(ctx(), &request);
    tokio::time::timeout(PATIENCE, answer).await.expect("it ends").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_is_created_started_stopped_and_waited_for() {
    let rig = Rig::start().await;
    assert_eq!(refused(start(&rig).await).0, Code::FAILED_PRECONDITION);
    create(&rig).await.unwrap();
    assert_eq!(refused(create(&rig).await).0, Code::ALREADY_EXISTS);
    assert_eq!(status(&rig).await.state, "SANDBOX_NOTREADY");
    let started = start(&rig).await.unwrap();
    assert!(started.pid > 0 && started.created_at.is_some());
    let ready = status(&rig).await;
    assert_eq!((ready.state.as_str(), ready.pid), ("SANDBOX_READY", started.pid));
    let asked: kata_agent_protocol::agent::CreateSandboxRequest = rig.guest.last("CreateSandbox");
    assert_eq!((asked.sandbox_id.as_str(), asked.hostname.as_str()), ("pod1", "web-0"));
    rig.create_beside("app").await;
    rig.launch("app", "").await;
    stop(&rig).await;
    assert_eq!(rig.wait("app", "").await.exit_status, 137);
    let exit = wait(&rig).await;
    assert_eq!(exit.exit_status, 0);
    let over = status(&rig).await;
    assert_eq!((over.state.as_str(), over.exited_at), ("SANDBOX_NOTREADY", exit.exited_at));
    stop(&rig).await;
    rig.delete("app", "").await.unwrap();
    let mut request = api::ShutdownSandboxRequest::new();
    request.sandbox_id = "pod1".to_owned();
    rig.shim.sandbox.shutdown_sandbox(ctx(), &request).await.unwrap();
    assert!(*rig.shim.exit.borrow());
    rig.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_was_never_started_can_be_stopped() {
    let rig = Rig::start().await;
    create(&rig).await.unwrap();
    stop(&rig).await;
    wait(&rig).await;
    let (_, message) = refused(start(&rig).await);
    assert!(message.contains("gone"), "{message}");
    rig.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_whose_vm_dies_tells_its_waiters() {
    let rig = Rig::start().await;
    create(&rig).await.unwrap();
    start(&rig).await.unwrap();
    rig.kill_vm();
    assert_eq!(wait(&rig).await.exit_status, 137);
    rig.nothing_is_left_soon().await;
    assert_eq!(status(&rig).await.state, "SANDBOX_NOTREADY");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_sandbox_s_name_is_not_found() {
    let rig = Rig::start().await;
    let mut request = api::PingRequest::new();
    request.sandbox_id = "pod1".to_owned();
    rig.shim.sandbox.ping_sandbox(ctx(), &request).await.unwrap();
    request.sandbox_id = "other".to_owned();
    assert_eq!(refused(rig.shim.sandbox.ping_sandbox(ctx(), &request).await).0, Code::NOT_FOUND);
    let mut request = api::PlatformRequest::new();
    request.sandbox_id = "pod1".to_owned();
    let platform = rig.shim.sandbox.platform(ctx(), &request).await.unwrap().platform;
    assert_eq!(platform.os, "linux");
}
