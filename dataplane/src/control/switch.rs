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

mod fdb;
mod netns;
mod ports;
mod state;
mod tap;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use slipway_api::{
    ApiError, Created, ErrorCode, ExplainReply, FdbEntry, FdbFilter, FdbList, Health, HealthStatus,
    LinkState, Mac, PmdList, Port, PortDefaults, PortList, PortSpec, Rebalanced, StaticEntry,
    Stats, Vni, VniList, VniSpec,
};

use crate::attach::{Attachments, PodPorts, StoreError};
use crate::clock;
use crate::fdb::Fdb;
use crate::flow::HashSeed;
use crate::pmd::{PmdConfig, Pmds, Reports, Shared};
use crate::tables::{Segment, Tables, UnknownUnicast};
use crate::vhost::socket::{SocketMode, VhostThread};

use super::{Control, explain, housekeeping, refusal, view};

use netns::NetnsPorts;
use state::{State, VniEntry};
pub use tap::TapSpec;

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
    netns: NetnsPorts,
    attachments: Attachments,
    started_s: u32,
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
        housekeeping::plan(&vhost, &pmds, config.pmd.rebalance_interval_s)?;
        let netns = NetnsPorts::watched_by(&vhost)?;
        let state = Mutex::new(State::default());
        let attachments = Attachments::default();
        let started_s = clock::seconds();
        Ok(Self { config, state, shared, pmds, vhost, netns, attachments, started_s })
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

    /// The PMD threads and the plan of their rings.
    pub fn pmd_threads(&self) -> &Arc<Pmds> {
        &self.pmds
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
        let mut rules = vec![None; slots];
        for entry in state.ports.values() {
            let at = entry.vport.id.0 as usize;
            tables.ports[at] = Some(Arc::clone(&entry.vport));
            rules[at].clone_from(&entry.rules);
        }
        tables.policies = self.shared.tables.load().policies.next(rules);
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
        self.fdb_list(filter)
    }

    fn add_fdb(&self, entry: &StaticEntry) -> Result<(FdbEntry, Created), ApiError> {
        self.fdb_add(entry)
    }

    fn delete_fdb(&self, vni: u32, mac: Mac) -> Result<(), ApiError> {
        self.fdb_delete(vni, mac)
    }

    fn attachments(&self) -> (&Attachments, &dyn PodPorts) {
        (&self.attachments, self)
    }

    fn stats(&self) -> Stats {
        let state = self.lock();
        Stats { ports: state.ports.values().map(|e| view::stats(&e.spec, &e.vport)).collect() }
    }

    fn pmds(&self) -> PmdList {
        view::pmds(&self.pmds)
    }

    fn rebalance(&self) -> Rebalanced {
        view::rebalanced(&self.pmds.rebalance())
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
