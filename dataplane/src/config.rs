//! The configuration of slipwayd: one TOML file, every key with a default.
//!
//! ```text
//! file --parse--> keys known? --serde--> types right? --check--> in range? --> Config
//!        line         line, nearest key      line           line, remedy
//! ```
//! The whole file is judged before any of it is used, so a refused file changes nothing. Defaults
//! stand in the `Default` of each section; `configs/slipwayd.toml` repeats and explains them, and a
//! test compares the two.

mod file;
mod networks;

use std::{fmt, net::IpAddr, os::unix::ffi::OsStrExt, path::PathBuf};

use ipnet::IpNet;

use serde::{Deserialize, Serialize};
use slipway_api::{
    MAX_AGEING_S, MAX_MAC_QUOTA, MAX_QUEUE_PAIRS, MAX_SOCKET_PATH_BYTES, PortDefaults, PortSpec,
    check_interface, gateway_mac,
};

use crate::attach::AttachConfig;
use crate::gateway::GatewaySpec;

pub use file::{ConfigError, Place};
pub use networks::{Excluded, NetworkConfig, RouteConfig};

/// Where slipwayd looks for its configuration unless it is told.
pub const DEFAULT_PATH: &str = "/etc/slipway/slipwayd.toml";

/// The most frames taken from a vring at once; sizes the PMDs' scratch memory.
pub const MAX_BURST_FRAMES: u16 = crate::vring::BURST as u16;
/// The highest core number, as `cpu_set_t` has it (CPU_SET(3)).
const MAX_CORE: usize = 1023;
/// The most PMD threads.
const MAX_PMDS: usize = 128;
/// The most FDB entries: 20 bytes each.
const MAX_FDB_ENTRIES: u32 = 1 << 20;
/// The most ports; each needs some seven file descriptors.
const MAX_PORTS: u32 = 65_536;
/// The most bytes that a vring may be ahead of others: some 100 µs of copying.
const MAX_QUANTUM_BYTES: u32 = 1 << 20;
/// The longest a PMD may spin without work, in microseconds: ten seconds.
const MAX_IDLE_US: u32 = 10_000_000;
/// The longest pause between two looks at the loads of PMDs, in seconds: a day.
const MAX_INTERVAL_S: u32 = 86_400;
/// The longest time-out of the vhost-user protocol, in milliseconds: a minute.
const MAX_VHOST_MS: u32 = 60_000;

/// The configuration of one slipwayd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How the control API is reached.
    pub api: ApiConfig,
    /// The polling threads.
    pub pmd: PmdConfig,
    /// Limits and places of ports.
    pub ports: PortsConfig,
    /// The forwarding database.
    pub fdb: FdbConfig,
    /// What is logged, and how.
    pub log: LogConfig,
    /// Time limits of the vhost-user protocol.
    pub vhost: VhostConfig,
    /// The host's own door to the network whose gateway it is.
    pub gateway: GatewayConfig,
    /// The networks that pods may join.
    pub networks: Vec<NetworkConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            api: ApiConfig::default(),
            pmd: PmdConfig::default(),
            ports: PortsConfig::default(),
            fdb: FdbConfig::default(),
            log: LogConfig::default(),
            vhost: VhostConfig::default(),
            gateway: GatewayConfig::default(),
            networks: vec![NetworkConfig::preset()],
        }
    }
}

/// `[api]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApiConfig {
    /// The UNIX socket of the API.
    pub socket: PathBuf,
    /// The group, by name or number, whose members may use the API besides root and our own user.
    pub group: Option<String>,
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self { socket: slipway_api::DEFAULT_SOCKET.into(), group: None }
    }
}

/// `[pmd]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PmdConfig {
    /// The cores to poll on: one PMD thread for each.
    pub cores: Vec<usize>,
    /// Frames taken from a vring at once.
    pub burst_frames: u16,
    /// Bytes that a vring may send while others wait, before it is their turn to send as many.
    pub quantum_bytes: u32,
    /// How long a vring is polled without a frame before its guest is asked to kick instead, and so
    /// a PMD without work before it sleeps, in microseconds; 0 never.
    pub idle_before_sleep_us: u32,
    /// How often a PMD that has work looks for kicks of vrings that it does not poll, in
    /// microseconds; 0 after every round.
    pub kick_check_us: u32,
    /// How often vrings are moved between PMDs by their load, in seconds; 0 never.
    pub rebalance_interval_s: u32,
    /// How much load that must take off the PMD that has most, in hundredths of a core's time.
    pub rebalance_gain_percent: u32,
}

impl Default for PmdConfig {
    fn default() -> Self {
        Self {
            cores: vec![1],
            burst_frames: 32,
            quantum_bytes: 48_576,
            idle_before_sleep_us: 200,
            kick_check_us: 25,
            rebalance_interval_s: 5,
            rebalance_gain_percent: 10,
        }
    }
}

/// `[ports]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PortsConfig {
    /// The folder of everything slipwayd makes at run time; ports' sockets go to `ports` in it.
    pub run_dir: PathBuf,
    /// The most ports.
    pub max_ports: u32,
    /// The most queue pairs of one port.
    pub max_queue_pairs: u16,
}

impl Default for PortsConfig {
    fn default() -> Self {
        Self { run_dir: "/run/slipway".into(), max_ports: 1024, max_queue_pairs: MAX_QUEUE_PAIRS }
    }
}

/// `[fdb]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FdbConfig {
    /// The most entries of all segments together, static and learned.
    pub capacity: u32,
    /// How long a learned entry lives without traffic, in seconds; a segment may have its own.
    pub ageing_s: u32,
    /// The most addresses a port may learn; a port may have its own.
    pub mac_quota: u32,
}

impl Default for FdbConfig {
    fn default() -> Self {
        Self { capacity: 65_536, ageing_s: 300, mac_quota: 64 }
    }
}

/// `[log]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// The least urgent level that is written.
    pub level: LogLevel,
    /// The form of a line.
    pub format: LogFormat,
}

/// How urgent a log line is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Something does not work.
    Error,
    /// Something will not work for long, or a peer misbehaves.
    Warn,
    /// What an operator wants to know: ports come and go.
    #[default]
    Info,
    /// Steps of the control plane.
    Debug,
    /// Messages of the control plane.
    Trace,
}

impl From<LogLevel> for tracing::Level {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// `[vhost]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VhostConfig {
    /// How long the rest of a message may take once its first byte is there, in milliseconds.
    pub message_deadline_ms: u32,
    /// The longest wait between two attempts to connect to a VMM's socket, in milliseconds. The
    /// first is one millisecond, and each is twice the one before.
    pub reconnect_max_ms: u32,
}

impl Default for VhostConfig {
    fn default() -> Self {
        Self { message_deadline_ms: 1000, reconnect_max_ms: 100 }
    }
}

/// `[gateway]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewayConfig {
    /// Whether this host is the gateway of the network with `host_gateway`.
    pub enabled: bool,
    /// The name of the interface, and of its port.
    pub interface: String,
    /// How pods reach the world in the name of the host.
    pub masquerade: MasqueradeBy,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        let masquerade = MasqueradeBy::default();
        Self { enabled: false, interface: "slipway0".to_owned(), masquerade }
    }
}

/// What rewrites the source addresses of pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MasqueradeBy {
    /// Nothing: pods reach as far as the host, or further by rules and routes of others.
    #[default]
    Off,
    /// One nftables table, set when slipwayd starts and removed when it ends.
    Nftables,
}

/// A value that cannot be used: which, why, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadValue {
    /// The key with its section: `pmd.burst_frames`, `networks[1].ranges`.
    pub key: String,
    /// The value as it would be written.
    pub value: String,
    /// What is allowed.
    pub rule: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for BadValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, value, rule, remedy } = self;
        write!(f, "{key} = {value} cannot be used: {rule}; {remedy}")
    }
}

impl std::error::Error for BadValue {}

impl Config {
    /// Judges every value that its type alone does not.
    ///
    /// # Errors
    /// The first value that cannot be used.
    pub fn check(&self) -> Result<(), BadValue> {
        self.api.check()?;
        self.pmd.check()?;
        self.ports.check()?;
        self.fdb.check()?;
        self.vhost.check()?;
        self.gateway.check()?;
        networks::check(&self.networks)
    }

    /// The gateway to make: there is one if it is enabled and a network wants it.
    #[must_use]
    pub fn gateway(&self) -> Option<GatewaySpec> {
        let network = self.networks.iter().find(|network| network.host_gateway);
        let network = network.filter(|_| self.gateway.enabled)?;
        let range_of = |address: &IpAddr| network.ranges.iter().find(|net| net.contains(address));
        let with_length = |address: IpAddr| {
            range_of(&address).and_then(|range| IpNet::new(address, range.prefix_len()).ok())
        };
        Some(GatewaySpec {
            interface: self.gateway.interface.clone(),
            vni: network.vni,
            mtu: network.mtu,
            mac: gateway_mac(network.vni),
            addresses: network.gateways_in_force().into_iter().filter_map(with_length).collect(),
            masquerade: self.gateway.masquerade == MasqueradeBy::Nftables,
        })
    }

    /// What attachments are made of.
    #[must_use]
    pub fn attachments(&self) -> AttachConfig {
        let mut networks = self.networks.clone();
        for network in &mut networks {
            // Without the tap nobody would answer for the host: pods get no route to it.
            network.host_gateway &= self.gateway.enabled;
        }
        AttachConfig {
            networks,
            socket_dir: self.ports.run_dir.join("vm"),
            store_dir: Some(self.ports.run_dir.join("attachments")),
        }
    }

    /// What fills in the fields that a request for a port leaves out.
    #[must_use]
    pub fn port_defaults(&self) -> PortDefaults {
        PortDefaults {
            socket_dir: self.ports.run_dir.join("ports"),
            mac_quota: self.fdb.mac_quota,
            max_queue_pairs: self.ports.max_queue_pairs,
        }
    }
}

impl ApiConfig {
    fn check(&self) -> Result<(), BadValue> {
        absolute("api.socket", &self.socket)?;
        if self.socket.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
            return Err(bad(
                "api.socket",
                self.socket.display(),
                "a socket path has at most 107 bytes",
                "choose a shorter one",
            ));
        }
        match &self.group {
            Some(group) if group.is_empty() => Err(bad(
                "api.group",
                "\"\"",
                "a group has a name",
                "leave the key out for no group",
            )),
            _ => Ok(()),
        }
    }
}

impl PmdConfig {
    fn check(&self) -> Result<(), BadValue> {
        let cores = || format!("{:?}", self.cores);
        if !(1..=MAX_PMDS).contains(&self.cores.len()) {
            return Err(bad(
                "pmd.cores",
                cores(),
                format!("1 to {MAX_PMDS} cores poll"),
                "name at least one core, as in [1]",
            ));
        }
        if let Some(core) = self.cores.iter().find(|core| **core > MAX_CORE) {
            return Err(bad(
                "pmd.cores",
                cores(),
                format!("core {core} is above {MAX_CORE}"),
                "see /proc/cpuinfo for the cores there are",
            ));
        }
        let is_repeated = |index: usize| self.cores[..index].contains(&self.cores[index]);
        if let Some(index) = (0..self.cores.len()).find(|index| is_repeated(*index)) {
            return Err(bad(
                "pmd.cores",
                cores(),
                format!("core {} is named twice", self.cores[index]),
                "two PMD threads on one core only take turns; name it once",
            ));
        }
        within("pmd.burst_frames", self.burst_frames, 1, MAX_BURST_FRAMES, "32 is usual")?;
        let quantum = self.quantum_bytes;
        within("pmd.quantum_bytes", quantum, 64, MAX_QUANTUM_BYTES, "48576 is the default")?;
        let sleep = self.idle_before_sleep_us;
        within("pmd.idle_before_sleep_us", sleep, 0, MAX_IDLE_US, "200 is usual, 0 never sleeps")?;
        within("pmd.kick_check_us", self.kick_check_us, 0, MAX_IDLE_US, "25 is usual")?;
        let interval = self.rebalance_interval_s;
        within("pmd.rebalance_interval_s", interval, 0, MAX_INTERVAL_S, "5 is usual, 0 is never")?;
        let gain = self.rebalance_gain_percent;
        within("pmd.rebalance_gain_percent", gain, 1, 100, "10 is the default")
    }
}

impl PortsConfig {
    fn check(&self) -> Result<(), BadValue> {
        absolute("ports.run_dir", &self.run_dir)?;
        within("ports.max_ports", self.max_ports, 1, MAX_PORTS, "1024 is the default")?;
        let pairs = self.max_queue_pairs;
        within("ports.max_queue_pairs", pairs, 1, MAX_QUEUE_PAIRS, "128 is the default")
    }
}

impl FdbConfig {
    fn check(&self) -> Result<(), BadValue> {
        within("fdb.capacity", self.capacity, 16, MAX_FDB_ENTRIES, "65536 is the default")?;
        within("fdb.ageing_s", self.ageing_s, 1, MAX_AGEING_S, "300 is usual")?;
        let most = MAX_MAC_QUOTA.min(self.capacity);
        within("fdb.mac_quota", self.mac_quota, 1, most, "64 is the default")
    }
}

impl VhostConfig {
    fn check(&self) -> Result<(), BadValue> {
        let deadline = self.message_deadline_ms;
        within("vhost.message_deadline_ms", deadline, 1, MAX_VHOST_MS, "1000 is the default")?;
        let max = self.reconnect_max_ms;
        within("vhost.reconnect_max_ms", max, 1, MAX_VHOST_MS, "100 is the default")
    }
}

impl GatewayConfig {
    fn check(&self) -> Result<(), BadValue> {
        let is_port = PortSpec::named(&self.interface).check().is_ok();
        if is_port && check_interface(&self.interface).is_ok() {
            return Ok(());
        }
        Err(bad(
            "gateway.interface",
            format_args!("{:?}", self.interface),
            "an interface has a name of 1 to 15 characters of A-Z a-z 0-9 . _ -",
            "slipway0 is the default",
        ))
    }
}

fn bad(
    key: impl Into<String>,
    value: impl fmt::Display,
    rule: impl Into<String>,
    remedy: impl Into<String>,
) -> BadValue {
    BadValue { key: key.into(), value: value.to_string(), rule: rule.into(), remedy: remedy.into() }
}

fn within<T: PartialOrd + fmt::Display>(
    key: &'static str,
    value: T,
    least: T,
    most: T,
    remedy: &str,
) -> Result<(), BadValue> {
    if (&least..=&most).contains(&&value) {
        return Ok(());
    }
    Err(bad(key, value, format!("it is {least} to {most}"), remedy))
}

fn absolute(key: &'static str, path: &std::path::Path) -> Result<(), BadValue> {
    if path.is_absolute() && !path.as_os_str().as_bytes().iter().any(u8::is_ascii_control) {
        return Ok(());
    }
    Err(bad(
        key,
        format_args!("{path:?}"),
        "it is an absolute path without control characters",
        "begin it with /",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_can_be_used() {
        assert_eq!(Config::default().check(), Ok(()));
    }

    /// What `check` says after `change` to the defaults.
    fn refused(change: impl FnOnce(&mut Config)) -> String {
        let mut config = Config::default();
        change(&mut config);
        let error = config.check().expect_err("the value cannot be used");
        assert!(!error.rule.is_empty() && !error.remedy.is_empty(), "{error}");
        error.key
    }

    #[test]
    fn every_value_out_of_range_is_refused_by_its_key() {
        assert_eq!(refused(|c| c.api.socket = "api.sock".into()), "api.socket");
        assert_eq!(refused(|c| c.api.socket = format!("/{:0107}", 0).into()), "api.socket");
        assert_eq!(refused(|c| c.api.group = Some(String::new())), "api.group");
        assert_eq!(refused(|c| c.pmd.cores = vec![]), "pmd.cores");
        assert_eq!(refused(|c| c.pmd.cores = vec![1024]), "pmd.cores");
        assert_eq!(refused(|c| c.pmd.cores = vec![1, 2, 1]), "pmd.cores");
        assert_eq!(refused(|c| c.pmd.cores = (0..129).collect()), "pmd.cores");
        assert_eq!(refused(|c| c.pmd.burst_frames = 0), "pmd.burst_frames");
        assert_eq!(refused(|c| c.pmd.burst_frames = 33), "pmd.burst_frames");
        assert_eq!(refused(|c| c.pmd.kick_check_us = u32::MAX), "pmd.kick_check_us");
        assert_eq!(refused(|c| c.pmd.idle_before_sleep_us = u32::MAX), "pmd.idle_before_sleep_us");
        assert_eq!(refused(|c| c.ports.run_dir = "run".into()), "ports.run_dir");
        assert_eq!(refused(|c| c.ports.max_ports = 0), "ports.max_ports");
        assert_eq!(refused(|c| c.ports.max_queue_pairs = 129), "ports.max_queue_pairs");
        assert_eq!(refused(|c| c.fdb.capacity = 15), "fdb.capacity");
        assert_eq!(refused(|c| c.fdb.ageing_s = 0), "fdb.ageing_s");
        assert_eq!(refused(|c| c.fdb.mac_quota = 65_537), "fdb.mac_quota");
        for name in ["", "sixteen-is-too-l", "a/b", "tap%d", "a b", ".."] {
            assert_eq!(refused(|c| c.gateway.interface = name.into()), "gateway.interface");
        }
        assert_eq!(refused(|c| c.vhost.message_deadline_ms = 0), "vhost.message_deadline_ms");
        assert_eq!(refused(|c| c.vhost.reconnect_max_ms = 60_001), "vhost.reconnect_max_ms");
    }

    #[test]
    fn a_gateway_has_the_addresses_of_the_network_that_wants_it() {
        let mut config = Config::default();
        assert_eq!(config.gateway(), None, "none unless it is asked for");
        config.gateway.enabled = true;
        let gateway = config.gateway().expect("the default network wants one");
        assert_eq!(gateway.addresses, ["10.88.0.1/16".parse().expect("an address")]);
        assert_eq!((gateway.interface.as_str(), gateway.mtu, gateway.vni), ("slipway0", 1500, 0));
        assert!(!gateway.masquerade && gateway.check().is_ok());
        config.networks[0].host_gateway = false;
        assert_eq!(config.gateway(), None, "none unless a network wants it");
    }

    #[test]
    fn never_sleeping_is_allowed() {
        let mut config = Config::default();
        config.pmd.idle_before_sleep_us = 0;
        assert_eq!(config.check(), Ok(()));
    }

    #[test]
    fn the_error_names_key_value_rule_and_remedy() {
        let mut config = Config::default();
        config.pmd.burst_frames = 100;
        let text = config.check().expect_err("too long").to_string();
        assert_eq!(text, "pmd.burst_frames = 100 cannot be used: it is 1 to 32; 32 is usual");
    }
}
