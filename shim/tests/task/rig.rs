//! One pod's shim in this process, with everything around it that a shim talks to: containerd on both
//! sides (a ttrpc client, and a server that takes events), slipwayd's API, a VMM with a guest, and a
//! virtiofsd that serves nobody.
//!
//! The shim moves its own process into the pod's cgroup, so one rig lives at a time.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex as StdMutex, OnceLock};
use std::time::Duration;

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::sandbox_async::SandboxClient;
use containerd_shim_protos::shim_async::{Client, TaskClient};
use containerd_shim_protos::ttrpc::r#async::Server;
use containerd_shim_protos::ttrpc::{self, Code, context};
use dataplane::control::Control;
use dataplane::control::fake::FakeSwitch;
use dataplane::control::server::ApiServer;
use serde_json::{Value, json};
use shim::cgroup::{CgroupPath, Origin};
use shim::events::Events;
use shim::host::Host;
use shim::mounts;
use shim::pod::Pod;
use shim::{sandbox_api, task};
use slipway_api::client::Client as SwitchClient;
use slipway_api::{Attachment, AttachmentSpec};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard, watch};
use vmm_glue::ExitCause;
use vmm_glue::fake::FakeVmm;

use crate::around::{Event, Recorder, Setup, serve_events, switch, write_configuration};
use crate::guest::{Guest, GuestVmm};

static ONE: Mutex<()> = Mutex::const_new(());
static HOME: OnceLock<Origin> = OnceLock::new();
static COUNT: AtomicU32 = AtomicU32::new(0);
/// For what takes milliseconds unless it never comes.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// See the module.
pub struct Rig {
    pub folder: TempDir,
    pub host: Host,
    pub guest: Guest,
    pub vmm: FakeVmm,
    pub specs: Arc<StdMutex<Vec<vmm_glue::VmSpec>>>,
    pub switch: Arc<FakeSwitch>,
    pub api: Option<ApiServer>,
    pub shim: Shim,
    events: Recorder,
    event_server: Server,
    cgroup: String,
    _one: MutexGuard<'static, ()>,
}

/// One shim: a pod behind its socket, and containerd's connection to it.
pub struct Shim {
    pub pod: Arc<Pod>,
    pub task: TaskClient,
    pub sandbox: SandboxClient,
    pub client: Client,
    /// Set when the shim would end.
    pub exit: watch::Sender<bool>,
    _server: Server,
}

impl Shim {
    async fn start(folder: &Path, id: &str, host: &Host) -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let socket = format!("unix://{}/shim-{number}.sock", folder.display());
        let address = folder.join("events.sock").display().to_string();
        let (events, _) = Events::start(address, "test".to_owned());
        let pod = Pod::new(id.to_owned(), host.clone(), events);
        let exit = watch::Sender::new(false);
        let mut server = Server::new()
            .bind(&socket)
            .unwrap()
            .register_service(task::services(&pod, &exit))
            .register_service(sandbox_api::service(&pod, &exit));
        server.start().await.unwrap();
        let client = Client::connect(&socket).await.unwrap();
        let (task, sandbox) = (TaskClient::new(client.clone()), SandboxClient::new(client.clone()));
        Self { pod, task, sandbox, client, exit, _server: server }
    }
}

/// A call without a time limit.
pub fn ctx() -> context::Context {
    context::with_timeout(0)
}

/// The code of a refusal, and its words.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(answer: ttrpc::Result<T>) -> (Code, String) {
    match answer.unwrap_err() {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message),
        other => panic!("no status, but {other}"),
    }
}

impl Rig {
    pub async fn start() -> Self {
        Self::with(Setup::default()).await
    }

    pub async fn with(setup: Setup) -> Self {
        let one = ONE.lock().await;
        HOME.get_or_init(Origin::of_self);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let (switch, api) = switch(path, setup.range.unwrap_or("10.88.0.0/16"));
        write_configuration(path, &setup);

        let events = Recorder::default();
        let event_server = serve_events(path, &events).await;

        let (guest, vmm) = (Guest::default(), FakeVmm::new());
        let specs = Arc::default();
        let backend =
            GuestVmm { vmm: vmm.clone(), guest: guest.clone(), specs: Arc::clone(&specs) };
        let host = Host {
            pods: path.join("pods"),
            shares: path.join("shares"),
            engine: Some("/run/engine.sock k8s.io".to_owned()),
            debts: path.join("debts"),
            vmm: Some(Arc::new(backend)),
        };
        let shim = Shim::start(path, "pod1", &host).await;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let cgroup = format!("slipway-test-{}-{number}", std::process::id());
        Self {
            folder,
            host,
            guest,
            vmm,
            specs,
            switch,
            api: Some(api),
            shim,
            events,
            event_server,
            cgroup,
            _one: one,
        }
    }

    /// The shim of another pod on the same host, as containerd starts it for each.
    pub async fn next_shim(&mut self, id: &str) {
        self.shim = Shim::start(self.folder.path(), id, &self.host).await;
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The folder of a bundle with a root file system, of which `change` makes what it wants.
    pub fn bundle(&self, id: &str, change: impl FnOnce(&mut Value)) -> String {
        let bundle = self.path().join("bundles").join(id);
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        fs::write(bundle.join("rootfs/hello"), id).unwrap();
        let mut spec = json!({
            "ociVersion": "1.0.2",
            "process": {"args": ["/bin/true"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
            "root": {"path": "rootfs"},
            "hostname": id,
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "annotations": {},
            "linux": {
                "cgroupsPath": format!("/{}", self.cgroup),
                "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "mount"}]
            }
        });
        change(&mut spec);
        fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        bundle.display().to_string()
    }

    /// `runtimeoptions.v1.Options` with the path of the rig's configuration.
    pub fn options(&self) -> Any {
        let path = self.path().join("configuration.toml").display().to_string();
        let mut any = Any::new();
        any.type_url = "runtimeoptions.v1.Options".to_owned();
        any.value = [&[0x12, u8::try_from(path.len()).unwrap()], path.as_bytes()].concat();
        any
    }

    pub fn request(&self, id: &str, bundle: String) -> api::CreateTaskRequest {
        let mut request = api::CreateTaskRequest::new();
        request.id = id.to_owned();
        request.bundle = bundle;
        request.options = MessageField::some(self.options());
        request
    }

    pub async fn try_create(&self, id: &str) -> ttrpc::Result<api::CreateTaskResponse> {
        let request = self.request(id, self.bundle(id, |_| ()));
        self.shim.task.create(ctx(), &request).await
    }

    /// The pod's one container, or its sandbox's.
    pub async fn create(&self, id: &str) {
        self.try_create(id).await.unwrap();
    }

    /// A container beside the sandbox's.
    pub async fn create_beside(&self, id: &str) {
        let bundle = self.bundle(id, |spec| spec["annotations"] = inside("pod1"));
        self.shim.task.create(ctx(), &self.request(id, bundle)).await.unwrap();
    }

    /// The container that stands for a pod.
    pub async fn create_sandbox(&self) {
        let sandbox = json!({"io.kubernetes.cri.container-type": "sandbox"});
        let bundle = self.bundle("pod1", |spec| spec["annotations"] = sandbox);
        self.shim.task.create(ctx(), &self.request("pod1", bundle)).await.unwrap();
    }

    pub async fn run(&self, id: &str) {
        self.create(id).await;
        self.launch(id, "").await;
    }

    pub async fn launch(&self, id: &str, exec: &str) -> u32 {
        self.try_launch(id, exec).await.unwrap().pid
    }

    pub async fn try_launch(&self, id: &str, exec: &str) -> ttrpc::Result<api::StartResponse> {
        let mut request = api::StartRequest::new();
        (request.id, request.exec_id) = (id.to_owned(), exec.to_owned());
        self.shim.task.start(ctx(), &request).await
    }

    pub async fn exec(&self, id: &str, exec: &str) -> ttrpc::Result<api::Empty> {
        self.exec_with(id, exec, |_| ()).await
    }

    pub async fn exec_with(
        &self,
        id: &str,
        exec: &str,
        change: impl FnOnce(&mut api::ExecProcessRequest),
    ) -> ttrpc::Result<api::Empty> {
        let mut request = api::ExecProcessRequest::new();
        (request.id, request.exec_id) = (id.to_owned(), exec.to_owned());
        let mut any = Any::new();
        any.type_url = "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned();
        any.value =
            json!({"args": ["ls"], "cwd": "/", "user": {"uid": 0, "gid": 0}}).to_string().into();
        request.spec = MessageField::some(any);
        change(&mut request);
        self.shim.task.exec(ctx(), &request).await
    }

    pub async fn state(&self, id: &str, exec: &str) -> ttrpc::Result<api::StateResponse> {
        let mut request = api::StateRequest::new();
        (request.id, request.exec_id) = (id.to_owned(), exec.to_owned());
        self.shim.task.state(ctx(), &request).await
    }

    pub async fn status(&self, id: &str) -> api::Status {
        self.state(id, "").await.unwrap().status.unwrap()
    }

    pub async fn wait(&self, id: &str, exec: &str) -> api::WaitResponse {
        let mut request = api::WaitRequest::new();
        (request.id, request.exec_id) = (id.to_owned(), exec.to_owned());
        let answer = self.shim.task.wait(ctx(), &request);
        tokio::time::timeout(PATIENCE, answer).await.expect("it ends").unwrap()
    }

    pub async fn kill(&self, id: &str, exec: &str, signal: u32) -> ttrpc::Result<api::Empty> {
        let mut request = api::KillRequest::new();
        (request.id, request.exec_id, request.signal) = (id.to_owned(), exec.to_owned(), signal);
        self.shim.task.kill(ctx(), &request).await
    }

    pub async fn delete(&self, id: &str, exec: &str) -> ttrpc::Result<api::DeleteResponse> {
        let mut request = api::DeleteRequest::new();
        (request.id, request.exec_id) = (id.to_owned(), exec.to_owned());
        self.shim.task.delete(ctx(), &request).await
    }

    /// Asks the shim to end; whether it will.
    pub async fn shutdown(&self) -> bool {
        self.shim.task.shutdown(ctx(), &api::ShutdownRequest::new()).await.unwrap();
        *self.shim.exit.borrow()
    }

    /// The VM dies.
    pub fn kill_vm(&self) {
        let names = self.vmm.running();
        assert!(!names.is_empty(), "a VM runs");
        for name in names {
            assert!(self.vmm.end(&name, ExitCause::Signal(9)));
        }
        self.guest.vanish();
    }

    /// The topics so far, with the last part of their names and the container.
    pub fn told(&self) -> Vec<String> {
        let events = self.events.0.borrow();
        let short = |event: &Event| {
            let topic = event.topic.strip_prefix("/tasks/").unwrap_or(&event.topic);
            format!("{topic} {}", event.container)
        };
        events.iter().map(short).collect()
    }

    /// The event number `count`, from 1, of this topic, once it has come.
    pub async fn event(&self, topic: &str, count: usize) -> Event {
        let topic = format!("/tasks/{topic}");
        let nth = |events: &[Event]| {
            events.iter().filter(|event| event.topic == topic).nth(count - 1).cloned()
        };
        let mut events = self.events.0.subscribe();
        let found = events.wait_for(|events| nth(events).is_some());
        let found = tokio::time::timeout(PATIENCE, found).await;
        let found = found.unwrap_or_else(|_| panic!("no {topic}, but {:?}", self.told()));
        nth(&found.unwrap()).unwrap()
    }

    /// Waits until all events so far are told.
    pub async fn all_told(&self) -> Vec<String> {
        self.shim.pod.events.flush(PATIENCE).await;
        self.told()
    }

    /// The stand-ins of virtiofsd that were started.
    fn helpers(&self) -> Vec<u32> {
        let pids = fs::read_to_string(self.path().join("helpers")).unwrap_or_default();
        pids.lines().map(|pid| pid.parse().unwrap()).collect()
    }

    /// What the switch has for pods.
    pub fn switch_attachments(&self) -> Vec<Attachment> {
        self.switch.list_attachments(None).attachments
    }

    /// Attaches `owner` as slipway-cni does it before a shim is asked.
    pub async fn attach_as_cni(&self, owner: &str) {
        let client = SwitchClient::new(self.path().join("slipwayd.sock"));
        client.attach(owner, "eth0", &AttachmentSpec::default()).await.unwrap();
    }

    /// Gives back what `owner` has.
    pub async fn detach(&self, owner: &str) {
        let client = SwitchClient::new(self.path().join("slipwayd.sock"));
        client.detach(owner, "eth0").await.unwrap();
    }

    /// containerd goes away; the shim's connection breaks.
    pub async fn containerd_goes(&mut self) {
        self.event_server.shutdown().await.unwrap();
        fs::remove_file(self.path().join("events.sock")).unwrap();
    }

    /// containerd comes back.
    pub async fn containerd_comes(&mut self) {
        self.event_server = serve_events(self.folder.path(), &self.events).await;
    }

    /// The pid of the stand-in that serves the pod's files.
    pub fn virtiofsd(&self) -> u32 {
        *self.helpers().last().expect("one was started")
    }

    /// What was told so far is of no interest any more.
    pub fn forget_events(&self) {
        self.events.0.send_modify(Vec::clear);
    }

    /// The cgroup that bundles name.
    pub fn cgroup_path(&self) -> CgroupPath {
        CgroupPath::of(Some(&Path::new("/").join(&self.cgroup)), "pod1")
    }

    /// All that a pod may leave on this host.
    pub fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        let mut see = |what: &str, items: Vec<String>| {
            left.extend(items.iter().map(|item| format!("{what} {item}")));
        };
        let mounts = mounts::below(self.path()).unwrap();
        see("mount", mounts.iter().map(|point| point.display().to_string()).collect());
        for folder in [&self.host.pods, &self.host.shares] {
            see("folder", names(folder));
        }
        see("debt", names(&self.host.debts));
        see("attachment", self.switch_attachments().into_iter().map(|a| a.owner).collect());
        see("VM", self.vmm.running());
        let is_alive = |pid: &u32| shim::persist::Process::now(*pid).is_some();
        let helpers = self.helpers().into_iter().filter(is_alive);
        see("process", helpers.map(|pid| pid.to_string()).collect());
        see("cgroup", self.cgroups().iter().map(|path| path.display().to_string()).collect());
        left
    }

    /// The cgroups that a pod of the rig may have, in all hierarchies.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let root = Path::new("/sys/fs/cgroup");
        let hierarchies = names(root).into_iter().map(|name| root.join(name));
        let of = |hierarchy: PathBuf| {
            [self.cgroup.as_str(), "slipway/pod1", "kata_overhead/pod1"]
                .map(|path| hierarchy.join(path))
        };
        let paths = hierarchies.chain([root.to_owned()]).flat_map(of);
        paths.filter(|path| path.is_dir()).collect()
    }

    #[track_caller]
    pub fn nothing_is_left(&self) {
        assert_eq!(self.left(), Vec::<String>::new());
    }

    /// The same, for what goes on behind the last answer.
    pub async fn nothing_is_left_soon(&self) {
        let clean = async {
            while !self.left().is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, clean).await.is_err() {
            self.nothing_is_left();
        }
    }
}

/// The annotations of a container in pod `sandbox`.
pub fn inside(sandbox: &str) -> Value {
    json!({
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.sandbox-id": sandbox,
    })
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

impl Drop for Rig {
    /// After a test that failed: the host as it was.
    fn drop(&mut self) {
        for pid in self.helpers() {
            let Some(process) = shim::persist::Process::now(pid) else { continue };
            let pid = nix::unistd::Pid::from_raw(i32::try_from(process.pid).unwrap());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).ok();
        }
        HOME.get().into_iter().for_each(Origin::restore);
        // A process that was killed is in its cgroup for a moment more.
        for _ in 0..200 {
            self.cgroups().iter().for_each(|cgroup| drop(fs::remove_dir(cgroup)));
            if self.cgroups().is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        mounts::unmount_below(self.folder.path()).ok();
    }
}

/// Pairs of a map.
pub fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}
