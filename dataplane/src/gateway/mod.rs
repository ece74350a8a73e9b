//! The host's door to the pods' network: one tap, `slipway0`, made once when slipwayd starts.
//!
//! Kubelet probes, pods that talk to their host and, masqueraded, pods that talk to the world go this
//! way. It is the only kernel device of slipway, whatever the number of pods.
//!
//! ```text
//!             host network stack: routes, nftables
//!                      | slipway0   the gateway's addresses, MAC, MTU       interface
//!   pods --- switch --- tap port    a vport as any other                    crate::port::tap
//! ```
//! [`Gateway::open`] makes the interface and the rules, and needs CAP_NET_ADMIN; it runs before slipwayd
//! gives up what it can. [`Gateway::connect`] makes it a port of the switch, and needs nothing.
//!
//! # Bounds
//! One interface, at most one IPv4 address (a second one is a matter of netlink), any number of IPv6
//! addresses that a port may have.
//!
//! # At the end
//! The interface goes with its descriptor, the rules go with the [`masquerade::Masquerade`], however
//! slipwayd ends: after `kill -9` as well.

pub mod interface;
pub mod masquerade;

use std::net::IpAddr;

use ipnet::IpNet;
use slipway_api::{ApiError, MAX_ADDRESSES, MAX_VNI, MIN_MTU_BYTES, Mac, Port, PortSpec};

use crate::control::switch::{Switch, TapSpec};
use crate::wire;

use interface::{InterfaceError, Tap};
use masquerade::{Masquerade, MasqueradeError};

/// What the gateway shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewaySpec {
    /// The name of the interface, and of the port.
    pub interface: String,
    /// The segment it is the gateway of.
    pub vni: u32,
    /// MTU of the interface, in bytes.
    pub mtu: u16,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its addresses, with the prefix lengths of the network.
    pub addresses: Vec<IpNet>,
    /// Whether pods reach the world in the name of the host.
    pub masquerade: bool,
}

/// Why there is no gateway; nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The specification contradicts itself or the kernel's limits.
    #[error("The gateway can not have {what} {value}: {rule}")]
    Spec {
        /// Which property.
        what: &'static str,
        /// Its value.
        value: String,
        /// What is allowed.
        rule: &'static str,
    },
    /// The interface.
    #[error(transparent)]
    Interface(#[from] InterfaceError),
    /// The rules.
    #[error(transparent)]
    Masquerade(#[from] MasqueradeError),
}

/// An interface that is up, and not connected yet. Dropping it takes interface and rules away.
#[derive(Debug)]
pub struct Gateway {
    tap: Tap,
    spec: GatewaySpec,
    masquerade: Option<Masquerade>,
}

/// The rules of a connected gateway, which go when this is dropped; the interface goes with the switch.
#[derive(Debug)]
pub struct Connected {
    /// The port of the switch.
    pub port: Port,
    _masquerade: Option<Masquerade>,
}

impl GatewaySpec {
    /// Refuses what the kernel would refuse, or worse, would not.
    ///
    /// # Errors
    /// [`GatewayError::Spec`].
    pub fn check(&self) -> Result<(), GatewayError> {
        let refuse = |what, value: &dyn std::fmt::Display, rule| {
            Err(GatewayError::Spec { what, value: value.to_string(), rule })
        };
        if slipway_api::check_interface(&self.interface).is_err()
            || PortSpec::named(&self.interface).check().is_err()
            // The kernel would fill it in.
            || self.interface.contains('%')
        {
            let rule = "it is 1 to 15 characters of A-Z a-z 0-9 . _ -, and not just dots";
            return refuse("the interface", &self.interface, rule);
        }
        if self.vni > MAX_VNI {
            return refuse("the VNI", &self.vni, "a VNI has 24 bits");
        }
        if self.mtu < MIN_MTU_BYTES {
            return refuse("the MTU", &self.mtu, "it is at least 68");
        }
        if !self.mac.is_station() {
            return refuse("the MAC address", &self.mac, "it is not that of one station");
        }
        if self.addresses.is_empty() || self.addresses.len() > MAX_ADDRESSES {
            let rule = "it has 1 to 8 of them";
            return refuse("this number of addresses:", &self.addresses.len(), rule);
        }
        if let Some(bad) = self.addresses.iter().find(|net| !slipway_api::is_host_address(net)) {
            return refuse("the address", bad, "it is not an address of one host in its network");
        }
        let second = self.addresses.iter().filter(|net| matches!(net, IpNet::V4(_))).nth(1);
        if let Some(second) = second {
            return refuse("the address", second, "it has at most one IPv4 address");
        }
        // RFC 8200, section 5.
        if self.mtu < 1280 && self.addresses.iter().any(|net| matches!(net, IpNet::V6(_))) {
            return refuse("the MTU", &self.mtu, "IPv6 needs 1280");
        }
        Ok(())
    }
}

impl Gateway {
    /// Makes the interface, brings it up and sets the rules.
    ///
    /// # Errors
    /// [`GatewayError`]; then nothing is left.
    pub fn open(spec: GatewaySpec) -> Result<Self, GatewayError> {
        spec.check()?;
        let tap = Tap::create(&spec.interface)?;
        tap.configure(Some(wire::Mac(spec.mac.0)), spec.mtu, &spec.addresses)?;
        let networks: Vec<_> = spec.addresses.iter().map(IpNet::trunc).collect();
        let masquerade =
            spec.masquerade.then(|| Masquerade::start(&spec.interface, &networks)).transpose()?;
        Ok(Self { tap, spec, masquerade })
    }

    /// Makes it a port of `switch`, which answers for its addresses.
    ///
    /// # Errors
    /// See [`Switch::add_tap`].
    pub fn connect(self, switch: &Switch) -> Result<Connected, ApiError> {
        let Self { tap, spec, masquerade } = self;
        let addresses: Vec<IpAddr> = spec.addresses.iter().map(IpNet::addr).collect();
        let (vni, mac, mtu) = (spec.vni, spec.mac, spec.mtu);
        let port = switch.add_tap(TapSpec { vni, mac, mtu, addresses }, tap)?;
        Ok(Connected { port, _masquerade: masquerade })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(change: impl FnOnce(&mut GatewaySpec)) -> Result<(), GatewayError> {
        let mut spec = GatewaySpec {
            interface: "slipway0".to_owned(),
            vni: 0,
            mtu: 1500,
            mac: slipway_api::gateway_mac(0),
            addresses: nets(&["10.88.0.1/16", "fd88::1/64"]),
            masquerade: false,
        };
        change(&mut spec);
        spec.check()
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().expect("an address")).collect()
    }

    #[test]
    fn what_can_not_be_an_interface_is_refused_by_name_before_anything_is_made() {
        spec(|_| {}).expect("can be used");
        spec(|s| s.addresses = nets(&["10.0.0.0/31"])).expect("RFC 3021");
        let refused = |change: fn(&mut GatewaySpec), value: &str| {
            let error = spec(change).expect_err(value).to_string();
            assert!(error.contains(value), "{value}: {error}");
        };
        for name in ["", "tap%d", "a/b", "sixteen-is-too-l", ".."] {
            assert!(spec(|s| s.interface = name.to_owned()).is_err(), "{name}");
        }
        refused(|s| s.vni = 1 << 24, "16777216");
        refused(|s| s.mtu = 67, "67");
        refused(|s| s.mtu = 1279, "IPv6 needs 1280");
        refused(|s| s.mac = Mac::BROADCAST, "ff:ff:ff:ff:ff:ff");
        refused(|s| s.addresses.clear(), "1 to 8");
        refused(|s| s.addresses = nets(&["10.88.0.0/16"]), "10.88.0.0/16");
        refused(|s| s.addresses = nets(&["10.88.255.255/16"]), "10.88.255.255/16");
        refused(|s| s.addresses = nets(&["fd88::1/64", "ff02::1/64"]), "ff02::1/64");
        refused(|s| s.addresses = nets(&["10.88.0.1/16", "10.89.0.1/16"]), "10.89.0.1/16");
    }
}
