//! Writes bursts of frames to a guest's receive ring.
//!
//! [`Fill`] is one burst: buffers are looked up and prefetched ahead for as many frames as there
//! are, frames are written in order, and all are published by one store when it ends.
//!
//! With VIRTIO_NET_F_MRG_RXBUF a frame may span several buffers, and the header says how many
//! (virtio 1.3, section 5.1.6.4); without, it must fit one chain.

use arrayvec::ArrayVec;

use crate::frame::Tail;
use crate::stats::DropReason;
use crate::vhost::mem::{GuestMap, GuestSlice, Lookup};

use super::chain::{Desc, Direction};
use super::packed::PackedRing;
use super::ring::Ring;
use super::split::SplitRing;
use super::{BURST, MAX_SEGMENTS, MAX_SPREAD, RingFault, VNET_HDR};

/// Buffers one frame may span: 64 KiB in buffers of 1 KiB.
const MAX_BUFFERS: usize = 64;

/// Where `num_buffers` is in the virtio-net header, little-endian (virtio 1.3, section 5.1.6).
const NUM_BUFFERS: usize = 10;

/// The virtio-net header of a frame that asks for nothing and lies in one buffer.
pub const IN_ONE_BUFFER: [u8; VNET_HDR] = {
    let mut header = [0; VNET_HDR];
    header[NUM_BUFFERS] = 1;
    header
};

/// Bytes of a buffer that are fetched at most before it is written: of longer frames the processor fetches
/// the rest by itself once it sees them written in order.
const FETCH_AHEAD: u32 = 320;

/// What a burst is expected to be.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    /// How many frames; no more than [`BURST`] are looked ahead for.
    pub frames: usize,
    /// Bytes that a frame has on average: a hint, for what is fetched ahead.
    pub frame_bytes: u32,
}

/// A buffer that was looked at ahead of its use.
#[derive(Debug, Clone, Copy)]
struct Ready<'m> {
    head: u16,
    /// Bytes written to it.
    written: u32,
    /// The buffer, if it is a chain of one descriptor.
    single: Option<GuestSlice<'m>>,
}

impl Ready<'_> {
    #[inline]
    fn new(head: u16) -> Self {
        Self { head, written: 0, single: None }
    }
}

/// One burst of frames on its way into a receive ring. Dropping it publishes nothing: call
/// [`Fill::finish`].
#[derive(Debug)]
pub struct Fill<'r> {
    ring: &'r mut Ring,
    map: &'r GuestMap,
    mergeable: bool,
    ready: ArrayVec<Ready<'r>, BURST>,
    /// Entries of `ready` used up.
    used: usize,
    /// Those of them that were given back.
    given_back: usize,
}

impl Ring {
    /// Begins a burst. `mergeable`: VIRTIO_NET_F_MRG_RXBUF was negotiated.
    ///
    /// # Errors
    /// The ring is broken.
    #[inline]
    pub fn fill<'r>(
        &'r mut self,
        map: &'r GuestMap,
        expected: Expected,
        mergeable: bool,
    ) -> Result<Fill<'r>, RingFault> {
        let wanted = expected.frames.min(BURST) as u16;
        let fetch = expected.frame_bytes.saturating_add(VNET_HDR as u32).min(FETCH_AHEAD);
        let mut fill =
            Fill { ready: ArrayVec::new(), ring: self, map, mergeable, used: 0, given_back: 0 };
        match fill.ring {
            Self::Split(ring) => ring.scout(map, wanted, fetch, &mut fill.ready)?,
            Self::Packed(ring) => ring.scout(map, wanted, fetch, &mut fill.ready)?,
            Self::Tap(_) => {}
        }
        Ok(fill)
    }
}

impl SplitRing {
    /// Looks up to `wanted` buffers up ahead of their use; fetches `fetch` bytes of each.
    fn scout<'m>(
        &mut self,
        map: &'m GuestMap,
        wanted: u16,
        fetch: u32,
        ready: &mut ArrayVec<Ready<'m>, BURST>,
    ) -> Result<(), RingFault> {
        let count = self.available(wanted)?.min(wanted);
        let mut heads = [0; BURST];
        let heads = self.heads(count, &mut heads);
        if let Some(&head) = heads.get(self.sound(heads)) {
            return Err(RingFault::HeadOutOfRange { head, size: self.size() });
        }
        let table = self.desc().get();
        for &head in heads {
            table.prefetch(u32::from(head) * 16);
        }
        let mut lookup = map.lookup(self.hint);
        for &head in heads {
            let mut entry = Ready::new(head);
            if let Some(desc) = Desc::fetch(&table, head) {
                entry.single = single(&mut lookup, &desc, fetch)?;
            }
            ready.push(entry);
        }
        self.hint = lookup.hint();
        Ok(())
    }
}

impl PackedRing {
    /// Looks up to `wanted` buffers up ahead of their use; fetches `fetch` bytes of each. It ends at a
    /// chain: where the next one begins is not known.
    fn scout<'m>(
        &mut self,
        map: &'m GuestMap,
        wanted: u16,
        fetch: u32,
        ready: &mut ArrayVec<Ready<'m>, BURST>,
    ) -> Result<(), RingFault> {
        let mut lookup = map.lookup(self.hint);
        let mut at = self.next();
        for _ in 0..wanted.min(self.size()) {
            self.prefetch_after(at);
            let Some((desc, head)) = self.peek_at(at) else { break };
            let single = single(&mut lookup, &desc, fetch)?;
            ready.push(Ready { single, ..Ready::new(head) });
            if single.is_none() {
                break;
            }
            at = self.after(at, 1);
        }
        self.hint = lookup.hint();
        Ok(())
    }
}

/// The buffer of a chain of one descriptor, of which the first `fetch` bytes will be written.
#[inline]
fn single<'m>(
    lookup: &mut Lookup<'m>,
    desc: &Desc,
    fetch: u32,
) -> Result<Option<GuestSlice<'m>>, RingFault> {
    if !desc.is_whole_chain(Direction::Receive) || desc.len == 0 {
        return Ok(None);
    }
    let bad = RingFault::BadAddress { gpa: desc.gpa, len: desc.len };
    let slice = lookup.slice(desc.gpa, desc.len).ok_or(bad)?;
    slice.prefetch_write(0);
    slice.prefetch_write(64);
    let mut at = 128;
    while at < fetch {
        slice.prefetch_write(at);
        at += 64;
    }
    Ok(Some(slice))
}

/// Why one frame was not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// This frame can not be delivered; the ring is fine.
    Drop(DropReason),
    /// The ring broke.
    Fault(RingFault),
}

impl From<RingFault> for Refusal {
    fn from(fault: RingFault) -> Self {
        Self::Fault(fault)
    }
}

impl Fill<'_> {
    /// Writes one frame that is all in `bytes`, behind the header [`IN_ONE_BUFFER`]; `false`: the next
    /// buffer is not one that holds it.
    #[inline(always)]
    pub fn push_short(&mut self, bytes: &[u8]) -> bool {
        match self.ready.get_mut(self.used) {
            Some(Ready { written, single: Some(buffer), .. })
                if buffer.len() as usize >= bytes.len() =>
            {
                buffer.write(bytes);
                *written = bytes.len() as u32;
                self.used += 1;
                true
            }
            _ => false,
        }
    }

    /// Writes one frame: `head` is the virtio-net header and the frame's first bytes, `tail` the
    /// rest. `head`'s num_buffers is set here.
    ///
    /// # Errors
    /// [`Refusal`].
    #[inline(never)]
    pub fn push(&mut self, head: &mut [u8], tail: Tail<'_, '_>, len: u32) -> Result<(), Refusal> {
        let total = VNET_HDR as u32 + len;
        set_num_buffers(head, 1);
        if let Some(Ready { written, single: Some(buffer), .. }) = self.ready.get_mut(self.used)
            && buffer.len() >= total
        {
            let mut at = buffer.write(head) as u32;
            if !tail.body.is_empty() {
                at += buffer.skip(at).copy_from(&tail.body) as u32;
            }
            for part in tail.more {
                at += buffer.skip(at).copy_from(part) as u32;
            }
            *written = at;
            self.used += 1;
            return Ok(());
        }
        self.push_scattered(head, tail, total)
    }

    /// The general path: chains of several descriptors, frames over several buffers, and taps.
    #[inline(never)]
    fn push_scattered(
        &mut self,
        head: &mut [u8],
        tail: Tail<'_, '_>,
        total: u32,
    ) -> Result<(), Refusal> {
        if let Ring::Tap(tap) = self.ring {
            return tap.write(head, tail);
        }
        self.give_back();
        let mut buffers = ArrayVec::<(u16, u16, u32), MAX_BUFFERS>::new();
        let mut segments = ArrayVec::<GuestSlice<'_>, MAX_SPREAD>::new();
        let (mut room, mut ahead) = (0u32, 0);
        while room < total {
            if ahead > 0 && !self.mergeable {
                return Err(Refusal::Drop(DropReason::BufferTooSmall));
            }
            if buffers.is_full() || segments.remaining_capacity() < MAX_SEGMENTS {
                return Err(Refusal::Drop(DropReason::BufferTooSmall));
            }
            let Some(chain) = self.ring.chain(self.map, ahead, |slice| segments.push(slice))?
            else {
                return Err(Refusal::Drop(DropReason::RingFull));
            };
            let capacity = chain.bytes.map_err(|_| Refusal::Drop(DropReason::TooManySegments))?;
            if capacity == 0 {
                return Err(RingFault::EmptyBuffer.into());
            }
            room = room.saturating_add(capacity);
            ahead += chain.slots;
            buffers.push((chain.id, chain.slots, capacity));
        }
        set_num_buffers(head, buffers.len() as u16);
        scatter(head, tail, &segments);
        set_num_buffers(head, 1);
        let mut left = total;
        for &(id, slots, capacity) in &buffers {
            let written = left.min(capacity);
            self.ring.push_used(id, slots, written);
            left -= written;
        }
        self.ring.take(ahead);
        self.used += buffers.len();
        self.given_back = self.used;
        Ok(())
    }

    /// Takes and gives back the buffers that were written since this was done last.
    #[inline]
    fn give_back(&mut self) {
        let written = self.ready.get(self.given_back..self.used).unwrap_or_default();
        self.given_back = self.used;
        match self.ring {
            Ring::Split(ring) => {
                ring.take(written.len() as u16);
                ring.push_used_all(written.iter().map(|entry| (entry.head, entry.written)));
            }
            Ring::Packed(ring) => {
                ring.take(written.len() as u16);
                ring.push_used_all(written.iter().map(|entry| (entry.head, 1, entry.written)));
            }
            Ring::Tap(_) => {}
        }
    }

    /// Publishes what was written and notifies the guest if it asked for it.
    ///
    /// # Errors
    /// The guest could not be notified; what was written is published.
    #[inline]
    pub fn finish(mut self) -> Result<(), RingFault> {
        self.give_back();
        self.ring.publish()
    }
}

#[inline]
fn set_num_buffers(head: &mut [u8], n: u16) {
    if let Some(field) = head.get_mut(NUM_BUFFERS..NUM_BUFFERS + 2)
        // A header that is right already is left alone: what copies it would wait for the store.
        && *field != n.to_le_bytes()
    {
        field.copy_from_slice(&n.to_le_bytes());
    }
}

/// Copies head and tail over the segments, which have room for all of it.
fn scatter(head: &[u8], tail: Tail<'_, '_>, segments: &[GuestSlice<'_>]) {
    let mut targets = segments.iter().copied();
    let mut target = GuestSlice::empty();
    let mut rest = head;
    while !rest.is_empty() {
        if target.is_empty() {
            let Some(next) = targets.next() else { return };
            target = next;
        }
        let n = target.write(rest);
        target = target.skip(n as u32);
        rest = &rest[n..];
    }
    for part in tail.parts() {
        let mut part = part;
        while !part.is_empty() {
            if target.is_empty() {
                let Some(next) = targets.next() else { return };
                target = next;
            }
            let n = target.copy_from(&part) as u32;
            target = target.skip(n);
            part = part.skip(n);
        }
    }
}
