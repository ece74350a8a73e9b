//! The split virtqueue (virtio 1.3, section 2.7): its three areas, its indexes, its notifications.
//!
//! ```text
//! descriptor table   16 bytes an entry                      guest writes
//! available ring     flags, idx, ring[size], used_event     guest writes
//! used ring          flags, idx, elem[size], avail_event    switch writes
//! ```
//!
//! # Bounds
//! [`SplitRing::new`] checks once that each area is aligned and lies in the guest's memory; the
//! areas stay mapped as long as the ring lives, whatever happens to the vport's memory table.
//!
//! # Publishing
//! Used entries are written one by one and published by one store of the used index per burst.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::vhost::device::RingSetup;
use crate::vhost::eventfd::EventFd;
use crate::vhost::mem::{GuestMap, PinnedSlice};

use super::chain::{Direction, Rules};
use super::ring::area;
use super::{BURST, RingFault};

const USED_F_NO_NOTIFY: u16 = 1;
const AVAIL_F_NO_INTERRUPT: u16 = 1;

/// Why a ring can not start.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SetupError {
    /// Not a power of two up to 32768.
    #[error("Ring size {0} is not a power of two between 1 and 32768")]
    Size(u16),
    /// The place to go on at does not exist.
    #[error("Base {base:#x} in a ring of {size} entries; a split ring has indexes up to 0xffff")]
    Base {
        /// As SET_VRING_BASE gave it.
        base: u32,
        /// Entries of the ring.
        size: u16,
    },
    /// An area is not aligned as virtio 1.3, section 2.7 asks.
    #[error("The {area} at {addr:#x} is not aligned to {align} bytes")]
    Misaligned {
        /// Which of the three.
        area: &'static str,
        /// The VMM's address.
        addr: u64,
        /// Alignment due, in bytes.
        align: usize,
    },
    /// An area is not inside one region of the memory table.
    #[error("The {area} at {addr:#x} of {len} bytes is not in a memory region of the front end")]
    Unmapped {
        /// Which of the three.
        area: &'static str,
        /// The VMM's address.
        addr: u64,
        /// Its length in bytes.
        len: u32,
    },
}

/// One split ring in use.
#[derive(Debug)]
pub struct SplitRing {
    desc: PinnedSlice,
    avail: PinnedSlice,
    used: PinnedSlice,
    size: u16,
    /// What the available index was when it was last read.
    avail_seen: u16,
    /// The next entry of the available ring to take.
    next_avail: u16,
    /// The next entry of the used ring to write.
    next_used: u16,
    /// The used index as published.
    published: u16,
    /// Entries published when the guest was last notified; none before the first time.
    notified_at: Option<u16>,
    event_idx: bool,
    rules: Rules,
    call: Option<EventFd>,
    /// The region where the last buffer was.
    pub(super) hint: usize,
}

impl SplitRing {
    /// Checks and adopts what the front end set up. The ring starts with notifications off.
    pub fn new(
        setup: &RingSetup,
        map: &Arc<GuestMap>,
        direction: Direction,
    ) -> Result<Self, SetupError> {
        let size = setup.size;
        if !size.is_power_of_two() || size > 32_768 {
            return Err(SetupError::Size(size));
        }
        let n = u32::from(size);
        let desc = area(map, "descriptor table", setup.desc, 16 * n, 16)?;
        let avail = area(map, "available ring", setup.avail, 6 + 2 * n, 2)?;
        let used = area(map, "used ring", setup.used, 6 + 8 * n, 4)?;
        let base = setup.base;
        let base = u16::try_from(base).map_err(|_| SetupError::Base { base, size })?;
        let ring = Self {
            desc,
            avail,
            used,
            size,
            avail_seen: base,
            next_avail: base,
            // A copying net device completes in order, so what was taken was used.
            next_used: base,
            published: base,
            notified_at: None,
            event_idx: setup.features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0,
            rules: Rules {
                direction,
                indirect: setup.features & (1 << VIRTIO_RING_F_INDIRECT_DESC) != 0,
            },
            call: setup.call.clone(),
            hint: 0,
        };
        ring.set_kicks(false);
        Ok(ring)
    }

    /// Entries of the ring.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The next entry to take: what GET_VRING_BASE answers.
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// Which way the ring goes, and whether it may use indirect tables.
    #[inline]
    pub(super) fn rules(&self) -> Rules {
        self.rules
    }

    /// Replaces the event that tells the guest of used buffers; `None`: the guest polls.
    pub fn set_call(&mut self, call: Option<EventFd>) {
        self.call = call;
        // What was published meanwhile was not announced, however far the index went.
        self.notified_at = None;
    }

    #[inline]
    pub(super) fn desc(&self) -> &PinnedSlice {
        &self.desc
    }

    /// How many entries are there to take. Reads guest memory only when fewer than `wanted` are
    /// known already.
    #[inline]
    pub(super) fn available(&mut self, wanted: u16) -> Result<u16, RingFault> {
        let known = self.avail_seen.wrapping_sub(self.next_avail);
        if known >= wanted {
            return Ok(known);
        }
        let seen = index(&self.avail).map_or(self.avail_seen, |cell| {
            // ORDERING: acquire, so that the entries and descriptors behind the index are seen.
            u16::from_le(cell.load(Ordering::Acquire))
        });
        let jump = seen.wrapping_sub(self.next_avail);
        if jump > self.size {
            return Err(RingFault::AvailJump { jump, size: self.size });
        }
        self.avail_seen = seen;
        Ok(jump)
    }

    /// The head that lies `ahead` entries after the next one. Only what [`Self::available`]
    /// counted may be asked for.
    #[inline]
    pub(super) fn head(&self, ahead: u16) -> Result<u16, RingFault> {
        let slot = self.next_avail.wrapping_add(ahead) & (self.size - 1);
        let head = self.avail.get().load_u16(4 + 2 * u32::from(slot));
        if head >= self.size {
            return Err(RingFault::HeadOutOfRange { head, size: self.size });
        }
        Ok(head)
    }

    /// Reads the next `count` heads, at most a burst and no more than [`Self::available`] counted, once.
    /// What they are is not judged yet: see [`Self::sound`].
    #[inline]
    pub(super) fn heads<'h>(&self, count: u16, into: &'h mut [u16; BURST]) -> &'h [u16] {
        let slot = self.next_avail & (self.size - 1);
        let count = count.min(BURST as u16);
        // The ring goes round at its end; its entries are little-endian words.
        let first = count.min(self.size - slot);
        let entries = self.avail.get().skip(4);
        let (before, after) = into[..usize::from(count)].split_at_mut(usize::from(first));
        entries.skip(2 * u32::from(slot)).read_u16s(before);
        entries.read_u16s(after);
        &into[..usize::from(count)]
    }

    /// How many of `heads` are descriptors of the ring, before the first that is not.
    #[inline]
    pub(super) fn sound(&self, heads: &[u16]) -> usize {
        // Without a branch for each: all of them are, mostly.
        let worst = heads.iter().fold(0, |worst, &head| worst.max(head));
        if worst < self.size {
            return heads.len();
        }
        heads.iter().take_while(|&&head| head < self.size).count()
    }

    /// Takes `n` entries off the available ring.
    #[inline]
    pub(super) fn take(&mut self, n: u16) {
        self.next_avail = self.next_avail.wrapping_add(n);
    }

    /// Writes one used entry; it is not published yet.
    #[inline]
    pub(super) fn push_used(&mut self, head: u16, written: u32) {
        self.push_used_all([(head, written)]);
    }

    /// Writes a used entry for each head with the bytes written; they are not published yet.
    #[inline]
    pub(super) fn push_used_all(&mut self, chains: impl IntoIterator<Item = (u16, u32)>) {
        let (entries, mask) = (self.used.get(), self.size - 1);
        let mut next = self.next_used;
        for (head, written) in chains {
            entries.store_8(4 + 8 * u32::from(next & mask), [u32::from(head), written]);
            next = next.wrapping_add(1);
        }
        self.next_used = next;
    }

    /// Publishes all used entries by one store of the index, and notifies the guest if it asked.
    ///
    /// # Errors
    /// The guest could not be notified; the entries are published.
    #[inline]
    pub(super) fn publish(&mut self) -> Result<(), RingFault> {
        if self.published == self.next_used {
            return Ok(());
        }
        if let Some(cell) = index(&self.used) {
            // ORDERING: release, so that the entries and buffers are seen before the index.
            cell.store(self.next_used.to_le(), Ordering::Release);
        }
        self.published = self.next_used;
        if self.guest_wants_call()
            && let Some(call) = &self.call
        {
            call.signal_foreign().map_err(|_| RingFault::CallBlocked)?;
        }
        Ok(())
    }

    /// Whether the guest asked to be told of what was just published (virtio 1.3, section
    /// 2.7.7.2 and 2.7.10).
    fn guest_wants_call(&mut self) -> bool {
        if self.call.is_none() {
            return false;
        }
        // ORDERING: the index must be visible before we look whether the guest still listens;
        // the guest does the mirror image. A store followed by a load needs a full fence.
        fence(Ordering::SeqCst);
        let avail = self.avail.get();
        if !self.event_idx {
            return avail.load_u16(0) & AVAIL_F_NO_INTERRUPT == 0;
        }
        let used_event = avail.load_u16(4 + 2 * u32::from(self.size));
        let new = self.next_used;
        match self.notified_at.replace(new) {
            None => true,
            Some(old) => new.wrapping_sub(used_event).wrapping_sub(1) < new.wrapping_sub(old),
        }
    }

    /// Asks the guest to kick (or not to) when it adds buffers.
    fn set_kicks(&self, on: bool) {
        let used = self.used.get();
        if self.event_idx {
            // Off: the field stays behind the available index, so that no kick is due until the
            // index comes round. There is no stronger "never".
            if on && let Some(cell) = used.u16_at(4 + 8 * u32::from(self.size)) {
                cell.store(self.next_avail.to_le(), Ordering::Relaxed);
            }
        } else if let Some(cell) = used.u16_at(0) {
            let flags = if on { 0 } else { USED_F_NO_NOTIFY };
            cell.store(flags.to_le(), Ordering::Relaxed);
        }
    }

    /// Asks the guest to kick, then looks once more. `Ok(true)`: there is work already, the ring
    /// was not armed.
    pub fn arm(&mut self) -> Result<bool, RingFault> {
        self.set_kicks(true);
        // ORDERING: the guest must see the request before we look at its index; the guest
        // publishes its index and then looks at the request. A full fence on both sides.
        fence(Ordering::SeqCst);
        let has_work = self.available(1)? > 0;
        if has_work {
            self.set_kicks(false);
        }
        Ok(has_work)
    }

    /// Polled again: no more kicks.
    pub fn disarm(&self) {
        self.set_kicks(false);
    }
}

/// The index field of an available or used ring.
#[inline]
fn index(area: &PinnedSlice) -> Option<&AtomicU16> {
    area.get().u16_at(2)
}
