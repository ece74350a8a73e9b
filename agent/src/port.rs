//! The Kata agent protocol over a virtio-serial port: one byte stream that hosts come to and
//! leave.
//!
//! ```text
//!            port                     pair of sockets
//! host A  <========>  pump  <---------------------------------->  ttrpc connection 1
//! (away)              pump     (dropped: the connection ends)
//! host B  <========>  pump  <---------------------------------->  ttrpc connection 2
//! ```
//!
//! The port can be opened once, so this thread keeps it and makes a fresh pair for each host that
//! begins to talk. What was meant for a host that left is thrown away: the next one must not find
//! the end of a stranger's answer.
//!
//! # Bounds
//! One buffer of [`CHUNK`] bytes each way; a side that does not read holds up the other.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::mpsc::UnboundedSender;

/// Bytes in hand each way.
const CHUNK: usize = 64 * 1024;
/// How often to look for a host while none is connected: the driver offers nothing to wait on.
const LOOK_FOR_HOST: Duration = Duration::from_millis(20);

/// Bytes on their way.
struct Chunk {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

/// What came of an attempt to read or write.
enum Moved {
    /// Something, or nothing for now.
    On,
    /// The other side has closed.
    Closed,
}

impl Chunk {
    fn new() -> Self {
        Self { bytes: vec![0; CHUNK].into(), start: 0, end: 0 }
    }

    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    fn fill(&mut self, mut from: impl Read) -> io::Result<Moved> {
        match from.read(&mut self.bytes) {
            Ok(0) => Ok(Moved::Closed),
            Ok(length) => {
                (self.start, self.end) = (0, length);
                Ok(Moved::On)
            }
            Err(error) => later(error),
        }
    }

    fn drain(&mut self, mut to: impl Write) -> io::Result<Moved> {
        match to.write(&self.bytes[self.start..self.end]) {
            Ok(length) => {
                self.start += length;
                Ok(Moved::On)
            }
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Moved::Closed),
            Err(error) => later(error),
        }
    }

    fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }
}

fn later(error: io::Error) -> io::Result<Moved> {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::Interrupted => Ok(Moved::On),
        _ => Err(error),
    }
}

/// Moves bytes for ever; each connection's other socket goes to `accepted`.
///
/// # Errors
/// When the port is gone, or nobody takes connections any more.
pub fn pump(port: &File, accepted: &UnboundedSender<io::Result<UnixStream>>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(port, FcntlArg::F_GETFL)?);
    fcntl(port, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    let (mut inbound, mut outbound) = (Chunk::new(), Chunk::new());
    let mut connection: Option<UnixStream> = None;
    loop {
        wait(port, connection.as_ref(), &inbound, &outbound)?;
        if inbound.is_empty() {
            match inbound.fill(port)? {
                Moved::On => {}
                Moved::Closed => {
                    connection = None;
                    outbound.clear();
                    thread::sleep(LOOK_FOR_HOST);
                    continue;
                }
            }
        }
        if !inbound.is_empty() && connection.is_none() {
            let (ours, theirs) = UnixStream::pair()?;
            ours.set_nonblocking(true)?;
            theirs.set_nonblocking(true)?;
            accepted.send(Ok(theirs)).map_err(|_| ErrorKind::ConnectionRefused)?;
            connection = Some(ours);
        }
        if let Some(socket) = &connection
            && let Moved::Closed = exchange(socket, port, &mut inbound, &mut outbound)?
        {
            // The server gave the connection up, as over a protocol error: the rest of what this
            // host says has no reader.
            inbound.clear();
            connection = None;
        }
    }
}

fn exchange(
    mut socket: &UnixStream,
    port: &File,
    inbound: &mut Chunk,
    outbound: &mut Chunk,
) -> io::Result<Moved> {
    if !inbound.is_empty()
        && let Moved::Closed = inbound.drain(socket)?
    {
        return Ok(Moved::Closed);
    }
    if outbound.is_empty()
        && let Moved::Closed = outbound.fill(&mut socket)?
    {
        return Ok(Moved::Closed);
    }
    if !outbound.is_empty() {
        outbound.drain(port)?;
    }
    Ok(Moved::On)
}

/// Waits until one of the ends can go on.
fn wait(
    port: &File,
    connection: Option<&UnixStream>,
    inbound: &Chunk,
    outbound: &Chunk,
) -> io::Result<()> {
    let flags = |reads: bool, writes: bool| {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::POLLIN, reads);
        flags.set(PollFlags::POLLOUT, writes);
        flags
    };
    let mut fds = vec![PollFd::new(port.as_fd(), flags(inbound.is_empty(), !outbound.is_empty()))];
    if let Some(connection) = connection {
        let flags = flags(outbound.is_empty(), !inbound.is_empty());
        fds.push(PollFd::new(connection.as_fd(), flags));
    }
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::*;

    /// The host's end of a port, and the connections the guest's end makes.
    fn port() -> (UnixStream, UnboundedReceiver<io::Result<UnixStream>>) {
        let (host, guest) = UnixStream::pair().unwrap();
        let (sender, accepted) = unbounded_channel();
        thread::spawn(move || pump(&File::from(OwnedFd::from(guest)), &sender));
        (host, accepted)
    }

    fn accept(accepted: &mut UnboundedReceiver<io::Result<UnixStream>>) -> UnixStream {
        let connection = accepted.blocking_recv().unwrap().unwrap();
        connection.set_nonblocking(false).unwrap();
        connection
    }

    #[test]
    fn more_than_the_buffers_hold_arrives_in_order_both_ways() {
        let (mut host, mut accepted) = port();
        let sent: Vec<u8> = (0..3 * CHUNK + 7).map(|index| (index % 251) as u8).collect();
        let (mut writer, copy) = (host.try_clone().unwrap(), sent.clone());
        let writing = thread::spawn(move || writer.write_all(&copy));
        let mut connection = accept(&mut accepted);
        let mut echo = connection.try_clone().unwrap();
        let length = sent.len();
        let echoing =
            thread::spawn(move || io::copy(&mut (&mut connection).take(length as u64), &mut echo));
        let mut received = vec![0; length];
        host.read_exact(&mut received).unwrap();
        assert!(received == sent, "the bytes differ");
        writing.join().unwrap().unwrap();
        echoing.join().unwrap().unwrap();
    }

    #[test]
    fn a_connection_the_server_gave_up_is_followed_by_a_fresh_one() {
        let (mut host, mut accepted) = port();
        host.write_all(b"garbage").unwrap();
        let mut first = accept(&mut accepted);
        let mut seen = [0; 7];
        first.read_exact(&mut seen).unwrap();
        drop(first);
        // Until the pump has noticed, words still go to the old connection and are lost.
        let mut second = loop {
            host.write_all(b"x").unwrap();
            match accepted.try_recv() {
                Ok(connection) => break connection.unwrap(),
                Err(_) => thread::sleep(LOOK_FOR_HOST),
            }
        };
        second.set_nonblocking(false).unwrap();
        second.read_exact(&mut seen[..1]).unwrap();
        assert_eq!(seen[0], b'x');
    }

    #[test]
    fn the_connection_ends_when_the_host_leaves() {
        let (mut host, mut accepted) = port();
        host.write_all(b"hello").unwrap();
        let mut connection = accept(&mut accepted);
        drop(host);
        let mut all = Vec::new();
        connection.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"hello");
    }
}
