//! A VM as a pod has it, with a real QEMU, virtiofsd and guest: the agent is reached over its channel,
//! mounts a directory of the host and writes into it, and takes plugged CPUs and disks. They need root,
//! as virtiofsd does, and the image of `cargo xtask guest` in SLIPWAY_GUEST_DIR.

mod common;
#[path = "common/image.rs"]
mod image;

use std::path::Path;
use std::time::Duration;

use common::qemu;
use image::image;
use kata_agent_protocol::AGENT_PORT;
use kata_agent_protocol::agent::{
    CopyFileRequest, CreateSandboxRequest, GetOOMEventRequest, OnlineCPUMemRequest, Storage,
};
use kata_agent_protocol::health::CheckRequest;
use vmm_glue::agent::{Agent, AgentAddress};
use vmm_glue::qemu::QemuVm;
use vmm_glue::sharefs::{Virtiofsd, VirtiofsdSpec};
use vmm_glue::vsock::{FIRST_CID, VsockDevice, VsockDeviceSpec};
use vmm_glue::{AgentChannel, DiskSpec, ExitCause, Machine, Mib, ShareSpec, Vm, VmSpec};

const LIMIT: Duration = Duration::from_secs(120);
/// Where the agent of a Kata guest takes files.
const SHARED: &str = "/run/kata-containers/shared/containers/";

fn spec(dir: &Path, machine: Machine, channel: AgentChannel) -> VmSpec {
    let (kernel, initrd) = image();
    let mut spec = VmSpec::new("pod", dir.join("run"));
    (spec.kernel, spec.initrd, spec.machine) = (Some(kernel), Some(initrd), machine);
    spec.memory = Mib::new(256);
    spec.agent = Some(channel);
    spec
}

async fn share(dir: &Path, spec: &mut VmSpec) -> Virtiofsd {
    let (shared, socket) = (dir.join("shared"), dir.join("fs.sock"));
    std::fs::create_dir(&shared).unwrap();
    spec.shares.push(ShareSpec::new("kataShared", &socket));
    let program = Virtiofsd::find().unwrap_or_else(|error| panic!("{error}"));
    Virtiofsd::spawn(VirtiofsdSpec::new("fs", program, shared, socket)).await.unwrap()
}

async fn connect(vm: &QemuVm, address: &AgentAddress) -> Agent {
    let ended = async { vm.wait().await.to_string() };
    let agent = Agent::connect(address, LIMIT, ended).await;
    agent.unwrap_or_else(|error| panic!("{error}\n{}", vm.console().tail(40)))
}

/// Has the agent mount the shared directory, and write a file into it.
async fn write_through_the_share(agent: &Agent, dir: &Path) {
    let storage = Storage {
        driver: "virtio-fs".to_owned(),
        source: "kataShared".to_owned(),
        fstype: "virtiofs".to_owned(),
        mount_point: SHARED.to_owned(),
        ..Default::default()
    };
    let sandbox = CreateSandboxRequest {
        hostname: "pod".to_owned(),
        sandbox_id: "pod".to_owned(),
        storages: vec![storage],
        ..Default::default()
    };
    agent.create_sandbox(&sandbox).await.unwrap();
    let file = CopyFileRequest {
        path: format!("{SHARED}from-the-guest"),
        file_size: 5,
        file_mode: 0o100_644,
        dir_mode: 0o755,
        data: b"hello".to_vec(),
        ..Default::default()
    };
    agent.copy_file(&file).await.unwrap();
    let written = std::fs::read(dir.join("shared/from-the-guest")).unwrap();
    assert_eq!(written, b"hello");
}

async fn end(vm: QemuVm, agent: Agent, fs: Virtiofsd, dir: &Path) {
    let waiting = agent.clone();
    let waiting =
        tokio::spawn(async move { waiting.get_oom_event(&GetOOMEventRequest::new()).await });
    let report = vm.stop(Duration::ZERO).await.unwrap();
    assert_eq!(report.cause, ExitCause::Requested);
    let error = tokio::time::timeout(LIMIT, waiting).await.unwrap().unwrap().unwrap_err();
    assert!(error.is_gone(), "{error}");
    let ended = tokio::time::timeout(LIMIT, fs.wait()).await.unwrap();
    assert_eq!(ended.cause, ExitCause::Code(0), "{ended}");
    drop(fs);
    let left = std::fs::read_dir(dir).unwrap().flatten().map(|entry| entry.file_name());
    let left: Vec<_> = left.filter(|name| name != "shared" && name != "disk").collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

async fn reached_over_a_serial_port(machine: Machine) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("run/agent.sock");
    let channel = AgentChannel::Serial { socket };
    let address = channel.address().unwrap();
    let mut spec = spec(dir.path(), machine, channel);
    let fs = share(dir.path(), &mut spec).await;
    let vm = qemu().await.boot(&spec).await.unwrap();
    let agent = connect(&vm, &address).await;
    write_through_the_share(&agent, dir.path()).await;
    // The port takes the next connection when the first is gone, as after a restart of the shim.
    drop(agent);
    let agent = connect(&vm, &address).await;
    let version = agent.version(&CheckRequest::new()).await.unwrap();
    assert!(!version.grpc_version.is_empty());
    end(vm, agent, fs, dir.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_of_a_q35_guest_is_reached_over_a_serial_port() {
    reached_over_a_serial_port(Machine::Q35).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_of_a_microvm_guest_is_reached_over_a_serial_port() {
    reached_over_a_serial_port(Machine::Microvm).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_guest_takes_cpus_and_disks_and_lets_go_of_disks() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("run/agent.sock");
    let channel = AgentChannel::Serial { socket };
    let address = channel.address().unwrap();
    let mut spec = spec(dir.path(), Machine::Q35, channel);
    (spec.vcpus_max, spec.disk_slots) = (Some(2), 1);
    let disk = dir.path().join("disk");
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let fs = share(dir.path(), &mut spec).await;
    let vm = qemu().await.boot(&spec).await.unwrap();
    let agent = connect(&vm, &address).await;

    vm.set_vcpus(2).await.unwrap();
    assert_eq!(vm.info().await.unwrap().vcpus, 2);
    let online =
        OnlineCPUMemRequest { wait: true, nb_cpus: 1, cpu_only: true, ..Default::default() };
    agent.online_cpu_mem(&online).await.unwrap();

    // The guest takes part in a removal, so one that succeeds shows that it saw the disk.
    let disk = DiskSpec { readonly: false, ..DiskSpec::readonly("rootfs", disk) };
    for _ in 0..2 {
        assert_eq!(vm.add_disk(&disk).await.unwrap().to_string(), "1e/00");
        vm.remove_disk("rootfs").await.unwrap();
    }
    end(vm, agent, fs, dir.path()).await;
}

/// Needs the real program: `cargo xtask deps --vsock`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "vhost-device-vsock takes minutes to build"]
async fn the_agent_is_reached_over_a_vsock_that_a_helper_serves() {
    let dir = tempfile::tempdir().unwrap();
    let device = VsockDeviceSpec {
        name: "vsock".to_owned(),
        program: VsockDevice::find().unwrap_or_else(|error| panic!("{error}")),
        socket: dir.path().join("vsock.sock"),
        uds_path: dir.path().join("guest.sock"),
        guest_cid: FIRST_CID,
        cgroup_procs: Vec::new(),
    };
    let channel = AgentChannel::VhostUserVsock { socket: device.socket.clone() };
    let device = VsockDevice::spawn(device).await.unwrap();
    let mut spec = spec(dir.path(), Machine::Q35, channel);
    let fs = share(dir.path(), &mut spec).await;
    let vm = qemu().await.boot(&spec).await.unwrap();
    let agent = connect(&vm, &device.address(AGENT_PORT)).await;
    write_through_the_share(&agent, dir.path()).await;
    drop(device);
    end(vm, agent, fs, dir.path()).await;
}
