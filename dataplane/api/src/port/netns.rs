//! The interface of a port that is a tap in a network namespace: for containers without a VM.

use std::fmt;
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{MAX_ADDRESSES, PortMode, PortSpec};
use crate::{ApiError, Mac};

/// The interface of a namespace port that asks for no other name.
pub const DEFAULT_INTERFACE: &str = "eth0";
/// The MTU of a namespace port that asks for none, in bytes.
pub const DEFAULT_MTU_BYTES: u16 = 1500;
/// The smallest MTU of an interface with an IPv6 address, in bytes (RFC 8200, section 5).
const IPV6_MTU_BYTES: u16 = 1280;
/// The longest path that the kernel takes, its terminating zero not counted, in bytes (PATH_MAX).
const MAX_PATH_BYTES: usize = 4095;

/// A tap interface in a network namespace, in place of a vhost-user socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetnsSpec {
    /// Absolute path of the namespace, as in `/run/netns/blue` (ip-netns(8)). The port has its link while
    /// this path names this namespace.
    #[schema(value_type = String, max_length = 4095)]
    pub path: PathBuf,
    /// The name of the interface there: 1 to 15 visible characters without / : and %.
    #[serde(default = "default_interface")]
    #[schema(max_length = 15, default = "eth0")]
    pub interface: String,
    /// Its addresses with their prefix lengths, at most 8, and of them at most one of IPv4. They are the
    /// port's `addresses`. Without a `mac` the port's follows from the first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>, max_items = 8)]
    pub addresses: Vec<IpNet>,
}

fn default_interface() -> String {
    DEFAULT_INTERFACE.to_owned()
}

impl fmt::Display for NetnsSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", self.interface, self.path.display())?;
        self.addresses.iter().try_for_each(|address| write!(f, " {address}"))
    }
}

impl NetnsSpec {
    /// The interface `eth0`, without addresses, in the namespace at `path`.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), interface: default_interface(), addresses: Vec::new() }
    }

    /// Refuses what the kernel would refuse, or worse, would not; and what `port` asks for besides that
    /// a tap has not.
    ///
    /// # Errors
    /// [`crate::ErrorCode::InvalidValue`], with the field to blame.
    pub(super) fn check(&self, port: &PortSpec) -> Result<(), ApiError> {
        self.check_path()?;
        self.check_interface()?;
        self.check_addresses(port.mtu.unwrap_or(DEFAULT_MTU_BYTES))?;
        if let Some(socket) = &port.socket {
            return Err(ApiError::invalid(
                "socket",
                socket.display(),
                "A port in a network namespace has no vhost-user socket",
                "Leave out either `socket` or `netns`",
            ));
        }
        if port.mode == PortMode::Connect {
            return Err(ApiError::invalid(
                "mode",
                port.mode,
                "A port in a network namespace has no vhost-user socket to connect",
                "Leave out either `mode` or `netns`",
            ));
        }
        if port.queue_pairs != 1 {
            return Err(ApiError::invalid(
                "queue_pairs",
                port.queue_pairs,
                "A port in a network namespace has one queue pair",
                "Leave `queue_pairs` out",
            ));
        }
        match port.addresses.first() {
            None => Ok(()),
            Some(first) => Err(ApiError::invalid(
                "addresses",
                first,
                "The addresses of a port in a network namespace are those of its interface",
                "Name them with their prefix lengths in `netns.addresses`",
            )),
        }
    }

    fn check_path(&self) -> Result<(), ApiError> {
        let bytes = self.path.as_os_str().as_bytes();
        let is_plain = bytes.len() <= MAX_PATH_BYTES && bytes.iter().all(|b| !b.is_ascii_control());
        if self.path.is_absolute() && is_plain {
            return Ok(());
        }
        Err(ApiError::invalid(
            "netns.path",
            self.path.display(),
            "The path of a namespace is absolute, without control characters, of at most 4095 bytes",
            "Name a file that `ip netns add` made, as in /run/netns/blue",
        ))
    }

    fn check_interface(&self) -> Result<(), ApiError> {
        // The kernel would fill a number in for `%d`.
        if !self.interface.contains('%') && crate::check_interface(&self.interface).is_ok() {
            return Ok(());
        }
        Err(ApiError::invalid(
            "netns.interface",
            &self.interface,
            "An interface name is 1 to 15 visible characters without / : and %, and not just dots",
            "Leave it out for eth0, or shorten it",
        ))
    }

    fn check_addresses(&self, mtu: u16) -> Result<(), ApiError> {
        let refused = |value: &dyn fmt::Display, message: &str, remedy: &str| {
            Err(ApiError::invalid("netns.addresses", value, message, remedy))
        };
        let addresses = &self.addresses;
        if addresses.len() > MAX_ADDRESSES {
            let remedy = "Name one of each family";
            return refused(&addresses.len(), "An interface has at most 8 addresses", remedy);
        }
        if let Some(bad) = addresses.iter().find(|net| !is_host_address(net)) {
            return refused(
                bad,
                "It is not the address of one host in its network",
                "Write the interface's own address with the length of the prefix, as in 10.0.0.2/24",
            );
        }
        if let Some(twice) = (1..addresses.len())
            .find(|&at| addresses[..at].iter().any(|a| a.addr() == addresses[at].addr()))
        {
            return refused(&addresses[twice], "An address is named once", "Leave one out");
        }
        if let Some(second) = addresses.iter().filter(|net| matches!(net, IpNet::V4(_))).nth(1) {
            let remedy = "Add others from inside the namespace, to a port that is bound to none";
            return refused(second, "An interface gets at most one IPv4 address", remedy);
        }
        match addresses.iter().find(|net| matches!(net, IpNet::V6(_))) {
            Some(v6) if mtu < IPV6_MTU_BYTES => refused(
                v6,
                &format!("IPv6 needs an MTU of 1280 bytes, and `mtu` is {mtu}"),
                "Ask for a larger `mtu`, or for no IPv6 address",
            ),
            _ => Ok(()),
        }
    }

    /// The MAC address for a port that names none: it follows from the first address, as those of pods
    /// do. `None`: there is no address, and the kernel chooses.
    pub(super) fn mac(&self) -> Option<Mac> {
        let low = match self.addresses.first()?.addr() {
            IpAddr::V4(address) => address.to_bits(),
            IpAddr::V6(address) => address.to_bits() as u32,
        };
        let [a, b, c, d] = low.to_be_bytes();
        Some(Mac([0x0a, 0x58, a, b, c, d]))
    }

    /// The addresses without their prefix lengths.
    pub(super) fn hosts(&self) -> Vec<IpAddr> {
        self.addresses.iter().map(IpNet::addr).collect()
    }
}

/// Whether an address can be an interface's own.
#[must_use]
pub fn is_host_address(address: &IpNet) -> bool {
    let ip = address.addr();
    let is_plain = !ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback();
    match (address, ip) {
        (IpNet::V4(net), IpAddr::V4(ip)) if net.prefix_len() < 31 => {
            is_plain && ip != net.network() && ip != net.broadcast()
        }
        _ => is_plain,
    }
}
