//! What was asked for, and what follows from it for the snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use slipway_api::{AppliedPortSpec, UnknownUnicast as Policy, VniSpec};

use crate::neighbour::{Neighbour, Neighbours};
use crate::policy::rules::Rules;
use crate::port::netns::NetnsPort;
use crate::port::tap::TapPort;
use crate::port::{PortId, Vport};
use crate::tables::UnknownUnicast;
use crate::wire;

/// What was asked for, and the numbers given to it.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) ports: BTreeMap<String, PortEntry>,
    pub(super) vnis: BTreeMap<u32, VniEntry>,
}

#[derive(Debug)]
pub(super) struct PortEntry {
    pub(super) spec: AppliedPortSpec,
    pub(super) vport: Arc<Vport>,
    /// Its policy, as PMDs ask it; the same ones as long as the policy is.
    pub(super) rules: Option<Arc<Rules>>,
    /// What is on the far side in place of a socket.
    pub(super) tap: Option<TapPort>,
    /// The same, in a network namespace.
    pub(super) netns: Option<Arc<NetnsPort>>,
    /// Whose it is, if it is not of those who ask for ports.
    pub(super) user: Option<String>,
}

/// A segment is there while it has settings or ports.
#[derive(Debug)]
pub(super) struct VniEntry {
    pub(super) segment: u16,
    pub(super) settings: Option<VniSpec>,
}

impl State {
    pub(super) fn members(&self, vni: u32) -> impl Iterator<Item = &PortEntry> {
        self.ports.values().filter(move |entry| entry.spec.vni == vni)
    }

    /// Who has which address, as far as ports are bound to them.
    pub(super) fn neighbours(&self) -> Neighbours {
        let mut neighbours = Neighbours::default();
        for PortEntry { spec, vport, .. } in self.ports.values() {
            // `PortSpec::check`: who has addresses has a MAC address.
            let (Some(mac), false) = (spec.mac, spec.addresses.is_empty()) else { continue };
            let neighbour = Neighbour { mac: wire::Mac(mac.0), port: vport.id };
            let link_local = IpAddr::from(wire::ndp::link_local(neighbour.mac));
            for &address in spec.addresses.iter().chain([&link_local]) {
                neighbours.insert(vport.rules.segment, address, neighbour);
            }
        }
        for (&vni, entry) in &self.vnis {
            if self.members(vni).all(|member| !member.spec.addresses.is_empty()) {
                neighbours.set_complete(entry.segment);
            }
        }
        neighbours
    }

    pub(super) fn name_of(&self, id: PortId) -> Option<&str> {
        self.ports.values().find(|e| e.vport.id == id).map(|entry| entry.spec.name.as_str())
    }

    pub(super) fn vni_of(&self, segment: u16) -> Option<u32> {
        self.vnis.iter().find(|(_, entry)| entry.segment == segment).map(|(&vni, _)| vni)
    }

    pub(super) fn free_port_id(&self) -> PortId {
        let taken: BTreeSet<_> = self.ports.values().map(|entry| entry.vport.id.0).collect();
        PortId((0..).find(|id| !taken.contains(id)).unwrap_or(u32::MAX))
    }

    pub(super) fn free_segment(&self) -> Option<u16> {
        let taken: BTreeSet<_> = self.vnis.values().map(|entry| entry.segment).collect();
        (0..=u16::MAX).find(|segment| !taken.contains(segment))
    }

    /// What the policy of a segment comes to with the ports there are.
    pub(super) fn unknown_unicast(&self, vni: u32) -> UnknownUnicast {
        let settings = self.vnis.get(&vni).and_then(|entry| entry.settings.as_ref());
        match settings.map_or(Policy::Auto, |settings| settings.unknown_unicast) {
            Policy::Drop => UnknownUnicast::Drop,
            Policy::Flood => UnknownUnicast::Flood,
            Policy::Auto => {
                let known = |e: &PortEntry| e.spec.mac.is_some() && !e.spec.learning;
                if self.members(vni).all(known) {
                    UnknownUnicast::Drop
                } else {
                    UnknownUnicast::Flood
                }
            }
        }
    }
}
