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
use kata_agent_protocol::agent::RemoveContainerRequest;
use kata_config::{KataConfig, SharedFs};
use slipway_api::client::Client;
use tokio::sync::Mutex;
use vmm_glue::agent::Agent;
use vmm_glue::sharefs::{Virtiofsd, VirtiofsdSpec};
use vmm_glue::vsock::VsockDevice;
use vmm_glue::{AgentChannel, ShareSpec, Vm, VmSpec};

use crate::cgroup::{CgroupPath, Origin};
use crate::clock;
use crate::debts::Debts;
use crate::disks::Disks;
use crate::helpers;
use crate::host::Host;
use crate::network::{self, PodNetwork, Wish};
use crate::persist::{PodDir, Process, Record};
use crate::prepare;
use crate::share::{self, Share};
use crate::stages::{self, Stages};
use crate::undo::{self, Outcome};
use crate::vm;

/// How long the guest may take to write to its disks what it has in memory.
const FLUSH_LIMIT: Duration = Duration::from_secs(10);

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
    /// How many disks it may be given while it runs.
    pub disk_slots: u16,
}

/// What was made so far. Everything in it can be undone.
#[derive(Debug)]
pub struct Sandbox {
    id: String,
    dir: PodDir,
    share: Share,
    record: Mutex<Record>,
    debts: Debts,
    origin: Origin,
    switch: Client,
    virtiofsd: Option<Arc<Virtiofsd>>,
    vsock: Option<Arc<VsockDevice>>,
    vm: Option<Arc<dyn Vm>>,
    agent: Option<Agent>,
    disks: Arc<Disks>,
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
            debts: Debts::of(&host.debts),
            origin: Origin::of_self(),
            switch: Client::new(&order.config.slipway.socket),
            virtiofsd: None,
            vsock: None,
            vm: None,
            agent: None,
            disks: Arc::default(),
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
        undo::all(&record, &self.dir, &self.share, &self.debts)
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
        let inherited = self.debts.hand_over(&order.id, async |interfaces| {
            let mut record = self.record.lock().await;
            record.own_interfaces = interfaces;
            self.dir.write(&record)
        });
        inherited.await?;

        let began = clock::instant();
        let network = self.attach(order).await?;
        self.stages.add("AddCNI", began.elapsed());

        let began = clock::instant();
        self.join_cgroup(order.cgroup.as_deref()).await?;
        self.stages.add("Cgroup", began.elapsed());

        let began = clock::instant();
        let mut spec = self.attach_files(host, config, &network).await?;
        spec.disk_slots = order.disk_slots;
        self.stages.add("AttachIf", began.elapsed());

        let helpers = helpers::first_end(self.virtiofsd.clone(), self.vsock.clone());
        let guest = async {
            let began = clock::instant();
            let agent = self.boot(host, config, &spec).await?;
            self.stages.add("StartVM", began.elapsed());

            let began = clock::instant();
            prepare::guest(&agent, order, &network, self.has_share()).await?;
            self.stages.add("Guest", began.elapsed());
            Ok(agent)
        };
        self.agent = Some(helpers::while_they_serve(guest, helpers).await?);

        let text = serde_json::to_vec(&self.stages).context("Failed to encode the stages")?;
        let path = self.dir.path().join(stages::FILE);
        std::fs::write(&path, text).with_context(|| format!("Failed to write {}", path.display()))
    }

    /// Whether a folder is shared with the guest.
    pub fn has_share(&self) -> bool {
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
                let own = network::OWN_INTERFACE.to_owned();
                let is_inherited = {
                    let mut record = self.record.lock().await;
                    let is_inherited = record.own_interfaces.contains(&own);
                    if !is_inherited {
                        record.own_interfaces.push(own);
                        self.dir.write(&record)?;
                    }
                    is_inherited
                };
                let network = order.config.slipway.network.clone();
                let queue_pairs = u16::try_from(queue_pairs).ok();
                match network::attach(&self.switch, &order.id, network, queue_pairs).await {
                    Ok(attachment) => Ok(PodNetwork::of(&[attachment])),
                    Err(failed) => {
                        if failed.is_undone && !is_inherited {
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
            self.vsock = Some(Arc::new(device));
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
        let address = vm::agent_address(spec, self.vsock.as_deref(), port)?;
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

    /// What is plugged into the VM.
    pub fn disks(&self) -> Arc<Disks> {
        Arc::clone(&self.disks)
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

    /// Lets the guest unmount its disks: what containers wrote there is in its memory still. A guest
    /// that is gone cannot, and its file systems are as after a loss of power.
    async fn flush(&self, agent: &Agent) {
        for id in self.disks.containers().await {
            let mut request = RemoveContainerRequest::new();
            request.container_id.clone_from(&id);
            if let Err(error) = agent.remove_container(&request).await {
                tracing::warn!(%error, container = %id, "the guest did not unmount its disks");
            }
        }
    }

    /// Takes everything down. May be called again; what is gone is not missed.
    ///
    /// # Errors
    /// The first step that failed; the others were done.
    pub async fn down(&mut self) -> Result<()> {
        let mut outcome = Outcome(Ok(()));
        if let Some(agent) = self.agent.take()
            && tokio::time::timeout(FLUSH_LIMIT, self.flush(&agent)).await.is_err()
        {
            tracing::warn!(pod = %self.id, "the guest did not unmount its disks in time");
        }
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
        outcome.note(undo::all(&record, &self.dir, &self.share, &self.debts).await);
        outcome.0
    }
}
