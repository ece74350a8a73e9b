//! The sandbox: what the containers of one pod share, and the list of them.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use kata_agent_protocol::agent::{CreateContainerRequest, CreateSandboxRequest};
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::spawn_blocking;

use super::cgroup::{self, Cgroup};
use super::container::{Container, terminal_of};
use super::error::Refusal;
use super::namespaces::Shared;
use super::network::Network;
use super::oom::OomWatch;
use super::reaper::Reaper;
use super::storage::Storages;
use super::{device, paths, spec};
use crate::modules;

/// What the agent serves.
#[derive(Debug)]
pub struct Sandbox {
    /// Children of the agent.
    pub reaper: Arc<Reaper>,
    /// Mounts for containers.
    pub storages: Storages,
    /// Containers that ran out of memory.
    pub oom: OomWatch,
    /// The pod's network.
    pub network: Network,
    /// Told when the sandbox is destroyed.
    pub ended: Notify,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// There once the sandbox is created.
    namespaces: Option<Shared>,
    /// The pid namespace of the pod, once a container shares it.
    pid_namespace: Option<PathBuf>,
    containers: HashMap<String, Slot>,
}

/// A container's name is taken before the container is there.
#[derive(Debug)]
enum Slot {
    Creating,
    Present { container: Arc<Container>, storages: Vec<PathBuf> },
}

impl Sandbox {
    /// An agent without a sandbox yet.
    pub fn new() -> Result<Self> {
        for folder in [paths::OWN, paths::KATA, paths::SHARED, paths::SANDBOX] {
            fs::create_dir_all(folder).with_context(|| format!("Failed to make {folder}"))?;
        }
        let state = paths::state();
        fs::create_dir_all(&state)
            .with_context(|| format!("Failed to make {}", state.display()))?;
        Ok(Self {
            reaper: Reaper::start()?,
            storages: Storages::default(),
            oom: OomWatch::new()?,
            network: Network::connect()?,
            ended: Notify::new(),
            state: Mutex::default(),
        })
    }

    /// Creates what the containers share.
    pub async fn create(&self, request: &CreateSandboxRequest) -> Result<()> {
        for module in &request.kernel_modules {
            load(&module.name, &module.parameters)?;
        }
        {
            let mut state = self.state();
            if state.namespaces.is_some() {
                return Err(Refusal::exists("There is a sandbox already; a machine holds one"));
            }
            state.namespaces = Some(Shared::create(&request.hostname)?);
        }
        let set_up = async {
            self.storages.add(&request.storages, true).await?;
            set_up_dns(&request.dns)
        };
        set_up.await.inspect_err(|_| {
            // The next attempt begins anew.
            drop(self.storages.clear());
            self.state().namespaces = None;
        })
    }

    /// Removes all containers and what they shared, and tells whoever waits for the end.
    pub async fn destroy(&self) -> Result<()> {
        let ids: Vec<_> = self.state().containers.keys().cloned().collect();
        let mut outcome = Ok(());
        for id in ids {
            outcome = outcome.and(self.remove_container(&id, Duration::ZERO).await);
        }
        outcome = outcome.and(self.storages.clear());
        *self.state() = State::default();
        // One permit is kept, should nobody wait yet.
        self.ended.notify_one();
        outcome
    }

    /// Creates a container.
    pub async fn create_container(&self, request: &CreateContainerRequest) -> Result<()> {
        let id = &request.container_id;
        paths::check_id("container", id)?;
        let given = request.OCI.get_or_default();
        let mut config = spec::config(given)?;
        let cgroup = Cgroup::new(&given.Linux.CgroupsPath, id)?;
        {
            let mut state = self.state();
            if state.namespaces.is_none() {
                return Err(Refusal::untimely("There is no sandbox; call CreateSandbox first"));
            }
            if state.containers.contains_key(id) {
                return Err(Refusal::exists(format!("There is a container {id} already")));
            }
            state.containers.insert(id.clone(), Slot::Creating);
        }
        let create = async {
            let storages = self.storages.add(&request.storages, false).await?;
            let create = async {
                device::add(&request.devices, &mut config).await?;
                self.join_namespaces(&mut config, request.sandbox_pidns)?;
                let terminal = terminal_of(&given.Process);
                Container::create(&self.reaper, id, cgroup, &config, terminal).await
            };
            match create.await {
                Ok(container) => Ok((container, storages)),
                Err(error) => {
                    // The first error is the one to tell.
                    drop(self.storages.release(&storages));
                    Err(error)
                }
            }
        };
        let created = create.await;
        let mut state = self.state();
        match created {
            Ok((container, storages)) => {
                if request.sandbox_pidns && state.pid_namespace.is_none() {
                    let pid = container.init().pid();
                    state.pid_namespace = Some(format!("/proc/{pid}/ns/pid").into());
                }
                self.oom.watch(id, &container.cgroup().folder());
                let container = Arc::new(container);
                state.containers.insert(id.clone(), Slot::Present { container, storages });
                Ok(())
            }
            Err(error) => {
                state.containers.remove(id);
                Err(error)
            }
        }
    }

    /// A container by its name.
    pub fn container(&self, id: &str) -> Result<Arc<Container>> {
        match self.state().containers.get(id) {
            Some(Slot::Present { container, .. }) => Ok(Arc::clone(container)),
            Some(Slot::Creating) => {
                Err(Refusal::untimely(format!("The container {id} is being created")))
            }
            None => {
                let id = id.escape_debug();
                Err(Refusal::invalid(format!("There is no container '{id}'")))
            }
        }
    }

    /// Removes a container; see [`Container::remove`].
    pub async fn remove_container(&self, id: &str, limit: Duration) -> Result<()> {
        self.container(id)?.remove(limit).await?;
        self.oom.forget(id);
        let slot = self.state().containers.remove(id);
        match slot {
            Some(Slot::Present { storages, .. }) => self.storages.release(&storages),
            _ => Ok(()),
        }
    }

    /// Puts the shared namespaces into a configuration, whatever it says of them, and a pid
    /// namespace: the pod's or one of the container's own.
    fn join_namespaces(&self, config: &mut Value, shares_pids: bool) -> Result<()> {
        let state = self.state();
        let shared = state.namespaces.as_ref().context("The sandbox was destroyed")?;
        let mut namespaces = match config["linux"]["namespaces"].take() {
            Value::Array(namespaces) => namespaces,
            _ => Vec::new(),
        };
        namespaces.retain(|namespace| namespace["type"] != "pid" && namespace["type"] != "cgroup");
        if cgroup::is_v2() {
            // So that /sys/fs/cgroup of a container is its own group, with its limits.
            namespaces.push(json!({ "type": "cgroup" }));
        }
        for namespace in &mut namespaces {
            let kind = namespace["type"].as_str().unwrap_or_default();
            if let Some(path) = shared.of(kind) {
                namespace["path"] = path.to_string_lossy().into();
            }
        }
        namespaces.push(match &state.pid_namespace {
            Some(path) if shares_pids => json!({ "type": "pid", "path": path.to_string_lossy() }),
            _ => json!({ "type": "pid" }),
        });
        config["linux"]["namespaces"] = namespaces.into();
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Loads a module the host asks for.
fn load(name: &str, parameters: &[String]) -> Result<()> {
    if !parameters.is_empty() {
        let message = format!("Module parameters are not served ({name}); name the module alone");
        return Err(Refusal::unsupported(message));
    }
    let is_there = Path::new("/sys/module").join(name.replace('-', "_")).exists();
    if is_there || modules::load(name)? {
        return Ok(());
    }
    Err(Refusal::invalid(format!("The guest's image has no kernel module '{name}'")))
}

/// Makes the host's lines the guest's `/etc/resolv.conf`.
fn set_up_dns(lines: &[String]) -> Result<()> {
    const TARGET: &str = "/etc/resolv.conf";
    if lines.is_empty() {
        return Ok(());
    }
    let source = Path::new(paths::SANDBOX).join("resolv.conf");
    let text = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    fs::write(&source, text).with_context(|| format!("Failed to write {}", source.display()))?;
    let target = Path::new(TARGET);
    super::mounting::make_target(&source, target)?;
    let none = None::<&str>;
    mount(Some(&source), target, none, MsFlags::MS_BIND, none)
        .with_context(|| format!("Failed to put {} on {TARGET}", source.display()))
}

/// Runs `work` to its end, also when the caller's connection breaks or its patience ends: half a
/// container would be in nobody's books.
pub async fn whole<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    tokio::spawn(work).await.context("The work was given up")?
}

/// Runs `work` where it may block.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    spawn_blocking(work).await.context("The work was given up")?
}
