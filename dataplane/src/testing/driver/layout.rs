//! How the bytes of a frame are spread over the descriptors of a chain.

/// Where a frame is cut into descriptors, counted from the first byte of its virtio-net header.
///
/// The pieces are laid into the buffer back to front, so no two pieces that follow each other in
/// the frame do so in memory: a device that reads on beyond a descriptor reads the wrong bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout {
    cuts: Vec<usize>,
    indirect: bool,
}

impl Layout {
    /// Header and frame in one descriptor.
    pub fn single() -> Self {
        Self::default()
    }

    /// The header in a descriptor of its own, as drivers of legacy devices have it.
    pub fn header_apart() -> Self {
        Self::cut_at(&[super::VirtioNetHdr::BYTES])
    }

    /// A new descriptor at each offset of `cuts`. The same offset twice makes a descriptor of
    /// length zero; an offset beyond the frame is ignored.
    pub fn cut_at(cuts: &[usize]) -> Self {
        let mut cuts = cuts.to_vec();
        cuts.sort_unstable();
        Self { cuts, indirect: false }
    }

    /// Descriptors of `bytes` each, the last one shorter, for frames up to 64 KiB.
    ///
    /// # Panics
    /// When `bytes` is zero.
    pub fn every(bytes: usize) -> Self {
        Self {
            cuts: (1..).map(|n| n * bytes).take_while(|at| *at < 1 << 17).collect(),
            indirect: false,
        }
    }

    /// The same pieces, but in an indirect table.
    #[must_use]
    pub fn indirect(self) -> Self {
        Self { indirect: true, ..self }
    }

    /// Whether the pieces go into an indirect table.
    pub fn is_indirect(&self) -> bool {
        self.indirect
    }

    /// The pieces of `total` bytes, in order.
    pub(super) fn pieces(&self, total: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
        let inner = self.cuts.iter().copied().filter(move |cut| *cut > 0 && *cut < total);
        let mut start = 0;
        inner.chain([total]).map(move |end| std::mem::replace(&mut start, end)..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(layout: &Layout, total: usize) -> Vec<(usize, usize)> {
        layout.pieces(total).map(|range| (range.start, range.end)).collect()
    }

    #[test]
    fn cuts_beyond_the_frame_are_ignored_and_repeated_cuts_make_empty_pieces() {
        let layout = Layout::cut_at(&[5, 3, 5, 0, 10, 99]);
        assert_eq!(pieces(&layout, 10), [(0, 3), (3, 5), (5, 5), (5, 10)]);
        assert_eq!(pieces(&Layout::single(), 10), [(0, 10)]);
        assert_eq!(pieces(&Layout::header_apart(), 72), [(0, 12), (12, 72)]);
    }

    #[test]
    fn every_cuts_equal_pieces() {
        assert_eq!(pieces(&Layout::every(4), 10), [(0, 4), (4, 8), (8, 10)]);
    }
}
