//! Taking back what a sandbox used of its host, by its record and its places alone: it works for a pod
//! that ends as for one whose shim was killed, and may be done again.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use slipway_api::client::Client;

use crate::cgroup::CgroupPath;
use crate::debts::Debts;
use crate::network;
use crate::persist::{PodDir, Process, Record};
use crate::share::Share;

/// The first of several failures.
#[derive(Debug)]
pub struct Outcome(pub Result<()>);

impl Outcome {
    /// Logs a failure, and keeps it if it is the first.
    pub fn note(&mut self, step: Result<()>) {
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
pub async fn all(record: &Record, dir: &PodDir, share: &Share, debts: &Debts) -> Result<()> {
    let mut outcome = Outcome(Ok(()));
    for process in record.processes.iter().rev().filter(|process| process.is_alive()) {
        outcome.note(kill(process).await);
    }
    outcome.note(share.remove());
    if let Some(socket) = &record.switch
        && let Err(error) = detach(record, socket).await
    {
        tracing::warn!(error = format!("{error:#}"), "it is given back with the next pod's start");
        outcome.note(debts.add(record, socket));
    }
    if let Some(cgroup) = &record.cgroup {
        outcome.note(remove_cgroup(cgroup).await);
    }
    if outcome.0.is_ok() {
        outcome.note(dir.remove());
    }
    outcome.0
}

async fn detach(record: &Record, socket: &Path) -> Result<()> {
    let switch = Client::new(socket);
    for interface in &record.own_interfaces {
        network::detach(&switch, &record.id, interface).await?;
    }
    Ok(())
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
