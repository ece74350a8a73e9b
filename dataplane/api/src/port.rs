//! Ports: what a caller asks for, what it gets, and how the port is doing.
//!
//! ```text
//! PortSpec --check, fill in defaults--> AppliedPortSpec --the switch--> Port { spec, id, link, .. }
//! ```
//! A port is created once and, but for its policy, never changed; its link comes and goes with the front end.

mod netns;
mod state;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    net::IpAddr,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{ApiError, ErrorCode, MAX_VNI, Mac, Policy};

pub use netns::{DEFAULT_INTERFACE, DEFAULT_MTU_BYTES, NetnsSpec, is_host_address};
pub use state::{Created, Direction, LinkState, MemoryRegion, Port, PortList, Ring, RingState};

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
/// Where taps come from: the `socket` of a port that is one.
pub const TUN_DEVICE: &str = "/dev/net/tun";
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
    /// There is none: the port is a tap interface in a network namespace; see `netns`.
    Netns,
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
    /// Which frames the guest may send and receive; default: all. It can be changed while the port runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub policy: Option<Policy>,
    /// The PMD threads, by number, that the transmit vrings stay on: one for all of them, or one for
    /// each queue pair in turn. Default: none, and vrings go and move where there is least load.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 128)]
    pub pmds: Vec<u32>,
    /// The network namespace of a container, with the interface that slipwayd makes there in place of a
    /// vhost-user socket. It has one queue pair, `mtu` is 1500 unless it is given, and it lives as long
    /// as slipwayd. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub netns: Option<NetnsSpec>,
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
        match &self.netns {
            Some(netns) => netns.check(self)?,
            None if self.mode == PortMode::Netns => {
                return Err(ApiError::invalid(
                    "mode",
                    self.mode,
                    "Which network namespace it is in, `netns` says, which is not given",
                    "Give the port a `netns`, or choose `listen` or `connect`",
                ));
            }
            None => {}
        }
        self.check_addresses()?;
        self.policy.as_ref().map_or(Ok(()), Policy::check)?;
        if !(1..=MAX_QUEUE_PAIRS).contains(&self.queue_pairs) {
            return Err(ApiError::invalid(
                "queue_pairs",
                self.queue_pairs,
                "A port has 1 to 128 queue pairs",
                "Ask for at most as many pairs as the guest has virtual CPUs",
            ));
        }
        if self.pmds.len() > usize::from(self.queue_pairs) {
            return Err(ApiError::invalid(
                "pmds",
                join(&self.pmds),
                format!("The port has {} queue pairs, and each is on one PMD", self.queue_pairs),
                "Name one PMD for all queue pairs, or at most one for each",
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
            if self.mac().is_none() {
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

    /// The address of the guest, if it is known: that given, or that of its interface.
    fn mac(&self) -> Option<Mac> {
        self.mac.or_else(|| self.netns.as_ref()?.mac())
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
        let mac = self.mac();
        let (mode, mtu, addresses) = match &self.netns {
            None => (self.mode, self.mtu, self.addresses),
            Some(netns) => {
                let mtu = self.mtu.unwrap_or(DEFAULT_MTU_BYTES);
                (PortMode::Netns, Some(mtu), netns.hosts())
            }
        };
        let socket = match self.socket {
            Some(socket) => socket,
            None if self.netns.is_some() => TUN_DEVICE.into(),
            None => {
                let socket = defaults.socket_dir.join(format!("{}.sock", self.name));
                check_socket_path(&socket)?;
                socket
            }
        };
        // An address to check against settles both: such a port neither learns nor lets others by,
        // unless it is asked to.
        let learning = self.learning.unwrap_or(mac.is_none() && self.anti_spoof != Some(true));
        Ok(AppliedPortSpec {
            name: self.name,
            vni: self.vni,
            mac,
            socket,
            mode,
            queue_pairs: self.queue_pairs,
            learning,
            mac_quota: self.mac_quota.unwrap_or(defaults.mac_quota),
            anti_spoof: self.anti_spoof.unwrap_or(mac.is_some() && !learning),
            mtu,
            addresses,
            policy: self.policy,
            pmds: self.pmds,
            netns: self.netns,
        })
    }
}

fn join<T: fmt::Display>(items: &[T]) -> String {
    let texts: Vec<_> = items.iter().map(T::to_string).collect();
    if texts.is_empty() { "none".to_owned() } else { texts.join(" ") }
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
    /// The vhost-user socket; of a tap, the device that it comes from.
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
    /// Which frames the guest may send and receive; absent when it may all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub policy: Option<Policy>,
    /// The PMD threads that the transmit vrings are pinned to in turn, if they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pmds: Vec<u32>,
    /// The interface in a network namespace, if the port is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub netns: Option<NetnsSpec>,
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
        let fields = |spec: &Self| {
            [
                ("name", spec.name.clone()),
                ("netns", or_none(spec.netns.as_ref())),
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
                ("policy", or_none(spec.policy.as_ref())),
                ("pmds", join(&spec.pmds)),
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
