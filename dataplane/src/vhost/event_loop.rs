//! The loop of the control thread: what is ready, whose turn it is, what is due.
//!
//! # How it works
//! Everything is watched edge-triggered and used until the kernel says "would block"; what a turn
//! leaves over is put on a timer that is due at once, behind the others. So half a message, a
//! connection that cannot be accepted or a full buffer never make the loop spin.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use crossbeam::channel::Receiver;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::device::Device;
use super::eventfd::EventFd;
use super::listener::{PortSocketError, dial};
use super::port::{Connection, ConnectionEnd, Port, PortSocket, TURN, Turn};
use super::socket::{SocketStatus, VhostConfig, Waker};
use super::stream::{Stream, StreamError};
use super::timers::{Timer, Timers, now};
use super::watch::Watcher;

/// A closure for the loop to run.
pub(super) type Command = Box<dyn FnOnce(&mut EventLoop) + Send>;

/// How long to wait before accepting again without file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What an epoll event is about: the kind in the upper half, a number in the lower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Commands,
    Listener(u32),
    Connection(u32),
    WakeTask(u32),
    Watcher,
}

impl Token {
    fn to_u64(self) -> u64 {
        let (kind, number) = match self {
            Self::Commands => (0, 0),
            Self::Listener(id) => (1, id),
            Self::Connection(id) => (2, id),
            Self::WakeTask(at) => (3, at),
            Self::Watcher => (4, 0),
        };
        kind << 32 | u64::from(number)
    }

    fn from_u64(raw: u64) -> Self {
        let number = (raw & u64::from(u32::MAX)) as u32;
        match raw >> 32 {
            1 => Self::Listener(number),
            2 => Self::Connection(number),
            3 => Self::WakeTask(number),
            4 => Self::Watcher,
            _ => Self::Commands,
        }
    }
}

struct Task {
    interval: Duration,
    run: Box<dyn FnMut() + Send>,
}

struct WakeTask {
    waker: Waker,
    run: Box<dyn FnMut() + Send>,
}

/// The state of the control thread.
pub(super) struct EventLoop {
    epoll: Epoll,
    commands: Receiver<Command>,
    wake: EventFd,
    message_deadline: Duration,
    reconnect_max: Duration,
    ports: HashMap<u32, Port>,
    /// Which port connects to which socket.
    dialled: HashMap<PathBuf, u32>,
    timers: Timers,
    watcher: Option<Watcher>,
    tasks: Vec<Task>,
    wake_tasks: Vec<WakeTask>,
    stopped: bool,
}

impl EventLoop {
    pub fn new(
        config: &VhostConfig,
        commands: Receiver<Command>,
        wake: EventFd,
    ) -> io::Result<Self> {
        let mut event_loop = Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            commands,
            wake,
            message_deadline: config.message_deadline,
            reconnect_max: config.reconnect_max,
            ports: HashMap::new(),
            dialled: HashMap::new(),
            timers: Timers::default(),
            watcher: Watcher::new()
                .inspect_err(|errno| tracing::warn!("Sockets are found by polling only: {errno}"))
                .ok(),
            tasks: Vec::new(),
            wake_tasks: Vec::new(),
            stopped: false,
        };
        event_loop.watch(&event_loop.wake, Token::Commands, EpollFlags::EPOLLIN)?;
        if let Some(watcher) = event_loop.watcher.take() {
            event_loop.watch(&watcher, Token::Watcher, EpollFlags::EPOLLIN)?;
            event_loop.watcher = Some(watcher);
        }
        Ok(event_loop)
    }

    fn watch(&self, fd: impl AsFd, token: Token, flags: EpollFlags) -> nix::Result<()> {
        let flags = flags | EpollFlags::EPOLLET;
        self.epoll.add(fd, EpollEvent::new(flags, token.to_u64()))
    }

    /// Runs until [`Self::stop`].
    pub fn run(&mut self) {
        let mut events = [EpollEvent::empty(); 64];
        while !self.stopped {
            let timeout = self.timers.next_in(now()).map_or(EpollTimeout::NONE, |wait| {
                // Rounded up, so that what is waited for is due when the wait ends.
                let millis = wait.as_micros().div_ceil(1000).min(60_000);
                u16::try_from(millis).map_or(EpollTimeout::ZERO, EpollTimeout::from)
            });
            let ready = match self.epoll.wait(&mut events, timeout) {
                Ok(count) => &events[..count],
                Err(Errno::EINTR) => continue,
                // Only a bug can cause another error; serving on would spin.
                Err(errno) => panic!("epoll_wait of the vhost-user control thread: {errno}"),
            };
            for event in ready {
                self.on_event(Token::from_u64(event.data()));
            }
            // One at a time, as each may make others void. What they make due has its turn after
            // the next look at the sockets.
            let due_by = now();
            while let Some(timer) = self.timers.pop(due_by) {
                self.on_timer(timer);
            }
        }
    }

    /// Ends the loop once the events at hand are dealt with.
    pub fn stop(&mut self) {
        let ids: Vec<_> = self.ports.keys().copied().collect();
        for id in ids {
            self.remove_port(id);
        }
        self.stopped = true;
    }

    fn on_event(&mut self, token: Token) {
        match token {
            Token::Commands => {
                self.wake.drain();
                while let Ok(command) = self.commands.try_recv() {
                    command(self);
                }
            }
            Token::Listener(id) => self.accept(id),
            Token::Connection(id) => self.serve(id),
            Token::WakeTask(at) => {
                if let Some(task) = self.wake_tasks.get_mut(at as usize) {
                    task.waker.begin();
                    (task.run)();
                }
            }
            Token::Watcher => {
                let appeared = self.watcher.as_mut().map_or_else(Vec::new, Watcher::appeared);
                for id in appeared {
                    if let Some(PortSocket::Connect(dial)) = self.socket(id) {
                        dial.hope();
                        self.connect(id);
                    }
                }
            }
        }
    }

    fn socket(&mut self, id: u32) -> Option<&mut PortSocket> {
        self.ports.get_mut(&id).map(|port| &mut port.socket)
    }

    fn on_timer(&mut self, timer: Timer) {
        match timer {
            Timer::Message(id) => {
                let end = ConnectionEnd::Deadline(self.message_deadline);
                self.disconnect(id, &end);
            }
            Timer::Patience(id) => {
                if let Some(port) = self.ports.get_mut(&id) {
                    port.refuse_next_in_line();
                }
            }
            Timer::Serve(id) => self.serve(id),
            Timer::Accept(id) => self.accept(id),
            Timer::Connect(id) => self.connect(id),
            Timer::Task(at) => {
                if let Some(task) = self.tasks.get_mut(at) {
                    (task.run)();
                    self.timers.set(Timer::Task(at), now() + task.interval);
                }
            }
        }
    }

    pub fn add_task(&mut self, interval: Duration, run: Box<dyn FnMut() + Send>) {
        self.timers.set(Timer::Task(self.tasks.len()), now() + interval);
        self.tasks.push(Task { interval, run });
    }

    pub fn add_wake_task(&mut self, waker: Waker, run: Box<dyn FnMut() + Send>) -> io::Result<()> {
        let at = u32::try_from(self.wake_tasks.len()).map_err(io::Error::other)?;
        self.watch(waker.event(), Token::WakeTask(at), EpollFlags::EPOLLIN)?;
        self.wake_tasks.push(WakeTask { waker, run });
        Ok(())
    }

    pub fn add_port(
        &mut self,
        id: u32,
        socket: PortSocket,
        device: Box<dyn Device>,
    ) -> Result<(), PortSocketError> {
        if self.ports.contains_key(&id) {
            return Err(PortSocketError::IdInUse { id });
        }
        match &socket {
            PortSocket::Listen(listener) => {
                self.watch(listener, Token::Listener(id), EpollFlags::EPOLLIN).map_err(
                    |errno| PortSocketError::Io {
                        action: "watch",
                        path: listener.path().into(),
                        source: errno.into(),
                    },
                )?;
            }
            PortSocket::Connect(dial) => {
                if let Some(&other) = self.dialled.get(&dial.path) {
                    return Err(PortSocketError::PathInUse { id: other, path: dial.path.clone() });
                }
                self.dialled.insert(dial.path.clone(), id);
                if let Some(watcher) = &mut self.watcher {
                    watcher.add(&dial.path, id);
                }
            }
        }
        self.ports.insert(id, Port::new(socket, device));
        self.connect(id);
        Ok(())
    }

    pub fn remove_port(&mut self, id: u32) -> bool {
        let Some(port) = self.ports.remove(&id) else { return false };
        let all = [Timer::Message, Timer::Patience, Timer::Serve, Timer::Accept, Timer::Connect];
        for timer in all {
            self.timers.clear(timer(id));
        }
        if let PortSocket::Connect(dial) = &port.socket {
            self.dialled.remove(&dial.path);
            if let Some(watcher) = &mut self.watcher {
                watcher.remove(&dial.path);
            }
        }
        // Stops its rings, closes its sockets, which takes them out of the epoll, and removes its
        // file.
        drop(port);
        true
    }

    pub fn port_status(&self, id: u32) -> Option<SocketStatus> {
        self.ports.get(&id).map(Port::status)
    }

    /// A turn of a listening port's new connections.
    fn accept(&mut self, id: u32) {
        for _ in 0..TURN {
            let Some(PortSocket::Listen(listener)) = self.socket(id) else { return };
            let socket = match listener.accept() {
                Ok(socket) => socket,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return,
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => continue,
                    // No descriptors or memory left.
                    _ => {
                        tracing::debug!("Port {id} cannot accept a connection now: {error}");
                        return self.timers.set(Timer::Accept(id), now() + ACCEPT_PAUSE);
                    }
                },
            };
            // One that hung up may have come to be served, or not; its successor is here.
            while self.ports.get(&id).is_some_and(Port::is_hung_up) {
                self.disconnect(id, &StreamError::Closed.into());
            }
            let Some(port) = self.ports.get_mut(&id) else { return };
            if port.connection.is_none() {
                self.adopt(id, socket);
            } else if port.queue(socket) {
                self.timers.set(Timer::Patience(id), now() + self.message_deadline);
            }
        }
        self.timers.set(Timer::Accept(id), now());
    }

    /// An attempt of a connecting port that has no connection.
    fn connect(&mut self, id: u32) {
        let Some(port) = self.ports.get_mut(&id) else { return };
        let (PortSocket::Connect(target), None) = (&port.socket, &port.connection) else { return };
        // Before the attempt: what appears after it is told then.
        let watched = self.watcher.as_mut().is_some_and(|watcher| watcher.renew(&target.path));
        match dial(&target.address) {
            Ok(socket) => {
                self.timers.clear(Timer::Connect(id));
                self.adopt(id, socket);
            }
            Err(Errno::ENOENT) if watched => {
                if let Some(PortSocket::Connect(dial)) = self.socket(id) {
                    dial.be_patient();
                }
                self.connect_later(id);
            }
            // Not there yet, not listening yet, its queue full, no descriptors left: all pass.
            Err(_) => self.connect_later(id),
        }
    }

    fn connect_later(&mut self, id: u32) {
        let max = self.reconnect_max;
        if let Some(PortSocket::Connect(dial)) = self.socket(id) {
            let pause = dial.next_pause(max);
            self.timers.set(Timer::Connect(id), now() + pause);
        }
    }

    /// Makes `socket` the connection of a port that has none.
    fn adopt(&mut self, id: u32, socket: UnixStream) {
        let Some(port) = self.ports.get_mut(&id) else { return };
        let watched = Stream::new(socket).and_then(|stream| {
            self.epoll.add(&stream, connection_event(id, false))?;
            Ok(stream)
        });
        match watched {
            Ok(stream) => {
                port.begin(Connection { stream, since: now(), awaits_room: false });
            }
            // The front end sees its connection closed and tries again, or we do.
            Err(error) => {
                tracing::debug!("Port {id} cannot use its new connection: {error}");
                self.connect_later(id);
            }
        }
    }

    /// A turn of a port's messages.
    fn serve(&mut self, id: u32) {
        let Some(port) = self.ports.get_mut(&id) else { return };
        let (turn, served) = match port.turn() {
            Ok(turn) => turn,
            Err(end) => return self.disconnect(id, &end),
        };
        // Whatever was owed before has come, if a message was served.
        if served > 0 || turn == Turn::Idle {
            self.timers.clear(Timer::Message(id));
        }
        match turn {
            Turn::Idle => {}
            Turn::More => self.timers.set(Timer::Serve(id), now()),
            Turn::Owed => {
                self.timers.set_once(Timer::Message(id), now() + self.message_deadline);
            }
        }
        let Some(Connection { stream, awaits_room, .. }) = &mut port.connection else { return };
        if *awaits_room != stream.has_unsent() {
            *awaits_room = stream.has_unsent();
            if let Err(errno) = self.epoll.modify(&*stream, &mut connection_event(id, *awaits_room))
            {
                self.disconnect(id, &ConnectionEnd::Io(errno.into()));
            }
        }
    }

    fn disconnect(&mut self, id: u32, why: &ConnectionEnd) {
        let ended = self.ports.get_mut(&id).and_then(|port| port.end(why));
        let Some(connection) = ended else { return };
        tracing::debug!("Port {id} is disconnected: {why}");
        self.timers.clear(Timer::Message(id));
        self.timers.clear(Timer::Serve(id));
        let Some(port) = self.ports.get_mut(&id) else { return };
        if let Some(next) = port.next_in_line() {
            self.timers.clear(Timer::Patience(id));
            return self.adopt(id, next);
        }
        if let PortSocket::Connect(dial) = &mut port.socket {
            // One that hangs up right away again and again is tried less and less often.
            if now().saturating_sub(connection.since) >= self.reconnect_max {
                dial.hope();
            }
            self.connect_later(id);
        }
    }
}

fn connection_event(id: u32, room: bool) -> EpollEvent {
    let room = if room { EpollFlags::EPOLLOUT } else { EpollFlags::empty() };
    let flags = EpollFlags::EPOLLET | EpollFlags::EPOLLIN | room;
    EpollEvent::new(flags, Token::Connection(id).to_u64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_way_through_the_kernel() {
        let all = [
            Token::Commands,
            Token::Listener(u32::MAX),
            Token::Connection(0),
            Token::WakeTask(7),
            Token::Watcher,
        ];
        for token in all {
            assert_eq!(Token::from_u64(token.to_u64()), token);
        }
    }
}
