//! What the generator drives: a ring to send into, and one to receive from.
//!
//! The guests' rings are such ends, and those of the [ideal loop](crate::peer::ideal), so that one
//! generator loads them all.

use anyhow::{Context as _, Result};
use dataplane::testing::{RxFrame, RxQueue, TxQueue, TxSlot, VirtioNetHdr};

/// The buffer of a frame that is about to be sent.
pub trait Slot {
    /// Overwrites bytes of the frame.
    fn patch(&mut self, at: usize, bytes: &[u8]);
    /// Sets the length of the frame.
    fn set_len(&mut self, len: usize);
    /// Sets the virtio-net header, where there is one.
    fn set_header(&mut self, header: VirtioNetHdr);
}

/// Where frames are sent.
pub trait Source {
    /// Of a frame.
    type Slot<'a>: Slot;

    /// Sends up to `max` frames, as many as have room, and returns how many.
    ///
    /// # Errors
    /// The switch broke the rules of the ring.
    fn send_burst(&mut self, max: usize, fill: impl FnMut(&mut Self::Slot<'_>)) -> Result<usize>;

    /// Takes back what was sent, and tells how many frames the switch has not taken yet.
    ///
    /// # Errors
    /// As [`Source::send_burst`].
    fn outstanding(&mut self) -> Result<usize>;
}

/// A received frame.
pub trait Frame {
    /// Bytes of the frame.
    fn len(&self) -> usize;
    /// Whether it has none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Copies from `at` of the frame to `out`.
    fn read(&self, at: usize, out: &mut [u8]);
}

/// Where frames are received.
pub trait Sink {
    /// What is received.
    type Frame<'a>: Frame;

    /// Shows up to `max` frames to `visit`, and returns how many there were.
    ///
    /// # Errors
    /// The switch broke the rules of the ring.
    fn receive_burst(&mut self, max: usize, visit: impl FnMut(&Self::Frame<'_>)) -> Result<usize>;
}

impl Slot for TxSlot<'_> {
    #[inline(always)]
    fn patch(&mut self, at: usize, bytes: &[u8]) {
        TxSlot::patch(self, at, bytes);
    }

    #[inline(always)]
    fn set_len(&mut self, len: usize) {
        TxSlot::set_len(self, len);
    }

    #[inline(always)]
    fn set_header(&mut self, header: VirtioNetHdr) {
        TxSlot::set_header(self, header);
    }
}

impl Source for TxQueue {
    type Slot<'a> = TxSlot<'a>;

    #[inline]
    fn send_burst(&mut self, max: usize, fill: impl FnMut(&mut TxSlot<'_>)) -> Result<usize> {
        self.tx_burst(max, fill).context("The switch broke the rules of the transmit ring")
    }

    fn outstanding(&mut self) -> Result<usize> {
        self.tx_reap().context("The switch broke the rules of the transmit ring")?;
        Ok(usize::from(TxQueue::in_flight(self)))
    }
}

impl Frame for RxFrame<'_> {
    #[inline(always)]
    fn len(&self) -> usize {
        RxFrame::len(self)
    }

    #[inline(always)]
    fn read(&self, at: usize, out: &mut [u8]) {
        RxFrame::read(self, at, out);
    }
}

impl Sink for RxQueue {
    type Frame<'a> = RxFrame<'a>;

    #[inline]
    fn receive_burst(&mut self, max: usize, visit: impl FnMut(&RxFrame<'_>)) -> Result<usize> {
        self.rx_burst(max, visit).context("The switch broke the rules of the receive ring")
    }
}
