//! The Cloud Hypervisor back end against a **fake** Cloud Hypervisor, a program written by hand. None of
//! these tests says that the real one works.

#[path = "common/switch.rs"]
#[expect(dead_code, reason = "a fake VMM asks the switch for nothing that one could wait for")]
mod switch;

use std::path::Path;
use std::time::Duration;

use switch::Switch;
use vmm_glue::accel::Accel;
use vmm_glue::cloud_hypervisor::CloudHypervisor;
use vmm_glue::{
    AgentChannel, DiskSpec, ExitCause, MacAddr, Mib, NicSpec, ShareSpec, SocketMode, VmSpec, Vmm,
    VmmError,
};

fn fake() -> CloudHypervisor {
    CloudHypervisor::at(env!("CARGO_BIN_EXE_fake-cloud-hypervisor"))
}

fn spec(dir: &Path) -> VmSpec {
    let mut spec = VmSpec::new("trial", dir.join("run"));
    (spec.accel, spec.kernel) = (Accel::Kvm, Some("/proc/self/exe".into()));
    (spec.memory_max, spec.vcpus_max, spec.disk_slots) = (Some(Mib::new(512)), Some(2), 1);
    spec
}

fn nic(socket: &Path) -> NicSpec {
    NicSpec::new(socket, MacAddr([2, 0, 0, 0, 0, 1]))
}

fn left_in(dir: &Path) -> Vec<std::path::PathBuf> {
    std::fs::read_dir(dir).unwrap().flatten().map(|entry| entry.path()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_back_end_conforms_with_a_fake_cloud_hypervisor() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("run/nic.sock");
    let _switch = Switch::connecting(&socket);
    let recipe = |dir: &Path| {
        let mut spec = spec(dir);
        spec.nics.push(nic(&socket));
        spec
    };
    vmm_glue::conformance::check(&fake(), &recipe, dir.path()).await;
}

#[tokio::test]
async fn the_serial_console_of_a_fake_guest_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = spec(dir.path());
    spec.cmdline = "quiet".to_owned();
    let vm = fake().boot(&spec).await.unwrap();
    vm.console().wait_for("fake guest: console=ttyS0 quiet").await.unwrap();
    let report = vm.stop(Duration::from_secs(60)).await.unwrap();
    assert_eq!(report.cause, ExitCause::Requested);
    assert_eq!(left_in(dir.path()), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn a_refusal_of_a_fake_vm_create_ends_the_process_and_carries_its_words() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = spec(dir.path());
    spec.kernel = Some("/nowhere/kernel".into());
    let error = fake().boot(&spec).await.unwrap_err();
    let VmmError::Api { source, .. } = error else { panic!("{error}") };
    assert!(source.to_string().contains("/nowhere/kernel"), "{source}");
    assert_eq!(left_in(dir.path()), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn a_fake_boot_without_a_switch_ends_at_its_limit_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = spec(dir.path());
    spec.boot_timeout = Duration::from_secs(1);
    spec.nics.push(nic(&dir.path().join("nic.sock")));
    let error = fake().boot(&spec).await.unwrap_err();
    assert!(matches!(error, VmmError::BootTimeout { .. }), "{error}");
    assert!(error.to_string().contains("the switch must connect"), "{error}");
    assert_eq!(left_in(dir.path()), Vec::<std::path::PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fake_vm_connects_to_a_switch_that_listens() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nic.sock");
    let switch = Switch::listening(&socket);
    let mut spec = spec(dir.path());
    spec.nics.push(NicSpec { mode: SocketMode::SwitchListens, ..nic(&socket) });
    let vm = fake().boot(&spec).await.unwrap();
    drop(vm);
    drop(switch);
    assert_eq!(left_in(dir.path()), [socket], "the switch's own socket stays");
}

#[tokio::test]
async fn a_fake_vm_takes_a_share_a_disk_and_a_vsock() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = spec(dir.path());
    let fs = dir.path().join("fs.sock");
    spec.shares.push(ShareSpec::new("kataShared", &fs));
    spec.disks.push(DiskSpec::readonly("image", "/proc/self/exe"));
    let agent = dir.path().join("run/agent.sock");
    spec.agent = Some(AgentChannel::Hybrid { socket: agent.clone(), cid: 3 });
    let error = fake().boot(&spec).await.unwrap_err();
    assert!(matches!(error, VmmError::NotServed { .. }), "{error}");
    let _served = std::os::unix::net::UnixListener::bind(&fs).unwrap();
    let vm = fake().boot(&spec).await.unwrap();
    assert!(agent.exists());
    let plugged = DiskSpec::readonly("rootfs", "/proc/self/exe");
    assert_eq!(vm.add_disk(&plugged).await.unwrap().to_string(), "11");
    vm.remove_disk("rootfs").await.unwrap();
    vm.stop(Duration::ZERO).await.unwrap();
    assert_eq!(left_in(dir.path()), [fs], "the helper's own socket stays");
}

#[tokio::test]
async fn a_missing_cloud_hypervisor_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let vmm = CloudHypervisor::at("/nowhere/cloud-hypervisor");
    let error = vmm.boot(&spec(dir.path())).await.unwrap_err();
    let VmmError::Died(report) = error else { panic!("{error}") };
    assert!(report.stderr_tail.contains("/nowhere/cloud-hypervisor"), "{report}");
}
