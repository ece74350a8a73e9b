//! Vports: what the switch knows of one logical port, shared by all threads.
//!
//! A [`Vport`] is created by the control plane, published in the tables, and lives until the last
//! PMD let go of it. Its identity and its rules never change; its rings come and go with the front
//! end ([`cell`]). [`vhost_user`] is the control side of a vhost-user port, [`tap`] that of the
//! host's, [`netns`] that of one in a network namespace.

pub mod cell;
pub mod handover;
pub mod netns;
pub mod tap;
pub mod vhost_user;
pub mod watch;

use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

pub use crate::fdb::PortId;
use crate::spoof::Bound;
use crate::stats::{Egress, Ingress};

use cell::RingCell;
use vhost_user::Link;

/// What a vport may do; set when it is created.
#[derive(Debug, Clone)]
pub struct VportRules {
    /// The segment it belongs to: the dense number of its VNI on this host.
    pub segment: u16,
    /// Its MAC address as a number, if it has a fixed one.
    pub mac: Option<u64>,
    /// Only `mac` may be used as source address.
    pub anti_spoof: bool,
    /// The IP addresses that may be used; `None`: any.
    pub bound: Option<Box<Bound>>,
    /// Source addresses are learned.
    pub learning: bool,
    /// How many addresses may be learned.
    pub mac_quota: u32,
    /// Longest frame that is not a TSO or USO segment, in bytes with Ethernet header.
    pub max_frame_bytes: u32,
}

/// The guest's transmit ring: the switch takes frames from it.
#[derive(Debug, Default)]
pub struct TxQueue {
    /// The ring.
    pub cell: RingCell,
    /// Frames taken; written under the cell's lock.
    pub counters: Ingress,
    /// The PMD that polls it, by the plan. While the ring runs, changed under the cell's lock only.
    pub owner: AtomicU32,
}

/// The guest's receive ring: the switch writes frames to it.
#[derive(Debug, Default)]
pub struct RxQueue {
    /// The ring.
    pub cell: RingCell,
    /// Frames delivered; written under the cell's lock.
    pub counters: Egress,
}

/// One logical port of the switch.
#[derive(Debug)]
pub struct Vport {
    /// Its number: its place in the tables. Used again once the port is gone.
    pub id: PortId,
    /// Its name in the API.
    pub name: String,
    /// What it may do.
    pub rules: VportRules,
    /// Transmit rings of its guest, one per queue pair.
    pub tx: Box<[TxQueue]>,
    /// Receive rings of its guest, one per queue pair.
    pub rx: Box<[RxQueue]>,
    /// How many receive rings, counted from the first, are enabled.
    rx_enabled: AtomicU16,
    /// How its link is.
    pub link: Link,
    /// The PMDs that its transmit rings stay on, in turn; none: the plan decides.
    pins: Box<[u32]>,
}

impl Vport {
    /// A vport without rings.
    pub fn new(id: PortId, name: String, rules: VportRules, queue_pairs: u16) -> Self {
        Self {
            id,
            name,
            rules,
            tx: (0..queue_pairs).map(|_| TxQueue::default()).collect(),
            rx: (0..queue_pairs).map(|_| RxQueue::default()).collect(),
            rx_enabled: AtomicU16::new(0),
            link: Link::default(),
            pins: Box::default(),
        }
    }

    /// The same vport, with its transmit rings pinned to `pmds` in turn; none: not pinned.
    #[must_use]
    pub fn pinned_to(self, pmds: &[u32]) -> Self {
        Self { pins: pmds.into(), ..self }
    }

    /// The PMD that the transmit ring of `queue` stays on, if it is pinned.
    pub fn pin_of(&self, queue: u16) -> Option<u32> {
        let turn = usize::from(queue).checked_rem(self.pins.len())?;
        Some(self.pins[turn])
    }

    /// Where its frames come from: its segment and its number.
    #[inline]
    pub fn place(&self) -> (u16, PortId) {
        (self.rules.segment, self.id)
    }

    /// The place of a vring, by its index as vhost-user counts: 2 q receives, 2 q + 1 transmits.
    pub fn cell(&self, index: u16) -> Option<&RingCell> {
        let queue = usize::from(index / 2);
        Some(if is_receive(index) { &self.rx.get(queue)?.cell } else { &self.tx.get(queue)?.cell })
    }

    /// For the control thread, after a change of the link: counts the receive rings that take
    /// frames. Enters no ring, so no frame is lost for it.
    pub fn count_receive_rings(&self) {
        self.set_rx_enabled(self.link.info().ready_receive_rings());
    }

    /// Says how many receive rings, from the first on, take frames.
    pub fn set_rx_enabled(&self, n: u16) {
        self.rx_enabled.store(n, Ordering::Relaxed);
    }

    /// Receive rings to spread frames over; 0: the link is down.
    #[inline]
    pub fn rx_enabled(&self) -> u16 {
        self.rx_enabled.load(Ordering::Relaxed)
    }
}

/// Even rings are the guest's receive rings (virtio 1.3, section 5.1.2).
fn is_receive(index: u16) -> bool {
    index.is_multiple_of(2)
}

/// Names the vring of `queue` of `port` in events of a PMD's epoll.
pub fn ring_tag(port: PortId, queue: u16) -> u64 {
    u64::from(port.0) << 16 | u64::from(queue)
}
