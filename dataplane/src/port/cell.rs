//! Where a running vring lives, and how control and PMD threads hand it over.
//!
//! ```text
//! PMD, once per burst                      control, to stop a ring
//! wanted.load()  -- true: leave it alone   wanted = true
//! lock                                     lock        <- waits for the burst in hand
//!   work on the ring                       take the ring out
//! unlock                                   unlock, wanted = false
//! ```
//!
//! The lock is the stop handshake: when [`RingCell::take`] returns, no PMD touches the ring, its
//! memory or its event descriptors, and none will. `wanted` only keeps a busy PMD from winning the
//! lock over and over. A cell also keeps a ring exclusive while it moves from one PMD to another,
//! and lets several PMDs fill one receive ring, burst by burst.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::offload::Abilities;
use crate::vhost::mem::GuestMap;
use crate::vring::RingFault;
use crate::vring::ring::Ring;

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
#[derive(Debug, Default)]
pub struct RingCell {
    wanted: AtomicBool,
    slot: Mutex<Slot>,
}

impl RingCell {
    /// For a PMD: the slot, for one burst. `None` while the control thread wants it.
    #[inline]
    pub fn enter(&self) -> Option<MutexGuard<'_, Slot>> {
        // ORDERING: only a hint; the lock orders everything.
        if self.wanted.load(Ordering::Relaxed) {
            return None;
        }
        Some(self.lock())
    }

    /// For the control thread: changes the slot between bursts.
    pub fn with<T>(&self, change: impl FnOnce(&mut Slot) -> T) -> T {
        self.wanted.store(true, Ordering::Relaxed);
        let mut slot = self.lock();
        let result = change(&mut slot);
        drop(slot);
        self.wanted.store(false, Ordering::Relaxed);
        result
    }

    /// For the control thread: takes out whatever is there.
    pub fn take(&self) -> Slot {
        self.with(std::mem::take)
    }

    fn lock(&self) -> MutexGuard<'_, Slot> {
        // A panic in a PMD ends the process in release builds; in tests the slot is still whole,
        // as it is only replaced as a whole.
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

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
