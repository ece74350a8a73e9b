//! The snapshot that PMD threads read: which vports there are, by which rules, and how each segment floods.
//!
//! The control thread builds a new snapshot aside and publishes it whole; a PMD looks once per
//! burst whether there is a newer one. The FDB is not part of it: it changes with every learned
//! address and is a concurrent table of its own ([`crate::fdb`]).

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::neighbour::Neighbours;
use crate::policy::Policies;
use crate::port::{PortId, Vport};

/// What happens to a unicast frame whose destination no one is known to own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownUnicast {
    /// Dropped: every address of the segment is known.
    Drop,
    /// Sent to every other vport of the segment.
    Flood,
}

/// One L2 segment: what a VNI is on this host.
#[derive(Debug, Clone)]
pub struct Segment {
    /// VXLAN network identifier (RFC 7348, section 5).
    pub vni: u32,
    /// What happens to unknown unicast.
    pub unknown_unicast: UnknownUnicast,
    /// How long a learned address lives without traffic, in seconds.
    pub ageing_s: u32,
    /// Vports of the segment, in order of creation.
    pub members: Vec<PortId>,
}

/// All that a PMD needs besides the FDB. Immutable once published.
#[derive(Debug, Default, Clone)]
pub struct Tables {
    /// Vports by number.
    pub ports: Vec<Option<Arc<Vport>>>,
    /// Segments by number.
    pub segments: Vec<Option<Segment>>,
    /// Who has which IP address, as far as ports are bound to them.
    pub neighbours: Neighbours,
    /// What guests may send and receive, for vports that have rules.
    pub policies: Policies,
}

impl Tables {
    /// The vport of that number.
    #[inline]
    pub fn port(&self, id: PortId) -> Option<&Arc<Vport>> {
        self.ports.get(id.0 as usize)?.as_ref()
    }

    /// The segment of that number.
    #[inline]
    pub fn segment(&self, id: u16) -> Option<&Segment> {
        self.segments.get(usize::from(id))?.as_ref()
    }
}

/// The published snapshot.
pub type Published = Arc<ArcSwap<Tables>>;
