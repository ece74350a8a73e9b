//! Header views over byte slices, and the checksums that go with them.
//!
//! Every view is made by a `parse` that checks once that the bytes are such a header; the accessors
//! after it cannot fail. A view judges only what the header says about itself and holds only the
//! fixed part of it: whoever knows where the frame ends compares lengths with it ([`crate::flow`]).
//!
//! # Bounds
//! No view looks further than its own header. The IPv6 extension-header walk
//! ([`ipv6::walk_extensions`]) follows at most [`ipv6::MAX_EXTENSIONS`] headers.
//!
//! # Threads
//! Plain functions of bytes: no state, no I/O, no allocation.

pub mod arp;
pub mod checksum;
pub mod ethernet;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod ndp;
pub mod tcp;
pub mod udp;
pub mod virtio_net_hdr;
pub mod vlan;

pub use ethernet::Mac;
pub use virtio_net_hdr::VirtioNetHdr;

/// Why bytes are not the header they were taken for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, thiserror::Error)]
pub enum ParseError {
    /// The frame, or the datagram in it, ends inside a header.
    #[error("the frame ends inside a header")]
    Truncated,
    /// A header contradicts itself: wrong version, or a length below its own minimum.
    #[error("a header contradicts itself (version or length field)")]
    Malformed,
    /// The headers are longer than the part of the frame that is looked at.
    #[error("the headers reach beyond the first 128 bytes, or have too many extensions")]
    TooDeep,
}

/// Whether a datagram is a piece of a larger one.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Fragment {
    /// The whole datagram.
    #[default]
    Whole,
    /// The first piece: it has the L4 header, but not all of the payload.
    First,
    /// A later piece: what follows the IP header is not an L4 header.
    Later,
}

impl Fragment {
    /// From the offset (in any unit) and the more-fragments flag of an IP header.
    const fn new(offset: u16, more: bool) -> Self {
        match (offset, more) {
            (0, false) => Self::Whole,
            (0, true) => Self::First,
            _ => Self::Later,
        }
    }
}
