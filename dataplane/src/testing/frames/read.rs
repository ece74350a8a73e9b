//! The numbers of the headers, their checksum, and where a payload lies.

use std::ops::Range;

pub(super) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(super) const ETHERTYPE_ARP: u16 = 0x0806;
pub(super) const ETHERTYPE_VLAN: u16 = 0x8100;
pub(super) const ETHERTYPE_QINQ: u16 = 0x88a8;
pub(super) const ETHERTYPE_IPV6: u16 = 0x86dd;
/// IEEE 802, local experimental 1: frames with a payload and nothing else.
pub(super) const ETHERTYPE_EXPERIMENT: u16 = 0x88b5;

pub(super) const PROTO_ICMP: u8 = 1;
pub(super) const PROTO_TCP: u8 = 6;
pub(super) const PROTO_UDP: u8 = 17;
pub(super) const PROTO_ICMPV6: u8 = 58;

/// The Internet checksum of `bytes` (RFC 1071). Zero over bytes that hold their right checksum.
pub fn internet_checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])));
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Where in a frame made by this builder the payload is: behind Ethernet, VLAN tags, IP without
/// options, and UDP, TCP or ICMP. Padding is not payload. `None` for anything else, ARP included.
pub fn payload_range(frame: &[u8]) -> Option<Range<usize>> {
    let word = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
    let mut at = 12;
    while matches!(word(at)?, ETHERTYPE_VLAN | ETHERTYPE_QINQ) {
        at += 4;
    }
    let (protocol, start, end) = match word(at)? {
        ETHERTYPE_EXPERIMENT => return Some(at + 2..frame.len()),
        ETHERTYPE_IPV4 => (*frame.get(at + 11)?, at + 22, at + 2 + usize::from(word(at + 4)?)),
        ETHERTYPE_IPV6 => (*frame.get(at + 8)?, at + 42, at + 42 + usize::from(word(at + 6)?)),
        _ => return None,
    };
    let header = match protocol {
        PROTO_UDP | PROTO_ICMP | PROTO_ICMPV6 => 8,
        PROTO_TCP => 20,
        _ => 0,
    };
    (start + header <= end && end <= frame.len()).then_some(start + header..end)
}
