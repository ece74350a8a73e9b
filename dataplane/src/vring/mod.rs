//! Virtqueues as the switch sees them: it reads what the guest offers and writes what was used.
//!
//! [`chain`] walks one descriptor chain, [`split`] and [`packed`] hold a ring's indexes and publish
//! them, [`ring`] is either of the two. [`tx`] takes bursts of frames from a guest and [`rx`] writes
//! bursts of frames to one. [`driver`] is the other side, for vports without a guest, and [`tap`] does without
//! either side: the kernel holds the frames.
//!
//! # Bounds
//! All of a ring is checked once, when it starts, to lie in the guest's memory ([`split`]). After
//! that each index, descriptor and address is fetched once, bounded, and then believed.
//!
//! # Faults
//! What a frame can be wrong about costs that frame ([`crate::stats::DropReason`]). What a *ring*
//! can be wrong about ([`RingFault`]) means that the driver is broken or hostile: that ring stops,
//! its vport is reported as broken, and every other vport goes on. A new set-up by the front end
//! starts the ring afresh, as after a guest reboot.

pub mod chain;
pub mod driver;
pub mod packed;
pub mod ring;
pub mod rx;
pub mod split;
pub mod tap;
pub mod tx;

/// Frames handled together, at most.
pub const BURST: usize = 32;

/// Bytes of a virtio-net header with VIRTIO_F_VERSION_1 (virtio 1.3, section 5.1.6).
pub const VNET_HDR: usize = 12;

/// Buffers one chain may have, empty ones included. Linux drivers use at most 19 (MAX_SKB_FRAGS + 2).
pub const MAX_SEGMENTS: usize = 64;

/// Segments of receive buffers that one frame may be spread over, all its buffers together.
pub const MAX_SPREAD: usize = 1024;

/// Largest frame: 64 KiB of IP packet behind an Ethernet header with two VLAN tags.
pub const MAX_FRAME_BYTES: u32 = 65_535 + 14 + 8;

/// What makes a ring unusable: the driver broke the rules of the virtqueue itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RingFault {
    /// The available index moved by more than the ring holds (virtio 1.3, section 2.7.13.3).
    #[error("the available index jumped by {jump} in a ring of {size}")]
    AvailJump {
        /// How far the index moved since it was read last.
        jump: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// A chain starts at a descriptor that does not exist.
    #[error("descriptor {head} in a ring of {size}")]
    HeadOutOfRange {
        /// What the available ring holds.
        head: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// A descriptor links to one that does not exist.
    #[error("descriptor links to {next} in a table of {size}")]
    NextOutOfRange {
        /// The link.
        next: u16,
        /// Entries of the table.
        size: u16,
    },
    /// A chain has more links than its table has entries (virtio 1.3, section 2.7.5.1).
    #[error("descriptor chain {head} loops")]
    Loop {
        /// The first descriptor of the chain.
        head: u16,
    },
    /// A chain of a packed ring has more descriptors than are worth skipping.
    #[error("a descriptor chain of more than {MAX_SPREAD} descriptors")]
    ChainTooLong,
    /// A descriptor points outside the guest's memory.
    #[error("buffer at guest address {gpa:#x} of {len} bytes is not in the guest's memory")]
    BadAddress {
        /// Guest-physical address.
        gpa: u64,
        /// Length in bytes.
        len: u32,
    },
    /// An indirect table is no multiple of 16 bytes, empty, or longer than the ring allows
    /// (virtio 1.3, section 2.7.5.3.1).
    #[error("indirect descriptor table of {len} bytes")]
    IndirectLength {
        /// Length in bytes.
        len: u32,
    },
    /// An indirect descriptor within an indirect table (virtio 1.3, section 2.7.5.3.1).
    #[error("an indirect table within an indirect table")]
    NestedIndirect,
    /// INDIRECT and NEXT in one descriptor (virtio 1.3, section 2.7.5.3.1).
    #[error("an indirect descriptor that is linked on")]
    IndirectLinked,
    /// An indirect descriptor from a driver that did not negotiate VIRTIO_F_INDIRECT_DESC.
    #[error("an indirect descriptor, which the driver did not negotiate")]
    IndirectNotNegotiated,
    /// A device-writable buffer where one to read is due, or the other way round.
    #[error("a {found} buffer in the {ring} ring")]
    WrongDirection {
        /// "writable" or "read-only".
        found: &'static str,
        /// "transmit" or "receive".
        ring: &'static str,
    },
    /// A receive buffer that holds nothing.
    #[error("an empty receive buffer")]
    EmptyBuffer,
    /// The call descriptor was full and made to block: telling the guest held up the PMD.
    #[error("the call descriptor blocks; the VMM must leave O_NONBLOCK set and read it")]
    CallBlocked,
    /// The file behind the guest's memory was cut short.
    #[error("the guest's memory went away: its file was cut short")]
    MemoryLost,
    /// The tap's interface was deleted.
    #[error("the interface was deleted")]
    InterfaceGone,
}

impl RingFault {
    /// The name of the fault in the API and the metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::AvailJump { .. } => "avail_jump",
            Self::HeadOutOfRange { .. } => "head_out_of_range",
            Self::NextOutOfRange { .. } => "next_out_of_range",
            Self::Loop { .. } => "loop",
            Self::ChainTooLong => "chain_too_long",
            Self::BadAddress { .. } => "bad_address",
            Self::IndirectLength { .. } => "indirect_length",
            Self::NestedIndirect => "nested_indirect",
            Self::IndirectLinked => "indirect_linked",
            Self::IndirectNotNegotiated => "indirect_not_negotiated",
            Self::WrongDirection { .. } => "wrong_direction",
            Self::EmptyBuffer => "empty_buffer",
            Self::CallBlocked => "call_blocked",
            Self::MemoryLost => "memory_lost",
            Self::InterfaceGone => "interface_gone",
        }
    }
}
