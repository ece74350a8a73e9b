//! The receive queue: buffers of any shape posted to the device, frames taken in bursts.

use std::time::Duration;

use super::buffers::Buffers;
use super::{AnyVring, Deadline, Desc, DeviceFault, DriverRing as _, VirtioNetHdr, Vring};
use crate::testing::memory::{GuestMemory, MemoryError};

const HDR: usize = VirtioNetHdr::BYTES;

/// How many used entries ahead the first line of a buffer is fetched.
const PREFETCH_FRAMES: u16 = 8;

/// One descriptor of every receive chain.
#[derive(Debug, Clone, Copy)]
struct Segment {
    len: usize,
    /// Where it lies in the buffer. Back to front, so that a device that writes on beyond a
    /// descriptor ends up in the wrong place.
    at: usize,
}

/// The receive queue of one queue pair.
#[derive(Debug)]
pub struct RxQueue {
    ring: AnyVring,
    buffers: Buffers,
    segments: Box<[Segment]>,
    mergeable: bool,
    repost: bool,
    /// The buffers of the frame in hand: head and bytes written.
    pieces: Vec<(u16, usize)>,
    parts: Vec<Desc>,
}

impl RxQueue {
    /// A queue whose chains have descriptors of these lengths.
    ///
    /// # Panics
    /// When there are no segments or one is empty.
    pub(in crate::testing) fn new(
        memory: &mut GuestMemory,
        regions: &[usize],
        size: u16,
        is_packed: bool,
        lengths: &[usize],
        turns: u16,
    ) -> Result<Self, MemoryError> {
        assert!(!lengths.is_empty() && !lengths.contains(&0), "receive segments {lengths:?}");
        let capacity = lengths.iter().sum();
        let mut at = capacity;
        let segments = lengths.iter().map(|&len| {
            at -= len;
            Segment { len, at }
        });
        let segments = segments.collect();
        let ring = AnyVring::new(memory, regions[0], size, is_packed)?;
        let buffers = Buffers::new(memory, regions, size, capacity, turns)?;
        let (pieces, parts) = (Vec::with_capacity(usize::from(size)), Vec::new());
        Ok(Self { ring, buffers, segments, mergeable: false, repost: true, pieces, parts })
    }

    /// Starts anew with what was negotiated; posts all buffers unless [`Self::set_repost`] is off.
    pub(in crate::testing) fn reset(&mut self, event_idx: bool, mergeable: bool, start: u16) {
        self.ring.restart(event_idx, start);
        self.mergeable = mergeable;
        if self.repost {
            self.post(usize::MAX);
        }
    }

    /// The split ring beneath, for raw descriptors and notification control.
    ///
    /// # Panics
    /// When the ring is packed.
    pub fn ring(&mut self) -> &mut Vring {
        self.ring.split()
    }

    /// The ring beneath, split or packed.
    pub fn any_ring(&mut self) -> &mut AnyVring {
        &mut self.ring
    }

    /// Bytes of one receive chain, the virtio-net header included.
    pub fn buffer_len(&self) -> usize {
        self.buffers.capacity()
    }

    /// Buffers the device may fill.
    pub fn posted(&self) -> u16 {
        self.ring.outstanding()
    }

    /// Whether a buffer goes back to the device once its frame was taken; on by default. Off makes
    /// a guest that runs out of buffers, until [`Self::post`].
    pub fn set_repost(&mut self, on: bool) {
        self.repost = on;
    }

    /// Gives the device up to `max` more buffers; returns how many.
    pub fn post(&mut self, max: usize) -> usize {
        let mut posted = 0;
        while posted < max && usize::from(self.ring.free()) >= self.segments.len() {
            let head = self.ring.next_head();
            if let [segment] = *self.segments {
                self.ring.push(&[one_part(&self.buffers, head, segment)]);
            } else {
                self.parts.clear();
                let (buffers, segments) = (&self.buffers, &self.segments);
                self.parts.extend(segments.iter().map(|&s| one_part(buffers, head, s)));
                self.ring.push(&self.parts);
            }
            posted += 1;
        }
        self.show();
        posted
    }

    fn show(&mut self) {
        self.ring.publish();
        self.ring.kick_if_asked();
    }

    /// Hands up to `max` received frames to `visit`, gives their buffers back to the device, and
    /// returns how many frames there were.
    ///
    /// # Errors
    /// [`DeviceFault`] when used ring or `num_buffers` make no sense.
    #[inline]
    pub fn rx_burst(
        &mut self,
        max: usize,
        mut visit: impl FnMut(&RxFrame<'_>),
    ) -> Result<usize, DeviceFault> {
        let waiting = self.ring.used_waiting()?;
        if waiting == 0 {
            return Ok(0);
        }
        let mut left = waiting;
        let mut frames = 0;
        for ahead in 0..PREFETCH_FRAMES.min(left) {
            self.prefetch(ahead);
        }
        while left > 0 && frames < max {
            if left > PREFETCH_FRAMES {
                self.prefetch(PREFETCH_FRAMES);
            }
            left -= self.take_frame(left)?;
            visit(&RxFrame {
                buffers: &self.buffers,
                segments: &self.segments,
                pieces: &self.pieces,
                len: self.pieces.iter().map(|(_, len)| len).sum::<usize>() - HDR,
            });
            for index in 0..self.pieces.len() {
                self.recycle(self.pieces[index].0);
            }
            frames += 1;
        }
        if self.repost {
            self.show();
        }
        self.ring.rearm();
        Ok(frames)
    }

    /// Collects the next frame in `self.pieces`, out of `left` used entries; returns how many.
    #[inline(always)]
    fn take_frame(&mut self, left: u16) -> Result<u16, DeviceFault> {
        self.pieces.clear();
        let head = self.take_piece(HDR)?;
        let count = if let [segment] = *self.segments
            && segment.len >= HDR
        {
            let (span, start) = self.buffers.of(head);
            u16::from_le_bytes(span.array(start + segment.at + HDR - 2))
        } else {
            let mut header = [0; HDR];
            copy_out(&self.buffers, &self.segments, head, 0, &mut header);
            VirtioNetHdr::from_bytes(header).num_buffers
        };
        if count != 1 {
            self.take_rest(count, left)?;
        }
        Ok(count)
    }

    fn take_rest(&mut self, count: u16, left: u16) -> Result<(), DeviceFault> {
        if count == 0 || !self.mergeable {
            return Err(DeviceFault::NumBuffers { found: count, mergeable: self.mergeable });
        }
        if count > left {
            return Err(DeviceFault::MissingBuffers { need: count, found: left });
        }
        // All buffers but the last are filled to the brim (virtio 1.3, section 5.1.6.4.1).
        let room = self.buffers.capacity();
        for index in 1..count {
            let head = self.take_piece(1)?;
            let (before, len) = self.pieces[usize::from(index) - 1];
            if len < room {
                let len = len as u32;
                return Err(DeviceFault::UsedLength { head: before, len, min: room, max: room });
            }
            debug_assert_ne!(before, head, "two chains outstanding with one head");
        }
        Ok(())
    }

    #[inline(always)]
    fn take_piece(&mut self, min: usize) -> Result<u16, DeviceFault> {
        let (head, len) = self.ring.take_used()?;
        let (bytes, max) = (len as usize, self.buffers.capacity());
        if bytes < min || bytes > max {
            return Err(DeviceFault::UsedLength { head, len, min, max });
        }
        self.pieces.push((head, bytes));
        Ok(head)
    }

    #[inline(always)]
    fn recycle(&mut self, head: u16) {
        self.buffers.take_turn(head);
        if !self.repost {
            self.ring.release(head);
        } else if let [segment] = *self.segments {
            self.ring.push_again(head, &[one_part(&self.buffers, head, segment)]);
        } else {
            self.parts.clear();
            let (buffers, segments) = (&self.buffers, &self.segments);
            self.parts.extend(segments.iter().map(|&s| one_part(buffers, head, s)));
            self.ring.push_again(head, &self.parts);
        }
    }

    #[inline(always)]
    fn prefetch(&self, ahead: u16) {
        let (id, _) = self.ring.peek_used(ahead);
        if id < u32::from(self.ring.size()) {
            let (span, start) = self.buffers.of(id as u16);
            span.prefetch(start + self.segments[0].at);
        }
    }

    /// The next frame, waiting for it up to `timeout`; `None` when none came.
    ///
    /// # Errors
    /// [`DeviceFault`] when used ring or `num_buffers` make no sense.
    pub fn recv(
        &mut self,
        timeout: Duration,
    ) -> Result<Option<(VirtioNetHdr, Vec<u8>)>, DeviceFault> {
        let deadline = Deadline::after(timeout);
        let mut received = None;
        while self.rx_burst(1, |frame| received = Some((frame.header(), frame.to_vec())))? == 0 {
            if !self.ring.wait(deadline)? {
                return Ok(None);
            }
        }
        Ok(received)
    }
}

#[inline(always)]
fn one_part(buffers: &Buffers, head: u16, segment: Segment) -> Desc {
    let (span, start) = buffers.of(head);
    Desc::writable(span.gpa() + (start + segment.at) as u64, segment.len as u32)
}

/// Copies from byte `skip` of chain `head` to `out`, across its descriptors.
fn copy_out(buffers: &Buffers, segments: &[Segment], head: u16, skip: usize, out: &mut [u8]) {
    let (span, start) = buffers.of(head);
    let (mut skip, mut out) = (skip, out);
    for segment in segments {
        let take = segment.len.saturating_sub(skip).min(out.len());
        if take > 0 {
            let (piece, rest) = out.split_at_mut(take);
            span.read(start + segment.at + skip, piece);
            out = rest;
        }
        skip = skip.saturating_sub(segment.len);
    }
    assert!(out.is_empty(), "read beyond a receive chain");
}

/// A received frame, still in its buffers. Reading it copies: the buffers are the device's, too.
#[derive(Debug)]
pub struct RxFrame<'a> {
    buffers: &'a Buffers,
    segments: &'a [Segment],
    pieces: &'a [(u16, usize)],
    len: usize,
}

impl RxFrame<'_> {
    /// Bytes of the frame, without the virtio-net header.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the frame has no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Buffers the frame is spread over.
    pub fn buffers(&self) -> usize {
        self.pieces.len()
    }

    /// The virtio-net header.
    pub fn header(&self) -> VirtioNetHdr {
        let mut bytes = [0; HDR];
        self.copy(0, &mut bytes);
        VirtioNetHdr::from_bytes(bytes)
    }

    /// Copies from `offset` of the frame to `out`.
    ///
    /// # Panics
    /// When the frame ends before that.
    #[inline(always)]
    pub fn read(&self, offset: usize, out: &mut [u8]) {
        assert!(offset + out.len() <= self.len, "read beyond the frame");
        if let ([(head, _)], [segment]) = (self.pieces, self.segments) {
            let (span, start) = self.buffers.of(*head);
            span.read(start + segment.at + HDR + offset, out);
        } else {
            self.copy(HDR + offset, out);
        }
    }

    /// The `N` bytes at `offset` of the frame.
    ///
    /// # Panics
    /// When the frame ends before that.
    #[inline(always)]
    pub fn array<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        self.read(offset, &mut bytes);
        bytes
    }

    /// The whole frame.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        self.read(0, &mut bytes);
        bytes
    }

    /// Copies from byte `skip` of header and frame, across buffers.
    fn copy(&self, skip: usize, out: &mut [u8]) {
        let (mut skip, mut out) = (skip, out);
        for &(head, len) in self.pieces {
            let take = len.saturating_sub(skip).min(out.len());
            if take > 0 {
                let (piece, rest) = out.split_at_mut(take);
                copy_out(self.buffers, self.segments, head, skip, piece);
                out = rest;
            }
            skip = skip.saturating_sub(len);
        }
    }
}
