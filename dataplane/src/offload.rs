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
mod tests;
