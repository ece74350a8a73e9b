//! The driver's side of one split virtqueue (virtio 1.3, section 2.7).
//!
//! Descriptors are linked into a free list that lives in private memory, so a chain is taken from
//! its front and, once the device has used it, appended to its back as a whole. What the driver
//! believes is never read back from the ring: the ring is written, and only `used`, the
//! device's half, is read and judged.
//!
//! [`Vring::push`] makes descriptors available one after the other; the device sees them when
//! [`Vring::publish`] stores the available index, once per burst. The `raw_*` calls write
//! whatever a hostile guest could write.
//!
//! # Notifications
//! The device is kicked only if it asks: `used.flags` without `NO_NOTIFY`, or `avail_event` just
//! crossed (EVENT_IDX). Interrupts are suppressed unless armed; [`Vring::wait`] arms them for as
//! long as it waits.

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring as bindings;
use vmm_sys_util::eventfd::EventFd;

use super::wait::Events;
use super::{Deadline, DeviceFault};
use crate::testing::memory::{GuestMemory, MemoryError, Span};

/// Offset of `avail.ring` and `used.ring` behind `flags` and `idx`.
const RING_AT: usize = 4;
const IDX_AT: usize = 2;
const DESC_BYTES: usize = 16;
const USED_ELEM_BYTES: usize = 8;

/// How far ahead of the device a suppressed `used_event` is parked, and how far the ring may move
/// before it is parked anew: far from a match on either side.
const PARK_AHEAD: u16 = 0x8000;
const PARK_AGAIN: u16 = 0x4000;

/// One descriptor (virtio 1.3, section 2.7.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Desc {
    /// Guest-physical address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// `Desc::NEXT`, `Desc::WRITE`, `Desc::INDIRECT`.
    pub flags: u16,
    /// Index of the next descriptor, if `NEXT` is set.
    pub next: u16,
}

impl Desc {
    /// The chain goes on at `next`.
    pub const NEXT: u16 = bindings::VRING_DESC_F_NEXT as u16;
    /// The device writes here; otherwise it reads.
    pub const WRITE: u16 = bindings::VRING_DESC_F_WRITE as u16;
    /// The bytes are a table of descriptors.
    pub const INDIRECT: u16 = bindings::VRING_DESC_F_INDIRECT as u16;

    /// A buffer for the device to read.
    pub fn readable(addr: u64, len: u32) -> Self {
        Self { addr, len, flags: 0, next: 0 }
    }

    /// A buffer for the device to write.
    pub fn writable(addr: u64, len: u32) -> Self {
        Self { addr, len, flags: Self::WRITE, next: 0 }
    }

    /// The descriptor as it lies in memory.
    #[inline(always)]
    pub fn to_bytes(self) -> [u8; DESC_BYTES] {
        let word = u128::from(self.addr)
            | u128::from(self.len) << 64
            | u128::from(self.flags) << 96
            | u128::from(self.next) << 112;
        word.to_le_bytes()
    }
}

/// What the driver remembers of a chain, under its head.
#[derive(Debug, Clone, Copy, Default)]
struct Chain {
    last: u16,
    /// Descriptors; zero when no chain with this head is outstanding.
    count: u16,
}

/// The driver's side of one split virtqueue.
#[derive(Debug)]
pub struct Vring {
    size: u16,
    event_idx: bool,
    desc: Span,
    avail: Span,
    used: Span,
    /// Free list, and the links of the chains outstanding.
    next: Box<[u16]>,
    chains: Box<[Chain]>,
    free_head: u16,
    free_tail: u16,
    free: u16,
    /// Next available index; ahead of `avail.idx` until published.
    avail_next: u16,
    /// Available index when the device was last considered for a kick.
    kicked_at: u16,
    /// Next used index to look at.
    used_next: u16,
    /// Used index when `used_event` was parked.
    parked_at: u16,
    interrupts: bool,
    events: Events,
}

impl Vring {
    /// Lays a ring of `size` entries out in `region`.
    ///
    /// # Errors
    /// [`MemoryError`] when memory or descriptors run out.
    ///
    /// # Panics
    /// When `size` is not a power of two (virtio 1.3, section 2.7).
    pub fn new(memory: &mut GuestMemory, region: usize, size: u16) -> Result<Self, MemoryError> {
        assert!(size.is_power_of_two(), "a split ring of {size} entries is not a power of two");
        let entries = usize::from(size);
        // Each part on lines of its own: the two sides write different parts.
        let mut ring = Self {
            size,
            event_idx: false,
            desc: memory.alloc(region, DESC_BYTES * entries, 64)?,
            avail: memory.alloc(region, RING_AT + 2 * entries + 2, 64)?,
            used: memory.alloc(region, RING_AT + USED_ELEM_BYTES * entries + 2, 64)?,
            next: vec![0; entries].into(),
            chains: vec![Chain::default(); entries].into(),
            free_head: 0,
            free_tail: 0,
            free: 0,
            avail_next: 0,
            kicked_at: 0,
            used_next: 0,
            parked_at: 0,
            interrupts: false,
            events: Events::new()?,
        };
        ring.reset(false);
        Ok(ring)
    }

    /// Forgets everything, as a guest that boots: no chain outstanding, all indexes zero.
    pub fn reset(&mut self, event_idx: bool) {
        for part in [&self.desc, &self.avail, &self.used] {
            part.fill(0);
        }
        for (index, next) in (1..=self.size).zip(&mut self.next) {
            *next = index & (self.size - 1);
        }
        self.chains.fill(Chain::default());
        (self.free_head, self.free_tail, self.free) = (0, self.size - 1, self.size);
        (self.avail_next, self.kicked_at, self.used_next) = (0, 0, 0);
        self.event_idx = event_idx;
        self.interrupts = false;
        self.events.forget();
        self.disarm();
    }

    /// Starts the indexes of an empty ring at `index` instead of zero, on both sides.
    ///
    /// # Panics
    /// When the ring was used since its [`Self::reset`].
    pub fn start_at(&mut self, index: u16) {
        assert!(self.free == self.size && self.avail_next == 0, "the ring is in use");
        (self.avail_next, self.kicked_at, self.used_next) = (index, index, index);
        self.used.store_u16(IDX_AT, index, Ordering::Release);
        self.publish();
        self.disarm();
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Whether EVENT_IDX governs notifications.
    pub fn event_idx(&self) -> bool {
        self.event_idx
    }

    /// Descriptors not in a chain.
    #[inline]
    pub fn free(&self) -> u16 {
        self.free
    }

    /// The descriptor table.
    pub fn desc_table(&self) -> &Span {
        &self.desc
    }

    /// The driver's half: flags, idx, ring, used_event.
    pub fn avail(&self) -> &Span {
        &self.avail
    }

    /// The device's half: flags, idx, ring, avail_event.
    pub fn used(&self) -> &Span {
        &self.used
    }

    /// The eventfd the device waits on.
    pub fn kick_fd(&self) -> &EventFd {
        self.events.kick_fd()
    }

    /// The eventfd the device signals.
    pub fn call_fd(&self) -> &EventFd {
        self.events.call_fd()
    }

    /// Kicks sent so far.
    pub fn kicks(&self) -> u64 {
        self.events.kicks()
    }

    /// The head the next chain will get, which makes it the name of the chain's buffer as well.
    #[inline(always)]
    pub fn next_head(&self) -> u16 {
        self.free_head
    }

    /// Makes a chain of `parts` available and returns its head. `NEXT` and `next` are filled in.
    ///
    /// # Panics
    /// When fewer descriptors are free, or `parts` is empty.
    #[inline(always)]
    pub fn push(&mut self, parts: &[Desc]) -> u16 {
        assert!(
            !parts.is_empty() && parts.len() <= usize::from(self.free),
            "a chain of {} descriptors, but {} are free",
            parts.len(),
            self.free
        );
        let head = self.free_head;
        let last = self.link(head, parts);
        self.chains[usize::from(head)] = Chain { last, count: parts.len() as u16 };
        self.free_head = self.next[usize::from(last)];
        self.free -= parts.len() as u16;
        self.raw_push(head);
        head
    }

    /// Makes the outstanding chain `head` available again, rewritten as `parts`, after the device
    /// used it and before it was given back to the free list.
    #[inline(always)]
    pub(super) fn push_again(&mut self, head: u16, parts: &[Desc]) {
        debug_assert_eq!(usize::from(self.chains[usize::from(head)].count), parts.len());
        self.link(head, parts);
        self.raw_push(head);
    }

    /// Writes `parts` along the links that start at `head`; returns the last index.
    #[inline(always)]
    fn link(&mut self, head: u16, parts: &[Desc]) -> u16 {
        let (final_part, front) = parts.split_last().expect("a chain has a descriptor");
        let mut index = head;
        for part in front {
            let next = self.next[usize::from(index)];
            self.raw_desc(index, Desc { flags: part.flags | Desc::NEXT, next, ..*part });
            index = next;
        }
        self.raw_desc(index, *final_part);
        index
    }

    /// Shows the device everything pushed so far.
    #[inline(always)]
    pub fn publish(&mut self) {
        // ORDERING: release, so that the device sees descriptors and buffers before the index.
        self.avail.store_u16(IDX_AT, self.avail_next, Ordering::Release);
    }

    /// Kicks the device if it asks to be kicked for what was published since the last call.
    #[inline]
    pub fn kick_if_asked(&mut self) {
        let (old, new) = (self.kicked_at, self.avail_next);
        if old == new {
            return;
        }
        self.kicked_at = new;
        // ORDERING: our index must be visible before we look whether the device sleeps; its side
        // does the reverse before it falls asleep (virtio 1.3, section 2.7.13.4.1).
        fence(Ordering::SeqCst);
        let asked = if self.event_idx {
            let at = RING_AT + USED_ELEM_BYTES * usize::from(self.size);
            crossed(self.used.load_u16(at, Ordering::Relaxed), old, new)
        } else {
            let flags = self.used.load_u16(0, Ordering::Relaxed);
            flags & bindings::VRING_USED_F_NO_NOTIFY as u16 == 0
        };
        if asked {
            self.kick();
        }
    }

    /// Kicks the device, asked or not.
    #[cold]
    pub fn kick(&mut self) {
        self.events.kick();
    }

    /// How many used entries wait to be taken with [`Self::take_used`].
    ///
    /// # Errors
    /// [`DeviceFault::UsedIndex`] when the index moved by more than is outstanding.
    #[inline]
    pub fn used_waiting(&mut self) -> Result<u16, DeviceFault> {
        // ORDERING: acquire pairs with the device's release, so entries and buffers are visible.
        let idx = self.used.load_u16(IDX_AT, Ordering::Acquire);
        let waiting = idx.wrapping_sub(self.used_next);
        if waiting > self.size {
            return Err(DeviceFault::UsedIndex { expected: self.used_next, found: idx });
        }
        if self.used_next.wrapping_sub(self.parked_at) >= PARK_AGAIN && !self.interrupts {
            self.disarm();
        }
        Ok(waiting)
    }

    /// The head and length of the used entry `ahead` of the next, for prefetching; unjudged.
    #[inline(always)]
    pub(super) fn peek_used(&self, ahead: u16) -> (u32, u32) {
        self.raw_used(self.used_next.wrapping_add(ahead))
    }

    /// Takes the next used entry: the head of an outstanding chain, and the bytes written. The
    /// caller has seen it in [`Self::used_waiting`], and gives the chain back with
    /// [`Self::release`] or makes it available again.
    ///
    /// # Errors
    /// [`DeviceFault::UsedId`] when no such chain is outstanding.
    #[inline(always)]
    pub fn take_used(&mut self) -> Result<(u16, u32), DeviceFault> {
        let (id, len) = self.raw_used(self.used_next);
        let outstanding = self.chains.get(id as usize).is_some_and(|chain| chain.count > 0);
        if !outstanding {
            return Err(DeviceFault::UsedId { id, at: self.used_next });
        }
        self.used_next = self.used_next.wrapping_add(1);
        Ok((id as u16, len))
    }

    /// Appends the chain `head` to the free list.
    ///
    /// # Panics
    /// When no such chain is outstanding.
    #[inline(always)]
    pub fn release(&mut self, head: u16) {
        let chain = std::mem::take(&mut self.chains[usize::from(head)]);
        assert!(chain.count > 0, "chain {head} is not outstanding");
        if self.free == 0 {
            self.free_head = head;
        } else {
            self.next[usize::from(self.free_tail)] = head;
        }
        self.free_tail = chain.last;
        self.free += chain.count;
    }

    /// Chains made available and not yet taken back as used.
    pub fn outstanding(&self) -> u16 {
        self.avail_next.wrapping_sub(self.used_next)
    }

    /// Asks for an interrupt with every used entry, or for none. None is the default.
    pub fn set_interrupts(&mut self, on: bool) {
        self.interrupts = on;
        if on {
            self.arm();
        } else {
            self.disarm();
        }
    }

    /// After a burst: with EVENT_IDX an interrupt has to be asked for anew.
    #[inline(always)]
    pub(super) fn rearm(&mut self) {
        if self.interrupts && self.event_idx {
            self.arm();
        }
    }

    fn arm(&mut self) {
        if self.event_idx {
            self.avail.store_u16(self.used_event_at(), self.used_next, Ordering::Relaxed);
        } else {
            self.avail.store_u16(0, 0, Ordering::Relaxed);
        }
    }

    fn disarm(&mut self) {
        self.parked_at = self.used_next;
        if self.event_idx {
            let parked = self.used_next.wrapping_add(PARK_AHEAD);
            self.avail.store_u16(self.used_event_at(), parked, Ordering::Relaxed);
        } else {
            let no_interrupt = bindings::VRING_AVAIL_F_NO_INTERRUPT as u16;
            self.avail.store_u16(0, no_interrupt, Ordering::Relaxed);
        }
    }

    fn used_event_at(&self) -> usize {
        RING_AT + 2 * usize::from(self.size)
    }

    /// Sleeps until the device has used something, or `deadline`; says whether it has.
    ///
    /// # Errors
    /// [`DeviceFault`] of [`Self::used_waiting`]; [`DeviceFault::Wait`] when epoll fails.
    pub fn wait(&mut self, deadline: Deadline) -> Result<bool, DeviceFault> {
        if self.used_waiting()? > 0 {
            return Ok(true);
        }
        self.arm();
        let (used, next) = (&self.used, self.used_next);
        let is_there = || used.load_u16(IDX_AT, Ordering::Acquire) != next;
        let outcome = self.events.wait(deadline, is_there).map_err(DeviceFault::Wait);
        if !self.interrupts {
            self.disarm();
        }
        outcome?;
        Ok(self.used_waiting()? > 0)
    }

    /// Writes descriptor `index`, whatever it says.
    ///
    /// # Panics
    /// When the index is beyond the table.
    #[inline(always)]
    pub fn raw_desc(&self, index: u16, desc: Desc) {
        self.desc.write(DESC_BYTES * usize::from(index), &desc.to_bytes());
    }

    /// Puts any `head` into the available ring; shown to the device by [`Self::publish`].
    #[inline(always)]
    pub fn raw_push(&mut self, head: u16) {
        let at = RING_AT + 2 * usize::from(self.avail_next & (self.size - 1));
        self.avail.store_u16(at, head, Ordering::Relaxed);
        self.avail_next = self.avail_next.wrapping_add(1);
    }

    /// Stores any available index.
    pub fn raw_avail_idx(&mut self, idx: u16) {
        self.avail.store_u16(IDX_AT, idx, Ordering::Release);
    }

    /// The available index the next chain gets.
    pub fn avail_next(&self) -> u16 {
        self.avail_next
    }

    /// The used index as the device stored it.
    pub fn raw_used_idx(&self) -> u16 {
        self.used.load_u16(IDX_AT, Ordering::Acquire)
    }

    /// Id and length of the used entry at `idx`, as the device stored it.
    #[inline(always)]
    pub fn raw_used(&self, idx: u16) -> (u32, u32) {
        let at = RING_AT + USED_ELEM_BYTES * usize::from(idx & (self.size - 1));
        let elem = u64::from_le_bytes(self.used.array(at));
        (elem as u32, (elem >> 32) as u32)
    }
}

/// Whether an index that moved from `old` to `new` passed `event` (virtio 1.3, section 2.7.10).
fn crossed(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
