//! The life of one container.

use containerd_shim_protos::api::{
    CheckpointTaskRequest, ConnectRequest, KillRequest, PauseRequest, PidsRequest, ResumeRequest,
    StateRequest, StateResponse, StatsRequest, Status, UpdateTaskRequest, WaitRequest,
    WaitResponse,
};
use containerd_shim_protos::events::task::{TaskCreate, TaskDelete, TaskExit, TaskStart};
use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::shim_async::TaskClient;
use containerd_shim_protos::ttrpc::{self, Code};
use kata_agent_protocol::agent as msg;

use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

use crate::rig::{Rig, ctx, refused};

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_created_started_ends_and_is_deleted() {
    let rig = Rig::start().await;
    rig.create("pod1").await;
    assert_eq!(rig.status("pod1").await, Status::CREATED);
    let pid = rig.launch("pod1", "").await;
    assert!(pid > 0);
    let state = rig.state("pod1", "").await.unwrap();
    assert_eq!((state.status.unwrap(), state.pid), (Status::RUNNING, pid));
    assert!(state.bundle.ends_with("bundles/pod1"));
    rig.guest.exit("pod1", "", 7);
    let exit = rig.wait("pod1", "").await;
    assert_eq!(exit.exit_status, 7);
    assert_eq!(rig.status("pod1").await, Status::STOPPED);
    // A waiter that comes late hears the same.
    assert_eq!(rig.wait("pod1", "").await, exit);
    assert!(!rig.shutdown().await, "a container is left");
    let deleted = rig.delete("pod1", "").await.unwrap();
    assert_eq!((deleted.exit_status, deleted.exited_at), (7, exit.exited_at));
    assert_eq!(refused(rig.state("pod1", "").await).0, Code::NOT_FOUND);
    let told = rig.all_told().await;
    assert_eq!(told, ["create pod1", "start pod1", "exit pod1", "delete pod1"]);
    rig.nothing_is_left();
    assert!(rig.shutdown().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_waiter_hears_the_same_end() {
    let rig = Rig::start().await;
    rig.run("pod1").await;
    let early = waiters(&rig, 20);
    rig.guest.exit("pod1", "", 42);
    let first = rig.wait("pod1", "").await;
    assert_eq!(first.exit_status, 42);
    for waiter in early {
        assert_eq!(waiter.await.unwrap(), first);
    }
    rig.delete("pod1", "").await.unwrap();
    rig.nothing_is_left();
}

fn waiters(rig: &Rig, count: usize) -> Vec<tokio::task::JoinHandle<WaitResponse>> {
    let wait = |task: TaskClient| async move {
        let mut request = WaitRequest::new();
        request.id = "pod1".to_owned();
        task.wait(ctx(), &request).await.unwrap()
    };
    (0..count).map(|_| tokio::spawn(wait(rig.shim.task.clone()))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn version_2_is_the_same_service() {
    let rig = Rig::start().await;
    rig.run("pod1").await;
    let mut ask = StateRequest::new();
    ask.id = "pod1".to_owned();
    let mut request = ttrpc::Request::new();
    request.service = "containerd.task.v2.Task".to_owned();
    request.method = "State".to_owned();
    request.payload = ask.write_to_bytes().unwrap();
    let answer = rig.shim.client.request(request.clone()).await.unwrap();
    let state = StateResponse::parse_from_bytes(&answer.payload).unwrap();
    assert_eq!((state.id.as_str(), state.status.unwrap()), ("pod1", Status::RUNNING));
    ask.id = "other".to_owned();
    request.payload = ask.write_to_bytes().unwrap();
    assert_eq!(refused(rig.shim.client.request(request).await).0, Code::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_reach_what_runs_and_are_forgiven_to_what_has_ended() {
    let rig = Rig::start().await;
    rig.run("pod1").await;
    assert_eq!(refused(rig.kill("other", "", 9).await).0, Code::NOT_FOUND);
    rig.kill("pod1", "", 10).await.unwrap();
    let sent: msg::SignalProcessRequest = rig.guest.last("SignalProcess");
    assert_eq!((sent.signal, sent.exec_id.as_str()), (10, "pod1"));
    rig.kill("pod1", "", 15).await.unwrap();
    assert_eq!(rig.wait("pod1", "").await.exit_status, 128 + 15);
    for signal in [9, 15] {
        rig.kill("pod1", "", signal).await.unwrap();
    }
    rig.delete("pod1", "").await.unwrap();
    assert_eq!(refused(rig.kill("pod1", "", 9).await).0, Code::NOT_FOUND);
    rig.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_with_sigkill_or_all_means_every_process_of_the_container() {
    let rig = Rig::start().await;
    rig.run("pod1").await;
    rig.exec("pod1", "e").await.unwrap();
    rig.launch("pod1", "e").await;
    rig.kill("pod1", "e", 2).await.unwrap();
    assert_eq!(rig.guest.last::<msg::SignalProcessRequest>("SignalProcess").exec_id, "e");
    let mut request = KillRequest::new();
    (request.id, request.signal, request.all) = ("pod1".to_owned(), 9, true);
    rig.shim.task.kill(ctx(), &request).await.unwrap();
    assert_eq!(rig.guest.last::<msg::SignalProcessRequest>("SignalProcess").exec_id, "");
    assert_eq!(rig.wait("pod1", "").await.exit_status, 137);
    assert_eq!(rig.wait("pod1", "e").await.exit_status, 137);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_was_never_started_can_be_killed_and_deleted() {
    let rig = Rig::start().await;
    rig.create("pod1").await;
    rig.kill("pod1", "", 9).await.unwrap();
    assert_eq!(rig.wait("pod1", "").await.exit_status, 137);
    assert_eq!(refused(rig.try_launch("pod1", "").await).0, Code::FAILED_PRECONDITION);
    assert_eq!(rig.delete("pod1", "").await.unwrap().exit_status, 137);
    assert_eq!(rig.all_told().await, ["create pod1", "delete pod1"]);
    rig.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_container_is_killed_by_its_deletion() {
    let rig = Rig::start().await;
    rig.run("pod1").await;
    assert_eq!(rig.delete("pod1", "").await.unwrap().exit_status, 137);
    let told = rig.all_told().await;
    assert_eq!(told, ["create pod1", "start pod1", "exit pod1", "delete pod1"]);
    rig.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn events_carry_what_containerd_reads() {
    let rig = Rig::start().await;
    rig.create("pod1").await;
    let pid = rig.launch("pod1", "").await;
    rig.guest.exit("pod1", "", 3);
    let exit = rig.wait("pod1", "").await;
    rig.delete("pod1", "").await.unwrap();
    let create = rig.event("create", 1).await;
    assert_eq!(create.type_url, "containerd.events.TaskCreate");
    let create: TaskCreate = create.body();
    assert!(create.pid == pid && create.bundle.ends_with("/pod1") && create.io.is_some());
    assert_eq!(rig.event("start", 1).await.body::<TaskStart>().pid, pid);
    let told: TaskExit = rig.event("exit", 1).await.body();
    assert_eq!((told.id.as_str(), told.pid, told.exit_status), ("pod1", pid, 3));
    assert_eq!(told.exited_at, exit.exited_at);
    let told: TaskDelete = rig.event("delete", 1).await.body();
    assert_eq!((told.exit_status, told.exited_at), (3, exit.exited_at));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_container_says_so_and_goes_on() {
    let rig = Rig::start().await;
    rig.create("pod1").await;
    let mut pause = PauseRequest::new();
    pause.id = "pod1".to_owned();
    let early = rig.shim.task.pause(ctx(), &pause).await;
    assert_eq!(refused(early).0, Code::FAILED_PRECONDITION);
    rig.launch("pod1", "").await;
    rig.shim.task.pause(ctx(), &pause).await.unwrap();
    assert_eq!(rig.status("pod1").await, Status::PAUSED);
    let mut resume = ResumeRequest::new();
    resume.id = "pod1".to_owned();
    rig.shim.task.resume(ctx(), &resume).await.unwrap();
    assert_eq!(rig.status("pod1").await, Status::RUNNING);
    let told = rig.all_told().await;
    assert_eq!(told[2..], ["paused pod1", "resumed pod1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_else_containerd_asks_is_answered() {
    let rig = Rig::start().await;
    rig.run("pod1").await;
    let task = &rig.shim.task;
    let pid = rig.shim.pod.pid();
    let mut ask = PidsRequest::new();
    ask.id = "pod1".to_owned();
    let pids = task.pids(ctx(), &ask).await.unwrap().processes;
    assert_eq!(pids.iter().map(|p| p.pid).collect::<Vec<_>>(), [pid]);
    let connected = task.connect(ctx(), &ConnectRequest::new()).await.unwrap();
    assert_eq!((connected.shim_pid, connected.task_pid), (std::process::id(), pid));
    let mut ask = StatsRequest::new();
    ask.id = "pod1".to_owned();
    let stats = task.stats(ctx(), &ask).await.unwrap().stats;
    let version = if shim::cgroup::is_v2() { "v2" } else { "v1" };
    assert_eq!(stats.type_url, format!("io.containerd.cgroups.{version}.Metrics"));
    let mut ask = UpdateTaskRequest::new();
    ask.id = "pod1".to_owned();
    let resources = ask.resources.mut_or_insert_default();
    resources.value = br#"{"memory": {"limit": 4096}, "cpu": {"cpus": "0-3"}}"#.to_vec();
    task.update(ctx(), &ask).await.unwrap();
    let update: msg::UpdateContainerRequest = rig.guest.last("UpdateContainer");
    assert_eq!((update.resources.Memory.Limit, update.resources.CPU.Cpus.as_str()), (4096, ""));
    ask.resources.mut_or_insert_default().value = b"{".to_vec();
    assert_eq!(refused(task.update(ctx(), &ask).await).0, Code::INVALID_ARGUMENT);
    let checkpoint = task.checkpoint(ctx(), &CheckpointTaskRequest::new()).await;
    assert_eq!(refused(checkpoint).0, Code::UNIMPLEMENTED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_taken_or_is_none_is_refused() {
    let rig = Rig::start().await;
    rig.create("pod1").await;
    assert_eq!(refused(rig.try_create("pod1").await).0, Code::ALREADY_EXISTS);
    let bundle = rig.bundle("x", |_| ());
    for id in ["", "a", "../a", "a/b", "-ab"] {
        let answer = rig.shim.task.create(ctx(), &rig.request(id, bundle.clone())).await;
        let (code, message) = refused(answer);
        assert_eq!(code, Code::INVALID_ARGUMENT, "{id}: {message}");
    }
    assert_eq!(rig.status("pod1").await, Status::CREATED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_the_guest_refuses_leaves_a_container_to_delete() {
    let rig = Rig::start().await;
    rig.create("pod1").await;
    rig.guest.fail("StartContainer", "no such program");
    let (_, message) = refused(rig.try_launch("pod1", "").await);
    assert!(message.contains("pod1") && message.contains("no such program"), "{message}");
    assert_eq!(rig.status("pod1").await, Status::CREATED);
    rig.delete("pod1", "").await.unwrap();
    assert_eq!(rig.all_told().await, ["create pod1", "delete pod1"]);
    rig.nothing_is_left();
}

/// Lets the guest's answers to StartContainer wait until the returned gate is opened.
fn gated(rig: &Rig) -> Arc<Notify> {
    let gate = Arc::new(Notify::new());
    let inner = Arc::clone(&gate);
    rig.guest.with_agent(|agent| {
        agent.on("StartContainer", move |_: msg::StartContainerRequest| {
            let gate = Arc::clone(&inner);
            async move {
                gate.notified().await;
                Ok(msg::GetDiagnosticDataResponse::new())
            }
        });
    });
    gate
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_that_comes_during_the_start_waits_for_it() {
    let rig = Rig::start().await;
    rig.create("pod1").await;
    let gate = gated(&rig);
    let kill = async {
        rig.guest.wait_for("StartContainer").await;
        let killing = rig.kill("pod1", "", 9);
        tokio::pin!(killing);
        // It is under way, and does not end a process that is being started.
        let early = tokio::time::timeout(Duration::from_millis(100), &mut killing).await;
        assert!(early.is_err(), "{early:?}");
        gate.notify_one();
        killing.await.unwrap();
    };
    let (started, ()) = tokio::join!(rig.try_launch("pod1", ""), kill);
    started.unwrap();
    assert_eq!(rig.wait("pod1", "").await.exit_status, 137);
    assert_eq!(rig.all_told().await, ["create pod1", "start pod1", "exit pod1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_dies_during_the_start_is_one_end_without_a_beginning() {
    let rig = Rig::start().await;
    rig.create("pod1").await;
    let _gate = gated(&rig);
    let die = async {
        rig.guest.wait_for("StartContainer").await;
        rig.kill_vm();
    };
    let (started, ()) = tokio::join!(rig.try_launch("pod1", ""), die);
    let (_, message) = refused(started);
    assert!(message.contains("start process init of container pod1"), "{message}");
    assert_eq!(rig.wait("pod1", "").await.exit_status, 137);
    rig.delete("pod1", "").await.unwrap();
    assert_eq!(rig.all_told().await, ["create pod1", "delete pod1"]);
    rig.nothing_is_left_soon().await;
}
