//! Containers whose roots are on block devices, and VMs that grow, in real guests: the shim's task service
//! with QEMU, virtiofsd and the guest image. containerd 1.6 has no snapshotter of block devices that
//! runs everywhere, so its part is played here: a loop device is what the snapshotter gives.
//!
//! They need root and the guest image (`cargo xtask guest`).

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim_async::{Client, TaskClient};
use containerd_shim_protos::ttrpc::r#async::Server;
use containerd_shim_protos::ttrpc::context;
use containerd_shim_protos::types::mount::Mount;
use nix::sys::stat::Mode;
use serde_json::{Value, json};
use shim::cgroup::{CgroupPath, Origin};
use shim::disks::DiskMount;
use shim::events::Events;
use shim::host::Host;
use shim::mounts::MountSpec;
use shim::pod::Pod;
use shim::{mounts, task};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard, watch};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;
use xtask::rig::{Image, oci_image};

/// For what takes seconds on an idle machine.
const LIMIT: Duration = Duration::from_secs(180);
/// The shim moves its process, which is ours, into the pod's cgroup.
static ONE: Mutex<()> = Mutex::const_new(());

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A block device with an ext4, in which there is busybox.
struct Disk {
    device: String,
}

impl Disk {
    fn new(folder: &Path, name: &str) -> Self {
        let root = folder.join(format!("{name}.root"));
        for folder in ["bin", "dev", "proc", "sys", "tmp", "etc"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        let busybox = oci_image::ensure().unwrap_or_else(|error| panic!("{error:#}")).busybox;
        fs::copy(busybox, root.join("bin/busybox")).unwrap();
        for applet in ["sh", "sleep", "cat", "grep"] {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        fs::write(root.join("name"), name).unwrap();
        let image = folder.join(format!("{name}.image")).display().to_string();
        run("mkfs.ext4", &["-q", "-d", root.to_str().unwrap(), &image, "16M"]);
        Self { device: run("losetup", &["--find", "--show", &image]).trim().to_owned() }
    }

    /// What a snapshotter of block devices says.
    fn mount(&self) -> Mount {
        let mut mount = Mount::new();
        (mount.type_, mount.source) = ("ext4".to_owned(), self.device.clone());
        mount
    }

    /// A file in it, as the host sees it.
    fn read(&self, path: &str) -> String {
        run("debugfs", &["-R", &format!("cat {path}"), &self.device])
    }

    fn is_mounted(&self) -> bool {
        fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&self.device)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // That it is free is asserted elsewhere.
        drop(Command::new("losetup").args(["--detach", &self.device]).status());
    }
}

/// A shim's pod, with the client that containerd is.
struct Rig {
    id: String,
    task: TaskClient,
    pod: Arc<Pod>,
    host: Host,
    origin: Origin,
    _server: Server,
    folder: TempDir,
    _one: MutexGuard<'static, ()>,
}

impl Rig {
    async fn new(id: &str, hypervisor: &str, runtime: &str) -> Self {
        let one = ONE.lock().await;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let image = Image::find().unwrap_or_else(|error| panic!("{error:#}"));
        let text = format!(
            "[hypervisor.qemu]\nkernel = \"{}\"\ninitrd = \"{}\"\ndefault_memory = 256\nenable_debug = true\n{hypervisor}\n\
             [agent.kata]\nreconnect_timeout_ms = {}\n\
             [runtime]\ninternetworking_model = \"none\"\n{runtime}\n\
             [slipway]\nagent_channel = \"serial\"\nacceleration = \"tcg\"\n",
            image.kernel.display(),
            image.initrd.display(),
            LIMIT.as_millis(),
        );
        fs::write(path.join("configuration.toml"), text).unwrap();
        let host = Host {
            pods: path.join("pods"),
            shares: path.join("shares"),
            debts: path.join("debts"),
            engine: None,
            vmm: None,
        };
        // Nobody wants the events.
        let address = path.join("no-events.sock").display().to_string();
        let (events, _) = Events::start(address, "test".to_owned());
        let id = format!("{id}-{}", std::process::id());
        let pod = Pod::new(id.clone(), host.clone(), events);
        let exit = watch::Sender::new(false);
        let socket = format!("unix://{}/shim.sock", path.display());
        let services = task::services(&pod, &exit);
        let mut server = Server::new().bind(&socket).unwrap().register_service(services);
        server.start().await.unwrap();
        let task = TaskClient::new(Client::connect(&socket).await.unwrap());
        let origin = Origin::of_self();
        Self { id, task, pod, host, origin, _server: server, folder, _one: one }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Creates and starts a container that runs `script`; what it prints comes at its end.
    async fn run(
        &self,
        id: &str,
        disk: &Disk,
        script: &str,
        change: impl FnOnce(&mut Value),
    ) -> JoinHandle<String> {
        let bundle = self.path().join("bundles").join(id);
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        let mut spec = json!({
            "ociVersion": "1.0.2",
            "process": {
                "args": ["/bin/sh", "-c", script], "cwd": "/", "env": ["PATH=/bin"],
                "user": {"uid": 0, "gid": 0}, "capabilities": {}
            },
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}
            ],
            "annotations": {},
            "linux": {"namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "mount"}, {"type": "ipc"}
            ]}
        });
        change(&mut spec);
        fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        let out = bundle.join("out");
        nix::unistd::mkfifo(&out, Mode::S_IRWXU).unwrap();
        let mut request = api::CreateTaskRequest::new();
        request.id = id.to_owned();
        request.bundle = bundle.display().to_string();
        request.rootfs.push(disk.mount());
        request.stdout = out.display().to_string();
        request.options = MessageField::some(self.options());
        let reading: JoinHandle<String> = {
            let out: PathBuf = out.clone();
            spawn_blocking(move || fs::read_to_string(out).unwrap())
        };
        let created = timeout(LIMIT, self.task.create(ctx(), &request)).await.expect("in time");
        if let Err(error) = created {
            let vm = self.pod.vm().await.map(|vm| vm.console().tail(60));
            panic!("{error}\nThe guest's console: {}", vm.unwrap_or_else(|gone| gone.to_string()));
        }
        let mut request = api::StartRequest::new();
        request.id = id.to_owned();
        self.task.start(ctx(), &request).await.unwrap();
        reading
    }

    fn options(&self) -> Any {
        let path = self.path().join("configuration.toml").display().to_string();
        let mut any = Any::new();
        any.type_url = "runtimeoptions.v1.Options".to_owned();
        any.value = [&[0x12, u8::try_from(path.len()).unwrap()], path.as_bytes()].concat();
        any
    }

    async fn ended(&self, id: &str) -> u32 {
        let mut request = api::WaitRequest::new();
        request.id = id.to_owned();
        let ended = timeout(LIMIT, self.task.wait(ctx(), &request)).await.expect("it ends");
        ended.unwrap().exit_status
    }

    async fn kill(&self, id: &str) {
        let mut request = api::KillRequest::new();
        (request.id, request.signal) = (id.to_owned(), 9);
        self.task.kill(ctx(), &request).await.unwrap();
        self.ended(id).await;
    }

    async fn delete(&self, id: &str) {
        let mut request = api::DeleteRequest::new();
        request.id = id.to_owned();
        self.task.delete(ctx(), &request).await.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Looks for what a pod may leave.
    fn end(self) {
        for folder in [&self.host.pods, &self.host.shares] {
            assert_eq!(fs::read_dir(folder).unwrap().count(), 0, "{}", folder.display());
        }
        assert_eq!(mounts::below(self.path()).unwrap(), Vec::<PathBuf>::new());
        let hierarchies =
            fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap().path());
        let cgroups = hierarchies.map(|path| path.join("slipway").join(&self.id));
        assert_eq!(cgroups.filter(|path| path.exists()).collect::<Vec<_>>(), Vec::<PathBuf>::new());
        assert!(!Path::new("/proc").join(self.pod.pid().to_string()).exists(), "the VMM runs");
    }
}

impl Drop for Rig {
    /// After a test that failed: the host as it was. VMM and helpers die with their handles.
    fn drop(&mut self) {
        self.origin.restore();
        drop(CgroupPath::of(None, &self.id).remove());
        drop(mounts::unmount_below(self.folder.path()));
    }
}

fn ctx() -> context::Context {
    context::with_duration(LIMIT)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_on_a_block_device_writes_to_it_and_the_host_never_mounts_it() {
    let rig = Rig::new("disk", "", "").await;
    let disk = Disk::new(rig.path(), "first");
    let volume = Disk::new(rig.path(), "second");
    let script = "cat /name; echo; grep ' / ' /proc/mounts; cat /tmp/name; echo; \
                  echo written > /new; echo too > /tmp/new";
    let id = rig.id.clone();
    let output = rig.run(&id, &disk, script, |spec| {
        let mount = json!({"destination": "/tmp", "type": "ext4", "source": volume.device});
        spec["mounts"].as_array_mut().unwrap().push(mount);
    });
    let output = output.await;
    assert!(!disk.is_mounted() && !volume.is_mounted());
    assert_eq!(rig.ended(&id).await, 0);
    let output = output.await.unwrap();
    let lines: Vec<_> = output.lines().collect();
    let [name, mount, second] = lines[..] else { panic!("{output}") };
    assert_eq!((name, second), ("first", "second"));
    // Which of the two was found first is the kernel's affair.
    assert!(mount.starts_with("/dev/vd") && mount.contains(" / ext4 rw"), "{mount}");
    rig.delete(&id).await;
    // It was in the guest's memory, and no unmount was asked for by the container.
    assert_eq!((disk.read("/new"), volume.read("/new")), ("written\n".into(), "too\n".into()));
    rig.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_pod_is_given_disks_processors_and_memory() {
    let machine = "default_maxvcpus = 2\ndefault_maxmemory = 640";
    let rig = Rig::new("grow", machine, "static_sandbox_resource_mgmt = false").await;
    let (pause, app) = (Disk::new(rig.path(), "pause"), Disk::new(rig.path(), "app"));
    let id = rig.id.clone();
    let sandbox = json!({"io.kubernetes.cri.container-type": "sandbox"});
    let silence =
        rig.run(&id, &pause, "exec sleep 1000", |spec| spec["annotations"] = sandbox).await;
    let inside = |spec: &mut Value| {
        spec["annotations"] = json!({
            "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": id,
        });
    };
    let look = "cat /name; echo; grep -c ^processor /proc/cpuinfo; grep MemTotal /proc/meminfo; \
                cat /count; echo more >> /count";
    let mut memory = Vec::new();
    // Without limits, then with them, on the same device: it was taken out in between.
    for round in 0..2 {
        let output = rig.run("app", &app, look, |spec| {
            inside(spec);
            if round == 1 {
                spec["linux"]["resources"] = json!({
                    "cpu": {"quota": 50_000, "period": 100_000}, "memory": {"limit": 200 << 20}
                });
            }
        });
        let output = output.await;
        rig.ended("app").await;
        let output = output.await.unwrap();
        let lines: Vec<_> = output.lines().collect();
        let vcpus =
            if round == 1 { std::thread::available_parallelism().unwrap().get().min(2) } else { 1 };
        assert_eq!(lines[..2], ["app".to_owned(), vcpus.to_string()], "{output}");
        let kib = lines[2].split_ascii_whitespace().nth(1).unwrap();
        memory.push(kib.parse::<u64>().unwrap());
        assert_eq!(lines[3..], vec!["more"; round], "{output}");
        rig.delete("app").await;
        assert_eq!(app.read("/count"), "more\n".repeat(round + 1));
        fs::remove_dir_all(rig.path().join("bundles/app")).unwrap();
    }
    // 200 MiB and the guest's own 256: two DIMMs of 128.
    let grown = memory[1] - memory[0];
    assert!((200 << 10..=256 << 10).contains(&grown), "{memory:?} KiB");
    rig.kill(&id).await;
    assert_eq!(silence.await.unwrap(), "");
    rig.delete(&id).await;
    rig.end();
}

#[test]
fn what_the_host_has_mounted_is_not_given_to_a_guest() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::new(folder.path(), "mounted");
    let spec = MountSpec { kind: "ext4".into(), source: disk.device.clone(), options: Vec::new() };
    let root = [spec];
    assert!(DiskMount::of(&root).unwrap().is_some_and(|found| found.path.ends_with(&disk.device)));
    let point = folder.path().join("point");
    fs::create_dir(&point).unwrap();
    mounts::mount_spec(&root[0], &point).unwrap();
    let found = DiskMount::of(&root);
    mounts::unmount(&point).unwrap();
    assert_eq!(found.unwrap(), None);
}
