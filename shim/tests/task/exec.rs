//! Further processes of a container.

use containerd_shim_protos::api::{ResizePtyRequest, Status};
use containerd_shim_protos::events::task::{TaskExecStarted, TaskExit};
use containerd_shim_protos::ttrpc::Code;
use kata_agent_protocol::agent as msg;
use vmm_glue::agent::fake::FakeAgent;

use crate::rig::{Rig, ctx, refused};

#[tokio::test(flavor = "multi_thread")]
async fn a_process_is_added_started_ends_and_is_deleted() {
    let rig = Rig::start().await;
    rig.run("pod1").await;
    rig.exec("pod1", "e1").await.unwrap();
    assert_eq!(refused(rig.exec("pod1", "e1").await).0, Code::ALREADY_EXISTS);
    assert_eq!(rig.state("pod1", "e1").await.unwrap().status.unwrap(), Status::CREATED);
    rig.launch("pod1", "e1").await;
    assert_eq!(refused(rig.try_launch("pod1", "e1").await).0, Code::FAILED_PRECONDITION);
    assert_eq!(refused(rig.delete("pod1", "e1").await).0, Code::FAILED_PRECONDITION);
    rig.guest.exit("pod1", "e1", 5);
    assert_eq!(rig.wait("pod1", "e1").await.exit_status, 5);
    assert_eq!(refused(rig.kill("pod1", "e1", 9).await).0, Code::NOT_FOUND);
    assert_eq!(rig.delete("pod1", "e1").await.unwrap().exit_status, 5);
    for answer in
        [rig.state("pod1", "e1").await.map(drop), rig.delete("pod1", "e1").await.map(drop)]
    {
        assert_eq!(refused(answer).0, Code::NOT_FOUND);
    }
    assert_eq!(rig.status("pod1").await, Status::RUNNING);
    let told = rig.all_told().await;
    assert_eq!(told[2..], ["exec-added pod1", "exec-started pod1", "exit pod1"]);
    let started: TaskExecStarted = rig.event("exec-started", 1).await.body();
    let exit: TaskExit = rig.event("exit", 1).await.body();
    assert_eq!((started.exec_id.as_str(), exit.id.as_str()), ("e1", "e1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_not_found_and_what_has_ended_takes_no_more() {
    let rig = Rig::start().await;
    rig.run("pod1").await;
    assert_eq!(refused(rig.exec("other", "e").await).0, Code::NOT_FOUND);
    assert_eq!(refused(rig.try_launch("pod1", "e").await).0, Code::NOT_FOUND);
    assert_eq!(refused(rig.kill("pod1", "e", 9).await).0, Code::NOT_FOUND);
    let damaged = |request: &mut containerd_shim_protos::api::ExecProcessRequest| {
        request.spec.mut_or_insert_default().value = b"{".to_vec();
    };
    let answer = rig.exec_with("pod1", "e", damaged).await;
    assert_eq!(refused(answer).0, Code::INVALID_ARGUMENT);
    rig.guest.exit("pod1", "", 0);
    rig.wait("pod1", "").await;
    assert_eq!(refused(rig.exec("pod1", "e").await).0, Code::FAILED_PRECONDITION);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_named_as_its_container_is_not_taken_for_its_first() {
    let rig = Rig::start().await;
    rig.run("pod1").await;
    rig.exec("pod1", "pod1").await.unwrap();
    rig.launch("pod1", "pod1").await;
    let asked: msg::ExecProcessRequest = rig.guest.last("ExecProcess");
    assert_ne!(asked.exec_id, "pod1");
    rig.guest.exit("pod1", &asked.exec_id, 4);
    assert_eq!(rig.wait("pod1", "pod1").await.exit_status, 4);
    assert_eq!(rig.status("pod1").await, Status::RUNNING);
}

async fn resize(rig: &Rig, exec: &str, width: u32, height: u32) {
    let mut request = ResizePtyRequest::new();
    (request.id, request.exec_id) = ("pod1".to_owned(), exec.to_owned());
    (request.width, request.height) = (width, height);
    rig.shim.task.resize_pty(ctx(), &request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_s_size_is_remembered_until_the_start() {
    let rig = Rig::start().await;
    rig.run("pod1").await;
    rig.exec_with("pod1", "e", |request| request.terminal = true).await.unwrap();
    resize(&rig, "e", 100, 40).await;
    let methods = rig.guest.with_agent(FakeAgent::methods);
    assert!(!methods.contains(&"TtyWinResize".to_owned()), "{methods:?}");
    rig.launch("pod1", "e").await;
    let asked: msg::ExecProcessRequest = rig.guest.last("ExecProcess");
    assert!(asked.process.Terminal);
    let size: msg::TtyWinResizeRequest = rig.guest.last("TtyWinResize");
    assert_eq!((size.exec_id.as_str(), size.column, size.row), ("e", 100, 40));
    resize(&rig, "e", 120, 50).await;
    assert_eq!(rig.guest.last::<msg::TtyWinResizeRequest>("TtyWinResize").column, 120);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_size_that_comes_too_late_costs_no_start_and_no_end() {
    let rig = Rig::start().await;
    rig.run("pod1").await;
    rig.guest.fail("TtyWinResize", "the process has ended");
    rig.exec_with("pod1", "e", |request| request.terminal = true).await.unwrap();
    resize(&rig, "e", 100, 40).await;
    rig.launch("pod1", "e").await;
    rig.guest.exit("pod1", "e", 1);
    assert_eq!(rig.wait("pod1", "e").await.exit_status, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_in_a_row_each_end_with_their_own_code() {
    let rig = Rig::start().await;
    rig.run("pod1").await;
    for code in 0..50 {
        let name = format!("e{code}");
        rig.exec("pod1", &name).await.unwrap();
        rig.launch("pod1", &name).await;
        rig.guest.exit("pod1", &name, code);
        assert_eq!(rig.wait("pod1", &name).await.exit_status, code.unsigned_abs());
        rig.delete("pod1", &name).await.unwrap();
    }
    let told = rig.all_told().await;
    assert_eq!(told.len(), 2 + 3 * 50);
}
