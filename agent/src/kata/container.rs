//! One container: its bundle, its first process, and what was executed in it since.
//!
//! ```text
//! create --- start --- (pause, resume, exec, signal)* --- remove
//! ```

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use kata_agent_protocol::oci;
use libcontainer::container::Container as Runtime;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::cgroup::Cgroup;
use super::error::Refusal;
use super::paths;
use super::process::{Process, Size};
use super::reaper::Reaper;
use super::spec;
use crate::runtime::Task;

/// How many ended processes of a container are remembered after somebody was told their status:
/// probes run for months, and each process keeps streams.
const MAX_ENDED: usize = 32;

/// A container that exists.
#[derive(Debug)]
pub struct Container {
    id: String,
    cgroup: Cgroup,
    init: Arc<Process>,
    /// By name; the first process is not among them.
    executed: Mutex<Executed>,
    is_started: AtomicBool,
    is_paused: AtomicBool,
}

#[derive(Debug, Default)]
struct Executed {
    processes: HashMap<String, Slot>,
    /// Counts up with each.
    next: u64,
}

/// A name that is taken, by a process that is there or is being made.
#[derive(Debug)]
struct Slot {
    number: u64,
    process: Option<Arc<Process>>,
}

impl Container {
    /// Makes the bundle of `config` and creates the container.
    ///
    /// # Errors
    /// Afterwards nothing of it is left.
    pub async fn create(
        reaper: &Reaper,
        id: &str,
        cgroup: Cgroup,
        config: &Value,
        terminal: Option<Size>,
    ) -> Result<Self> {
        let made = Self::try_create(reaper, id, &cgroup, config, terminal).await;
        match made {
            Ok(init) => Ok(Self {
                id: id.to_owned(),
                cgroup,
                init: Arc::new(init),
                executed: Mutex::default(),
                is_started: AtomicBool::new(false),
                is_paused: AtomicBool::new(false),
            }),
            Err(error) => {
                // What failed first is what the caller needs to know.
                let id = id.to_owned();
                drop(spawn_blocking(move || clean_up(&id, &cgroup)).await);
                Err(error.context("Failed to create the container"))
            }
        }
    }

    async fn try_create(
        reaper: &Reaper,
        id: &str,
        cgroup: &Cgroup,
        config: &Value,
        terminal: Option<Size>,
    ) -> Result<Process> {
        let bundle = paths::bundle(id);
        let mut config = config.clone();
        let rootfs = bundle.join("rootfs");
        let source = PathBuf::from(config["root"]["path"].as_str().unwrap_or_default());
        if source != rootfs {
            bind_root(&source, &rootfs)?;
        }
        config["root"]["path"] = rootfs.to_string_lossy().into();
        config["linux"]["cgroupsPath"] = cgroup.path().to_string_lossy().into();
        let file = bundle.join("config.json");
        fs::write(&file, serde_json::to_vec(&config)?)
            .with_context(|| format!("Failed to write {}", file.display()))?;
        Process::launch(reaper, id, Task::Create(bundle), terminal).await
    }

    /// Lets the first process run its program.
    pub async fn start(&self) -> Result<()> {
        // Held during a start: libcontainer changes the working directory of the whole agent.
        static TURN: Mutex<()> = Mutex::new(());
        // ORDERING: only one of several callers may go on; nothing else depends on it.
        if self.is_started.swap(true, Ordering::Relaxed) {
            let id = &self.id;
            return Err(Refusal::untimely(format!("The container {id} is started already")));
        }
        let state = paths::state().join(&self.id);
        let start = move || -> Result<()> {
            let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
            Runtime::load(state)?.start()?;
            Ok(())
        };
        let started = spawn_blocking(start).await.context("The start was given up")?;
        started.with_context(|| format!("Failed to start the container {}", self.id))
    }

    /// The process of this name; the container's own name, or none, is its first process.
    pub fn process(&self, exec: &str) -> Result<Arc<Process>> {
        if exec.is_empty() || exec == self.id {
            return Ok(Arc::clone(&self.init));
        }
        let executed = self.executed();
        let process = executed.processes.get(exec).and_then(|slot| slot.process.clone());
        process.ok_or_else(|| {
            let (exec, id) = (exec.escape_debug(), &self.id);
            Refusal::invalid(format!("There is no process '{exec}' in the container {id}"))
        })
    }

    /// Runs another process in the container.
    pub async fn exec(&self, reaper: &Reaper, exec: &str, process: &oci::Process) -> Result<()> {
        paths::check_id("exec", exec)?;
        // ORDERING: a mark set by an earlier call of the same host.
        if !self.is_started.load(Ordering::Relaxed) || self.init.exit.status().is_some() {
            return Err(Refusal::untimely(format!("The container {} does not run", self.id)));
        }
        // ORDERING: as above.
        if self.is_paused.load(Ordering::Relaxed) {
            return Err(Refusal::untimely(format!("The container {} is paused", self.id)));
        }
        let terminal = terminal_of(process);
        let process = spec::process(process)?;
        self.reserve(exec)?;
        let file = Path::new(paths::OWN).join(format!("{}-{exec}.json", self.id));
        let launch = async {
            fs::write(&file, serde_json::to_vec(&process)?)
                .with_context(|| format!("Failed to write {}", file.display()))?;
            Process::launch(reaper, &self.id, Task::Exec(file.clone()), terminal).await
        };
        let launched = launch.await;
        drop(fs::remove_file(&file));
        let mut executed = self.executed();
        match launched {
            Ok(process) => {
                if let Some(slot) = executed.processes.get_mut(exec) {
                    slot.process = Some(Arc::new(process));
                }
                Ok(())
            }
            Err(error) => {
                executed.processes.remove(exec);
                Err(error.context(format!("Failed to execute in the container {}", self.id)))
            }
        }
    }

    /// Sends a signal to one process; SIGKILL without a name kills all.
    pub fn signal(&self, reaper: &Reaper, exec: &str, signal: i32) -> Result<()> {
        if exec.is_empty() && signal == nix::libc::SIGKILL {
            if self.init.exit.status().is_some() {
                return Ok(());
            }
            return self.cgroup.kill_all();
        }
        self.process(exec)?.signal(reaper, signal)
    }

    /// Stops all processes where they are, or lets them go on.
    pub fn pause(&self, is_paused: bool) -> Result<()> {
        self.cgroup.freeze(is_paused)?;
        // ORDERING: a mark for later calls.
        self.is_paused.store(is_paused, Ordering::Relaxed);
        Ok(())
    }

    /// Kills what still runs and leaves nothing of the container. A `limit` of zero is none.
    pub async fn remove(&self, limit: Duration) -> Result<()> {
        if self.init.exit.status().is_none() {
            // Frozen processes do not die (cgroup v1).
            // ORDERING: a mark set by an earlier call.
            if self.is_paused.load(Ordering::Relaxed) {
                self.pause(false)?;
            }
            self.cgroup.kill_all()?;
        }
        let ended = self.init.exit.wait();
        if limit.is_zero() {
            ended.await;
        } else {
            timeout(limit, ended).await.map_err(|_| {
                let (id, seconds) = (&self.id, limit.as_secs());
                Refusal::late(format!("The container {id} did not end within {seconds} s"))
            })?;
        }
        let (id, cgroup) = (self.id.clone(), self.cgroup.clone());
        let cleaned = spawn_blocking(move || clean_up(&id, &cgroup)).await;
        let cleaned = cleaned.context("The removal was given up")?;
        cleaned.with_context(|| format!("Failed to remove the container {}", self.id))
    }

    /// Its control group.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Its first process.
    pub fn init(&self) -> &Process {
        &self.init
    }

    /// Takes the name for a process to be made.
    fn reserve(&self, exec: &str) -> Result<()> {
        let mut executed = self.executed();
        let is_taken = |slot: &Slot| slot.process.as_ref().is_none_or(|process| !process.is_over());
        if exec == self.id || executed.processes.get(exec).is_some_and(is_taken) {
            let id = &self.id;
            return Err(Refusal::exists(format!("The container {id} has a process {exec}")));
        }
        executed.forget();
        let number = executed.next;
        executed.next += 1;
        executed.processes.insert(exec.to_owned(), Slot { number, process: None });
        Ok(())
    }

    fn executed(&self) -> MutexGuard<'_, Executed> {
        self.executed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Executed {
    /// Forgets the oldest of the ended, when there are many.
    fn forget(&mut self) {
        let is_over = |slot: &Slot| slot.process.as_ref().is_some_and(|process| process.is_over());
        let mut over: Vec<_> =
            self.processes.values().filter(|slot| is_over(slot)).map(|slot| slot.number).collect();
        over.sort_unstable();
        let surplus = over.len().saturating_sub(MAX_ENDED);
        let oldest = &over[..surplus];
        self.processes.retain(|_, slot| !oldest.contains(&slot.number));
    }
}

/// The size of the terminal a process is to have, if it is to have one.
pub fn terminal_of(process: &oci::Process) -> Option<Size> {
    let size = process.ConsoleSize.get_or_default();
    process.Terminal.then_some(Size { rows: size.Height, columns: size.Width })
}

/// Makes the root file system appear in the bundle, as a mount of its own: only such a one can
/// become the root of a namespace.
fn bind_root(source: &Path, rootfs: &Path) -> Result<()> {
    fs::create_dir_all(rootfs).with_context(|| format!("Failed to make {}", rootfs.display()))?;
    let none = None::<&str>;
    mount(Some(source), rootfs, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
        .with_context(|| format!("Failed to bind the root {}", source.display()))
}

/// Removes cgroup, libcontainer's state, root mount and bundle, as far as they are there.
fn clean_up(id: &str, cgroup: &Cgroup) -> Result<()> {
    cgroup.remove_inner()?;
    let state = paths::state().join(id);
    if state.exists() {
        match Runtime::load(state.clone()) {
            Ok(mut container) => container.delete(true)?,
            // It was given up before it had a state.
            Err(_) => fs::remove_dir_all(&state)
                .with_context(|| format!("Failed to remove {}", state.display()))?,
        }
    }
    let bundle = paths::bundle(id);
    let rootfs = bundle.join("rootfs");
    match umount2(&rootfs, MntFlags::MNT_DETACH) {
        // Not mounted, or not there.
        Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
        outcome => {
            outcome.with_context(|| format!("Failed to unmount {}", rootfs.display()))?;
        }
    }
    // Never into a file system that is still mounted there: only what the agent made itself.
    for (path, remove) in [
        (bundle.join("config.json"), fs::remove_file as fn(PathBuf) -> std::io::Result<()>),
        (rootfs, fs::remove_dir),
        (bundle, fs::remove_dir),
    ] {
        match remove(path.clone()) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            outcome => outcome.with_context(|| format!("Failed to remove {}", path.display()))?,
        }
    }
    Ok(())
}
