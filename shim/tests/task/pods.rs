//! Several containers in one pod, and the pod's end.

use containerd_shim_protos::api::{ShutdownRequest, Status};
use containerd_shim_protos::events::task::TaskExit;
use containerd_shim_protos::ttrpc::Code;
use kata_agent_protocol::agent as msg;
use serde_json::json;
use vmm_glue::agent::fake::FakeAgent;

use crate::rig::{PATIENCE, Rig, ctx, refused};

#[tokio::test(flavor = "multi_thread")]
async fn containers_share_a_vm_and_go_one_by_one() {
    let rig = Rig::start().await;
    rig.create_sandbox().await;
    rig.launch("pod1", "").await;
    for id in ["app", "side"] {
        rig.create_beside(id).await;
        rig.launch(id, "").await;
    }
    assert_eq!(rig.vmm.running(), ["pod1"]);
    rig.guest.exit("app", "", 3);
    assert_eq!(rig.wait("app", "").await.exit_status, 3);
    assert_eq!(rig.status("side").await, Status::RUNNING);
    rig.delete("app", "").await.unwrap();
    assert_eq!(
        rig.guest.last::<msg::RemoveContainerRequest>("RemoveContainer").container_id,
        "app"
    );
    let left = rig.left();
    assert!(!left.iter().any(|item| item.contains("mounts/app")), "{left:?}");
    assert!(left.iter().any(|item| item.contains("mounts/side/rootfs")), "{left:?}");
    // A container of this name may come again.
    rig.create_beside("app").await;
    rig.launch("app", "").await;
    for id in ["side", "app"] {
        rig.kill(id, "", 9).await.unwrap();
        assert_eq!(rig.wait(id, "").await.exit_status, 137);
        rig.delete(id, "").await.unwrap();
        assert!(!rig.shutdown().await);
    }
    rig.kill("pod1", "", 15).await.unwrap();
    rig.wait("pod1", "").await;
    rig.delete("pod1", "").await.unwrap();
    rig.nothing_is_left();
    assert!(rig.shutdown().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_sandbox_s_container_ends_the_others() {
    let rig = Rig::start().await;
    rig.create_sandbox().await;
    rig.launch("pod1", "").await;
    rig.create_beside("app").await;
    rig.launch("app", "").await;
    rig.kill("pod1", "", 9).await.unwrap();
    assert_eq!(rig.wait("app", "").await.exit_status, 137);
    rig.nothing_is_left_soon().await;
    // containerd deletes what is left in any order.
    rig.delete("pod1", "").await.unwrap();
    assert_eq!(refused(rig.try_launch("app", "").await).0, Code::FAILED_PRECONDITION);
    rig.kill("app", "", 9).await.unwrap();
    assert_eq!(rig.delete("app", "").await.unwrap().exit_status, 137);
    let told = rig.all_told().await;
    for id in ["app", "pod1"] {
        let of_one: Vec<_> = told.iter().filter(|event| event.ends_with(id)).collect();
        let life = ["create", "start", "exit", "delete"].map(|topic| format!("{topic} {id}"));
        assert_eq!(of_one, life.iter().collect::<Vec<_>>());
    }
    assert!(rig.shutdown().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_dies_ends_everything_with_137() {
    let rig = Rig::start().await;
    rig.create_sandbox().await;
    rig.launch("pod1", "").await;
    rig.create_beside("app").await;
    rig.launch("app", "").await;
    rig.create_beside("idle").await;
    rig.exec("app", "e").await.unwrap();
    rig.launch("app", "e").await;
    rig.kill_vm();
    for (id, exec) in [("pod1", ""), ("app", ""), ("app", "e"), ("idle", "")] {
        assert_eq!(rig.wait(id, exec).await.exit_status, 137, "{id} {exec}");
    }
    rig.nothing_is_left_soon().await;
    for id in ["app", "pod1", "idle"] {
        assert_eq!(rig.status(id).await, Status::STOPPED);
        rig.kill(id, "", 9).await.unwrap();
        assert_eq!(rig.delete(id, "").await.unwrap().exit_status, 137);
    }
    let told = rig.all_told().await;
    let exits = told.iter().filter(|event| event.starts_with("exit")).count();
    assert_eq!(exits, 3, "one for each that ran: {told:?}");
    assert_eq!(rig.event("exit", 1).await.body::<TaskExit>().exit_status, 137);
    assert!(rig.shutdown().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_runs_out_of_memory_is_told_of() {
    let rig = Rig::start().await;
    rig.run("pod1").await;
    rig.guest.run_out_of_memory("pod1");
    assert_eq!(rig.event("oom", 1).await.container, "pod1");
    rig.guest.run_out_of_memory("pod1");
    let event = rig.event("oom", 2).await;
    assert_eq!(event.type_url, "containerd.events.TaskOOM");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_of_a_pod_that_is_not_there_is_refused() {
    let rig = Rig::start().await;
    let bundle = rig.bundle("app", |spec| spec["annotations"] = crate::rig::inside("pod1"));
    let (code, message) = refused(rig.shim.task.create(ctx(), &rig.request("app", bundle)).await);
    assert_eq!(code, Code::FAILED_PRECONDITION, "{message}");
    rig.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guest_is_asked_in_the_order_that_kata_s_agent_knows() {
    let rig = Rig::start().await;
    rig.run("pod1").await;
    rig.guest.wait_for("WaitProcess").await;
    let methods = rig.guest.with_agent(FakeAgent::methods);
    let place = |name: &str| methods.iter().position(|method| method == name);
    let order = ["CreateSandbox", "CreateContainer", "StartContainer", "WaitProcess"].map(place);
    assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{methods:?}");
    assert!(place("UpdateInterface") < place("UpdateRoutes"), "{methods:?}");
    assert!(place("UpdateRoutes") < place("CreateContainer"), "{methods:?}");
    let interface = rig.guest.last::<msg::UpdateInterfaceRequest>("UpdateInterface").interface;
    let attachment = rig.switch_attachments().remove(0);
    assert_eq!(interface.hwAddr, attachment.mac.to_string());
    assert_eq!(interface.name, "eth0");
    assert_eq!(attachment.owner, "pod1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_a_cni_plugin_has_the_plugin_s_port_and_leaves_it_alone() {
    let rig = Rig::start().await;
    let with_netns = |spec: &mut serde_json::Value| {
        spec["linux"]["namespaces"] = json!([{"type": "network", "path": "/run/netns/cni-1"}]);
    };
    let request = rig.request("pod1", rig.bundle("pod1", with_netns));
    let (_, message) = refused(rig.shim.task.create(ctx(), &request).await);
    assert!(message.contains("slipway-cni") && message.contains("/run/netns/cni-1"), "{message}");
    rig.nothing_is_left();
    rig.attach_as_cni("pod1").await;
    rig.shim.task.create(ctx(), &request).await.unwrap();
    rig.delete("pod1", "").await.unwrap();
    assert_eq!(rig.left(), ["attachment pod1"], "the plugin's DEL gives it back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_on_the_host_s_network_is_refused() {
    let rig = Rig::start().await;
    let on_host = |spec: &mut serde_json::Value| spec["linux"]["namespaces"] = json!([]);
    let request = rig.request("pod1", rig.bundle("pod1", on_host));
    let (_, message) = refused(rig.shim.task.create(ctx(), &request).await);
    assert!(message.contains("hostNetwork"), "{message}");
    rig.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_shared_and_taken_back() {
    let rig = Rig::start().await;
    let data = rig.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("file"), "precious").unwrap();
    let hosts = rig.path().join("hosts");
    std::fs::write(&hosts, "127.0.0.1 localhost").unwrap();
    let bundle = rig.bundle("pod1", |spec| {
        spec["mounts"] = json!([
            {"destination": "/data", "type": "bind", "source": data, "options": ["rbind", "ro"]},
            {"destination": "/etc/hosts", "type": "bind", "source": hosts, "options": ["bind"]},
        ]);
    });
    rig.shim.task.create(ctx(), &rig.request("pod1", bundle)).await.unwrap();
    let asked: msg::CreateContainerRequest = rig.guest.last("CreateContainer");
    let served = rig.host.shares.join("pod1/shared");
    let found = |index: usize| {
        let source = &asked.OCI.Mounts[index].source;
        let inside = source.strip_prefix(shim::share::GUEST).expect("of the share");
        served.join(inside.trim_start_matches('/'))
    };
    assert_eq!(std::fs::read(found(0).join("file")).unwrap(), b"precious");
    assert!(std::fs::write(found(0).join("file"), "x").is_err(), "it was asked for read-only");
    std::fs::write(found(1), "127.0.0.2 localhost").unwrap();
    assert_eq!(std::fs::read(&hosts).unwrap(), b"127.0.0.2 localhost");
    assert!(std::fs::write(served.join("new"), "x").is_err(), "the share itself is read-only");
    assert!(asked.OCI.Root.Path.ends_with("pod1/rootfs"));
    rig.delete("pod1", "").await.unwrap();
    rig.nothing_is_left();
    assert_eq!(std::fs::read(data.join("file")).unwrap(), b"precious");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_that_is_told_to_end_now_ends_with_containers() {
    let rig = Rig::start().await;
    rig.run("pod1").await;
    let mut request = ShutdownRequest::new();
    request.now = true;
    rig.shim.task.shutdown(ctx(), &request).await.unwrap();
    assert!(*rig.shim.exit.borrow());
    tokio::time::timeout(PATIENCE, rig.shim.pod.close()).await.unwrap().unwrap();
    rig.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_is_mounted_read_only_is_so_for_the_guest_too() {
    let rig = Rig::start().await;
    let image = rig.path().join("image");
    std::fs::create_dir(&image).unwrap();
    std::fs::write(image.join("file"), "text").unwrap();
    let mut request = rig.request("pod1", rig.bundle("pod1", |_| ()));
    let mut mount = containerd_shim_protos::types::mount::Mount::new();
    mount.type_ = "bind".to_owned();
    mount.source = image.display().to_string();
    mount.options = ["rbind", "ro"].map(str::to_owned).to_vec();
    request.rootfs = vec![mount];
    rig.shim.task.create(ctx(), &request).await.unwrap();
    let file = rig.host.shares.join("pod1/shared/pod1/rootfs/file");
    assert_eq!(std::fs::read(&file).unwrap(), b"text");
    assert!(std::fs::write(&file, "x").is_err());
    let told: containerd_shim_protos::events::task::TaskCreate =
        rig.event("create", 1).await.body();
    assert_eq!(told.rootfs, request.rootfs);
    rig.delete("pod1", "").await.unwrap();
    rig.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_cannot_be_mounted_is_named() {
    let rig = Rig::start().await;
    let mut request = rig.request("pod1", rig.bundle("pod1", |_| ()));
    let mut mount = containerd_shim_protos::types::mount::Mount::new();
    mount.type_ = "overlay".to_owned();
    mount.source = "overlay".to_owned();
    mount.options = vec!["lowerdir=/nowhere".to_owned()];
    request.rootfs = vec![mount];
    let (_, message) = refused(rig.shim.task.create(ctx(), &request).await);
    assert!(message.contains("overlay") && message.contains("pod1/rootfs"), "{message}");
    rig.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_files_are_gone_ends() {
    let rig = Rig::start().await;
    rig.run("pod1").await;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(rig.virtiofsd()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(rig.wait("pod1", "").await.exit_status, 137);
    rig.nothing_is_left_soon().await;
    rig.delete("pod1", "").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_guest_hangs_can_be_killed_and_deleted() {
    let rig = Rig::start().await;
    rig.create_sandbox().await;
    rig.launch("pod1", "").await;
    rig.create_beside("app").await;
    rig.launch("app", "").await;
    rig.guest.with_agent(|agent| agent.hang("SignalProcess"));
    let (code, message) = refused(rig.kill("app", "", 9).await);
    assert!(message.contains("signal 9") && message.contains("app"), "{code:?} {message}");
    assert_eq!(rig.status("app").await, Status::RUNNING);
    rig.kill("pod1", "", 9).await.unwrap();
    for id in ["app", "pod1"] {
        assert_eq!(rig.wait(id, "").await.exit_status, 137);
        rig.delete(id, "").await.unwrap();
    }
    rig.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn events_wait_while_containerd_is_away() {
    let mut rig = Rig::start().await;
    rig.create("pod1").await;
    rig.event("create", 1).await;
    rig.containerd_goes().await;
    rig.launch("pod1", "").await;
    rig.guest.exit("pod1", "", 1);
    rig.wait("pod1", "").await;
    assert_eq!(rig.told(), ["create pod1"]);
    rig.containerd_comes().await;
    rig.event("exit", 1).await;
    rig.delete("pod1", "").await.unwrap();
    let told = rig.all_told().await;
    assert_eq!(told, ["create pod1", "start pod1", "exit pod1", "delete pod1"]);
}
