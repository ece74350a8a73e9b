//! Takes bursts of frames from a guest's transmit ring.
//!
//! Three passes over a burst, so that memory latencies overlap: read the heads and prefetch their
//! descriptors; fetch descriptors, translate and prefetch the buffers; copy the first bytes of each
//! frame to private memory. One read of the available index per burst.

use crate::frame::{Batch, Frame, HEAD, MORE, Scratch};
use crate::stats::DropReason;
use crate::vhost::mem::{GuestMap, GuestSlice, Lookup};

use super::chain::{Desc, Direction, Rules, TooMany, walk};
use super::packed::PackedRing;
use super::ring::Ring;
use super::split::SplitRing;
use super::{BURST, MAX_FRAME_BYTES, MAX_SEGMENTS, RingFault, VNET_HDR};

/// Ethernet header: the least a frame holds.
const ETH_HDR: u32 = 14;

/// What a chain counts against [`Limit::bytes`] at least: the shortest frame on a wire, without its
/// check sequence (IEEE 802.3, clause 4A.4.2). A chain that can only be dropped costs work as well.
const LEAST_CHARGE: u32 = 60;

/// Bytes of the shortest chain with a frame, virtio-net header and all.
const LEAST_CHAIN: u32 = VNET_HDR as u32 + ETH_HDR;

/// Bytes of the longest.
const MOST_CHAIN: u32 = VNET_HDR as u32 + MAX_FRAME_BYTES;

/// Bytes of a buffer up to which all of it is fetched ahead.
const FETCH_AHEAD: u32 = 320;

/// How much one burst takes at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Frames; never more than [`BURST`].
    pub frames: u16,
    /// Bytes of frames; the frame that reaches or crosses it is the last.
    pub bytes: u32,
}

impl Limit {
    /// Up to `frames` frames of any length.
    pub const fn frames(frames: u16) -> Self {
        Self { frames, bytes: u32::MAX }
    }
}

impl Ring {
    /// Takes frames up to `limit` into `batch`, their heads into `scratch`.
    ///
    /// Every chain taken is in `batch`, also those that only can be dropped; the caller gives all
    /// of them back by [`Ring::complete`]. On a fault the frames before it are in `batch`.
    ///
    /// # Errors
    /// The ring is broken.
    pub fn pop<'m>(
        &mut self,
        map: &'m GuestMap,
        batch: &mut Batch<'m>,
        scratch: &mut [Scratch; BURST],
        limit: Limit,
    ) -> Result<(), RingFault> {
        let outcome = match self {
            Self::Split(ring) => ring.collect(map, batch, limit),
            Self::Packed(ring) => ring.collect(map, batch, limit),
            Self::Tap(tap) => tap.collect(map, batch, limit),
        };
        for (frame, scratch) in batch.frames.iter_mut().zip(scratch) {
            copy_head(frame, &batch.more, scratch);
        }
        outcome
    }

    /// Gives the chains of a burst back to the guest and publishes them at once.
    ///
    /// # Errors
    /// The guest could not be notified of it.
    #[inline]
    pub fn complete(&mut self, batch: &Batch<'_>) -> Result<(), RingFault> {
        match self {
            Self::Split(ring) => {
                ring.push_used_all(batch.frames.iter().map(|frame| (frame.desc_head, 0)));
                ring.publish()
            }
            Self::Packed(ring) => {
                let chains = batch.frames.iter();
                ring.push_used_all(chains.map(|frame| (frame.desc_head, frame.slots, 0)));
                ring.publish()
            }
            // Its buffers are ours: the next burst reads into them.
            Self::Tap(_) => Ok(()),
        }
    }
}

impl PackedRing {
    /// Takes frames up to `limit`, whose heads are not copied yet.
    fn collect<'m>(
        &mut self,
        map: &'m GuestMap,
        batch: &mut Batch<'m>,
        limit: Limit,
    ) -> Result<(), RingFault> {
        let (mut ahead, mut at) = (0, self.next());
        let mut outcome = Ok(());
        let mut lookup = map.lookup(self.hint);
        for _ in 0..limit.frames.min(BURST as u16) {
            if ahead >= self.size() {
                break;
            }
            self.prefetch_after(at);
            let Some((desc, id)) = self.peek_at(at) else { break };
            if desc.is_whole_chain(Direction::Transmit)
                && is_a_frame(desc.len)
                && let Some(body) = lookup.slice(desc.gpa, desc.len)
            {
                ahead += 1;
                at = self.after(at, 1);
                let frame = whole(id, body, batch.more.len() as u16, None);
                if batch.add(frame, charge_of_one(desc.len)) >= limit.bytes {
                    break;
                }
                continue;
            }
            match self.locate_chain(&mut lookup, ahead, batch) {
                Ok(Some(frame)) => {
                    ahead += frame.slots;
                    at = self.after(at, frame.slots);
                    if batch.add(frame, charge(&frame)) >= limit.bytes {
                        break;
                    }
                }
                Ok(None) => break,
                Err(fault) => {
                    outcome = Err(fault);
                    break;
                }
            }
        }
        self.hint = lookup.hint();
        self.take(ahead);
        outcome
    }

    /// Finds where the frame of the chain `ahead` entries on lies, whatever chain it is; `None`: there is no
    /// room for its segments.
    #[inline(never)]
    fn locate_chain<'m>(
        &self,
        lookup: &mut Lookup<'m>,
        ahead: u16,
        batch: &mut Batch<'m>,
    ) -> Result<Option<Frame<'m>>, RingFault> {
        if batch.more.len() + MAX_SEGMENTS > MORE {
            return Ok(None);
        }
        let at = batch.more.len();
        let mut body = None;
        let found = self.chain(lookup, ahead, |slice| first_or_more(slice, &mut body, batch));
        Ok(found?.map(|chain| chained(chain.id, chain.slots, chain.bytes, body, at, batch)))
    }
}

impl SplitRing {
    /// Takes frames up to `limit`, whose heads are not copied yet.
    fn collect<'m>(
        &mut self,
        map: &'m GuestMap,
        batch: &mut Batch<'m>,
        limit: Limit,
    ) -> Result<(), RingFault> {
        let count = self.available(1)?.min(limit.frames).min(BURST as u16);
        if count == 0 {
            return Ok(());
        }
        let mut heads = [0; BURST];
        let heads = self.heads(count, &mut heads);
        let sound = self.sound(heads);
        let mut outcome = match heads.get(sound) {
            None => Ok(()),
            Some(&head) => Err(RingFault::HeadOutOfRange { head, size: self.size() }),
        };
        let heads = &heads[..sound];
        for &head in heads {
            self.desc().get().prefetch(u32::from(head) * 16);
        }
        let (table, mut lookup) = (self.desc().get(), map.lookup(self.hint));
        for &head in heads {
            // The usual chain in a few steps, without a result to unpack.
            if let Some(desc) = Desc::fetch(&table, head)
                && desc.is_whole_chain(Direction::Transmit)
                && is_a_frame(desc.len)
                && let Some(body) = lookup.slice(desc.gpa, desc.len)
            {
                let frame = whole(head, body, batch.more.len() as u16, None);
                if batch.add(frame, charge_of_one(desc.len)) >= limit.bytes {
                    break;
                }
                continue;
            }
            match locate(&mut lookup, &table, head, self.rules(), batch) {
                Ok(Some(frame)) => {
                    if batch.add(frame, charge(&frame)) >= limit.bytes {
                        break;
                    }
                }
                Ok(None) => break, // no room for its segments: the next burst takes it
                Err(fault) => {
                    outcome = Err(fault);
                    break;
                }
            }
        }
        self.hint = lookup.hint();
        self.take(batch.frames.len() as u16);
        outcome
    }
}

/// Finds where the frame of the chain `head` of `table` lies, whatever chain it is; `None`: there is no room
/// for its segments.
#[inline(never)]
fn locate<'m>(
    lookup: &mut Lookup<'m>,
    table: &GuestSlice<'_>,
    head: u16,
    rules: Rules,
    batch: &mut Batch<'m>,
) -> Result<Option<Frame<'m>>, RingFault> {
    if batch.more.len() + MAX_SEGMENTS > MORE {
        return Ok(None);
    }
    let at = batch.more.len();
    let mut body = None;
    let walked = walk(lookup, *table, head, rules, |slice| first_or_more(slice, &mut body, batch));
    Ok(Some(chained(head, 1, walked?, body, at, batch)))
}

/// Whether a chain of `chain_bytes`, virtio-net header and frame, holds a frame that can be forwarded.
#[inline]
fn is_a_frame(chain_bytes: u32) -> bool {
    (LEAST_CHAIN..=MOST_CHAIN).contains(&chain_bytes)
}

/// [`charge`] of a chain that [`is_a_frame`].
#[inline]
fn charge_of_one(chain_bytes: u32) -> u32 {
    (chain_bytes - VNET_HDR as u32).max(LEAST_CHARGE)
}

/// The frame in a chain of one buffer; `drop` is its [`size_verdict`].
#[inline]
pub(super) fn whole(
    id: u16,
    body: GuestSlice<'_>,
    more: u16,
    drop: Option<DropReason>,
) -> Frame<'_> {
    let len = body.len();
    // The head of a long frame: the rest follows while the frame before it is copied.
    let fetch = if len <= FETCH_AHEAD { len } else { (VNET_HDR + HEAD) as u32 };
    body.prefetch(0);
    body.prefetch(64);
    let mut at = 128;
    while at < fetch {
        body.prefetch(at);
        at += 64;
    }
    Frame { desc_head: id, slots: 1, head_len: 0, len, body, more: (more, more), drop }
}

/// What a chain, of which nothing was copied yet, counts against [`Limit::bytes`]. One that is too long costs
/// no more than the longest that is not: it is not copied.
#[inline]
pub(super) fn charge(frame: &Frame<'_>) -> u32 {
    frame.len.saturating_sub(VNET_HDR as u32).clamp(LEAST_CHARGE, MAX_FRAME_BYTES)
}

/// Keeps a buffer of a chain: the first apart from the others.
fn first_or_more<'m>(
    slice: GuestSlice<'m>,
    body: &mut Option<GuestSlice<'m>>,
    batch: &mut Batch<'m>,
) {
    slice.prefetch(0);
    match body {
        None => *body = Some(slice),
        Some(_) => batch.more.push(slice),
    }
}

/// The frame in a chain that was walked; what lies behind `at` in [`Batch::more`] is its.
fn chained<'m>(
    id: u16,
    slots: u16,
    bytes: Result<u32, TooMany>,
    body: Option<GuestSlice<'m>>,
    at: usize,
    batch: &Batch<'m>,
) -> Frame<'m> {
    let (len, drop) = match bytes {
        Ok(len) => (len, size_verdict(len)),
        Err(TooMany) => (0, Some(DropReason::TooManySegments)),
    };
    let body = body.unwrap_or_else(GuestSlice::empty);
    let more = (at as u16, batch.more.len() as u16);
    Frame { desc_head: id, slots, head_len: 0, len, body, more, drop }
}

/// What `chain_bytes`, virtio-net header and frame, say of a frame.
#[inline]
pub(super) fn size_verdict(chain_bytes: u32) -> Option<DropReason> {
    match chain_bytes {
        LEAST_CHAIN..=MOST_CHAIN => None,
        ..LEAST_CHAIN => Some(DropReason::Truncated),
        _ => Some(DropReason::TooLong),
    }
}

/// Copies header and head; what was copied is taken off `body` and `more`.
#[inline]
fn copy_head<'m>(frame: &mut Frame<'m>, more: &[GuestSlice<'m>], scratch: &mut Scratch) {
    if frame.drop.is_some() {
        frame.len = frame.len.saturating_sub(VNET_HDR as u32);
        return;
    }
    let wanted = (VNET_HDR + HEAD).min(frame.len as usize);
    let into = &mut scratch.all_mut()[..wanted];
    if frame.body.len() as usize >= wanted {
        frame.body.read(into);
        frame.body = frame.body.skip(wanted as u32);
    } else {
        gather_head(frame, more, into);
    }
    frame.head_len = (wanted - VNET_HDR) as u16;
    frame.len -= VNET_HDR as u32;
}

/// Fills `into` from the frame's buffers, which have as many bytes; what was copied is taken off them.
#[inline(never)]
fn gather_head<'m>(frame: &mut Frame<'m>, more: &[GuestSlice<'m>], into: &mut [u8]) {
    let mut copied = frame.body.read(into);
    frame.body = frame.body.skip(copied as u32);
    while copied < into.len() {
        // The walk counted `frame.len` bytes over body and more, so a segment is there.
        let next = more[usize::from(frame.more.0)];
        let n = next.read(&mut into[copied..]);
        frame.more.0 += 1;
        frame.body = next.skip(n as u32);
        copied += n;
    }
}
