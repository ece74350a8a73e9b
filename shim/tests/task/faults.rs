//! Each step of a pod's start fails in turn: one message that says what and what to do, nothing left,
//! and the next pod starts.

use std::time::Duration;

use containerd_shim_protos::ttrpc::{Code, context};
use serde_json::json;
use shim::persist::{PodDir, Process, Record};
use vmm_glue::fake::Verb;

use crate::around::{Setup, serve_switch};
use crate::rig::{PATIENCE, Rig, ctx, refused};

/// The failure's words, which have `parts`; nothing is left.
async fn fails(rig: &Rig, parts: &[&str]) {
    let (_, message) = refused(rig.try_create("pod1").await);
    for part in parts {
        assert!(message.contains(part), "'{part}' is not in: {message}");
    }
    assert!(!message.contains('\n'), "{message}");
    rig.nothing_is_left();
    assert_eq!(rig.all_told().await, Vec::<String>::new());
}

/// A pod of the same name starts and goes, as containerd tries again: with a shim of its own.
async fn works(rig: &mut Rig) {
    rig.next_shim("pod1").await;
    rig.run("pod1").await;
    rig.delete("pod1", "").await.unwrap();
    rig.nothing_is_left();
    rig.all_told().await;
    rig.forget_events();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_switch_is_down() {
    let mut rig = Rig::start().await;
    drop(rig.api.take());
    fails(&rig, &["slipwayd.sock", "systemctl status slipwayd"]).await;
    rig.api = Some(serve_switch(rig.path(), &rig.switch));
    works(&mut rig).await;
}

/// A pod that the shim attached itself ends while the switch is down.
async fn in_debt(rig: &mut Rig) {
    rig.run("pod1").await;
    drop(rig.api.take());
    rig.delete("pod1", "").await.unwrap();
    assert_eq!(rig.left(), ["debt pod1.json", "attachment pod1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_switch_is_down_when_a_pod_ends_and_the_next_pod_detaches_it() {
    let mut rig = Rig::start().await;
    in_debt(&mut rig).await;
    rig.api = Some(serve_switch(rig.path(), &rig.switch));
    rig.next_shim("pod2").await;
    rig.run("pod2").await;
    let paid = async {
        while rig.left().iter().any(|left| left.contains("pod1")) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, paid).await.expect("it is given back");
    assert_eq!(rig.switch_attachments().len(), 1);
    rig.delete("pod2", "").await.unwrap();
    rig.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_the_same_name_takes_over_what_is_attached_and_gives_it_back() {
    let mut rig = Rig::start().await;
    in_debt(&mut rig).await;
    // The switch is still down: the start fails, and nothing is forgotten.
    rig.next_shim("pod1").await;
    refused(rig.try_create("pod1").await);
    assert_eq!(rig.left(), ["debt pod1.json", "attachment pod1"]);
    rig.api = Some(serve_switch(rig.path(), &rig.switch));
    rig.next_shim("pod1").await;
    rig.run("pod1").await;
    assert!(!rig.left().iter().any(|left| left.starts_with("debt")), "{:?}", rig.left());
    assert_eq!(rig.switch_attachments().len(), 1, "it is the new pod's");
    rig.delete("pod1", "").await.unwrap();
    rig.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_switch_has_no_address_left() {
    let setup = Setup { range: Some("10.9.0.0/30"), ..Setup::default() };
    let mut rig = Rig::with(setup).await;
    rig.attach_as_cni("other").await;
    let before = rig.left();
    let (_, message) = refused(rig.try_create("pod1").await);
    assert!(message.contains("slipwayd refuses"), "{message}");
    assert!(message.contains("10.9.0.0/30"), "{message}");
    assert_eq!(rig.left(), before);
    rig.detach("other").await;
    works(&mut rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cgroup_cannot_be_made() {
    let mut rig = Rig::start().await;
    // Every hierarchy has a file of this name, and below a file is no folder.
    let path = "/cgroup.procs/pod1";
    let bundle = rig.bundle("pod1", |spec| spec["linux"]["cgroupsPath"] = json!(path));
    let (_, message) = refused(rig.shim.task.create(ctx(), &rig.request("pod1", bundle)).await);
    assert!(message.contains("cgroup") && message.contains(path), "{message}");
    rig.nothing_is_left();
    works(&mut rig).await;
}

async fn with_virtiofsd(script: &str, parts: &[&str]) {
    use std::os::unix::fs::PermissionsExt as _;
    let mut rig = Rig::start().await;
    let program = rig.path().join("virtiofsd");
    let good = std::fs::read_to_string(&program).unwrap();
    let write = |text: &str| {
        std::fs::write(&program, text).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    if script.is_empty() {
        std::fs::remove_file(&program).unwrap();
    } else {
        write(script);
    }
    fails(&rig, parts).await;
    write(&good);
    works(&mut rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn virtiofsd_is_missing() {
    with_virtiofsd("", &["virtiofsd", "install it"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn virtiofsd_dies_at_once() {
    let script = "#!/bin/sh\ncase \"$1\" in --version) echo virtiofsd 1.13.2; exit 0;; esac\n\
                  echo 'cannot open /proc/self/fd' >&2\nexit 3\n";
    with_virtiofsd(script, &["virtiofsd of pod1", "cannot open /proc/self/fd", "3"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guest_s_kernel_is_missing() {
    let mut rig = Rig::start().await;
    std::fs::remove_file(rig.path().join("vmlinuz")).unwrap();
    fails(&rig, &["kernel", "vmlinuz", "configuration.toml"]).await;
    std::fs::write(rig.path().join("vmlinuz"), "again").unwrap();
    works(&mut rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_vmm_does_not_boot() {
    let mut rig = Rig::start().await;
    for verb in [Verb::Boot, Verb::Info] {
        rig.vmm.fail_at(verb);
        fails(&rig, &["pod1", &verb.to_string()]).await;
        rig.vmm.work_at(verb);
    }
    works(&mut rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_says_nothing() {
    let setup = Setup { agent: "reconnect_timeout_ms = 300".to_owned(), ..Setup::default() };
    let mut rig = Rig::with(setup).await;
    rig.guest.be_silent();
    fails(&rig, &["agent does not answer", "console says"]).await;
    rig.guest.heal();
    works(&mut rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_refuses_any_of_the_calls_of_a_start() {
    let mut rig = Rig::start().await;
    for (method, what) in [
        ("CreateSandbox", "create the sandbox"),
        ("UpdateInterface", "interface eth0"),
        ("UpdateRoutes", "routes"),
        ("CreateContainer", "create container pod1"),
    ] {
        rig.guest.fail(method, "the guest's reason");
        fails(&rig, &[what, method, "the guest's reason"]).await;
        rig.guest.heal();
        works(&mut rig).await;
        rig.next_shim("pod1").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_takes_too_long_is_given_up() {
    let setup = Setup { agent: "create_container_timeout = 1".to_owned(), ..Setup::default() };
    let mut rig = Rig::with(setup).await;
    rig.guest.hang("CreateContainer");
    fails(&rig, &["create container pod1", "in time"]).await;
    rig.guest.heal();
    works(&mut rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_is_not_there_costs_its_container_only() {
    let rig = Rig::start().await;
    rig.create_sandbox().await;
    rig.launch("pod1", "").await;
    let before = rig.left();
    let bundle = rig.bundle("app", |spec| {
        spec["annotations"] = crate::rig::inside("pod1");
        spec["mounts"] = json!([
            {"destination": "/a", "type": "bind", "source": rig.path(), "options": ["bind"]},
            {"destination": "/b", "type": "bind", "source": "/nowhere/data", "options": ["bind"]},
        ]);
    });
    let (_, message) = refused(rig.shim.task.create(ctx(), &rig.request("app", bundle)).await);
    assert!(message.contains("/nowhere/data") && message.contains("app"), "{message}");
    assert_eq!(rig.left(), before);
    rig.create_beside("app").await;
    rig.launch("app", "").await;
    rig.delete("pod1", "").await.unwrap();
    rig.delete("app", "").await.unwrap();
    rig.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_does_not_wait_leaves_no_half_pod() {
    let mut rig = Rig::start().await;
    rig.guest.hang("CreateSandbox");
    let request = rig.request("pod1", rig.bundle("pod1", |_| ()));
    let short = context::with_duration(Duration::from_millis(300));
    let answer = rig.shim.task.create(short, &request).await;
    assert!(answer.is_err());
    rig.guest.wait_for("CreateSandbox").await;
    assert!(!rig.left().is_empty(), "it is under way");
    // containerd gives the shim up: it is empty, and ends.
    assert!(rig.shutdown().await);
    tokio::time::timeout(PATIENCE, rig.shim.pod.close()).await.expect("it is given up").unwrap();
    rig.nothing_is_left();
    rig.guest.heal();
    works(&mut rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_living_pod_of_the_same_name_is_left_alone() {
    let mut rig = Rig::start().await;
    let mut other = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    let record =
        Record { id: "pod1".to_owned(), shim: Process::now(other.id()), ..Record::default() };
    let dir = PodDir::of(&rig.host.pods, "pod1");
    dir.create().unwrap();
    dir.write(&record).unwrap();
    let (_, message) = refused(rig.try_create("pod1").await);
    assert!(message.contains(&other.id().to_string()) && message.contains("pod1"), "{message}");
    assert_eq!(dir.read().unwrap(), Some(record));
    assert!(Process::now(other.id()).is_some(), "the other's shim lives");
    other.kill().unwrap();
    other.wait().unwrap();
    // Now it is a dead one's.
    works(&mut rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_annotations_and_configurations_are_named() {
    let rig = Rig::start().await;
    let annotation = "io.katacontainers.config.hypervisor.default_memory";
    let bundle = rig.bundle("pod1", |spec| spec["annotations"] = json!({annotation: "many"}));
    let (_, message) = refused(rig.shim.task.create(ctx(), &rig.request("pod1", bundle)).await);
    assert!(message.contains(annotation) && message.contains("many"), "{message}");
    std::fs::write(rig.path().join("configuration.toml"), "[hypervisor.qemu").unwrap();
    let (_, message) = refused(rig.try_create("pod1").await);
    assert!(message.contains("configuration.toml"), "{message}");
    std::fs::remove_file(rig.path().join("bundles/pod1/config.json")).unwrap();
    let request = rig.request("pod1", rig.path().join("bundles/pod1").display().to_string());
    let (code, message) = refused(rig.shim.task.create(ctx(), &request).await);
    assert!(message.contains("config.json"), "{message}");
    assert_eq!(code, Code::INTERNAL);
    rig.nothing_is_left();
}
