//! The buffers of one ring: one per descriptor, named by the head of the chain that uses it.
//!
//! Or several per descriptor, used in turn: a guest that takes its buffers from a pool larger than
//! its ring, so that no buffer is in a cache any more when its turn comes again.

use crate::testing::memory::{GuestMemory, MemoryError, Span};

const LINE_BYTES: usize = 64;

/// Equal buffers, one or more for each possible head, dealt over one or more regions.
#[derive(Debug)]
pub(super) struct Buffers {
    chunks: Vec<Span>,
    shift: u32,
    stride: usize,
    capacity: usize,
    /// Buffers of each head.
    turns: u16,
    /// Bytes from one turn's buffers to the next turn's.
    turn_stride: usize,
    /// Whose turn it is, by head.
    turn: Vec<u16>,
}

impl Buffers {
    /// `turns` buffers of `capacity` bytes for each of `count` heads, dealt over `regions`.
    ///
    /// # Panics
    /// When the number of regions is not a power of two.
    pub fn new(
        memory: &mut GuestMemory,
        regions: &[usize],
        count: u16,
        capacity: usize,
        turns: u16,
    ) -> Result<Self, MemoryError> {
        assert!(regions.len().is_power_of_two(), "{} regions for buffers", regions.len());
        let stride = stride(capacity);
        let each = usize::from(count).div_ceil(regions.len());
        let chunks = regions
            .iter()
            .map(|&region| memory.alloc(region, each * stride * usize::from(turns), LINE_BYTES))
            .collect::<Result<_, _>>()?;
        let (shift, turn) = (regions.len().trailing_zeros(), vec![0; usize::from(count)]);
        Ok(Self { chunks, shift, stride, capacity, turns, turn_stride: each * stride, turn })
    }

    /// Bytes of each buffer.
    #[inline(always)]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The window and the offset in it where buffer `head` starts.
    #[inline(always)]
    pub fn of(&self, head: u16) -> (&Span, usize) {
        let head = usize::from(head);
        let chunk = &self.chunks[head & ((1 << self.shift) - 1)];
        let start = (head >> self.shift) * self.stride;
        if self.turns == 1 {
            return (chunk, start);
        }
        (chunk, start + usize::from(self.turn[head]) * self.turn_stride)
    }

    /// The next buffer of `head` is used from now on, if it has several.
    #[inline(always)]
    pub fn take_turn(&mut self, head: u16) {
        if self.turns > 1 {
            let turn = &mut self.turn[usize::from(head)];
            *turn = if *turn + 1 == self.turns { 0 } else { *turn + 1 };
        }
    }
}

/// Bytes from one buffer to the next: an odd number of cache lines, so that the first lines of
/// neighbouring buffers spread over all sets of a cache instead of piling up in a few.
pub(in crate::testing) fn stride(capacity: usize) -> usize {
    (capacity.div_ceil(LINE_BYTES) | 1) * LINE_BYTES
}
