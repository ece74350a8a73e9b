//! The policy of a port: which frames its guest may send, and which it may receive.
//!
//! ```text
//! guest --egress--> rules, first match, else egress_default  --> switch
//! guest <-ingress-- rules, first match, else ingress_default <-- switch
//! ```
//! A policy is stateless: it knows frames, not connections, so answers need a rule of their own
//! (`source_ports`, for the answers of a server). What it is for:
//!  * **ARP and neighbour discovery** always pass (solicitations and advertisements that come from the
//!    link itself: hop limit 255), or no other rule would ever be asked.
//!  * **Other EtherTypes** match no rule: the default action is theirs.
//!  * **IPv6 extension headers** are looked through: the protocol is the one behind them.
//!  * **Later fragments** have no ports and no ICMP type: rules that name one never match them.
//!  * **Headers** that are broken, or reach beyond the first 128 bytes, are dropped (`malformed`).
//!
//! # Text
//! A rule has a text form, for the command line and for people, with its conditions in any order:
//! ```text
//! allow egress protocol tcp remote 10.0.0.0/8 ports 80-90
//! deny ingress ip ipv6 protocol icmpv6 icmp-type 128
//! ```

mod text;

use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ApiError;

pub use text::{PolicyTextError, PortRange, Protocol};

/// The most rules of one port: a frame whose verdict is not known yet walks them all.
pub const MAX_POLICY_RULES: usize = 256;

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PolicyAction {
    /// It goes on.
    Allow,
    /// It is dropped, and counted as `policy_egress` or `policy_ingress`.
    #[default]
    Deny,
}

/// Which way a frame goes, as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PolicyDirection {
    /// From the guest.
    Egress,
    /// To the guest.
    Ingress,
}

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum IpVersion {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

macro_rules! words {
    ($($kind:ty),*) => {$(
        impl fmt::Display for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.serialize(f)
            }
        }
    )*};
}
words!(PolicyAction, PolicyDirection, IpVersion);

/// What is done with frames of one kind. What it does not name may be anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyRule {
    /// What becomes of the frame.
    pub action: PolicyAction,
    /// Which way it goes.
    pub direction: PolicyDirection,
    /// Its version of IP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub ip: Option<IpVersion>,
    /// Its IP protocol: `tcp`, `udp`, `icmp`, `icmpv6`, or a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = String)]
    pub protocol: Option<Protocol>,
    /// Where the other side is: the destination of egress, the source of ingress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = String)]
    pub remote: Option<IpNet>,
    /// Its destination port: `80`, or `8000-8080`. TCP and UDP only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = String)]
    pub ports: Option<PortRange>,
    /// Its source port, in the same form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = String)]
    pub source_ports: Option<PortRange>,
    /// Its type of ICMP or ICMPv6 message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub icmp_type: Option<u8>,
}

/// The policy of a port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// What becomes of frames from the guest that no rule matches; default: they are dropped.
    #[serde(default)]
    pub egress_default: PolicyAction,
    /// What becomes of frames to the guest that no rule matches; default: they are dropped.
    #[serde(default)]
    pub ingress_default: PolicyAction,
    /// The rules, at most 256: of those for its way, the first that matches a frame decides.
    #[serde(default)]
    #[schema(max_items = 256)]
    pub rules: Vec<PolicyRule>,
}

impl Policy {
    /// What becomes of frames that no rule matches.
    #[must_use]
    pub const fn default_of(&self, direction: PolicyDirection) -> PolicyAction {
        match direction {
            PolicyDirection::Egress => self.egress_default,
            PolicyDirection::Ingress => self.ingress_default,
        }
    }

    /// Refuses what can match nothing, and too much.
    ///
    /// # Errors
    /// [`crate::ErrorCode::InvalidValue`]; the field is a path such as `policy.rules[3].ports`.
    pub fn check(&self) -> Result<(), ApiError> {
        if self.rules.len() > MAX_POLICY_RULES {
            return Err(ApiError::invalid(
                "policy.rules",
                self.rules.len(),
                "A policy has at most 256 rules",
                "Join prefixes and port ranges, or deny by default and name what is allowed",
            ));
        }
        self.rules.iter().enumerate().try_for_each(|(at, rule)| rule.check(at))
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for rule in &self.rules {
            write!(f, "{rule}; ")?;
        }
        write!(f, "default egress {}, ingress {}", self.egress_default, self.ingress_default)
    }
}

impl PolicyRule {
    /// A rule for all frames that go this way.
    #[must_use]
    pub const fn any(action: PolicyAction, direction: PolicyDirection) -> Self {
        Self {
            action,
            direction,
            ip: None,
            protocol: None,
            remote: None,
            ports: None,
            source_ports: None,
            icmp_type: None,
        }
    }

    fn check(&self, at: usize) -> Result<(), ApiError> {
        let refused = |field: &str, value: &dyn fmt::Display, message: &str, remedy: &str| {
            Err(ApiError::invalid(&format!("policy.rules[{at}].{field}"), value, message, remedy))
        };
        let of_protocol = self.protocol.and_then(Protocol::ip_version);
        let of_remote = self.remote.map(|remote| match remote {
            IpNet::V4(_) => IpVersion::Ipv4,
            IpNet::V6(_) => IpVersion::Ipv6,
        });
        let has_ports = self.protocol.is_some_and(Protocol::has_ports);
        let ports = [("ports", self.ports), ("source_ports", self.source_ports)];
        if let Some((field, Some(range))) =
            ports.iter().find(|(_, range)| range.is_some() && !has_ports)
        {
            return refused(
                field,
                range,
                "Only TCP and UDP have ports",
                "Set `protocol` to tcp or udp; for both, write two rules",
            );
        }
        if let Some(kind) = self.icmp_type.filter(|_| of_protocol.is_none()) {
            return refused(
                "icmp_type",
                &kind,
                "Only ICMP and ICMPv6 have message types",
                "Set `protocol` to icmp or icmpv6",
            );
        }
        match (self.protocol, of_protocol, self.ip.or(of_remote)) {
            (Some(protocol), Some(of), Some(other)) if of != other => {
                return refused(
                    "protocol",
                    &protocol,
                    &format!("{protocol} is a protocol of {of}, and the rule is for {other}"),
                    "Use icmp with IPv4 and icmpv6 with IPv6",
                );
            }
            _ => {}
        }
        match (self.remote, of_remote, self.ip) {
            (Some(remote), Some(of), Some(ip)) if of != ip => refused(
                "remote",
                &remote,
                &format!("The prefix is of {of}, and the rule is for {ip}"),
                "Leave `ip` out: it follows from the prefix",
            ),
            (Some(remote), ..) if remote != remote.trunc() => refused(
                "remote",
                &remote,
                "The prefix has bits set behind its length",
                &format!("Write {}, or /32 or /128 for one address", remote.trunc()),
            ),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
