//! The pod's interfaces, routes and neighbours, over rtnetlink.
//!
//! This is inside the guest, whose kernel nobody else waits for. All that a call brings is checked
//! before the first change.

use std::fs;
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use kata_agent_protocol::types::{ARPNeighbor, IPAddress, IPFamily, Interface, Route};
use nix::errno::Errno;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags};
use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourState};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
    RouteProtocol, RouteScope,
};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use super::device;
use super::error::Refusal;

/// The longest name of an interface, without the zero at its end.
const MAX_NAME: usize = 15;
/// The least MTU of a link that carries IPv4 (RFC 791), and the most virtio can name.
const MTU: std::ops::RangeInclusive<u64> = 68..=65_535;
/// IFF_NOARP of `raw_flags`.
const NO_ARP: u32 = nix::libc::IFF_NOARP as u32;

/// The guest's network.
#[derive(Debug)]
pub struct Network {
    handle: Handle,
}

/// A link as the kernel has it.
#[derive(Debug)]
struct Link {
    index: u32,
    name: String,
    mac: Vec<u8>,
    mtu: u32,
    flags: LinkFlags,
}

impl Network {
    /// Connects to the kernel, in a task of the current runtime.
    pub fn connect() -> Result<Self> {
        let (connection, handle, _) =
            rtnetlink::new_connection().context("Failed to open an rtnetlink socket")?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Finds a link by its MAC, or else by its name, and makes it what is asked for.
    pub async fn update_interface(&self, wanted: &Interface) -> Result<()> {
        let name = wanted.name.as_str();
        check_name(name)?;
        let mac = parse_mac(&wanted.hwAddr)?;
        let addresses: Vec<_> =
            wanted.IPAddresses.iter().map(parse_address).collect::<Result<_>>()?;
        if wanted.mtu != 0 && !MTU.contains(&wanted.mtu) {
            let mtu = wanted.mtu;
            return Err(Refusal::invalid(format!("The MTU {mtu} of {name} is not 68 to 65535")));
        }
        let links = self.links().await?;
        let by_mac = links.iter().find(|link| link.mac == mac);
        let link = if wanted.devicePath.is_empty() {
            by_mac.or_else(|| links.iter().find(|link| link.name == name))
        } else {
            let at_path = device::wait_for_nic(&wanted.devicePath).await?;
            links.iter().find(|link| link.name == at_path)
        };
        let link = link.ok_or_else(|| {
            let mac = &wanted.hwAddr;
            Refusal::invalid(format!("Link not found: there is no interface with MAC {mac}"))
        })?;
        if let Some(holder) = links.iter().find(|l| l.name == name && l.index != link.index) {
            self.take_name(link, holder).await?;
        }
        let is_as_named = link.name == name && link.mac == mac;
        if link.flags.contains(LinkFlags::Up) && !is_as_named {
            // An interface that is up keeps its name and address.
            self.set(LinkUnspec::new_with_index(link.index).down().build(), name).await?;
        }
        let mut change = LinkUnspec::new_with_index(link.index).up();
        if link.name != name {
            change = change.name(name);
        }
        if link.mac != mac {
            change = change.address(mac);
        }
        if let Ok(mtu @ 1..) = u32::try_from(wanted.mtu) {
            change = change.mtu(mtu);
        }
        change = change.arp(wanted.raw_flags & NO_ARP == 0);
        self.set(change.build(), name).await?;
        if addresses.iter().any(|(address, _)| address.is_ipv6()) {
            enable_ipv6(name)?;
        }
        for (address, prefix) in addresses {
            self.add_address(link.index, address, prefix)
                .await
                .with_context(|| format!("Failed to give {name} the address {address}/{prefix}"))?;
        }
        Ok(())
    }

    /// Adds routes to the main table, replacing those to the same place. Routes without a gateway
    /// come first: they make the gateways reachable.
    pub async fn update_routes(&self, routes: &[Route]) -> Result<()> {
        let links = self.links().await?;
        let mut messages = Vec::new();
        for route in routes {
            let index = index_of(&links, &route.device)?;
            let message = to_message(route, index)
                .with_context(|| format!("The route to '{}' makes no sense", route.dest))?;
            messages.push((!route.gateway.is_empty(), route, message));
        }
        messages.sort_by_key(|(has_gateway, ..)| *has_gateway);
        for (_, route, message) in messages {
            match self.handle.route().add(message).replace().execute().await {
                Err(error) if is(&error, Errno::EEXIST) => {}
                outcome => outcome.with_context(|| {
                    let Route { dest, gateway, device, .. } = route;
                    format!("Failed to add the route to '{dest}' by '{gateway}' on {device}")
                })?,
            }
        }
        Ok(())
    }

    /// Adds entries to the neighbour tables.
    pub async fn add_neighbours(&self, neighbours: &[ARPNeighbor]) -> Result<()> {
        let links = self.links().await?;
        let mut checked = Vec::new();
        for neighbour in neighbours {
            let index = index_of(&links, &neighbour.device)?;
            let address = parse_ip(&neighbour.toIPAddress.address)?;
            checked.push((index, address, parse_mac(&neighbour.lladdr)?, neighbour));
        }
        for (index, address, mac, neighbour) in checked {
            // NUD_* is 16 bits wide, NTF_* 8.
            let state = match neighbour.state as u16 {
                0 => NeighbourState::Permanent,
                state => state.into(),
            };
            let flags = NeighbourFlags::from_bits_retain(neighbour.flags as u8);
            let add = self.handle.neighbours().add(index, address).link_layer_address(&mac);
            let added = add.state(state).flags(flags).replace().execute().await;
            added.with_context(|| {
                format!("Failed to add the neighbour {address} on {}", neighbour.device)
            })?;
        }
        Ok(())
    }

    /// All interfaces with their addresses.
    pub async fn interfaces(&self) -> Result<Vec<Interface>> {
        let mut interfaces = Vec::new();
        let addresses: Vec<_> = self.handle.address().get().execute().try_collect().await?;
        for link in self.links().await? {
            let own = addresses.iter().filter(|address| address.header.index == link.index);
            let of_link = own.filter_map(|message| {
                let prefix = message.header.prefix_len;
                // The peer's on a point-to-point link, so the local one is preferred.
                let local = message.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Local(address) => Some(*address),
                    _ => None,
                });
                let address = local.or_else(|| {
                    message.attributes.iter().find_map(|attribute| match attribute {
                        AddressAttribute::Address(address) => Some(*address),
                        _ => None,
                    })
                })?;
                Some(to_address(address, &prefix.to_string()))
            });
            interfaces.push(Interface {
                device: link.name.clone(),
                IPAddresses: of_link.collect(),
                mtu: link.mtu.into(),
                hwAddr: to_mac_text(&link.mac),
                raw_flags: link.flags.bits(),
                name: link.name,
                ..Default::default()
            });
        }
        Ok(interfaces)
    }

    /// All routes of the main table.
    pub async fn routes(&self) -> Result<Vec<Route>> {
        let links = self.links().await?;
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut question = RouteMessage::default();
            question.header.address_family = family;
            let found: Vec<_> = self.handle.route().get(question).execute().try_collect().await?;
            let main =
                found.iter().filter(|route| route.header.table == RouteHeader::RT_TABLE_MAIN);
            routes.extend(main.map(|route| from_message(route, &links)));
        }
        Ok(routes)
    }

    async fn links(&self) -> Result<Vec<Link>> {
        let messages = self.handle.link().get().execute().try_collect::<Vec<_>>().await;
        let messages = messages.context("Failed to list the interfaces")?;
        let link = |message: rtnetlink::packet_route::link::LinkMessage| {
            let mut link = Link {
                index: message.header.index,
                name: String::new(),
                mac: Vec::new(),
                mtu: 0,
                flags: message.header.flags,
            };
            for attribute in message.attributes {
                match attribute {
                    LinkAttribute::IfName(name) => link.name = name,
                    LinkAttribute::Address(mac) => link.mac = mac,
                    LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                    _ => {}
                }
            }
            link
        };
        Ok(messages.into_iter().map(link).collect())
    }

    /// Gives `link` the name of `holder` to come, and `holder` the name `link` has.
    async fn take_name(&self, link: &Link, holder: &Link) -> Result<()> {
        let between = format!("slipway{}", link.index);
        let rename =
            |index, name: &str| LinkUnspec::new_with_index(index).down().name(name).build();
        self.set(rename(link.index, &between), &between).await?;
        self.set(rename(holder.index, &link.name), &link.name).await?;
        if holder.flags.contains(LinkFlags::Up) {
            let up = LinkUnspec::new_with_index(holder.index).up().build();
            self.set(up, &link.name).await?;
        }
        self.set(rename(link.index, &holder.name), &holder.name).await
    }

    async fn set(
        &self,
        message: rtnetlink::packet_route::link::LinkMessage,
        name: &str,
    ) -> Result<()> {
        let set = self.handle.link().set(message).execute().await;
        set.with_context(|| format!("Failed to set up the interface {name}"))
    }

    async fn add_address(&self, index: u32, address: IpAddr, prefix: u8) -> Result<()> {
        let mut add = self.handle.address().add(index, address, prefix).replace();
        if address.is_ipv6() {
            // The host hands out addresses, so no time is spent on asking who else has it.
            let flags = AddressAttribute::Flags(AddressFlags::Nodad);
            add.message_mut().attributes.push(flags);
        }
        Ok(add.execute().await?)
    }
}

/// Lets the interface speak IPv6, which it does not do by itself (see `boot`).
fn enable_ipv6(name: &str) -> Result<()> {
    let setting = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
    fs::write(&setting, "0").with_context(|| format!("Failed to enable IPv6 by {setting}"))
}

fn is(error: &rtnetlink::Error, errno: Errno) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message)
        if message.raw_code() == -(errno as i32))
}

fn index_of(links: &[Link], name: &str) -> Result<u32> {
    let link = links.iter().find(|link| link.name == name);
    link.map(|link| link.index).ok_or_else(|| {
        let name = name.escape_debug();
        Refusal::invalid(format!("There is no interface '{name}'"))
    })
}

fn check_name(name: &str) -> Result<()> {
    let is_plain = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':');
    let is_good = (1..=MAX_NAME).contains(&name.len()) && name.chars().all(is_plain);
    if is_good && name != "." && name != ".." {
        return Ok(());
    }
    let name = name.escape_debug();
    Err(Refusal::invalid(format!("'{name}' cannot be the name of an interface")))
}

fn parse_mac(text: &str) -> Result<Vec<u8>> {
    let parse = |byte: &str| u8::from_str_radix(byte, 16).ok().filter(|_| byte.len() == 2);
    let bytes: Option<Vec<_>> = text.split(':').map(parse).collect();
    bytes.filter(|bytes| bytes.len() == 6).ok_or_else(|| {
        let text = text.escape_debug();
        Refusal::invalid(format!("'{text}' is no MAC address like 02:00:00:00:00:01"))
    })
}

fn to_mac_text(mac: &[u8]) -> String {
    mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

fn parse_ip(text: &str) -> Result<IpAddr> {
    let text = text.trim();
    text.parse().map_err(|_| {
        let text = text.escape_debug();
        Refusal::invalid(format!("'{text}' is no IP address"))
    })
}

fn most_bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn parse_prefix(text: &str, address: IpAddr) -> Result<u8> {
    let most = most_bits(address);
    text.parse().ok().filter(|prefix| *prefix <= most).ok_or_else(|| {
        let text = text.escape_debug();
        Refusal::invalid(format!("'{text}' is no prefix length of {address}: give 0 to {most}"))
    })
}

fn parse_address(address: &IPAddress) -> Result<(IpAddr, u8)> {
    let ip = parse_ip(&address.address)?;
    Ok((ip, parse_prefix(&address.mask, ip)?))
}

fn to_address(address: IpAddr, mask: &str) -> IPAddress {
    let family = if address.is_ipv4() { IPFamily::v4 } else { IPFamily::v6 };
    IPAddress {
        family: family.into(),
        address: address.to_string(),
        mask: mask.to_owned(),
        ..Default::default()
    }
}

/// An address with a prefix length, which may be left out.
fn parse_net(text: &str) -> Result<(IpAddr, u8)> {
    match text.split_once('/') {
        Some((address, prefix)) => {
            let address = parse_ip(address)?;
            Ok((address, parse_prefix(prefix, address)?))
        }
        None => parse_ip(text).map(|address| (address, most_bits(address))),
    }
}

fn to_message(route: &Route, index: u32) -> Result<RouteMessage> {
    let invalid = |error| Refusal::invalid(format!("{error:?}"));
    let scope = u8::try_from(route.scope)
        .map_err(|_| Refusal::invalid(format!("{} is no scope", route.scope)))?;
    let destination = match route.dest.as_str() {
        "" | "0.0.0.0" | "::" => None,
        destination => Some(parse_net(destination)?),
    };
    let gateway = match route.gateway.as_str() {
        "" => None,
        gateway => Some(parse_ip(gateway)?),
    };
    // An address tells more than the field: older runtimes leave that at zero.
    let address = destination.map(|(address, _)| address).or(gateway);
    let family = address.map(family_of).unwrap_or_else(|| match route.family.enum_value() {
        Ok(IPFamily::v6) => AddressFamily::Inet6,
        _ => AddressFamily::Inet,
    });
    let mut builder = RouteMessageBuilder::<IpAddr>::new()
        .output_interface(index)
        .protocol(RouteProtocol::Boot)
        .scope(RouteScope::from(scope));
    builder.get_mut().header.address_family = family;
    if let Some((address, prefix)) = destination {
        builder = builder.destination_prefix(address, prefix).map_err(invalid)?;
    }
    if let Some(gateway) = gateway {
        builder = builder.gateway(gateway).map_err(invalid)?;
    }
    if !route.source.is_empty() {
        let (source, prefix) = parse_net(&route.source)?;
        builder = if route.source.contains('/') {
            builder.source_prefix(source, prefix).map_err(invalid)?
        } else {
            builder.pref_source(source).map_err(invalid)?
        };
    }
    let mut message = builder.build();
    message.header.flags = RouteFlags::from_bits_retain(route.flags) & RouteFlags::Onlink;
    if route.mtu > 0 {
        let metrics = vec![RouteMetric::Mtu(route.mtu)];
        message.attributes.push(RouteAttribute::Metrics(metrics));
    }
    Ok(message)
}

fn family_of(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn from_message(message: &RouteMessage, links: &[Link]) -> Route {
    let is_v6 = message.header.address_family == AddressFamily::Inet6;
    let family = if is_v6 { IPFamily::v6 } else { IPFamily::v4 };
    let mut route = Route {
        dest: if is_v6 { "::" } else { "0.0.0.0" }.to_owned(),
        scope: u8::from(message.header.scope).into(),
        family: family.into(),
        flags: message.header.flags.bits(),
        ..Default::default()
    };
    let text = |address: &RouteAddress| match address {
        RouteAddress::Inet(address) => address.to_string(),
        RouteAddress::Inet6(address) => address.to_string(),
        _ => String::new(),
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => {
                let prefix = message.header.destination_prefix_length;
                route.dest = format!("{}/{prefix}", text(address));
            }
            RouteAttribute::Gateway(address) => route.gateway = text(address),
            RouteAttribute::PrefSource(address) => route.source = text(address),
            RouteAttribute::Oif(index) => {
                let link = links.iter().find(|link| link.index == *index);
                route.device = link.map(|link| link.name.clone()).unwrap_or_default();
            }
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(mtu_of).unwrap_or_default();
            }
            _ => {}
        }
    }
    route
}

fn mtu_of(metric: &RouteMetric) -> Option<u32> {
    match metric {
        RouteMetric::Mtu(mtu) => Some(*mtu),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_name_mac_or_address_is_refused() {
        for name in ["", "..", "a/b", "a b", "sixteen-letters-"] {
            assert!(check_name(name).is_err(), "{name}");
        }
        for mac in ["", "02:00:00:00:00", "02:00:00:00:00:0g", "2:0:0:0:0:1"] {
            assert!(parse_mac(mac).is_err(), "{mac}");
        }
        let address = |address: &str, mask: &str| IPAddress {
            address: address.to_owned(),
            mask: mask.to_owned(),
            ..Default::default()
        };
        for (ip, mask) in [("10.0.0.256", "24"), ("10.0.0.1", "33"), ("fd00::1", "129"), ("", "")] {
            assert!(parse_address(&address(ip, mask)).is_err(), "{ip}/{mask}");
        }
        assert_eq!(parse_mac("02:00:00:AB:cd:01").unwrap(), [2, 0, 0, 0xab, 0xcd, 1]);
    }

    #[test]
    fn a_default_route_has_its_gateways_family_and_no_destination() {
        let route = Route { gateway: "fd00::1".to_owned(), mtu: 1400, ..Default::default() };
        let message = to_message(&route, 2).unwrap();
        assert_eq!(message.header.address_family, AddressFamily::Inet6);
        assert_eq!(message.header.destination_prefix_length, 0);
        let back = from_message(&message, &[]);
        assert_eq!((back.dest.as_str(), back.gateway.as_str()), ("::", "fd00::1"));
        assert_eq!(back.mtu, 1400);
    }

    #[test]
    fn a_route_to_one_host_on_the_link_is_taken_with_its_scope() {
        let route = Route { dest: "169.254.1.1".to_owned(), scope: 253, ..Default::default() };
        let message = to_message(&route, 2).unwrap();
        assert_eq!(message.header.destination_prefix_length, 32);
        assert_eq!(message.header.scope, RouteScope::Link);
    }
}
