//! What was asked for, and what follows from it for the snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use slipway_api::{AppliedPortSpec, PortMode, UnknownUnicast as Policy, VniSpec};

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
    /// By name. They come by [`State::insert`] and go by [`State::remove`].
    pub(super) ports: BTreeMap<String, PortEntry>,
    /// Who has which socket: a look-up for each new port, not a comparison with all.
    sockets: BTreeMap<PathBuf, String>,
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

    /// Adds a port of which [`Self::has_socket`] knows nothing.
    pub(super) fn insert(&mut self, entry: PortEntry) {
        let AppliedPortSpec { name, socket, mode, .. } = &entry.spec;
        if matches!(mode, PortMode::Listen | PortMode::Connect) {
            self.sockets.insert(socket.clone(), name.clone());
        }
        self.ports.insert(name.clone(), entry);
    }

    /// Takes a port out.
    pub(super) fn remove(&mut self, name: &str) -> Option<PortEntry> {
        let entry = self.ports.remove(name)?;
        if self.sockets.get(&entry.spec.socket).is_some_and(|owner| owner == name) {
            self.sockets.remove(&entry.spec.socket);
        }
        Some(entry)
    }

    /// Which port has a socket.
    pub(super) fn has_socket(&self, socket: &Path) -> Option<&str> {
        self.sockets.get(socket).map(String::as_str)
    }

    /// Who has which address, as far as ports are bound to them.
    pub(super) fn neighbours(&self) -> Neighbours {
        // `PortSpec::check`: who has addresses has a MAC address.
        let bound = self.ports.values().filter(|entry| !entry.spec.addresses.is_empty());
        let bound = bound.filter_map(|entry| Some((entry, wire::Mac(entry.spec.mac?.0))));
        let known = bound.flat_map(|(PortEntry { spec, vport, .. }, mac)| {
            let neighbour = Neighbour { mac, port: vport.id };
            let link_local = IpAddr::from(wire::ndp::link_local(mac));
            let addresses = spec.addresses.iter().copied().chain([link_local]);
            addresses.map(move |address| ((vport.rules.segment, address), neighbour))
        });
        let mut neighbours = Neighbours::from_iter(known);
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
        // Of one more than there are, one is free.
        let mut taken = vec![false; self.ports.len() + 1];
        for entry in self.ports.values() {
            if let Some(place) = taken.get_mut(entry.vport.id.0 as usize) {
                *place = true;
            }
        }
        PortId(taken.iter().position(|is_taken| !is_taken).map_or(u32::MAX, |id| id as u32))
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
