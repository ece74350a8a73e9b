//! The Internet checksum (RFC 1071): the ones' complement sum of 16-bit words.
//!
//! The sum does not care in which byte order words are added, nor how wide the adder is, as long as
//! carries come back in at the end (RFC 1071, section 2). So bytes are added as native 32-bit words
//! to 64 bits, which the compiler turns into vector adds, and folded once per slice.
//!
//! # Bounds
//! No carry is lost in a slice below 16 GiB, nor in a [`Sum`] of fewer than 2^47 slices.

use std::net::{Ipv4Addr, Ipv6Addr};

/// A checksum in the making, fed with slices of any length at any alignment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    /// Sum of 16-bit words in network byte order, carries not yet folded.
    words: u64,
    /// Whether an odd number of bytes was fed, so that the next byte is a low half.
    is_odd: bool,
}

impl Sum {
    /// The empty sum.
    pub const fn new() -> Self {
        Self { words: 0, is_odd: false }
    }

    /// The pseudo header of TCP and UDP over IPv4 (RFC 9293, section 3.1; RFC 768).
    ///
    /// `len` is the length of L4 header and payload.
    pub fn pseudo_ipv4(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, len: u16) -> Self {
        let words = halves(src.to_bits()) + halves(dst.to_bits());
        Self { words: words + u64::from(protocol) + u64::from(len), is_odd: false }
    }

    /// The pseudo header of upper layers over IPv6 (RFC 8200, section 8.1).
    ///
    /// `len` is the length of L4 header and payload, without extension headers.
    pub fn pseudo_ipv6(src: Ipv6Addr, dst: Ipv6Addr, protocol: u8, len: u32) -> Self {
        let mut sum = Self::new();
        sum.add(&src.octets());
        sum.add(&dst.octets());
        sum.words += halves(len) + u64::from(protocol);
        sum
    }

    /// Adds bytes behind those already fed.
    #[inline]
    pub fn add(&mut self, bytes: &[u8]) {
        let word = native_sum(bytes).to_be();
        // An odd number of bytes before shifts every byte to the other half of its word.
        self.words += u64::from(if self.is_odd { word.swap_bytes() } else { word });
        self.is_odd ^= bytes.len() % 2 == 1;
    }

    /// Adds one word in host byte order; only between even numbers of bytes.
    #[inline]
    pub fn add_word(&mut self, word: u16) {
        debug_assert!(!self.is_odd, "a word was added in the middle of another");
        self.words += u64::from(word);
    }

    /// The sum, not complemented: what a sender leaves in the field of a partial checksum, and
    /// 0xffff over data that includes a right one.
    #[inline]
    pub const fn partial(self) -> u16 {
        fold(self.words)
    }

    /// The checksum to be written in network byte order.
    #[inline]
    pub const fn finish(self) -> u16 {
        !fold(self.words)
    }

    /// The checksum with 0 turned into its other representation, as 0 in a UDP header means that
    /// there is none (RFC 768). Right for TCP as well.
    #[inline]
    pub const fn finish_nonzero(self) -> u16 {
        match self.finish() {
            0 => 0xffff,
            checksum => checksum,
        }
    }
}

/// The checksum over one slice, e.g. an IPv4 header whose checksum field is zero.
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = Sum::new();
    sum.add(bytes);
    sum.finish()
}

const fn halves(word: u32) -> u64 {
    (word >> 16) as u64 + (word & 0xffff) as u64
}

const fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u16
}

/// Folded sum of native-endian words; an odd last byte is followed by a zero.
#[inline]
fn native_sum(bytes: &[u8]) -> u16 {
    let (words, rest) = bytes.as_chunks::<4>();
    let sum: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    fold(sum + u64::from(u32::from_ne_bytes(last)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 1071 to the letter, one byte pair at a time.
    fn reference(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 131 + i / 251) as u8).collect()
    }

    #[test]
    fn example_of_rfc_1071_gives_its_sum() {
        assert_eq!(checksum(&[0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }

    #[test]
    fn every_length_and_alignment_gives_what_the_reference_gives() {
        let data = bytes(300);
        for from in 0..9 {
            for to in from..data.len() {
                assert_eq!(checksum(&data[from..to]), reference(&data[from..to]), "{from}..{to}");
            }
        }
    }

    #[test]
    fn all_ones_over_the_largest_frame_do_not_lose_a_carry() {
        for len in [65_534, 65_535, 65_562] {
            let data = vec![0xff; len];
            assert_eq!(checksum(&data), reference(&data));
        }
    }

    #[test]
    fn slices_cut_at_any_three_places_give_the_sum_of_the_whole() {
        let data = bytes(67);
        for a in 0..=data.len() {
            for b in (a..=data.len()).step_by(3) {
                let mut sum = Sum::new();
                sum.add(&data[..a]);
                sum.add(&data[a..b]);
                sum.add(&data[b..]);
                assert_eq!(sum.finish(), reference(&data), "cut at {a} and {b}");
            }
        }
    }

    #[test]
    fn pseudo_headers_give_what_their_bytes_give() {
        let (src, dst) = (Ipv4Addr::new(10, 1, 2, 255), Ipv4Addr::new(192, 168, 254, 3));
        let mut bytes = [src.octets(), dst.octets()].concat();
        bytes.extend([0, 17, 0xfe, 0xdc]);
        assert_eq!(Sum::pseudo_ipv4(src, dst, 17, 0xfedc).finish(), reference(&bytes));

        let src = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x1234, 0xff, 0xabcd, 1);
        let dst = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xffff);
        let mut bytes = [src.octets(), dst.octets()].concat();
        bytes.extend([0, 1, 0x23, 0x45, 0, 0, 0, 6]);
        assert_eq!(Sum::pseudo_ipv6(src, dst, 6, 0x12345).finish(), reference(&bytes));
    }

    #[test]
    fn checksum_over_data_with_its_checksum_is_zero() {
        let mut data = bytes(40);
        data[10..12].fill(0);
        let sum = checksum(&data);
        data[10..12].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(checksum(&data), 0);
    }

    #[test]
    fn zero_checksum_is_written_as_all_ones_where_zero_means_none() {
        let mut sum = Sum::new();
        sum.add_word(0xffff);
        assert_eq!((sum.finish(), sum.finish_nonzero()), (0, 0xffff));
        sum.add_word(1);
        assert_eq!((sum.finish(), sum.finish_nonzero()), (0xfffe, 0xfffe));
    }
}
