//! What a frame is about, from one pass over its first bytes.
//!
//! Two depths, so that a frame pays only for what is asked:
//!  1. [`l2`] reads addresses, EtherType and VLAN tags: three loads and two compares for an
//!     untagged frame. Every frame pays this.
//!  2. [`parse`] goes on through IPv4 or IPv6 with extension headers to ports. Policy, offloads and
//!     spreading over queues ask for it.
//!
//! Frames that are neither IPv4 nor IPv6 are fine at both depths: they have a [`Network::Other`].
//!
//! # Bounds
//! Only the head is looked at: the first [`HEAD_LEN`] bytes, or the whole of a shorter frame. All
//! options of IPv4 fit, and every header chain a host sends in practice; a chain that does not fit is
//! [`ParseError::TooDeep`] rather than guessed at, so that nothing hides from policy behind it.
//!
//! # Threads
//! Plain functions of bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use crate::wire::{Fragment, ParseError};

use crate::wire::ethernet::{self, ETHERTYPE_IPV4, ETHERTYPE_IPV6, GROUP_BIT, MAC_KEY_MASK};
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::tcp::{self, Tcp};
use crate::wire::udp::{self, Udp};
use crate::wire::{Mac, icmp, vlan};

/// Bytes of a frame that are copied out of guest memory and judged.
pub const HEAD_LEN: usize = 128;

/// The Ethernet part of a frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct L2 {
    /// Destination address as [`Mac::key`].
    pub dst: u64,
    /// Source address as [`Mac::key`].
    pub src: u64,
    /// EtherType behind the VLAN tags.
    pub ethertype: u16,
    /// Control information of the outer VLAN tag; 0 without a tag.
    pub tci: vlan::Tci,
    /// VLAN tags looked through: 0 to [`vlan::MAX_TAGS`].
    pub tags: u8,
    /// Bytes of the Ethernet header with its tags: 14, 18 or 22.
    pub len: u8,
}

impl L2 {
    /// Whether the frame is for a group; a broadcast is.
    #[inline]
    pub const fn is_to_group(&self) -> bool {
        self.dst & GROUP_BIT != 0
    }

    /// Whether the frame is for every station.
    #[inline]
    pub const fn is_to_all(&self) -> bool {
        self.dst == MAC_KEY_MASK
    }

    /// Destination address.
    pub const fn dst_mac(&self) -> Mac {
        Mac::from_key(self.dst)
    }

    /// Source address.
    pub const fn src_mac(&self) -> Mac {
        Mac::from_key(self.src)
    }

    /// Hash over addresses and EtherType, to spread what has no flow key.
    #[inline]
    pub const fn hash(&self, seed: &HashSeed) -> u64 {
        let [a, b, c, ..] = seed.0;
        fold(fold(self.dst ^ a, self.src ^ b) ^ self.ethertype as u64, c)
    }
}

/// Reads the Ethernet part of a frame of `frame_len` bytes.
///
/// `head` is the first [`HEAD_LEN`] bytes or more: what lies behind `frame_len` is not looked at.
///
/// # Errors
/// `Truncated` if the frame ends inside the header or a VLAN tag.
#[inline]
pub fn l2(head: &[u8], frame_len: u32) -> Result<L2, ParseError> {
    let header: &[u8; ethernet::HEADER_LEN] = head.first_chunk().ok_or(ParseError::Truncated)?;
    if (frame_len as usize) < ethernet::HEADER_LEN {
        return Err(ParseError::Truncated);
    }
    // Three loads: four and two bytes for the destination, eight for source and EtherType.
    let [d0, d1, d2, d3, d4, d5, ..] = *header;
    let [.., s0, s1, s2, s3, s4, s5, t0, t1] = *header;
    let dst_high = u64::from(u32::from_be_bytes([d0, d1, d2, d3]));
    let dst = dst_high << 16 | u64::from(u16::from_be_bytes([d4, d5]));
    let tail = u64::from_be_bytes([s0, s1, s2, s3, s4, s5, t0, t1]);
    let untagged = L2 {
        dst,
        src: tail >> 16,
        ethertype: tail as u16,
        tci: vlan::Tci(0),
        tags: 0,
        len: ethernet::HEADER_LEN as u8,
    };
    if vlan::is_tag(untagged.ethertype) { tagged(untagged, head, frame_len) } else { Ok(untagged) }
}

#[cold]
fn tagged(mut l2: L2, head: &[u8], frame_len: u32) -> Result<L2, ParseError> {
    let frame = &head[..head.len().min(frame_len as usize)];
    while vlan::is_tag(l2.ethertype) && usize::from(l2.tags) < vlan::MAX_TAGS {
        let (tag, _) = vlan::Tag::parse(&frame[usize::from(l2.len)..])?;
        if l2.tags == 0 {
            l2.tci = tag.tci();
        }
        l2.ethertype = tag.ethertype();
        l2.tags += 1;
        l2.len += vlan::TAG_LEN as u8;
    }
    Ok(l2)
}

/// What carries the payload.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Network {
    /// Neither IPv4 nor IPv6: ARP, LLDP, a third VLAN tag, ...
    #[default]
    Other,
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// The fields that identify a flow; all zero for [`Network::Other`].
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct FlowKey {
    /// Source address; of IPv4, the low 32 bits.
    pub src: u128,
    /// Destination address; of IPv4, the low 32 bits.
    pub dst: u128,
    /// Source port of TCP and UDP, else 0; 0 in later fragments.
    pub src_port: u16,
    /// Destination port of TCP and UDP, else 0; 0 in later fragments.
    pub dst_port: u16,
    /// IP protocol number behind all extension headers.
    pub protocol: u8,
    /// Which of the two the addresses are.
    pub network: Network,
}

impl FlowKey {
    /// Source address, if there is one.
    pub fn src_ip(&self) -> Option<IpAddr> {
        self.ip(self.src)
    }

    /// Destination address, if there is one.
    pub fn dst_ip(&self) -> Option<IpAddr> {
        self.ip(self.dst)
    }

    fn ip(&self, bits: u128) -> Option<IpAddr> {
        match self.network {
            Network::Other => None,
            Network::Ipv4 => Some(Ipv4Addr::from_bits(bits as u32).into()),
            Network::Ipv6 => Some(Ipv6Addr::from_bits(bits).into()),
        }
    }

    /// Hash of the whole key: four multiplications.
    #[inline]
    pub const fn hash(&self, seed: &HashSeed) -> u64 {
        let [a, b, c, d, e] = seed.0;
        let low = fold(self.src as u64 ^ a, self.dst as u64 ^ b);
        let high = fold((self.src >> 64) as u64 ^ c, (self.dst >> 64) as u64 ^ d);
        let rest = (self.src_port as u64) << 32
            | (self.dst_port as u64) << 16
            | (self.protocol as u64) << 8
            | self.network as u64;
        // The two products must not cancel each other, so one is turned.
        fold(low ^ high.rotate_left(32) ^ rest, e)
    }
}

/// A frame's headers: what and where they are.
///
/// Offsets count from the start of the frame. `l2.len <= l4 <= payload <= l3_end <= frame_len`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Parsed {
    /// The Ethernet part.
    pub l2: L2,
    /// The flow.
    pub key: FlowKey,
    /// Whether the datagram is a piece of a larger one.
    pub fragment: Fragment,
    /// Where the L4 header starts, or for [`Network::Other`] what follows the Ethernet header.
    pub l4: u16,
    /// Where the payload starts: behind the L4 header if it is TCP, UDP or ICMP and not in a later
    /// fragment, else the same as `l4`.
    pub payload: u16,
    /// Where the IP datagram ends; Ethernet padding may follow.
    pub l3_end: u32,
}

impl Parsed {
    /// Hash to spread flows over queues. All fragments of a datagram hash alike, whether they have
    /// the ports or not, so that they stay in order.
    #[inline]
    pub const fn hash(&self, seed: &HashSeed) -> u64 {
        match (self.key.network, self.fragment) {
            (Network::Other, _) => self.l2.hash(seed),
            (_, Fragment::Whole) => self.key.hash(seed),
            _ => FlowKey { src_port: 0, dst_port: 0, ..self.key }.hash(seed),
        }
    }
}

/// Reads all headers of a frame of `frame_len` bytes, of which `head` is the first [`HEAD_LEN`]
/// bytes, or all.
///
/// # Errors
/// `Truncated` if the frame or its IP datagram ends inside a header, or the frame before the end of
/// the datagram; `Malformed` if a header contradicts itself; `TooDeep` if the headers reach beyond
/// the head. TCP options may reach beyond it, as nothing here depends on them.
pub fn parse(head: &[u8], frame_len: u32) -> Result<Parsed, ParseError> {
    let l2 = l2(head, frame_len)?;
    let head = &head[..head.len().min(HEAD_LEN).min(frame_len as usize)];
    let l3 = u16::from(l2.len);
    let mut parsed = Parsed {
        l2,
        key: FlowKey::default(),
        fragment: Fragment::Whole,
        l4: l3,
        payload: l3,
        l3_end: frame_len,
    };
    match l2.ethertype {
        ETHERTYPE_IPV4 => {
            let ip = Ipv4::parse(&head[usize::from(l3)..])?;
            parsed.key.network = Network::Ipv4;
            parsed.key.src = u128::from(ip.src().to_bits());
            parsed.key.dst = u128::from(ip.dst().to_bits());
            parsed.key.protocol = ip.protocol();
            parsed.fragment = ip.fragment();
            parsed.l4 = l3 + ip.header_len() as u16;
            parsed.l3_end = u32::from(l3) + u32::from(ip.total_len());
        }
        ETHERTYPE_IPV6 => {
            let ip = Ipv6::parse(&head[usize::from(l3)..])?;
            parsed.key.network = Network::Ipv6;
            parsed.key.src = ip.src().to_bits();
            parsed.key.dst = ip.dst().to_bits();
            parsed.key.protocol = ip.next_header();
            parsed.l4 = l3 + ipv6::HEADER_LEN as u16;
            parsed.l3_end = u32::from(parsed.l4) + u32::from(ip.payload_len());
        }
        _ => return Ok(parsed),
    }
    if parsed.l3_end > frame_len {
        return Err(ParseError::Truncated);
    }
    if parsed.key.network == Network::Ipv6 {
        let at = usize::from(parsed.l4);
        let payload_len = parsed.l3_end as usize - at;
        let upper = ipv6::walk_extensions(&head[at..], payload_len, parsed.key.protocol)?;
        parsed.key.protocol = upper.protocol;
        parsed.fragment = upper.fragment;
        parsed.l4 = (at + upper.offset) as u16;
    }
    transport(parsed, head)
}

/// Reads the L4 header of an IP datagram that is known to lie in the frame.
#[inline]
fn transport(mut parsed: Parsed, head: &[u8]) -> Result<Parsed, ParseError> {
    parsed.payload = parsed.l4;
    let fixed_len = match (parsed.key.protocol, parsed.key.network) {
        _ if parsed.fragment == Fragment::Later => return Ok(parsed),
        (tcp::PROTOCOL, _) => tcp::MIN_HEADER_LEN,
        (udp::PROTOCOL, _) => udp::HEADER_LEN,
        (icmp::PROTOCOL_V4, Network::Ipv4) | (icmp::PROTOCOL_V6, Network::Ipv6) => icmp::HEADER_LEN,
        _ => return Ok(parsed),
    };
    let (start, end) = (usize::from(parsed.l4), parsed.l3_end as usize);
    if start + fixed_len > end {
        return Err(ParseError::Truncated);
    }
    let header = head.get(start..start + fixed_len).ok_or(ParseError::TooDeep)?;
    let header_len = match parsed.key.protocol {
        tcp::PROTOCOL => {
            let tcp = Tcp::parse(header)?;
            (parsed.key.src_port, parsed.key.dst_port) = (tcp.src_port(), tcp.dst_port());
            tcp.header_len()
        }
        udp::PROTOCOL => {
            let udp = Udp::parse(header)?;
            (parsed.key.src_port, parsed.key.dst_port) = (udp.src_port(), udp.dst_port());
            let is_whole = parsed.fragment == Fragment::Whole;
            if is_whole && start + usize::from(udp.len()) > end {
                return Err(ParseError::Truncated);
            }
            udp::HEADER_LEN
        }
        _ => icmp::HEADER_LEN,
    };
    if start + header_len > end {
        return Err(ParseError::Truncated);
    }
    parsed.payload = (start + header_len) as u16;
    Ok(parsed)
}

/// Secret words that make a hash unpredictable to guests, who choose the keys.
#[derive(Clone, Copy, Debug)]
pub struct HashSeed([u64; 5]);

impl HashSeed {
    /// Expands a random number. It must not reach a guest, nor a log.
    pub const fn new(random: u64) -> Self {
        let mut words = [0; 5];
        let mut state = random;
        let mut i = 0;
        while i < words.len() {
            // SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            words[i] = z ^ (z >> 31);
            i += 1;
        }
        Self(words)
    }

    /// Hash of one word: two multiplications.
    #[inline]
    pub const fn word(&self, word: u64) -> u64 {
        let [a, b, c, ..] = self.0;
        fold(fold(word ^ a, b) ^ word, c)
    }
}

/// The full product of two words, its halves added without carry: each bit of the result depends
/// on most bits of both.
#[inline]
const fn fold(a: u64, b: u64) -> u64 {
    let product = a as u128 * b as u128;
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: HashSeed = HashSeed::new(7);

    fn ethernet(ethertype: &[u8], rest: &[u8]) -> Vec<u8> {
        [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2], ethertype, rest].concat()
    }

    /// An IPv4 datagram without options, of this protocol and fragment field.
    fn ipv4(protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
        let [len0, len1] = (20 + payload.len() as u16).to_be_bytes();
        let [frag0, frag1] = fragment.to_be_bytes();
        let header =
            [0x45, 0, len0, len1, 0, 9, frag0, frag1, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        ethernet(&[8, 0], &[&header, payload].concat())
    }

    fn parse_whole(frame: &[u8]) -> Result<Parsed, ParseError> {
        parse(frame, frame.len() as u32)
    }

    #[test]
    fn ethernet_part_is_read_with_none_one_and_two_tags() {
        let plain = ethernet(&[8, 6], &[]);
        let one = ethernet(&[0x81, 0, 0x20, 5, 8, 6], &[]);
        let two = ethernet(&[0x88, 0xa8, 0, 7, 0x81, 0, 0x20, 5, 8, 6], &[]);
        for (frame, tags, tci) in [(plain, 0, 0), (one, 1, 0x2005), (two, 2, 7)] {
            let l2 = l2(&frame, frame.len() as u32).expect("complete");
            assert_eq!((l2.dst, l2.src), (0x0200_0000_0001, 0x0200_0000_0002));
            assert_eq!((l2.ethertype, l2.tags, l2.tci.0), (0x0806, tags, tci));
            assert_eq!(usize::from(l2.len), frame.len());
            assert!(!l2.is_to_group());
        }
    }

    #[test]
    fn third_tag_is_payload() {
        let tags = [0x88, 0xa8, 0, 1, 0x88, 0xa8, 0, 2, 0x81, 0, 0, 3, 8, 0];
        let parsed = parse_whole(&ethernet(&tags, &[])).expect("complete");
        assert_eq!((parsed.l2.tags, parsed.l2.ethertype), (2, 0x8100));
        assert_eq!((parsed.key.network, parsed.l4), (Network::Other, 22));
    }

    #[test]
    fn frame_that_ends_in_the_ethernet_part_is_truncated_whatever_lies_behind() {
        let tagged = ethernet(&[0x81, 0, 0, 5, 0x88, 0xa8, 0, 6, 8, 6], &[0; 106]);
        for frame_len in 0..22 {
            assert_eq!(l2(&tagged, frame_len), Err(ParseError::Truncated), "{frame_len}");
        }
        assert!(l2(&tagged, 22).is_ok());
    }

    #[test]
    fn padding_behind_the_datagram_is_not_part_of_it() {
        let mut frame = ipv4(udp::PROTOCOL, 0, &[0, 53, 0, 54, 0, 9, 0, 0, 1]);
        frame.resize(60, 0);
        let parsed = parse_whole(&frame).expect("valid");
        assert_eq!((parsed.l4, parsed.payload, parsed.l3_end), (34, 42, 43));
        assert_eq!((parsed.key.src_port, parsed.key.dst_port), (53, 54));
        assert_eq!(parsed.key.src_ip(), Some(Ipv4Addr::new(10, 0, 0, 1).into()));
    }

    #[test]
    fn every_shorter_frame_is_truncated() {
        let frame = ipv4(
            tcp::PROTOCOL,
            0,
            &[0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0, 0, 0, 0, 0, 0, 0],
        );
        assert!(parse_whole(&frame).is_ok());
        for len in 0..frame.len() {
            assert_eq!(parse_whole(&frame[..len]), Err(ParseError::Truncated), "{len}");
            assert_eq!(parse(&frame, len as u32), Err(ParseError::Truncated), "{len}");
        }
    }

    #[test]
    fn udp_length_beyond_its_datagram_is_truncated_but_allowed_in_a_first_fragment() {
        let header = [0, 53, 0, 54, 0, 99, 0, 0];
        assert_eq!(parse_whole(&ipv4(17, 0, &header)), Err(ParseError::Truncated));
        assert!(parse_whole(&ipv4(17, 0x2000, &header)).is_ok());
    }

    #[test]
    fn authentication_header_is_ipv4s_protocol_and_what_it_protects_is_not_read() {
        // RFC 4302, section 2: next header TCP, 24 bytes in all, then ports.
        let header = [6, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 9];
        let parsed = parse_whole(&ipv4(51, 0, &[&header[..], &[0, 53, 0, 54]].concat()));
        let key = parsed.expect("valid").key;
        assert_eq!((key.protocol, key.src_port, key.dst_port), (51, 0, 0));
    }

    #[test]
    fn fragments_of_one_datagram_hash_alike_and_have_ports_only_in_the_first() {
        let payload = [0, 53, 0, 54, 0, 99, 0, 0];
        let first = parse_whole(&ipv4(17, 0x2000, &payload)).expect("valid");
        let later = parse_whole(&ipv4(17, 0x0001, &payload)).expect("valid");
        assert_eq!((first.key.src_port, later.key.src_port), (53, 0));
        assert_eq!((later.l4, later.payload), (34, 34));
        assert_eq!(first.hash(&SEED), later.hash(&SEED));
    }

    #[test]
    fn tcp_options_may_reach_beyond_the_head_but_ports_may_not() {
        // 22 bytes of Ethernet, 60 of IPv4, 60 of TCP: 142.
        let mut ip = vec![0x4f, 0, 0, 130, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        ip.resize(60, 1);
        ip.extend([0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0xf0, 0]);
        ip.resize(130, 0);
        let frame = ethernet(&[0x88, 0xa8, 0, 1, 0x81, 0, 0, 2, 8, 0], &ip);
        let parsed = parse(&frame[..HEAD_LEN], frame.len() as u32).expect("valid");
        assert_eq!((parsed.l4, parsed.payload, parsed.key.dst_port), (82, 142, 2));

        let mut ipv6 = vec![0x60, 0, 0, 0, 0, 100, 60, 64];
        ipv6.resize(40, 0);
        ipv6.extend([17, 9, 0, 0]); // 80 bytes of destination options
        ipv6.resize(140, 0);
        let frame = ethernet(&[0x86, 0xdd], &ipv6);
        assert_eq!(parse_whole(&frame), Err(ParseError::TooDeep));
    }

    #[test]
    fn hash_depends_on_every_field_and_on_the_seed() {
        let key = FlowKey {
            src: 1,
            dst: 2,
            src_port: 3,
            dst_port: 4,
            protocol: 6,
            network: Network::Ipv4,
        };
        let variants = [
            key,
            FlowKey { src: 2, dst: 1, ..key },
            FlowKey { src: 1 << 64, ..key },
            FlowKey { dst: 1 << 127, ..key },
            FlowKey { src_port: 4, dst_port: 3, ..key },
            FlowKey { dst_port: 5, ..key },
            FlowKey { protocol: 17, ..key },
            FlowKey { network: Network::Ipv6, ..key },
        ];
        let mut hashes: Vec<u64> = variants.iter().map(|key| key.hash(&SEED)).collect();
        hashes.push(key.hash(&HashSeed::new(8)));
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), variants.len() + 1);
    }

    #[test]
    fn hash_spreads_neighbouring_ports_over_all_queues_evenly() {
        let mut queues = [0u32; 8];
        for src_port in 0..8000 {
            let key = FlowKey {
                src: 1,
                dst: 2,
                src_port,
                dst_port: 80,
                protocol: 6,
                network: Network::Ipv4,
            };
            queues[(key.hash(&SEED) >> 61) as usize] += 1;
        }
        assert!(queues.iter().all(|count| (850..1150).contains(count)), "{queues:?}");
    }
}
