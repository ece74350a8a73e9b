//! VMMs without vhost-net: one thread that carries frames between guests' vrings and taps.
//!
//! ```text
//!  guest's transmit ring --pop--> writev(2) --> tap ==> the kernel's way, within that call
//!  guest's receive ring <--fill-- read(2) <-- tap, when epoll says that there is something
//! ```
//! It is the device model of a VMM and nothing else of one. One thread stands for those of all VMMs, so
//! that it can own a core as a polling thread does, and never sleeps: nothing waits for a wake-up. Both is in
//! favour of the arms that have it.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, anyhow, bail};
use dataplane::clock;
use dataplane::frame::{Batch, Scratch};
use dataplane::gateway::interface::Tap;
use dataplane::port::cell::LiveRing;
use dataplane::testing::{GuestConfig, LocalGuest};
use dataplane::vhost::mem::GuestMap;
use dataplane::vring::ring::Ring;
use dataplane::vring::rx::{Expected, Refusal};
use dataplane::vring::tap::TapRing;
use dataplane::vring::tx::Limit;
use dataplane::vring::{BURST, VNET_HDR};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::peer::Work;
use crate::rig::pin;

/// Events that are taken at once.
const EVENTS: usize = 128;

/// What the thread did so far.
#[derive(Debug, Default)]
struct Shared {
    busy_ticks: AtomicU64,
    idle_ticks: AtomicU64,
    frames: AtomicU64,
    is_over: AtomicBool,
}

/// The running thread. Dropping it ends it.
#[derive(Debug)]
pub struct Vmm {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// A guest's device.
struct Device {
    tap: Arc<Tap>,
    transmit: LiveRing,
    receive: LiveRing,
    /// The tap, to write to and to read from.
    out: Ring,
    into: Ring,
}

impl Vmm {
    /// Makes a guest for each tap, and serves them on `core`. `yields`: others need that core, too.
    ///
    /// # Errors
    /// The kernel refuses memory or descriptors.
    pub fn start(core: usize, taps: Vec<Tap>, yields: bool) -> Result<(Self, Vec<LocalGuest>)> {
        let (mut guests, mut devices) = (Vec::new(), Vec::new());
        for tap in taps {
            let mut guest = LocalGuest::new(GuestConfig::default())?;
            let tap = Arc::new(tap);
            let [receive, transmit] = [guest.start(0, None)?, guest.start(1, None)?];
            receive.ring.disarm();
            transmit.ring.disarm();
            let [out, into] = [0, 1].map(|_| Ring::Tap(TapRing::new(Arc::clone(&tap))));
            devices.push(Device { tap, transmit, receive, out, into });
            guests.push(guest);
        }
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for (n, device) in devices.iter().enumerate() {
            epoll.add(device.tap.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, n as u64))?;
        }
        let buffers = TapRing::buffers()?;
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        let run = move || {
            pin(core)?;
            serve(&of_thread, &mut devices, &epoll, &buffers, yields)
        };
        let thread = thread::Builder::new().name("vmm".to_owned()).spawn(run)?;
        Ok((Self { shared, thread: Some(thread) }, guests))
    }

    /// What it did so far.
    ///
    /// # Errors
    /// It has ended.
    pub fn work(&self) -> Result<Work> {
        let has_ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
        anyhow::ensure!(!has_ended, "The VMM's thread has ended");
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Ok(Work {
            busy_ticks: of(&self.shared.busy_ticks),
            idle_ticks: of(&self.shared.idle_ticks),
            frames: of(&self.shared.frames),
        })
    }

    /// Ends it.
    ///
    /// # Errors
    /// It failed before.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.shared.is_over.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().unwrap_or_else(|_| Err(anyhow!("The VMM's thread panicked")))
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // Who wants to know why it failed calls `stop`.
        let _ = self.end();
    }
}

fn serve(
    shared: &Shared,
    devices: &mut [Device],
    epoll: &Epoll,
    buffers: &GuestMap,
    yields: bool,
) -> Result<()> {
    let mut scratch = Box::new([Scratch::EMPTY; BURST]);
    let mut events = [EpollEvent::empty(); EVENTS];
    let mut begin = clock::ticks();
    while !shared.is_over.load(Ordering::Relaxed) {
        let mut frames = 0;
        for device in devices.iter_mut() {
            let Device { transmit, out, .. } = device;
            let LiveRing { ring, map, .. } = transmit;
            frames += carry(ring, map, out, map, true, &mut scratch)?;
        }
        let ready = epoll.wait(&mut events, EpollTimeout::ZERO).context("epoll_wait failed")?;
        for event in &events[..ready] {
            let Device { receive, into, .. } = &mut devices[event.data() as usize];
            let LiveRing { ring, map, mergeable, .. } = receive;
            frames += carry(into, buffers, ring, map, *mergeable, &mut scratch)?;
        }
        if frames == 0 && yields {
            thread::yield_now();
        }
        let end = clock::ticks();
        let counter = if frames > 0 { &shared.busy_ticks } else { &shared.idle_ticks };
        counter.fetch_add(end - begin, Ordering::Relaxed);
        shared.frames.fetch_add(frames as u64, Ordering::Relaxed);
        begin = end;
    }
    Ok(())
}

/// One burst; returns how many frames it had. What finds no room is lost, as in any device.
fn carry(
    from: &mut Ring,
    from_map: &GuestMap,
    to: &mut Ring,
    to_map: &GuestMap,
    mergeable: bool,
    scratch: &mut [Scratch; BURST],
) -> Result<usize> {
    let mut batch = Batch::new();
    let popped = from.pop(from_map, &mut batch, scratch, Limit::frames(BURST as u16));
    popped.map_err(|fault| anyhow!("A guest's ring is broken: {fault:?}"))?;
    let count = batch.frames.len();
    if count == 0 {
        return Ok(0);
    }
    let broken = |fault| anyhow!("A guest's ring broke: {fault:?}");
    let frame_bytes = batch.charged_bytes / count as u32;
    let expected = Expected { frames: count, frame_bytes };
    let mut fill = to.fill(to_map, expected, mergeable).map_err(broken)?;
    for (frame, scratch) in batch.frames.iter().zip(scratch) {
        if frame.drop.is_some() {
            continue;
        }
        let head = &mut scratch.all_mut()[..VNET_HDR + usize::from(frame.head_len)];
        match fill.push(head, batch.tail(frame), frame.len) {
            Ok(()) | Err(Refusal::Drop(_)) => {}
            Err(Refusal::Fault(fault)) => bail!("A guest's ring broke: {fault:?}"),
        }
    }
    fill.finish().map_err(broken)?;
    from.complete(&batch).map_err(broken)?;
    Ok(count)
}
