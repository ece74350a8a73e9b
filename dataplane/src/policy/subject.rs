//! What the rules see of a frame.

use crate::flow::{self, FlowKey, Fragment, Network, ParseError};
use crate::wire::ethernet::{ETHERTYPE_ARP, ETHERTYPE_IPV6};
use crate::wire::{icmp, ndp, tcp, udp};

/// Where the hop limit is in an IPv6 header (RFC 8200, section 3).
const HOP_LIMIT_AT: usize = 7;

/// A frame, as far as policy goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// What keeps the link going: it passes whatever the rules say.
    Exempt,
    /// Neither IPv4 nor IPv6.
    Other,
    /// IPv4 or IPv6.
    Flow(Flow),
}

/// All that rules can ask of an IP datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Addresses, protocol, ports.
    pub key: FlowKey,
    /// What the datagram shows of its transport.
    pub shows: Shows,
}

/// What a datagram shows of its transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shows {
    /// Nothing that rules ask for: another protocol, or a later fragment.
    Nothing,
    /// Ports, in the key.
    Ports,
    /// A type of ICMP or ICMPv6 message.
    IcmpType(u8),
}

impl Subject {
    /// Reads the head of a frame of `frame_len` bytes.
    ///
    /// # Errors
    /// A header is broken or reaches beyond the head; see [`flow::parse`].
    #[inline]
    pub fn read(head: &[u8], frame_len: u32) -> Result<Self, ParseError> {
        let parsed = flow::parse(head, frame_len)?;
        if parsed.key.network == Network::Other {
            let is_arp = parsed.l2.ethertype == ETHERTYPE_ARP;
            return Ok(if is_arp { Self::Exempt } else { Self::Other });
        }
        let is_icmp = match parsed.key.network {
            Network::Ipv4 => parsed.key.protocol == icmp::PROTOCOL_V4,
            _ => parsed.key.protocol == icmp::PROTOCOL_V6,
        };
        let shows = match (parsed.fragment, parsed.key.protocol) {
            (Fragment::Later, _) => Shows::Nothing,
            (_, tcp::PROTOCOL | udp::PROTOCOL) => Shows::Ports,
            // Read by `parse`, which found the whole header.
            _ if is_icmp => Shows::IcmpType(head[usize::from(parsed.l4)]),
            _ => Shows::Nothing,
        };
        // Hosts ignore neighbour discovery from beyond the link, and in fragments (RFC 4861, section 7.1;
        // RFC 6980).
        let is_discovery = parsed.l2.ethertype == ETHERTYPE_IPV6
            && parsed.fragment == Fragment::Whole
            && matches!(shows, Shows::IcmpType(ndp::SOLICITATION | ndp::ADVERTISEMENT))
            && head[usize::from(parsed.l2.len) + HOP_LIMIT_AT] == ndp::HOP_LIMIT;
        Ok(if is_discovery { Self::Exempt } else { Self::Flow(Flow { key: parsed.key, shows }) })
    }
}
