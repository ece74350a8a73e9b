//! The switch as the API sees it: desired state in, new snapshot out.
//!
//! ```text
//! request -> check -> change the state -> FDB entries, socket -> publish the snapshot
//!              any step fails: everything before it is undone, nothing has changed
//! ```
//!
//! # Threads
//! The API's thread changes the state under one lock. The vhost control thread never takes that
//! lock: what it does on its own (learning, ageing, broken rings: [`super::housekeeping`]) goes by
//! the published snapshot. So the API may wait for it while it holds the lock.

mod tap;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use slipway_api::{
    ApiError, AppliedPortSpec, Attachment, AttachmentList, AttachmentSpec, Created, ErrorCode,
    ExplainReply, FdbEntry, FdbFilter, FdbKind, FdbList, Health, HealthStatus, LinkState, Mac,
    NetworkList, PmdList, Port, PortDefaults, PortList, PortMode, PortSpec, StaticEntry, Stats,
    UnknownUnicast as Policy, Vni, VniList, VniSpec,
};

use crate::attach::{Attachments, PodPort, PodPorts, StoreError};
use crate::clock;
use crate::fdb::{Entry, Fdb, Kind, Refused};
use crate::flow::HashSeed;
use crate::neighbour::{Neighbour, Neighbours};
use crate::pmd::{PmdConfig, Pmds, Reports, Shared};
use crate::port::tap::TapPort;
use crate::port::vhost_user::VhostUserPort;
use crate::port::{PortId, Vport, VportRules};
use crate::spoof::Bound;
use crate::tables::{Segment, Tables, UnknownUnicast};
use crate::vhost::socket::{SocketMode, VhostThread};
use crate::wire;

use super::{Control, explain, housekeeping, refusal, view};

pub use tap::TapSpec;

/// Longest frame that is no TSO or USO segment when a port has no MTU: any IP packet.
const ANY_FRAME_BYTES: u32 = crate::vring::MAX_FRAME_BYTES;
/// Ethernet header with two VLAN tags, in bytes: what a frame may have beyond its MTU.
const L2_OVERHEAD_BYTES: u32 = 14 + 8;
/// Reports from PMDs in flight: sightings of new addresses, mostly.
const REPORTS: usize = 4096;

/// What a switch is made of; comes from the configuration.
#[derive(Debug, Clone)]
pub struct SwitchConfig {
    /// Cores of the PMD threads.
    pub cores: Vec<usize>,
    /// How PMD threads behave.
    pub pmd: PmdConfig,
    /// What fills in the fields that a port's specification leaves out.
    pub ports: PortDefaults,
    /// Who may connect to a port that listens.
    pub listen: SocketMode,
    /// The most ports there may be.
    pub max_ports: usize,
    /// Entries the FDB has room for.
    pub fdb_capacity: usize,
    /// How long a learned address lives without traffic, in seconds, where a VNI says nothing else.
    pub ageing_s: u32,
}

/// The switch: state, PMD threads, and the vhost control thread.
#[derive(Debug)]
pub struct Switch {
    config: SwitchConfig,
    state: Mutex<State>,
    shared: Shared,
    pmds: Arc<Pmds>,
    vhost: VhostThread,
    attachments: Attachments,
    started_s: u32,
}

/// What was asked for, and the numbers given to it.
#[derive(Debug, Default)]
struct State {
    ports: BTreeMap<String, PortEntry>,
    vnis: BTreeMap<u32, VniEntry>,
}

#[derive(Debug)]
struct PortEntry {
    spec: AppliedPortSpec,
    vport: Arc<Vport>,
    /// What is on the far side in place of a socket.
    tap: Option<TapPort>,
    /// Whose it is, if it is not of those who ask for ports.
    user: Option<String>,
}

/// A segment is there while it has settings or ports.
#[derive(Debug)]
struct VniEntry {
    segment: u16,
    settings: Option<VniSpec>,
}

impl State {
    fn members(&self, vni: u32) -> impl Iterator<Item = &PortEntry> {
        self.ports.values().filter(move |entry| entry.spec.vni == vni)
    }

    /// Who has which address, as far as ports are bound to them.
    fn neighbours(&self) -> Neighbours {
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

    fn name_of(&self, id: PortId) -> Option<&str> {
        self.ports.values().find(|e| e.vport.id == id).map(|entry| entry.spec.name.as_str())
    }

    fn vni_of(&self, segment: u16) -> Option<u32> {
        self.vnis.iter().find(|(_, entry)| entry.segment == segment).map(|(&vni, _)| vni)
    }

    fn free_port_id(&self) -> PortId {
        let taken: std::collections::BTreeSet<_> =
            self.ports.values().map(|entry| entry.vport.id.0).collect();
        PortId((0..).find(|id| !taken.contains(id)).unwrap_or(u32::MAX))
    }

    fn free_segment(&self) -> Option<u16> {
        let taken: std::collections::BTreeSet<_> =
            self.vnis.values().map(|entry| entry.segment).collect();
        (0..=u16::MAX).find(|segment| !taken.contains(segment))
    }

    /// What the policy of a segment comes to with the ports there are.
    fn unknown_unicast(&self, vni: u32) -> UnknownUnicast {
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

impl Switch {
    /// Starts the PMD threads and puts the switch together. `vhost` serves the ports' sockets.
    ///
    /// # Errors
    /// A PMD could not start; see [`Pmds::spawn`].
    pub fn start(config: SwitchConfig, vhost: VhostThread, seed: [u64; 2]) -> io::Result<Self> {
        let shared = Shared {
            tables: Arc::new(ArcSwap::from_pointee(Tables::default())),
            fdb: Arc::new(Fdb::new(config.fdb_capacity, HashSeed::new(seed[0]))),
            reports: Arc::new(Reports::new(REPORTS)),
            hash_seed: HashSeed::new(seed[1]),
        };
        let pmds = Arc::new(Pmds::spawn(&config.cores, config.pmd, &shared)?);
        housekeeping::install(&vhost, &shared)?;
        let state = Mutex::new(State::default());
        let attachments = Attachments::default();
        Ok(Self { config, state, shared, pmds, vhost, attachments, started_s: clock::seconds() })
    }

    /// Gives the switch its networks, and pods that were attached before their ports.
    ///
    /// # Errors
    /// The records of attachments cannot be read.
    pub fn with_attachments(mut self, attachments: Attachments) -> Result<Self, StoreError> {
        attachments.restore(&self)?;
        self.attachments = attachments;
        Ok(self)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A request that panicked has its changes undone or not begun: see `create_port`.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Builds the snapshot that `state` asks for, and publishes it.
    fn publish(&self, state: &State) {
        let mut tables = Tables { neighbours: state.neighbours(), ..Tables::default() };
        let slots = state.ports.values().map(|e| e.vport.id.0 as usize + 1).max().unwrap_or(0);
        tables.ports.resize(slots, None);
        for entry in state.ports.values() {
            tables.ports[entry.vport.id.0 as usize] = Some(Arc::clone(&entry.vport));
        }
        let slots = state.vnis.values().map(|e| usize::from(e.segment) + 1).max().unwrap_or(0);
        tables.segments.resize(slots, None);
        for (&vni, entry) in &state.vnis {
            tables.segments[usize::from(entry.segment)] = Some(Segment {
                vni,
                unknown_unicast: state.unknown_unicast(vni),
                ageing_s: self.ageing_s(entry),
                members: state.members(vni).map(|entry| entry.vport.id).collect(),
            });
        }
        self.shared.tables.store(Arc::new(tables));
    }

    fn ageing_s(&self, vni: &VniEntry) -> u32 {
        vni.settings.as_ref().and_then(|s| s.ageing_s).unwrap_or(self.config.ageing_s)
    }

    /// The segment of `vni`, made if there is none.
    fn segment(state: &mut State, vni: u32) -> Result<u16, ApiError> {
        if let Some(entry) = state.vnis.get(&vni) {
            return Ok(entry.segment);
        }
        let segment = state.free_segment().ok_or_else(|| {
            ApiError::new(
                ErrorCode::LimitReached,
                "All 65536 segments of this host are in use",
                "Delete VNIs that have no ports",
            )
            .about("vni", vni)
        })?;
        state.vnis.insert(vni, VniEntry { segment, settings: None });
        Ok(segment)
    }

    /// Forgets a segment that has neither settings nor ports.
    fn tidy(&self, state: &mut State, vni: u32) {
        let unused = state.vnis.get(&vni).is_some_and(|entry| entry.settings.is_none())
            && state.members(vni).next().is_none();
        if unused && let Some(entry) = state.vnis.remove(&vni) {
            self.shared.fdb.remove_segment(entry.segment);
        }
    }

    /// Everything that can be refused before anything is changed.
    fn check_new(&self, state: &State, spec: &AppliedPortSpec) -> Result<(), ApiError> {
        let ports = state.ports.values().filter(|entry| entry.tap.is_none()).count();
        if spec.mode != PortMode::Tap && ports >= self.config.max_ports {
            return Err(ApiError::new(
                ErrorCode::LimitReached,
                format!("This switch has its {} ports", self.config.max_ports),
                "Delete ports, or raise `max_ports` under [ports] in slipwayd.toml",
            )
            .about("name", &spec.name));
        }
        let has_socket =
            |e: &&PortEntry| e.spec.mode != PortMode::Tap && e.spec.socket == spec.socket;
        if let Some(other) = state.ports.values().find(has_socket) {
            return Err(ApiError::new(
                ErrorCode::Conflict,
                format!("Port {} has this socket", other.spec.name),
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
    fn enter(
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
        let vport = Arc::new(Vport::new(id, spec.name.clone(), rules, spec.queue_pairs));
        if let Some(mac) = spec.mac {
            let pinned = self.shared.fdb.insert_static(segment, wire::Mac(mac.0), id);
            pinned.map_err(|refused| refused_static(state, refused, mac))?;
        }
        let entry = PortEntry { spec, vport: Arc::clone(&vport), tap: None, user };
        state.ports.insert(entry.spec.name.clone(), entry);
        self.publish(state);
        Ok(vport)
    }

    /// Undoes [`Self::enter`], of a port none of whose rings runs.
    fn withdraw(&self, state: &mut State, name: &str) {
        if let Some(entry) = state.ports.remove(name) {
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
        let mode = match spec.mode {
            PortMode::Listen => self.config.listen,
            PortMode::Connect => SocketMode::Connect,
            PortMode::Tap => unreachable!("`PortSpec::check` refuses the mode"),
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
    fn add_new(
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

    fn remove(&self, state: &mut State, name: &str) {
        let Some(entry) = state.ports.remove(name) else { return };
        // Rings first: on return no PMD touches the guest's memory. Then the tables, so that no
        // PMD finds the port; then its addresses.
        self.vhost.remove_port(entry.vport.id.0);
        self.publish(state);
        housekeeping::forget_port(&self.vhost, &self.shared, entry.vport.id);
        self.tidy(state, entry.spec.vni);
        self.publish(state);
    }

    fn fdb_entry(state: &State, entry: &Entry, now_s: u32) -> Option<FdbEntry> {
        let learned = entry.kind == Kind::Learned;
        Some(FdbEntry {
            vni: state.vni_of(entry.segment)?,
            mac: Mac(entry.mac.0),
            port: state.name_of(entry.port)?.to_owned(),
            kind: if learned { FdbKind::Learned } else { FdbKind::Static },
            age_s: learned.then(|| now_s.saturating_sub(entry.last_seen_s)),
        })
    }

    fn vni_view(&self, state: &State, vni: u32, entry: &VniEntry) -> Vni {
        let settings = entry.settings.clone().unwrap_or_default();
        let entries = self.shared.fdb.entries().filter(|e| e.segment == entry.segment).count();
        Vni {
            vni,
            unknown_unicast: settings.unknown_unicast,
            floods_unknown: state.unknown_unicast(vni) == UnknownUnicast::Flood,
            ageing_s: self.ageing_s(entry),
            ports: state.members(vni).count() as u32,
            fdb_entries: entries as u32,
        }
    }
}

fn refused_static(state: &State, refused: Refused, mac: Mac) -> ApiError {
    match refused {
        Refused::Held { by } => ApiError::new(
            ErrorCode::Conflict,
            format!("Port {} of this VNI has this address", state.name_of(by).unwrap_or("?")),
            "Give each guest of a VNI an address of its own, or remove that entry first",
        ),
        Refused::NotUnicast { .. } => ApiError::new(
            ErrorCode::InvalidValue,
            "A group or zero address can not belong to a port",
            "Use a locally administered unicast address, such as 52:54:00:12:34:56",
        ),
        Refused::NoQuota | Refused::Full => ApiError::new(
            ErrorCode::LimitReached,
            "The forwarding table has no room for this address",
            "Raise `capacity` under [fdb] in slipwayd.toml",
        ),
    }
    .about("mac", mac)
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

    fn pod_link(&self, name: &str) -> Option<LinkState> {
        self.lock().ports.get(name).map(|entry| view::link(&entry.vport).0)
    }
}

impl Control for Switch {
    fn create_port(&self, spec: PortSpec) -> Result<(Port, Created), ApiError> {
        let spec = spec.apply(&self.config.ports)?;
        let mut state = self.lock();
        if let Some(existing) = state.ports.get(&spec.name) {
            existing.spec.same_as(&spec)?;
            return Ok((view::port(&existing.spec, &existing.vport), Created::Existing));
        }
        Ok((self.add_new(&mut state, spec, None)?, Created::New))
    }

    fn list_ports(&self) -> PortList {
        let state = self.lock();
        PortList { ports: state.ports.values().map(|e| view::port(&e.spec, &e.vport)).collect() }
    }

    fn get_port(&self, name: &str) -> Option<Port> {
        let state = self.lock();
        state.ports.get(name).map(|entry| view::port(&entry.spec, &entry.vport))
    }

    fn delete_port(&self, name: &str) -> Result<(), ApiError> {
        let mut state = self.lock();
        let entry = state.ports.get(name).ok_or_else(|| ApiError::not_found("port", name))?;
        if let Some(user) = &entry.user {
            return Err(refusal::port_of(user, name));
        }
        tap::check_deletable(entry)?;
        self.remove(&mut state, name);
        Ok(())
    }

    fn list_vnis(&self) -> VniList {
        let state = self.lock();
        let view = |(&vni, entry)| self.vni_view(&state, vni, entry);
        VniList { vnis: state.vnis.iter().map(view).collect() }
    }

    fn put_vni(&self, vni: u32, spec: VniSpec) -> Result<(Vni, Created), ApiError> {
        let mut state = self.lock();
        Self::segment(&mut state, vni)?;
        let Some(entry) = state.vnis.get_mut(&vni) else {
            return Err(ApiError::not_found("vni", vni));
        };
        let created = if entry.settings.is_none() { Created::New } else { Created::Existing };
        entry.settings = Some(spec);
        self.publish(&state);
        Ok((self.vni_view(&state, vni, &state.vnis[&vni]), created))
    }

    fn delete_vni(&self, vni: u32) -> Result<(), ApiError> {
        let mut state = self.lock();
        let ports = state.members(vni).count();
        let entry = state.vnis.get_mut(&vni).filter(|entry| entry.settings.is_some());
        let entry = entry.ok_or_else(|| ApiError::not_found("vni", vni))?;
        if ports > 0 {
            return Err(ApiError::new(
                ErrorCode::InUse,
                format!("VNI {vni} has {ports} ports"),
                "Delete its ports first",
            )
            .about("vni", vni));
        }
        entry.settings = None;
        self.tidy(&mut state, vni);
        self.publish(&state);
        Ok(())
    }

    fn list_fdb(&self, filter: &FdbFilter) -> FdbList {
        let state = self.lock();
        let now_s = clock::seconds();
        let mut entries: Vec<_> = self
            .shared
            .fdb
            .entries()
            .filter_map(|entry| Self::fdb_entry(&state, &entry, now_s))
            .filter(|entry| filter.matches(entry))
            .collect();
        entries.sort_by_key(|entry| (entry.vni, entry.mac));
        let matching = entries.len() as u64;
        entries.truncate(filter.limit());
        FdbList { entries, matching }
    }

    fn add_fdb(&self, wanted: &StaticEntry) -> Result<(FdbEntry, Created), ApiError> {
        let state = self.lock();
        let port = state.ports.get(&wanted.port);
        let port = port.ok_or_else(|| ApiError::not_found("port", &wanted.port))?;
        if port.spec.vni != wanted.vni {
            return Err(ApiError::invalid(
                "port",
                &wanted.port,
                format!("Port {} belongs to VNI {}", wanted.port, port.spec.vni),
                "Name a port of the same VNI",
            ));
        }
        let (segment, id) = (port.vport.rules.segment, port.vport.id);
        let added = self.shared.fdb.insert_static(segment, wire::Mac(wanted.mac.0), id);
        let new = added.map_err(|refused| refused_static(&state, refused, wanted.mac))?;
        let entry = FdbEntry {
            vni: wanted.vni,
            mac: wanted.mac,
            port: wanted.port.clone(),
            kind: FdbKind::Static,
            age_s: None,
        };
        Ok((entry, if new { Created::New } else { Created::Existing }))
    }

    fn delete_fdb(&self, vni: u32, mac: Mac) -> Result<(), ApiError> {
        let state = self.lock();
        let not_found = || ApiError::not_found("mac", mac);
        let segment = state.vnis.get(&vni).ok_or_else(not_found)?.segment;
        if let Some(owner) = state.members(vni).find(|entry| entry.spec.mac == Some(mac)) {
            return Err(ApiError::new(
                ErrorCode::InUse,
                format!("It is the address of port {}", owner.spec.name),
                "Delete the port, or create it again with another address",
            )
            .about("mac", mac));
        }
        let wanted = |entry: &Entry| entry.segment == segment && entry.mac.0 == mac.0;
        if self.shared.fdb.remove_where(wanted) == 0 { Err(not_found()) } else { Ok(()) }
    }

    fn list_networks(&self) -> NetworkList {
        self.attachments.networks()
    }

    fn list_attachments(&self, owner: Option<&str>) -> AttachmentList {
        self.attachments.list(self, owner)
    }

    fn get_attachment(&self, owner: &str, interface: &str) -> Option<Attachment> {
        self.attachments.get(self, owner, interface)
    }

    fn attach(
        &self,
        owner: &str,
        interface: &str,
        spec: &AttachmentSpec,
    ) -> Result<(Attachment, Created), ApiError> {
        self.attachments.attach(self, owner, interface, spec)
    }

    fn detach(&self, owner: &str, interface: &str) -> Result<(), ApiError> {
        self.attachments.detach(self, owner, interface)
    }

    fn stats(&self) -> Stats {
        let state = self.lock();
        Stats { ports: state.ports.values().map(|e| view::stats(&e.spec, &e.vport)).collect() }
    }

    fn pmds(&self) -> PmdList {
        let state = self.lock();
        let vports: Vec<_> = state.ports.values().map(|entry| &*entry.vport).collect();
        view::pmds(&self.pmds, &vports)
    }

    fn explain(&self, port: &str, frame: &[u8]) -> Result<ExplainReply, ApiError> {
        let state = self.lock();
        let entry = state.ports.get(port).ok_or_else(|| ApiError::not_found("port", port))?;
        Ok(explain::explain(&entry.vport, &self.shared.tables.load(), &self.shared.fdb, frame))
    }

    fn health(&self) -> Health {
        let state = self.lock();
        let links = state.ports.values().map(|entry| view::link(&entry.vport).0);
        let links: Vec<_> = links.collect();
        let count = |wanted| links.iter().filter(|&&link| link == wanted).count() as u32;
        let ended = self.pmds.threads().iter().filter(|pmd| pmd.has_ended());
        let problems: Vec<_> = ended
            .map(|pmd| format!("PMD thread {} on core {} has ended", pmd.index, pmd.core))
            .collect();
        let status = if problems.is_empty() { HealthStatus::Ok } else { HealthStatus::Degraded };
        Health {
            status,
            problems,
            uptime_s: u64::from(clock::seconds().saturating_sub(self.started_s)),
            ports: links.len() as u32,
            ports_up: count(LinkState::Up),
            ports_broken: count(LinkState::Broken),
            pmds: self.pmds.threads().len() as u32,
        }
    }
}
