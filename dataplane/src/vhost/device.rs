//! The seam between the vhost-user control thread and the switch.
//!
//! A [`Device`] is what the switch gives the control thread for one port. The control thread calls
//! it with complete, plausible rings and takes them back; it never touches a ring itself.
//!
//! # Threads
//! All methods are called on the control thread, one at a time. [`Device::stop_ring`] returns only
//! when no PMD touches the ring or its memory any more: right after it the memory may be unmapped
//! and the VMM be told that the ring stands still.

use std::sync::Arc;

use super::eventfd::EventFd;
use super::mem::GuestMap;

/// One vring, completely described by the front end.
///
/// The event file descriptors are shared (an [`EventFd`] is a counted reference), so a ring that
/// is stopped for a change of memory is started again with the same ones.
#[derive(Debug, Clone)]
pub struct RingSetup {
    /// Which ring: even ones are the guest's receive rings (we write), odd ones its transmit
    /// rings (virtio 1.3, 5.1.2).
    pub index: u16,
    /// Descriptors in the ring: a power of two, 2 to 32768 (virtio 1.3, 2.7).
    pub size: u16,
    /// Descriptor table, as an address of the VMM (vhost-user SET_VRING_ADDR).
    pub desc: u64,
    /// Available ring, as an address of the VMM; on a packed ring the driver event area.
    pub avail: u64,
    /// Used ring, as an address of the VMM; on a packed ring the device event area.
    pub used: u64,
    /// Where the ring goes on: the next available index, or on a packed ring the places of the next
    /// available (lower half) and used descriptor (vhost-user specification, "Vring base").
    pub base: u32,
    /// Signalled by the guest when it made buffers available; `None`: the ring must be polled.
    pub kick: Option<EventFd>,
    /// Signals the guest that buffers were used; `None`: the guest polls. Replaced by
    /// [`Device::set_call`] while the ring runs.
    pub call: Option<EventFd>,
    /// Signals the VMM that the ring is broken.
    pub err: Option<EventFd>,
    /// The virtio features both sides agreed on.
    pub features: u64,
    /// Whether traffic may flow; a disabled ring keeps its place but carries nothing
    /// (vhost-user specification, "Ring states").
    pub enabled: bool,
}

/// Why a device will not run a ring: what is wrong with it, with the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RingError(pub String);

/// What the link of a port does, as the front end sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEvent {
    /// No front end is connected.
    Waiting,
    /// A front end is connected; no ring runs.
    Negotiating,
    /// At least one ring runs.
    Up {
        /// The virtio features both sides agreed on.
        features: u64,
        /// The vhost-user protocol features both sides agreed on.
        protocol: u64,
    },
    /// The device refused a ring; the port carries nothing until the front end sets it up anew.
    Broken {
        /// What was refused and why.
        reason: String,
    },
}

/// What the control thread needs of the switch for one port.
pub trait Device: Send {
    /// The virtio features offered, with VHOST_USER_F_PROTOCOL_FEATURES.
    fn features(&self) -> u64;

    /// Pairs of receive and transmit rings offered, at least one.
    fn queue_pairs(&self) -> u16;

    /// Starts a ring on `map`. An `Err` leaves it stopped.
    fn start_ring(&mut self, setup: RingSetup, map: Arc<GuestMap>) -> Result<(), RingError>;

    /// Stops a ring and returns where it stands, as [`RingSetup::base`]; `None` if it does not run. On
    /// return no PMD touches the ring or its memory.
    fn stop_ring(&mut self, index: u16) -> Option<u32>;

    /// Lets traffic flow on a running ring, or not.
    fn set_ring_enabled(&mut self, index: u16, on: bool);

    /// Replaces how the guest is told of used buffers on a running ring.
    fn set_call(&mut self, index: u16, call: Option<EventFd>);

    /// Tells of a change of the link. The same state is never told twice in a row.
    fn link(&mut self, event: LinkEvent);
}
