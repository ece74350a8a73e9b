//! A policy as PMDs ask it: read-only, one list per direction, walked in order.

use std::net::IpAddr;

use ipnet::IpNet;
use slipway_api::{IpVersion, Policy, PolicyAction, PolicyRule, PortRange};

use super::Direction;
use super::subject::{Flow, Shows};
use crate::flow::Network;

/// What a policy says of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Allow,
    /// It is dropped.
    Deny,
}

impl From<PolicyAction> for Verdict {
    fn from(action: PolicyAction) -> Self {
        match action {
            PolicyAction::Allow => Self::Allow,
            PolicyAction::Deny => Self::Deny,
        }
    }
}

/// A verdict, and the rule it is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ruling<'a> {
    /// What is said.
    pub verdict: Verdict,
    /// Its rule, counted from 1 as it was written, and as text; `None`: the default action.
    pub rule: Option<(usize, &'a str)>,
}

/// The rules of one vport.
#[derive(Debug)]
pub struct Rules {
    egress: List,
    ingress: List,
}

#[derive(Debug)]
struct List {
    conditions: Box<[Condition]>,
    /// Number and text of each, for people.
    texts: Box<[(usize, String)]>,
    default: Verdict,
}

/// What a frame must be; ranges have both ends, and span everything where the rule names nothing.
#[derive(Debug)]
struct Condition {
    remote: u128,
    remote_mask: u128,
    ports: (u16, u16),
    source_ports: (u16, u16),
    needs: Needs,
    network: Option<Network>,
    protocol: Option<u8>,
    verdict: Verdict,
}

/// What a frame must show of its transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    Ports,
    IcmpType(u8),
}

impl Rules {
    /// The rules of `policy`, which was checked.
    pub fn new(policy: &Policy) -> Self {
        let list = |direction| {
            let of_direction = || {
                let numbered = policy.rules.iter().enumerate();
                numbered.filter(move |(_, rule)| rule.direction == direction)
            };
            List {
                conditions: of_direction().map(|(_, rule)| Condition::new(rule)).collect(),
                texts: of_direction().map(|(at, rule)| (at + 1, rule.to_string())).collect(),
                default: policy.default_of(direction).into(),
            }
        };
        Self { egress: list(Direction::Egress), ingress: list(Direction::Ingress) }
    }

    fn list(&self, direction: Direction) -> &List {
        match direction {
            Direction::Egress => &self.egress,
            Direction::Ingress => &self.ingress,
        }
    }

    /// What is said of frames that no rule matches.
    pub fn default_of(&self, direction: Direction) -> Verdict {
        self.list(direction).default
    }

    /// What the first rule that matches says.
    pub fn judge(&self, direction: Direction, flow: &Flow) -> Ruling<'_> {
        let list = self.list(direction);
        let remote = match direction {
            Direction::Egress => flow.key.dst,
            Direction::Ingress => flow.key.src,
        };
        match list.conditions.iter().position(|condition| condition.holds(remote, flow)) {
            None => Ruling { verdict: list.default, rule: None },
            Some(at) => {
                let (number, text) = &list.texts[at];
                Ruling { verdict: list.conditions[at].verdict, rule: Some((*number, text)) }
            }
        }
    }
}

impl Condition {
    fn new(rule: &PolicyRule) -> Self {
        let (remote, remote_mask) = rule.remote.map_or((0, 0), bits_and_mask);
        let range = |range: Option<PortRange>| {
            range.map_or((0, u16::MAX), |range| (range.first(), range.last()))
        };
        let version = rule.ip.or(rule.remote.map(|remote| match remote {
            IpNet::V4(_) => IpVersion::Ipv4,
            IpNet::V6(_) => IpVersion::Ipv6,
        }));
        Self {
            remote,
            remote_mask,
            ports: range(rule.ports),
            source_ports: range(rule.source_ports),
            needs: match rule.icmp_type {
                Some(kind) => Needs::IcmpType(kind),
                None if rule.ports.or(rule.source_ports).is_some() => Needs::Ports,
                None => Needs::Nothing,
            },
            network: version.map(|version| match version {
                IpVersion::Ipv4 => Network::Ipv4,
                IpVersion::Ipv6 => Network::Ipv6,
            }),
            protocol: rule.protocol.map(|protocol| protocol.0),
            verdict: rule.action.into(),
        }
    }

    fn holds(&self, remote: u128, flow: &Flow) -> bool {
        let within = |(first, last): (u16, u16), port: u16| (first..=last).contains(&port);
        self.network.is_none_or(|network| network == flow.key.network)
            && self.protocol.is_none_or(|protocol| protocol == flow.key.protocol)
            && remote & self.remote_mask == self.remote
            && match (self.needs, flow.shows) {
                (Needs::Nothing, _) => true,
                (Needs::Ports, Shows::Ports) => {
                    within(self.ports, flow.key.dst_port)
                        && within(self.source_ports, flow.key.src_port)
                }
                (Needs::IcmpType(wanted), Shows::IcmpType(kind)) => wanted == kind,
                _ => false,
            }
    }
}

/// IPv4 in the low 32 bits, as in a flow's key.
fn bits_and_mask(prefix: IpNet) -> (u128, u128) {
    let bits = |address| match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    };
    (bits(prefix.network()), bits(prefix.netmask()))
}
