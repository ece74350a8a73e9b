//! The packed virtqueue (virtio 1.3, section 2.8): one ring of descriptors that both sides write.
//!
//! ```text
//! descriptor ring       addr, len, id, flags: 16 bytes an entry     guest offers, switch gives back
//! driver event area     when the guest wants to be called           guest writes
//! device event area     when the switch wants to be kicked          switch writes
//! ```
//! Whose turn a descriptor is, two bits of its flags say, AVAIL and USED, by a counter that turns over
//! with each round: there is no index to read, and half of the cache lines of a split ring.
//!
//! # Bounds
//! [`PackedRing::new`] checks once that each area is aligned and lies in the guest's memory. A
//! descriptor is read in two words, the one with the flags first; what was read is judged, and not
//! read again. No more is taken than the ring holds.
//!
//! # Publishing
//! The word with length, id and flags is one store. The first one of a burst is held back until all
//! others are written: the guest, which looks in order, sees the burst at once.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::vhost::device::RingSetup;
use crate::vhost::eventfd::EventFd;
use crate::vhost::mem::{GuestMap, GuestSlice, Lookup, PinnedSlice};

use super::chain::{Desc, Direction, NEXT, Rules, TooMany, WRITE, check_direction, indirect_table};
use super::ring::{Chain, area};
use super::split::SetupError;
use super::{MAX_SEGMENTS, MAX_SPREAD, RingFault};

const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
/// Bit of the wrap counter in event offsets and in the base (virtio 1.3, section 2.8.10).
const WRAP: u16 = 1 << 15;
/// Values of the flags of an event area (virtio 1.3, section 2.8.10).
const EVENTS_ON: u16 = 0;
const EVENTS_OFF: u16 = 1;
const EVENTS_AT: u16 = 2;

/// Descriptors in a cache line.
const IN_A_LINE: u16 = 4;

/// A place in the ring: the entry, and the wrap counter of its round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    index: u16,
    wrap: bool,
}

impl Position {
    /// `n` entries on, at most a whole round.
    #[inline]
    fn advance(self, n: u16, size: u16) -> Self {
        // Both are at most 32768, the index less: the sum fits.
        let index = self.index + n;
        if index < size { Self { index, ..self } } else { self.next_round(index - size) }
    }

    /// A branch that is seldom taken costs less than two selections each time.
    #[cold]
    fn next_round(self, index: u16) -> Self {
        Self { index, wrap: !self.wrap }
    }

    fn to_bits(self) -> u16 {
        self.index | if self.wrap { WRAP } else { 0 }
    }

    fn from_bits(bits: u16) -> Self {
        Self { index: bits & !WRAP, wrap: bits & WRAP != 0 }
    }
}

/// One packed ring in use.
#[derive(Debug)]
pub struct PackedRing {
    desc: PinnedSlice,
    driver_event: PinnedSlice,
    device_event: PinnedSlice,
    size: u16,
    /// The next descriptor to take.
    next: Position,
    /// Where the next used descriptor goes.
    used: Position,
    /// The first used descriptor of a burst, which shows the guest all of them.
    held: Option<(u16, u64)>,
    /// The used position when the guest was last notified, or not; none before the first time.
    notified_at: Option<Position>,
    event_idx: bool,
    rules: Rules,
    call: Option<EventFd>,
    /// The region where the last buffer was.
    pub(super) hint: usize,
}

impl PackedRing {
    /// Checks and adopts what the front end set up. The ring starts with notifications off.
    ///
    /// # Errors
    /// [`SetupError`].
    pub fn new(
        setup: &RingSetup,
        map: &Arc<GuestMap>,
        direction: Direction,
    ) -> Result<Self, SetupError> {
        let size = setup.size;
        if !(1..=32_768).contains(&size) {
            return Err(SetupError::Size(size));
        }
        // The lower half says where the device goes on. What it had taken it has given back, so
        // used descriptors go on there as well, whatever the upper half says.
        let next = Position::from_bits(setup.base as u16);
        if next.index >= size {
            return Err(SetupError::Base { base: setup.base, size });
        }
        let ring = Self {
            desc: area(map, "descriptor ring", setup.desc, 16 * u32::from(size), 16)?,
            driver_event: area(map, "driver event area", setup.avail, 4, 4)?,
            device_event: area(map, "device event area", setup.used, 4, 4)?,
            size,
            next,
            used: next,
            held: None,
            notified_at: None,
            event_idx: setup.features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0,
            rules: Rules {
                direction,
                indirect: setup.features & (1 << VIRTIO_RING_F_INDIRECT_DESC) != 0,
            },
            call: setup.call.clone(),
            hint: 0,
        };
        ring.disarm();
        Ok(ring)
    }

    /// Where the ring stands, as GET_VRING_BASE answers: the place to take from in the lower half, the
    /// place of the next used descriptor, which is the same between bursts, in the upper one.
    pub fn base(&self) -> u32 {
        u32::from(self.next.to_bits()) | u32::from(self.used.to_bits()) << 16
    }

    /// Replaces the event that tells the guest of used buffers; `None`: the guest polls.
    pub fn set_call(&mut self, call: Option<EventFd>) {
        self.call = call;
        // What was published meanwhile was not announced.
        self.notified_at = None;
    }

    /// Entries of the ring.
    #[inline]
    pub(super) fn size(&self) -> u16 {
        self.size
    }

    /// The place of the next descriptor to take.
    #[inline]
    pub(super) fn next(&self) -> Position {
        self.next
    }

    /// The place `n` entries after `at`, at most a whole round.
    #[inline]
    pub(super) fn after(&self, at: Position, n: u16) -> Position {
        at.advance(n, self.size)
    }

    /// The descriptor `ahead` entries after the next one, with its buffer id, if the guest offers it.
    #[inline]
    pub(super) fn peek(&self, ahead: u16) -> Option<(Desc, u16)> {
        if ahead >= self.size {
            return None;
        }
        self.peek_at(self.next.advance(ahead, self.size))
    }

    /// The descriptor at a place less than a round after the next one, with its buffer id, if the guest
    /// offers it.
    #[inline]
    pub(super) fn peek_at(&self, at: Position) -> Option<(Desc, u16)> {
        let wanted = if at.wrap { AVAIL } else { USED };
        let ring = self.desc.get();
        let [gpa, rest] = ring.pair_at(16 * u32::from(at.index))?;
        // ORDERING: acquire, so that the address, and the rest of the chain, are read after the flags.
        let rest = u64::from_le(rest.load(Ordering::Acquire));
        if (rest >> 48) as u16 & (AVAIL | USED) != wanted {
            return None;
        }
        Some(decode(gpa.load(Ordering::Relaxed), rest))
    }

    /// Hints that the descriptors two cache lines after `at` will be read, once in each line.
    #[inline]
    pub(super) fn prefetch_after(&self, at: Position) {
        if at.index % IN_A_LINE == 0 {
            let index = at.advance((2 * IN_A_LINE).min(self.size), self.size).index;
            self.desc.get().prefetch(16 * u32::from(index));
        }
    }

    /// Walks the chain that starts `ahead` entries after the next one, gives each non-empty buffer to
    /// `visit`; `None` if the guest offers none there.
    ///
    /// # Errors
    /// The chain breaks the rules of the ring.
    pub(super) fn chain<'m>(
        &self,
        lookup: &mut Lookup<'m>,
        ahead: u16,
        mut visit: impl FnMut(GuestSlice<'m>),
    ) -> Result<Option<Chain>, RingFault> {
        let Some((first, mut id)) = self.peek(ahead) else { return Ok(None) };
        let mut sum = Sum::new(self.rules.direction);
        if first.is_indirect() {
            let table = indirect_table(lookup, first, self.rules, false)?;
            for entry in 0..table.len() / 16 {
                let Some([gpa, rest]) = table.fetch_16(entry * 16) else { break };
                // NEXT and id mean nothing here (virtio 1.3, section 2.8.7).
                let desc = Desc::new(gpa, rest as u32, (rest >> 48) as u16 & !NEXT);
                if desc.is_indirect() {
                    return Err(RingFault::NestedIndirect);
                }
                if !sum.add(lookup, desc, &mut visit)? {
                    break;
                }
            }
            return Ok(Some(Chain { id, slots: 1, bytes: sum.bytes }));
        }
        let (mut desc, mut slots) = (first, 1);
        loop {
            if desc.is_indirect() && slots > 1 {
                return Err(RingFault::IndirectLinked);
            }
            // A chain that is too long is walked on all the same: it ends where the next one begins.
            sum.add(lookup, desc, &mut visit)?;
            if !desc.has_next() {
                return Ok(Some(Chain { id, slots, bytes: sum.bytes }));
            }
            if usize::from(slots) >= MAX_SPREAD {
                return Err(RingFault::ChainTooLong);
            }
            let round = RingFault::Loop { head: self.next.advance(ahead, self.size).index };
            // The flags of the first descriptor speak for all of them (virtio 1.3, section 2.8.6).
            (desc, id) = self.follow(ahead + slots).ok_or(round)?;
            slots += 1;
        }
    }

    /// The descriptor `ahead` entries after the next one, as part of a chain; `None` once round.
    fn follow(&self, ahead: u16) -> Option<(Desc, u16)> {
        if ahead >= self.size {
            return None;
        }
        let at = self.next.advance(ahead, self.size);
        let [gpa, rest] = self.desc.get().pair_at(16 * u32::from(at.index))?;
        Some(decode(gpa.load(Ordering::Relaxed), u64::from_le(rest.load(Ordering::Relaxed))))
    }

    /// Takes `slots` entries.
    #[inline]
    pub(super) fn take(&mut self, slots: u16) {
        self.next = self.next.advance(slots, self.size);
    }

    /// Gives one chain of `slots` entries back; the guest does not see it yet.
    #[inline]
    pub(super) fn push_used(&mut self, id: u16, slots: u16, written: u32) {
        self.push_used_all([(id, slots, written)]);
    }

    /// Gives chains back, each with its id, its entries and the bytes written; the guest does not see them
    /// yet.
    #[inline]
    pub(super) fn push_used_all(&mut self, chains: impl IntoIterator<Item = (u16, u16, u32)>) {
        let write = if self.rules.direction == Direction::Receive { WRITE } else { 0 };
        let mut used = self.used;
        for (id, slots, written) in chains {
            let flags = write | if used.wrap { AVAIL | USED } else { 0 };
            let word = u64::from(written) | u64::from(id) << 32 | u64::from(flags) << 48;
            match self.held {
                None => self.held = Some((used.index, word)),
                Some(_) => self.show(used.index, word),
            }
            used = used.advance(slots, self.size);
        }
        self.used = used;
    }

    #[inline]
    fn show(&self, index: u16, word: u64) {
        if let Some(cell) = self.desc.get().u64_at(16 * u32::from(index) + 8) {
            // ORDERING: release, so that buffers and later descriptors are seen before this one.
            cell.store(word.to_le(), Ordering::Release);
        }
    }

    /// Shows the guest all used descriptors by one store, and notifies it if it asked.
    ///
    /// # Errors
    /// The guest could not be notified; the descriptors are published.
    #[inline]
    pub(super) fn publish(&mut self) -> Result<(), RingFault> {
        let Some((index, word)) = self.held.take() else { return Ok(()) };
        self.show(index, word);
        if self.guest_wants_call()
            && let Some(call) = &self.call
        {
            call.signal_foreign().map_err(|_| RingFault::CallBlocked)?;
        }
        Ok(())
    }

    /// Whether the guest asked to be told of what was just published (virtio 1.3, section 2.8.10).
    fn guest_wants_call(&mut self) -> bool {
        if self.call.is_none() {
            return false;
        }
        // ORDERING: the descriptors must be visible before we look whether the guest still listens;
        // the guest does the mirror image. A store followed by a load needs a full fence.
        fence(Ordering::SeqCst);
        let event = self.driver_event.get();
        let word = event.u32_at(0).map_or(0, |cell| u32::from_le(cell.load(Ordering::Relaxed)));
        let (at, flags) = (Position::from_bits(word as u16), (word >> 16) as u16 & 3);
        let (old, new) = (self.notified_at.replace(self.used), self.used);
        match (flags, old) {
            (EVENTS_OFF, _) => false,
            (EVENTS_AT, Some(old)) if self.event_idx => is_passed(at, old, new, self.size),
            _ => true,
        }
    }

    /// Asks the guest to kick, then looks once more. `true`: there is work already, the ring was not
    /// armed.
    pub fn arm(&self) -> bool {
        match self.event_idx {
            true => self.ask(self.next.to_bits(), EVENTS_AT),
            false => self.ask(0, EVENTS_ON),
        }
        // ORDERING: the guest must see the request before we look at its descriptor; the guest
        // publishes the descriptor and then looks at the request. A full fence on both sides.
        fence(Ordering::SeqCst);
        let has_work = self.peek(0).is_some();
        if has_work {
            self.disarm();
        }
        has_work
    }

    /// Polled again: no more kicks.
    pub fn disarm(&self) {
        self.ask(0, EVENTS_OFF);
    }

    fn ask(&self, at: u16, flags: u16) {
        if let Some(cell) = self.device_event.get().u32_at(0) {
            let word = u32::from(at) | u32::from(flags) << 16;
            cell.store(word.to_le(), Ordering::Relaxed);
        }
    }
}

/// The descriptor of two words, the first as it is in memory, and its buffer id.
#[inline]
fn decode(gpa: u64, rest: u64) -> (Desc, u16) {
    let flags = (rest >> 48) as u16;
    (Desc::new(u64::from_le(gpa), rest as u32, flags), (rest >> 32) as u16)
}

/// Whether the entry `event` was used by going from `old` to `new`.
fn is_passed(event: Position, old: Position, new: Position, size: u16) -> bool {
    // As places in the round of `new`, that before it being negative.
    let place =
        |at: Position| i32::from(at.index) - if at.wrap == new.wrap { 0 } else { size.into() };
    (place(old)..place(new)).contains(&place(event))
}

/// Buffers of one chain, counted as they are found.
struct Sum {
    direction: Direction,
    buffers: usize,
    bytes: Result<u32, TooMany>,
}

impl Sum {
    fn new(direction: Direction) -> Self {
        Self { direction, buffers: 0, bytes: Ok(0) }
    }

    /// Returns whether the chain is still one that is worth its walk.
    fn add<'m>(
        &mut self,
        lookup: &mut Lookup<'m>,
        desc: Desc,
        visit: &mut impl FnMut(GuestSlice<'m>),
    ) -> Result<bool, RingFault> {
        check_direction(desc, self.direction)?;
        self.buffers += 1;
        if self.buffers > MAX_SEGMENTS {
            self.bytes = Err(TooMany);
        }
        let Ok(bytes) = self.bytes else { return Ok(false) };
        if desc.len != 0 {
            let bad = RingFault::BadAddress { gpa: desc.gpa, len: desc.len };
            let slice = lookup.slice(desc.gpa, desc.len).ok_or(bad)?;
            self.bytes = bytes.checked_add(desc.len).ok_or(TooMany);
            if self.bytes.is_ok() {
                visit(slice);
            }
        }
        Ok(self.bytes.is_ok())
    }
}
