//! Where the frames of one burst go: sets of frames as bits, a bin for each egress vring.

use arrayvec::ArrayVec;

use crate::port::PortId;
use crate::vring::BURST;

/// Some frames of a burst, a bit each; the lowest came first.
pub(super) type Frames = u32;

const _: () = assert!(BURST == Frames::BITS as usize);

/// Where the frames of a burst go.
#[derive(Debug, Default)]
pub(super) struct Routes {
    /// Those for one vport each, by egress vring.
    pub bins: ArrayVec<Bin, BURST>,
    pub floods: Frames,
    pub answers: Frames,
}

/// Frames of a burst for one egress vring.
#[derive(Debug)]
pub(super) struct Bin {
    pub port: PortId,
    pub queue: u16,
    pub frames: Frames,
}

impl Routes {
    /// Adds the frame `at` to those for `queue` of `port`; returns the place of their bin.
    #[inline]
    pub fn add(&mut self, port: PortId, queue: u16, at: usize) -> usize {
        let known = self.bins.iter().position(|bin| bin.port == port && bin.queue == queue);
        let bin = known.unwrap_or_else(|| {
            self.bins.push(Bin { port, queue, frames: 0 });
            self.bins.len() - 1
        });
        self.bins[bin].frames |= 1 << at;
        bin
    }
}

/// The places of `frames` in their burst, in order.
pub(super) fn places(mut frames: Frames) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let at = frames.trailing_zeros();
        frames &= frames.checked_sub(1)?;
        Some(at as usize)
    })
}
