//! The QEMU back end with a real QEMU, under TCG, without a guest kernel: the firmware runs and finds
//! nothing to boot, which is all that these need. They need neither root nor KVM.

mod common;
#[path = "common/switch.rs"]
mod switch;

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::qemu;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use switch::Switch;
use tempfile::TempDir;
use vmm_glue::{
    ExitCause, MacAddr, Machine, Mib, NicSpec, RunDirError, SocketMode, Vm, VmSpec, VmState,
    VmmError,
};

const LIMIT: Duration = Duration::from_secs(60);

fn mac(last: u8) -> MacAddr {
    MacAddr([0x52, 0x54, 0, 0, 0, last])
}

fn spec(dir: &Path) -> VmSpec {
    let mut spec = VmSpec::new("trial", dir.join("run"));
    spec.boot_timeout = LIMIT;
    spec
}

fn assert_gone(pid: u32, dir: &TempDir) {
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "process {pid} is left");
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("run/nic.sock");
    let _switch = Switch::connecting(&socket);
    let recipe = |dir: &Path| {
        let mut spec = spec(dir);
        (spec.vcpus, spec.vcpus_max, spec.disk_slots) = (2, Some(3), 1);
        spec.memory_max = Some(Mib::new(512));
        spec.nics.push(NicSpec::new(&socket, mac(1)));
        spec.console_file = Some(dir.join("run/console"));
        spec.control_socket = Some(dir.join("run/ctl.sock"));
        spec
    };
    vmm_glue::conformance::check(&qemu().await, &recipe, dir.path()).await;
}

/// Both machines with two NICs of two queue pairs whose switch goes away: the links go down, the VM
/// lives on, and the returning switch is taken back.
async fn switch_may_restart(machine: Machine) {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = spec(dir.path());
    spec.machine = machine;
    let sockets = [dir.path().join("0.sock"), dir.path().join("1.sock")];
    for (socket, last) in sockets.iter().zip(1..) {
        let nic = NicSpec { queue_pairs: 2, ring_size: 1024, ..NicSpec::new(socket, mac(last)) };
        spec.nics.push(nic);
    }
    let switches = sockets.each_ref().map(|socket| Switch::connecting(socket));
    let vm = qemu().await.boot(&spec).await.unwrap();
    switches.iter().for_each(Switch::wait_for_connection);
    drop(switches);
    assert_eq!(vm.info().await.unwrap().state, VmState::Running, "without a switch");
    vm.reset().await.unwrap();

    let returned = sockets.each_ref().map(|socket| Switch::connecting(socket));
    returned.iter().for_each(Switch::wait_for_connection);
    returned[0].hang_up();
    returned[0].wait_for_connection();
    assert_eq!(vm.info().await.unwrap().state, VmState::Running);
    let pid = vm.pid();
    drop(vm);
    drop(returned);
    assert_gone(pid, &dir);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_q35_vm_survives_the_restart_of_its_switch() {
    switch_may_restart(Machine::Q35).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_microvm_survives_the_restart_of_its_switch() {
    switch_may_restart(Machine::Microvm).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_that_listens_is_connected_to_and_its_socket_stays() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nic.sock");
    let switch = Switch::listening(&socket);
    let mut spec = spec(dir.path());
    let mode = SocketMode::SwitchListens;
    spec.nics.push(NicSpec { mode, ..NicSpec::new(&socket, mac(1)) });
    let vm = qemu().await.boot(&spec).await.unwrap();
    switch.wait_for_connection();
    vm.stop(Duration::ZERO).await.unwrap();
    assert!(socket.exists(), "it is the switch's");
}

#[tokio::test]
async fn a_boot_without_a_switch_ends_with_an_error_that_names_the_sockets() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = spec(dir.path());
    spec.boot_timeout = Duration::from_secs(3);
    spec.nics.push(NicSpec::new(dir.path().join("a.sock"), mac(1)));
    spec.nics.push(NicSpec::new(dir.path().join("b.sock"), mac(2)));
    let error = qemu().await.boot(&spec).await.unwrap_err();
    let VmmError::BootTimeout { pid, .. } = error else { panic!("{error}") };
    let text = error.to_string();
    assert!(text.contains("the switch did not connect"), "{text}");
    assert!(text.contains("a.sock") && text.contains("b.sock"), "{text}");
    assert_gone(pid, &dir);
}

#[tokio::test]
async fn a_cancelled_boot_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = spec(dir.path());
    let socket = dir.path().join("nic.sock");
    spec.nics.push(NicSpec::new(&socket, mac(1)));
    let qemu = qemu().await;
    // The first connection shows that QEMU is up and waits for the handshake, which never comes.
    let connected = async {
        while tokio::net::UnixStream::connect(&socket).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        outcome = qemu.boot(&spec) => panic!("{outcome:?} without a handshake"),
        () = connected => {}
    }
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[tokio::test]
async fn a_killed_qemu_is_noticed_and_reported_with_its_signal() {
    let dir = tempfile::tempdir().unwrap();
    let vm = qemu().await.boot(&spec(dir.path())).await.unwrap();
    let pid = vm.pid();
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
    let report = tokio::time::timeout(LIMIT, vm.wait()).await.unwrap();
    assert_eq!(report.cause, ExitCause::Signal(9));
    assert!(report.to_string().starts_with(&format!("'trial' (pid {pid}) was ended by signal 9")));
    let refused = vm.pause().await.unwrap_err();
    assert!(matches!(refused, VmmError::Gone { .. }), "{refused}");
    assert_eq!(vm.stop(Duration::ZERO).await.unwrap(), report, "stop keeps the cause");
    assert_gone(pid, &dir);
}

#[tokio::test]
async fn a_qemu_that_refuses_its_arguments_is_reported_in_its_own_words() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = spec(dir.path());
    spec.kernel = Some(dir.path().join("no-such-kernel"));
    let error = qemu().await.boot(&spec).await.unwrap_err();
    let VmmError::Died(report) = error else { panic!("{error}") };
    assert_eq!(report.cause, ExitCause::Code(1));
    assert!(report.stderr_tail.contains("no-such-kernel"), "{report}");
    assert_gone(report.pid, &dir);
}

#[tokio::test]
async fn a_second_vm_on_the_sockets_of_the_first_is_refused_and_the_first_lives_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = spec(dir.path());
    spec.control_socket = Some(dir.path().join("ctl.sock"));
    let qemu = qemu().await;
    let first = qemu.boot(&spec).await.unwrap();
    let error = qemu.boot(&spec).await.unwrap_err();
    assert!(matches!(error, VmmError::RunDir(RunDirError::SocketInUse { .. })), "{error:?}");
    assert_eq!(first.info().await.unwrap().state, VmState::Running);
    assert!(UnixStream::connect(dir.path().join("ctl.sock")).is_ok());
}

#[tokio::test]
async fn the_monitor_answers_and_refuses_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let vm = qemu().await.boot(&spec(dir.path())).await.unwrap();
    let version = vm.qmp().execute("query-version", Value::Null, LIMIT).await.unwrap();
    assert!(version["qemu"]["major"].is_u64(), "{version}");
    let refused = vm.qmp().execute("device_del", json!({"id": "none"}), LIMIT).await.unwrap_err();
    assert!(refused.to_string().contains("'none' not found"), "{refused}");
    assert!(!dir.path().join("run/trial.qmp.sock").exists(), "nobody else reaches the monitor");
}

#[tokio::test]
async fn a_guest_that_ignores_the_power_button_is_ended_after_its_grace() {
    let dir = tempfile::tempdir().unwrap();
    let vm = qemu().await.boot(&spec(dir.path())).await.unwrap();
    let report = vm.stop(Duration::from_millis(200)).await.unwrap();
    assert_eq!(report.cause, ExitCause::Requested);
    assert_gone(report.pid, &dir);
}

#[tokio::test]
async fn a_console_file_outside_the_run_directory_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = spec(dir.path());
    let console = dir.path().join("console");
    spec.console_file = Some(console.clone());
    drop(qemu().await.boot(&spec).await.unwrap());
    assert!(console.exists());
    assert!(!dir.path().join("run").exists());
}

/// `strace -D` keeps the traced program our direct child; the demo counts netlink calls with it.
#[tokio::test]
async fn a_vm_runs_under_a_tracer_that_sees_its_sockets() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace");
    let mut spec = spec(dir.path());
    let words = ["strace", "-D", "-f", "--seccomp-bpf", "-e", "trace=socket,sendto,sendmsg", "-yy"];
    spec.wrapper = words.map(str::to_owned).to_vec();
    spec.wrapper.extend(["-o".to_owned(), trace.display().to_string()]);
    let vm = match qemu().await.boot(&spec).await {
        Ok(vm) => vm,
        Err(error) => panic!("{error}\nThis test runs strace: apt-get install strace"),
    };
    let name = std::fs::read_to_string(format!("/proc/{}/comm", vm.pid())).unwrap();
    assert!(name.starts_with("qemu-system"), "the pid that we watch is QEMU's, not {name}");
    let report = vm.stop(Duration::ZERO).await.unwrap();
    assert_eq!(report.cause, ExitCause::Requested, "{report}");
    let trace = std::fs::read_to_string(trace).unwrap();
    assert!(trace.contains("socket(AF_UNIX"), "{trace}");
    assert!(!trace.contains("AF_NETLINK"), "{trace}");
}

/// This test runs itself as the parent that is killed.
#[tokio::test]
async fn a_vm_dies_with_its_parent_even_if_that_is_killed() {
    const NAME: &str = "a_vm_dies_with_its_parent_even_if_that_is_killed";
    const DIR: &str = "VMM_GLUE_TEST_PARENT_DIR";
    if let Some(dir) = std::env::var_os(DIR) {
        let mut spec = spec(Path::new(&dir));
        spec.control_socket = Some(Path::new(&dir).join("ctl.sock"));
        let vm = qemu().await.boot(&spec).await.unwrap();
        println!("booted {}.", vm.pid());
        vm.wait().await;
        panic!("the VM ended before its parent");
    }
    let dir = tempfile::tempdir().unwrap();
    let mut parent = Command::new(std::env::current_exe().unwrap());
    parent.args(["--exact", NAME, "--nocapture"]).env(DIR, dir.path());
    let mut parent = parent.stdout(Stdio::piped()).spawn().unwrap();
    let mut output = parent.stdout.take().unwrap();
    let mut text = Vec::new();
    let pid: u32 = loop {
        let mut byte = [0];
        assert_eq!(output.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&text));
        text.push(byte[0]);
        let (_, booted) = match std::str::from_utf8(&text).unwrap().rsplit_once("booted ") {
            Some(parts) => parts,
            None => continue,
        };
        if let Some(pid) = booted.strip_suffix('.') {
            break pid.parse().unwrap();
        }
    };
    // Open as long as QEMU lives.
    let mut control = UnixStream::connect(dir.path().join("ctl.sock")).unwrap();
    control.set_read_timeout(Some(LIMIT)).unwrap();
    parent.kill().unwrap();
    parent.wait().unwrap();
    // A reset instead of an end: QEMU died before it accepted.
    match control.read(&mut [0]) {
        Ok(0) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("QEMU {pid} outlived its parent: {other:?}"),
    }
    // A process without memory of its own is a zombie at most, left to init to reap.
    let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    assert!(cmdline.is_empty(), "QEMU {pid} outlived its parent");
}
