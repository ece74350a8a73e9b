//! Offloads that the receiver did not negotiate, done here.
//!
//! The slow path: the frame is gathered into private memory, completed or segmented there
//! ([`crate::offload`]), and written to the receiver from there. One copy more than the fast path.

use crate::frame::Tail;
use crate::offload::{Checksum, Segmentation, Segmenter, complete_checksum};
use crate::vhost::mem::GuestSlice;
use crate::vring::rx::{Fill, Refusal};
use crate::vring::{MAX_FRAME_BYTES, VNET_HDR};

/// Private memory for one frame and one segment of it, made once per PMD.
#[derive(Debug)]
pub struct Software {
    /// Room for a virtio-net header, and a frame.
    frame: Vec<u8>,
    /// Room for a virtio-net header, and a segment.
    segment: Vec<u8>,
}

impl Software {
    /// Memory for the largest frame.
    pub fn new() -> Self {
        let bytes = VNET_HDR + MAX_FRAME_BYTES as usize;
        Self { frame: vec![0; bytes], segment: vec![0; bytes] }
    }

    /// Completes the frame's checksum and writes it to a receive ring.
    ///
    /// # Errors
    /// The ring has no room, or broke.
    pub fn checksum(
        &mut self,
        work: &Checksum,
        head: &[u8],
        tail: Tail<'_, '_>,
        fill: &mut Fill<'_>,
    ) -> Result<(), Refusal> {
        let len = gather(&mut self.frame[VNET_HDR..], head, tail);
        let frame = &mut self.frame[..VNET_HDR + len];
        complete_checksum(&mut frame[VNET_HDR..], work);
        push_private(frame, fill)
    }

    /// Cuts the frame into segments and writes them to a receive ring.
    ///
    /// # Errors
    /// The ring has no room, or broke. The segments before that are delivered all the same: the
    /// receiver sees a loss, as on any wire.
    pub fn segment(
        &mut self,
        work: &Segmentation,
        head: &[u8],
        tail: Tail<'_, '_>,
        fill: &mut Fill<'_>,
    ) -> Result<(), Refusal> {
        let len = gather(&mut self.frame, head, tail);
        let mut segmenter = Segmenter::new(&self.frame[..len], work);
        while let Some(len) = segmenter.next_into(&mut self.segment[VNET_HDR..]) {
            push_private(&mut self.segment[..VNET_HDR + len], fill)?;
        }
        Ok(())
    }
}

impl Default for Software {
    fn default() -> Self {
        Self::new()
    }
}

/// Copies head and tail into one piece; returns its length in bytes.
fn gather(into: &mut [u8], head: &[u8], tail: Tail<'_, '_>) -> usize {
    let (start, mut rest) = into.split_at_mut(head.len());
    start.copy_from_slice(head);
    let room = rest.len();
    for part in tail.parts() {
        let copied = part.read(rest);
        rest = &mut rest[copied..];
    }
    head.len() + room - rest.len()
}

/// Writes a frame that needs no offload and lies behind room for its header.
fn push_private(frame: &mut [u8], fill: &mut Fill<'_>) -> Result<(), Refusal> {
    let len = (frame.len() - VNET_HDR) as u32;
    let (header, body) = frame.split_at_mut(VNET_HDR);
    header.fill(0);
    fill.push(header, Tail { body: GuestSlice::of_private(body), more: &[] }, len)
}
