//! The vhost-user sockets of all ports, served by one control thread.
//!
//! # How it works
//! [`VhostThread::spawn`] starts a thread with one epoll. It accepts and makes connections, turns
//! their bytes into requests to each port's [`Device`], and runs the tasks of others that want a
//! thread but not one of their own. The methods of [`VhostThread`] may be called from any thread;
//! they hand the thread a closure and return when it has run.
//!
//! A port listens, or connects to a listening VMM. Either way it has one connection at a time, and
//! after its end waits for the next at once. A front end that comes while another is connected
//! waits for [`VhostConfig::message_deadline`] and is then refused by closing (and counted); a third
//! is refused at once. So a VMM that restarts while its predecessor still dies is not locked out,
//! and a stranger cannot push a VMM off its port.
//!
//! # Bounds
//! A turn of one port is at most 16 messages or connections, then the others have theirs. A
//! message that is not complete, or a reply that is not read, within
//! [`VhostConfig::message_deadline`] ends its connection. No read, write, accept or connect blocks.
//! File descriptors of a port: its listener, its connection, two or three a ring (kick, call,
//! error) and one a memory region; the process limit is raised to the hard limit at the start.
//! Without descriptors left, connections wait in the kernel's queue and are looked at again after a
//! pause.
//!
//! # Threads
//! One, named `slipway-vhost`, whatever the number of ports. It calls [`Device`] methods, and those
//! wait for PMD threads; a PMD thread must never wait for it.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, ThreadId};
use std::time::Duration;

use crossbeam::channel::{Sender, bounded, unbounded};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;

use super::device::{Device, LinkEvent};
use super::event_loop::{Command, EventLoop};
use super::eventfd::EventFd;
pub use super::listener::PortSocketError;
use super::listener::{Listener, address};
use super::port::{Dial, PortSocket};
use super::unblock;

/// What the control thread is told at its start.
#[derive(Debug, Clone)]
pub struct VhostConfig {
    /// How long a message may stay incomplete, a reply unread, or a second front end wait.
    pub message_deadline: Duration,
    /// The longest pause between two attempts to connect to a VMM that listens.
    pub reconnect_max: Duration,
    /// Cores the thread may run on; empty: those of the thread that spawns it.
    pub cores: Vec<usize>,
}

impl Default for VhostConfig {
    fn default() -> Self {
        Self {
            message_deadline: Duration::from_secs(1),
            reconnect_max: Duration::from_millis(100),
            cores: Vec::new(),
        }
    }
}

/// Which side of the socket a port is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketMode {
    /// The switch listens, the VMM connects.
    Listen {
        /// Mode bits of the socket file, such as 0o600: who may write may connect.
        permissions: u32,
        /// Group of the socket file; `None`: ours.
        group: Option<u32>,
    },
    /// The VMM listens, the switch connects, as often as the VMM restarts.
    Connect,
}

/// How the socket of a port fares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketStatus {
    /// State of the link.
    pub link: LinkEvent,
    /// Whether a front end is connected.
    pub connected: bool,
    /// Connections so far.
    pub connections: u64,
    /// Connections refused because the port had one and kept it.
    pub connections_refused: u64,
    /// Messages so far, over all connections.
    pub messages: u64,
    /// Messages refused so far, over all connections.
    pub messages_refused: u64,
    /// Why the latest connection that ended did.
    pub last_end: Option<String>,
    /// Why the latest message that was refused was.
    pub last_refusal: Option<String>,
}

/// The control thread has been shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("The vhost-user control thread has been shut down")]
pub struct Stopped;

/// Makes a task of the control thread run; see [`VhostThread::add_wake_task`].
#[derive(Debug, Clone)]
pub struct Waker(Arc<WakerState>);

#[derive(Debug)]
struct WakerState {
    pending: AtomicBool,
    event: EventFd,
}

impl Waker {
    fn new() -> io::Result<Self> {
        let state = WakerState { pending: AtomicBool::new(false), event: EventFd::new()? };
        Ok(Self(Arc::new(state)))
    }

    /// The task runs once more, soon. Never blocks; a system call only if no run is pending yet.
    pub fn wake(&self) {
        // ORDERING: what was written before the call is seen by the run that this causes or finds
        // pending: `begin` reads the flag with the same kind of exchange.
        if !self.0.pending.swap(true, Ordering::AcqRel) {
            self.0.event.signal();
        }
    }

    /// A run begins: later calls of `wake` cause another.
    pub(super) fn begin(&self) {
        self.0.event.drain();
        self.0.pending.swap(false, Ordering::AcqRel);
    }

    pub(super) fn event(&self) -> &EventFd {
        &self.0.event
    }
}

/// The control thread; dropping it shuts it down.
#[derive(Debug)]
pub struct VhostThread {
    commands: Sender<Command>,
    wake: EventFd,
    thread: ThreadId,
    join: Mutex<Option<JoinHandle<()>>>,
}

impl VhostThread {
    /// Starts the thread and raises this process's limit of file descriptors to the hard limit.
    /// Call it from a thread that is not pinned, or name the cores: affinity is inherited.
    pub fn spawn(config: VhostConfig) -> io::Result<Self> {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        let mut cores = CpuSet::new();
        for &core in &config.cores {
            cores.set(core)?;
        }
        let pinned = !config.cores.is_empty();
        let (commands, inbox) = unbounded();
        let wake = EventFd::new()?;
        let mut event_loop = EventLoop::new(&config, inbox, wake.clone())?;
        let (ready, is_ready) = bounded(1);
        let join = std::thread::Builder::new().name("slipway-vhost".into()).spawn(move || {
            let pin = || if pinned { sched_setaffinity(Pid::from_raw(0), &cores) } else { Ok(()) };
            let outcome =
                pin().map_err(io::Error::from).and_then(|()| unblock::watch_this_thread());
            let may_run = outcome.is_ok();
            // The spawner waits for this.
            let _ = ready.send(outcome);
            if may_run {
                event_loop.run();
            }
        })?;
        let thread = join.thread().id();
        is_ready.recv().map_err(io::Error::other)??;
        Ok(Self { commands, wake, thread, join: Mutex::new(Some(join)) })
    }

    /// Adds a port; on return it listens, or has begun to try to connect. A listening port's file
    /// is bound on the calling thread. On an error nothing has changed and the device is dropped.
    pub fn add_port(
        &self,
        id: u32,
        path: &Path,
        mode: SocketMode,
        device: Box<dyn Device>,
    ) -> Result<(), PortSocketError> {
        let socket = match mode {
            SocketMode::Listen { permissions, group } => {
                PortSocket::Listen(Listener::bind(path, permissions, group)?)
            }
            SocketMode::Connect => PortSocket::Connect(Dial::new(path, address(path)?)),
        };
        self.run(move |event_loop| event_loop.add_port(id, socket, device))
            .unwrap_or(Err(PortSocketError::Stopped))
    }

    /// Removes a port; on return its sockets are closed, its file is gone if it was still ours, its
    /// rings are stopped and its device is dropped. `false` if there is none.
    pub fn remove_port(&self, id: u32) -> bool {
        self.run(move |event_loop| event_loop.remove_port(id)).unwrap_or(false)
    }

    /// How the socket of a port fares; `None` if there is none.
    pub fn port_status(&self, id: u32) -> Option<SocketStatus> {
        self.run(move |event_loop| event_loop.port_status(id)).ok().flatten()
    }

    /// Runs `f` on the control thread and returns what it returns.
    pub fn call<R: Send + 'static>(
        &self,
        f: impl FnOnce() -> R + Send + 'static,
    ) -> Result<R, Stopped> {
        self.run(move |_| f())
    }

    /// Runs `task` on the control thread, the first time after `interval`, then with that pause
    /// between its end and its next begin.
    pub fn add_task(
        &self,
        interval: Duration,
        task: impl FnMut() + Send + 'static,
    ) -> Result<(), Stopped> {
        self.run(move |event_loop| event_loop.add_task(interval, Box::new(task)))
    }

    /// Runs `task` on the control thread whenever the waker is used: at least once after each use,
    /// once for several that come close together.
    pub fn add_wake_task(&self, task: impl FnMut() + Send + 'static) -> io::Result<Waker> {
        let waker = Waker::new()?;
        let for_loop = waker.clone();
        self.run(move |event_loop| event_loop.add_wake_task(for_loop, Box::new(task)))
            .map_err(io::Error::other)??;
        Ok(waker)
    }

    /// Removes all ports and ends the thread; on return it is gone. Again: does nothing.
    pub fn shutdown(&self) {
        let join = self.join.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(join) = join {
            // An error here or there means that the thread is gone already.
            let _ = self.run(EventLoop::stop);
            if join.join().is_err() {
                tracing::error!("The vhost-user control thread panicked");
            }
        }
    }

    /// Runs `f` on the thread's state.
    ///
    /// # Panics
    /// On the control thread itself, where it would wait for ever.
    fn run<R: Send + 'static>(
        &self,
        f: impl FnOnce(&mut EventLoop) -> R + Send + 'static,
    ) -> Result<R, Stopped> {
        assert!(
            std::thread::current().id() != self.thread,
            "a task or device of the vhost-user control thread called the thread it runs on"
        );
        let (answer, answered) = bounded(1);
        let command = Box::new(move |event_loop: &mut EventLoop| {
            // The asker waits for it.
            let _ = answer.send(f(event_loop));
        });
        self.commands.send(command).map_err(|_| Stopped)?;
        self.wake.signal();
        answered.recv().map_err(|_| Stopped)
    }
}

impl Drop for VhostThread {
    fn drop(&mut self) {
        self.shutdown();
    }
}
