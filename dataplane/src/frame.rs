//! Frames in hand: what a burst taken from a TX vring looks like.
//!
//! The first [`HEAD`] bytes of a frame are copied once to private memory and everything is judged
//! from that copy, which is also what the receiver gets: a guest that rewrites its header after the
//! check changes nothing. The rest stays in the sender's memory until it is copied to the receiver.
//!
//! The 12 bytes of the virtio-net header lie right before the frame's first byte, in guests' buffers
//! and in [`Scratch`] alike, so header and head travel in one copy each way.

use arrayvec::ArrayVec;

use crate::stats::DropReason;
use crate::vhost::mem::GuestSlice;
use crate::vring::{BURST, VNET_HDR};

/// Bytes of a frame that are copied to private memory and judged.
pub const HEAD: usize = 128;

/// Segments that the frames of one burst may have beyond their first, all together. A frame that
/// finds no room here waits for the next burst.
pub const MORE: usize = 512;

/// Private copy of one frame's virtio-net header and first bytes.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct Scratch {
    bytes: [u8; VNET_HDR + HEAD],
}

impl Scratch {
    /// All zeroes.
    pub const EMPTY: Self = Self { bytes: [0; VNET_HDR + HEAD] };

    /// The virtio-net header as the sender wrote it.
    #[inline]
    pub fn vnet(&self) -> &[u8; VNET_HDR] {
        self.bytes.first_chunk().expect("12 of 140 bytes")
    }

    /// The virtio-net header, to be written for the receiver.
    #[inline]
    pub fn vnet_mut(&mut self) -> &mut [u8; VNET_HDR] {
        self.bytes.first_chunk_mut().expect("12 of 140 bytes")
    }

    /// The frame's first bytes; how many of them are the frame's, [`Frame::head_len`] says.
    #[inline]
    pub fn head(&self) -> &[u8; HEAD] {
        self.bytes.last_chunk().expect("128 of 140 bytes")
    }

    /// The frame's first bytes, to be written anew.
    #[inline]
    pub fn head_mut(&mut self) -> &mut [u8; HEAD] {
        self.bytes.last_chunk_mut().expect("128 of 140 bytes")
    }

    /// Header and head, in one piece.
    #[inline]
    pub fn all(&self) -> &[u8; VNET_HDR + HEAD] {
        &self.bytes
    }

    /// Header and head, to be filled.
    #[inline]
    pub fn all_mut(&mut self) -> &mut [u8; VNET_HDR + HEAD] {
        &mut self.bytes
    }
}

/// One frame of a burst; its head is the [`Scratch`] at the same place.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'m> {
    /// The descriptor chain it came in, to be given back: its head, or on a packed ring its id.
    pub desc_head: u16,
    /// Ring entries that the chain takes: more than one on a packed ring only.
    pub slots: u16,
    /// Bytes of the frame in its [`Scratch`].
    pub head_len: u16,
    /// Bytes of the frame, virtio-net header not counted.
    pub len: u32,
    /// What follows the head, as far as it lies in the same buffer.
    pub body: GuestSlice<'m>,
    /// What follows the body: a range of [`Batch::more`].
    pub more: (u16, u16),
    /// Set when the frame can not be forwarded.
    pub drop: Option<DropReason>,
}

impl Frame<'_> {
    /// Whether all of it is in its [`Scratch`].
    #[inline]
    pub fn is_short(&self) -> bool {
        self.body.is_empty() && self.more.0 == self.more.1
    }
}

/// A burst of frames; lives as long as the burst, in the sender's memory map `'m`.
#[derive(Debug, Default)]
pub struct Batch<'m> {
    /// The frames, in the order the guest sent them.
    pub frames: ArrayVec<Frame<'m>, BURST>,
    /// Further segments of frames that have them.
    pub more: ArrayVec<GuestSlice<'m>, MORE>,
    /// Bytes that the burst is charged with: those of its frames, short ones counted as the
    /// shortest that Ethernet has.
    pub charged_bytes: u32,
}

impl<'m> Batch<'m> {
    /// An empty batch.
    #[inline]
    pub fn new() -> Self {
        Self { frames: ArrayVec::new(), more: ArrayVec::new(), charged_bytes: 0 }
    }

    /// Adds a frame that counts as `bytes`, no more than the longest frame has; returns how many the burst
    /// has now. There is room.
    #[inline]
    pub fn add(&mut self, frame: Frame<'m>, bytes: u32) -> u32 {
        self.frames.push(frame);
        self.charged_bytes += bytes;
        self.charged_bytes
    }

    /// The parts of `frame` that lie in guest memory, in order.
    #[inline]
    pub fn tail(&self, frame: &Frame<'m>) -> Tail<'_, 'm> {
        let (from, to) = (usize::from(frame.more.0), usize::from(frame.more.1));
        Tail { body: frame.body, more: &self.more[from..to] }
    }
}

/// The part of a frame that is still in the sender's memory.
#[derive(Debug, Clone, Copy)]
pub struct Tail<'b, 'm> {
    /// First part.
    pub body: GuestSlice<'m>,
    /// The parts after it.
    pub more: &'b [GuestSlice<'m>],
}

impl<'m> Tail<'_, 'm> {
    /// The parts in order.
    #[inline]
    pub fn parts(&self) -> impl Iterator<Item = GuestSlice<'m>> {
        std::iter::once(self.body).chain(self.more.iter().copied())
    }
}
