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
use super::split::SplitRing;
use super::{BURST, MAX_FRAME_BYTES, MAX_SEGMENTS, RingFault, VNET_HDR};

/// Ethernet header: the least a frame holds.
const ETH_HDR: u32 = 14;

impl SplitRing {
    /// Takes up to `max` frames (at most [`BURST`]) into `batch`, their heads into `scratch`.
    ///
    /// Every chain taken is in `batch`, also those that only can be dropped; the caller gives all
    /// of them back by [`SplitRing::complete`]. On a fault the frames before it are in `batch`.
    pub fn pop<'m>(
        &mut self,
        map: &'m GuestMap,
        batch: &mut Batch<'m>,
        scratch: &mut [Scratch; BURST],
        max: u16,
    ) -> Result<(), RingFault> {
        let count = self.available(1)?.min(max).min(BURST as u16);
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
            match self.locate(map, head, batch) {
                Ok(Some(frame)) => batch.frames.push(frame),
                Ok(None) => break, // no room for its segments: the next burst takes it
                Err(fault) => {
                    outcome = Err(fault);
                    break;
                }
            }
        }
        self.take(batch.frames.len() as u16);
        for (frame, scratch) in batch.frames.iter_mut().zip(scratch) {
            copy_head(frame, &batch.more, scratch);
        }
        outcome
    }

    /// Finds where the frame of one chain lies. `body` is the first buffer, `more` the others, the
    /// virtio-net header still counted.
    #[inline]
    fn locate<'m>(
        &mut self,
        map: &'m GuestMap,
        head: u16,
        batch: &mut Batch<'m>,
    ) -> Result<Option<Frame<'m>>, RingFault> {
        let at = batch.more.len() as u16;
        let simple = Desc::fetch(&self.desc().get(), head)
            .filter(|desc| desc.is_whole_chain(Direction::Transmit) && desc.len != 0);
        if let Some(desc) = simple {
            let bad = RingFault::BadAddress { gpa: desc.gpa, len: desc.len };
            let body = map.slice(desc.gpa, desc.len, &mut self.hint).ok_or(bad)?;
            body.prefetch(0);
            body.prefetch(64);
            let drop = size_verdict(desc.len);
            let len = desc.len;
            return Ok(Some(Frame {
                desc_head: head,
                head_len: 0,
                len,
                body,
                more: (at, at),
                drop,
            }));
        }
        self.locate_chain(map, head, batch)
    }

    fn locate_chain<'m>(
        &mut self,
        map: &'m GuestMap,
        head: u16,
        batch: &mut Batch<'m>,
    ) -> Result<Option<Frame<'m>>, RingFault> {
        if batch.more.len() + MAX_SEGMENTS > MORE {
            return Ok(None);
        }
        let at = batch.more.len();
        let mut hint = self.hint;
        let mut body = None;
        let walked = walk(map, self.desc().get(), head, self.rules(), &mut hint, |slice| {
            slice.prefetch(0);
            match body {
                None => body = Some(slice),
                Some(_) => batch.more.push(slice),
            }
        });
        self.hint = hint;
        let (len, drop) = match walked? {
            Ok(len) => (len, size_verdict(len)),
            Err(TooMany) => (0, Some(DropReason::TooManySegments)),
        };
        let body = body.unwrap_or_else(GuestSlice::empty);
        let more = (at as u16, batch.more.len() as u16);
        Ok(Some(Frame { desc_head: head, head_len: 0, len, body, more, drop }))
    }

    /// Gives the chains of a burst back to the guest and publishes them at once.
    ///
    /// # Errors
    /// The guest could not be notified of it.
    #[inline]
    pub fn complete(&mut self, batch: &Batch<'_>) -> Result<(), RingFault> {
        for frame in &batch.frames {
            self.push_used(frame.desc_head, 0);
        }
        self.publish()
    }
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
