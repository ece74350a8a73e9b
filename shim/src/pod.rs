//! The pod: the sandbox, its containers, and what may be asked of them.
//!
//! ```text
//!                first container created            its first process ends, or the VM dies
//!  Empty ---------------------------------> Up ----------------------------------------> Down
//! ```
//! The first container is the sandbox of a Kubernetes pod, or the only one of `ctr run`. With it the
//! VM comes up, and goes down again after its end has been told to containerd, never before: a slow
//! teardown must not cost an exit code.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use containerd_shim_protos::events::task::TaskOOM;
use containerd_shim_protos::topics;
use kata_agent_protocol::agent::GetOOMEventRequest;
use tokio::sync::{Mutex, RwLock, watch};
use vmm_glue::Vm;
use vmm_glue::agent::Agent;
use vmm_glue::sharefs::Virtiofsd;

use crate::container::Container;
use crate::debts::Debts;
use crate::error::{TaskError, TaskResult};
use crate::events::Events;
use crate::host::Host;
use crate::process::{Exit, LOST_STATUS};
use crate::sandbox::{Order, Sandbox};
use crate::{health, telemetry};

/// How long the events of a pod's end may take before its VM is taken down all the same.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);
/// Between two failed questions for out-of-memory events.
const OOM_RETRY: Duration = Duration::from_secs(1);

/// One pod.
#[derive(Debug)]
pub struct Pod {
    /// The sandbox's id.
    pub id: String,
    /// containerd's events.
    pub events: Events,
    pub(crate) host: Host,
    sandbox: RwLock<Option<Sandbox>>,
    /// One container is created at a time: the first one brings the VM up.
    pub(crate) creating: Mutex<()>,
    /// The VM grows for one container at a time.
    pub(crate) growing: Mutex<()>,
    containers: StdMutex<BTreeMap<String, Arc<Container>>>,
    vmm_pid: watch::Sender<u32>,
    /// Whoever asked for the pod will say when its shim may go.
    is_kept: AtomicBool,
    /// Nothing is to be started any more.
    closing: watch::Sender<bool>,
    /// How the sandbox ended, once it is down for good.
    over: watch::Sender<Option<Exit>>,
}

impl Pod {
    /// A pod without containers.
    pub fn new(id: String, host: Host, events: Events) -> Arc<Self> {
        Arc::new(Self {
            id,
            events,
            host,
            sandbox: RwLock::default(),
            creating: Mutex::default(),
            growing: Mutex::default(),
            containers: StdMutex::default(),
            vmm_pid: watch::Sender::new(0),
            is_kept: AtomicBool::new(false),
            closing: watch::Sender::new(false),
            over: watch::Sender::new(None),
        })
    }

    fn containers(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Container>>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pid that stands for everything in the guest: the VMM's.
    pub fn pid(&self) -> u32 {
        *self.vmm_pid.borrow()
    }

    /// The container `id`.
    ///
    /// # Errors
    /// `NotFound`
    pub fn container(&self, id: &str) -> TaskResult<Arc<Container>> {
        let found = self.containers().get(id).cloned();
        found.ok_or_else(|| {
            TaskError::not_found(format!("There is no container {id} in pod {}", self.id))
        })
    }

    /// All containers.
    pub fn all(&self) -> Vec<Arc<Container>> {
        self.containers().values().cloned().collect()
    }

    /// Whether the pod has no container left.
    pub fn is_empty(&self) -> bool {
        self.containers().is_empty()
    }

    pub(crate) fn insert(&self, container: Arc<Container>) {
        self.containers().insert(container.id.clone(), container);
    }

    pub(crate) fn forget(&self, id: &str) {
        self.containers().remove(id);
    }

    /// The agent.
    ///
    /// # Errors
    /// The pod's VM is gone, or not there yet.
    pub async fn agent(&self) -> TaskResult<Agent> {
        let sandbox = self.sandbox.read().await;
        let sandbox = sandbox.as_ref().ok_or_else(|| self.gone())?;
        Ok(sandbox.agent()?.clone())
    }

    /// The VM.
    ///
    /// # Errors
    /// As [`Pod::agent`].
    pub async fn vm(&self) -> TaskResult<Arc<dyn Vm>> {
        let sandbox = self.sandbox.read().await;
        let sandbox = sandbox.as_ref().ok_or_else(|| self.gone())?;
        Ok(Arc::clone(sandbox.vm()?))
    }

    fn gone(&self) -> TaskError {
        TaskError::precondition(format!("The VM of pod {} is gone", self.id))
    }

    /// Whether the VM is up.
    pub async fn is_up(&self) -> bool {
        self.sandbox.read().await.is_some()
    }

    /// The pod may have neither VM nor containers for as long as its caller likes.
    pub fn keep(&self) {
        self.is_kept.store(true, Ordering::Relaxed);
    }

    /// Whether there is nothing of the pod, and nothing on its way.
    pub async fn is_idle(&self) -> bool {
        let is_creating = self.creating.try_lock().is_err();
        let is_kept = self.is_kept.load(Ordering::Relaxed);
        !is_creating && !is_kept && self.is_empty() && !self.is_up().await
    }

    /// Runs `work` with the sandbox.
    ///
    /// # Errors
    /// As [`Pod::agent`], and what `work` returns.
    pub(crate) async fn with_sandbox<T>(
        &self,
        work: impl FnOnce(&Sandbox) -> Result<T>,
    ) -> TaskResult<T> {
        let sandbox = self.sandbox.read().await;
        Ok(work(sandbox.as_ref().ok_or_else(|| self.gone())?)?)
    }

    /// Brings the VM up. The caller holds [`Pod::creating`].
    ///
    /// # Errors
    /// Up already, or over; or a step of the start.
    pub(crate) async fn up(self: &Arc<Self>, order: &Order) -> TaskResult<()> {
        if self.over().is_some() {
            return Err(self.gone());
        }
        if self.is_up().await {
            return Err(TaskError::new(
                crate::error::Kind::AlreadyExists,
                format!("The pod {} is up already", self.id),
            ));
        }
        telemetry::set_level(&order.config.runtime);
        let mut closing = self.closing.subscribe();
        let given_up = async move {
            // The sender is ours, and lives as long as `self`.
            drop(closing.wait_for(|closing| *closing).await);
        };
        let sandbox = Sandbox::up(&self.host, order, given_up).await?;
        let vm = Arc::clone(sandbox.vm()?);
        let agent = sandbox.agent()?.clone();
        self.vmm_pid.send_replace(sandbox.pid);
        let virtiofsd = sandbox.virtiofsd();
        *self.sandbox.write().await = Some(sandbox);
        tokio::spawn(Arc::clone(self).watch_vm(Arc::clone(&vm)));
        if let Some(virtiofsd) = virtiofsd {
            tokio::spawn(Arc::clone(self).watch_share(virtiofsd, vm));
        }
        tokio::spawn(Arc::clone(self).watch_memory(agent.clone()));
        tokio::spawn(pay(Debts::of(&self.host.debts)));
        let limit = order.config.agent.health_check_request_timeout;
        tokio::spawn(health::watch(agent, health::EVERY, limit, health::log));
        Ok(())
    }

    /// Everything in the guest ends with its VM.
    async fn watch_vm(self: Arc<Self>, vm: Arc<dyn Vm>) {
        let report = vm.wait().await;
        if self.over().is_none() {
            tracing::error!(%report, "the pod's VM ended");
        }
        drop(vm);
        // The agent's own answers go first, if it still gave some.
        tokio::time::sleep(Duration::from_millis(50)).await;
        self.mark_over(LOST_STATUS);
        self.stop_containers();
        if let Err(error) = self.down().await {
            tracing::error!(error = format!("{error:#}"), "the pod left something behind");
        }
    }

    /// Without its files a guest hangs for good, so the VM ends with what serves them.
    async fn watch_share(self: Arc<Self>, virtiofsd: Arc<Virtiofsd>, vm: Arc<dyn Vm>) {
        let report = tokio::select! {
            report = virtiofsd.wait() => report,
            // It goes after its VM; that is told elsewhere.
            _ = vm.wait() => return,
        };
        if self.over().is_none() {
            tracing::error!(%report, "the pod's files are gone, and the pod with them");
            end(&*vm).await;
        }
    }

    /// Kills the VM: its end is the end of all that runs in it.
    pub(crate) async fn kill_vm(&self) -> TaskResult<()> {
        end(&*self.vm().await?).await;
        Ok(())
    }

    /// Tells containerd of containers that run out of memory.
    async fn watch_memory(self: Arc<Self>, agent: Agent) {
        loop {
            match agent.get_oom_event(&GetOOMEventRequest::new()).await {
                Ok(answer) => {
                    let mut event = TaskOOM::new();
                    event.container_id = answer.container_id;
                    self.events.publish(topics::TASK_OOM_EVENT_TOPIC, &event);
                }
                Err(error) if error.is_gone() || error.is_unsupported() => return,
                Err(error) => {
                    tracing::debug!(%error, "the agent tells no out-of-memory events");
                    tokio::time::sleep(OOM_RETRY).await;
                }
            }
            if self.over().is_some() {
                return;
            }
        }
    }

    /// After the first process of the first container has ended and been told: the pod is over.
    pub(crate) fn end_with(self: &Arc<Self>, container: &Arc<Container>) {
        let (pod, container) = (Arc::clone(self), Arc::clone(container));
        tokio::spawn(async move {
            container.init.wait().await;
            pod.events.flush(FLUSH_LIMIT).await;
            pod.stop_containers();
            if let Err(error) = pod.down().await {
                tracing::error!(error = format!("{error:#}"), "the pod left something behind");
            }
        });
    }

    /// Ends every process that has not ended, as one whose VM was killed.
    pub(crate) fn stop_containers(&self) {
        let pid = self.pid();
        for container in self.all() {
            container.stop_all(&Exit::now(LOST_STATUS), &self.events, pid);
        }
    }

    /// The first word on how the pod ended holds.
    fn mark_over(&self, status: u32) {
        self.over.send_if_modified(|over| {
            let is_news = over.is_none();
            over.get_or_insert_with(|| Exit::now(status));
            is_news
        });
    }

    /// How the pod ended, if it is over.
    pub fn over(&self) -> Option<Exit> {
        self.over.borrow().clone()
    }

    /// Waits until the pod is over.
    pub async fn wait_over(&self) -> Exit {
        let mut over = self.over.subscribe();
        let exit = over.wait_for(Option::is_some).await;
        exit.ok().and_then(|exit| exit.clone()).unwrap_or_else(|| Exit::now(LOST_STATUS))
    }

    /// Ends the pod for good, whatever it is at: a start that is under way is given up and undone.
    ///
    /// # Errors
    /// See [`Pod::down`].
    pub async fn close(&self) -> Result<()> {
        self.closing.send_replace(true);
        self.mark_over(0);
        // With the VM end the calls that a container's creation may wait for.
        let outcome = self.down().await;
        let _one = self.creating.lock().await;
        outcome.and(self.down().await)
    }

    /// Takes the VM and everything around it down. May be called again.
    ///
    /// # Errors
    /// What could not be undone; it is tried again by `delete`.
    pub async fn down(&self) -> Result<()> {
        let mut slot = self.sandbox.write().await;
        let Some(sandbox) = slot.as_mut() else { return Ok(()) };
        self.mark_over(0);
        let outcome = sandbox.down().await;
        *slot = None;
        outcome
    }
}

/// Gives back what earlier pods could not. Nobody waits for it.
async fn pay(debts: Debts) {
    if let Err(error) = debts.pay().await {
        tracing::warn!(error = format!("{error:#}"), "pods that ended are still attached");
    }
}

async fn end(vm: &dyn Vm) {
    if let Err(error) = vm.stop(Duration::ZERO).await {
        tracing::error!(%error, "the VM cannot be ended");
    }
}

/// Whether a host path lies on a tmpfs, by statfs(2).
pub(crate) fn is_tmpfs(path: &Path) -> bool {
    use nix::sys::statfs::{TMPFS_MAGIC, statfs};
    statfs(path).is_ok_and(|fs| fs.filesystem_type() == TMPFS_MAGIC)
}
