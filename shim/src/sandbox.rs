//! A pod's VM with all that belongs to it: made step by step, and taken down in reverse.
//!
//! ```text
//!  AddCNI     ports of the switch                      give back what we attached ourselves
//!  Cgroup     sandbox's cgroup, we join it             leave and remove it
//!  AttachIf   share, virtiofsd, vsock                  end, unmount, remove
//!  StartVM    VMM boots, agent answers                 kill
//!  Guest      sandbox, interfaces, routes
//! ```
//! The record that `delete` needs is written before each step. [`Sandbox::down`] undoes whatever was
//! done, from a step that failed as from a running pod; it goes on after a failure and tells the
//! first.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use kata_agent_protocol::agent::{
    AddARPNeighborsRequest, CreateSandboxRequest, KernelModule, Storage, UpdateInterfaceRequest,
    UpdateRoutesRequest,
};
use kata_agent_protocol::protobuf::MessageField;
use kata_config::{KataConfig, SharedFs};
use slipway_api::client::Client;
use tokio::sync::Mutex;
use vmm_glue::agent::Agent;
use vmm_glue::sharefs::{Virtiofsd, VirtiofsdSpec};
use vmm_glue::vsock::VsockDevice;
use vmm_glue::{AgentChannel, ShareSpec, Vm, VmSpec};

use crate::cgroup::{CgroupPath, Origin};
use crate::clock;
use crate::guest::SHM;
use crate::host::Host;
use crate::network::{self, PodNetwork, Wish};
use crate::persist::{PodDir, Process, Record};
use crate::share::{self, Share};
use crate::stages::{self, Stages};
use crate::vm;

/// The size of `/dev/shm` in bytes, as container engines have it.
const SHM_BYTES: u64 = 64 << 20;

/// What a sandbox is started with.
#[derive(Debug)]
pub struct Order {
    /// Its id.
    pub id: String,
    /// The configuration, annotations applied.
    pub config: KataConfig,
    /// Where its network comes from.
    pub network: Wish,
    /// `cgroupsPath` of its specification.
    pub cgroup: Option<PathBuf>,
    /// Its hostname.
    pub hostname: String,
    /// Lines of resolv.conf that the engine gives it; empty: those of its network.
    pub resolv_conf: Vec<String>,
}

/// What was made so far. Everything in it can be undone.
#[derive(Debug)]
pub struct Sandbox {
    id: String,
    dir: PodDir,
    share: Share,
    record: Mutex<Record>,
    origin: Origin,
    switch: Client,
    virtiofsd: Option<Arc<Virtiofsd>>,
    vsock: Option<VsockDevice>,
    vm: Option<Arc<dyn Vm>>,
    agent: Option<Agent>,
    /// The VMM's pid, once it runs.
    pub pid: u32,
    /// What the pod is to be.
    pub config: Arc<KataConfig>,
    /// How long its start took.
    pub stages: Stages,
}

impl Sandbox {
    /// Starts a pod's VM and prepares its guest, unless it is given up meanwhile.
    ///
    /// # Errors
    /// The step that failed, with its causes; everything before it is undone.
    pub async fn up(
        host: &Host,
        order: &Order,
        given_up: impl Future<Output = ()>,
    ) -> Result<Self> {
        let mut sandbox = Self {
            id: order.id.clone(),
            dir: PodDir::of(&host.pods, &order.id),
            share: Share::of(&host.shares, &order.id),
            record: Mutex::default(),
            origin: Origin::of_self(),
            switch: Client::new(&order.config.slipway.socket),
            virtiofsd: None,
            vsock: None,
            vm: None,
            agent: None,
            pid: 0,
            config: Arc::new(order.config.clone()),
            stages: Stages::begin(),
        };
        sandbox.claim().await?;
        let outcome = tokio::select! {
            outcome = sandbox.steps(host, order) => outcome,
            () = given_up => Err(anyhow::anyhow!("The pod was ended while it was started")),
        };
        match outcome {
            Ok(()) => Ok(sandbox),
            Err(error) => {
                if let Err(undo) = sandbox.down().await {
                    tracing::error!(error = format!("{undo:#}"), "a failed start left something");
                }
                Err(error)
            }
        }
    }

    /// Makes sure that the sandbox's places are ours: what a dead shim left there is undone, a living
    /// one's is not touched.
    async fn claim(&self) -> Result<()> {
        let Some(record) = self.dir.read()? else { return Ok(()) };
        let others = |shim: &&Process| shim.pid != std::process::id() && shim.is_alive();
        if let Some(shim) = record.shim.as_ref().filter(others) {
            anyhow::bail!(
                "There is a pod {} on this host, in some namespace of containerd; its shim is \
                 process {}: delete it first, or choose another name",
                self.id,
                shim.pid
            );
        }
        tracing::warn!(pod = %self.id, "what an earlier pod of this name left is cleaned up");
        let switch = record.switch.clone().map(Client::new);
        undo(&record, &self.dir, &self.share, switch.as_ref())
            .await
            .with_context(|| format!("Failed to clean up after an earlier pod {}", self.id))
    }

    async fn steps(&mut self, host: &Host, order: &Order) -> Result<()> {
        let config = &order.config;
        self.dir.create()?;
        {
            let mut record = self.record.lock().await;
            record.id.clone_from(&order.id);
            record.engine.clone_from(&host.engine);
            record.shim = Process::now(std::process::id());
            record.switch = Some(config.slipway.socket.clone());
            self.dir.write(&record)?;
        }

        let began = clock::instant();
        let network = self.attach(order).await?;
        self.stages.add("AddCNI", began.elapsed());

        let began = clock::instant();
        self.join_cgroup(order.cgroup.as_deref()).await?;
        self.stages.add("Cgroup", began.elapsed());

        let began = clock::instant();
        let spec = self.attach_files(host, config, &network).await?;
        self.stages.add("AttachIf", began.elapsed());

        let began = clock::instant();
        let agent = self.boot(host, config, &spec).await?;
        self.stages.add("StartVM", began.elapsed());

        let began = clock::instant();
        prepare_guest(&agent, order, &network, self.has_share()).await?;
        self.stages.add("Guest", began.elapsed());
        self.agent = Some(agent);

        let text = serde_json::to_vec(&self.stages).context("Failed to encode the stages")?;
        let path = self.dir.path().join(stages::FILE);
        std::fs::write(&path, text).with_context(|| format!("Failed to write {}", path.display()))
    }

    fn has_share(&self) -> bool {
        self.config.hypervisor.shared_fs == SharedFs::VirtioFs
    }

    async fn attach(&self, order: &Order) -> Result<PodNetwork> {
        let queue_pairs = order.config.hypervisor.network_queues;
        let folder = &order.config.runtime.dan_conf;
        if let Some(dan) = network::dan(folder, &order.id, queue_pairs)? {
            return Ok(dan);
        }
        match &order.network {
            Wish::None => Ok(PodNetwork::default()),
            Wish::Cni { netns } => {
                let attachments = network::attachments(&self.switch, &order.id, netns).await?;
                Ok(PodNetwork::of(&attachments))
            }
            Wish::Own => {
                {
                    let mut record = self.record.lock().await;
                    record.own_interfaces.push(network::OWN_INTERFACE.to_owned());
                    self.dir.write(&record)?;
                }
                let network = order.config.slipway.network.clone();
                let queue_pairs = u16::try_from(queue_pairs).ok();
                match network::attach(&self.switch, &order.id, network, queue_pairs).await {
                    Ok(attachment) => Ok(PodNetwork::of(&[attachment])),
                    Err(failed) => {
                        if failed.is_undone {
                            self.record.lock().await.own_interfaces.clear();
                        }
                        Err(failed.error)
                    }
                }
            }
        }
    }

    async fn join_cgroup(&self, path: Option<&Path>) -> Result<()> {
        let cgroup = match self.config.runtime.sandbox_cgroup_only {
            true => CgroupPath::of(path, &self.id),
            false => CgroupPath::overhead(&self.id),
        };
        {
            let mut record = self.record.lock().await;
            record.cgroup = Some(cgroup.clone());
            self.dir.write(&record)?;
        }
        // We join before anything is started, so everything that is started is in it.
        cgroup.join(std::process::id())
    }

    async fn attach_files(
        &mut self,
        host: &Host,
        config: &KataConfig,
        network: &PodNetwork,
    ) -> Result<VmSpec> {
        let mut spec = {
            let accel = host.accel(config).await?;
            vm::spec(&self.id, self.dir.path(), config, accel)?
        };
        spec.nics.clone_from(&network.nics);
        for nic in &spec.nics {
            let folder = nic.socket.parent().unwrap_or(Path::new("/"));
            std::fs::create_dir_all(folder)
                .with_context(|| format!("Failed to make the folder {}", folder.display()))?;
        }
        let channel = vm::channel(self.dir.path(), config)?;
        if let AgentChannel::VhostUserVsock { socket } = &channel {
            let device = vm::vsock_device(&self.id, self.dir.path(), socket, config).await?;
            self.started(device.pid()).await?;
            self.vsock = Some(device);
        }
        spec.agent = Some(channel);
        if self.has_share() {
            self.share.create()?;
            self.share.add_sandbox_binds(&config.runtime.sandbox_bind_mounts)?;
            let socket = self.dir.path().join("virtiofsd.sock");
            let program = match &config.hypervisor.virtio_fs_daemon {
                Some(program) => program.clone(),
                None => Virtiofsd::find()?,
            };
            let name = format!("virtiofsd of {}", self.id);
            let mut served = VirtiofsdSpec::new(name, program, self.share.served(), &socket);
            served.cache = vm::cache_mode(config.hypervisor.virtio_fs_cache);
            served.extra_args.clone_from(&config.hypervisor.virtio_fs_extra_args);
            let virtiofsd = Virtiofsd::spawn(served).await?;
            self.started(virtiofsd.pid()).await?;
            self.virtiofsd = Some(Arc::new(virtiofsd));
            let mut share = ShareSpec::new(share::TAG, socket);
            share.queue_size = config.hypervisor.virtio_fs_queue_size.try_into().unwrap_or(1024);
            spec.shares.push(share);
        }
        Ok(spec)
    }

    async fn boot(&mut self, host: &Host, config: &KataConfig, spec: &VmSpec) -> Result<Agent> {
        let vmm = host.vmm(config).await?;
        let vm: Arc<dyn Vm> = vmm.boot(spec).await?.into();
        let info = vm.info().await?;
        self.vm = Some(Arc::clone(&vm));
        self.pid = info.pid;
        self.started(info.pid).await?;
        let port = config.agent.server_port;
        let address = vm::agent_address(spec, self.vsock.as_ref(), port)?;
        let ended = {
            let vm = Arc::clone(&vm);
            async move { vm.wait().await.to_string() }
        };
        let limit = config.agent.dial_timeout;
        let agent = Agent::connect(&address, limit, ended).await.with_context(|| {
            let tail = vm.console().tail(10);
            let tail = if tail.trim().is_empty() { "nothing".to_owned() } else { tail };
            format!("The guest's agent does not answer; the guest's console says: {tail}")
        })?;
        Ok(agent)
    }

    async fn started(&self, pid: u32) -> Result<()> {
        let mut record = self.record.lock().await;
        record.processes.extend(Process::now(pid));
        self.dir.write(&record)
    }

    /// The agent in the guest.
    ///
    /// # Errors
    /// The sandbox is down.
    pub fn agent(&self) -> Result<&Agent> {
        self.agent.as_ref().context("The pod's VM is gone")
    }

    /// The VM.
    ///
    /// # Errors
    /// The sandbox is down.
    pub fn vm(&self) -> Result<&Arc<dyn Vm>> {
        self.vm.as_ref().context("The pod's VM is gone")
    }

    /// What serves the share, if there is one.
    pub fn virtiofsd(&self) -> Option<Arc<Virtiofsd>> {
        self.virtiofsd.clone()
    }

    /// The folder shared with the guest.
    ///
    /// # Errors
    /// Sharing is switched off.
    pub fn share(&self) -> Result<&Share> {
        self.has_share().then_some(&self.share).context(
            "The configuration says shared_fs = \"none\", so a container's files cannot reach the \
             guest; use \"virtio-fs\"",
        )
    }

    /// Takes everything down. May be called again; what is gone is not missed.
    ///
    /// # Errors
    /// The first step that failed; the others were done.
    pub async fn down(&mut self) -> Result<()> {
        let mut outcome = Outcome(Ok(()));
        self.agent = None;
        if let Some(vm) = self.vm.take() {
            outcome.note(vm.stop(Duration::ZERO).await.map(drop).map_err(Into::into));
        }
        if let Some(virtiofsd) = self.virtiofsd.take() {
            outcome.note(virtiofsd.stop().await.map(drop).map_err(Into::into));
        }
        if let Some(vsock) = self.vsock.take() {
            outcome.note(vsock.stop().await.map(drop).map_err(Into::into));
        }
        self.origin.restore();
        let record = self.record.lock().await.clone();
        outcome.note(undo(&record, &self.dir, &self.share, Some(&self.switch)).await);
        outcome.0
    }
}

/// The first of several failures.
struct Outcome(Result<()>);

impl Outcome {
    fn note(&mut self, step: Result<()>) {
        if let Err(error) = step {
            tracing::error!(error = format!("{error:#}"), "a step of taking a pod down failed");
            if self.0.is_ok() {
                self.0 = Err(error);
            }
        }
    }
}

/// Undoes what a record and the places of a sandbox know of: after a crash this is all there is.
///
/// # Errors
/// The first step that failed; the others were done, and the record stays.
pub async fn undo(
    record: &Record,
    dir: &PodDir,
    share: &Share,
    switch: Option<&Client>,
) -> Result<()> {
    let mut outcome = Outcome(Ok(()));
    for process in record.processes.iter().rev().filter(|process| process.is_alive()) {
        outcome.note(kill(process).await);
    }
    outcome.note(share.remove());
    if let Some(switch) = switch {
        for interface in &record.own_interfaces {
            outcome.note(network::detach(switch, &record.id, interface).await);
        }
    }
    if let Some(cgroup) = &record.cgroup {
        outcome.note(remove_cgroup(cgroup).await);
    }
    if outcome.0.is_ok() {
        outcome.note(dir.remove());
    }
    outcome.0
}

/// Between two tries to remove a cgroup, and how many there are: processes that nobody waits for, such
/// as those that the kernel killed with their shim, may take a while to go.
const CGROUP_RETRY: Duration = Duration::from_millis(100);
const CGROUP_TRIES: u32 = 20;

/// Kills what is left in a cgroup, and removes it.
async fn remove_cgroup(cgroup: &CgroupPath) -> Result<()> {
    for _ in 1..CGROUP_TRIES {
        if cgroup.remove().is_ok() {
            return Ok(());
        }
        tokio::time::sleep(CGROUP_RETRY).await;
    }
    cgroup.remove()
}

/// How long a killed process may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(3);

/// Kills a process and waits until it is gone.
///
/// # Errors
/// It does not end.
pub async fn kill(process: &Process) -> Result<()> {
    use nix::sys::signal::{Signal, kill};
    let pid = i32::try_from(process.pid).context("A process id beyond 2^31")?;
    // Whether it is gone shows below.
    kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).ok();
    let gone = async {
        while process.is_alive() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(KILL_LIMIT, gone).await.with_context(|| {
        format!("Process {pid} was killed, but does not end; look at /proc/{pid}/stack")
    })
}

/// The calls between the agent's first answer and the first container. Interfaces do not wait for
/// the sandbox, nor the sandbox for them.
async fn prepare_guest(
    agent: &Agent,
    order: &Order,
    network: &PodNetwork,
    has_share: bool,
) -> Result<()> {
    let sandbox = create_sandbox(agent, order, network, has_share);
    let interfaces = async {
        for interface in &network.interfaces {
            let mut request = UpdateInterfaceRequest::new();
            request.interface = MessageField::some(interface.clone());
            agent.update_interface(&request).await.with_context(|| {
                format!("Failed to set up the guest's interface {}", interface.name)
            })?;
        }
        if !network.neighbours.ARPNeighbors.is_empty() {
            let mut request = AddARPNeighborsRequest::new();
            request.neighbors = MessageField::some(network.neighbours.clone());
            agent
                .add_arp_neighbors(&request)
                .await
                .context("Failed to set the guest's neighbours")?;
        }
        if !network.routes.Routes.is_empty() {
            let mut request = UpdateRoutesRequest::new();
            request.routes = MessageField::some(network.routes.clone());
            agent.update_routes(&request).await.context("Failed to set the guest's routes")?;
        }
        Ok(())
    };
    tokio::try_join!(sandbox, interfaces).map(drop)
}

async fn create_sandbox(
    agent: &Agent,
    order: &Order,
    network: &PodNetwork,
    has_share: bool,
) -> Result<()> {
    let mut request = CreateSandboxRequest::new();
    request.sandbox_id.clone_from(&order.id);
    // The kernel's limit (gethostname(2)).
    request.hostname = order.hostname.chars().take(64).collect();
    request.dns.clone_from(match order.resolv_conf.is_empty() {
        true => &network.resolv_conf,
        false => &order.resolv_conf,
    });
    request.guest_hook_path.clone_from(&order.config.hypervisor.guest_hook_path);
    for line in &order.config.agent.kernel_modules {
        let mut words = line.split_ascii_whitespace().map(str::to_owned);
        let mut module = KernelModule::new();
        module.name = words.next().unwrap_or_default();
        module.parameters = words.collect();
        request.kernel_modules.push(module);
    }
    if has_share {
        let mut storage = Storage::new();
        storage.driver = "virtio-fs".to_owned();
        storage.source = share::TAG.to_owned();
        storage.fstype = "virtiofs".to_owned();
        storage.mount_point = share::GUEST.to_owned();
        request.storages.push(storage);
    }
    let mut shm = Storage::new();
    shm.driver = "ephemeral".to_owned();
    shm.source = "shm".to_owned();
    shm.fstype = "tmpfs".to_owned();
    shm.mount_point = SHM.to_owned();
    shm.options = ["noexec", "nosuid", "nodev", "mode=1777"].map(str::to_owned).to_vec();
    shm.options.push(format!("size={SHM_BYTES}"));
    request.storages.push(shm);
    agent.create_sandbox(&request).await.context("Failed to create the sandbox in the guest")?;
    Ok(())
}
