//! The buffers of one ring: one per descriptor, named by the head of the chain that uses it.

use crate::testing::memory::{GuestMemory, MemoryError, Span};

const LINE_BYTES: usize = 64;

/// Equal buffers, one for each possible head, dealt over one or more regions.
#[derive(Debug)]
pub(super) struct Buffers {
    chunks: Vec<Span>,
    shift: u32,
    stride: usize,
    capacity: usize,
}

impl Buffers {
    /// `count` buffers of `capacity` bytes, dealt in turn over `regions`.
    ///
    /// # Panics
    /// When the number of regions is not a power of two.
    pub fn new(
        memory: &mut GuestMemory,
        regions: &[usize],
        count: u16,
        capacity: usize,
    ) -> Result<Self, MemoryError> {
        assert!(regions.len().is_power_of_two(), "{} regions for buffers", regions.len());
        let stride = stride(capacity);
        let each = usize::from(count).div_ceil(regions.len());
        let chunks = regions
            .iter()
            .map(|&region| memory.alloc(region, each * stride, LINE_BYTES))
            .collect::<Result<_, _>>()?;
        Ok(Self { chunks, shift: regions.len().trailing_zeros(), stride, capacity })
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
        (chunk, (head >> self.shift) * self.stride)
    }
}

/// Bytes from one buffer to the next: an odd number of cache lines, so that the first lines of
/// neighbouring buffers spread over all sets of a cache instead of piling up in a few.
pub(in crate::testing) fn stride(capacity: usize) -> usize {
    (capacity.div_ceil(LINE_BYTES) | 1) * LINE_BYTES
}
