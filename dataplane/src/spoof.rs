//! Which source addresses a vport may use.
//!
//! The first thing asked of a frame that can be read at all:
//!  1. its Ethernet source is the vport's own, if that is to be checked ([`ethernet`]);
//!  2. if the vport is bound to IP addresses, the frame is IPv4, IPv6 or ARP, and every address it
//!     claims to come from or to own is among them ([`Bound::check`]).
//!
//! A guest claims an address by sending from it, and by telling others where it is: in ARP and in
//! neighbour discovery, solicitations included, as those who hear them remember. A bound guest is no
//! router either: its router advertisements and redirects go nowhere (RFC 6105).
//!
//! # Bounds
//! Headers within the first 128 bytes are judged. What can not be judged, as its headers are too deep
//! or broken, is dropped: nothing hides behind an extension header.
//!
//! # Threads
//! Plain functions of bytes.

use std::net::{IpAddr, Ipv6Addr};

use arrayvec::ArrayVec;
use slipway_api::MAX_ADDRESSES;

use crate::flow::{self, Fragment, L2};
use crate::port::VportRules;
use crate::stats::DropReason;
use crate::wire::arp::Arp;
use crate::wire::ethernet::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, GROUP_BIT};
use crate::wire::ndp::{self, Ndp};
use crate::wire::{Mac, icmp, tcp, udp};

/// ICMPv6 types that a host without an address yet sends: reports of the groups it listens to (RFC
/// 2710, RFC 3810).
const LISTENER_REPORTS: [u8; 3] = [131, 132, 143];

/// Whether the vport may use this Ethernet source address.
///
/// # Errors
/// The reason to drop the frame.
#[inline]
pub fn ethernet(rules: &VportRules, l2: &L2) -> Result<(), DropReason> {
    if l2.src & GROUP_BIT != 0 || l2.src == 0 {
        // Neither a group nor nobody can be a source (IEEE 802.3, clause 3.2.3).
        return Err(DropReason::Malformed);
    }
    match rules.mac {
        Some(mac) if rules.anti_spoof && mac != l2.src => Err(DropReason::Spoofed),
        _ => Ok(()),
    }
}

/// The addresses that a vport is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    mac: Mac,
    v4: ArrayVec<u32, MAX_ADDRESSES>,
    /// With the link-local address of `mac`, which every IPv6 host has.
    v6: ArrayVec<u128, { MAX_ADDRESSES + 1 }>,
}

impl Bound {
    /// Binds a guest to its Ethernet address and the first [`MAX_ADDRESSES`] of `addresses`.
    pub fn new(mac: Mac, addresses: &[IpAddr]) -> Self {
        let mut bound = Self { mac, v4: ArrayVec::new(), v6: ArrayVec::new() };
        bound.v6.push(ndp::link_local(mac).to_bits());
        for address in addresses.iter().take(MAX_ADDRESSES) {
            match address {
                IpAddr::V4(address) => bound.v4.push(address.to_bits()),
                IpAddr::V6(address) => bound.v6.push(address.to_bits()),
            }
        }
        bound
    }

    /// Whether all that a frame claims is the guest's. `head` is the frame's first
    /// [`flow::HEAD_LEN`] bytes, or all, and `l2` what was read there.
    ///
    /// # Errors
    /// The reason to drop the frame.
    #[inline]
    pub fn check(&self, l2: &L2, head: &[u8], frame_len: u32) -> Result<(), DropReason> {
        let packet = head.get(usize::from(l2.len)..).unwrap_or_default();
        match l2.ethertype {
            ETHERTYPE_IPV4 => {
                let source = *packet.get(12..).and_then(<[u8]>::first_chunk).ok_or(CUT)?;
                owned(self.v4.contains(&u32::from_be_bytes(source)))
            }
            ETHERTYPE_IPV6 => {
                let source = *packet.get(8..).and_then(<[u8]>::first_chunk).ok_or(CUT)?;
                let is_own = self.v6.contains(&u128::from_be_bytes(source));
                if is_own && matches!(packet[6], tcp::PROTOCOL | udp::PROTOCOL) {
                    return Ok(());
                }
                self.check_ipv6(Ipv6Addr::from(source), head, frame_len)
            }
            ETHERTYPE_ARP => self.check_arp(packet),
            _ => Err(DropReason::Spoofed),
        }
    }

    fn check_arp(&self, packet: &[u8]) -> Result<(), DropReason> {
        let arp = Arp::parse(packet).map_err(|_| CUT)?;
        let sender = arp.sender_ip();
        // A probe names no sender (RFC 5227, section 2.1.1).
        let is_own = sender.is_unspecified() || self.v4.contains(&sender.to_bits());
        owned(is_own && arp.sender_mac() == self.mac)
    }

    /// IPv6 that is not plainly TCP or UDP from an address of its own.
    #[cold]
    fn check_ipv6(&self, source: Ipv6Addr, head: &[u8], len: u32) -> Result<(), DropReason> {
        let parsed = flow::parse(head, len).map_err(|_| CUT)?;
        let is_icmp = parsed.key.protocol == icmp::PROTOCOL_V6;
        // Hosts ignore neighbour discovery in fragments (RFC 6980).
        let message = (is_icmp && parsed.fragment == Fragment::Whole).then(|| {
            let end = (parsed.l3_end as usize).min(head.len());
            &head[usize::from(parsed.l4)..end]
        });
        let kind = message.map(|message| message[0]);
        let is_whole = parsed.l3_end as usize <= head.len();
        if source.is_unspecified() {
            let is_early = kind.is_some_and(|kind| LISTENER_REPORTS.contains(&kind));
            owned(is_early || kind == Some(ndp::SOLICITATION))?;
        } else {
            owned(self.owns(source))?;
        }
        match kind {
            Some(ndp::ROUTER_ADVERTISEMENT | ndp::REDIRECT) => Err(DropReason::Spoofed),
            Some(kind @ (ndp::SOLICITATION | ndp::ADVERTISEMENT)) if is_whole => {
                let ndp = Ndp::parse(message.unwrap_or_default()).map_err(|_| CUT)?;
                // It announces the target, or asks whether it is free to take it.
                let is_claim = kind == ndp::ADVERTISEMENT || source.is_unspecified();
                owned(!is_claim || self.owns(ndp.target()))?;
                owned(ndp.addresses().all(|mac| mac == self.mac))
            }
            // Options beyond the head, which no host sends.
            Some(ndp::SOLICITATION | ndp::ADVERTISEMENT) => Err(CUT),
            _ => Ok(()),
        }
    }

    fn owns(&self, address: Ipv6Addr) -> bool {
        self.v6.contains(&address.to_bits())
    }
}

/// Headers that end too early, contradict themselves or reach too far.
const CUT: DropReason = DropReason::Malformed;

#[inline]
fn owned(is_own: bool) -> Result<(), DropReason> {
    if is_own { Ok(()) } else { Err(DropReason::Spoofed) }
}

#[cfg(test)]
mod tests;
