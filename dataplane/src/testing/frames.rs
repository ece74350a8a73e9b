//! Frames by description: Ethernet, VLAN, ARP, IPv4, IPv6, TCP, UDP, ICMP, with right checksums.
//!
//! A [`FrameBuilder`] says what the frame is; [`FrameBuilder::build`] makes its bytes with every
//! checksum filled in, [`FrameBuilder::build_partial`] leaves the transport checksum to the
//! receiver, as a guest with checksum offload does, and [`FrameBuilder::build_gso`] makes a
//! super-frame to be segmented.
//!
//! What the payload holds is the matter of [`Stamp`] (each frame by itself: flow, sequence,
//! integrity; a [`Ledger`] counts what got lost, reordered or doubled) and [`Stream`] (bytes of a
//! flow by their offset, so that segments can be judged however they were cut).
//!
//! Nothing here is shared with the switch's own parsing and checksums: it is their oracle.

mod builder;
mod read;
mod stamp;

pub use builder::{FrameBuilder, Mac};
pub use read::{internet_checksum, payload_range};
pub use stamp::{FlowCount, Ledger, STAMP_BYTES, Stamp, StampError, Stream};
