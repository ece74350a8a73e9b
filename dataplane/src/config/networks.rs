//! `[[networks]]`: segments with addresses to give, and what their guests are told.
//!
//! The networks are judged one by one, then against each other: two of one segment share its
//! addresses, and the one whose gateway is this host shares the host's routes.

#[cfg(test)]
mod tests;

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use slipway_api::{DEFAULT_NETWORK, Dns, MAX_NAME_BYTES, MAX_VNI, MIN_MTU_BYTES};

use super::{BadValue, bad};
use crate::ipam;

/// The smallest MTU of a network with IPv6, in bytes (RFC 8200, section 5).
const MIN_IPV6_MTU_BYTES: u16 = 1280;
/// The most networks.
const MAX_NETWORKS: usize = 256;
/// The most entries of `exclude` and of `routes`.
const MAX_ENTRIES: usize = 256;
/// The most name servers that resolvers ask (resolv.conf(5), MAXNS).
const MAX_NAMESERVERS: usize = 3;
/// The most domains and options, and the longest of them in bytes.
const MAX_DNS_WORDS: usize = 32;
/// See [`MAX_DNS_WORDS`].
const MAX_DNS_WORD_BYTES: usize = 253;

/// One `[[networks]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// Its name; `default` is joined by those who name none.
    #[serde(default = "default_name")]
    pub name: String,
    /// Its segment.
    #[serde(default)]
    pub vni: u32,
    /// What addresses are given of: at most one IPv4 and one IPv6 prefix.
    pub ranges: Vec<IpNet>,
    /// Addresses of the gateways, one in each range at most. Default: the first usable one of each
    /// range if this host is the gateway, else none.
    #[serde(default)]
    pub gateways: Option<Vec<IpAddr>>,
    /// What of the ranges is never given: addresses or prefixes.
    #[serde(default)]
    pub exclude: Vec<Excluded>,
    /// MTU of the guests' interfaces, in bytes.
    #[serde(default = "default_mtu")]
    pub mtu: u16,
    /// Routes of the guests besides those through the gateways to everywhere.
    #[serde(default)]
    pub routes: Vec<RouteConfig>,
    /// What the guests ask for names.
    #[serde(default)]
    pub dns: Dns,
    /// Whether the gateway is this host.
    #[serde(default)]
    pub host_gateway: bool,
}

fn default_name() -> String {
    DEFAULT_NETWORK.to_owned()
}

const fn default_mtu() -> u16 {
    1500
}

/// A route of the guests of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    /// Where to.
    pub destination: IpNet,
    /// Through whom; on the link itself if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// An address or a prefix that is never given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "write an address or a prefix, as in 10.88.0.9 or 10.88.1.0/24")]
pub enum Excluded {
    /// One address.
    Address(IpAddr),
    /// All of a prefix.
    Prefix(IpNet),
}

impl Excluded {
    /// As a prefix.
    #[must_use]
    pub fn prefix(self) -> IpNet {
        match self {
            Self::Address(address) => address.into(),
            Self::Prefix(prefix) => prefix.trunc(),
        }
    }
}

impl NetworkConfig {
    /// The network of a configuration that names none.
    #[must_use]
    pub fn preset() -> Self {
        Self {
            name: default_name(),
            vni: 0,
            ranges: vec![IpNet::V4(ipnet::Ipv4Net::new_assert([10, 88, 0, 0].into(), 16))],
            gateways: None,
            exclude: Vec::new(),
            mtu: default_mtu(),
            routes: Vec::new(),
            dns: Dns::default(),
            host_gateway: true,
        }
    }

    /// The gateways in force, in the order of the ranges.
    #[must_use]
    pub fn gateways_in_force(&self) -> Vec<IpAddr> {
        let of = |range: &IpNet| match &self.gateways {
            Some(chosen) => chosen.iter().copied().find(|gateway| range.contains(gateway)),
            None => self.host_gateway.then(|| ipam::first_host(*range)),
        };
        self.ranges.iter().filter_map(of).collect()
    }
}

/// Judges all networks.
///
/// # Errors
/// The first value that cannot be used.
pub fn check(networks: &[NetworkConfig]) -> Result<(), BadValue> {
    if networks.len() > MAX_NETWORKS {
        let rule = format!("there are at most {MAX_NETWORKS} networks");
        return Err(bad("networks", networks.len(), rule, "take some away"));
    }
    for (index, network) in networks.iter().enumerate() {
        Judge { index, network }.check()?;
        for (other, before) in networks[..index].iter().enumerate() {
            Judge { index, network }.check_beside(other, before)?;
        }
    }
    Ok(())
}

/// One network and its place in the file.
struct Judge<'a> {
    index: usize,
    network: &'a NetworkConfig,
}

impl Judge<'_> {
    fn refuse(
        &self,
        key: &str,
        value: impl std::fmt::Display,
        rule: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Result<(), BadValue> {
        Err(bad(format!("networks[{}].{key}", self.index), value, rule, remedy))
    }

    fn check(&self) -> Result<(), BadValue> {
        let NetworkConfig { name, vni, mtu, .. } = self.network;
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        let fits = (1..=MAX_NAME_BYTES).contains(&name.len());
        if !fits || !name.bytes().all(allowed) || matches!(name.as_str(), "." | "..") {
            return self.refuse(
                "name",
                format_args!("{name:?}"),
                "a name is 1 to 64 characters of A-Z a-z 0-9 . _ - and not just dots",
                "choose another",
            );
        }
        if *vni > MAX_VNI {
            return self.refuse("vni", vni, format!("it is 0 to {MAX_VNI}"), "0 is usual");
        }
        self.check_ranges()?;
        let has_v6 = self.network.ranges.iter().any(|range| range.addr().is_ipv6());
        let least = if has_v6 { MIN_IPV6_MTU_BYTES } else { MIN_MTU_BYTES };
        if *mtu < least {
            let family = if has_v6 { " with IPv6" } else { "" };
            let rule = format!("an MTU{family} is {least} to 65535 bytes");
            return self.refuse("mtu", mtu, rule, "1500 is usual");
        }
        self.check_gateways()?;
        self.check_exclude()?;
        self.check_routes()?;
        self.check_dns()
    }

    fn check_ranges(&self) -> Result<(), BadValue> {
        let ranges = &self.network.ranges;
        let families =
            [true, false].map(|v4| ranges.iter().filter(move |r| r.addr().is_ipv4() == v4));
        if ranges.is_empty() || families.into_iter().any(|of_one| of_one.count() > 1) {
            return self.refuse(
                "ranges",
                list(ranges),
                "a network has one IPv4 prefix, one IPv6 prefix, or one of each",
                "make a network of its own for each further range",
            );
        }
        for range in ranges {
            if range.trunc() != *range {
                return self.refuse(
                    "ranges",
                    range,
                    "a range begins at its first address",
                    format!("write {}", range.trunc()),
                );
            }
            let (address, length) = (range.addr(), range.prefix_len());
            let least = if address.is_ipv4() { 8 } else { 32 };
            if length < least {
                let rule = format!("a range is at most a /{least}");
                return self.refuse("ranges", range, rule, "choose a part of it");
            }
            if !is_for_hosts(address) {
                return self.refuse(
                    "ranges",
                    range,
                    "it is not made of addresses that hosts may have",
                    "use a private range, as 10.88.0.0/16 or one of fd00::/8",
                );
            }
        }
        Ok(())
    }

    fn check_gateways(&self) -> Result<(), BadValue> {
        let NetworkConfig { ranges, gateways, host_gateway, .. } = self.network;
        let chosen = gateways.as_deref().unwrap_or_default();
        for gateway in chosen {
            if !ranges.iter().any(|range| ipam::is_host_of(*range, *gateway)) {
                return self.refuse(
                    "gateways",
                    gateway,
                    format!("it is no usable address of {}", list(ranges)),
                    "take an address of a range, or leave the key out for the first of each",
                );
            }
        }
        let of = |range: &IpNet| chosen.iter().filter(|gateway| range.contains(*gateway)).count();
        if ranges.iter().any(|range| of(range) > 1) {
            return self.refuse(
                "gateways",
                list(chosen),
                "a range has one gateway",
                "keep the one that guests are to use",
            );
        }
        if *host_gateway && self.network.gateways_in_force().len() < ranges.len() {
            return self.refuse(
                "gateways",
                list(chosen),
                "a network with host_gateway has a gateway in each range",
                "leave the key out for the first address of each, or set host_gateway = false",
            );
        }
        Ok(())
    }

    fn check_exclude(&self) -> Result<(), BadValue> {
        let NetworkConfig { ranges, exclude, .. } = self.network;
        if exclude.len() > MAX_ENTRIES {
            let rule = format!("it has at most {MAX_ENTRIES} entries");
            return self.refuse("exclude", exclude.len(), rule, "join them to prefixes");
        }
        for excluded in exclude.iter().map(|excluded| excluded.prefix()) {
            if !ranges.iter().any(|range| range.contains(&excluded)) {
                return self.refuse(
                    "exclude",
                    excluded,
                    format!("it does not lie in {}", list(ranges)),
                    "what no range has is never given: take it away",
                );
            }
        }
        let empty = ranges.iter().find(|range| {
            let reserved = exclude.iter().map(|excluded| excluded.prefix());
            let gateways = self.network.gateways_in_force().into_iter().map(IpNet::from);
            ipam::Range::new(**range, reserved.chain(gateways)).capacity() == 0
        });
        match empty {
            None => Ok(()),
            Some(range) => self.refuse(
                "ranges",
                range,
                "gateway and exclusions leave no address of it to give",
                "widen the range, or exclude less",
            ),
        }
    }

    fn check_routes(&self) -> Result<(), BadValue> {
        let NetworkConfig { ranges, routes, .. } = self.network;
        if routes.len() > MAX_ENTRIES {
            let rule = format!("there are at most {MAX_ENTRIES} routes");
            return self.refuse("routes", routes.len(), rule, "join them");
        }
        for RouteConfig { destination, gateway } in routes {
            if destination.trunc() != *destination {
                let remedy = format!("write {}", destination.trunc());
                let rule = "a destination begins at its first address";
                return self.refuse("routes", destination, rule, remedy);
            }
            let is_v4 = destination.addr().is_ipv4();
            if !ranges.iter().any(|range| range.addr().is_ipv4() == is_v4) {
                return self.refuse(
                    "routes",
                    destination,
                    "no range of the network is of its family",
                    "add such a range, or take the route away",
                );
            }
            let Some(gateway) = gateway else { continue };
            let is_near = |range: &IpNet| ipam::is_host_of(*range, *gateway);
            if gateway.is_ipv4() != is_v4 || !ranges.iter().any(is_near) {
                return self.refuse(
                    "routes",
                    format_args!("{destination} through {gateway}"),
                    format!("a gateway is an address of {}, of its route's family", list(ranges)),
                    "name a neighbour of the guests",
                );
            }
        }
        Ok(())
    }

    fn check_dns(&self) -> Result<(), BadValue> {
        let Dns { nameservers, domain, search, options } = &self.network.dns;
        if nameservers.len() > MAX_NAMESERVERS {
            let rule = "resolvers ask at most 3 name servers";
            return self.refuse("dns", list(nameservers), rule, "keep the first 3");
        }
        for words in [search, options] {
            if words.len() > MAX_DNS_WORDS {
                let rule = format!("there are at most {MAX_DNS_WORDS} of them");
                return self.refuse("dns", words.len(), rule, "take some away");
            }
        }
        let is_word = |word: &str| {
            (1..=MAX_DNS_WORD_BYTES).contains(&word.len())
                && word.bytes().all(|b| b.is_ascii_graphic())
        };
        match domain.iter().chain(search).chain(options).find(|word| !is_word(word)) {
            None => Ok(()),
            Some(word) => self.refuse(
                "dns",
                format_args!("{word:?}"),
                "domains and options are 1 to 253 visible characters",
                "write each as a string of its own",
            ),
        }
    }

    /// Judges it against one that stands before it.
    fn check_beside(&self, other: usize, before: &NetworkConfig) -> Result<(), BadValue> {
        let network = self.network;
        if network.name == before.name {
            let rule = format!("networks[{other}] has this name");
            return self.refuse("name", format_args!("{:?}", network.name), rule, "choose another");
        }
        if network.host_gateway && before.host_gateway {
            return self.refuse(
                "host_gateway",
                true,
                format!("this host is the gateway of network {} already", before.name),
                "set it for one network only",
            );
        }
        let overlap = network.ranges.iter().find(|range| {
            before.ranges.iter().any(|other| other.contains(*range) || range.contains(other))
        });
        match overlap {
            Some(range) if network.vni == before.vni => self.refuse(
                "ranges",
                range,
                format!("it overlaps with network {} of the same VNI", before.name),
                "choose ranges apart from each other, or another vni",
            ),
            _ => Ok(()),
        }
    }
}

fn is_for_hosts(address: IpAddr) -> bool {
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return false;
    }
    match address {
        IpAddr::V4(v4) => {
            // 0/8 is this network, 240/4 is reserved (RFC 6890, section 2.2.2).
            !v4.is_link_local() && v4.octets()[0] != 0 && v4.octets()[0] < 240
        }
        IpAddr::V6(v6) => !v6.is_unicast_link_local() && v6.to_ipv4_mapped().is_none(),
    }
}

fn list<T: std::fmt::Display>(items: &[T]) -> String {
    let items: Vec<_> = items.iter().map(ToString::to_string).collect();
    format!("[{}]", items.join(", "))
}
