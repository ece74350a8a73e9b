//! Chance that can be repeated: a seeded generator for traffic, layouts and hostile values.
//!
//! xoshiro256** seeded by splitmix64: a few instructions a number, and one stream per seed for
//! ever, so the seed printed by a failed test is all it takes to run it again. Not for secrets.

use std::ops::Range;

/// One step of splitmix64; also a good mixer of any 64-bit value.
#[inline(always)]
pub fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A seeded generator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rng([u64; 4]);

impl Rng {
    /// The generator of this seed.
    pub fn seeded(seed: u64) -> Self {
        let mut state = seed;
        Self(std::array::from_fn(|_| splitmix64(&mut state)))
    }

    /// An independent generator, for another thread or another purpose.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self::seeded(self.next_u64())
    }

    /// 64 even bits.
    #[inline(always)]
    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number below `bound`, by multiplication: the bias is at most `bound / 2^64`.
    ///
    /// # Panics
    /// When `bound` is zero.
    #[inline(always)]
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "no number is below zero");
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// A number in `range`.
    ///
    /// # Panics
    /// When the range is empty.
    pub fn range(&mut self, range: Range<usize>) -> usize {
        range.start + self.below((range.end - range.start) as u64) as usize
    }

    /// True `numerator` times out of `denominator`.
    pub fn chance(&mut self, numerator: u64, denominator: u64) -> bool {
        self.below(denominator) < numerator
    }

    /// One of `items`.
    ///
    /// # Panics
    /// When there is none.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.range(0..items.len())]
    }

    /// Random bytes.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next_u64().to_le_bytes()[..chunk.len()]);
        }
    }

    /// Any order of `items` (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            items.swap(end, self.range(0..end + 1));
        }
    }

    /// Up to `max` offsets inside `len` bytes, sorted: a random way to cut a frame.
    pub fn cuts(&mut self, len: usize, max: usize) -> Vec<usize> {
        let count = self.range(0..max + 1);
        let mut cuts: Vec<usize> = (0..count).map(|_| self.range(1..len.max(2))).collect();
        cuts.sort_unstable();
        cuts.dedup();
        cuts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix_gives_its_published_sequence() {
        let mut state = 1_234_567;
        let first: [u64; 3] = std::array::from_fn(|_| splitmix64(&mut state));
        let published =
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!(first, published);
    }

    #[test]
    fn equal_seeds_give_equal_streams_and_forks_give_others() {
        let (mut one, mut two) = (Rng::seeded(7), Rng::seeded(7));
        assert_eq!(one.next_u64(), two.next_u64());
        let mut fork = one.fork();
        assert_ne!(fork.next_u64(), one.next_u64());
        assert_ne!(Rng::seeded(8).next_u64(), Rng::seeded(7).next_u64());
    }

    #[test]
    fn numbers_stay_in_range_and_reach_both_ends() {
        let mut rng = Rng::seeded(1);
        let seen: Vec<usize> = (0..1000).map(|_| rng.range(3..7)).collect();
        assert_eq!((seen.iter().min(), seen.iter().max()), (Some(&3), Some(&6)));
    }

    #[test]
    fn shuffle_keeps_every_item() {
        let mut items: Vec<u32> = (0..100).collect();
        Rng::seeded(3).shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn cuts_are_sorted_and_inside() {
        let mut rng = Rng::seeded(9);
        for _ in 0..100 {
            let cuts = rng.cuts(64, 10);
            assert!(
                cuts.len() <= 10 && cuts.is_sorted() && cuts.iter().all(|c| (1..64).contains(c))
            );
        }
    }
}
