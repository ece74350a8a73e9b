//! Rules, protocols and port ranges as text.

use std::{borrow::Cow, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{IpVersion, PolicyAction, PolicyDirection, PolicyRule};
use crate::error::shorten;

/// Why a text is no rule, protocol or port range: the words to blame, and what would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyTextError(String);

impl fmt::Display for PolicyTextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for PolicyTextError {}

fn refused(value: &str, expected: &str) -> PolicyTextError {
    PolicyTextError(format!("{:?} is not {expected}", shorten(value)))
}

/// Both ways through text, in JSON too.
macro_rules! serde_as_text {
    ($($kind:ty),*) => {$(
        impl Serialize for $kind {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    )*};
}
serde_as_text!(Protocol, PortRange);

/// An IP protocol by its number (IANA "Protocol Numbers").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol(pub u8);

impl Protocol {
    /// ICMP for IPv4.
    pub const ICMP: Self = Self(1);
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);
    /// ICMPv6.
    pub const ICMPV6: Self = Self(58);

    const NAMES: [(Self, &'static str); 4] =
        [(Self::ICMP, "icmp"), (Self::TCP, "tcp"), (Self::UDP, "udp"), (Self::ICMPV6, "icmpv6")];

    /// Whether rules may name its ports.
    #[must_use]
    pub const fn has_ports(self) -> bool {
        matches!(self, Self::TCP | Self::UDP)
    }

    /// The version of IP that it belongs to, if it does not go with both.
    #[must_use]
    pub const fn ip_version(self) -> Option<IpVersion> {
        match self {
            Self::ICMP => Some(IpVersion::Ipv4),
            Self::ICMPV6 => Some(IpVersion::Ipv6),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::NAMES.iter().find(|(protocol, _)| protocol == self) {
            Some((_, name)) => f.write_str(name),
            None => self.0.fmt(f),
        }
    }
}

impl FromStr for Protocol {
    type Err = PolicyTextError;

    fn from_str(text: &str) -> Result<Self, PolicyTextError> {
        let named = Self::NAMES.iter().find(|(_, name)| *name == text);
        named
            .map(|(protocol, _)| *protocol)
            .or_else(|| number(text).map(Self))
            .ok_or_else(|| refused(text, "tcp, udp, icmp, icmpv6 or a number up to 255"))
    }
}

/// Ports of TCP or UDP, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// `first` to `last`; `None` if they are the wrong way round.
    #[must_use]
    pub const fn new(first: u16, last: u16) -> Option<Self> {
        if first <= last { Some(Self { first, last }) } else { None }
    }

    /// The first port.
    #[must_use]
    pub const fn first(self) -> u16 {
        self.first
    }

    /// The last port, which is the first of a range of one.
    #[must_use]
    pub const fn last(self) -> u16 {
        self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

impl FromStr for PortRange {
    type Err = PolicyTextError;

    fn from_str(text: &str) -> Result<Self, PolicyTextError> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        number(first)
            .zip(number(last))
            .and_then(|(first, last)| Self::new(first, last))
            .ok_or_else(|| refused(text, "a port up to 65535, or two as in 8000-8080"))
    }
}

/// Digits only: `parse` alone would take a sign.
fn number<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

impl fmt::Display for PolicyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.action, self.direction)?;
        let conditions: [(&str, Option<&dyn fmt::Display>); 6] = [
            ("ip", self.ip.as_ref().map(|ip| ip as _)),
            ("protocol", self.protocol.as_ref().map(|protocol| protocol as _)),
            ("remote", self.remote.as_ref().map(|remote| remote as _)),
            ("ports", self.ports.as_ref().map(|ports| ports as _)),
            ("source-ports", self.source_ports.as_ref().map(|ports| ports as _)),
            ("icmp-type", self.icmp_type.as_ref().map(|kind| kind as _)),
        ];
        for (name, value) in conditions {
            if let Some(value) = value {
                write!(f, " {name} {value}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for PolicyRule {
    type Err = PolicyTextError;

    fn from_str(text: &str) -> Result<Self, PolicyTextError> {
        let mut words = text.split_ascii_whitespace();
        let action = match words.next().unwrap_or_default() {
            "allow" => PolicyAction::Allow,
            "deny" => PolicyAction::Deny,
            other => return Err(refused(other, "allow or deny, with which a rule begins")),
        };
        let direction = match words.next().unwrap_or_default() {
            "egress" => PolicyDirection::Egress,
            "ingress" => PolicyDirection::Ingress,
            other => return Err(refused(other, "egress (from the guest) or ingress (to it)")),
        };
        let mut rule = Self::any(action, direction);
        while let Some(name) = words.next() {
            let value = words
                .next()
                .ok_or_else(|| PolicyTextError(format!("{:?} needs a value", shorten(name))))?;
            let is_first = match name {
                "ip" => put(&mut rule.ip, ip_version(value)?),
                "protocol" => put(&mut rule.protocol, value.parse()?),
                "remote" => put(&mut rule.remote, prefix(value)?),
                "ports" => put(&mut rule.ports, value.parse()?),
                "source-ports" => put(&mut rule.source_ports, value.parse()?),
                "icmp-type" => {
                    let kind = number(value);
                    put(
                        &mut rule.icmp_type,
                        kind.ok_or_else(|| refused(value, "an ICMP type, 0 to 255"))?,
                    )
                }
                other => {
                    let expected = "ip, protocol, remote, ports, source-ports or icmp-type";
                    return Err(refused(other, expected));
                }
            };
            if !is_first {
                return Err(PolicyTextError(format!("{name:?} is given twice")));
            }
        }
        Ok(rule)
    }
}

/// Whether nothing was there before.
fn put<T>(place: &mut Option<T>, value: T) -> bool {
    place.replace(value).is_none()
}

fn ip_version(text: &str) -> Result<IpVersion, PolicyTextError> {
    match text {
        "ipv4" | "4" => Ok(IpVersion::Ipv4),
        "ipv6" | "6" => Ok(IpVersion::Ipv6),
        other => Err(refused(other, "ipv4 or ipv6")),
    }
}

/// A prefix, or an address alone.
fn prefix(text: &str) -> Result<ipnet::IpNet, PolicyTextError> {
    text.parse()
        .or_else(|_| text.parse::<std::net::IpAddr>().map(Into::into))
        .map_err(|_| refused(text, "an address or a prefix, as in 10.0.0.0/8"))
}
