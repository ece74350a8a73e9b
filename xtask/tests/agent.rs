//! The guest image's agent in a real guest: the Kata agent protocol over virtio-serial, containers
//! whose root and programs come over virtio-fs.
//!
//! They need QEMU, virtiofsd (and so root) and the guest image (`cargo xtask guest`), but not KVM.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kata_agent_protocol::AGENT_PORT;
use kata_agent_protocol::agent::*;
use kata_agent_protocol::oci;
use kata_agent_protocol::protobuf::MessageField;
use slipway_agent::image::command_line;
use tempfile::TempDir;
use vmm_glue::agent::{Agent, AgentAddress};
use vmm_glue::qemu::Qemu;
use vmm_glue::sharefs::{Virtiofsd, VirtiofsdSpec};
use vmm_glue::vsock::{FIRST_CID, VsockDevice, VsockDeviceSpec};
use vmm_glue::{AgentChannel, DiskAddress, DiskSpec, Mib, ShareSpec, Vm, VmSpec};
use xtask::rig::Image;

/// For what takes seconds on an idle machine.
const LIMIT: Duration = Duration::from_secs(180);
const SHARED: &str = "/run/kata-containers/shared/containers";

/// A guest with an agent, and the machine's `/usr` as its shared folder.
struct Rig {
    vm: Box<dyn Vm>,
    agent: Agent,
    address: AgentAddress,
    disk: Option<DiskAddress>,
    _share: Virtiofsd,
    _vsock: Option<VsockDevice>,
    _folder: TempDir,
}

impl Rig {
    /// Over the serial port, which every host has.
    async fn boot() -> Self {
        Self::boot_with(false, Vec::new()).await
    }

    async fn boot_with(has_vsock: bool, disks: Vec<DiskSpec>) -> Self {
        let image = Image::find().unwrap_or_else(|error| panic!("{error:#}"));
        let folder = tempfile::tempdir().unwrap();
        let (fs, serial) = (folder.path().join("fs.sock"), folder.path().join("agent.sock"));
        let program = Virtiofsd::find().unwrap_or_else(|error| panic!("{error}"));
        let share = VirtiofsdSpec::new("share", program, "/usr", &fs);
        let share = Virtiofsd::spawn(share).await.unwrap_or_else(|error| panic!("{error}"));
        let mut spec = VmSpec::new("agent", folder.path());
        spec.kernel = Some(image.kernel);
        spec.initrd = Some(image.initrd);
        spec.cmdline = command_line(true);
        spec.memory = Mib::new(256);
        spec.boot_timeout = LIMIT;
        spec.disks = disks;
        spec.shares = vec![ShareSpec::new("kataShared", fs)];
        let vsock = if has_vsock { Some(vsock(folder.path()).await) } else { None };
        let address = match &vsock {
            Some((device, socket)) => {
                spec.agent = Some(AgentChannel::VhostUserVsock { socket: socket.clone() });
                device.address(AGENT_PORT)
            }
            None => {
                spec.agent = Some(AgentChannel::Serial { socket: serial.clone() });
                AgentAddress::Unix(serial)
            }
        };
        let disk = spec.disk_address(0);
        let qemu = Qemu::discover().await.unwrap_or_else(|error| panic!("{error}"));
        let vm = qemu.boot(&spec).await.unwrap_or_else(|error| panic!("{error}"));
        let ended = async { vm.wait().await.to_string() };
        let agent = Agent::connect(&address, LIMIT, ended).await;
        let agent = agent.unwrap_or_else(|error| panic!("{error}\n{}", vm.console().tail(20)));
        let agent = agent.with_time_limit(LIMIT);
        let vsock = vsock.map(|(device, _)| device);
        let vm = Box::new(vm);
        Self { vm, agent, address, disk, _share: share, _vsock: vsock, _folder: folder }
    }

    async fn create_sandbox(&self) {
        let shared = Storage {
            driver: "virtio-fs".to_owned(),
            source: "kataShared".to_owned(),
            fstype: "virtiofs".to_owned(),
            mount_point: format!("{SHARED}/"),
            ..Default::default()
        };
        let request = CreateSandboxRequest {
            hostname: "pod".to_owned(),
            storages: vec![shared],
            ..Default::default()
        };
        self.agent.create_sandbox(&request).await.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Creates and starts a container that runs `script`.
    async fn run(&self, id: &str, script: &str, memory: i64) {
        self.run_with(id, script, memory, Vec::new()).await;
    }

    /// As `run`, with storages that the container finds in its `/volume`, if there are any.
    async fn run_with(&self, id: &str, script: &str, memory: i64, mut storages: Vec<Storage>) {
        let mount = |kind: &str, source: &str, destination: &str, options: &[&str]| oci::Mount {
            type_: kind.to_owned(),
            source: source.to_owned(),
            destination: destination.to_owned(),
            options: options.iter().map(|&option| option.to_owned()).collect(),
            ..Default::default()
        };
        let mut mounts = vec![
            mount("proc", "proc", "/proc", &[]),
            mount("tmpfs", "tmpfs", "/dev", &["mode=755"]),
            mount("sysfs", "sysfs", "/sys", &["ro"]),
            mount("cgroup", "cgroup", "/sys/fs/cgroup", &["ro"]),
        ];
        mounts.push(mount("bind", SHARED, "/usr", &["rbind", "ro"]));
        for folder in ["/bin", "/lib", "/lib64"] {
            let source = format!("{SHARED}{folder}");
            mounts.push(mount("bind", &source, folder, &["rbind", "ro"]));
        }
        for storage in &storages {
            mounts.push(mount("bind", &storage.mount_point, "/volume", &["rbind"]));
        }
        let process = oci::Process {
            Args: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            Env: vec!["PATH=/usr/bin:/bin".to_owned()],
            Capabilities: MessageField::some(oci::LinuxCapabilities::default()),
            ..Default::default()
        };
        let mut linux = oci::Linux { CgroupsPath: format!("/pod/{id}"), ..Default::default() };
        for kind in ["ipc", "uts", "mount"] {
            linux
                .Namespaces
                .push(oci::LinuxNamespace { Type: kind.to_owned(), ..Default::default() });
        }
        let resources = linux.Resources.mut_or_insert_default();
        resources.Memory.mut_or_insert_default().Limit = memory;
        let root = Storage {
            driver: "local".to_owned(),
            mount_point: format!("/run/root-{id}"),
            ..Default::default()
        };
        let root_path = root.mount_point.clone();
        storages.push(root);
        let spec = oci::Spec {
            Version: "1.0.2".to_owned(),
            Root: MessageField::some(oci::Root { Path: root_path, ..Default::default() }),
            Process: MessageField::some(process),
            Mounts: mounts,
            Linux: MessageField::some(linux),
            ..Default::default()
        };
        let request = CreateContainerRequest {
            container_id: id.to_owned(),
            storages,
            OCI: MessageField::some(spec),
            ..Default::default()
        };
        let created = self.agent.create_container(&request).await;
        created.unwrap_or_else(|error| panic!("{error}\n{}", self.vm.console().tail(20)));
        let request = StartContainerRequest { container_id: id.to_owned(), ..Default::default() };
        self.agent.start_container(&request).await.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Reads standard output to its end and waits.
    async fn end(&self, id: &str) -> (i32, String) {
        let mut all = Vec::new();
        loop {
            let request = ReadStreamRequest {
                container_id: id.to_owned(),
                len: 1 << 20,
                ..Default::default()
            };
            let data = self.agent.read_stdout(&request).await.unwrap().data;
            if data.is_empty() {
                break;
            }
            all.extend(data);
        }
        let request = WaitProcessRequest { container_id: id.to_owned(), ..Default::default() };
        let status = self.agent.wait_process(&request).await.unwrap().status;
        (status, String::from_utf8(all).unwrap())
    }
}

/// A vsock device and its vhost-user socket.
async fn vsock(folder: &Path) -> (VsockDevice, PathBuf) {
    let socket = folder.join("vsock.sock");
    let spec = VsockDeviceSpec {
        name: "vsock".to_owned(),
        program: VsockDevice::find().unwrap_or_else(|error| panic!("{error}")),
        socket: socket.clone(),
        uds_path: folder.join("guest.sock"),
        guest_cid: FIRST_CID,
        cgroup_procs: Vec::new(),
    };
    (VsockDevice::spawn(spec).await.unwrap_or_else(|error| panic!("{error}")), socket)
}

#[tokio::test]
#[ignore = "needs vhost-device-vsock, which no package brings"]
async fn a_container_is_run_over_vsock() {
    let rig = Rig::boot_with(true, Vec::new()).await;
    rig.create_sandbox().await;
    rig.run("c1", "seq 200000; exit 7", 0).await;
    let (status, output) = rig.end("c1").await;
    assert_eq!((status, output.lines().count()), (7, 200_000));
}

#[tokio::test]
async fn a_disk_becomes_a_volume_by_its_node_and_by_its_pci_path() {
    let folder = tempfile::tempdir().unwrap();
    let content = folder.path().join("content");
    std::fs::create_dir(&content).unwrap();
    std::fs::write(content.join("file"), "on the disk\n").unwrap();
    let disk = folder.path().join("disk.img");
    let made = Command::new("/usr/sbin/mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .args([&content, &disk])
        .arg("16M")
        .status();
    assert!(made.expect("this test needs e2fsprogs").success());
    let disk = DiskSpec::readonly("volume", disk);
    let rig = Rig::boot_with(false, vec![disk]).await;
    rig.create_sandbox().await;
    let path = rig.disk.clone().expect("there is a disk").to_string();
    for (id, source) in [("c1", "/dev/vda".to_owned()), ("c2", path)] {
        let storage = Storage {
            driver: "blk".to_owned(),
            source,
            fstype: "ext4".to_owned(),
            mount_point: format!("/run/volume-{id}"),
            options: vec!["ro".to_owned()],
            ..Default::default()
        };
        rig.run_with(id, "cat /volume/file", 0, vec![storage]).await;
        assert_eq!(rig.end(id).await, (0, "on the disk\n".to_owned()));
        let remove = RemoveContainerRequest { container_id: id.to_owned(), ..Default::default() };
        rig.agent.remove_container(&remove).await.unwrap_or_else(|error| panic!("{error}"));
    }
}

#[tokio::test]
async fn a_container_in_a_guest_runs_what_the_host_shares() {
    let rig = Rig::boot().await;
    rig.create_sandbox().await;
    rig.run("c1", "hostname; grep MemTotal /proc/meminfo; seq 200000; exit 7", 0).await;
    let (status, output) = rig.end("c1").await;
    assert_eq!(status, 7);
    assert!(output.starts_with("pod\nMemTotal:"), "{}", &output[..200.min(output.len())]);
    let numbers: Vec<_> = output.lines().skip(2).collect();
    assert_eq!(numbers.len(), 200_000);
    assert_eq!(numbers.last(), Some(&"200000"));
    let stats = StatsContainerRequest { container_id: "c1".to_owned(), ..Default::default() };
    let stats = rig.agent.stats_container(&stats).await.unwrap_or_else(|error| panic!("{error}"));
    assert!(stats.cgroup_stats.cpu_stats.cpu_usage.total_usage > 0, "{stats}");
    let remove = RemoveContainerRequest { container_id: "c1".to_owned(), ..Default::default() };
    rig.agent.remove_container(&remove).await.unwrap_or_else(|error| panic!("{error}"));
}

#[tokio::test]
async fn a_container_that_runs_out_of_memory_is_told_by_name() {
    let rig = Rig::boot().await;
    rig.create_sandbox().await;
    rig.run("c2", "x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done", 16 << 20).await;
    let event = rig.agent.get_oom_event(&GetOOMEventRequest::new()).await;
    assert_eq!(event.unwrap_or_else(|error| panic!("{error}")).container_id, "c2");
    assert_eq!(rig.end("c2").await.0, 128 + 9);
}

#[tokio::test]
async fn hosts_come_and_go_and_the_sandbox_stays() {
    let rig = Rig::boot().await;
    rig.create_sandbox().await;
    let Rig { vm, agent, address, disk: _, _share, _vsock, _folder } = rig;
    drop(agent);
    for _ in 0..3 {
        let ended = async { vm.wait().await.to_string() };
        let agent = Agent::connect(&address, LIMIT, ended).await;
        let agent = agent.unwrap_or_else(|error| panic!("{error}\n{}", vm.console().tail(20)));
        let again = agent.create_sandbox(&CreateSandboxRequest::new()).await.unwrap_err();
        assert!(again.to_string().contains("There is a sandbox already"), "{again}");
    }
}
