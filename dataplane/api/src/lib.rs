//! The control interface of the slipway switch: what is said over slipwayd's UNIX socket.
//!
//! slipwayd speaks HTTP/1.1 with JSON bodies. This package holds the types of that conversation,
//! shared by the server (`dataplane::control`) and everything that asks it for something, and, with
//! the feature `client`, a typed client. The feature `confine` has what all of these promise: no netlink.
//!
//! # How it is meant to be used
//! Creation is `PUT` under a name the caller chooses. The same request twice is answered with the
//! same thing ([`Created::Existing`]); a different one under a taken name is refused with
//! [`ErrorCode::Conflict`] and the name of the differing field. So a caller that lost an answer
//! repeats its request. Every refusal is an [`ErrorReply`]: a code, the offending value, a remedy.
//!
//! # Bounds
//! Requests refuse unknown fields, and every number and string has a range that `check` enforces
//! before anything is changed. Replies may gain fields, so they are read leniently.
//!
//! # Units
//! Names carry them: `_s` seconds, `_ms` milliseconds, `_bytes`, `_frames`, `_cycles` (ticks of the
//! clock whose rate the reply tells).

mod attachment;
#[cfg(feature = "client")]
mod call;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "confine")]
pub mod confine;
mod daemon;
mod error;
mod explain;
mod fdb;
mod mac;
mod policy;
mod port;
mod stats;
mod vni;

pub use attachment::{
    Attachment, AttachmentList, AttachmentRoute, AttachmentSpec, DEFAULT_NETWORK, Dns,
    MAX_INTERFACE_BYTES, MAX_LABEL_BYTES, MAX_LABELS, MAX_OWNER_BYTES, Neighbour, Network,
    NetworkList, check_interface, check_owner, gateway_mac,
};
pub use daemon::{Health, HealthStatus, Version};
pub use error::{ApiError, ErrorCode, ErrorReply};
pub use explain::{Decision, ExplainReply, ExplainRequest, MAX_EXPLAIN_FRAME_BYTES, Stage};
pub use fdb::{
    DEFAULT_FDB_LIST, FdbEntry, FdbFilter, FdbKind, FdbList, MAX_FDB_LIST, StaticEntry,
    StaticEntrySpec,
};
pub use mac::{Mac, MacError};
pub use policy::{
    IpVersion, MAX_POLICY_RULES, Policy, PolicyAction, PolicyDirection, PolicyRule,
    PolicyTextError, PortRange, Protocol,
};
pub use port::{
    AppliedPortSpec, Created, DEFAULT_INTERFACE, DEFAULT_MTU_BYTES, Difference, Direction,
    LinkState, MAX_ADDRESSES, MAX_MAC_QUOTA, MAX_NAME_BYTES, MAX_QUEUE_PAIRS,
    MAX_SOCKET_PATH_BYTES, MIN_MTU_BYTES, MemoryRegion, NetnsSpec, Port, PortDefaults, PortList,
    PortMode, PortSpec, Ring, RingState, TUN_DEVICE, is_host_address,
};
pub use stats::{
    Drops, EgressStats, IngressStats, Pmd, PmdList, PmdRing, PortStats, Rebalanced, RingMove,
    StageSamples, Stats,
};
pub use vni::{MAX_AGEING_S, MAX_VNI, UnknownUnicast, Vni, VniList, VniSpec};

/// Where slipwayd listens unless it is told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/slipway/slipwayd.sock";

/// The longest request body the server reads, in bytes.
pub const MAX_REQUEST_BYTES: usize = 64 * 1024;
