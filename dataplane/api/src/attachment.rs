//! Attachments: what a pod's interface is to the switch, and what its guest must be told.
//!
//! ```text
//! slipway-cni ADD, or the shim --AttachmentSpec--> slipwayd: address, MAC, port --> Attachment
//! shim: the attachments of sandbox S --> NICs of the VM, interfaces and routes of its guest
//! ```
//! An attachment belongs to an owner, which is the sandbox (the container id that a CNI plugin is
//! given), and has the name of the guest's interface. It owns one port of the switch and one address
//! per range of its network, from its creation to its deletion, and survives a restart of slipwayd.

use std::{collections::BTreeMap, fmt, net::IpAddr, path::PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{ApiError, LinkState, Mac, Policy, PortMode};

/// The longest owner, in bytes: a container id has 64.
pub const MAX_OWNER_BYTES: usize = 128;
/// The longest interface name, in bytes (`IFNAMSIZ` of Linux less its terminating zero).
pub const MAX_INTERFACE_BYTES: usize = 15;
/// The most labels of one attachment, and the longest key or value in bytes.
pub const MAX_LABELS: usize = 16;
/// See [`MAX_LABELS`].
pub const MAX_LABEL_BYTES: usize = 256;
/// The network an attachment joins unless it names another.
pub const DEFAULT_NETWORK: &str = "default";

/// A network of the configuration: a segment with addresses to give.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// Its segment.
    pub vni: u32,
    /// MTU of its guests' interfaces, in bytes.
    pub mtu: u16,
    /// The ranges it gives addresses of: at most one IPv4 and one IPv6 prefix.
    #[schema(value_type = Vec<String>)]
    pub ranges: Vec<IpNet>,
    /// The gateway in each range, in their order; none if the network reaches nothing but itself.
    #[schema(value_type = Vec<String>)]
    pub gateways: Vec<IpAddr>,
    /// Whether the gateway is this host, through the tap `slipway0`.
    pub host_gateway: bool,
    /// Addresses given out.
    pub used: u64,
    /// Addresses that can be given out at all, of the range with the fewest.
    pub capacity: u64,
}

/// All networks, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkList {
    /// The networks.
    pub networks: Vec<Network>,
}

/// An attachment as it is asked for. The route names owner and interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachmentSpec {
    /// The network to join; default [`DEFAULT_NETWORK`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub network: Option<String>,
    /// Addresses wanted, at most one of each range; the others are chosen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
    /// The guest's MAC address; default: chosen, locally administered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub mac: Option<Mac>,
    /// MTU of the guest's interface, in bytes; default: the network's, which is also the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 68)]
    pub mtu: Option<u16>,
    /// Vring pairs of the port; default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 1, maximum = 128)]
    pub queue_pairs: Option<u16>,
    /// What the caller wants to find again: pod name, namespace. At most 16, of 256 bytes each.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Which frames the guest may send and receive; default: all. It can be changed by its port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub policy: Option<Policy>,
    /// The PMD threads, by number, that the transmit vrings stay on: one for all of them, or one for
    /// each queue pair in turn. Default: none, and vrings go and move where there is least load.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 128)]
    pub pmds: Vec<u32>,
}

/// A pod's interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Attachment {
    /// The sandbox it belongs to.
    pub owner: String,
    /// The name of the guest's interface.
    pub interface: String,
    /// The network it joined.
    pub network: String,
    /// The segment of that network.
    pub vni: u32,
    /// The port of the switch that serves it.
    pub port: String,
    /// The vhost-user socket of that port.
    #[schema(value_type = String)]
    pub socket: PathBuf,
    /// Who listens on the socket; attachments' ports are `connect`: the VMM listens.
    pub mode: PortMode,
    /// Vring pairs of the port.
    pub queue_pairs: u16,
    /// The guest's MAC address.
    pub mac: Mac,
    /// MTU of the guest's interface, in bytes.
    pub mtu: u16,
    /// The guest's addresses with the prefix lengths of their networks.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpNet>,
    /// The guest's routes besides those that its addresses bring.
    pub routes: Vec<AttachmentRoute>,
    /// Neighbours that need no ARP or ND: the gateways.
    pub neighbours: Vec<Neighbour>,
    /// Names of hosts: what the guest asks.
    pub dns: Dns,
    /// What the caller wanted to find again.
    pub labels: BTreeMap<String, String>,
    /// Which frames the guest may send and receive; absent when it may all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub policy: Option<Policy>,
    /// The PMD threads that the transmit vrings are to stay on in turn, if they are; where a switch has
    /// fewer after a restart, they are not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pmds: Vec<u32>,
    /// When it was made, in milliseconds since 1970.
    pub created_at_ms: u64,
    /// How its port's link is now.
    pub link: LinkState,
}

/// A route of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AttachmentRoute {
    /// Where to: `0.0.0.0/0` or `::/0` for everywhere.
    #[schema(value_type = String)]
    pub destination: IpNet,
    /// Through whom; on the link itself if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, nullable = false)]
    pub gateway: Option<IpAddr>,
}

/// A neighbour of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Neighbour {
    /// Its address.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// Its MAC address.
    pub mac: Mac,
}

/// resolv.conf(5) of a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Dns {
    /// Name servers.
    #[schema(value_type = Vec<String>)]
    pub nameservers: Vec<IpAddr>,
    /// The local domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub domain: Option<String>,
    /// Domains to try.
    pub search: Vec<String>,
    /// Options of the resolver.
    pub options: Vec<String>,
}

/// Attachments that match a filter, in the order in which they were made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AttachmentList {
    /// The attachments.
    pub attachments: Vec<Attachment>,
}

/// The MAC address of the gateway of segment `vni` where that is the host: one for each segment, the
/// same on every host and after every restart. Locally administered; no guest is given it.
#[must_use]
pub const fn gateway_mac(vni: u32) -> Mac {
    let [_, a, b, c] = vni.to_be_bytes();
    Mac([0x0a, 0x57, 0x00, a, b, c])
}

impl AttachmentSpec {
    /// Refuses what is out of range whatever the configuration.
    ///
    /// # Errors
    /// [`crate::ErrorCode::InvalidValue`], with the field to blame.
    pub fn check(&self) -> Result<(), ApiError> {
        if let Some(mac) = self.mac.filter(|mac| !mac.is_station()) {
            return Err(crate::port::not_a_station("mac", mac));
        }
        let too_long = |text: &String| text.is_empty() || text.len() > MAX_LABEL_BYTES;
        if self.labels.len() > MAX_LABELS {
            return Err(refused_labels(self.labels.len()));
        }
        if let Some((key, _)) =
            self.labels.iter().find(|(key, value)| too_long(key) || value.len() > MAX_LABEL_BYTES)
        {
            return Err(refused_labels(key));
        }
        self.policy.as_ref().map_or(Ok(()), Policy::check)
    }
}

fn refused_labels(value: impl fmt::Display) -> ApiError {
    ApiError::invalid(
        "labels",
        value,
        "There are at most 16 labels, their names and values have at most 256 bytes",
        "Keep what finds the pod again: its name and namespace",
    )
}

/// Refuses what cannot name the owner of an attachment: 1 to 128 of `A-Z a-z 0-9 . _ -`.
///
/// # Errors
/// [`crate::ErrorCode::InvalidValue`].
pub fn check_owner(owner: &str) -> Result<(), ApiError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let is_dots = matches!(owner, "." | "..");
    if (1..=MAX_OWNER_BYTES).contains(&owner.len()) && owner.bytes().all(allowed) && !is_dots {
        return Ok(());
    }
    Err(ApiError::invalid(
        "owner",
        owner,
        "An owner is 1 to 128 characters of A-Z a-z 0-9 . _ - and not just dots",
        "Give the id of the sandbox, as the container engine has it",
    ))
}

/// Refuses what Linux does not take as the name of an interface.
///
/// # Errors
/// [`crate::ErrorCode::InvalidValue`].
pub fn check_interface(interface: &str) -> Result<(), ApiError> {
    let allowed = |b: u8| b.is_ascii_graphic() && b != b'/' && b != b':';
    let is_dots = matches!(interface, "." | "..");
    let fits = (1..=MAX_INTERFACE_BYTES).contains(&interface.len());
    if fits && interface.bytes().all(allowed) && !is_dots {
        return Ok(());
    }
    Err(ApiError::invalid(
        "interface",
        interface,
        "An interface name is 1 to 15 visible characters without / and :",
        "Use eth0, as container engines do",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_segment_has_a_gateway_address_of_its_own() {
        assert_eq!(gateway_mac(0).to_string(), "0a:57:00:00:00:00");
        assert_eq!(gateway_mac(crate::MAX_VNI).to_string(), "0a:57:00:ff:ff:ff");
        assert!(gateway_mac(7).is_station());
    }

    #[test]
    fn owners_and_interfaces_that_cannot_be_are_refused() {
        let long = "x".repeat(MAX_OWNER_BYTES + 1);
        for owner in ["", ".", "..", "a/b", "a b", "ü", &long] {
            assert_eq!(check_owner(owner).expect_err(owner).field.as_deref(), Some("owner"));
        }
        check_owner(&long[1..]).expect("fits");
        for interface in ["", ".", "..", "a/b", "a:b", "a b", "ü", "sixteen-letters-"] {
            let error = check_interface(interface).expect_err(interface);
            assert_eq!(error.field.as_deref(), Some("interface"));
        }
        check_interface("fifteen-letters").expect("fits");
    }

    #[test]
    fn labels_that_are_too_many_or_too_long_are_refused() {
        let spec = |labels: Vec<(String, String)>| AttachmentSpec {
            labels: labels.into_iter().collect(),
            ..AttachmentSpec::default()
        };
        let many = (0..=MAX_LABELS).map(|n| (n.to_string(), String::new())).collect::<Vec<_>>();
        spec(many[1..].to_vec()).check().expect("fits");
        let long = "x".repeat(MAX_LABEL_BYTES + 1);
        for labels in [
            many,
            vec![(String::new(), "v".into())],
            vec![(long.clone(), "v".into())],
            vec![("k".into(), long)],
        ] {
            let error = spec(labels).check().expect_err("refused");
            assert_eq!(error.field.as_deref(), Some("labels"));
        }
    }
}
