//! Ports: what a caller asks for, what it gets, and how the port is doing.
//!
//! ```text
//! PortSpec --check, fill in defaults--> AppliedPortSpec --the switch--> Port { spec, id, link, .. }
//! ```
//! A port is created once and never changed; its link comes and goes with the front end.

use std::{
    fmt,
    net::IpAddr,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{ApiError, ErrorCode, MAX_VNI, Mac};

/// The longest port name, in bytes.
pub const MAX_NAME_BYTES: usize = 64;
/// The most queue pairs of one port: two vrings each, and a vhost-user ring index has 8 bits.
pub const MAX_QUEUE_PAIRS: u16 = 128;
/// The most IP addresses one port may be bound to.
pub const MAX_ADDRESSES: usize = 8;
/// The most addresses one port may learn.
pub const MAX_MAC_QUOTA: u32 = 65_536;
/// The smallest MTU a network device may have, in bytes (RFC 791; virtio 1.3, section 5.1.4.1).
pub const MIN_MTU_BYTES: u16 = 68;
/// The longest path that fits in `sockaddr_un` with its terminating zero, in bytes (unix(7)).
pub const MAX_SOCKET_PATH_BYTES: usize = 107;

/// Who listens on a port's vhost-user socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PortMode {
    /// The switch listens, the VMM connects.
    #[default]
    Listen,
    /// The VMM listens, the switch connects, and again after the VMM or the switch restarted.
    Connect,
    /// There is none: the port is a tap interface of the host. Only slipwayd makes such a port, for
    /// the host's own door to a network; it can be neither asked for nor deleted.
    Tap,
}

impl fmt::Display for PortMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// A port as it is asked for. Everything but the name has a default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PortSpec {
    /// 1 to 64 characters of `A-Z a-z 0-9 . _ -`, but not `.` or `..`. The route names the port, so
    /// a body may leave it out; a body that names another is refused.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schema(max_length = 64, pattern = "^[A-Za-z0-9._-]{1,64}$")]
    pub name: String,
    /// The segment the port belongs to: below 2^24 (RFC 7348, section 5); 0 is the default segment.
    #[serde(default)]
    #[schema(maximum = 16_777_215)]
    pub vni: u32,
    /// The one address of the guest. Without it the port learns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub mac: Option<Mac>,
    /// Absolute path of the vhost-user socket; default `<run_dir>/ports/<name>.sock`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, max_length = 107)]
    pub socket: Option<PathBuf>,
    /// Who listens on that socket.
    #[serde(default)]
    pub mode: PortMode,
    /// Receive and transmit vring pairs, 1 to 128.
    #[serde(default = "one_queue_pair")]
    #[schema(minimum = 1, maximum = 128, default = 1)]
    pub queue_pairs: u16,
    /// Whether source addresses are learned; default: when no `mac` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub learning: Option<bool>,
    /// The most addresses the port may hold in the FDB by learning; default from the configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 1, maximum = 65536)]
    pub mac_quota: Option<u32>,
    /// Whether frames whose source is not `mac` are dropped; default: when `mac` is given and the
    /// port does not learn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub anti_spoof: Option<bool>,
    /// The largest IP packet the guest may send, in bytes; default: not limited by the switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 68)]
    pub mtu: Option<u16>,
    /// The guest's IP addresses, at most 8; they need a `mac`. The switch answers who asks for them
    /// (ARP, neighbour discovery), and with `anti_spoof` the guest may send from no others. Default:
    /// none, and any may be used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>, max_items = 8)]
    pub addresses: Vec<IpAddr>,
}

const fn one_queue_pair() -> u16 {
    1
}

impl PortSpec {
    /// A port with every default.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), queue_pairs: 1, ..Self::default() }
    }

    /// Refuses what is out of range whatever the configuration.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidValue`], with the field to blame.
    pub fn check(&self) -> Result<(), ApiError> {
        check_port_name("name", &self.name)?;
        if self.vni > MAX_VNI {
            return Err(crate::vni::refused("vni", self.vni));
        }
        if let Some(mac) = self.mac.filter(|mac| !mac.is_station()) {
            return Err(not_a_station("mac", mac));
        }
        if let Some(socket) = &self.socket {
            check_socket_path(socket)?;
        }
        if self.mode == PortMode::Tap {
            return Err(ApiError::invalid(
                "mode",
                self.mode,
                "The tap of the host is made by slipwayd alone, when it starts",
                "Choose `listen` or `connect`; see [gateway] in slipwayd.toml for the tap",
            ));
        }
        self.check_addresses()?;
        if !(1..=MAX_QUEUE_PAIRS).contains(&self.queue_pairs) {
            return Err(ApiError::invalid(
                "queue_pairs",
                self.queue_pairs,
                "A port has 1 to 128 queue pairs",
                "Ask for at most as many pairs as the guest has virtual CPUs",
            ));
        }
        if let Some(quota) = self.mac_quota.filter(|quota| !(1..=MAX_MAC_QUOTA).contains(quota)) {
            return Err(ApiError::invalid(
                "mac_quota",
                quota,
                "A port may learn 1 to 65536 addresses",
                "To learn none, set `learning` to false",
            ));
        }
        if let Some(mtu) = self.mtu.filter(|mtu| *mtu < MIN_MTU_BYTES) {
            return Err(ApiError::invalid(
                "mtu",
                mtu,
                "An MTU is 68 to 65535 bytes",
                "Leave it out for no limit, or ask for 1500",
            ));
        }
        if self.anti_spoof == Some(true) {
            if self.mac.is_none() {
                return Err(ApiError::invalid(
                    "anti_spoof",
                    true,
                    "Anti-spoofing compares source addresses with `mac`, which is not given",
                    "Give the port a `mac`, or leave `anti_spoof` out",
                ));
            }
            if self.learning == Some(true) {
                return Err(ApiError::invalid(
                    "anti_spoof",
                    true,
                    "A port cannot both learn other addresses and refuse them",
                    "Set either `anti_spoof` or `learning` to true",
                ));
            }
        }
        Ok(())
    }

    fn check_addresses(&self) -> Result<(), ApiError> {
        let addresses = &self.addresses;
        if addresses.len() > MAX_ADDRESSES {
            return Err(ApiError::invalid(
                "addresses",
                addresses.len(),
                "A port is bound to at most 8 addresses",
                "Name one of each family, or none to allow any",
            ));
        }
        if let (Some(first), None) = (addresses.first(), self.mac) {
            return Err(ApiError::invalid(
                "addresses",
                first,
                "Who asks for an address is answered with `mac`, which is not given",
                "Give the port a `mac`, or leave `addresses` out",
            ));
        }
        let is_host = |ip: &IpAddr| {
            let is_broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
            !(ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() || is_broadcast)
        };
        let is_repeated = |at: usize| addresses[..at].contains(&addresses[at]);
        let bad = (0..addresses.len()).find(|&at| !is_host(&addresses[at]) || is_repeated(at));
        match bad {
            None => Ok(()),
            Some(at) => Err(ApiError::invalid(
                "addresses",
                addresses[at],
                "An address of a guest is a unicast address, and named once",
                "Name the addresses of the guest's interface, without prefix lengths",
            )),
        }
    }

    /// Checks the request and fills in every default.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidValue`], with the field to blame.
    pub fn apply(self, defaults: &PortDefaults) -> Result<AppliedPortSpec, ApiError> {
        self.check()?;
        if self.queue_pairs > defaults.max_queue_pairs {
            return Err(ApiError::invalid(
                "queue_pairs",
                self.queue_pairs,
                format!(
                    "This switch gives a port at most {} queue pairs",
                    defaults.max_queue_pairs
                ),
                "Ask for fewer, or raise `max_queue_pairs` under [ports] in slipwayd.toml",
            ));
        }
        let socket = match self.socket {
            Some(socket) => socket,
            None => {
                let socket = defaults.socket_dir.join(format!("{}.sock", self.name));
                check_socket_path(&socket)?;
                socket
            }
        };
        // An address to check against settles both: such a port neither learns nor lets others by,
        // unless it is asked to.
        let learning = self.learning.unwrap_or(self.mac.is_none() && self.anti_spoof != Some(true));
        Ok(AppliedPortSpec {
            name: self.name,
            vni: self.vni,
            mac: self.mac,
            socket,
            mode: self.mode,
            queue_pairs: self.queue_pairs,
            learning,
            mac_quota: self.mac_quota.unwrap_or(defaults.mac_quota),
            anti_spoof: self.anti_spoof.unwrap_or(self.mac.is_some() && !learning),
            mtu: self.mtu,
            addresses: self.addresses,
        })
    }
}

/// What fills in the fields that a [`PortSpec`] leaves out; comes from the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortDefaults {
    /// The folder of sockets without a path of their own.
    pub socket_dir: PathBuf,
    /// See [`PortSpec::mac_quota`].
    pub mac_quota: u32,
    /// The most queue pairs that this switch gives a port.
    pub max_queue_pairs: u16,
}

/// A port's settings in force: checked, with every default filled in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AppliedPortSpec {
    /// The port's name.
    pub name: String,
    /// The segment it belongs to.
    pub vni: u32,
    /// The one address of the guest, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub mac: Option<Mac>,
    /// The vhost-user socket.
    #[schema(value_type = String)]
    pub socket: PathBuf,
    /// Who listens on it.
    pub mode: PortMode,
    /// Receive and transmit vring pairs offered.
    pub queue_pairs: u16,
    /// Whether source addresses are learned.
    pub learning: bool,
    /// The most addresses the port may hold in the FDB by learning.
    pub mac_quota: u32,
    /// Whether frames whose source is not `mac` are dropped.
    pub anti_spoof: bool,
    /// The largest IP packet the guest may send, in bytes; absent when not limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub mtu: Option<u16>,
    /// The guest's IP addresses, as far as they are known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
}

/// A field in which a wanted port differs from the one that holds the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The field's name.
    pub field: &'static str,
    /// Its value in the port that exists.
    pub existing: String,
    /// Its value in the port that was asked for.
    pub wanted: String,
}

impl AppliedPortSpec {
    /// The first field in which `wanted` differs, or `None` when the two ask for the same port.
    #[must_use]
    pub fn first_difference(&self, wanted: &Self) -> Option<Difference> {
        fn or_none<T: fmt::Display>(value: Option<&T>) -> String {
            value.map_or_else(|| "none".to_owned(), T::to_string)
        }
        let join = |addresses: &[IpAddr]| {
            let texts: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
            if texts.is_empty() { "none".to_owned() } else { texts.join(" ") }
        };
        let fields = |spec: &Self| {
            [
                ("name", spec.name.clone()),
                ("vni", spec.vni.to_string()),
                ("mac", or_none(spec.mac.as_ref())),
                ("socket", spec.socket.display().to_string()),
                ("mode", spec.mode.to_string()),
                ("queue_pairs", spec.queue_pairs.to_string()),
                ("learning", spec.learning.to_string()),
                ("mac_quota", spec.mac_quota.to_string()),
                ("anti_spoof", spec.anti_spoof.to_string()),
                ("mtu", or_none(spec.mtu.as_ref())),
                ("addresses", join(&spec.addresses)),
            ]
        };
        fields(self)
            .into_iter()
            .zip(fields(wanted))
            .find(|(existing, wanted)| existing != wanted)
            .map(|((field, existing), (_, wanted))| Difference { field, existing, wanted })
    }

    /// What a caller is told that asks for `wanted` under this port's name: nothing to refuse when
    /// it asks for the same, a conflict otherwise.
    ///
    /// # Errors
    /// [`ErrorCode::Conflict`], with the differing field and the value asked for.
    pub fn same_as(&self, wanted: &Self) -> Result<(), ApiError> {
        match self.first_difference(wanted) {
            None => Ok(()),
            Some(Difference { field, existing, wanted }) => Err(ApiError::new(
                ErrorCode::Conflict,
                format!("Port {} exists with another {field}: {existing}", self.name),
                "Ask for the same settings, choose another name, or delete the port first",
            )
            .about(field, wanted)),
        }
    }
}

/// Whether a `PUT` made something or found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// It was made by this request (201).
    New,
    /// It was there already, with the same settings (200).
    Existing,
}

/// How far the connection of a port's front end has come.
///
/// ```text
/// Waiting --connected--> Negotiating --rings ready--> Up
///    ^-------------- front end gone ------------------'
/// any --a rule of the ring or the protocol violated--> Broken --front end gone--> Waiting
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    /// Nobody is connected.
    Waiting,
    /// Connected; rings are not set up yet.
    Negotiating,
    /// Frames can flow.
    Up,
    /// Stopped for a violation; `reason` says which.
    Broken,
}

impl fmt::Display for LinkState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// Which way frames go through a vring, seen from the guest (virtio 1.3, section 5.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// The guest receives; the switch fills.
    Rx,
    /// The guest transmits; a PMD polls.
    Tx,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// What a vring is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RingState {
    /// Not set up, or stopped by GET_VRING_BASE.
    Stopped,
    /// Set up and served.
    Running,
    /// Stopped for a violation.
    Broken,
}

impl fmt::Display for RingState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// One vring of a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Ring {
    /// The virtqueue number: 0 is the first RX vring, 1 the first TX vring.
    pub index: u16,
    /// Which way frames go.
    pub direction: Direction,
    /// Entries, as set up by the front end; 0 before that.
    pub size: u16,
    /// Whether the front end enabled it (SET_VRING_ENABLE).
    pub enabled: bool,
    /// What it is doing.
    pub state: RingState,
    /// The number of the PMD thread that serves it, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub pmd: Option<u32>,
}

/// A region of guest memory that the front end shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemoryRegion {
    /// Where it begins in the guest's physical address space.
    pub guest_address: u64,
    /// Its length in bytes.
    pub size_bytes: u64,
}

/// A port of the switch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Port {
    /// Its number; another port may get it once this one is gone.
    pub id: u32,
    /// Its settings.
    pub spec: AppliedPortSpec,
    /// How far its connection has come.
    pub link: LinkState,
    /// Why the link is broken; absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub reason: Option<String>,
    /// Negotiated virtio features by their names in the specification (`VIRTIO_NET_F_CSUM`).
    pub features: Vec<String>,
    /// Its vrings, by index.
    pub rings: Vec<Ring>,
    /// Guest memory as shared with the switch.
    pub memory: Vec<MemoryRegion>,
}

/// The ports of the switch, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortList {
    /// The ports.
    pub ports: Vec<Port>,
}

/// Refuses what cannot name a port.
pub(crate) fn check_port_name(field: &str, name: &str) -> Result<(), ApiError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    // A URL cannot end in `.` or `..`: clients resolve them away (RFC 3986, section 5.2.4).
    let is_dots = matches!(name, "." | "..");
    if (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(allowed) && !is_dots {
        return Ok(());
    }
    Err(ApiError::invalid(
        field,
        name,
        "A port name is 1 to 64 characters of A-Z a-z 0-9 . _ - and not just dots",
        "Choose another name",
    ))
}

pub(crate) fn not_a_station(field: &str, mac: Mac) -> ApiError {
    ApiError::invalid(
        field,
        mac,
        "The address of a guest is neither a group address nor zero",
        "Use a locally administered unicast address, such as 52:54:00:12:34:56",
    )
}

fn check_socket_path(socket: &Path) -> Result<(), ApiError> {
    let refused = |message: &str, remedy: &str| {
        Err(ApiError::invalid("socket", socket.display(), message, remedy))
    };
    let bytes = socket.as_os_str().as_bytes();
    if !socket.is_absolute() {
        return refused("A socket path is absolute", "Begin it with /");
    }
    if bytes.len() > MAX_SOCKET_PATH_BYTES {
        return refused(
            "A socket path has at most 107 bytes",
            "Use a shorter path or name; the kernel has no room for more",
        );
    }
    let is_plain = bytes.iter().all(|b| !b.is_ascii_control())
        && !socket.components().any(|part| matches!(part, Component::ParentDir))
        && !bytes.ends_with(b"/");
    if !is_plain {
        return refused(
            "A socket path names a file, without `..` and control characters",
            "Write the path as it is, without detours",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults() -> PortDefaults {
        PortDefaults { socket_dir: "/run/slipway/ports".into(), mac_quota: 64, max_queue_pairs: 16 }
    }

    fn with_mac() -> PortSpec {
        PortSpec { mac: Some(Mac([0x52, 0x54, 0, 0, 0, 1])), ..PortSpec::named("vm1") }
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().expect("an address")).collect()
    }

    #[test]
    fn a_name_alone_makes_a_learning_port_with_a_socket_of_its_own() {
        let applied = PortSpec::named("vm1").apply(&defaults()).expect("applies");
        assert!(applied.learning && !applied.anti_spoof);
        assert_eq!(applied.socket, Path::new("/run/slipway/ports/vm1.sock"));
        assert_eq!((applied.queue_pairs, applied.mac_quota, applied.vni), (1, 64, 0));
    }

    #[test]
    fn a_mac_makes_a_port_that_checks_it_and_learns_nothing() {
        let applied = with_mac().apply(&defaults()).expect("applies");
        assert!(!applied.learning && applied.anti_spoof);
    }

    #[test]
    fn a_mac_on_a_learning_port_is_not_checked() {
        let spec = PortSpec { learning: Some(true), ..with_mac() };
        let applied = spec.apply(&defaults()).expect("applies");
        assert!(applied.learning && !applied.anti_spoof);
    }

    #[test]
    fn every_value_out_of_range_is_refused_by_the_name_of_its_field() {
        let base = || PortSpec::named("vm1");
        let too_deep = format!("/{}", "d".repeat(MAX_SOCKET_PATH_BYTES));
        let cases = [
            ("name", PortSpec::named("")),
            ("name", PortSpec::named("a/b")),
            ("name", PortSpec::named("..")),
            ("name", PortSpec::named("x".repeat(65))),
            ("vni", PortSpec { vni: 1 << 24, ..base() }),
            ("mac", PortSpec { mac: Some(Mac::BROADCAST), ..base() }),
            ("mac", PortSpec { mac: Some(Mac([0; 6])), ..base() }),
            ("socket", PortSpec { socket: Some("vm1.sock".into()), ..base() }),
            ("socket", PortSpec { socket: Some("/run/../etc/x".into()), ..base() }),
            ("socket", PortSpec { socket: Some("/run/\0".into()), ..base() }),
            ("socket", PortSpec { socket: Some("/run/".into()), ..base() }),
            ("socket", PortSpec { socket: Some(too_deep.into()), ..base() }),
            ("queue_pairs", PortSpec { queue_pairs: 0, ..base() }),
            ("queue_pairs", PortSpec { queue_pairs: 17, ..base() }),
            ("queue_pairs", PortSpec { queue_pairs: 129, ..base() }),
            ("mac_quota", PortSpec { mac_quota: Some(0), ..base() }),
            ("mac_quota", PortSpec { mac_quota: Some(65_537), ..base() }),
            ("mtu", PortSpec { mtu: Some(67), ..base() }),
            ("mode", PortSpec { mode: PortMode::Tap, ..base() }),
            ("addresses", PortSpec { addresses: ips(&["10.0.0.1"]), ..base() }),
            ("addresses", PortSpec { addresses: ips(&["0.0.0.0"]), ..with_mac() }),
            ("addresses", PortSpec { addresses: ips(&["255.255.255.255"]), ..with_mac() }),
            ("addresses", PortSpec { addresses: ips(&["fd00::1", "ff02::1"]), ..with_mac() }),
            ("addresses", PortSpec { addresses: ips(&["::1"]), ..with_mac() }),
            ("addresses", PortSpec { addresses: ips(&["fd00::1", "fd00::1"]), ..with_mac() }),
            ("addresses", PortSpec { addresses: ips(&["10.0.0.1"; 9]), ..with_mac() }),
            ("anti_spoof", PortSpec { anti_spoof: Some(true), ..base() }),
            ("anti_spoof", PortSpec { anti_spoof: Some(true), learning: Some(true), ..with_mac() }),
        ];
        for (field, spec) in cases {
            let error = spec.clone().apply(&defaults()).expect_err(field);
            assert_eq!(error.code, ErrorCode::InvalidValue, "{spec:?}");
            assert_eq!(error.field.as_deref(), Some(field), "{spec:?}");
        }
    }

    #[test]
    fn a_default_socket_that_would_not_fit_is_refused() {
        let deep = PortDefaults { socket_dir: "/d".repeat(40).into(), ..defaults() };
        let error = PortSpec::named("x".repeat(64)).apply(&deep).expect_err("too long");
        assert_eq!(error.field.as_deref(), Some("socket"));
    }

    #[test]
    fn the_same_settings_are_the_same_port_however_they_are_written() {
        let spelt_out = PortSpec {
            socket: Some("/run/slipway/ports/vm1.sock".into()),
            learning: Some(true),
            mac_quota: Some(64),
            ..PortSpec::named("vm1")
        };
        let short = PortSpec::named("vm1").apply(&defaults()).expect("applies");
        let long = spelt_out.apply(&defaults()).expect("applies");
        assert_eq!(short.same_as(&long), Ok(()));
    }

    #[test]
    fn another_setting_is_a_conflict_that_names_the_field_and_both_values() {
        let existing = with_mac().apply(&defaults()).expect("applies");
        let wanted =
            PortSpec { mtu: Some(9000), ..with_mac() }.apply(&defaults()).expect("applies");
        let error = existing.same_as(&wanted).expect_err("differs");
        assert_eq!(error.code, ErrorCode::Conflict);
        assert_eq!(error.field.as_deref(), Some("mtu"));
        assert_eq!(error.value.as_deref(), Some("9000"));
        assert!(error.message.contains("none"), "{}", error.message);
    }

    #[test]
    fn any_two_settings_that_differ_have_a_first_difference() {
        // `first_difference` lists the fields by hand; a field it forgot would compare equal.
        let json = serde_json::to_value(PortSpec::named("a").apply(&defaults()).expect("applies"))
            .expect("serialises");
        let mut full = json.as_object().expect("object").clone();
        full.insert("mac".into(), "52:54:00:00:00:01".into());
        full.insert("mtu".into(), 1500.into());
        full.insert("addresses".into(), vec!["10.0.0.1"].into());
        let base: AppliedPortSpec = serde_json::from_value(full.clone().into()).expect("reads");
        for (field, value) in &full {
            let other = match value {
                serde_json::Value::Bool(b) => (!b).into(),
                serde_json::Value::Number(n) => (n.as_u64().expect("unsigned") + 1).into(),
                _ if field == "mac" => "52:54:00:00:00:02".into(),
                _ if field == "mode" => "connect".into(),
                _ if field == "addresses" => vec!["10.0.0.1", "10.0.0.2"].into(),
                _ => "/other".into(),
            };
            let mut changed = full.clone();
            changed.insert(field.clone(), other);
            let changed: AppliedPortSpec = serde_json::from_value(changed.into()).expect("reads");
            assert_eq!(base.first_difference(&changed).map(|d| d.field), Some(field.as_str()));
        }
    }

    #[test]
    fn unknown_fields_of_a_request_are_refused() {
        let error = serde_json::from_str::<PortSpec>(r#"{"name":"a","vlan":7}"#).expect_err("vlan");
        assert!(error.to_string().contains("unknown field `vlan`"), "{error}");
    }
}
