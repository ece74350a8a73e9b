//! Takes bursts of frames from a guest's transmit ring.
//!
//! Three passes over a burst, so that memory latencies overlap: read the heads and prefetch their
//! descriptors; fetch descriptors, translate and prefetch the buffers; copy the first bytes of each
//! frame to private memory. One read of the available index per burst.

use arrayvec::ArrayVec;

use crate::frame::{Batch, Frame, HEAD, MORE, Scratch};
use crate::stats::DropReason;
use crate::vhost::mem::{GuestMap, GuestSlice};

use super::chain::{Desc, Direction, TooMany, walk};
use super::packed::PackedRing;
use super::ring::Ring;
use super::split::SplitRing;
use super::{BURST, MAX_FRAME_BYTES, MAX_SEGMENTS, RingFault, VNET_HDR};

/// Ethernet header: the least a frame holds.
const ETH_HDR: u32 = 14;

/// What a chain counts against [`Limit::bytes`] at least: the shortest frame on a wire, without its
/// check sequence (IEEE 802.3, clause 4A.4.2). A chain that can only be dropped costs work as well.
const LEAST_CHARGE: u32 = 60;

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

/// Descriptors of a packed ring that are prefetched ahead: two cache lines.
const PREFETCH_AHEAD: u16 = 8;

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
                for frame in &batch.frames {
                    ring.push_used(frame.desc_head, 0);
                }
                ring.publish()
            }
            Self::Packed(ring) => {
                for frame in &batch.frames {
                    ring.push_used(frame.desc_head, frame.slots, 0);
                }
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
        let mut ahead = 0;
        let mut outcome = Ok(());
        for _ in 0..limit.frames.min(BURST as u16) {
            self.prefetch(ahead + PREFETCH_AHEAD);
            let Some((desc, id)) = self.peek(ahead) else { break };
            if desc.is_whole_chain(Direction::Transmit) && desc.len != 0 {
                let Some(body) = map.slice(desc.gpa, desc.len, &mut self.hint) else {
                    outcome = Err(RingFault::BadAddress { gpa: desc.gpa, len: desc.len });
                    break;
                };
                let frame = whole(id, body, batch.more.len() as u16);
                ahead += 1;
                if batch.add(frame, charge(&frame)) >= limit.bytes {
                    break;
                }
                continue;
            }
            match self.locate_chain(map, ahead, batch) {
                Ok(Some(frame)) => {
                    ahead += frame.slots;
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
        self.take(ahead);
        outcome
    }

    /// Finds where the frame of the chain of several buffers `ahead` entries on lies; `None`: there is no
    /// room for its segments.
    #[inline(never)]
    fn locate_chain<'m>(
        &mut self,
        map: &'m GuestMap,
        ahead: u16,
        batch: &mut Batch<'m>,
    ) -> Result<Option<Frame<'m>>, RingFault> {
        if batch.more.len() + MAX_SEGMENTS > MORE {
            return Ok(None);
        }
        let (at, mut hint) = (batch.more.len(), self.hint);
        let mut body = None;
        let found =
            self.chain(map, ahead, &mut hint, |slice| first_or_more(slice, &mut body, batch));
        self.hint = hint;
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
        let mut heads = ArrayVec::<u16, BURST>::new();
        let mut outcome = Ok(());
        for ahead in 0..count {
            match self.head(ahead) {
                Ok(head) => {
                    self.desc().get().prefetch(u32::from(head) * 16);
                    heads.push(head);
                }
                Err(fault) => {
                    outcome = Err(fault);
                    break;
                }
            }
        }
        for &head in &heads {
            let desc = Desc::fetch(&self.desc().get(), head);
            if let Some(desc) = desc
                && desc.is_whole_chain(Direction::Transmit)
                && desc.len != 0
            {
                let Some(body) = map.slice(desc.gpa, desc.len, &mut self.hint) else {
                    outcome = Err(RingFault::BadAddress { gpa: desc.gpa, len: desc.len });
                    break;
                };
                let frame = whole(head, body, batch.more.len() as u16);
                if batch.add(frame, charge(&frame)) >= limit.bytes {
                    break;
                }
                continue;
            }
            match self.locate_chain(map, head, batch) {
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
        self.take(batch.frames.len() as u16);
        outcome
    }

    /// Finds where the frame of a chain of several buffers lies. `body` is the first buffer, `more` the
    /// others, the virtio-net header still counted. `None`: there is no room for its segments.
    #[inline(never)]
    fn locate_chain<'m>(
        &mut self,
        map: &'m GuestMap,
        head: u16,
        batch: &mut Batch<'m>,
    ) -> Result<Option<Frame<'m>>, RingFault> {
        if batch.more.len() + MAX_SEGMENTS > MORE {
            return Ok(None);
        }
        let (at, mut hint) = (batch.more.len(), self.hint);
        let mut body = None;
        let walked = walk(map, self.desc().get(), head, self.rules(), &mut hint, |slice| {
            first_or_more(slice, &mut body, batch);
        });
        self.hint = hint;
        Ok(Some(chained(head, 1, walked?, body, at, batch)))
    }
}

/// The frame in a chain of one buffer.
#[inline]
pub(super) fn whole(id: u16, body: GuestSlice<'_>, more: u16) -> Frame<'_> {
    body.prefetch(0);
    body.prefetch(64);
    let (len, drop) = (body.len(), size_verdict(body.len()));
    Frame { desc_head: id, slots: 1, head_len: 0, len, body, more: (more, more), drop }
}

/// What a chain, of which nothing was copied yet, counts against [`Limit::bytes`].
#[inline]
pub(super) fn charge(frame: &Frame<'_>) -> u32 {
    frame.len.saturating_sub(VNET_HDR as u32).max(LEAST_CHARGE)
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
fn size_verdict(chain_bytes: u32) -> Option<DropReason> {
    if chain_bytes < VNET_HDR as u32 + ETH_HDR {
        Some(DropReason::Truncated)
    } else if chain_bytes > VNET_HDR as u32 + MAX_FRAME_BYTES {
        Some(DropReason::TooLong)
    } else {
        None
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
    let mut copied = frame.body.read(into);
    frame.body = frame.body.skip(copied as u32);
    while copied < wanted {
        // The walk counted `frame.len` bytes over body and more, so a segment is there.
        let next = more[usize::from(frame.more.0)];
        let n = next.read(&mut into[copied..]);
        frame.more.0 += 1;
        frame.body = next.skip(n as u32);
        copied += n;
    }
    frame.head_len = (wanted - VNET_HDR) as u16;
    frame.len -= VNET_HDR as u32;
}
