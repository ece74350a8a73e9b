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
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::task::{self, JoinSet};

use super::containerd::{Containerd, Settings, Snapshotter};
use super::cri::Cri;
use super::cri::messages::{
    DnsConfig, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, PodSandboxConfig,
    PodSandboxMetadata, UInt64Value,
};
use super::oci_image;
use super::pod::{Pod, namespaces};
use super::private_host::PrivateHost;
use super::remains::{Cgroups, Places, Remains};
use super::runtime::{Parts, Runtime, SLIPWAY, stock_plugin};
use super::slipwayd::Slipwayd;

/// Where systemd's services find programs (systemd.exec(5)).
const SERVICES_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin";
/// Where shims keep what is a pod's: their sockets, ours its record, and what its guest sees; and where
/// an installed slipwayd has the sockets of the pods' ports.
const POD_FILES: [&str; 4] = [
    "/run/containerd/s",
    "/run/slipway/pods",
    "/run/kata-containers/shared/sandboxes",
    "/run/slipway/vm",
];
/// Where a node's own slipwayd has them, in the node's folder.
const NIC_SOCKETS: &str = "slipwayd/vm";

/// A node. Dropping it ends all that runs on it.
#[derive(Debug)]
pub struct Node {
    runtime: Runtime,
    config: Option<PathBuf>,
    pods_made: AtomicU32,
    // In this order: each needs those below it.
    containerd: Containerd,
    slipwayd: Option<Slipwayd>,
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
        Self::start_under(runtime, |_| Vec::new()).await
    }

    /// The same, with containerd and the switch under wrappers, see [`vmm_glue::VmSpec::wrapper`].
    /// `wrapper` is told who is to be wrapped.
    ///
    /// # Errors
    /// See [`Node::start`].
    pub async fn start_under(
        runtime: Runtime,
        mut wrapper: impl FnMut(&str) -> Vec<String>,
    ) -> Result<Self> {
        let folder = Self::make_folder()?;
        let host = PrivateHost::start().await?;
        let parts = runtime.start(&host, folder.path(), &mut wrapper).await?;
        let Parts { handler, programs, plugins, slipwayd } = parts;
        let config = handler.config.clone();
        let settings = Settings {
            folder: folder.path().to_owned(),
            programs,
            plugins,
            handlers: vec![handler],
            appended: String::new(),
            snapshotter: Snapshotter::Overlayfs,
            wrapper: wrapper("containerd"),
        };
        let node = Self::put_together(runtime, host, folder, settings).await?;
        Ok(Self { config, slipwayd, ..node })
    }

    /// Starts containerd on `host`, where slipway was installed, with the `PATH` of services, Debian's
    /// folder of plugins, and the text `appended` to its configuration. slipwayd is the caller's.
    ///
    /// # Errors
    /// See [`Node::start`].
    pub async fn installed(host: PrivateHost, folder: TempDir, appended: String) -> Result<Self> {
        let settings = Settings {
            folder: folder.path().to_owned(),
            programs: Vec::new(),
            plugins: ["slipway-cni", "loopback"].map(stock_plugin).into(),
            handlers: Vec::new(),
            appended,
            snapshotter: Snapshotter::Overlayfs,
            wrapper: ["env", "-i", SERVICES_PATH].map(str::to_owned).into(),
        };
        Self::put_together(SLIPWAY, host, folder, settings).await
    }

    /// A folder for a node.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make_folder() -> Result<TempDir> {
        let folder = tempfile::Builder::new().prefix("slipway-node-").tempdir();
        folder.context("Failed to make a folder for the node")
    }

    async fn put_together(
        runtime: Runtime,
        host: PrivateHost,
        folder: TempDir,
        settings: Settings,
    ) -> Result<Self> {
        let image = task::spawn_blocking(oci_image::ensure).await.context("No thread")??;
        let name = folder.path().file_name().context("The folder has no name")?;
        let cgroups = Cgroups::below(&name.to_string_lossy());
        let containerd = Containerd::start(&host, settings).await?;
        containerd.import(&host, &image.archive).await?;
        Ok(Self {
            runtime,
            config: None,
            pods_made: AtomicU32::new(0),
            containerd,
            slipwayd: None,
            host,
            cgroups,
            folder,
            image,
        })
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

    /// The switch, if the runtime has one.
    pub fn slipwayd(&self) -> Option<&Slipwayd> {
        self.slipwayd.as_ref()
    }

    /// Bytes that a pod received and sent. containerd 1.6 counts them at a device of the pod's network
    /// namespace; a pod with a VM has none there, and its switch counts.
    ///
    /// # Errors
    /// There is no counter.
    pub async fn traffic(&self, pod: &str) -> Result<(u64, u64)> {
        let Some(slipwayd) = &self.slipwayd else {
            let stats = self.cri().pod_stats(pod).await?;
            let device = stats.network.and_then(|network| network.default_interface);
            let device = device.context("There are no numbers of the pod's network")?;
            let value = |counter: Option<UInt64Value>| counter.map_or(0, |counter| counter.value);
            return Ok((value(device.rx_bytes), value(device.tx_bytes)));
        };
        let attachments = slipwayd.client().list_attachments(Some(pod)).await?.attachments;
        let attachment = attachments.first().context("The pod has no port")?;
        let stats = slipwayd.client().stats().await?;
        let port = stats.ports.into_iter().find(|stats| stats.port == attachment.port);
        let port = port.context("The pod's port has no counters")?;
        Ok((port.egress.delivered_bytes, port.ingress.received_bytes))
    }

    /// The last lines of the logs of containerd with its shims, and of the switch.
    pub fn log_tail(&self) -> String {
        let mut text = format!("containerd:\n{}", self.containerd.log_tail());
        if let Some(slipwayd) = &self.slipwayd {
            text += &format!("\nslipwayd:\n{}", slipwayd.log_tail());
        }
        text
    }

    /// The host: what reaches pods from outside runs there.
    pub fn host(&self) -> &PrivateHost {
        &self.host
    }

    /// The namespaces of all pods' networks, for `nsenter` on the host.
    ///
    /// # Errors
    /// The host is gone.
    pub fn pod_namespaces(&self) -> Result<Vec<PathBuf>> {
        let names = self.host.namespaces()?;
        Ok(names.iter().map(|name| Path::new("/run/netns").join(name)).collect())
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
        self.ctr_run_with("default", self.config.as_deref(), id)
    }

    /// The same in a namespace of containerd's, with another configuration of the runtime.
    pub fn ctr_run_with(&self, namespace: &str, config: Option<&Path>, id: &str) -> Command {
        let mut command = self.containerd.ctr(&self.host, namespace);
        command.args(["run", "--rm", "--runtime", self.runtime.runtime_type]);
        command.args(["--cgroup", &self.cgroups.path(id)]);
        if let Some(config) = config {
            command.arg("--runtime-config-path").arg(config);
        }
        command
    }

    /// The runtime's configuration file, if it takes one.
    pub fn config(&self) -> Option<&Path> {
        self.config.as_deref()
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
        Ok(Pod::new(self, id, address, config))
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
        self.containerd.stop().await?;
        match self.slipwayd {
            Some(slipwayd) => slipwayd.stop_on_host().await,
            None => Ok(()),
        }
    }

    /// What is left on the host, once it is nothing or after a few seconds.
    ///
    /// # Errors
    /// The host is gone.
    pub async fn settle(&self) -> Result<Remains> {
        let mut folders: Vec<_> = POD_FILES.iter().map(PathBuf::from).collect();
        folders.push(self.folder().join(NIC_SOCKETS));
        Remains::settle(&Places {
            host: &self.host,
            cgroups: &self.cgroups,
            devices: self.runtime.network.devices_of_node().to_vec(),
            folders,
            switch: self.slipwayd.as_ref().map(Slipwayd::client),
        })
        .await
    }
}
