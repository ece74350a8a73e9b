//! One TCP stream from guest to guest, with a checksum at both ends.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use slipway_agent::pattern::{Digest, Stream};
use slipway_agent::protocol::{Answer, Receive, Refusal, RefusalCode, TcpSend, Transfer};

use crate::clock;

/// Bytes per system call: the most that one segment with offloads carries, so that the calls do
/// not show in the throughput.
const CHUNK: usize = 64 * 1024;

/// A receiver that listens.
pub struct Receiver {
    listener: TcpListener,
    timeout: Duration,
}

impl Receiver {
    /// Listens on the port asked for.
    pub fn listen(receive: &Receive) -> Result<Self, Refusal> {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, receive.port))
            .map_err(|error| failed(&format!("listen on TCP port {}", receive.port), &error))?;
        Ok(Self { listener, timeout: Duration::from_millis(receive.timeout_ms.into()) })
    }

    /// The port it listens on.
    pub fn port(&self) -> Result<u16, Refusal> {
        let address = self.listener.local_addr();
        address.map(|address| address.port()).map_err(|error| failed("name the port", &error))
    }

    /// Takes one connection and reads it to its end.
    pub fn run(self) -> Result<Answer, Refusal> {
        let mut stream = self.accept().map_err(|error| failed("accept a connection", &error))?;
        stream
            .set_read_timeout(Some(self.timeout))
            .map_err(|error| failed("set the time-out", &error))?;
        let (mut digest, mut started) = (Digest::default(), clock::now());
        let mut buffer = vec![0; CHUNK];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return Ok(transfer(&digest, started)),
                Ok(length) => {
                    if digest.bytes() == 0 {
                        started = clock::now();
                    }
                    digest.update(&buffer[..length]);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    let what = format!("receive after {} bytes", digest.bytes());
                    return Err(failed(&what, &error));
                }
            }
        }
    }

    fn accept(&self) -> io::Result<TcpStream> {
        let mut fds = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        // MAX_WAIT_MS is well within what a poll takes.
        let timeout = PollTimeout::try_from(self.timeout).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout)? {
            0 => Err(ErrorKind::TimedOut.into()),
            _ => Ok(self.listener.accept()?.0),
        }
    }
}

/// Sends the stream and waits until the peer has read it to its end.
pub fn send(send: &TcpSend) -> Result<Answer, Refusal> {
    let address = SocketAddr::from((send.dst, send.port));
    let timeout = Duration::from_millis(send.timeout_ms.into());
    let mut stream = TcpStream::connect_timeout(&address, timeout)
        .map_err(|error| failed(&format!("connect to {address}"), &error))?;
    let mut digest = Digest::default();
    let started = clock::now();
    push(&mut stream, send, timeout, &mut digest).map_err(|error| {
        let sent = digest.bytes();
        failed(&format!("send to {address} after {sent} of {} bytes", send.bytes), &error)
    })?;
    Ok(transfer(&digest, started))
}

fn push(
    stream: &mut TcpStream,
    send: &TcpSend,
    timeout: Duration,
    digest: &mut Digest,
) -> io::Result<()> {
    stream.set_write_timeout(Some(timeout))?;
    stream.set_read_timeout(Some(timeout))?;
    let (mut pattern, mut buffer) = (Stream::new(send.seed), vec![0; CHUNK]);
    while digest.bytes() < send.bytes {
        let length = (send.bytes - digest.bytes()).min(CHUNK as u64) as usize;
        let chunk = &mut buffer[..length];
        pattern.fill(chunk);
        stream.write_all(chunk)?;
        digest.update(chunk);
    }
    stream.shutdown(Shutdown::Write)?;
    // The receiver closes once it has read all; it sends nothing.
    match stream.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(io::Error::new(ErrorKind::InvalidData, "the receiver sent data")),
    }
}

fn transfer(digest: &Digest, started: Instant) -> Answer {
    Answer::Transfer(Transfer {
        bytes: digest.bytes(),
        checksum: format!("{:016x}", digest.value()),
        seconds: started.elapsed().as_secs_f64(),
    })
}

fn failed(what: &str, error: &io::Error) -> Refusal {
    let code = match error.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => RefusalCode::TimedOut,
        _ => RefusalCode::Failed,
    };
    Refusal::new(code, format!("Failed to {what}: {error}"))
}
