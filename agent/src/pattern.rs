//! The bytes that test transfers carry, and the checksum both ends compare.
//!
//! Both are chosen for guests whose CPU is emulated. The stream is SplitMix64, the checksum is
//! XXH64: per eight bytes a handful of 64-bit multiplies, shifts and adds, which an emulator maps
//! one to one on host instructions. SHA-256 needs some twenty times as many, and CRC-32C and
//! XXH3 lean on vector instructions that QEMU emulates by calling helpers, so their being fast
//! on hardware turns into its opposite. Nobody forges these streams, so a checksum that
//! finds every accident (a lost, doubled, swapped or altered segment, a wrong length) is enough.
//!
//! The stream never repeats within any transfer, so two swapped segments change the checksum.

use std::hash::Hasher as _;

use twox_hash::XxHash64;

/// The increment of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
/// generators", 2014): 2^64 divided by the golden ratio, made odd.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// An endless stream of bytes that its seed determines, whatever the sizes of the reads.
#[derive(Debug, Clone)]
pub struct Stream {
    state: u64,
    /// The word in hand, little-endian, and how many of its bytes are used.
    word: [u8; 8],
    used: usize,
}

impl Stream {
    /// The stream of `seed`.
    pub const fn new(seed: u64) -> Self {
        Self { state: seed, word: [0; 8], used: 8 }
    }

    fn next_word(&mut self) -> [u8; 8] {
        self.state = self.state.wrapping_add(GAMMA);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    }

    /// Writes the next bytes of the stream over all of `buffer`.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        let left_over = &self.word[self.used..];
        let from_word = left_over.len().min(buffer.len());
        let (head, rest) = buffer.split_at_mut(from_word);
        head.copy_from_slice(&left_over[..from_word]);
        self.used += from_word;

        let mut words = rest.chunks_exact_mut(8);
        for word in &mut words {
            word.copy_from_slice(&self.next_word());
        }
        let tail = words.into_remainder();
        if !tail.is_empty() {
            self.word = self.next_word();
            self.used = tail.len();
            tail.copy_from_slice(&self.word[..self.used]);
        }
    }
}

/// XXH64 (seed 0) and length of a stream, taken as the bytes come.
#[derive(Debug, Clone)]
pub struct Digest {
    hash: XxHash64,
    bytes: u64,
}

impl Default for Digest {
    fn default() -> Self {
        Self { hash: XxHash64::with_seed(0), bytes: 0 }
    }
}

impl Digest {
    /// Takes the next bytes of the stream.
    pub fn update(&mut self, bytes: &[u8]) {
        self.hash.write(bytes);
        self.bytes += bytes.len() as u64;
    }

    /// Bytes taken so far.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// XXH64 of the bytes taken so far.
    pub fn value(&self) -> u64 {
        self.hash.finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn stream_of_seed_zero_begins_with_the_published_words_of_splitmix64() {
        let mut bytes = [0; 16];
        Stream::new(0).fill(&mut bytes);
        assert_eq!(bytes[..8], 0xe220_a839_7b1d_cdaf_u64.to_le_bytes());
        assert_eq!(bytes[8..], 0x6e78_9e6a_a1b9_65f4_u64.to_le_bytes());
    }

    #[test]
    fn digest_of_nothing_and_of_abc_are_the_published_ones() {
        let mut digest = Digest::default();
        assert_eq!(digest.value(), 0xef46_db37_51d8_e999);
        digest.update(b"abc");
        assert_eq!((digest.value(), digest.bytes()), (0x44bc_2cf5_ad77_0999, 3));
    }

    #[test]
    fn swapping_two_segments_changes_the_digest() {
        let mut bytes = vec![0; 2920];
        Stream::new(7).fill(&mut bytes);
        let (first, second) = bytes.split_at(1460);
        let (mut straight, mut swapped) = (Digest::default(), Digest::default());
        straight.update(first);
        straight.update(second);
        swapped.update(second);
        swapped.update(first);
        assert_ne!(straight.value(), swapped.value());
    }

    proptest! {
        #[test]
        fn a_stream_is_the_same_whatever_the_sizes_of_the_reads(
            seed: u64,
            sizes in prop::collection::vec(0usize..40, 0..40),
        ) {
            let mut whole = vec![0; sizes.iter().sum()];
            Stream::new(seed).fill(&mut whole);
            let (mut stream, mut pieces) = (Stream::new(seed), Vec::new());
            for size in sizes {
                let mut piece = vec![0; size];
                stream.fill(&mut piece);
                pieces.extend(piece);
            }
            prop_assert_eq!(whole, pieces);
        }
    }
}
