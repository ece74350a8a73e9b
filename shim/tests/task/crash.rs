//! What `delete` does after the shim was killed.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use shim::delete;
use shim::mounts::{self, MountSpec};
use shim::persist::{PodDir, Process, Record};
use shim::serve;
use shim::share::{HostBind, Share};

use crate::rig::Rig;

/// A pod as a killed shim leaves it: record, mounts, a process, a cgroup with it, an attachment.
async fn crashed(rig: &Rig) -> Child {
    let child = Command::new("sleep").arg("600").spawn().unwrap();
    let cgroup = rig.cgroup_path();
    cgroup.join(child.id()).unwrap();
    rig.attach_as_cni("pod1").await;
    let dir = PodDir::of(&rig.host.pods, "pod1");
    dir.create().unwrap();
    let record = Record {
        id: "pod1".to_owned(),
        engine: rig.host.engine.clone(),
        shim: None,
        processes: Process::now(child.id()).into_iter().collect(),
        cgroup: Some(cgroup),
        switch: Some(rig.path().join("slipwayd.sock")),
        own_interfaces: vec!["eth0".to_owned()],
    };
    dir.write(&record).unwrap();
    std::fs::write(dir.path().join("agent.sock"), "").unwrap();
    share_something(rig);
    child
}

fn share_something(rig: &Rig) {
    let share = Share::of(&rig.host.shares, "pod1");
    share.create().unwrap();
    let tmpfs = MountSpec { kind: "tmpfs".into(), source: "tmpfs".into(), options: Vec::new() };
    share.add_rootfs("pod1", &[tmpfs], rig.path()).unwrap();
    let volume = rig.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("data"), "precious").unwrap();
    let bind =
        HostBind { source: volume, destination: "/data".into(), recursive: true, read_only: false };
    share.add_bind("pod1", &bind).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_cleaned_and_it_may_be_done_twice() {
    let rig = Rig::start().await;
    let mut child = crashed(&rig).await;
    for what in ["mount", "folder", "attachment", "cgroup"] {
        let left = rig.left();
        assert!(left.iter().any(|item| item.starts_with(what)), "no {what}: {left:?}");
    }
    let bundle = rig.bundle("pod1", |_| ());
    delete::clean(&rig.host, "pod1", bundle.as_ref()).await.unwrap();
    rig.nothing_is_left();
    assert!(!child.wait().unwrap().success(), "it was killed");
    assert_eq!(std::fs::read(rig.path().join("volume/data")).unwrap(), b"precious");
    delete::clean(&rig.host, "pod1", bundle.as_ref()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_of_a_killed_shim_is_removed_and_nothing_else_that_its_bundle_names() {
    let rig = Rig::start().await;
    let bundle = rig.bundle("pod1", |_| ());
    let name_in_bundle = |path: &Path| {
        let address = Path::new(&bundle).join("address");
        std::fs::write(address, format!("unix://{}", path.display())).unwrap();
    };
    let socket = rig.path().join("shim.sock");
    drop(UnixListener::bind(&socket).unwrap());
    name_in_bundle(&socket);
    delete::clean(&rig.host, "pod1", bundle.as_ref()).await.unwrap();
    assert!(!socket.exists());
    let file = rig.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    name_in_bundle(&file);
    delete::clean(&rig.host, "pod1", bundle.as_ref()).await.unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
}

/// containerd calls `delete` for a pod that was refused, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_living_pod_of_another_namespace_is_left_alone() {
    let rig = Rig::start().await;
    let mut child = crashed(&rig).await;
    let mut shim = Command::new("sleep").arg("600").spawn().unwrap();
    let dir = PodDir::of(&rig.host.pods, "pod1");
    let record = Record { shim: Process::now(shim.id()), ..dir.read().unwrap().unwrap() };
    dir.write(&record).unwrap();
    let before = rig.left();
    let bundle = rig.bundle("pod1", |_| ());
    let mut stranger = rig.host.clone();
    stranger.engine = Some("/run/engine.sock default".to_owned());
    delete::clean(&stranger, "pod1", bundle.as_ref()).await.unwrap();
    assert_eq!(rig.left(), before);
    assert_eq!(child.try_wait().unwrap().or(shim.try_wait().unwrap()), None);
    // Its own containerd gives up a shim that hangs.
    delete::clean(&rig.host, "pod1", bundle.as_ref()).await.unwrap();
    rig.nothing_is_left();
    assert!(!child.wait().unwrap().success() && !shim.wait().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_pod_of_the_name_cleans_up_too() {
    let rig = Rig::start().await;
    let mut child = crashed(&rig).await;
    rig.run("pod1").await;
    assert!(!child.wait().unwrap().success(), "it was killed");
    rig.delete("pod1", "").await.unwrap();
    rig.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_switch_the_rest_is_cleaned_and_the_next_delete_detaches() {
    let mut rig = Rig::start().await;
    let mut child = crashed(&rig).await;
    drop(rig.api.take());
    let bundle = rig.bundle("pod1", |_| ());
    delete::clean(&rig.host, "pod1", bundle.as_ref()).await.unwrap();
    child.wait().unwrap();
    assert_eq!(rig.left(), ["debt pod1.json", "attachment pod1"]);
    rig.api = Some(crate::around::serve_switch(rig.path(), &rig.switch));
    // Whatever pod it is for.
    let other = rig.bundle("other", |_| ());
    delete::clean(&rig.host, "other", other.as_ref()).await.unwrap();
    rig.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_damaged_keeps_nothing_mounted() {
    let rig = Rig::start().await;
    let dir = PodDir::of(&rig.host.pods, "pod1");
    dir.create().unwrap();
    std::fs::write(dir.path().join("sandbox.json"), "{").unwrap();
    share_something(&rig);
    let bundle = rig.bundle("pod1", |_| ());
    let error = delete::clean(&rig.host, "pod1", bundle.as_ref()).await.unwrap_err();
    assert!(format!("{error:#}").contains("sandbox.json"), "{error:#}");
    rig.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_container_in_a_pod_only_its_own_is_cleaned() {
    let rig = Rig::start().await;
    rig.create_sandbox().await;
    rig.launch("pod1", "").await;
    rig.create_beside("app").await;
    let bundle = rig.path().join("bundles/app");
    delete::clean(&rig.host, "app", &bundle).await.unwrap();
    let points = mounts::below(rig.path()).unwrap();
    assert!(!points.iter().any(|point| point.ends_with("app/rootfs")), "{points:?}");
    assert!(points.iter().any(|point| point.ends_with("pod1/rootfs")), "{points:?}");
    assert_eq!(rig.vmm.running(), ["pod1"]);
    rig.delete("pod1", "").await.unwrap();
    rig.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_that_a_killed_containerd_forgot_ends_by_itself_and_no_other() {
    let rig = Rig::start().await;
    let forsaken = |rig: &Rig| {
        let pod = Arc::clone(&rig.shim.pod);
        tokio::spawn(async move { serve::forsaken(&pod, Duration::from_millis(20)).await })
    };
    // Nothing was ever asked for.
    forsaken(&rig).await.unwrap();
    rig.run("pod1").await;
    let watch = forsaken(&rig);
    // Many looks fit in between.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!watch.is_finished(), "the pod is up");
    rig.kill_vm();
    rig.wait("pod1", "").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!watch.is_finished(), "its end was not fetched");
    rig.delete("pod1", "").await.unwrap();
    watch.await.unwrap();
    rig.nothing_is_left();
}
