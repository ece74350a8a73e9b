//! Checksum and segmentation offloads between ports that negotiated different ones.
//!
//! A guest may leave the last part of its work to us: complete a checksum, cut a 64 KiB segment into
//! frames. If the receiver negotiated to take such frames, they pass as they are; otherwise the work
//! is done here, in software. Two steps:
//!
//! ```text
//!  sender's header, head, frame length
//!    | check          once a frame       refused: OffloadError
//!    v
//!  Offload            what is left to do, checked against the frame's own headers
//!    | for_receiver   once a receiver    a flooded frame has many
//!    v
//!  Action             Pass(header) | Checksum(work) | Segment(work)
//! ```
//!
//! The header a receiver gets is written anew from what was checked: not one field of it is the
//! sender's word. An ordinary frame, without flags and GSO type, costs a compare in each step, and
//! its headers are not even parsed.
//!
//! # What is trusted
//! Which bytes a checksum covers, where it stands and how a segment is cut is checked. The partial
//! checksum itself is the sender's, as is that of an ordinary frame: a sender can spoil its own
//! frames only. Software works on offsets that were checked, so headers that change in guest memory
//! after the check can give a wrong frame but no wrong access; let the work see the checked head.
//!
//! # Bounds
//! A frame is cut into at most [`MAX_SEGMENTS`], whoever does the cutting: a guest that asks for one
//! byte a segment would buy 65 thousand frames with one.
//!
//! # Threads
//! Plain functions of bytes.

mod software;

use virtio_bindings::virtio_net as feature;

use crate::flow::{self, Fragment, Network, ParseError};
use crate::wire::virtio_net_hdr::{
    F_DATA_VALID, F_NEEDS_CSUM, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4,
};
use crate::wire::{VirtioNetHdr, tcp, udp};

pub use software::{Segmenter, complete_checksum};

/// Segments a frame may ask to be cut into. 64 KiB make 125 segments at the least MTU every IPv4 host
/// takes (576 bytes, RFC 791) and 54 at that of IPv6 (1280, RFC 8200), so only an attack needs more.
pub const MAX_SEGMENTS: u32 = 256;

/// Which offloads one side of a port negotiated.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Abilities(u8);

impl Abilities {
    const CSUM: u8 = 1;
    const TSO4: u8 = 1 << 1;
    const TSO6: u8 = 1 << 2;
    const ECN: u8 = 1 << 3;
    const USO4: u8 = 1 << 4;
    const USO6: u8 = 1 << 5;

    /// Whole frames with complete checksums only.
    pub const NONE: Self = Self(0);

    /// What a driver with these negotiated features may send (virtio 1.3, section 5.1.3: CSUM and
    /// the HOST bits).
    pub const fn of_sender(features: u64) -> Self {
        let uso = Self::USO4 | Self::USO6;
        Self(
            pick(features, feature::VIRTIO_NET_F_CSUM, Self::CSUM)
                | pick(features, feature::VIRTIO_NET_F_HOST_TSO4, Self::TSO4)
                | pick(features, feature::VIRTIO_NET_F_HOST_TSO6, Self::TSO6)
                | pick(features, feature::VIRTIO_NET_F_HOST_ECN, Self::ECN)
                | pick(features, feature::VIRTIO_NET_F_HOST_USO, uso),
        )
        .if_checksum()
    }

    /// What a driver with these negotiated features takes (virtio 1.3, section 5.1.3: the GUEST
    /// bits).
    pub const fn of_receiver(features: u64) -> Self {
        Self(
            pick(features, feature::VIRTIO_NET_F_GUEST_CSUM, Self::CSUM)
                | pick(features, feature::VIRTIO_NET_F_GUEST_TSO4, Self::TSO4)
                | pick(features, feature::VIRTIO_NET_F_GUEST_TSO6, Self::TSO6)
                | pick(features, feature::VIRTIO_NET_F_GUEST_ECN, Self::ECN)
                | pick(features, feature::VIRTIO_NET_F_GUEST_USO4, Self::USO4)
                | pick(features, feature::VIRTIO_NET_F_GUEST_USO6, Self::USO6),
        )
        .if_checksum()
    }

    /// All segmentation requires the checksum offload (virtio 1.3, section 5.1.3.1).
    const fn if_checksum(self) -> Self {
        if self.has(Self::CSUM) { self } else { Self::NONE }
    }

    #[inline]
    const fn has(self, all: u8) -> bool {
        self.0 & all == all
    }
}

const fn pick(features: u64, bit: u32, ability: u8) -> u8 {
    if features >> bit & 1 != 0 { ability } else { 0 }
}

/// Why the header before a frame was refused, and the frame with it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, thiserror::Error)]
pub enum OffloadError {
    /// NEEDS_CSUM from a driver that did not negotiate `VIRTIO_NET_F_CSUM`.
    #[error("the frame asks for a checksum, but its driver did not negotiate VIRTIO_NET_F_CSUM")]
    ChecksumNotNegotiated,
    /// A GSO type, or its ECN bit, from a driver that did not negotiate it.
    #[error("the frame has GSO type {gso_type:#x}, which its driver did not negotiate")]
    SegmentationNotNegotiated {
        /// The type as sent.
        gso_type: u8,
    },
    /// A GSO type that does not exist, was never offered (UFO), or ECN on what is not TCP.
    #[error("the frame has GSO type {gso_type:#x}, which is not supported")]
    UnknownGsoType {
        /// The type as sent.
        gso_type: u8,
    },
    /// A GSO type without NEEDS_CSUM (virtio 1.3, section 5.1.6.2.1 demands it).
    #[error("the frame asks to be segmented, but not to be checksummed")]
    SegmentationWithoutChecksum,
    /// The frame's headers cannot be read.
    #[error("the frame asks for an offload, but its headers are unusable")]
    Headers(#[from] ParseError),
    /// Neither IPv4 nor IPv6, or a fragment: there is no L4 checksum to complete.
    #[error("the frame asks for an offload, but is not a whole IP datagram")]
    NotWholeIp,
    /// `csum_start` and `csum_offset` do not name a checksum field within the datagram's payload.
    #[error("the frame asks for a checksum at {start}+{offset}, where its headers allow none")]
    ChecksumPlace {
        /// `csum_start` as sent.
        start: u16,
        /// `csum_offset` as sent.
        offset: u16,
    },
    /// The GSO type is not that of the frame's own headers.
    #[error("the frame has GSO type {gso_type:#x}, but its headers say otherwise")]
    SegmentationMismatch {
        /// The type as sent.
        gso_type: u8,
    },
    /// `gso_size` is 0, or would make more than [`MAX_SEGMENTS`].
    #[error("the frame asks for segments of {gso_size} bytes: zero, or too small for its length")]
    SegmentSize {
        /// `gso_size` as sent.
        gso_size: u16,
    },
}

/// What is left to do to a frame; see [`check`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Offload {
    /// Nothing.
    Done {
        /// The sender says its checksums were found right (DATA_VALID).
        is_checked: bool,
    },
    /// One checksum.
    Checksum(Checksum),
    /// Segmentation, with a checksum for each segment.
    Segment(Segmentation),
}

/// How a frame goes to one receiver.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    /// As it is, behind this header. `num_buffers` is 0: whoever fills the buffers knows it.
    Pass(VirtioNetHdr),
    /// As it is, but for the checksum: see [`complete_checksum`]. The header before it is all zero.
    Checksum(Checksum),
    /// Cut by a [`Segmenter`]. The header before each segment is all zero.
    Segment(Segmentation),
}

/// A checksum to complete. Made by [`check`] only, so its places lie within the checked frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Checksum {
    /// Where the covered bytes start.
    start: u16,
    /// Offset of the field behind `start`.
    offset: u16,
    /// Where the covered bytes, the datagram, end: Ethernet padding is not covered.
    end: u32,
}

/// A segmentation to do. Made by [`check`] only, so its places lie within the checked frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Segmentation {
    kind: Kind,
    /// Whether the ECN bit was set.
    is_ecn: bool,
    /// Payload bytes a segment.
    size: u16,
    /// Where the IP header starts.
    l3: u16,
    /// Where the TCP or UDP header starts.
    l4: u16,
    /// Where the payload starts, i.e. how long the headers are.
    payload: u16,
    /// Where the datagram ends.
    end: u32,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Tcp4,
    Tcp6,
    Udp4,
    Udp6,
}

impl Kind {
    /// The kind a frame's headers allow, if any.
    fn of(network: Network, protocol: u8) -> Option<Self> {
        match (network, protocol) {
            (Network::Ipv4, tcp::PROTOCOL) => Some(Self::Tcp4),
            (Network::Ipv6, tcp::PROTOCOL) => Some(Self::Tcp6),
            (Network::Ipv4, udp::PROTOCOL) => Some(Self::Udp4),
            (Network::Ipv6, udp::PROTOCOL) => Some(Self::Udp6),
            _ => None,
        }
    }

    const fn gso_type(self) -> u8 {
        match self {
            Self::Tcp4 => GSO_TCPV4,
            Self::Tcp6 => GSO_TCPV6,
            Self::Udp4 | Self::Udp6 => GSO_UDP_L4,
        }
    }

    const fn ability(self) -> u8 {
        match self {
            Self::Tcp4 => Abilities::TSO4,
            Self::Tcp6 => Abilities::TSO6,
            Self::Udp4 => Abilities::USO4,
            Self::Udp6 => Abilities::USO6,
        }
    }

    const fn is_tcp(self) -> bool {
        matches!(self, Self::Tcp4 | Self::Tcp6)
    }

    const fn is_ipv4(self) -> bool {
        matches!(self, Self::Tcp4 | Self::Udp4)
    }

    const fn checksum_offset(self) -> u16 {
        if self.is_tcp() { tcp::CHECKSUM_AT as u16 } else { udp::CHECKSUM_AT as u16 }
    }
}

impl Checksum {
    const fn header(&self) -> VirtioNetHdr {
        VirtioNetHdr {
            flags: F_NEEDS_CSUM,
            gso_type: GSO_NONE,
            hdr_len: 0,
            gso_size: 0,
            csum_start: self.start,
            csum_offset: self.offset,
            num_buffers: 0,
        }
    }
}

impl Segmentation {
    /// Frames this becomes.
    pub fn segments(&self) -> u32 {
        (self.end - u32::from(self.payload)).div_ceil(u32::from(self.size))
    }

    /// Bytes of the longest segment, all headers included.
    pub fn max_segment_len(&self) -> usize {
        usize::from(self.payload) + usize::from(self.size)
    }

    const fn abilities(&self) -> u8 {
        self.kind.ability() | if self.is_ecn { Abilities::ECN } else { 0 }
    }

    const fn header(&self) -> VirtioNetHdr {
        VirtioNetHdr {
            flags: F_NEEDS_CSUM,
            gso_type: self.kind.gso_type() | if self.is_ecn { GSO_ECN } else { 0 },
            hdr_len: self.payload,
            gso_size: self.size,
            csum_start: self.l4,
            csum_offset: self.kind.checksum_offset(),
            num_buffers: 0,
        }
    }
}

/// Checks what a sender asks for against its frame and against what it negotiated.
///
/// `head` is the first [`flow::HEAD_LEN`] bytes of the frame, or all. Flags other than NEEDS_CSUM and
/// DATA_VALID are ignored (virtio 1.3, section 5.1.6.2.2), as is `hdr_len`, which is a hint. A frame
/// that has no more payload than one segment is not segmented.
///
/// # Errors
/// [`OffloadError`]; the frame is to be dropped, as nobody else can make sense of it either.
#[inline]
pub fn check(
    hdr: &VirtioNetHdr,
    head: &[u8],
    frame_len: u32,
    sender: Abilities,
) -> Result<Offload, OffloadError> {
    if hdr.flags & F_NEEDS_CSUM == 0 && hdr.gso_type == GSO_NONE {
        return Ok(Offload::Done { is_checked: hdr.flags & F_DATA_VALID != 0 });
    }
    check_offload(hdr, head, frame_len, sender)
}

fn check_offload(
    hdr: &VirtioNetHdr,
    head: &[u8],
    frame_len: u32,
    sender: Abilities,
) -> Result<Offload, OffloadError> {
    if hdr.flags & F_NEEDS_CSUM == 0 {
        return Err(OffloadError::SegmentationWithoutChecksum);
    }
    if !sender.has(Abilities::CSUM) {
        return Err(OffloadError::ChecksumNotNegotiated);
    }
    let parsed = flow::parse(head, frame_len)?;
    if parsed.key.network == Network::Other || parsed.fragment != Fragment::Whole {
        return Err(OffloadError::NotWholeIp);
    }
    let kind = Kind::of(parsed.key.network, parsed.key.protocol);
    let checksum = Checksum { start: hdr.csum_start, offset: hdr.csum_offset, end: parsed.l3_end };
    // The checksum is that of the L4 header or, in a tunnel, of a header in its payload.
    let is_of_l4 = checksum.start == parsed.l4;
    let place_is_sound = match kind {
        Some(kind) if is_of_l4 => checksum.offset == kind.checksum_offset(),
        _ => is_of_l4 || checksum.start >= parsed.payload,
    };
    let field_end = u32::from(checksum.start) + u32::from(checksum.offset) + 2;
    if !place_is_sound || field_end > checksum.end {
        return Err(OffloadError::ChecksumPlace { start: checksum.start, offset: checksum.offset });
    }
    if hdr.gso_type == GSO_NONE {
        return Ok(Offload::Checksum(checksum));
    }

    let (gso_type, is_ecn) = (hdr.gso_type & !GSO_ECN, hdr.gso_type & GSO_ECN != 0);
    match (gso_type, is_ecn) {
        (GSO_TCPV4 | GSO_TCPV6, _) | (GSO_UDP_L4, false) => {}
        _ => return Err(OffloadError::UnknownGsoType { gso_type: hdr.gso_type }),
    }
    let Some(kind) = kind.filter(|kind| is_of_l4 && kind.gso_type() == gso_type) else {
        return Err(OffloadError::SegmentationMismatch { gso_type: hdr.gso_type });
    };
    let segmentation = Segmentation {
        kind,
        is_ecn,
        size: hdr.gso_size,
        l3: u16::from(parsed.l2.len),
        l4: parsed.l4,
        payload: parsed.payload,
        end: parsed.l3_end,
    };
    if !sender.has(segmentation.abilities()) {
        return Err(OffloadError::SegmentationNotNegotiated { gso_type: hdr.gso_type });
    }
    if hdr.gso_size == 0 || segmentation.segments() > MAX_SEGMENTS {
        return Err(OffloadError::SegmentSize { gso_size: hdr.gso_size });
    }
    if segmentation.segments() > 1 {
        Ok(Offload::Segment(segmentation))
    } else {
        Ok(Offload::Checksum(checksum))
    }
}

impl Offload {
    /// How the frame goes to a receiver that negotiated `receiver`.
    #[inline]
    pub fn for_receiver(&self, receiver: Abilities) -> Action {
        match *self {
            Self::Done { is_checked } => {
                // DATA_VALID is for who negotiated GUEST_CSUM (virtio 1.3, section 5.1.6.4.2).
                let is_told = is_checked && receiver.has(Abilities::CSUM);
                let flags = if is_told { F_DATA_VALID } else { 0 };
                Action::Pass(VirtioNetHdr { flags, ..VirtioNetHdr::default() })
            }
            Self::Checksum(checksum) if receiver.has(Abilities::CSUM) => {
                Action::Pass(checksum.header())
            }
            Self::Checksum(checksum) => Action::Checksum(checksum),
            Self::Segment(work) if receiver.has(work.abilities()) => Action::Pass(work.header()),
            Self::Segment(work) => Action::Segment(work),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::checksum::Sum;
    use crate::wire::ethernet::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6};
    use crate::wire::virtio_net_hdr::GSO_UDP;

    const L4: u16 = 34;
    const FULL: Abilities = Abilities::of_sender(u64::MAX);

    /// An IPv4 frame of this protocol with 100 bytes behind the IP header.
    fn ipv4(protocol: u8) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend(ETHERTYPE_IPV4.to_be_bytes());
        frame.extend([0x45, 0, 0, 120, 0, 0, 0, 0, 64, protocol, 0, 0]);
        frame.resize(134, 0);
        frame[usize::from(L4) + 4..][..2].copy_from_slice(&100u16.to_be_bytes()); // UDP length
        frame[usize::from(L4) + 12] = 0x50; // TCP header length
        frame
    }

    fn partial(offset: usize) -> VirtioNetHdr {
        VirtioNetHdr {
            flags: F_NEEDS_CSUM,
            csum_start: L4,
            csum_offset: offset as u16,
            ..VirtioNetHdr::default()
        }
    }

    fn tso(gso_type: u8, gso_size: u16) -> VirtioNetHdr {
        VirtioNetHdr { gso_type, gso_size, ..partial(tcp::CHECKSUM_AT) }
    }

    fn judge(hdr: VirtioNetHdr, frame: &[u8], sender: Abilities) -> Result<Offload, OffloadError> {
        check(&hdr, frame, frame.len() as u32, sender)
    }

    #[test]
    fn ordinary_frame_passes_behind_an_all_zero_header_whatever_the_rest_said() {
        let hdr = VirtioNetHdr {
            flags: 0xfc,
            hdr_len: 1,
            gso_size: 2,
            csum_start: 3,
            csum_offset: 4,
            num_buffers: 5,
            ..VirtioNetHdr::default()
        };
        let offload = check(&hdr, &[], 0, Abilities::NONE).expect("nothing to refuse");
        for receiver in [Abilities::NONE, Abilities::of_receiver(u64::MAX)] {
            assert_eq!(offload.for_receiver(receiver), Action::Pass(VirtioNetHdr::default()));
        }
    }

    #[test]
    fn data_valid_reaches_only_who_negotiated_the_checksum() {
        let hdr = VirtioNetHdr { flags: F_DATA_VALID, ..VirtioNetHdr::default() };
        let offload = check(&hdr, &[], 0, Abilities::NONE).expect("nothing to refuse");
        let to_willing = offload.for_receiver(Abilities::of_receiver(u64::MAX));
        assert_eq!(to_willing, Action::Pass(hdr));
        let to_others = offload.for_receiver(Abilities::NONE);
        assert_eq!(to_others, Action::Pass(VirtioNetHdr::default()));
    }

    #[test]
    fn segmentation_counts_as_negotiated_only_together_with_the_checksum() {
        let all_but = |bit: u32| Abilities::of_sender(!(1 << bit));
        assert_eq!(all_but(feature::VIRTIO_NET_F_CSUM), Abilities::NONE);
        let receiver = Abilities::of_receiver(!(1 << feature::VIRTIO_NET_F_GUEST_CSUM));
        assert_eq!(receiver, Abilities::NONE);
        assert_ne!(Abilities::of_receiver(u64::MAX), Abilities::NONE);
    }

    #[test]
    fn what_a_driver_did_not_negotiate_is_refused_by_name() {
        let frame = ipv4(tcp::PROTOCOL);
        assert_eq!(
            judge(partial(tcp::CHECKSUM_AT), &frame, Abilities::NONE),
            Err(OffloadError::ChecksumNotNegotiated)
        );
        let only_checksum = Abilities::of_sender(1 << feature::VIRTIO_NET_F_CSUM);
        assert!(judge(partial(tcp::CHECKSUM_AT), &frame, only_checksum).is_ok());
        let no_ecn = Abilities::of_sender(!(1 << feature::VIRTIO_NET_F_HOST_ECN));
        assert!(judge(tso(GSO_TCPV4, 40), &frame, no_ecn).is_ok());
        for (gso_type, sender) in [(GSO_TCPV4, only_checksum), (GSO_TCPV4 | GSO_ECN, no_ecn)] {
            assert_eq!(
                judge(tso(gso_type, 40), &frame, sender),
                Err(OffloadError::SegmentationNotNegotiated { gso_type })
            );
        }
    }

    #[test]
    fn segmentation_type_must_exist_and_be_that_of_the_frame() {
        let frame = ipv4(tcp::PROTOCOL);
        for gso_type in [GSO_UDP, 2, 6, GSO_ECN, GSO_UDP_L4 | GSO_ECN] {
            assert_eq!(
                judge(tso(gso_type, 40), &frame, FULL),
                Err(OffloadError::UnknownGsoType { gso_type })
            );
        }
        for gso_type in [GSO_TCPV6, GSO_TCPV6 | GSO_ECN, GSO_UDP_L4] {
            assert_eq!(
                judge(tso(gso_type, 40), &frame, FULL),
                Err(OffloadError::SegmentationMismatch { gso_type })
            );
        }
        let hdr = VirtioNetHdr { flags: 0, ..tso(GSO_TCPV4, 40) };
        assert_eq!(judge(hdr, &frame, FULL), Err(OffloadError::SegmentationWithoutChecksum));
    }

    #[test]
    fn segment_size_must_be_sane() {
        let frame = ipv4(tcp::PROTOCOL); // 80 bytes of payload
        let refused = Err(OffloadError::SegmentSize { gso_size: 0 });
        assert_eq!(judge(tso(GSO_TCPV4, 0), &frame, FULL), refused);
        for (size, is_segmented) in [(1, true), (79, true), (80, false), (u16::MAX, false)] {
            let offload = judge(tso(GSO_TCPV4, size), &frame, FULL).expect("sane");
            assert_eq!(matches!(offload, Offload::Segment(_)), is_segmented, "{size}");
        }
        let mut long = frame;
        long[16..18].copy_from_slice(&1000u16.to_be_bytes()); // 960 bytes of payload
        long.resize(1014, 0);
        assert!(judge(tso(GSO_TCPV4, 4), &long, FULL).is_ok());
        let refused = Err(OffloadError::SegmentSize { gso_size: 3 });
        assert_eq!(judge(tso(GSO_TCPV4, 3), &long, FULL), refused);
    }

    #[test]
    fn checksum_must_be_that_of_the_l4_header_or_lie_in_its_payload() {
        let frame = ipv4(tcp::PROTOCOL);
        let places = [
            (L4, 16, true),
            (L4, 6, false),       // the acknowledgement number
            (L4 - 1, 17, false),  // starts in the IP header
            (L4 + 4, 12, false),  // starts in the TCP header
            (L4 + 20, 0, true),   // the first bytes of the payload, as in a tunnel
            (L4 + 20, 78, true),  // its last bytes
            (L4 + 20, 79, false), // one byte beyond
            (0xffff, 0xffff, false),
        ];
        for (csum_start, csum_offset, is_sound) in places {
            let hdr = VirtioNetHdr { csum_start, csum_offset, ..partial(0) };
            let refused = OffloadError::ChecksumPlace { start: csum_start, offset: csum_offset };
            let expected = if is_sound { None } else { Some(refused) };
            assert_eq!(judge(hdr, &frame, FULL).err(), expected, "{csum_start}+{csum_offset}");
        }
        let in_payload = VirtioNetHdr { csum_start: L4 + 20, csum_offset: 0, ..tso(GSO_TCPV4, 40) };
        assert_eq!(
            judge(in_payload, &frame, FULL),
            Err(OffloadError::SegmentationMismatch { gso_type: GSO_TCPV4 })
        );
    }

    #[test]
    fn checksum_of_another_protocol_may_be_anywhere_in_its_datagram() {
        let frame = ipv4(47);
        assert!(judge(partial(4), &frame, FULL).is_ok());
        assert!(judge(partial(99), &frame, FULL).is_err());
    }

    #[test]
    fn offloads_of_fragments_and_of_what_is_not_ip_are_refused() {
        let mut fragment = ipv4(udp::PROTOCOL);
        fragment[20] = 0x20;
        let mut arp = ipv4(udp::PROTOCOL);
        arp[12..14].copy_from_slice(&ETHERTYPE_ARP.to_be_bytes());
        for frame in [fragment, arp] {
            let refused = Err(OffloadError::NotWholeIp);
            assert_eq!(judge(partial(udp::CHECKSUM_AT), &frame, FULL), refused);
        }
        let mut malformed = ipv4(udp::PROTOCOL);
        malformed[14] = 0x44;
        let refused = Err(OffloadError::Headers(ParseError::Malformed));
        assert_eq!(judge(partial(udp::CHECKSUM_AT), &malformed, FULL), refused);
    }

    #[test]
    fn checksum_that_comes_out_as_zero_is_written_as_all_ones() {
        let mut frame = ipv4(udp::PROTOCOL);
        frame[usize::from(L4)..].fill(0);
        frame[usize::from(L4) + udp::LEN_AT + 1] = 100;
        // The sum so far is 100; this makes it 0xffff, whose complement is 0.
        frame[usize::from(L4) + udp::HEADER_LEN..][..2]
            .copy_from_slice(&(0xffff - 100u16).to_be_bytes());
        let offload = judge(partial(udp::CHECKSUM_AT), &frame, FULL).expect("sound");
        let Action::Checksum(work) = offload.for_receiver(Abilities::NONE) else {
            panic!("not to be checksummed: {offload:?}");
        };
        complete_checksum(&mut frame, &work);
        assert_eq!(frame[usize::from(L4) + udp::CHECKSUM_AT..][..2], [0xff, 0xff]);

        // The same for segments: the datagram's length is taken out, the segment's put in.
        let field = usize::from(L4) + udp::CHECKSUM_AT;
        frame[field..field + 2].copy_from_slice(&100u16.to_be_bytes());
        frame[usize::from(L4) + udp::HEADER_LEN..][..2]
            .copy_from_slice(&(0xffff - 2 * 54u16).to_be_bytes());
        let hdr = VirtioNetHdr { csum_offset: udp::CHECKSUM_AT as u16, ..tso(GSO_UDP_L4, 46) };
        let offload = judge(hdr, &frame, FULL).expect("sound");
        let Action::Segment(work) = offload.for_receiver(Abilities::NONE) else {
            panic!("not to be segmented: {offload:?}");
        };
        let mut segment = [0; 200];
        let len = Segmenter::new(&frame, &work).next_into(&mut segment);
        assert_eq!((len, &segment[field..field + 2]), (Some(88), &[0xff, 0xff][..]));
    }

    #[test]
    fn segments_behind_a_routing_header_keep_the_pseudo_header_of_the_final_destination() {
        // Destination of the IP header: the next hop, all 1. Of the routing header: all 9.
        let mut frame = vec![2; 12];
        frame.extend(ETHERTYPE_IPV6.to_be_bytes());
        frame.extend([0x60, 0, 0, 0, 0, 24 + 8 + 50, 43, 64]);
        frame.extend([[5; 16], [1; 16]].concat());
        frame.extend([udp::PROTOCOL, 2, 0, 1, 0, 0, 0, 0]);
        frame.extend([9; 16]);
        frame.extend([0, 1, 0, 2, 0, 58]);
        let l4 = frame.len() - 6;
        let pseudo = |len: usize| {
            let mut sum = Sum::pseudo_ipv6([5; 16].into(), [9; 16].into(), udp::PROTOCOL, 0);
            sum.add_word(len as u16);
            sum
        };
        frame.extend(pseudo(58).partial().to_be_bytes());
        frame.extend([0xab; 50]);

        let hdr = VirtioNetHdr {
            csum_start: l4 as u16,
            csum_offset: udp::CHECKSUM_AT as u16,
            ..tso(GSO_UDP_L4, 21)
        };
        let offload = judge(hdr, &frame, FULL).expect("sound");
        let Action::Segment(work) = offload.for_receiver(Abilities::NONE) else {
            panic!("not to be segmented: {offload:?}");
        };
        let mut segmenter = Segmenter::new(&frame, &work);
        let mut out = [0; 200];
        let mut lengths = Vec::new();
        while let Some(len) = segmenter.next_into(&mut out) {
            let mut sum = pseudo(len - l4);
            sum.add(&out[l4..len]);
            assert_eq!(sum.finish(), 0, "checksum of the segment after {lengths:?}");
            lengths.push(len - l4 - udp::HEADER_LEN);
        }
        assert_eq!(lengths, [21, 21, 8]);
    }
}
