//! Collects the exit statuses of children, its own and those it inherits.
//!
//! The agent is the last parent of every process in the guest: as process 1, or as a subreaper
//! when it is tested. So one task waits for all children, and keeps the status of those somebody
//! asked about. A pid is looked up and signalled under the same lock that it is reaped under, so
//! a signal never reaches a process that merely got the number later.

use std::collections::HashMap;
use std::io;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sys::prctl;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::sys::{kill, reap};

/// What a process is said to have ended with if it was gone before its status could be learned.
const STATUS_LOST: i32 = 255;

/// The children that are waited for.
#[derive(Debug, Default)]
pub struct Reaper {
    known: Mutex<HashMap<i32, watch::Sender<Option<i32>>>>,
}

/// The end of one process: its exit code, or 128 and the signal that ended it.
#[derive(Debug, Clone)]
pub struct Exit(watch::Receiver<Option<i32>>);

impl Exit {
    /// Waits for the end. Any number of callers may, also after it.
    pub async fn wait(&self) -> i32 {
        let mut receiver = self.0.clone();
        // The sender leaves only after it has sent the status.
        let status = receiver.wait_for(Option::is_some).await;
        status.ok().and_then(|status| *status).unwrap_or(STATUS_LOST)
    }

    /// The status, if the process has ended.
    pub fn status(&self) -> Option<i32> {
        *self.0.borrow()
    }
}

impl Reaper {
    /// Begins to reap, in a task of the current runtime.
    pub fn start() -> Result<Arc<Self>> {
        prctl::set_child_subreaper(true).context("Failed to become the parent of orphans")?;
        let mut ended = signal(SignalKind::child()).context("Failed to listen for SIGCHLD")?;
        let reaper = Arc::new(Self::default());
        let own = Arc::clone(&reaper);
        tokio::spawn(async move {
            while ended.recv().await.is_some() {
                own.reap();
            }
        });
        Ok(reaper)
    }

    /// Starts a child and waits for it from now on. The caller must not wait for it itself.
    pub fn spawn(&self, command: &mut Command) -> io::Result<(Child, Exit)> {
        // Held until the child is known, so that it is not reaped before.
        let mut known = self.lock();
        let child = command.spawn()?;
        let exit = insert(&mut known, child.id().cast_signed());
        Ok((child, exit))
    }

    /// Waits from now on for a process that will become, or is, our child.
    pub fn adopt(&self, pid: i32) -> Exit {
        let mut known = self.lock();
        let exit = insert(&mut known, pid);
        // Gone already, together with whoever told us its number.
        if kill(pid, 0) == Err(Errno::ESRCH)
            && let Some(sender) = known.remove(&pid)
        {
            sender.send_replace(Some(STATUS_LOST));
        }
        exit
    }

    /// Sends a signal; `false` if the process has ended.
    pub fn signal(&self, pid: i32, signal: i32) -> nix::Result<bool> {
        let known = self.lock();
        if !known.contains_key(&pid) {
            return Ok(false);
        }
        match kill(pid, signal) {
            Ok(()) => Ok(true),
            Err(Errno::ESRCH) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn reap(&self) {
        let mut known = self.lock();
        while let Some((pid, status)) = reap() {
            if let Some(sender) = known.remove(&pid) {
                sender.send_replace(Some(status));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i32, watch::Sender<Option<i32>>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn insert(known: &mut HashMap<i32, watch::Sender<Option<i32>>>, pid: i32) -> Exit {
    let (sender, receiver) = watch::channel(None);
    known.insert(pid, sender);
    Exit(receiver)
}
