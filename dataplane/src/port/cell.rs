//! Where a running vring lives, and how control and PMD threads hand it over.
//!
//! The lock of a cell is the stop handshake ([`Handover`]): when [`Handover::take`] returns, no PMD
//! touches the ring, its memory or its event descriptors, and none will. A cell also keeps a ring
//! exclusive while it moves from one PMD to another, and lets several PMDs fill one receive ring,
//! burst by burst.

use std::sync::Arc;

use crate::offload::Abilities;
use crate::vhost::mem::GuestMap;
use crate::vring::RingFault;
use crate::vring::ring::Ring;

use super::handover::Handover;
use super::watch::Watch;

/// A ring in use and what belongs to it.
#[derive(Debug)]
pub struct LiveRing {
    /// The memory that the ring was checked against and that its descriptors speak of.
    pub map: Arc<GuestMap>,
    /// The ring.
    pub ring: Ring,
    /// Whether the guest enabled it (SET_VRING_ENABLE).
    pub enabled: bool,
    /// Offloads that the guest negotiated, as sender or as receiver: the way of this ring.
    pub abilities: Abilities,
    /// VIRTIO_NET_F_MRG_RXBUF was negotiated.
    pub mergeable: bool,
    /// The kick that wakes the PMD; ends when the ring is taken out. `None`: the guest never kicks.
    pub watch: Option<Watch>,
}

/// What a cell holds.
#[derive(Debug, Default)]
pub enum Slot {
    /// No ring was set up, or it was stopped.
    #[default]
    Empty,
    /// A ring at work.
    Live(Box<LiveRing>),
    /// A ring that broke; where it stood, and why it broke.
    Broken(u32, RingFault),
}

/// The place of one vring.
pub type RingCell = Handover<Slot>;

impl Slot {
    /// The live ring, if there is one.
    #[inline]
    pub fn live(&mut self) -> Option<&mut LiveRing> {
        match self {
            Self::Live(live) => Some(live),
            Self::Empty | Self::Broken(..) => None,
        }
    }

    /// Takes a broken ring out of use; returns the fault that it is broken for, `None` if it was
    /// not in use. Indexes and descriptors that read as zero because the memory went away are not
    /// what is wrong: then the fault is [`RingFault::MemoryLost`].
    pub fn break_with(&mut self, fault: RingFault) -> Option<RingFault> {
        let Self::Live(live) = self else { return None };
        let fault = if live.map.is_dead() { RingFault::MemoryLost } else { fault };
        *self = Self::Broken(live.ring.base(), fault);
        Some(fault)
    }
}
