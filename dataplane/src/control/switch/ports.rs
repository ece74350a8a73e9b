//! Ports come and go: each change is whole, or nothing has changed.

use std::net::IpAddr;
use std::sync::Arc;

use slipway_api::{
    ApiError, AppliedPortSpec, ErrorCode, LinkState, Policy, Port, PortMode, PortSpec,
};

use crate::attach::{PodPort, PodPorts};
use crate::control::{housekeeping, refusal, view};
use crate::policy::rules::Rules;
use crate::port::vhost_user::VhostUserPort;
use crate::port::{Vport, VportRules};
use crate::spoof::Bound;
use crate::vhost::socket::SocketMode;
use crate::wire;

use super::Switch;
use super::fdb::refused_static;
use super::state::{PortEntry, State};

/// Longest frame that is no TSO or USO segment when a port has no MTU: any IP packet.
const ANY_FRAME_BYTES: u32 = crate::vring::MAX_FRAME_BYTES;
/// Ethernet header with two VLAN tags, in bytes: what a frame may have beyond its MTU.
const L2_OVERHEAD_BYTES: u32 = 14 + 8;

impl Switch {
    /// Everything that can be refused before anything is changed.
    pub(super) fn check_new(&self, state: &State, spec: &AppliedPortSpec) -> Result<(), ApiError> {
        let ports = state.ports.values().filter(|entry| entry.tap.is_none()).count();
        if spec.mode != PortMode::Tap && ports >= self.config.max_ports {
            return Err(ApiError::new(
                ErrorCode::LimitReached,
                format!("This switch has its {} ports", self.config.max_ports),
                "Delete ports, or raise `max_ports` under [ports] in slipwayd.toml",
            )
            .about("name", &spec.name));
        }
        let pmds = self.pmds.threads().len() as u32;
        if let Some(unknown) = spec.pmds.iter().find(|pmd| **pmd >= pmds) {
            let rule = match pmds {
                1 => "This switch has one PMD: 0".to_owned(),
                _ => format!("This switch has PMDs 0 to {}", pmds - 1),
            };
            return Err(ApiError::invalid(
                "pmds",
                unknown,
                rule,
                "Name one that `slipwayctl pmd list` shows, or add cores under [pmd] in slipwayd.toml",
            ));
        }
        if let Some(other) = state.has_socket(&spec.socket) {
            return Err(ApiError::new(
                ErrorCode::Conflict,
                format!("Port {other} has this socket"),
                "Give each port a socket of its own",
            )
            .about("socket", spec.socket.display()));
        }
        let has = |entry: &PortEntry, address: &IpAddr| entry.spec.addresses.contains(address);
        let taken = spec.addresses.iter().find_map(|address| {
            let other = state.members(spec.vni).find(|entry| has(entry, address))?;
            Some((address, &other.spec.name))
        });
        match taken {
            None => Ok(()),
            Some((address, other)) => Err(ApiError::new(
                ErrorCode::Conflict,
                format!("Port {other} of this VNI is bound to this address"),
                "Give each guest of a VNI addresses of its own, or delete that port first",
            )
            .about("addresses", address)),
        }
    }

    /// Makes the vport, pins its address and publishes it: a ring may start as soon as it returns.
    pub(super) fn enter(
        &self,
        state: &mut State,
        spec: AppliedPortSpec,
        user: Option<String>,
    ) -> Result<Arc<Vport>, ApiError> {
        let segment = Self::segment(state, spec.vni)?;
        let mtu_bytes = |mtu| u32::from(mtu) + L2_OVERHEAD_BYTES;
        let rules = VportRules {
            segment,
            mac: spec.mac.map(|mac| wire::Mac(mac.0).key()),
            anti_spoof: spec.anti_spoof,
            bound: spec
                .mac
                .filter(|_| spec.anti_spoof && !spec.addresses.is_empty())
                .map(|mac| Box::new(Bound::new(wire::Mac(mac.0), &spec.addresses))),
            learning: spec.learning,
            mac_quota: spec.mac_quota,
            max_frame_bytes: spec.mtu.map_or(ANY_FRAME_BYTES, mtu_bytes),
        };
        let id = state.free_port_id();
        let vport = Vport::new(id, spec.name.clone(), rules, spec.queue_pairs);
        let vport = Arc::new(vport.pinned_to(&spec.pmds));
        if let Some(mac) = spec.mac {
            let pinned = self.shared.fdb.insert_static(segment, wire::Mac(mac.0), id);
            pinned.map_err(|refused| refused_static(state, refused, mac))?;
        }
        let rules = spec.policy.as_ref().map(|policy| Arc::new(Rules::new(policy)));
        let entry =
            PortEntry { spec, vport: Arc::clone(&vport), rules, tap: None, netns: None, user };
        state.insert(entry);
        self.publish(state);
        Ok(vport)
    }

    /// Undoes [`Self::enter`], of a port none of whose rings runs.
    pub(super) fn withdraw(&self, state: &mut State, name: &str) {
        if let Some(entry) = state.remove(name) {
            self.shared.fdb.remove_port(entry.vport.id);
        }
    }

    fn add(
        &self,
        state: &mut State,
        spec: AppliedPortSpec,
        user: Option<String>,
    ) -> Result<Port, ApiError> {
        let (name, path) = (spec.name.clone(), spec.socket.clone());
        if let Some(netns) = spec.netns.clone() {
            self.add_netns(state, spec, &netns, user)?;
            return Ok(view::port(&state.ports[&name].spec, &state.ports[&name].vport));
        }
        let mode = match spec.mode {
            PortMode::Listen => self.config.listen,
            PortMode::Connect => SocketMode::Connect,
            PortMode::Tap | PortMode::Netns => {
                unreachable!("`PortSpec::check` refuses the mode, or asks for a namespace")
            }
        };
        let vport = self.enter(state, spec, user)?;
        let device = VhostUserPort::new(Arc::clone(&vport), Arc::clone(&self.pmds));
        if let Err(err) = self.vhost.add_port(vport.id.0, &path, mode, Box::new(device)) {
            self.withdraw(state, &name);
            return Err(ApiError::new(
                ErrorCode::InvalidValue,
                format!("The port's socket can not be made: {err}"),
                "Choose a path in a folder that slipwayd may write to",
            )
            .about("socket", path.display()));
        }
        Ok(view::port(&state.ports[&name].spec, &state.ports[&name].vport))
    }

    /// Adds a port of which nothing is there yet; on an error nothing has changed.
    pub(super) fn add_new(
        &self,
        state: &mut State,
        spec: AppliedPortSpec,
        user: Option<String>,
    ) -> Result<Port, ApiError> {
        let vni = spec.vni;
        self.check_new(state, &spec)?;
        let added = self.add(state, spec, user);
        if added.is_err() {
            self.tidy(state, vni);
            self.publish(state);
        }
        added
    }

    pub(super) fn remove(&self, state: &mut State, name: &str) {
        let Some(entry) = state.remove(name) else { return };
        // Rings first: on return no PMD touches the guest's memory. Then the tables, so that no
        // PMD finds the port; then its addresses.
        self.vhost.remove_port(entry.vport.id.0);
        if let Some(netns) = &entry.netns {
            netns.close();
        }
        self.publish(state);
        housekeeping::forget_port(&self.vhost, &self.shared, entry.vport.id);
        self.tidy(state, entry.spec.vni);
        self.publish(state);
    }
}

impl PodPorts for Switch {
    fn open_pod(&self, port: PodPort) -> Result<(), ApiError> {
        let spec = PortSpec { addresses: port.addresses, ..port.spec };
        let spec = spec.apply(&self.config.ports)?;
        let mut state = self.lock();
        if state.ports.contains_key(&spec.name) {
            return Err(refusal::port_exists(&spec.name));
        }
        self.add_new(&mut state, spec, Some(port.user)).map(drop)
    }

    fn close_pod(&self, name: &str) {
        self.remove(&mut self.lock(), name);
    }

    fn set_policy(
        &self,
        name: &str,
        policy: Option<Policy>,
    ) -> Result<(Port, Option<Policy>), ApiError> {
        let mut state = self.lock();
        let entry = state.ports.get_mut(name).ok_or_else(|| ApiError::not_found("port", name))?;
        let before = entry.spec.policy.clone();
        if before != policy {
            entry.rules = policy.as_ref().map(|policy| Arc::new(Rules::new(policy)));
            entry.spec.policy = policy;
            self.publish(&state);
        }
        let entry = &state.ports[name];
        Ok((view::port(&entry.spec, &entry.vport), before))
    }

    fn pod_link(&self, name: &str) -> Option<LinkState> {
        self.lock().ports.get(name).map(|entry| view::link(&entry.vport).0)
    }
}
