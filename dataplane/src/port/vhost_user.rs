//! A vhost-user port: what the front end's set-up means for the vport and the PMDs.
//!
//! The vhost control thread calls [`VhostUserPort`] with complete rings; this checks them against
//! the guest's memory, puts them where the PMDs find them, and takes them back.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhost::vhost_user::message::VhostUserVirtioFeatures;
use virtio_bindings::virtio_config::{VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::offload::Abilities;
use crate::pmd::Pmds;
use crate::vhost::device::{Device, LinkEvent, RingError, RingSetup};
use crate::vhost::eventfd::EventFd;
use crate::vhost::mem::GuestMap;
use crate::vring::RingFault;
use crate::vring::chain::Direction;
use crate::vring::ring::Ring;

use super::cell::{LiveRing, Slot};
use super::watch::{Wake, Watch};
use super::{Vport, is_receive, ring_tag};

/// Virtio features that every port offers. What is not here is not offered because the switch
/// could not keep the promise.
pub const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_F_RING_PACKED
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_HOST_ECN
    | 1 << VIRTIO_NET_F_HOST_USO
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN
    | 1 << VIRTIO_NET_F_GUEST_USO4
    | 1 << VIRTIO_NET_F_GUEST_USO6
    | 1 << VIRTIO_NET_F_GUEST_ANNOUNCE
    | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// How the link of a vport is; written by the control threads, read by the API.
#[derive(Debug, Default)]
pub struct Link {
    info: Mutex<LinkInfo>,
}

/// What is known of a link.
#[derive(Debug, Clone, Default)]
pub struct LinkInfo {
    /// Where the connection stands, broken rings apart; `None` until the port has a socket.
    pub event: Option<LinkEvent>,
    /// Memory regions of the guest: guest address and size in bytes.
    pub regions: Vec<(u64, u64)>,
    /// Rings that run or broke, by index.
    pub rings: BTreeMap<u16, RingInfo>,
    /// How often rings of the port broke so far, by [`RingFault::name`].
    pub faults: BTreeMap<&'static str, u64>,
}

impl LinkInfo {
    /// Receive rings that take frames: from the first on, as long as they run and are enabled.
    pub fn ready_receive_rings(&self) -> u16 {
        let is_ready = |&queue: &u16| {
            let ring = self.rings.get(&(2 * queue));
            ring.is_some_and(|ring| ring.enabled && ring.fault.is_none())
        };
        (0..u16::MAX / 2).take_while(is_ready).count() as u16
    }

    /// Why the link is broken, if a ring of it is: the first by index.
    pub fn broken_ring(&self) -> Option<String> {
        let mut faults = self.rings.iter().filter_map(|(vring, ring)| Some((vring, ring.fault?)));
        let (vring, fault) = faults.next()?;
        let remedy = match fault {
            RingFault::InterfaceGone => "delete the port and add it again",
            _ => "reset or restart the guest's network device",
        };
        Some(format!("vring {vring}: {fault}; {remedy}"))
    }
}

/// What is known of one ring.
#[derive(Debug, Clone)]
pub struct RingInfo {
    /// Entries.
    pub size: u16,
    /// The guest enabled it.
    pub enabled: bool,
    /// Why it broke.
    pub fault: Option<RingFault>,
    err: Option<EventFd>,
}

impl RingInfo {
    /// A ring that is enabled, of a port without a front end.
    pub(super) fn own(size: u16) -> Self {
        Self { size, enabled: true, fault: None, err: None }
    }
}

impl Link {
    /// What is known now.
    pub fn info(&self) -> LinkInfo {
        self.lock().clone()
    }

    /// A PMD found the ring broken: notes it and tells the front end.
    pub fn broke(&self, vring: u16, fault: RingFault) {
        let mut info = self.lock();
        let Some(ring) = info.rings.get_mut(&vring) else { return };
        ring.fault = Some(fault);
        if let Some(err) = &ring.err {
            // One that blocks is the front end's own loss.
            let _ = err.signal_foreign();
        }
        *info.faults.entry(fault.name()).or_default() += 1;
    }

    fn lock(&self) -> MutexGuard<'_, LinkInfo> {
        // Every change is one assignment: a panic elsewhere leaves nothing half done.
        self.info.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The control side of one vhost-user port.
#[derive(Debug)]
pub struct VhostUserPort {
    vport: Arc<Vport>,
    pmds: Arc<Pmds>,
}

impl VhostUserPort {
    /// The device of `vport`, whose rings `pmds` poll.
    pub fn new(vport: Arc<Vport>, pmds: Arc<Pmds>) -> Self {
        Self { vport, pmds }
    }

    fn owner(&self, index: u16) -> u32 {
        self.vport.tx[usize::from(index / 2)].owner.load(Ordering::Relaxed)
    }

    fn visit(&self, index: u16) {
        self.pmds.visit(self.owner(index), &self.vport, index / 2);
    }
}

impl VhostUserPort {
    /// Puts a sound ring where the PMDs find it; `wake` says when there are frames to take.
    ///
    /// # Errors
    /// There is no such ring, or the PMD can not watch `wake`; the ring is stopped.
    pub(super) fn adopt(
        &mut self,
        index: u16,
        mut live: LiveRing,
        wake: Option<Wake>,
        info: RingInfo,
    ) -> Result<(), RingError> {
        let refused = |why: &dyn std::fmt::Display| RingError(format!("Vring {index}: {why}"));
        let cell = self.vport.cell(index).ok_or_else(|| refused(&"this port has no such ring"))?;
        if !is_receive(index) {
            let queue = index / 2;
            let owner = self.pmds.assign(&self.vport, queue);
            let tag = ring_tag(self.vport.id, queue);
            let watch = |wake| Watch::new(self.pmds.epoll(owner), wake, tag);
            live.watch = wake.map(watch).transpose().map_err(|errno| {
                self.pmds.unassign(&self.vport, queue);
                refused(&format_args!("its kick can not be watched: {errno}"))
            })?;
            self.vport.tx[usize::from(queue)].owner.store(owner, Ordering::Relaxed);
        }
        cell.with(|slot| *slot = Slot::Live(Box::new(live)));
        self.vport.link.lock().rings.insert(index, info);
        if is_receive(index) {
            self.vport.count_receive_rings();
        } else {
            self.visit(index);
        }
        Ok(())
    }
}

fn has(features: u64, bit: u32) -> bool {
    features & (1 << bit) != 0
}

impl Device for VhostUserPort {
    fn features(&self) -> u64 {
        let mq = if self.queue_pairs() > 1 { 1 << VIRTIO_NET_F_MQ } else { 0 };
        FEATURES | mq
    }

    fn queue_pairs(&self) -> u16 {
        self.vport.tx.len() as u16
    }

    fn start_ring(&mut self, setup: RingSetup, map: Arc<GuestMap>) -> Result<(), RingError> {
        let index = setup.index;
        let refused = |why: &dyn std::fmt::Display| RingError(format!("Vring {index}: {why}"));
        let direction = if is_receive(index) { Direction::Receive } else { Direction::Transmit };
        let ring = Ring::new(&setup, &map, direction).map_err(|err| refused(&err))?;
        let live = LiveRing {
            map: Arc::clone(&map),
            ring,
            enabled: setup.enabled,
            abilities: if is_receive(index) {
                Abilities::of_receiver(setup.features)
            } else {
                Abilities::of_sender(setup.features)
            },
            mergeable: has(setup.features, VIRTIO_NET_F_MRG_RXBUF),
            watch: None,
        };
        let info =
            RingInfo { size: setup.size, enabled: setup.enabled, fault: None, err: setup.err };
        self.adopt(index, live, setup.kick.map(Wake::Kick), info)?;
        self.vport.link.lock().regions = map.regions();
        Ok(())
    }

    fn stop_ring(&mut self, index: u16) -> Option<u32> {
        let base = match self.vport.cell(index)?.take() {
            Slot::Empty => return None,
            Slot::Live(live) => live.ring.base(),
            Slot::Broken(base, _) => base,
        };
        self.vport.link.lock().rings.remove(&index);
        if is_receive(index) {
            self.vport.count_receive_rings();
        } else {
            self.pmds.unassign(&self.vport, index / 2);
            // So that it lets go of the vport.
            self.visit(index);
        }
        Some(base)
    }

    fn set_ring_enabled(&mut self, index: u16, on: bool) {
        let Some(cell) = self.vport.cell(index) else { return };
        if cell.with(|slot| slot.live().map(|live| live.enabled = on)).is_none() {
            return;
        }
        if let Some(ring) = self.vport.link.lock().rings.get_mut(&index) {
            ring.enabled = on;
        }
        if is_receive(index) {
            self.vport.count_receive_rings();
        } else if on {
            self.visit(index);
        }
    }

    fn set_call(&mut self, index: u16, call: Option<EventFd>) {
        if let Some(cell) = self.vport.cell(index) {
            cell.with(|slot| {
                if let Some(live) = slot.live() {
                    live.ring.set_call(call);
                }
            });
        }
    }

    fn link(&mut self, event: LinkEvent) {
        let mut link = self.vport.link.lock();
        if event == LinkEvent::Waiting {
            link.regions.clear();
        }
        link.event = Some(event);
    }
}
