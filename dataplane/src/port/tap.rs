//! A vport whose far side is the host: frames go to and come from a tap interface.
//!
//! To the polling threads it is a vport as any other, with vrings. Its guest is a thread of ours,
//! `slipway-tap`, which drives these rings ([`crate::vring::driver`]) and makes all the system
//! calls, so that no PMD ever makes one for it:
//!
//! ```text
//!  host network stack
//!    | tap                                  read into a TX buffer, write from an RX buffer,
//!  slipway-tap   epoll: tap, calls, stop    virtio-net header included: no copy of our own
//!    | vrings in memory of our own
//!  slipway-pmdN
//! ```
//!
//! # Back pressure
//! Towards the switch: no free TX buffer, then the tap is not read, and the kernel drops what its
//! transmit queue does not hold. Towards the host: RX buffers are given back once the kernel took the
//! frame; when there is none the switch drops (`ring_full`). Nothing is polled; an idle tap costs
//! nothing.
//!
//! # When the interface goes
//! Set down, the kernel refuses frames (EIO): the receive ring is disabled, so the switch counts what
//! it can not deliver (`link_down`), and the tap becoming writable says that it is up again. Deleted
//! (EBADFD), the rings are stopped for good and the port says why; the rest of the switch goes on.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use crate::gateway::interface::Tap;
use crate::pmd::Pmds;
use crate::vhost::device::{Device, LinkEvent, RingError};
use crate::vhost::eventfd::EventFd;
use crate::vring::chain::Direction;
use crate::vring::driver::{DriverError, DriverMemory, DriverRing};
use crate::vring::{MAX_FRAME_BYTES, VNET_HDR};

use super::Vport;
use super::vhost_user::VhostUserPort;

/// Buffers each way.
const RING: u16 = 256;
/// Frames one way before the other way gets its turn.
const TURN: usize = 64;
/// Frames shown to the switch at once, at most.
const BATCH: usize = 32;
/// Any frame with its header.
const BUFFER_BYTES: u32 = VNET_HDR as u32 + MAX_FRAME_BYTES;

/// vrings by index (virtio 1.3, section 5.1.2).
const TO_HOST: u16 = 0;
const FROM_HOST: u16 = 1;

/// What both sides of the rings agree on: everything the kernel's tap does.
const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_HOST_ECN
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN;

/// What a kernel with UDP segmentation does besides.
const USO_FEATURES: u64 =
    1 << VIRTIO_NET_F_HOST_USO | 1 << VIRTIO_NET_F_GUEST_USO4 | 1 << VIRTIO_NET_F_GUEST_USO6;

/// What the kernel does at `tap`, as a guest's driver would have negotiated it.
pub(super) fn features(tap: &Tap) -> u64 {
    FEATURES | if tap.has_uso() { USO_FEATURES } else { 0 }
}

/// Why the tap can not be a vport.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// Its rings.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The switch refused a ring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// No event descriptors or no thread.
    #[error("Failed to start the thread of the tap")]
    System(#[from] io::Error),
}

/// The running far side of a tap's vport. Dropping it stops the rings and ends the thread; the
/// interface goes with it.
#[derive(Debug)]
pub struct TapPort {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl TapPort {
    /// Starts the rings of `vport`, which has one queue pair, and the thread that drives them.
    ///
    /// # Errors
    /// [`TapError`]; then nothing runs.
    pub fn start(tap: Tap, vport: Arc<Vport>, pmds: Arc<Pmds>) -> Result<Self, TapError> {
        let stop = EventFd::new()?;
        let mut pump = Pump::new(tap, VhostUserPort::new(vport, pmds), &stop)?;
        pump.start_rings()?;
        let thread = std::thread::Builder::new().name("slipway-tap".to_owned());
        let thread = Some(thread.spawn(move || pump.run())?);
        Ok(Self { stop, thread })
    }
}

impl Drop for TapPort {
    fn drop(&mut self) {
        self.stop.signal();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the tap panicked");
        }
    }
}

/// Tags of epoll events.
const TAP: u64 = 0;
const CALL: u64 = 1;
const STOP: u64 = 2;

/// How the interface is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Up,
    /// Set down; it may come up again.
    Down,
    /// Deleted.
    Gone,
}

/// Whether there is more to do without waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Nothing,
    More,
}

/// The thread's state. Dropping it stops the rings.
#[derive(Debug)]
struct Pump {
    tap: Tap,
    port: VhostUserPort,
    features: u64,
    to_host: DriverRing,
    from_host: DriverRing,
    /// Buffers of `from_host` that the switch does not have; the one used last is the warmest.
    free: Vec<u16>,
    epoll: Epoll,
    state: State,
    /// No free buffer: the tap is not read until the switch gave one back.
    is_full: bool,
    /// What the epoll waits for on the tap.
    interest: EpollFlags,
}

impl Pump {
    fn new(tap: Tap, port: VhostUserPort, stop: &EventFd) -> Result<Self, TapError> {
        let ring = |direction| DriverRing::new(DriverMemory::new(RING, BUFFER_BYTES)?, direction);
        let (to_host, from_host) = (ring(Direction::Receive)?, ring(Direction::Transmit)?);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(io::Error::from)?;
        let interest = EpollFlags::EPOLLIN;
        let watch = |fd: BorrowedFd<'_>, flags, tag| {
            epoll.add(fd, EpollEvent::new(flags, tag)).map_err(io::Error::from)
        };
        // Calls are edge-triggered, so nobody needs to read them.
        let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        watch(tap.as_fd(), interest, TAP)?;
        watch(to_host.call().as_fd(), edge, CALL)?;
        watch(from_host.call().as_fd(), edge, CALL)?;
        watch(stop.as_fd(), EpollFlags::EPOLLIN, STOP)?;
        let features = features(&tap) | 1 << VIRTIO_RING_F_EVENT_IDX;
        let free = (0..from_host.size()).rev().collect();
        let (state, is_full) = (State::Up, false);
        Ok(Self { tap, port, features, to_host, from_host, free, epoll, state, is_full, interest })
    }

    fn start_rings(&mut self) -> Result<(), TapError> {
        for id in 0..self.to_host.size() {
            self.to_host.offer_all(id);
        }
        self.to_host.publish();
        for (ring, index) in [(&self.to_host, TO_HOST), (&self.from_host, FROM_HOST)] {
            self.port.start_ring(ring.setup(index, self.features), Arc::clone(ring.map()))?;
        }
        self.port.link(LinkEvent::Up { features: self.features, protocol: 0 });
        Ok(())
    }

    fn run(mut self) {
        let mut events = [EpollEvent::empty(); 4];
        let mut left = Left::More;
        loop {
            let wait = if left == Left::More { EpollTimeout::ZERO } else { EpollTimeout::NONE };
            // EINTR and the like: we look at everything anyway.
            let n = self.epoll.wait(&mut events, wait).unwrap_or(0);
            for event in &events[..n] {
                match event.data() {
                    STOP => return,
                    TAP => self.heed(event.events()),
                    _ => {}
                }
            }
            let (written, read) = (self.write_out(), self.read_in());
            left = if written == Left::More { written } else { read };
            self.watch_tap();
        }
    }

    /// What the tap says of itself.
    fn heed(&mut self, events: EpollFlags) {
        if events.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP) {
            self.gone();
        } else if events.contains(EpollFlags::EPOLLOUT) && self.state == State::Down {
            self.state = State::Up;
            self.port.link(LinkEvent::Up { features: self.features, protocol: 0 });
            self.port.set_ring_enabled(TO_HOST, true);
            tracing::info!(interface = self.tap.name(), "the gateway's interface is up again");
        }
    }

    /// Frames of the pods to the host.
    fn write_out(&mut self) -> Left {
        if self.state == State::Gone {
            return Left::Nothing;
        }
        for turn in 1.. {
            let Some((id, len)) = self.to_host.take_used() else {
                self.to_host.publish();
                if self.to_host.arm() { continue } else { return Left::Nothing }
            };
            match self.to_host.buffer(id).take(len).write_to(&self.tap) {
                Err(Errno::EIO) => self.down(),
                Err(Errno::EBADFD) => {
                    self.gone();
                    return Left::Nothing;
                }
                // What else the kernel refuses is that frame's loss, and counted at its interface
                // (rx_dropped, rx_frame_errors), as on any wire.
                Ok(_) | Err(_) => {}
            }
            self.to_host.offer_all(id);
            if turn % BATCH == 0 {
                self.to_host.publish();
            }
            if turn >= TURN {
                break;
            }
        }
        self.to_host.publish();
        Left::More
    }

    /// Frames of the host to the pods.
    fn read_in(&mut self) -> Left {
        if self.state == State::Gone {
            return Left::Nothing;
        }
        for turn in 1..=TURN {
            let Some(id) = self.free_buffer() else {
                self.from_host.publish();
                return Left::Nothing;
            };
            match self.from_host.buffer(id).read_from(&self.tap) {
                Ok(n) => self.from_host.offer(id, n as u32),
                Err(errno) => {
                    self.free.push(id);
                    self.from_host.publish();
                    if errno == Errno::EBADFD {
                        self.gone();
                    }
                    // EAGAIN, mostly: the tap is empty, and says when it is not.
                    return Left::Nothing;
                }
            }
            if turn % BATCH == 0 {
                self.from_host.publish();
            }
        }
        self.from_host.publish();
        Left::More
    }

    /// A buffer to read into. When the switch has all of them, it is asked to call.
    fn free_buffer(&mut self) -> Option<u16> {
        self.is_full = false;
        if let Some(id) = self.free.pop() {
            return Some(id);
        }
        self.from_host.publish();
        loop {
            while let Some((id, _)) = self.from_host.take_used() {
                self.free.push(id);
            }
            if let Some(id) = self.free.pop() {
                return Some(id);
            }
            if !self.from_host.arm() {
                self.is_full = true;
                return None;
            }
        }
    }

    /// Waits for what can be dealt with: a tap that is readable while there is no buffer, or writable
    /// as it nearly always is, would wake us for nothing.
    fn watch_tap(&mut self) {
        if self.state == State::Gone {
            return;
        }
        let mut wanted = EpollFlags::empty();
        wanted.set(EpollFlags::EPOLLIN, !self.is_full);
        wanted.set(EpollFlags::EPOLLOUT, self.state == State::Down);
        if wanted != self.interest {
            let mut event = EpollEvent::new(wanted, TAP);
            match self.epoll.modify(&self.tap, &mut event) {
                Ok(()) => self.interest = wanted,
                Err(error) => tracing::error!(%error, "the tap can not be waited for"),
            }
        }
    }

    /// The interface was set down.
    fn down(&mut self) {
        if self.state != State::Up {
            return;
        }
        self.state = State::Down;
        let name = self.tap.name();
        tracing::warn!(interface = name, "the gateway's interface is down");
        self.port.set_ring_enabled(TO_HOST, false);
        let reason =
            format!("the interface {name} is down; `ip link set {name} up` brings it back");
        self.port.link(LinkEvent::Broken { reason });
    }

    /// The interface was deleted.
    fn gone(&mut self) {
        if self.state == State::Gone {
            return;
        }
        self.state = State::Gone;
        let name = self.tap.name().to_owned();
        tracing::error!(interface = name, "the gateway's interface was deleted: restart slipwayd");
        // It would say so for ever.
        let _ = self.epoll.delete(&self.tap);
        self.stop_rings();
        let reason = format!("the interface {name} was deleted; restart slipwayd to have it again");
        self.port.link(LinkEvent::Broken { reason });
    }

    fn stop_rings(&mut self) {
        for index in [TO_HOST, FROM_HOST] {
            self.port.stop_ring(index);
        }
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.stop_rings();
        self.port.link(LinkEvent::Waiting);
    }
}
