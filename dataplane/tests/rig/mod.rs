//! A real switch in this process, with real sockets, PMD threads and guests.
//!
//! ```text
//! Rig       the switch and its folder of sockets
//! Station   a port, its guest, and the address that the guest uses
//! Honest    two stations that talk without pause on a thread of their own, and lose nothing
//! ```
//! PMD threads fall asleep after [`IDLE_US`], so every pause of a test is a chance to lose a
//! wake-up. Waiting has one deadline, [`TIMEOUT`]: a test that is through sooner goes on sooner, and
//! one that hangs fails.
#![allow(dead_code, unused_imports, reason = "every test file uses a part of it")]

mod honest;
mod station;

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dataplane::control::Control;
use dataplane::control::switch::{Switch, SwitchConfig};
use dataplane::pmd::PmdConfig;
use dataplane::testing::raw::RawPeer;
use dataplane::testing::{Deadline, Guest, GuestConfig};
use dataplane::vhost::socket::{SocketMode, VhostConfig, VhostThread};
use slipway_api::{
    FdbEntry, FdbFilter, LinkState, Pmd, Port, PortDefaults, PortSpec, PortStats, UnknownUnicast,
    VniSpec,
};

pub use honest::Honest;
pub use station::{Station, mac, stamp_of, stamped};

/// How long anything may take. Far beyond what a loaded machine needs.
pub const TIMEOUT: Duration = Duration::from_secs(40);
/// How long a ring is polled without a frame before it is armed, in microseconds.
pub const IDLE_US: u32 = 50;
/// Addresses that a port may learn.
pub const QUOTA: u32 = 64;

/// A switch, and the folder where its sockets are.
#[derive(Debug)]
pub struct Rig {
    pub switch: Switch,
    // After the switch, whose sockets are in it.
    dir: tempfile::TempDir,
}

/// The last core of this process.
fn last_cores(n: usize) -> Vec<usize> {
    let ids: Vec<_> = core_affinity::get_core_ids().unwrap().iter().map(|core| core.id).collect();
    // On a machine of one core, two PMDs share it.
    ids.iter().rev().cycle().take(n).copied().collect()
}

/// Waits until `holds`; `what` says what never came about.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Deadline::after(TIMEOUT);
    while !holds() {
        assert!(!deadline.passed(), "never came about: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A switch with PMD threads on the last `pmds` cores.
pub fn start_switch(pmds: usize, sockets: &Path) -> Switch {
    start_switch_of(pmds, PmdConfig::default(), sockets)
}

fn start_switch_of(pmds: usize, config: PmdConfig, sockets: &Path) -> Switch {
    let config = SwitchConfig {
        cores: last_cores(pmds),
        pmd: PmdConfig { idle_before_sleep_us: IDLE_US, ..config },
        ports: PortDefaults { socket_dir: sockets.into(), mac_quota: QUOTA, max_queue_pairs: 8 },
        listen: SocketMode::Listen { permissions: 0o600, group: None },
        max_ports: 1024,
        fdb_capacity: 1 << 12,
        ageing_s: 300,
    };
    Switch::start(config, VhostThread::spawn(VhostConfig::default()).unwrap(), [1, 2]).unwrap()
}

impl Rig {
    /// A switch with one PMD.
    pub fn start() -> Self {
        Self::with_pmds(1)
    }

    /// A switch with `pmds` PMDs.
    pub fn with_pmds(pmds: usize) -> Self {
        Self::with_pmds_of(pmds, PmdConfig::default())
    }

    /// A switch with `pmds` PMDs that behave as `config` says, but for [`IDLE_US`].
    pub fn with_pmds_of(pmds: usize, config: PmdConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { switch: start_switch_of(pmds, config, dir.path()), dir }
    }

    /// A path in the folder of the sockets.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Adds a port.
    pub fn port(&self, spec: PortSpec) -> Port {
        self.switch.create_port(spec).unwrap().0
    }

    /// The port of that name, which there is.
    pub fn show(&self, name: &str) -> Port {
        self.switch.get_port(name).unwrap()
    }

    /// Adds the port of station `n` to segment `vni`, with its fixed address, and a guest.
    pub fn station(&self, n: u32, vni: u32, config: GuestConfig) -> Station {
        let mac = slipway_api::Mac(mac(n));
        let spec = PortSpec { vni, mac: Some(mac), ..PortSpec::named(format!("s{n}-{vni}")) };
        self.station_of(n, spec, config)
    }

    /// As [`Self::station`], but the port knows no address and learns.
    pub fn learner(&self, n: u32, vni: u32, config: GuestConfig) -> Station {
        let spec = PortSpec { vni, ..PortSpec::named(format!("s{n}-{vni}")) };
        self.station_of(n, spec, config)
    }

    /// Adds a port as `spec` says, and a guest with the address of station `n`.
    pub fn station_of(&self, n: u32, spec: PortSpec, config: GuestConfig) -> Station {
        let port = self.port(spec);
        let guest = Guest::connect(&port.spec.socket, config).unwrap();
        self.await_link(&port.spec.name, LinkState::Up);
        Station::new(port.spec.name, n, port.spec.socket, guest)
    }

    /// As [`Self::station`], and a way to say anything in the session of its front end.
    pub fn station_and_session(&self, n: u32, vni: u32, config: GuestConfig) -> (Station, RawPeer) {
        let mac = Some(slipway_api::Mac(mac(n)));
        let port = self.port(PortSpec { vni, mac, ..PortSpec::named(format!("s{n}-{vni}")) }).spec;
        let stream = UnixStream::connect(&port.socket).unwrap();
        let raw = RawPeer::over(stream.try_clone().unwrap()).unwrap();
        let guest = Guest::over(stream, config).unwrap();
        (Station::new(port.name, n, port.socket, guest), raw)
    }

    /// Waits until the link of a port is in that state.
    pub fn await_link(&self, port: &str, link: LinkState) {
        eventually(&format!("{port} {link}"), || self.show(port).link == link);
    }

    /// What the segment does with unknown unicast, and how long it remembers.
    pub fn policy(&self, vni: u32, unknown_unicast: UnknownUnicast, ageing_s: Option<u32>) {
        let spec = VniSpec { unknown_unicast, ageing_s, ..VniSpec::default() };
        self.switch.put_vni(vni, spec).unwrap();
    }

    /// The FDB entries behind a port.
    pub fn fdb(&self, port: &str) -> Vec<FdbEntry> {
        let filter = FdbFilter { port: Some(port.into()), ..FdbFilter::default() };
        self.switch.list_fdb(&filter).entries
    }

    /// The first PMD thread.
    pub fn pmd(&self) -> Pmd {
        self.switch.pmds().pmds.swap_remove(0)
    }

    /// The counters of a port.
    pub fn stats(&self, port: &str) -> PortStats {
        let stats = self.switch.stats().ports.into_iter().find(|stats| stats.port == port);
        stats.unwrap()
    }

    /// How many frames from a port were dropped for `reason`.
    pub fn dropped(&self, port: &str, reason: &str) -> u64 {
        self.stats(port).ingress.drops.get(reason).copied().unwrap_or(0)
    }

    /// Every frame of these ports, which are quiet, is accounted for. Waits for those in hand.
    pub fn assert_conserved_of(&self, ports: &[&str]) {
        eventually("nothing in hand, and every frame accounted for", || {
            ports.iter().all(|port| is_conserved(&self.stats(port)))
        });
    }

    /// As [`Self::assert_conserved_of`] for all ports, and over the switch as a whole, of which no
    /// port with traffic may have been deleted.
    pub fn assert_conserved(&self) {
        eventually("nothing in hand, and every frame accounted for", || {
            self.switch.stats().ports.iter().all(is_conserved)
        });
        let ports = self.switch.stats().ports;
        let sum = |count: fn(&PortStats) -> u64| ports.iter().map(count).sum::<u64>();
        let forwarded = sum(|port| port.ingress.forwarded_frames);
        let delivered = sum(|port| port.egress.delivered_frames);
        assert!(delivered >= forwarded, "{forwarded} forwarded, {delivered} delivered");
        let received = sum(|port| port.ingress.received_frames);
        let offered = sum(|port| port.egress.offered_frames);
        let copies = ports.len().saturating_sub(1) as u64;
        assert!(offered <= received * copies, "{received} received, {offered} offered");
    }

    /// As [`Self::assert_conserved`], when no frame was flooded: each forwarded once, not more.
    pub fn assert_conserved_unicast(&self) {
        self.assert_conserved();
        let ports = self.switch.stats().ports;
        let forwarded: u64 = ports.iter().map(|port| port.ingress.forwarded_frames).sum();
        let delivered: u64 = ports.iter().map(|port| port.egress.delivered_frames).sum();
        assert_eq!(forwarded, delivered, "{ports:#?}");
    }
}

fn is_conserved(port: &PortStats) -> bool {
    let (into, out) = (&port.ingress, &port.egress);
    port.in_hand_frames == 0
        && into.received_frames
            == into.forwarded_frames + into.answered_frames + into.drops.values().sum::<u64>()
        && out.offered_frames == out.delivered_frames + out.drops.values().sum::<u64>()
}

/// Open file descriptors of this process.
pub fn open_fds() -> usize {
    // The one that lists them is open, too.
    std::fs::read_dir("/proc/self/fd").unwrap().count() - 1
}
