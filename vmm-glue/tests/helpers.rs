//! The programs beside a VMM: the virtiofsd of this host, as QEMU's back end too, and stand-ins where the
//! real one cannot be had. They need root, as virtiofsd does.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::qemu;
use vmm_glue::sharefs::{CacheMode, Flavour, Virtiofsd, VirtiofsdSpec};
use vmm_glue::vsock::{VsockDevice, VsockDeviceSpec};
use vmm_glue::{
    AgentChannel, DiskSpec, ExitCause, HelperError, Machine, ShareSpec, Vm, VmSpec, VmmError,
};

const LIMIT: Duration = Duration::from_secs(60);

fn program() -> PathBuf {
    Virtiofsd::find().unwrap_or_else(|error| panic!("{error}"))
}

fn spec(dir: &Path) -> VirtiofsdSpec {
    let shared = dir.join("shared");
    std::fs::create_dir_all(&shared).unwrap();
    VirtiofsdSpec::new("fs", program(), shared, dir.join("fs.sock"))
}

fn is_alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// A program of the shell's.
fn stand_in(dir: &Path, script: &str) -> PathBuf {
    let path = dir.join("stand-in");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path
}

#[tokio::test]
async fn a_virtiofsd_serves_its_socket_until_it_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let fs = Virtiofsd::spawn(spec(dir.path())).await.unwrap();
    let socket = dir.path().join("fs.sock");
    assert!(is_alive(fs.pid()) && socket.exists());
    let report = fs.stop().await.unwrap();
    assert_eq!(report.cause, ExitCause::Signal(9));
    assert!(!is_alive(report.pid) && !socket.exists());
    assert_eq!(fs.wait().await, report);
}

#[tokio::test]
async fn a_dropped_virtiofsd_is_gone_with_its_socket() {
    let dir = tempfile::tempdir().unwrap();
    let fs = Virtiofsd::spawn(spec(dir.path())).await.unwrap();
    let pid = fs.pid();
    drop(fs);
    assert!(!is_alive(pid) && !dir.path().join("fs.sock").exists());
}

#[tokio::test]
async fn a_virtiofsd_that_does_not_start_says_why_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = spec(dir.path());
    spec.shared_dir = "/nowhere/shared".into();
    let error = Virtiofsd::spawn(spec).await.unwrap_err();
    assert!(matches!(error, HelperError::Died(_)), "{error}");
    assert!(error.to_string().contains("/nowhere/shared"), "{error}");
    assert!(!dir.path().join("fs.sock").exists());
}

#[tokio::test]
async fn a_killed_virtiofsd_is_reported_and_refuses_its_vmm() {
    let dir = tempfile::tempdir().unwrap();
    let fs = Virtiofsd::spawn(spec(dir.path())).await.unwrap();
    let pid = nix::unistd::Pid::from_raw(fs.pid().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    let ended = tokio::time::timeout(LIMIT, fs.wait()).await.unwrap();
    assert_eq!(ended.cause, ExitCause::Signal(9), "{ended}");
    let refused = UnixStream::connect(dir.path().join("fs.sock")).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn what_is_no_virtiofsd_is_not_started() {
    let dir = tempfile::tempdir().unwrap();
    let error = VirtiofsdSpec { program: "/bin/true".into(), ..spec(dir.path()) };
    let error = Virtiofsd::spawn(error).await.unwrap_err();
    assert!(matches!(error, HelperError::Program { .. }), "{error}");
    let missing = VirtiofsdSpec { program: "/nowhere/virtiofsd".into(), ..spec(dir.path()) };
    let error = Virtiofsd::spawn(missing).await.unwrap_err().to_string();
    assert!(error.contains("/nowhere/virtiofsd") && error.contains("install"), "{error}");
    assert!(!dir.path().join("fs.sock").exists());
}

/// The one in Rust cannot be had everywhere; this answers its questions.
#[tokio::test]
async fn the_rust_virtiofsd_is_started_in_its_own_words() {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"[ "$1" = --version ] && echo virtiofsd 1.14.0 && exit
echo "args: $*" >&2
echo "[2026-01-01T00:00:00Z INFO  virtiofsd] Waiting for vhost-user socket connection..." >&2
exec sleep 1000"#;
    let mut spec = VirtiofsdSpec { program: stand_in(dir.path(), script), ..spec(dir.path()) };
    spec.cache = CacheMode::Metadata;
    let fs = Virtiofsd::spawn(spec).await.unwrap();
    assert_eq!(fs.flavour(), Flavour::Rust);
    let report = fs.stop().await.unwrap();
    let shared = dir.path().join("shared").display().to_string();
    let expected = format!("args: --fd=0 --shared-dir {shared} --cache=metadata\n");
    assert!(report.stderr_tail.starts_with(&expected), "{report}");
}

fn vsock_spec(dir: &Path, script: &str) -> VsockDeviceSpec {
    VsockDeviceSpec {
        name: "vsock".to_owned(),
        program: stand_in(dir, script),
        socket: dir.join("vsock.sock"),
        uds_path: dir.join("guest.sock"),
        guest_cid: 3,
        cgroup_procs: Vec::new(),
    }
}

#[tokio::test]
async fn a_vsock_device_that_dies_early_says_why_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let spec = vsock_spec(dir.path(), "echo \"no memory for $*\" >&2; exit 3");
    let error = VsockDevice::spawn(spec).await.unwrap_err();
    let HelperError::Died(report) = error else { panic!("{error}") };
    assert_eq!(report.cause, ExitCause::Code(3));
    let words = format!("--guest-cid 3 --socket {}/vsock.sock", dir.path().display());
    assert!(report.stderr_tail.contains(&words), "{report}");
    assert!(!is_alive(report.pid));
}

/// Needs the real program: `cargo xtask deps --vsock`.
#[tokio::test]
#[ignore = "vhost-device-vsock takes minutes to build"]
async fn a_vsock_device_listens_on_both_sockets_when_it_is_there_and_leaves_neither() {
    let dir = tempfile::tempdir().unwrap();
    let program = VsockDevice::find().unwrap_or_else(|error| panic!("{error}"));
    let spec = VsockDeviceSpec { program, ..vsock_spec(dir.path(), "") };
    let device = VsockDevice::spawn(spec).await.unwrap();
    assert!(UnixStream::connect(dir.path().join("guest.sock")).is_ok());
    let report = device.stop().await.unwrap();
    assert!(!is_alive(report.pid));
    let left = ["vsock.sock", "guest.sock"].map(|name| dir.path().join(name).exists());
    assert_eq!(left, [false; 2]);
}

/// A VM with one of each: two shares, two disks, the agent's serial port. Its firmware finds nothing to
/// boot; QEMU negotiated with the back ends as it built the devices.
async fn qemu_takes_shares_disks_and_an_agent_channel(machine: Machine) {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image,raw");
    std::fs::write(&image, vec![0; 1 << 20]).unwrap();
    let mut vm_spec = VmSpec::new("trial", dir.path().join("run"));
    (vm_spec.machine, vm_spec.boot_timeout) = (machine, LIMIT);
    vm_spec.shares = vec![ShareSpec::new("kataShared", dir.path().join("fs.sock"))];
    vm_spec.disks = vec![
        DiskSpec::readonly("image", &image),
        DiskSpec { direct: false, readonly: false, ..DiskSpec::readonly("scratch", &image) },
    ];
    vm_spec.disks[1].path = dir.path().join("scratch");
    std::fs::write(&vm_spec.disks[1].path, vec![0; 1 << 20]).unwrap();
    let agent = dir.path().join("run/agent.sock");
    vm_spec.agent = Some(AgentChannel::Serial { socket: agent.clone() });
    vm_spec.control_socket = Some(dir.path().join("run/ctl.sock"));

    let error = qemu().await.boot(&vm_spec).await.unwrap_err();
    assert!(matches!(error, VmmError::NotServed { .. }), "{error}");
    assert!(!dir.path().join("run").exists(), "refused before anything was made");

    let fs = Virtiofsd::spawn(spec(dir.path())).await.unwrap();
    let vm = qemu().await.boot(&vm_spec).await.unwrap();
    assert!(UnixStream::connect(&agent).is_ok());
    let report = vm.stop(Duration::ZERO).await.unwrap();
    assert_eq!(report.cause, ExitCause::Requested);
    assert!(!agent.exists());
    // virtiofsd ends in order with the connection of its VMM.
    let ended = tokio::time::timeout(LIMIT, fs.wait()).await.unwrap();
    assert_eq!(ended.cause, ExitCause::Code(0), "{ended}");
}

#[tokio::test]
async fn a_q35_takes_shares_disks_and_an_agent_channel() {
    qemu_takes_shares_disks_and_an_agent_channel(Machine::Q35).await;
}

#[tokio::test]
async fn a_microvm_takes_shares_disks_and_an_agent_channel() {
    qemu_takes_shares_disks_and_an_agent_channel(Machine::Microvm).await;
}

#[tokio::test]
async fn a_helper_that_died_meanwhile_ends_the_boot_with_qemu_s_words() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("fs.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let mut spec = VmSpec::new("trial", dir.path().join("run"));
    spec.shares = vec![ShareSpec::new("kataShared", &socket)];
    let error = qemu().await.boot(&spec).await.unwrap_err();
    let VmmError::Died(report) = error else { panic!("{error}") };
    assert!(report.stderr_tail.contains("fs.sock"), "{report}");
    assert!(!dir.path().join("run").exists());
}
