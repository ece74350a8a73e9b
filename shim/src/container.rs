//! A container of the pod: made, asked, and taken away.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use containerd_shim_protos::api::CreateTaskRequest;
use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskIO, TaskPaused, TaskResumed,
};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::topics;
use kata_agent_protocol::agent::{
    CreateContainerRequest, PauseContainerRequest, RemoveContainerRequest, ResumeContainerRequest,
    SignalProcessRequest, StatsContainerRequest, StatsContainerResponse,
};
use kata_config::Limits;
use oci_spec::runtime::Spec;

use crate::bundle;
use crate::error::{Kind, TaskError, TaskResult};
use crate::events::Events;
use crate::growth;
use crate::guest::{self, Translate};
use crate::health;
use crate::kind::Kind as Part;
use crate::mounts::MountSpec;
use crate::oci;
use crate::order;
use crate::pod::{self, Pod};
use crate::process::{Exit, Process, State};
use crate::rootfs;
use crate::stdio::{Paths, Target};

/// How long the agent may take to send a signal.
const SIGNAL_LIMIT: Duration = Duration::from_secs(10);
/// How long a killed container may take to end before its guest is taken for hung: less than the two
/// minutes that a kubelet gives a call.
const STUCK_LIMIT: Duration = Duration::from_secs(30);
/// How long a killed process may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// A container.
#[derive(Debug)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its bundle on the host.
    pub bundle: PathBuf,
    /// Its part in the pod.
    pub part: Part,
    /// Its first process.
    pub init: Arc<Process>,
    execs: StdMutex<BTreeMap<String, Arc<Process>>>,
    is_paused: StdMutex<bool>,
    /// What it may use.
    pub(crate) limits: StdMutex<Limits>,
}

/// Makes the container that `request` describes; the first one brings the pod's VM up.
///
/// It comes to its end even if the caller does not wait for it: a start that is let go half way would
/// leave mounts and a cgroup behind.
///
/// # Errors
/// What failed, with its causes; nothing of the container is left.
pub async fn create(pod: &Arc<Pod>, request: CreateTaskRequest) -> TaskResult<Arc<Container>> {
    let pod = Arc::clone(pod);
    let creating = tokio::spawn(async move { create_whole(&pod, &request).await });
    creating.await.context("The creation of the container broke off")?
}

async fn create_whole(pod: &Arc<Pod>, request: &CreateTaskRequest) -> TaskResult<Arc<Container>> {
    let _one = pod.creating.lock().await;
    check_id(&request.id)?;
    if pod.container(&request.id).is_ok() {
        let taken = format!("Container {} exists in pod {}", request.id, pod.id);
        return Err(TaskError::new(Kind::AlreadyExists, taken));
    }
    if !request.checkpoint.is_empty() {
        let message = "A VM's container cannot be restored from a checkpoint of its processes";
        return Err(TaskError::new(Kind::Unimplemented, message));
    }
    let folder = PathBuf::from(&request.bundle);
    let spec = bundle::read_spec(&folder).map_err(anyhow::Error::from)?;
    let part = bundle::kind_of(&spec).map_err(anyhow::Error::from)?;
    let mounts = mounts_of(request);
    let is_first = part.is_first() && !pod.is_up().await;
    if is_first {
        let order = order::of(&request.id, &spec, &mounts, &request.options)?;
        pod.up(&order).await?;
    }
    let made = make(pod, request, &folder, &spec, &mounts, part).await;
    match made {
        Ok(container) => {
            if is_first {
                pod.end_with(&container);
            }
            Ok(container)
        }
        Err(error) => {
            let undone = match is_first {
                true => pod.down().await.map_err(TaskError::from),
                false => rootfs::take_back(pod, &request.id).await,
            };
            if let Err(error) = undone {
                let id = &request.id;
                tracing::error!(%error, container = %id, "a failed start left something");
            }
            Err(error)
        }
    }
}

/// As the agent checks it, so that the message is ours.
fn check_id(id: &str) -> TaskResult<()> {
    let is_first = |b: u8| b.is_ascii_alphanumeric();
    let is_other = |b: u8| is_first(b) || b"._-".contains(&b);
    let bytes = id.as_bytes();
    let is_id = bytes.len() >= 2 && is_first(bytes[0]) && bytes.iter().all(|b| is_other(*b));
    match is_id {
        true => Ok(()),
        false => Err(TaskError::new(
            Kind::InvalidArgument,
            format!(
                "'{id}' is no id of a container: two or more letters, digits, '.', '_', '-', the \
                 first a letter or digit"
            ),
        )),
    }
}

/// The container's root as containerd describes it.
fn mounts_of(request: &CreateTaskRequest) -> Vec<MountSpec> {
    let mounts = request.rootfs.iter().map(|mount| MountSpec {
        kind: mount.type_.clone(),
        source: mount.source.clone(),
        options: mount.options.clone(),
    });
    mounts.collect()
}

async fn make(
    pod: &Arc<Pod>,
    request: &CreateTaskRequest,
    folder: &Path,
    spec: &Spec,
    mounts: &[MountSpec],
    part: Part,
) -> TaskResult<Arc<Container>> {
    let id = &request.id;
    let target = Target { container: id.clone(), exec: id.clone() };
    let paths = Paths {
        stdin: request.stdin.clone(),
        stdout: request.stdout.clone(),
        stderr: request.stderr.clone(),
        terminal: request.terminal,
    };
    let init = Arc::new(Process::new(target, String::new(), paths, None)?);
    let limits = growth::limits_of_spec(spec);
    growth::grow(pod, limits).await;
    in_guest(pod, id, folder, spec, mounts, &part).await?;
    let container = Arc::new(Container {
        id: id.clone(),
        bundle: folder.to_owned(),
        part,
        init,
        execs: StdMutex::default(),
        is_paused: StdMutex::default(),
        limits: StdMutex::new(limits),
    });
    pod.insert(Arc::clone(&container));
    publish_create(pod, request);
    Ok(container)
}

/// Gives the guest its files and makes it there.
async fn in_guest(
    pod: &Arc<Pod>,
    id: &str,
    folder: &Path,
    spec: &Spec,
    mounts: &[MountSpec],
    part: &Part,
) -> TaskResult<()> {
    let config = pod.with_sandbox(|sandbox| Ok(Arc::clone(&sandbox.config))).await?;
    let own = spec.root().as_ref().map_or_else(|| "rootfs".into(), |root| root.path().clone());
    let root = rootfs::give(pod, id, mounts, &folder.join(own)).await?;
    let mut guest = guest::translate(
        spec,
        Translate {
            rootfs: &root.path,
            bundle: folder,
            is_sandbox: *part == Part::Sandbox,
            drop_seccomp: config.runtime.disable_guest_seccomp,
            keeps_empty_dirs: config.runtime.disable_guest_empty_dir,
            is_tmpfs: pod::is_tmpfs,
        },
    );
    for path in &guest.left_out {
        tracing::warn!(container = %id, path = %path.display(), "a mount of the host is left out");
    }
    for (index, bind) in guest.binds.clone() {
        let source = pod.with_sandbox(|sandbox| sandbox.share()?.add_bind(id, &bind)).await?;
        guest.set_source(index, source);
    }
    rootfs::give_volumes(pod, id, &mut guest).await?;
    let mut create = CreateContainerRequest::new();
    create.container_id = id.to_owned();
    create.exec_id = id.to_owned();
    create.storages = root.storages;
    create.storages.extend(guest.storages);
    create.OCI = MessageField::some(oci::spec(&guest.spec).map_err(anyhow::Error::from)?);
    create.sandbox_pidns = guest.shares_pids;
    let agent = pod.agent().await?.with_time_limit(config.agent.create_container_timeout);
    agent
        .create_container(&create)
        .await
        .with_context(|| format!("Failed to create container {id} in the guest"))?;
    Ok(())
}

fn publish_create(pod: &Pod, request: &CreateTaskRequest) {
    let mut io = TaskIO::new();
    io.stdin.clone_from(&request.stdin);
    io.stdout.clone_from(&request.stdout);
    io.stderr.clone_from(&request.stderr);
    io.terminal = request.terminal;
    let mut event = TaskCreate::new();
    event.container_id.clone_from(&request.id);
    event.bundle.clone_from(&request.bundle);
    event.rootfs.clone_from(&request.rootfs);
    event.io = MessageField::some(io);
    event.pid = pod.pid();
    pod.events.publish(topics::TASK_CREATE_EVENT_TOPIC, &event);
}

impl Container {
    fn execs(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Process>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it stands still on request.
    pub fn is_paused(&self) -> bool {
        *self.is_paused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process `exec_id`, or the first one if that is empty.
    ///
    /// # Errors
    /// `NotFound`
    pub fn process(&self, exec_id: &str) -> TaskResult<Arc<Process>> {
        if exec_id.is_empty() {
            return Ok(Arc::clone(&self.init));
        }
        let found = self.execs().get(exec_id).cloned();
        found.ok_or_else(|| {
            TaskError::not_found(format!("There is no process {exec_id} in container {}", self.id))
        })
    }

    /// Registers a further process; it is started later.
    ///
    /// # Errors
    /// The name is taken, or a stream cannot be opened.
    pub fn add_exec(
        &self,
        events: &Events,
        exec_id: &str,
        paths: Paths,
        process: kata_agent_protocol::oci::Process,
    ) -> TaskResult<()> {
        if self.init.exit().is_some() {
            return Err(TaskError::precondition(format!("Container {} has ended", self.id)));
        }
        let mut execs = self.execs();
        if execs.contains_key(exec_id) {
            let taken = format!("Process {exec_id} exists in container {}", self.id);
            return Err(TaskError::new(Kind::AlreadyExists, taken));
        }
        // The agent names a container's first process after the container.
        let exec = if exec_id == self.id { format!("{exec_id}.exec") } else { exec_id.to_owned() };
        let target = Target { container: self.id.clone(), exec };
        let process = Process::new(target, exec_id.to_owned(), paths, Some(process))?;
        execs.insert(exec_id.to_owned(), Arc::new(process));
        drop(execs);
        let mut event = TaskExecAdded::new();
        event.container_id.clone_from(&self.id);
        event.exec_id = exec_id.to_owned();
        events.publish(topics::TASK_EXEC_ADDED_EVENT_TOPIC, &event);
        Ok(())
    }

    /// Sends a signal to one process, or to all of the container.
    ///
    /// # Errors
    /// Not started, or ended, unless the signal is one that asks for the end: then all is well.
    pub async fn kill(
        &self,
        pod: &Arc<Pod>,
        exec_id: &str,
        signal: u32,
        all: bool,
    ) -> TaskResult<()> {
        let process = self.process(exec_id)?;
        match process.state() {
            State::Stopped(_) if exec_id.is_empty() => return Ok(()),
            State::Stopped(_) => {
                let ended = format!("Process {exec_id} of container {} has ended", self.id);
                return Err(TaskError::not_found(ended));
            }
            State::Created if exec_id.is_empty() => {
                // Nothing runs yet; the engine gives the container up.
                let exit = Exit::now(128 + signal);
                if process.stop_unstarted(exit, &pod.events, pod.pid()).await {
                    return Ok(());
                }
                // It was just being started.
            }
            State::Created => {
                let message = format!("Process {exec_id} of container {} does not run", self.id);
                return Err(TaskError::precondition(message));
            }
            State::Running => {}
        }
        let mut request = SignalProcessRequest::new();
        request.container_id.clone_from(&self.id);
        // Without a process the agent signals all of them, or the first, by the signal.
        let is_sigkill = signal == nix::sys::signal::SIGKILL as u32;
        let is_all = all || (exec_id.is_empty() && is_sigkill);
        request.exec_id = if is_all { String::new() } else { process.target.exec.clone() };
        request.signal = signal;
        let agent = pod.agent().await?.with_time_limit(SIGNAL_LIMIT);
        match agent.signal_process(&request).await {
            Ok(_) => {
                if is_sigkill && is_all && !self.is_paused() {
                    self.expect_end(pod);
                }
                Ok(())
            }
            // It ended meanwhile.
            Err(_) if process.exit().is_some() => Ok(()),
            Err(error) if error.is_gone() => Ok(()),
            Err(error)
                if error.is_timeout()
                    && is_sigkill
                    && is_all
                    && (self.part.is_first() || !health::answers(&agent).await) =>
            {
                // The first container is the pod, and the pod is to end; or the guest hangs, and no
                // container of the pod could ever be stopped.
                tracing::error!(%error, "the VM is killed in place of its processes");
                pod.kill_vm().await
            }
            Err(error) => Err(anyhow::Error::new(error)
                .context(format!("Failed to send signal {signal} to container {}", self.id))
                .into()),
        }
    }

    /// A process that was killed ends, unless it waits in the kernel: on a file whose server hangs, for
    /// one. Nobody could ever stop the pod then, so its VM is killed.
    fn expect_end(&self, pod: &Arc<Pod>) {
        let (pod, init, id) = (Arc::clone(pod), Arc::clone(&self.init), self.id.clone());
        tokio::spawn(async move {
            let has_ended = tokio::time::timeout(STUCK_LIMIT, init.wait()).await.is_ok();
            if !has_ended && pod.is_up().await {
                tracing::error!(
                    container = id,
                    "it was killed, but does not end: its guest hangs, or the files of its guest; \
                     the VM is killed"
                );
                if let Err(error) = pod.kill_vm().await {
                    tracing::error!(%error, "the VM cannot be killed");
                }
            }
        });
    }

    /// Ends all processes that have not ended, as told.
    pub fn stop_all(&self, exit: &Exit, events: &Events, pid: u32) {
        let execs: Vec<_> = self.execs().values().cloned().collect();
        for process in execs.iter().chain([&self.init]) {
            process.stop(exit.clone(), events, pid);
        }
    }

    /// Takes a further process away.
    ///
    /// # Errors
    /// It runs, or is not there.
    pub fn delete_exec(&self, exec_id: &str) -> TaskResult<Exit> {
        let process = self.process(exec_id)?;
        let exit = match process.state() {
            State::Running => {
                let runs =
                    format!("Process {exec_id} of container {} runs: kill it first", self.id);
                return Err(TaskError::precondition(runs));
            }
            State::Created => Exit::now(0),
            State::Stopped(exit) => exit,
        };
        self.execs().remove(exec_id);
        Ok(exit)
    }

    /// Takes the container away; with the first one the pod goes down.
    ///
    /// # Errors
    /// It runs and cannot be killed, or something of it stays.
    pub async fn delete(self: &Arc<Self>, pod: &Arc<Pod>) -> TaskResult<Exit> {
        if self.init.state() == State::Running {
            let sigkill = nix::sys::signal::SIGKILL as u32;
            self.kill(pod, "", sigkill, true).await?;
            let has_ended = tokio::time::timeout(KILL_LIMIT, self.init.wait()).await.is_ok();
            if !has_ended && self.part.is_first() {
                // It ends with its VM.
                pod.kill_vm().await?;
            } else if !has_ended {
                let runs = format!(
                    "Container {} was killed, but does not end; it will with its pod",
                    self.id
                );
                return Err(TaskError::precondition(runs));
            }
        } else {
            self.init.stop(Exit::now(0), &pod.events, pod.pid());
        }
        let exit = self.init.wait().await;
        let pid = pod.pid();
        if self.part.is_first() {
            pod.down().await?;
        } else if pod.is_up().await {
            let mut request = RemoveContainerRequest::new();
            request.container_id.clone_from(&self.id);
            let removed = pod.agent().await?.remove_container(&request).await;
            if let Err(error) = removed.as_ref().map(drop) {
                // Its files are released by the guest's end at the latest.
                tracing::warn!(%error, container = %self.id, "the guest keeps a container");
            }
            match rootfs::take_back(pod, &self.id).await {
                Err(error) if pod.is_up().await => return Err(error),
                _ => {}
            }
        }
        pod.forget(&self.id);
        let mut event = TaskDelete::new();
        event.container_id.clone_from(&self.id);
        event.pid = pid;
        event.exit_status = exit.status;
        event.exited_at = MessageField::some(exit.at.clone());
        event.id.clone_from(&self.id);
        pod.events.publish(topics::TASK_DELETE_EVENT_TOPIC, &event);
        Ok(exit)
    }

    /// Lets all its processes stand still, or go on.
    ///
    /// # Errors
    /// It does not run, or the agent refuses.
    pub async fn set_paused(&self, pod: &Pod, paused: bool) -> TaskResult<()> {
        if self.init.state() != State::Running {
            return Err(TaskError::precondition(format!("Container {} does not run", self.id)));
        }
        let agent = pod.agent().await?;
        if paused {
            let mut request = PauseContainerRequest::new();
            request.container_id.clone_from(&self.id);
            agent.pause_container(&request).await.context("Failed to pause the container")?;
        } else {
            let mut request = ResumeContainerRequest::new();
            request.container_id.clone_from(&self.id);
            agent.resume_container(&request).await.context("Failed to resume the container")?;
        }
        *self.is_paused.lock().unwrap_or_else(PoisonError::into_inner) = paused;
        if paused {
            let mut event = TaskPaused::new();
            event.container_id.clone_from(&self.id);
            pod.events.publish(topics::TASK_PAUSED_EVENT_TOPIC, &event);
        } else {
            let mut event = TaskResumed::new();
            event.container_id.clone_from(&self.id);
            pod.events.publish(topics::TASK_RESUMED_EVENT_TOPIC, &event);
        }
        Ok(())
    }

    /// What it has used.
    ///
    /// # Errors
    /// The agent's refusal.
    pub async fn stats(&self, pod: &Pod) -> TaskResult<StatsContainerResponse> {
        let mut request = StatsContainerRequest::new();
        request.container_id.clone_from(&self.id);
        let agent = pod.agent().await?;
        let stats = agent.stats_container(&request).await;
        let what = || format!("Failed to read the statistics of container {}", self.id);
        Ok(stats.with_context(what)?)
    }
}
