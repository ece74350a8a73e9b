//! A port and how it is doing: its link, its vrings, and the memory of its guest.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::AppliedPortSpec;

/// How far the connection of a port's front end has come.
///
/// ```text
/// Waiting --connected--> Negotiating --rings ready--> Up
///    ^-------------- front end gone ------------------'
/// any --a rule of the ring or the protocol violated--> Broken --front end gone--> Waiting
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    /// Nobody is connected.
    Waiting,
    /// Connected; rings are not set up yet.
    Negotiating,
    /// Frames can flow.
    Up,
    /// Stopped for a violation; `reason` says which.
    Broken,
}

impl fmt::Display for LinkState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// Which way frames go through a vring, seen from the guest (virtio 1.3, section 5.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// The guest receives; the switch fills.
    Rx,
    /// The guest transmits; a PMD polls.
    Tx,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// What a vring is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RingState {
    /// Not set up, or stopped by GET_VRING_BASE.
    Stopped,
    /// Set up and served.
    Running,
    /// Stopped for a violation.
    Broken,
}

impl fmt::Display for RingState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// One vring of a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Ring {
    /// The virtqueue number: 0 is the first RX vring, 1 the first TX vring.
    pub index: u16,
    /// Which way frames go.
    pub direction: Direction,
    /// Entries, as set up by the front end; 0 before that, and for a tap, which has none.
    pub size: u16,
    /// Whether the front end enabled it (SET_VRING_ENABLE).
    pub enabled: bool,
    /// What it is doing.
    pub state: RingState,
    /// The number of the PMD thread that serves it, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub pmd: Option<u32>,
}

/// A region of guest memory that the front end shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemoryRegion {
    /// Where it begins in the guest's physical address space.
    pub guest_address: u64,
    /// Its length in bytes.
    pub size_bytes: u64,
}

/// A port of the switch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Port {
    /// Its number; another port may get it once this one is gone.
    pub id: u32,
    /// Its settings.
    pub spec: AppliedPortSpec,
    /// How far its connection has come.
    pub link: LinkState,
    /// Why the link is broken; absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub reason: Option<String>,
    /// Negotiated virtio features by their names in the specification (`VIRTIO_NET_F_CSUM`).
    pub features: Vec<String>,
    /// Its vrings, by index.
    pub rings: Vec<Ring>,
    /// Guest memory as shared with the switch.
    pub memory: Vec<MemoryRegion>,
}

/// The ports of the switch, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortList {
    /// The ports.
    pub ports: Vec<Port>,
}

/// Whether a `PUT` made something or found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// It was made by this request (201).
    New,
    /// It was there already, with the same settings (200).
    Existing,
}
