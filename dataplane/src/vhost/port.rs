//! One port of the control thread: its socket, its connection, its counts.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::UnixAddr;

use super::device::Device;
use super::error_chain;
use super::handler::{Ended, Handler};
use super::listener::Listener;
use super::socket::SocketStatus;
use super::stream::{Stream, StreamError};
use super::timers::Time;

/// Messages or connections of one port before the others have their turn.
pub(super) const TURN: usize = 16;
/// The first pause between two attempts to connect; it doubles from there.
const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// The socket that a port waits on for its front end.
#[derive(Debug)]
pub(super) enum PortSocket {
    Listen(Listener),
    Connect(Dial),
}

/// Where a port connects to, and how patient it has become.
#[derive(Debug)]
pub(super) struct Dial {
    pub path: PathBuf,
    pub address: UnixAddr,
    pause: Duration,
}

impl Dial {
    pub fn new(path: &Path, address: UnixAddr) -> Self {
        Self { path: path.into(), address, pause: FIRST_PAUSE }
    }

    /// There is reason to hope again.
    pub fn hope(&mut self) {
        self.pause = FIRST_PAUSE;
    }

    /// Somebody will say when there is: attempts are for the case that this fails.
    pub fn be_patient(&mut self) {
        self.pause = Duration::MAX;
    }

    /// How long to wait before the next attempt; twice as long each time, up to `max`.
    pub fn next_pause(&mut self, max: Duration) -> Duration {
        let pause = self.pause.min(max);
        self.pause = pause.saturating_mul(2).min(max);
        pause
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionEnd {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Request(#[from] Ended),
    #[error("Failed to use the connection")]
    Io(#[from] io::Error),
    #[error("A message was not completed, or a reply not read, within {0:?}")]
    Deadline(Duration),
}

/// How a turn of messages came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// There may be more messages.
    More,
    /// Nothing to do until the peer sends.
    Idle,
    /// The peer owes the rest of a message, or room for a reply.
    Owed,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub stream: Stream,
    pub since: Time,
    /// Whether the epoll was told to say when there is room for a reply.
    pub awaits_room: bool,
}

#[derive(Debug)]
pub(super) struct Port {
    pub socket: PortSocket,
    pub connection: Option<Connection>,
    /// Came while there was a connection, and waits a while for its end.
    next: Option<UnixStream>,
    handler: Handler,
    connections: u64,
    connections_refused: u64,
    messages: u64,
    last_end: Option<String>,
}

impl Port {
    pub fn new(socket: PortSocket, device: Box<dyn Device>) -> Self {
        Self {
            socket,
            connection: None,
            next: None,
            handler: Handler::new(device),
            connections: 0,
            connections_refused: 0,
            messages: 0,
            last_end: None,
        }
    }

    pub fn begin(&mut self, connection: Connection) {
        self.connections += 1;
        self.connection = Some(connection);
        self.handler.connect();
    }

    /// Whether there is a connection whose peer has closed it.
    pub fn is_hung_up(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| has_hung_up(&connection.stream))
    }

    /// Lets `socket` wait for the end of the connection, or closes it if another waits already.
    pub fn queue(&mut self, socket: UnixStream) -> bool {
        self.next.take_if(|next| has_hung_up(next));
        if self.next.is_some() {
            self.connections_refused += 1;
            return false;
        }
        self.next = Some(socket);
        true
    }

    pub fn next_in_line(&mut self) -> Option<UnixStream> {
        self.next.take()
    }

    /// Closes what has waited long enough.
    pub fn refuse_next_in_line(&mut self) {
        if self.next.take().is_some() {
            self.connections_refused += 1;
        }
    }

    /// Ends the connection, if any: stops its rings, releases its memory, closes it.
    pub fn end(&mut self, why: &ConnectionEnd) -> Option<Connection> {
        let connection = self.connection.take()?;
        self.handler.disconnect();
        self.last_end = Some(error_chain(why));
        Some(connection)
    }

    /// Serves up to [`TURN`] messages; returns also how many they were.
    pub fn turn(&mut self) -> Result<(Turn, usize), ConnectionEnd> {
        let Some(Connection { stream, .. }) = &mut self.connection else {
            return Ok((Turn::Idle, 0));
        };
        for served in 0..TURN {
            stream.flush()?;
            if stream.has_unsent() {
                return Ok((Turn::Owed, served));
            }
            let Some(message) = stream.receive()? else {
                let turn = if stream.is_within_message() { Turn::Owed } else { Turn::Idle };
                return Ok((turn, served));
            };
            self.messages += 1;
            let reply = self.handler.serve(message.header, &message.payload, message.files)?;
            if let Some(reply) = reply {
                stream.send(&reply)?;
            }
        }
        Ok((Turn::More, TURN))
    }

    pub fn status(&self) -> SocketStatus {
        SocketStatus {
            link: self.handler.link().clone(),
            connected: self.connection.is_some(),
            connections: self.connections,
            connections_refused: self.connections_refused,
            messages: self.messages,
            messages_refused: self.handler.refused(),
            last_end: self.last_end.clone(),
            last_refusal: self.handler.last_refusal().map(str::to_owned),
        }
    }
}

/// Whether the peer has closed its end, whatever it sent before.
fn has_hung_up(socket: impl AsFd) -> bool {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    let polled = poll(&mut fds, PollTimeout::ZERO).is_ok();
    let seen = fds[0].revents().unwrap_or(PollFlags::empty());
    polled && seen.intersects(PollFlags::POLLHUP | PollFlags::POLLERR)
}

impl Drop for Port {
    fn drop(&mut self) {
        self.handler.disconnect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_between_attempts_doubles_up_to_its_limit() {
        let path = Path::new("/run/vm");
        let mut dial = Dial::new(path, UnixAddr::new(path).unwrap());
        let max = Duration::from_millis(5);
        let pauses: Vec<_> = (0..5).map(|_| dial.next_pause(max).as_millis()).collect();
        assert_eq!(pauses, [1, 2, 4, 5, 5]);
        dial.hope();
        assert_eq!(dial.next_pause(max).as_millis(), 1);
    }
}
