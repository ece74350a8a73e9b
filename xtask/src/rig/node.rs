//! A node as Kubernetes knows it: a host with containerd, a network for pods, and an image.
//!
//! ```text
//!  Node ---- Pod ---- Container        each a handle on what containerd keeps
//!   |-- Containerd (CRI, ctr)
//!   |-- PrivateHost                    mounts, network and processes of all the above
//!   |-- cgroups                        the machine's, below one of our own
//!   `-- folder                         all files
//! ```
//! Which runtime serves the pods is a [`Runtime`], a line of a table; nothing else differs.
//!
//! [`Node::end`] removes all pods through the CRI and then looks for what the runtime left. A node that is
//! dropped takes everything with it unseen.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::task::{self, JoinSet};
use tokio::time::{sleep, timeout};

use super::containerd::{Containerd, Handler, Settings, Snapshotter};
use super::cri::Cri;
use super::cri::messages::{
    ContainerConfig, ContainerMetadata, ContainerState, DnsConfig, ImageSpec, KeyValue,
    LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext,
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, Mount, NamespaceMode, NamespaceOption,
    PodSandboxConfig, PodSandboxMetadata,
};
use super::private_host::PrivateHost;
use super::remains::{Cgroups, Remains};
use super::{oci_image, write};

/// Where Debian puts the stock CNI plugins.
const STOCK_PLUGINS: &str = "/usr/lib/cni";
/// For what takes seconds on an idle machine.
const LIMIT: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(20);

/// Who runs the pods of a node, and what tests must know of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Runtime {
    /// What pods ask for, and what the shim's program is named after.
    pub handler: &'static str,
    /// For `ctr run --runtime`.
    pub runtime_type: &'static str,
    /// Who connects the pods.
    pub network: Network,
    /// Each pod has a kernel of its own.
    pub has_vm: bool,
}

/// Who connects the pods of a runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Stock plugins: a bridge and a pair of veth devices for each pod.
    Bridge,
}

/// What every containerd can do; it tests the tests.
pub const RUNC: Runtime = Runtime {
    handler: "runc",
    runtime_type: "io.containerd.runc.v2",
    network: Network::Bridge,
    has_vm: false,
};

impl Network {
    /// The address of the host in the pods' network.
    pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);

    /// The device that the first pod of a node makes, and that stays: it is the node's.
    const fn device_of_node(self) -> &'static str {
        match self {
            Self::Bridge => "slipway-br",
        }
    }

    fn plugins(self) -> &'static [&'static str] {
        match self {
            Self::Bridge => &["bridge", "host-local", "loopback"],
        }
    }

    /// The CNI configuration list. `folder` is for the plugins' own files.
    fn conflist(self, folder: &Path) -> String {
        let Self::Bridge = self;
        let ipam = json!({
            "type": "host-local",
            "dataDir": folder.join("addresses"),
            "ranges": [[{"subnet": "10.88.0.0/16"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        });
        let bridge = json!({
            "type": "bridge",
            "bridge": self.device_of_node(),
            "isGateway": true,
            "ipam": ipam,
        });
        json!({"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge]}).to_string()
    }
}

/// A node. Dropping it ends all that runs on it.
#[derive(Debug)]
pub struct Node {
    runtime: Runtime,
    pods_made: AtomicU32,
    // In this order: each needs those below it.
    containerd: Containerd,
    host: PrivateHost,
    cgroups: Cgroups,
    folder: TempDir,
    image: oci_image::Files,
}

impl Node {
    /// Starts containerd with `runtime` on a host of its own, and imports the image.
    ///
    /// # Errors
    /// We are not root, packages are missing, or one of the parts does not start, in its words.
    pub async fn start(runtime: Runtime) -> Result<Self> {
        let image = task::spawn_blocking(oci_image::ensure).await.context("No thread")??;
        let folder = tempfile::Builder::new().prefix("slipway-node-").tempdir();
        let folder = folder.context("Failed to make a folder for the node")?;
        let name = folder.path().file_name().context("The folder has no name")?;
        let cgroups = Cgroups::below(&name.to_string_lossy());
        let host = PrivateHost::start().await?;
        let plugins = runtime.network.plugins().iter();
        let handler = Handler {
            name: runtime.handler,
            runtime_type: runtime.runtime_type,
            network: runtime.network.conflist(folder.path()),
        };
        let settings = Settings {
            folder: folder.path().to_owned(),
            programs: Vec::new(),
            plugins: plugins.map(|plugin| Path::new(STOCK_PLUGINS).join(plugin)).collect(),
            handlers: vec![handler],
            snapshotter: Snapshotter::Overlayfs,
            environment: Vec::new(),
        };
        let containerd = Containerd::start(&host, settings).await?;
        containerd.import(&host, &image.archive).await?;
        let pods_made = AtomicU32::new(0);
        Ok(Self { runtime, pods_made, containerd, host, cgroups, folder, image })
    }

    /// Who runs the pods.
    pub fn runtime(&self) -> Runtime {
        self.runtime
    }

    /// What a kubelet asks.
    pub fn cri(&self) -> &Cri {
        self.containerd.cri()
    }

    /// containerd, to be ended and started again.
    pub fn containerd(&self) -> &Containerd {
        &self.containerd
    }

    /// The last lines of containerd's log.
    pub fn log_tail(&self) -> String {
        self.containerd.log_tail()
    }

    /// The host: what reaches pods from outside runs there.
    pub fn host(&self) -> &PrivateHost {
        &self.host
    }

    /// For the caller's files, too.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// `ctr` on the containers of the CRI.
    pub fn ctr(&self) -> Command {
        self.containerd.ctr(&self.host, "k8s.io")
    }

    /// `ctr run` of the node's runtime, up to its flags; image, id and command are to follow.
    pub fn ctr_run(&self, id: &str) -> Command {
        let mut command = self.containerd.ctr(&self.host, "default");
        command.args(["run", "--rm", "--runtime", self.runtime.runtime_type]);
        command.args(["--cgroup", &self.cgroups.path(id)]);
        command
    }

    /// busybox on the host, with the applet and its arguments to follow: it pings, serves and fetches
    /// there as in the pods.
    pub fn host_busybox(&self) -> Command {
        self.host.command(&self.image.busybox)
    }

    /// What to ask for a pod of that name.
    pub fn pod_config(&self, name: &str) -> PodSandboxConfig {
        let number = self.pods_made.fetch_add(1, Ordering::Relaxed);
        let metadata = PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("{name}-{number}"),
            namespace: "default".to_owned(),
            attempt: 0,
        };
        // A kubelet always says where names are looked up.
        let dns = DnsConfig {
            servers: vec!["10.96.0.10".to_owned()],
            searches: vec!["default.svc.cluster.local".to_owned()],
            options: vec!["ndots:5".to_owned()],
        };
        PodSandboxConfig {
            metadata: Some(metadata),
            hostname: name.to_owned(),
            log_directory: self.folder().join("logs").join(name).display().to_string(),
            dns_config: Some(dns),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.cgroups.path(""),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: namespaces(NamespaceMode::Container),
                }),
            }),
            ..PodSandboxConfig::default()
        }
    }

    /// Starts a pod of that name.
    ///
    /// # Errors
    /// As containerd says.
    pub async fn pod(&self, name: &str) -> Result<Pod<'_>> {
        self.pod_with(self.pod_config(name)).await
    }

    /// Starts the pod that `config` describes.
    ///
    /// # Errors
    /// As containerd says.
    pub async fn pod_with(&self, config: PodSandboxConfig) -> Result<Pod<'_>> {
        fs::create_dir_all(&config.log_directory).context("Failed to make the logs' folder")?;
        let id = self.cri().run_pod(config.clone(), self.runtime.handler).await?;
        self.started(id, config).await
    }

    /// Starts `count` pods at once.
    ///
    /// # Errors
    /// As containerd says of the first that fails.
    pub async fn pods(&self, count: usize) -> Result<Vec<Pod<'_>>> {
        let mut starting = JoinSet::new();
        for number in 0..count {
            let config = self.pod_config(&format!("pod{number}"));
            fs::create_dir_all(&config.log_directory)?;
            let (cri, handler) = (self.cri().clone(), self.runtime.handler);
            starting.spawn(async move {
                let id = cri.run_pod(config.clone(), handler).await?;
                anyhow::Ok((id, config))
            });
        }
        let mut pods = Vec::new();
        while let Some(started) = starting.join_next().await {
            let (id, config) = started.context("A start panicked")??;
            pods.push(self.started(id, config).await?);
        }
        Ok(pods)
    }

    async fn started(&self, id: String, config: PodSandboxConfig) -> Result<Pod<'_>> {
        let network = self.cri().pod_status(&id).await?.network;
        let ip = network.context("The pod has no network")?.ip;
        let address = ip.parse().with_context(|| format!("'{ip}' is no address"))?;
        Ok(Pod { node: self, id, address, config })
    }

    /// Removes all pods, looks for what is left of them, and ends everything.
    ///
    /// # Errors
    /// Something cannot be removed, or something is left: each by its name.
    pub async fn end(self) -> Result<()> {
        for pod in self.cri().pods().await? {
            self.cri().stop_pod(&pod.id).await?;
            self.cri().remove_pod(&pod.id).await?;
        }
        let remains = self.settle().await?;
        ensure!(remains.is_empty(), "Something is left of the pods: {remains}");
        self.containerd.stop().await
    }

    /// What is left on the host, once it is nothing or after a few seconds.
    ///
    /// # Errors
    /// The host is gone.
    pub async fn settle(&self) -> Result<Remains> {
        let devices = ["lo", self.runtime.network.device_of_node()];
        Remains::settle(&self.host, &self.cgroups, &devices).await
    }
}

/// A pod. Dropping the handle leaves it to its node.
#[derive(Debug)]
pub struct Pod<'a> {
    node: &'a Node,
    id: String,
    address: Ipv4Addr,
    config: PodSandboxConfig,
}

impl<'a> Pod<'a> {
    /// By which containerd knows it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where it can be reached.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Makes and starts a container.
    ///
    /// # Errors
    /// As containerd says.
    pub async fn run(&self, spec: ContainerSpec) -> Result<Container<'a>> {
        let cri = self.node.cri();
        let log = Path::new(&self.config.log_directory).join(&spec.0.log_path);
        let id = cri.create_container(&self.id, spec.0, self.config.clone()).await?;
        cri.start_container(&id).await?;
        Ok(Container { node: self.node, id, log })
    }

    /// Makes and starts a container that waits until it is killed, for commands to run in.
    ///
    /// # Errors
    /// As containerd says.
    pub async fn idle(&self, name: &str) -> Result<Container<'a>> {
        self.run(ContainerSpec::new(name, &["sleep", "1000000"])).await
    }

    /// Stops and removes it.
    ///
    /// # Errors
    /// As containerd says.
    pub async fn remove(self) -> Result<()> {
        self.node.cri().stop_pod(&self.id).await?;
        self.node.cri().remove_pod(&self.id).await
    }
}

/// What to ask for a container.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerSpec(pub ContainerConfig);

impl ContainerSpec {
    /// Runs `command` of the image of all pods; it logs to `<name>.log`.
    pub fn new(name: &str, command: &[&str]) -> Self {
        let linux = LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: namespaces(NamespaceMode::Container),
            }),
            ..LinuxContainerConfig::default()
        };
        Self(ContainerConfig {
            linux: Some(linux),
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(ImageSpec { image: oci_image::NAME.to_owned() }),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            log_path: format!("{name}.log"),
            ..ContainerConfig::default()
        })
    }

    /// Runs the shell `script`.
    pub fn shell(name: &str, script: &str) -> Self {
        Self::new(name, &["sh", "-c", script])
    }

    /// Sets what it may consume.
    #[must_use]
    pub fn limits(mut self, resources: LinuxContainerResources) -> Self {
        self.0.linux.get_or_insert_default().resources = Some(resources);
        self
    }

    /// Makes it see the processes of its pod. The pod must be asked for the same.
    #[must_use]
    pub fn sharing_processes(mut self) -> Self {
        let context = self.0.linux.get_or_insert_default().security_context.get_or_insert_default();
        context.namespace_options = namespaces(NamespaceMode::Pod);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.0.envs.push(KeyValue { key: key.to_owned(), value: value.to_owned() });
        self
    }

    /// Shows the host's file or folder `from` as `to`.
    #[must_use]
    pub fn mount(mut self, from: &Path, to: &str, readonly: bool) -> Self {
        let host_path = from.display().to_string();
        self.0.mounts.push(Mount { container_path: to.to_owned(), host_path, readonly });
        self
    }
}

/// A container. Dropping the handle leaves it to its pod.
#[derive(Debug)]
pub struct Container<'a> {
    node: &'a Node,
    id: String,
    log: PathBuf,
}

/// A line that a container printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// `stdout` or `stderr`.
    pub stream: String,
    /// Without its end.
    pub text: String,
}

impl Container<'_> {
    /// By which containerd knows it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Runs a command in it, and returns how that ended.
    ///
    /// # Errors
    /// As containerd says; a command that fails is no error here.
    pub async fn exec(&self, command: &[&str]) -> Result<Executed> {
        let answer = self.node.cri().exec(&self.id, command, LIMIT).await?;
        Ok(Executed {
            code: answer.exit_code,
            stdout: String::from_utf8_lossy(&answer.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&answer.stderr).into_owned(),
        })
    }

    /// Runs a shell's `script` in it, and returns what that printed.
    ///
    /// # Errors
    /// As containerd says; the script failed.
    pub async fn shell(&self, script: &str) -> Result<String> {
        let executed = self.exec(&["sh", "-c", script]).await?;
        ensure!(executed.code == 0, "{script}: {executed:?}");
        Ok(executed.stdout)
    }

    /// Returns once it has ended, with its exit code.
    ///
    /// # Errors
    /// As containerd says; it does not end.
    pub async fn ended(&self) -> Result<i32> {
        let ended = async {
            loop {
                let status = self.node.cri().container_status(&self.id).await?;
                if status.state() == ContainerState::Exited {
                    return Ok(status.exit_code);
                }
                sleep(PAUSE).await;
            }
        };
        timeout(LIMIT, ended).await.with_context(|| format!("It did not end within {LIMIT:?}"))?
    }

    /// What it has printed so far.
    ///
    /// # Errors
    /// The file cannot be read, or is not what the CRI demands.
    pub fn log(&self) -> Result<Vec<LogLine>> {
        let text = match fs::read_to_string(&self.log) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.with_context(|| format!("Failed to read {}", self.log.display()))?,
        };
        // The last line may be in the making.
        let (whole, _) = text.rsplit_once('\n').unwrap_or_default();
        whole.lines().map(LogLine::parse).collect()
    }

    /// Returns once it has printed a line with `text`.
    ///
    /// # Errors
    /// It does not.
    pub async fn printed(&self, text: &str) -> Result<()> {
        let printed = async {
            while !self.log()?.iter().any(|line| line.text.contains(text)) {
                sleep(PAUSE).await;
            }
            Ok(())
        };
        match timeout(LIMIT, printed).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let log = self.log()?;
                let last = &log[log.len().saturating_sub(5)..];
                bail!("'{text}' was not printed within {LIMIT:?}; the last lines are {last:?}")
            }
        }
    }

    /// Ends it by its stop signal, and by SIGKILL after `grace`.
    ///
    /// # Errors
    /// As containerd says.
    pub async fn stop(&self, grace: Duration) -> Result<()> {
        self.node.cri().stop_container(&self.id, grace).await
    }

    /// Removes it.
    ///
    /// # Errors
    /// As containerd says.
    pub async fn remove(self) -> Result<()> {
        self.node.cri().remove_container(&self.id).await
    }
}

/// What a kubelet asks for: network and shared memory are the pod's, `processes` are as said.
pub fn namespaces(processes: NamespaceMode) -> Option<NamespaceOption> {
    let shared = NamespaceMode::Pod.into();
    Some(NamespaceOption { network: shared, pid: processes.into(), ipc: shared })
}

/// How a command in a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executed {
    /// Its exit code.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

impl LogLine {
    /// Reads a line of the CRI's log format: time, stream, tag, text.
    fn parse(line: &str) -> Result<Self> {
        let mut fields = line.splitn(4, ' ');
        let (_time, stream, tag, text) =
            (fields.next(), fields.next(), fields.next(), fields.next());
        match (stream, tag, text) {
            (Some(stream), Some("F" | "P"), Some(text)) => {
                Ok(Self { stream: stream.to_owned(), text: text.to_owned() })
            }
            _ => bail!("No line of a container's log: {line:?}"),
        }
    }
}

/// Writes a file for a container to see.
///
/// # Errors
/// The file cannot be written.
pub fn write_volume(folder: &Path, name: &str, contents: &str) -> Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let path = folder.join(name);
    write(&path, contents)?;
    Ok(path)
}
