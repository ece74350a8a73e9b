//! The ideal: what one core could do if there were no virtio.
//!
//! ```text
//!  generator            switch core (a thread of ours)               generator
//!  Source: descriptor   burst of 32: read the address, look it up    Sink: descriptor
//!  and index ------->   among 4096, copy once, write a descriptor --> and index
//!                       one index each way per burst
//! ```
//!
//! Two rings in shared memory, one writer and one reader each, 8 bytes a descriptor. There are no
//! chains, no headers, no notifications and no checks but those of the copy itself. Buffers are as
//! many as the guests', and are used in the same way: in turn.
//!
//! A loop that is faster than its generator would find a frame or two at each look, and would pay for
//! the way to the other core each time: that is no ideal. So it waits up to two microseconds for
//! whole bursts, and counts that as idle. What it takes for a frame is then the least there is, however
//! fast the generator; compare that, not the rate, where the generator is the limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use dataplane::clock;
use dataplane::testing::VirtioNetHdr;
use dataplane::testing::memory::{Backing, GuestMemory, HUGE_PAGE_BYTES, RegionSpec, Span};

use super::Work;
use crate::ends::{Frame, Sink, Slot, Source};
use crate::rig::pin;

const ENTRIES: u64 = 1024;
const BURST: u64 = 32;
/// How long it waits for a burst to be whole.
const PATIENCE_US: u64 = 2;
const TABLE: usize = 4096;
/// Addresses in the table besides those in use: it is half full.
const OTHERS: u32 = 2046;
/// Bytes of a buffer, and from one to the next: an odd number of cache lines, as guests have it.
const BUFFER_BYTES: usize = 2048;
const STRIDE: usize = BUFFER_BYTES + 64;

/// An index with a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Index(AtomicU64);

/// A ring of one writer and one reader. A descriptor is where a frame starts, and its length.
#[derive(Debug)]
struct Ring {
    written: Index,
    read: Index,
    descriptors: Box<[AtomicU64]>,
}

impl Ring {
    fn new() -> Self {
        let descriptors = (0..ENTRIES).map(|_| AtomicU64::new(0)).collect();
        Self { written: Index::default(), read: Index::default(), descriptors }
    }

    #[inline(always)]
    fn put(&self, at: u64, start: usize, len: usize) {
        let descriptor = (start as u64) << 32 | len as u64;
        self.descriptors[(at % ENTRIES) as usize].store(descriptor, Ordering::Relaxed);
    }

    #[inline(always)]
    fn get(&self, at: u64) -> (usize, usize) {
        let descriptor = self.descriptors[(at % ENTRIES) as usize].load(Ordering::Relaxed);
        ((descriptor >> 32) as usize, (descriptor & 0xffff_ffff) as usize)
    }
}

/// Buffers that are used in turn.
#[derive(Debug, Clone)]
struct Pool {
    span: Span,
    count: u64,
}

impl Pool {
    fn new(memory: &mut GuestMemory, count: u64) -> Result<Self> {
        let span = memory.alloc(0, count as usize * STRIDE, 64)?;
        Ok(Self { span, count })
    }

    #[inline(always)]
    fn start(&self, at: u64) -> usize {
        (at % self.count) as usize * STRIDE
    }
}

/// The running loop, and both of its ends.
#[derive(Debug)]
pub struct Ideal {
    /// Where the generator sends.
    pub source: IdealSource,
    /// Where it receives.
    pub sink: IdealSink,
    /// What both ends and the loop share.
    pub shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Two rings and what the loop counts.
#[derive(Debug)]
pub struct Shared {
    transmit: Ring,
    receive: Ring,
    busy_ticks: AtomicU64,
    idle_ticks: AtomicU64,
    frames: AtomicU64,
    is_over: AtomicBool,
}

impl Ideal {
    /// Starts the loop on `core`, with `turns` buffers for each descriptor. It forwards to `address`
    /// and drops the rest.
    ///
    /// # Errors
    /// There is no memory, or no thread.
    pub fn start(core: usize, turns: u16, address: [u8; 6]) -> Result<Self> {
        let count = ENTRIES * u64::from(turns);
        let len = (2 * count as usize * STRIDE + 128).next_multiple_of(HUGE_PAGE_BYTES);
        let backing = Backing { huge: true, ..Backing::default() };
        let mut memory = GuestMemory::new(&[RegionSpec { gpa: 0, len }], backing)?;
        let from = Pool::new(&mut memory, count)?;
        let to = Pool::new(&mut memory, count)?;
        let shared = Arc::new(Shared {
            transmit: Ring::new(),
            receive: Ring::new(),
            busy_ticks: AtomicU64::new(0),
            idle_ticks: AtomicU64::new(0),
            frames: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
        });
        let source =
            IdealSource { shared: Arc::clone(&shared), pool: from.clone(), written: 0, read: 0 };
        let sink = IdealSink { shared: Arc::clone(&shared), span: to.span.clone(), read: 0 };
        let others = (0..OTHERS).map(|n| crate::rig::mac(0x1000 + n).0);
        let table = Table::new(others.chain([address]));
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("ideal".into()).spawn(move || {
            // Unpinned it would run on the generator's core, and the figure would show it.
            if pin(core).is_ok() {
                forward(&of_thread, &from.span, &to, &table, key(&address));
            }
        });
        let thread = Some(thread.context("Failed to start the ideal loop")?);
        Ok(Self { source, sink, shared, thread })
    }
}

impl Ideal {
    /// Whether the loop runs still.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

impl Shared {
    /// What the loop did so far.
    pub fn work(&self) -> Work {
        Work {
            busy_ticks: self.busy_ticks.load(Ordering::Relaxed),
            idle_ticks: self.idle_ticks.load(Ordering::Relaxed),
            frames: self.frames.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Ideal {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It ended by a panic, which was shown.
            let _ = thread.join();
        }
    }
}

fn forward(shared: &Shared, from: &Span, to: &Pool, table: &Table, ours: u64) {
    let Shared { transmit, receive, busy_ticks, idle_ticks, frames, is_over } = shared;
    // One writer each, so no locked instruction.
    let add = |to: &AtomicU64, n: u64| {
        to.store(to.load(Ordering::Relaxed) + n, Ordering::Relaxed);
    };
    let (mut taken, mut given, mut freed) = (0, 0, 0);
    let mut since = clock::ticks();
    let mut worked = since;
    let patience = PATIENCE_US * clock::ticks_per_us();
    while !is_over.load(Ordering::Relaxed) {
        let waiting = transmit.written.0.load(Ordering::Acquire) - taken;
        if waiting == 0 || waiting < BURST && since - worked < patience {
            std::hint::spin_loop();
            let now = clock::ticks();
            add(idle_ticks, now - since);
            since = now;
            continue;
        }
        let burst = waiting.min(BURST);
        if ENTRIES - (given - freed) < burst {
            freed = receive.read.0.load(Ordering::Acquire);
        }
        for n in 0..burst {
            from.prefetch(transmit.get(taken + n).0);
        }
        for n in 0..burst {
            let (start, len) = transmit.get(taken + n);
            let destination = u64::from_le_bytes(from.array(start)) & 0xffff_ffff_ffff;
            let has_room = given - freed < ENTRIES;
            if table.contains(destination) && destination == ours && has_room {
                let target = to.start(given);
                from.copy_to(start, &to.span, target, len);
                receive.put(given, target, len);
                given += 1;
            }
        }
        taken += burst;
        receive.written.0.store(given, Ordering::Release);
        transmit.read.0.store(taken, Ordering::Release);
        let now = clock::ticks();
        add(busy_ticks, now - since);
        add(frames, burst);
        (since, worked) = (now, now);
    }
}

/// Addresses by hash.
#[derive(Debug)]
struct Table(Box<[u64]>);

impl Table {
    fn new(addresses: impl Iterator<Item = [u8; 6]>) -> Self {
        let mut slots = vec![0; TABLE].into_boxed_slice();
        for address in addresses {
            let key = key(&address);
            let mut at = Self::slot(key);
            while slots[at] != 0 {
                at = (at + 1) % TABLE;
            }
            slots[at] = key;
        }
        Self(slots)
    }

    #[inline(always)]
    fn contains(&self, key: u64) -> bool {
        let mut at = Self::slot(key);
        while self.0[at] != key {
            if self.0[at] == 0 {
                return false;
            }
            at = (at + 1) % TABLE;
        }
        true
    }

    #[inline(always)]
    fn slot(key: u64) -> usize {
        (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as usize
    }
}

fn key(address: &[u8; 6]) -> u64 {
    let mut bytes = [0; 8];
    bytes[..6].copy_from_slice(address);
    u64::from_le_bytes(bytes)
}

/// The sending end.
#[derive(Debug)]
pub struct IdealSource {
    shared: Arc<Shared>,
    pool: Pool,
    written: u64,
    read: u64,
}

/// A buffer about to be sent.
#[derive(Debug)]
pub struct IdealSlot<'a> {
    span: &'a Span,
    start: usize,
    len: usize,
}

impl Slot for IdealSlot<'_> {
    #[inline(always)]
    fn patch(&mut self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= BUFFER_BYTES, "frame longer than its buffer");
        self.span.write(self.start + at, bytes);
    }

    #[inline(always)]
    fn set_len(&mut self, len: usize) {
        assert!(len <= BUFFER_BYTES, "frame longer than its buffer");
        self.len = len;
    }

    fn set_header(&mut self, _header: VirtioNetHdr) {}
}

impl Source for IdealSource {
    type Slot<'a> = IdealSlot<'a>;

    #[inline]
    fn send_burst(
        &mut self,
        max: usize,
        mut fill: impl FnMut(&mut IdealSlot<'_>),
    ) -> Result<usize> {
        let ring = &self.shared.transmit;
        if ENTRIES - (self.written - self.read) < max as u64 {
            self.read = ring.read.0.load(Ordering::Acquire);
        }
        let room = (ENTRIES - (self.written - self.read)).min(max as u64);
        for _ in 0..room {
            let start = self.pool.start(self.written);
            let mut slot = IdealSlot { span: &self.pool.span, start, len: 0 };
            fill(&mut slot);
            ring.put(self.written, start, slot.len);
            self.written += 1;
        }
        ring.written.0.store(self.written, Ordering::Release);
        Ok(room as usize)
    }

    fn outstanding(&mut self) -> Result<usize> {
        self.read = self.shared.transmit.read.0.load(Ordering::Acquire);
        Ok((self.written - self.read) as usize)
    }
}

/// The receiving end.
#[derive(Debug)]
pub struct IdealSink {
    shared: Arc<Shared>,
    span: Span,
    read: u64,
}

/// A received frame.
#[derive(Debug)]
pub struct IdealFrame<'a> {
    span: &'a Span,
    start: usize,
    len: usize,
}

impl Frame for IdealFrame<'_> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.len
    }

    #[inline(always)]
    fn read(&self, at: usize, out: &mut [u8]) {
        assert!(at + out.len() <= self.len, "read beyond the frame");
        self.span.read(self.start + at, out);
    }
}

impl Sink for IdealSink {
    type Frame<'a> = IdealFrame<'a>;

    #[inline]
    fn receive_burst(
        &mut self,
        max: usize,
        mut visit: impl FnMut(&IdealFrame<'_>),
    ) -> Result<usize> {
        /// How many frames ahead the first line is fetched, as guests do.
        const AHEAD: u64 = 8;
        let ring = &self.shared.receive;
        let written = ring.written.0.load(Ordering::Acquire);
        let burst = (written - self.read).min(max as u64);
        for n in 0..burst {
            if n + AHEAD < burst {
                self.span.prefetch(ring.get(self.read + n + AHEAD).0);
            }
            let (start, len) = ring.get(self.read + n);
            visit(&IdealFrame { span: &self.span, start, len });
        }
        self.read += burst;
        ring.read.0.store(self.read, Ordering::Release);
        Ok(burst as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_finds_what_is_in_it_and_nothing_else() {
        let table = Table::new((0..2000).map(|n| crate::rig::mac(n).0));
        assert!((0..2000).all(|n| table.contains(key(&crate::rig::mac(n).0))));
        assert!((2000..4000).all(|n| !table.contains(key(&crate::rig::mac(n).0))));
    }
}
