//! Where a client or a server runs: a pod's namespace, and cores.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dataplane::clock;
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns};
use nix::unistd::Pid;

use crate::compare::pod::Pod;
use crate::interrupt;

/// How long all may take to connect.
const CONNECT_US: u64 = 10_000_000;
/// Between two looks at something.
const LOOK: Duration = Duration::from_millis(1);
/// For sockets: how long a thread may sleep before it looks whether all is over.
pub const TIMEOUT: Duration = Duration::from_millis(100);

/// One end.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Whose.
    pub pod: &'a Pod,
    /// Where its threads may run.
    pub cores: &'a [usize],
}

impl Place<'_> {
    /// Moves the calling thread there, for good.
    pub fn enter(&self) -> Result<()> {
        setns(self.pod.netns(), CloneFlags::CLONE_NEWNET).context("Failed to enter a pod")?;
        pin_thread(Pid::from_raw(0), self.cores)
    }

    /// Its address with a port.
    pub fn address(&self, port: u16) -> SocketAddr {
        (Ipv4Addr::from(self.pod.address()), port).into()
    }
}

/// A client's end and its server's.
#[derive(Debug, Clone, Copy)]
pub struct Pair<'a> {
    /// Who sends.
    pub client: Place<'a>,
    /// Who receives.
    pub server: Place<'a>,
}

/// Lets a thread run on `cores` alone; 0 is the calling one.
pub fn pin_thread(thread: Pid, cores: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for core in cores {
        set.set(*core).with_context(|| format!("There is no core {core}"))?;
    }
    sched_setaffinity(thread, &set).with_context(|| format!("Failed to pin to cores {cores:?}"))
}

/// What the threads of a window have in common.
#[derive(Debug, Default)]
pub struct Shared {
    ready: AtomicUsize,
    over: AtomicBool,
    failures: Mutex<Vec<String>>,
}

impl Shared {
    /// One more has connected, or is done.
    pub fn is_ready(&self) {
        self.ready.fetch_add(1, Ordering::AcqRel);
    }

    /// How many are.
    pub fn ready(&self) -> usize {
        self.ready.load(Ordering::Acquire)
    }

    /// Whether threads are to end.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// They are.
    pub fn end(&self) {
        self.over.store(true, Ordering::Release);
    }

    /// Runs a thread's work; what goes wrong is kept.
    pub fn run(&self, who: &str, act: impl FnOnce() -> Result<()>) {
        if let Err(error) = act() {
            let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
            failures.push(format!("{who}: {error:#}"));
        }
    }

    /// What went wrong so far.
    pub fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until `count` are ready, `limit_us` at most.
    ///
    /// # Errors
    /// They are not; someone wants us to end.
    pub fn wait_for(&self, count: usize, limit_us: u64) -> Result<()> {
        let begin = clock::ticks();
        while self.ready() < count {
            interrupt::check()?;
            if let Some(first) = self.failures().into_iter().next() {
                anyhow::bail!(first);
            }
            let passed_us = (clock::ticks() - begin) / clock::ticks_per_us();
            ensure!(passed_us < limit_us, "{} of {count} came about", self.ready());
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Waits until `count` have connected.
    ///
    /// # Errors
    /// They have not; someone wants us to end.
    pub fn wait_for_connections(&self, count: usize) -> Result<()> {
        self.wait_for(count, CONNECT_US).context("Failed to connect the pods")
    }
}

/// Tries again what a server that is not there yet refuses. `None`: all is over before it is there, or when
/// it is there no more.
pub fn insist<T>(
    shared: &Shared,
    mut connect: impl FnMut() -> std::io::Result<T>,
) -> Result<Option<T>> {
    loop {
        match connect() {
            Ok(connection) => return Ok(Some(connection)),
            Err(_) if shared.is_over() => return Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                thread::sleep(LOOK);
            }
            Err(error) => return Err(error).context("Failed to connect"),
        }
    }
}

/// Whether a socket's time-out passed, so that it is to be tried again.
pub fn is_late(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_not_there_yet_is_asked_again_until_all_is_over() {
        let (shared, mut asked) = (Shared::default(), 0);
        let mut ask = |until: i32| {
            insist(&shared, || {
                asked += 1;
                let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
                if asked < until { Err(refused) } else { Ok(asked) }
            })
        };
        assert_eq!(ask(3).unwrap(), Some(3));
        shared.end();
        assert_eq!(ask(9).unwrap(), None);
        let down = || Err::<(), _>(std::io::Error::from(std::io::ErrorKind::NetworkUnreachable));
        assert!(insist(&Shared::default(), down).is_err());
    }

    #[test]
    fn the_first_failure_ends_the_wait_for_the_others() {
        let shared = Shared::default();
        shared.run("client 0", || Ok(()));
        shared.is_ready();
        shared.wait_for(1, 0).unwrap();
        assert!(shared.wait_for(2, 1000).unwrap_err().to_string().contains("1 of 2"));
        shared.run("client 1", || anyhow::bail!("refused"));
        assert_eq!(shared.wait_for(2, u64::MAX).unwrap_err().to_string(), "client 1: refused");
    }
}
