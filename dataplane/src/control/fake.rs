//! A switch without frames: the control interface over plain maps.
//!
//! Tests of the API, the client and slipwayctl talk to it, over the same server and socket as to the
//! real one. It keeps the promises of [`Control`] that can be kept without a data path.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use slipway_api::{
    ApiError, Created, Decision, Direction, EgressStats, ErrorCode, ExplainReply, FdbEntry,
    FdbFilter, FdbKind, FdbList, Health, HealthStatus, IngressStats, LinkState, Mac, MemoryRegion,
    Pmd, PmdList, PmdRing, Policy, Port, PortDefaults, PortList, PortSpec, PortStats, Rebalanced,
    Ring, RingMove, RingState, Stage, StageSamples, StaticEntry, Stats, UnknownUnicast, Vni,
    VniList, VniSpec,
};

use super::{Control, refusal};
use crate::attach::{AttachConfig, Attachments, PodPort, PodPorts};
use crate::config::NetworkConfig;

/// Ports that fit.
const MAX_PORTS: usize = 8;
/// Ageing of segments without settings, in seconds.
const AGEING_S: u32 = 300;

/// The fake; its ports are never connected unless [`FakeSwitch::connect`] says so.
#[derive(Debug)]
pub struct FakeSwitch {
    defaults: PortDefaults,
    attachments: Attachments,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next_id: u32,
    ports: BTreeMap<String, Port>,
    /// Ports of attachments, and whose they are.
    pods: BTreeMap<String, String>,
    vnis: BTreeMap<u32, VniSpec>,
    fdb: BTreeMap<(u32, Mac), FdbEntry>,
    problems: Vec<String>,
    reads: u64,
    pmd_reads: u64,
}

impl FakeSwitch {
    /// A switch without ports, with the network of a configuration that names none.
    #[must_use]
    pub fn new(defaults: PortDefaults) -> Self {
        Self::with_networks(defaults, vec![NetworkConfig::preset()])
    }

    /// A switch without ports, with these networks. Its attachments end with it.
    ///
    /// # Panics
    /// Never: without a store there is nothing to open.
    #[must_use]
    pub fn with_networks(defaults: PortDefaults, networks: Vec<NetworkConfig>) -> Self {
        let socket_dir = defaults.socket_dir.with_file_name("vm");
        let attachments = AttachConfig { networks, socket_dir, store_dir: None };
        let attachments = Attachments::open(attachments).expect("there is nothing to open");
        Self { defaults, attachments, state: Mutex::default() }
    }

    /// Lets a front end connect to `port`: one queue pair runs on PMD 0.
    ///
    /// # Panics
    /// When there is no such port.
    pub fn connect(&self, port: &str) {
        let mut state = self.state();
        let port = state.ports.get_mut(port).expect("the test created the port");
        port.link = LinkState::Up;
        port.features = vec!["VIRTIO_F_VERSION_1".into(), "VIRTIO_NET_F_MRG_RXBUF".into()];
        port.memory = vec![MemoryRegion { guest_address: 0, size_bytes: 256 << 20 }];
        let ring = |index: u16| Ring {
            index,
            direction: if index.is_multiple_of(2) { Direction::Rx } else { Direction::Tx },
            size: 256,
            enabled: true,
            state: RingState::Running,
            pmd: Some(0),
        };
        port.rings = (0..2 * port.spec.queue_pairs).map(ring).collect();
    }

    /// Breaks `port` for `reason`.
    ///
    /// # Panics
    /// When there is no such port.
    pub fn break_port(&self, port: &str, reason: &str) {
        let mut state = self.state();
        let port = state.ports.get_mut(port).expect("the test created the port");
        port.link = LinkState::Broken;
        port.reason = Some(reason.to_owned());
    }

    /// Learns an address, as from a frame.
    pub fn learn(&self, vni: u32, mac: Mac, port: &str) {
        let entry =
            FdbEntry { vni, mac, port: port.into(), kind: FdbKind::Learned, age_s: Some(3) };
        self.state().fdb.insert((vni, mac), entry);
    }

    /// From now on the switch is not well.
    pub fn ail(&self, problem: &str) {
        self.state().problems.push(problem.to_owned());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PodPorts for FakeSwitch {
    fn open_pod(&self, port: PodPort) -> Result<(), ApiError> {
        let name = port.spec.name.clone();
        if self.get_port(&name).is_some() {
            return Err(refusal::port_exists(&name));
        }
        self.create_port(port.spec)?;
        self.state().pods.insert(name, port.user);
        Ok(())
    }

    fn close_pod(&self, name: &str) {
        let mut state = self.state();
        state.pods.remove(name);
        state.remove_port(name);
    }

    fn set_policy(
        &self,
        name: &str,
        policy: Option<Policy>,
    ) -> Result<(Port, Option<Policy>), ApiError> {
        let mut state = self.state();
        let port = state.ports.get_mut(name).ok_or_else(|| ApiError::not_found("port", name))?;
        let before = std::mem::replace(&mut port.spec.policy, policy);
        Ok((port.clone(), before))
    }

    fn pod_link(&self, name: &str) -> Option<LinkState> {
        self.state().ports.get(name).map(|port| port.link)
    }
}

impl Control for FakeSwitch {
    fn create_port(&self, spec: PortSpec) -> Result<(Port, Created), ApiError> {
        let spec = spec.apply(&self.defaults)?;
        let mut state = self.state();
        if let Some(existing) = state.ports.get(&spec.name) {
            existing.spec.same_as(&spec)?;
            return Ok((existing.clone(), Created::Existing));
        }
        if let Some(mac) = spec.mac.filter(|mac| state.fdb.contains_key(&(spec.vni, *mac))) {
            return Err(ApiError::new(
                ErrorCode::Conflict,
                format!("{mac} is behind another port"),
                "Give each guest an address of its own",
            )
            .about("mac", mac));
        }
        if state.ports.len() == MAX_PORTS {
            return Err(ApiError::new(
                ErrorCode::LimitReached,
                format!("There are {MAX_PORTS} ports, as many as are allowed"),
                "Delete a port first",
            ));
        }
        if let Some(mac) = spec.mac {
            let entry = FdbEntry {
                vni: spec.vni,
                mac,
                port: spec.name.clone(),
                kind: FdbKind::Static,
                age_s: None,
            };
            state.fdb.insert((spec.vni, mac), entry);
        }
        state.next_id += 1;
        let port = Port {
            id: state.next_id,
            link: LinkState::Waiting,
            reason: None,
            features: Vec::new(),
            rings: Vec::new(),
            memory: Vec::new(),
            spec,
        };
        state.ports.insert(port.spec.name.clone(), port.clone());
        Ok((port, Created::New))
    }

    fn list_ports(&self) -> PortList {
        PortList { ports: self.state().ports.values().cloned().collect() }
    }

    fn get_port(&self, name: &str) -> Option<Port> {
        self.state().ports.get(name).cloned()
    }

    fn delete_port(&self, name: &str) -> Result<(), ApiError> {
        let mut state = self.state();
        if let Some(user) = state.pods.get(name) {
            return Err(refusal::port_of(user, name));
        }
        state.remove_port(name).ok_or_else(|| ApiError::not_found("port", name))
    }

    fn list_vnis(&self) -> VniList {
        let state = self.state();
        let used = state.ports.values().map(|port| port.spec.vni);
        let mut numbers: Vec<u32> = state.vnis.keys().copied().chain(used).collect();
        numbers.sort_unstable();
        numbers.dedup();
        VniList { vnis: numbers.into_iter().map(|vni| state.vni(vni)).collect() }
    }

    fn put_vni(&self, vni: u32, spec: VniSpec) -> Result<(Vni, Created), ApiError> {
        let mut state = self.state();
        let created = match state.vnis.insert(vni, spec) {
            None => Created::New,
            Some(_) => Created::Existing,
        };
        Ok((state.vni(vni), created))
    }

    fn delete_vni(&self, vni: u32) -> Result<(), ApiError> {
        let mut state = self.state();
        if state.ports.values().any(|port| port.spec.vni == vni) {
            return Err(ApiError::new(
                ErrorCode::InUse,
                format!("VNI {vni} has ports"),
                "Delete its ports first",
            )
            .about("vni", vni));
        }
        state.vnis.remove(&vni).map(drop).ok_or_else(|| ApiError::not_found("vni", vni))
    }

    fn list_fdb(&self, filter: &FdbFilter) -> FdbList {
        let state = self.state();
        let matching = || state.fdb.values().filter(|entry| filter.matches(entry));
        FdbList {
            entries: matching().take(filter.limit()).cloned().collect(),
            matching: matching().count() as u64,
        }
    }

    fn add_fdb(&self, wanted: &StaticEntry) -> Result<(FdbEntry, Created), ApiError> {
        let mut state = self.state();
        let port = state
            .ports
            .get(&wanted.port)
            .ok_or_else(|| ApiError::not_found("port", &wanted.port))?;
        if port.spec.vni != wanted.vni {
            return Err(ApiError::invalid(
                "vni",
                wanted.vni,
                format!("Port {} belongs to VNI {}", wanted.port, port.spec.vni),
                "Add the entry to the port's own segment",
            ));
        }
        let key = (wanted.vni, wanted.mac);
        if let Some(existing) = state.fdb.get(&key).filter(|entry| entry.kind == FdbKind::Static) {
            if existing.port == wanted.port {
                return Ok((existing.clone(), Created::Existing));
            }
            return Err(ApiError::new(
                ErrorCode::Conflict,
                format!("{} is behind port {}", wanted.mac, existing.port),
                "Delete that entry first",
            )
            .about("port", &wanted.port));
        }
        let entry = FdbEntry {
            vni: wanted.vni,
            mac: wanted.mac,
            port: wanted.port.clone(),
            kind: FdbKind::Static,
            age_s: None,
        };
        state.fdb.insert(key, entry.clone());
        Ok((entry, Created::New))
    }

    fn delete_fdb(&self, vni: u32, mac: Mac) -> Result<(), ApiError> {
        let mut state = self.state();
        let owner =
            state.ports.values().find(|port| port.spec.vni == vni && port.spec.mac == Some(mac));
        if let Some(port) = owner {
            return Err(ApiError::new(
                ErrorCode::InUse,
                format!("{mac} is the address of port {}", port.spec.name),
                "Delete the port instead",
            )
            .about("mac", mac));
        }
        state.fdb.remove(&(vni, mac)).map(drop).ok_or_else(|| ApiError::not_found("mac", mac))
    }

    fn attachments(&self) -> (&Attachments, &dyn PodPorts) {
        (&self.attachments, self)
    }

    /// Each read finds every port a thousand frames further.
    fn stats(&self) -> Stats {
        let mut state = self.state();
        state.reads += 1;
        let frames = state.reads * 1000;
        let of_port = |port: &Port| PortStats {
            port: port.spec.name.clone(),
            vni: port.spec.vni,
            ingress: IngressStats {
                received_frames: frames,
                received_bytes: frames * 64,
                forwarded_frames: frames - 14,
                answered_frames: 4,
                drops: BTreeMap::from([("no_route".into(), 7), ("spoofed".into(), 2)]),
            },
            egress: EgressStats {
                offered_frames: frames,
                delivered_frames: frames - 5,
                delivered_bytes: (frames - 5) * 64,
                drops: BTreeMap::from([("ring_full".into(), 5)]),
            },
            in_hand_frames: 1,
            ring_faults: BTreeMap::from([("avail_jump".into(), 1)]),
        };
        Stats { ports: state.ports.values().map(of_port).collect() }
    }

    /// Each read finds the thread twenty thousand frames further.
    fn pmds(&self) -> PmdList {
        let mut state = self.state();
        state.pmd_reads += 1;
        let reads = state.pmd_reads;
        let rings_of = |port: &Port| {
            let ring = |ring: &Ring| PmdRing {
                port: port.spec.name.clone(),
                ring: ring.index,
                load_permille: 750,
                is_pinned: !port.spec.pmds.is_empty(),
            };
            port.rings
                .iter()
                .filter(|ring| ring.direction == Direction::Tx)
                .map(ring)
                .collect::<Vec<_>>()
        };
        let pmd = Pmd {
            id: 0,
            core: Some(1),
            rings: state.ports.values().flat_map(rings_of).collect(),
            busy_cycles: 3_000_000 * reads,
            idle_cycles: 1_000_000 * reads,
            polls: 4000 * reads,
            bursts: 1000 * reads,
            frames: 20_000 * reads,
            sleeps: 2 * reads,
            wakeups: reads,
            kick_check_cycles: 400_000 * reads,
            sleep_cycles: 600_000 * reads,
            polled_rings: 1,
            armed_rings: 0,
            samples: StageSamples {
                bursts: 60 * reads,
                frames: 1200 * reads,
                take_cycles: 36_000 * reads,
                judge_cycles: 48_000 * reads,
                deliver_cycles: 60_000 * reads,
                settle_cycles: 24_000 * reads,
                empty_looks: 100 * reads,
                empty_cycles: 4_000 * reads,
            },
        };
        PmdList { cycles_hz: 2_000_000_000, pmds: vec![pmd] }
    }

    fn rebalance(&self) -> Rebalanced {
        let state = self.state();
        // As if there had been another PMD.
        let moved =
            |port: &Port| RingMove { port: port.spec.name.clone(), ring: 1, from: 1, to: 0 };
        let movable = state.ports.values().filter(|port| port.link == LinkState::Up);
        Rebalanced { moves: movable.filter(|port| port.spec.pmds.is_empty()).map(moved).collect() }
    }

    fn explain(&self, port: &str, frame: &[u8]) -> Result<ExplainReply, ApiError> {
        let state = self.state();
        let from = state.ports.get(port).ok_or_else(|| ApiError::not_found("port", port))?;
        let dst = frame.first_chunk().copied().map_or(Mac::BROADCAST, Mac);
        let stage = |stage: &str, answer: &str| Stage {
            stage: stage.into(),
            answer: answer.into(),
            detail: None,
        };
        let parsed = Stage {
            detail: Some(format!("{} bytes to {dst}", frame.len())),
            ..stage("parse", "pass")
        };
        let (answer, decision) = match state.fdb.get(&(from.spec.vni, dst)) {
            Some(entry) => (stage("fdb", "known"), Decision::Output { port: entry.port.clone() }),
            None if dst.is_multicast() => {
                let others = state.ports.keys().filter(|name| *name != port).cloned().collect();
                (stage("fdb", "group address"), Decision::Flood { ports: others })
            }
            None => (stage("fdb", "unknown"), Decision::Drop { reason: "no_route".into() }),
        };
        Ok(ExplainReply { stages: vec![parsed, answer], decision })
    }

    fn health(&self) -> Health {
        let state = self.state();
        let in_state = |link| state.ports.values().filter(|port| port.link == link).count() as u32;
        let is_well = state.problems.is_empty();
        Health {
            status: if is_well { HealthStatus::Ok } else { HealthStatus::Degraded },
            problems: state.problems.clone(),
            uptime_s: 61,
            ports: state.ports.len() as u32,
            ports_up: in_state(LinkState::Up),
            ports_broken: in_state(LinkState::Broken),
            pmds: 1,
        }
    }
}

impl State {
    fn remove_port(&mut self, name: &str) -> Option<()> {
        self.ports.remove(name)?;
        self.fdb.retain(|_, entry| entry.port != name);
        Some(())
    }

    fn vni(&self, vni: u32) -> Vni {
        let spec = self.vnis.get(&vni).cloned().unwrap_or_default();
        let mut ports = self.ports.values().filter(|port| port.spec.vni == vni).peekable();
        let has_ports = ports.peek().is_some();
        let learns = ports.any(|port| port.spec.mac.is_none() || port.spec.learning);
        Vni {
            vni,
            unknown_unicast: spec.unknown_unicast,
            floods_unknown: match spec.unknown_unicast {
                UnknownUnicast::Auto => has_ports && learns,
                UnknownUnicast::Drop => false,
                UnknownUnicast::Flood => true,
            },
            ageing_s: spec.ageing_s.unwrap_or(AGEING_S),
            ports: self.ports.values().filter(|port| port.spec.vni == vni).count() as u32,
            fdb_entries: self.fdb.keys().filter(|(of, _)| *of == vni).count() as u32,
        }
    }
}
