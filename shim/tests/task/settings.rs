//! Keys of the configuration have the effect that `docs/kata-compat.md` promises.

use std::path::PathBuf;

use kata_agent_protocol::agent as msg;
use serde_json::json;
use shim::mounts::{self, MountSpec};
use vmm_glue::VmSpec;

use crate::rig::{Rig, Setup, ctx};

fn runtime(lines: &str) -> Setup {
    Setup { runtime: lines.to_owned(), ..Setup::default() }
}

fn booted(rig: &Rig) -> VmSpec {
    rig.specs.lock().unwrap().last().expect("it was booted").clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn network_queues_are_those_of_the_pod_s_own_port() {
    let hypervisor = "network_queues = 3".to_owned();
    let rig = Rig::with(Setup { hypervisor, ..Setup::default() }).await;
    rig.create("pod1").await;
    assert_eq!(rig.switch_attachments()[0].queue_pairs, 3);
    assert_eq!(booted(&rig).nics[0].queue_pairs, 3);
    let text = "io.katacontainers.config.hypervisor.network_queues";
    rig.delete("pod1", "").await.unwrap();
    let mut rig = rig;
    rig.next_shim("pod1").await;
    let bundle = rig.bundle("pod1", |spec| spec["annotations"] = json!({text: "2"}));
    rig.shim.task.create(ctx(), &rig.request("pod1", bundle)).await.unwrap();
    assert_eq!(booted(&rig).nics[0].queue_pairs, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn levels_of_logs_reach_kernel_and_agent() {
    let rig = Rig::start().await;
    rig.create("pod1").await;
    let plain = booted(&rig).cmdline;
    assert!(plain.contains("quiet") && !plain.contains("agent.log"), "{plain}");
    drop(rig);
    let setup = Setup {
        hypervisor: "enable_debug = true".to_owned(),
        agent: "log_level = \"warn\"".to_owned(),
        ..Setup::default()
    };
    let rig = Rig::with(setup).await;
    rig.create("pod1").await;
    let loud = booted(&rig).cmdline;
    assert!(!loud.contains("quiet") && loud.contains("agent.log=warn"), "{loud}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_limit_of_a_container_is_that_of_its_call_alone() {
    let setup = Setup { agent: "create_container_timeout = 77".to_owned(), ..Setup::default() };
    let rig = Rig::with(setup).await;
    rig.run("pod1").await;
    let calls = rig.guest.with_agent(vmm_glue::agent::fake::FakeAgent::calls);
    let limit = |method: &str| {
        let call = calls.iter().find(|call| call.method == method);
        call.expect(method).timeout_nano / 1_000_000_000
    };
    assert_eq!((limit("CreateContainer"), limit("StartContainer")), (77, 60));
}

/// A container with a seccomp profile and an `emptyDir` in memory, as the guest is asked for it.
async fn with_profile_and_memory(rig: &Rig) -> msg::CreateContainerRequest {
    let volume = rig.path().join("kubernetes.io~empty-dir/cache");
    std::fs::create_dir_all(&volume).unwrap();
    let tmpfs = MountSpec { kind: "tmpfs".into(), source: "tmpfs".into(), options: Vec::new() };
    mounts::mount_spec(&tmpfs, &volume).unwrap();
    let bundle = rig.bundle("pod1", |spec| {
        spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW"});
        spec["mounts"] = json!([
            {"destination": "/cache", "type": "bind", "source": volume, "options": ["rbind"]}
        ]);
    });
    rig.shim.task.create(ctx(), &rig.request("pod1", bundle)).await.unwrap();
    let asked = rig.guest.last("CreateContainer");
    rig.delete("pod1", "").await.unwrap();
    mounts::unmount(&volume).unwrap();
    rig.nothing_is_left();
    asked
}

#[tokio::test(flavor = "multi_thread")]
async fn profiles_and_memory_volumes_are_the_guest_s_or_the_host_s() {
    let rig = Rig::start().await;
    let asked = with_profile_and_memory(&rig).await;
    assert!(asked.OCI.Linux.Seccomp.is_none());
    assert_eq!(asked.storages[0].fstype, "tmpfs");
    assert_eq!(asked.OCI.Mounts[0].source, asked.storages[0].mount_point);
    drop(rig);
    let setup = runtime("disable_guest_seccomp = false\ndisable_guest_empty_dir = true");
    let rig = Rig::with(setup).await;
    let asked = with_profile_and_memory(&rig).await;
    assert_eq!(asked.OCI.Linux.Seccomp.DefaultAction, "SCMP_ACT_ALLOW");
    assert!(asked.storages.is_empty());
    assert!(asked.OCI.Mounts[0].source.starts_with(shim::share::GUEST));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cgroup_is_the_pod_s_or_kata_s_own() {
    let rig = Rig::start().await;
    rig.create("pod1").await;
    let inside = |rig: &Rig| -> Vec<PathBuf> {
        let pid = std::process::id().to_string();
        let has_us = |path: &PathBuf| {
            std::fs::read_to_string(path.join("cgroup.procs")).unwrap().lines().any(|p| p == pid)
        };
        rig.cgroups().into_iter().filter(has_us).collect()
    };
    let pods = inside(&rig);
    assert!(!pods.is_empty() && !pods.iter().any(|path| path.ends_with("kata_overhead/pod1")));
    rig.delete("pod1", "").await.unwrap();
    rig.nothing_is_left();
    drop(rig);
    let rig = Rig::with(runtime("sandbox_cgroup_only = false")).await;
    rig.create("pod1").await;
    let own = inside(&rig);
    assert!(!own.is_empty() && own.iter().all(|path| path.ends_with("kata_overhead/pod1")));
    rig.delete("pod1", "").await.unwrap();
    rig.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_sandbox_binds_is_shared_read_only() {
    let data = tempfile::tempdir().unwrap();
    std::fs::write(data.path().join("file"), "text").unwrap();
    let name = data.path().file_name().unwrap();
    let line = format!("sandbox_bind_mounts = [\"{}\"]", data.path().display());
    let rig = Rig::with(runtime(&line)).await;
    rig.create("pod1").await;
    let file =
        |part: &str| rig.host.shares.join("pod1").join(part).join("sandbox-mounts").join(name);
    assert_eq!(std::fs::read(file("shared").join("file")).unwrap(), b"text");
    assert!(std::fs::write(file("shared").join("file"), "x").is_err());
    rig.delete("pod1", "").await.unwrap();
    rig.nothing_is_left();
    assert_eq!(std::fs::read(data.path().join("file")).unwrap(), b"text");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_s_own_virtiofsd_is_started_and_ended() {
    let program = vmm_glue::sharefs::Virtiofsd::find().unwrap();
    let rig = Rig::with(Setup { virtiofsd: Some(program), ..Setup::default() }).await;
    rig.run("pod1").await;
    let record = shim::persist::PodDir::of(&rig.host.pods, "pod1").read().unwrap().unwrap();
    // The fake VMM's pid is no process.
    let [virtiofsd] = record.processes.as_slice() else { panic!("{record:?}") };
    assert!(virtiofsd.is_alive());
    rig.delete("pod1", "").await.unwrap();
    assert!(!virtiofsd.is_alive());
    rig.nothing_is_left();
}
