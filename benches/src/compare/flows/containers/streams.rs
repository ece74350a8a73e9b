//! Streams: clients write for a window, and what arrives in it is counted at the servers.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use dataplane::clock;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::GetStruct;

use super::place::{Pair, Shared, TIMEOUT, insist, is_late};
use crate::compare::arms::{Arm, Polled};
use crate::compare::flows::cpu::Cpu;
use crate::compare::flows::fair::{jain, max_over_min};
use crate::compare::flows::measurement::Reading;
use crate::interrupt;

/// Where the first stream's server listens.
const PORT: u16 = 5000;
/// What a server reads at once.
const BUFFER: usize = 128 * 1024;

/// What carries them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Writes as they come
    Tcp,
    /// Each write a datagram
    Udp,
}

/// What is sent.
#[derive(Debug, Clone, Copy)]
pub struct Streams {
    /// How.
    pub protocol: Protocol,
    /// Bytes of a write.
    pub bytes: usize,
    /// Between each pair.
    pub each: usize,
    /// Before the window.
    pub warm_up: Duration,
    /// The window.
    pub window: Duration,
}

/// What the kernel knows of a connection.
#[derive(Debug, Clone, Copy)]
struct TcpInfo;
nix::getsockopt_impl!(
    TcpInfo,
    libc::IPPROTO_TCP,
    libc::TCP_INFO,
    libc::tcp_info,
    GetStruct<libc::tcp_info>
);

/// What is counted of a stream.
#[derive(Debug, Default)]
struct Counters {
    sent: AtomicU64,
    received: AtomicU64,
    /// Segments, of a stream's whole life.
    retransmitted: AtomicU64,
}

/// Runs them.
///
/// # Errors
/// Not all connect; the kernel does not tell what is measured; someone wants us to end.
pub fn run(streams: &Streams, pairs: &[Pair<'_>], arm: &dyn Arm) -> Result<Reading> {
    let all: Vec<_> = (0..pairs.len() * streams.each).map(|_| Counters::default()).collect();
    let shared = Shared::default();
    let window = thread::scope(|scope| {
        for (index, counters) in all.iter().enumerate() {
            let (pair, port) = (pairs[index / streams.each], PORT + (index % streams.each) as u16);
            let (streams, shared) = (*streams, &shared);
            scope.spawn(move || {
                shared.run(&format!("server {index}"), || {
                    pair.server.enter()?;
                    receive(streams.protocol, pair, port, shared, counters)
                });
            });
            scope.spawn(move || {
                shared.run(&format!("client {index}"), || {
                    pair.client.enter()?;
                    send(streams, pair, port, shared, counters)
                });
            });
        }
        // Both ends of each.
        let window = shared.wait_for_connections(2 * all.len()).and_then(|()| {
            thread::sleep(streams.warm_up);
            let before = Moment::now(&all, arm)?;
            thread::sleep(streams.window);
            let after = Moment::now(&all, arm)?;
            Ok((before, after))
        });
        shared.end();
        window
    });
    interrupt::check()?;
    let (before, after) = window?;
    let mut reading = Reading { failures: shared.failures(), ..Reading::default() };
    enter(&mut reading, streams, (&before, &after), &all);
    Ok(reading)
}

/// What was so at one moment.
struct Moment {
    ticks: u64,
    cpu: Cpu,
    polled: Option<Polled>,
    sent: Vec<u64>,
    received: Vec<u64>,
}

impl Moment {
    fn now(all: &[Counters], arm: &dyn Arm) -> Result<Self> {
        let polled = arm.polled()?;
        let of = |counter: fn(&Counters) -> &AtomicU64| {
            all.iter().map(|counters| counter(counters).load(Ordering::Relaxed)).collect()
        };
        let cpu = Cpu::now()?;
        let (sent, received) = (of(|c| &c.sent), of(|c| &c.received));
        Ok(Self { ticks: clock::ticks(), cpu, polled, sent, received })
    }
}

fn enter(
    reading: &mut Reading,
    streams: &Streams,
    (before, after): (&Moment, &Moment),
    all: &[Counters],
) {
    let ticks = after.ticks - before.ticks;
    let seconds = ticks as f64 / clock::ticks_per_us() as f64 / 1e6;
    let gained = |of: fn(&Moment) -> &Vec<u64>| -> Vec<f64> {
        of(after).iter().zip(of(before)).map(|(after, before)| (after - before) as f64).collect()
    };
    let (sent, received) = (gained(|m| &m.sent), gained(|m| &m.received));
    let bytes: f64 = received.iter().sum();
    let shares: Vec<_> = received.iter().map(|bytes| bytes * 8.0 / 1e9 / seconds).collect();
    reading.value("gbit_per_s", shares.iter().sum());
    if let Some(index) = jain(&shares) {
        reading.value("jain", index);
    }
    if let Some(ratio) = max_over_min(&shares) {
        reading.value("max_over_min", ratio);
    }
    // With some of these there is no ratio.
    reading.value("starved", shares.iter().filter(|share| **share == 0.0).count() as f64);
    reading.distribution("per_client_gbit_per_s", shares);
    (after.cpu - before.cpu).enter(reading, bytes);
    if let (Some(after), Some(before)) = (after.polled, before.polled) {
        let busy = (after.busy_ticks - before.busy_ticks) as f64;
        reading.value("pmd_busy", 100.0 * busy / ticks as f64);
        let frames = (after.frames - before.frames) as f64;
        reading.value("pmd_frames_per_s", frames / seconds);
        reading.value("pmd_cycles_per_frame", busy / frames);
    }
    match streams.protocol {
        Protocol::Udp => {
            let sent: f64 = sent.iter().sum();
            // What was under way at the window's begin may arrive in it.
            reading.value("lost_percent", (100.0 * (1.0 - bytes / sent)).max(0.0));
        }
        Protocol::Tcp => {
            let sum = |of: fn(&Counters) -> &AtomicU64| {
                all.iter().map(|counters| of(counters).load(Ordering::Relaxed)).sum::<u64>() as f64
            };
            let (segments, sent) = (sum(|c| &c.retransmitted), sum(|c| &c.sent));
            reading.value("retransmitted_segments", segments);
            reading.value("retransmitted_per_gbyte", segments / (sent / 1e9));
        }
    }
}

/// A server's socket.
enum Socket {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl Socket {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Udp(socket) => socket.recv(buffer),
        }
    }
}

fn receive(
    protocol: Protocol,
    pair: Pair<'_>,
    port: u16,
    shared: &Shared,
    counters: &Counters,
) -> Result<()> {
    let address = pair.server.address(port);
    let mut socket = match protocol {
        Protocol::Udp => {
            let socket = UdpSocket::bind(address).context("Failed to bind")?;
            socket.set_read_timeout(Some(TIMEOUT))?;
            Socket::Udp(socket)
        }
        Protocol::Tcp => {
            let listener = TcpListener::bind(address).context("Failed to listen")?;
            let Some(stream) = accept(&listener, shared)? else { return Ok(()) };
            stream.set_read_timeout(Some(TIMEOUT))?;
            Socket::Tcp(stream)
        }
    };
    shared.is_ready();
    let mut buffer = vec![0; BUFFER];
    while !shared.is_over() {
        match socket.read(&mut buffer) {
            Ok(0) if protocol == Protocol::Tcp => break,
            Ok(length) => {
                counters.received.fetch_add(length as u64, Ordering::Relaxed);
            }
            Err(error) if is_late(&error) => {}
            // The client ended first.
            Err(_) if shared.is_over() => break,
            Err(error) => return Err(error).context("Failed to receive"),
        }
    }
    Ok(())
}

fn send(
    streams: Streams,
    pair: Pair<'_>,
    port: u16,
    shared: &Shared,
    counters: &Counters,
) -> Result<()> {
    let (address, data) = (pair.server.address(port), vec![0x5a; streams.bytes]);
    let count = |outcome: std::io::Result<usize>| match outcome {
        Ok(length) => {
            counters.sent.fetch_add(length as u64, Ordering::Relaxed);
            Ok(())
        }
        Err(error) if is_late(&error) || shared.is_over() => Ok(()),
        // A datagram that found nobody, or no room in a device's queue, is lost as others are.
        Err(error) if streams.protocol == Protocol::Udp && is_loss(&error) => Ok(()),
        Err(error) => Err(error).context("Failed to send"),
    };
    if streams.protocol == Protocol::Udp {
        let socket = UdpSocket::bind(pair.client.address(0)).context("Failed to bind")?;
        socket.connect(address).context("Failed to connect")?;
        socket.set_write_timeout(Some(TIMEOUT))?;
        shared.is_ready();
        while !shared.is_over() {
            count(socket.send(&data))?;
        }
        return Ok(());
    }
    let Some(mut stream) = insist(shared, || TcpStream::connect(address))? else { return Ok(()) };
    stream.set_write_timeout(Some(TIMEOUT))?;
    // Messages: none waits for the next one.
    stream.set_nodelay(true)?;
    shared.is_ready();
    while !shared.is_over() {
        count(stream.write(&data))?;
    }
    counters.retransmitted.store(retransmitted(&stream)?, Ordering::Relaxed);
    Ok(())
}

fn is_loss(error: &std::io::Error) -> bool {
    let code = error.raw_os_error();
    code == Some(libc::ECONNREFUSED) || code == Some(libc::ENOBUFS)
}

/// Waits for a client; `None`: all is over before one came.
pub fn accept(listener: &TcpListener, shared: &Shared) -> Result<Option<TcpStream>> {
    let timeout = PollTimeout::try_from(TIMEOUT).unwrap_or(PollTimeout::ZERO);
    while !shared.is_over() {
        let mut set = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        if poll(&mut set, timeout).context("Failed to wait for a client")? > 0 {
            return Ok(Some(listener.accept().context("Failed to accept a client")?.0));
        }
    }
    Ok(None)
}

/// What a flow retransmitted so far, in segments (TCP_INFO).
pub fn retransmitted(stream: &TcpStream) -> Result<u64> {
    let info = getsockopt(stream, TcpInfo).context("Failed to ask for TCP_INFO")?;
    Ok(info.tcpi_total_retrans.into())
}

/// The lock of a list that no code panics with.
pub fn push<T>(list: &Mutex<Vec<T>>, item: T) {
    list.lock().unwrap_or_else(PoisonError::into_inner).push(item);
}
