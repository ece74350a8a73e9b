//! The driver's side of one packed virtqueue (virtio 1.3, section 2.8).
//!
//! A chain goes by its buffer id. Ids are taken from the front of a queue and go back to its end, so
//! that buffers are used in turn, as on a split ring. The first descriptor of a burst is written
//! last, by [`PackedVring::publish`]: the device sees the burst at once.

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring as bindings;

use super::wait::Events;
use super::{Deadline, Desc, DeviceFault};
use crate::testing::memory::{GuestMemory, MemoryError, Span};

const AVAIL: u16 = 1 << bindings::VRING_PACKED_DESC_F_AVAIL;
const USED: u16 = 1 << bindings::VRING_PACKED_DESC_F_USED;
const WRAP: u16 = 1 << bindings::VRING_PACKED_EVENT_F_WRAP_CTR;
const ON: u32 = bindings::VRING_PACKED_EVENT_FLAG_ENABLE;
const OFF: u32 = bindings::VRING_PACKED_EVENT_FLAG_DISABLE;
const AT: u32 = bindings::VRING_PACKED_EVENT_FLAG_DESC;
const DESC_BYTES: usize = 16;

/// A place in the ring, and the wrap counter of its round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    index: u16,
    wrap: bool,
}

impl Place {
    const START: Self = Self { index: 0, wrap: true };

    #[inline(always)]
    fn advance(self, n: u16, size: u16) -> Self {
        let index = self.index + n;
        if index < size {
            Self { index, ..self }
        } else {
            Self { index: index - size, wrap: !self.wrap }
        }
    }

    fn bits(self) -> u16 {
        self.index | if self.wrap { WRAP } else { 0 }
    }
}

/// The driver's side of one packed virtqueue.
#[derive(Debug)]
pub struct PackedVring {
    size: u16,
    event_idx: bool,
    desc: Span,
    driver: Span,
    device: Span,
    /// Descriptors of the chain with an id; zero when none is outstanding.
    counts: Box<[u16]>,
    /// Ids that are not in use: a queue in a circle.
    ids: Box<[u16]>,
    first_id: u16,
    free_ids: u16,
    free: u16,
    next: Place,
    used: Place,
    /// Where the device was last considered for a kick.
    kicked_at: Place,
    /// The first descriptor of the burst, its last word: length, id and flags.
    held: Option<(u16, u64)>,
    /// Used chains seen and not taken: id and length; those before `looked` are taken.
    seen: Vec<(u16, u32)>,
    looked: usize,
    interrupts: bool,
    pub(super) events: Events,
}

impl PackedVring {
    /// Lays a ring of `size` entries out in `region`.
    ///
    /// # Errors
    /// [`MemoryError`] when memory or descriptors run out.
    pub fn new(memory: &mut GuestMemory, region: usize, size: u16) -> Result<Self, MemoryError> {
        let entries = usize::from(size);
        let mut ring = Self {
            size,
            event_idx: false,
            desc: memory.alloc(region, DESC_BYTES * entries, 64)?,
            driver: memory.alloc(region, 4, 64)?,
            device: memory.alloc(region, 4, 64)?,
            counts: vec![0; entries].into(),
            ids: vec![0; entries].into(),
            first_id: 0,
            free_ids: 0,
            free: 0,
            next: Place::START,
            used: Place::START,
            kicked_at: Place::START,
            held: None,
            seen: Vec::with_capacity(entries),
            looked: 0,
            interrupts: false,
            events: Events::new()?,
        };
        ring.reset(false);
        Ok(ring)
    }

    /// Forgets everything, as a guest that boots.
    pub fn reset(&mut self, event_idx: bool) {
        for part in [&self.desc, &self.driver, &self.device] {
            part.fill(0);
        }
        self.counts.fill(0);
        for (id, place) in (0..).zip(&mut self.ids) {
            *place = id;
        }
        (self.first_id, self.free_ids, self.free) = (0, self.size, self.size);
        (self.next, self.used, self.kicked_at) = (Place::START, Place::START, Place::START);
        (self.held, self.looked) = (None, 0);
        self.seen.clear();
        self.event_idx = event_idx;
        self.interrupts = false;
        self.events.forget();
        self.ask(OFF);
    }

    /// Starts an empty ring at entry `index` of the first round, on both sides.
    pub fn start_at(&mut self, index: u16) {
        let place = Place { index: index % self.size, wrap: true };
        // Those before it look as if used in this round: all zero is what is used in the next one.
        for before in 0..usize::from(place.index) {
            self.desc.store_u16(DESC_BYTES * before + 14, AVAIL | USED, Ordering::Relaxed);
        }
        (self.next, self.used, self.kicked_at) = (place, place, place);
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The descriptor ring.
    pub fn desc_table(&self) -> &Span {
        &self.desc
    }

    /// The driver event area.
    pub fn driver_area(&self) -> &Span {
        &self.driver
    }

    /// The device event area.
    pub fn device_area(&self) -> &Span {
        &self.device
    }

    /// Descriptors not in a chain.
    #[inline(always)]
    pub fn free(&self) -> u16 {
        self.free
    }

    /// The id the next chain will get.
    #[inline(always)]
    pub fn next_head(&self) -> u16 {
        self.ids[usize::from(self.first_id)]
    }

    /// Where the device has to go on, as half of a base: behind all that it has used.
    pub fn base(&mut self) -> u16 {
        // A fault shows when what it used is taken.
        let _ = self.look();
        self.used.bits()
    }

    /// Makes a chain of `parts` available and returns its id. `NEXT` is filled in.
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
        let id = self.next_head();
        self.first_id = if self.first_id + 1 == self.size { 0 } else { self.first_id + 1 };
        self.free_ids -= 1;
        self.free -= parts.len() as u16;
        self.push_again(id, parts);
        id
    }

    /// Makes the chain `id` available, or available again.
    #[inline(always)]
    pub(super) fn push_again(&mut self, id: u16, parts: &[Desc]) {
        self.counts[usize::from(id)] = parts.len() as u16;
        let mut left = parts.len();
        for part in parts {
            left -= 1;
            let more = if left > 0 { Desc::NEXT } else { 0 };
            let turn = if self.next.wrap { AVAIL } else { USED };
            let flags = part.flags | more | turn;
            let word = u64::from(part.len) | u64::from(id) << 32 | u64::from(flags) << 48;
            let at = DESC_BYTES * usize::from(self.next.index);
            self.desc.write(at, &part.addr.to_le_bytes());
            match self.held {
                None => self.held = Some((self.next.index, word)),
                Some(_) => self.desc.store_u64(at + 8, word, Ordering::Release),
            }
            self.next = self.next.advance(1, self.size);
        }
    }

    /// An entry of an indirect table (virtio 1.3, section 2.8.7).
    pub(super) fn table_entry(part: Desc) -> [u8; DESC_BYTES] {
        Desc { flags: 0, next: part.flags & !Desc::NEXT, ..part }.to_bytes()
    }

    /// Shows the device everything pushed so far.
    #[inline(always)]
    pub fn publish(&mut self) {
        if let Some((index, word)) = self.held.take() {
            // ORDERING: release, so that the device sees the other descriptors and the buffers.
            self.desc.store_u64(DESC_BYTES * usize::from(index) + 8, word, Ordering::Release);
        }
    }

    /// Kicks the device if it asks to be kicked for what was published since the last call.
    #[inline]
    pub fn kick_if_asked(&mut self) {
        let (old, new) = (self.kicked_at, self.next);
        if old == new {
            return;
        }
        self.kicked_at = new;
        // ORDERING: as on a split ring: first our descriptor, then the look whether it sleeps.
        fence(Ordering::SeqCst);
        let place = self.device.load_u16(0, Ordering::Relaxed);
        let asked = match u32::from(self.device.load_u16(2, Ordering::Relaxed)) {
            OFF => false,
            AT if self.event_idx => {
                let event = Place { index: place & !WRAP, wrap: place & WRAP != 0 };
                let size = i32::from(self.size);
                let of = |p: Place| i32::from(p.index) - if p.wrap == new.wrap { 0 } else { size };
                (of(old)..of(new)).contains(&of(event))
            }
            _ => true,
        };
        if asked {
            self.events.kick();
        }
    }

    /// How many used chains wait to be taken with [`Self::take_used`].
    ///
    /// # Errors
    /// [`DeviceFault::UsedId`] when a chain is given back that is not outstanding.
    #[inline]
    pub fn used_waiting(&mut self) -> Result<u16, DeviceFault> {
        if self.looked == self.seen.len() {
            self.look()?;
        }
        Ok((self.seen.len() - self.looked) as u16)
    }

    /// Looks as far as the device has used.
    fn look(&mut self) -> Result<(), DeviceFault> {
        self.seen.drain(..self.looked);
        self.looked = 0;
        while self.seen.len() < usize::from(self.size) {
            let Some(word) = self.used_word() else { break };
            let id = (word >> 32) as u16;
            // Nothing was written to what is not writable; there the field means nothing, and
            // devices leave in it what they like (virtio 1.3, section 2.8.4).
            let is_written = (word >> 48) as u16 & Desc::WRITE != 0;
            let len = if is_written { word as u32 } else { 0 };
            let count = self.counts.get(usize::from(id)).copied().unwrap_or(0);
            if count == 0 {
                return Err(DeviceFault::UsedId { id: id.into(), at: self.used.index });
            }
            self.used = self.used.advance(count, self.size);
            self.seen.push((id, len));
        }
        Ok(())
    }

    /// Length, id and flags of the next used descriptor, if it is used.
    #[inline(always)]
    fn used_word(&self) -> Option<u64> {
        let at = DESC_BYTES * usize::from(self.used.index) + 8;
        // ORDERING: acquire pairs with the device's release, so the buffers are visible.
        let word = self.desc.load_u64(at, Ordering::Acquire);
        let wanted = if self.used.wrap { AVAIL | USED } else { 0 };
        ((word >> 48) as u16 & (AVAIL | USED) == wanted && self.free < self.size).then_some(word)
    }

    /// The id and length of the used chain `ahead` of the next, for prefetching.
    #[inline(always)]
    pub(super) fn peek_used(&self, ahead: u16) -> (u32, u32) {
        let seen = self.seen.get(self.looked + usize::from(ahead));
        seen.map_or((u32::MAX, 0), |&(id, len)| (id.into(), len))
    }

    /// Takes the next used chain: its id, and the bytes written. The caller has seen it in
    /// [`Self::used_waiting`].
    #[inline(always)]
    pub fn take_used(&mut self) -> Result<(u16, u32), DeviceFault> {
        let taken = self.seen.get(self.looked).copied();
        self.looked += 1;
        taken.ok_or(DeviceFault::UsedId { id: u32::MAX, at: self.used.index })
    }

    /// Puts the id of a chain back.
    ///
    /// # Panics
    /// When no such chain is outstanding.
    #[inline(always)]
    pub fn release(&mut self, id: u16) {
        let count = std::mem::take(&mut self.counts[usize::from(id)]);
        assert!(count > 0, "chain {id} is not outstanding");
        let end = usize::from(self.first_id) + usize::from(self.free_ids);
        self.ids[end % usize::from(self.size)] = id;
        self.free_ids += 1;
        self.free += count;
    }

    /// Chains made available and not yet taken back as used.
    pub fn outstanding(&self) -> u16 {
        self.size - self.free_ids - (self.seen.len() - self.looked) as u16
    }

    /// Kicks sent so far.
    pub fn kicks(&self) -> u64 {
        self.events.kicks()
    }

    /// Asks for an interrupt with every used descriptor, or for none. None is the default.
    pub fn set_interrupts(&mut self, on: bool) {
        self.interrupts = on;
        if on { self.arm() } else { self.ask(OFF) }
    }

    /// After a burst: with EVENT_IDX an interrupt has to be asked for anew.
    #[inline(always)]
    pub(super) fn rearm(&mut self) {
        if self.interrupts && self.event_idx {
            self.arm();
        }
    }

    fn arm(&self) {
        if self.event_idx {
            self.driver.store_u16(0, self.used.bits(), Ordering::Relaxed);
            self.ask(AT);
        } else {
            self.ask(ON);
        }
    }

    fn ask(&self, flags: u32) {
        self.driver.store_u16(2, flags as u16, Ordering::Release);
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
        let at = DESC_BYTES * usize::from(self.used.index) + 8;
        let wanted = if self.used.wrap { AVAIL | USED } else { 0 };
        let desc = &self.desc;
        let is_there = || {
            let word = desc.load_u64(at, Ordering::Acquire);
            (word >> 48) as u16 & (AVAIL | USED) == wanted
        };
        let outcome = self.events.wait(deadline, is_there).map_err(DeviceFault::Wait);
        if !self.interrupts {
            self.ask(OFF);
        }
        outcome?;
        Ok(self.used_waiting()? > 0)
    }
}
