//! What a receiver did not negotiate, done in software on a copy of the frame.

use super::{Checksum, Segmentation};
use crate::wire::checksum::{self, Sum};
use crate::wire::{ipv4, ipv6, tcp, udp};

/// Completes the checksum of a frame: the field holds the sum of the pseudo header, and receives
/// the complement of the sum over all that is covered (virtio 1.3, section 5.1.6.2).
///
/// # Panics
/// If `frame` is not the frame that was checked, but a shorter one.
pub fn complete_checksum(frame: &mut [u8], work: &Checksum) {
    let covered = &mut frame[usize::from(work.start)..work.end as usize];
    let mut sum = Sum::new();
    sum.add(covered);
    // 0 would mean "no checksum" to UDP, and 0xffff is the same number to all others.
    put_u16(covered, usize::from(work.offset), sum.finish_nonzero());
}

/// Cuts a frame into segments, each with headers of its own: a TSO frame into TCP segments, a USO
/// frame into UDP datagrams.
///
/// Every segment gets the frame's headers, VLAN tags, IP options and extension headers included, and
/// in them its own lengths and checksums. The IPv4 identification counts up from the frame's. TCP
/// sequence numbers advance; FIN and PSH stay with the last segment only, CWR with the first (RFC
/// 3168, section 6.1.2: one reduction, told once).
///
/// The L4 checksum is derived from the partial one, so that it is right for IPv6 routing headers
/// too, whose pseudo header has another destination than the IP header.
#[derive(Clone, Debug)]
pub struct Segmenter<'a> {
    frame: &'a [u8],
    work: Segmentation,
    /// Where the payload of the next segment starts.
    next: usize,
    /// Segments made.
    made: u16,
    /// The pseudo header's sum, its length taken out.
    pseudo: Sum,
}

impl<'a> Segmenter<'a> {
    /// Starts with the first segment.
    ///
    /// # Panics
    /// If `frame` is not the frame that was checked, but a shorter one.
    pub fn new(frame: &'a [u8], work: &Segmentation) -> Self {
        let datagram = &frame[usize::from(work.l4)..work.end as usize];
        let mut pseudo = Sum::new();
        pseudo.add_word(get_u16(datagram, usize::from(work.kind.checksum_offset())));
        // Ones' complement subtraction. The length has 16 bits, as those of IPv4 and IPv6 have.
        pseudo.add_word(!(datagram.len() as u16));
        Self { frame, work: *work, next: usize::from(work.payload), made: 0, pseudo }
    }

    /// Makes the next segment at the start of `out` and returns its length, or `None` when there are
    /// no more.
    ///
    /// # Panics
    /// If `out` is shorter than [`Segmentation::max_segment_len`].
    pub fn next_into(&mut self, out: &mut [u8]) -> Option<usize> {
        let end = self.work.end as usize;
        if self.next >= end {
            return None;
        }
        let payload = &self.frame[self.next..end.min(self.next + usize::from(self.work.size))];
        let headers = &self.frame[..usize::from(self.work.payload)];
        let len = headers.len() + payload.len();
        let segment = &mut out[..len];
        segment[..headers.len()].copy_from_slice(headers);
        segment[headers.len()..].copy_from_slice(payload);

        let (l3, l4) = (usize::from(self.work.l3), usize::from(self.work.l4));
        let is_last = self.next + payload.len() == end;
        self.write_ip(&mut segment[l3..], l4 - l3);
        self.write_l4(&mut segment[l4..], is_last);
        self.next += payload.len();
        self.made += 1;
        Some(len)
    }

    /// `ip` is the segment from its IP header on, which has `header_len` bytes with all extensions.
    fn write_ip(&self, ip: &mut [u8], header_len: usize) {
        let len = ip.len();
        if self.work.kind.is_ipv4() {
            put_u16(ip, ipv4::TOTAL_LEN_AT, len as u16);
            let id = get_u16(ip, ipv4::ID_AT).wrapping_add(self.made);
            put_u16(ip, ipv4::ID_AT, id);
            put_u16(ip, ipv4::CHECKSUM_AT, 0);
            let checksum = checksum::checksum(&ip[..header_len]);
            put_u16(ip, ipv4::CHECKSUM_AT, checksum);
        } else {
            put_u16(ip, ipv6::PAYLOAD_LEN_AT, (len - ipv6::HEADER_LEN) as u16);
        }
    }

    /// `l4` is the segment from its TCP or UDP header on.
    fn write_l4(&self, l4: &mut [u8], is_last: bool) {
        let len = l4.len() as u16;
        if self.work.kind.is_tcp() {
            let sent = self.next - usize::from(self.work.payload);
            let seq = get_u32(l4, tcp::SEQ_AT).wrapping_add(sent as u32);
            l4[tcp::SEQ_AT..tcp::SEQ_AT + 4].copy_from_slice(&seq.to_be_bytes());
            if self.made > 0 {
                l4[tcp::FLAGS_AT] &= !tcp::CWR;
            }
            if !is_last {
                l4[tcp::FLAGS_AT] &= !(tcp::FIN | tcp::PSH);
            }
        } else {
            put_u16(l4, udp::LEN_AT, len);
        }
        let checksum_at = usize::from(self.work.kind.checksum_offset());
        put_u16(l4, checksum_at, 0);
        let mut sum = self.pseudo;
        sum.add_word(len);
        sum.add(l4);
        put_u16(l4, checksum_at, sum.finish_nonzero());
    }
}

fn get_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
