//! Who has this address? The switch knows, and answers itself.
//!
//! ```text
//! "who has 10.88.0.7?" from a pod --+--> known:   the answer, to the sender alone
//!   (ARP, neighbour discovery)      '--> unknown: on its way, as any frame; dropped if all that
//!                                        there is in the segment is known
//! "10.88.0.7 is here"  from a pod ----> not true: dropped, nobody is misled
//! ```
//! So a question for a guest of the segment, or for the host, reaches none of the others: with 400
//! pods on a host, broadcasts are what every pod would pay for. What is known are the addresses that
//! ports are bound to, and the link-local ones of their MAC addresses ([`Neighbours`]); they are published
//! with the other tables, and nothing is learned from frames.
//!
//! # What passes
//! Questions for the unknown, where some port is bound to no address; those of a guest for its own
//! (duplicate address detection); announcements that agree with what is known; whatever has a VLAN tag,
//! as it belongs to a network of the guests' own; and neighbour discovery to one address, which floods
//! nothing anyway.
//!
//! # Bounds
//! An ordinary frame costs a compare of its EtherType and of the group bit. A question costs one or
//! two look-ups in a table that guests can not fill.
//!
//! # Threads
//! Plain functions of bytes and an immutable table.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv6Addr};

use crate::flow::L2;
use crate::frame::HEAD;
use crate::port::PortId;
use crate::stats::DropReason;
use crate::wire::arp::{self, Arp};
use crate::wire::checksum::Sum;
use crate::wire::ethernet::{self, ETHERTYPE_ARP, ETHERTYPE_IPV6};
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::ndp::{self, Ndp};
use crate::wire::{Mac, icmp};

/// Where ARP and IPv6 start: only frames without tags are looked at.
const L3: usize = ethernet::HEADER_LEN;
const L4: usize = L3 + ipv6::HEADER_LEN;

/// Ethernet's shortest frame, without its check sequence (IEEE 802.3, clause 4.2.3.3).
const ARP_FRAME: usize = 60;
const ADVERT_LEN: usize = ndp::MESSAGE_LEN + ndp::ADDRESS_OPTION_LEN;
const ADVERT_FRAME: usize = L4 + ADVERT_LEN;
const _: () = assert!(ADVERT_FRAME <= HEAD && ARP_FRAME <= HEAD);

/// All nodes of the link, and their Ethernet group (RFC 2464, section 7).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);

/// Who has an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// Its Ethernet address.
    pub mac: Mac,
    /// The vport that it is behind.
    pub port: PortId,
}

/// Who has which address, by segment.
///
/// A sorted list: a new one is made for each port that comes or goes, for all ports there are, which is when
/// hundreds of pods start at once; a question is rare.
#[derive(Debug, Clone, Default)]
pub struct Neighbours {
    known: Vec<((u16, IpAddr), Neighbour)>,
    /// Segments all of whose addresses are known.
    complete: HashSet<u16>,
}

impl FromIterator<((u16, IpAddr), Neighbour)> for Neighbours {
    /// Who has which address in which segment; of several that have one, the last has it.
    fn from_iter<I: IntoIterator<Item = ((u16, IpAddr), Neighbour)>>(entries: I) -> Self {
        let mut known = Vec::from_iter(entries);
        known.sort_by_key(|(key, _)| *key);
        known.dedup_by(|later, earlier| {
            let is_same = later.0 == earlier.0;
            if is_same {
                earlier.1 = later.1;
            }
            is_same
        });
        Self { known, complete: HashSet::new() }
    }
}

impl Neighbours {
    /// Notes who has an address; whoever had it before has it no more.
    pub fn insert(&mut self, segment: u16, address: IpAddr, neighbour: Neighbour) {
        let key = (segment, address);
        match self.known.binary_search_by_key(&key, |(known, _)| *known) {
            Ok(at) => self.known[at].1 = neighbour,
            Err(at) => self.known.insert(at, (key, neighbour)),
        }
    }

    /// Notes that what is not known in this segment is nobody's.
    pub fn set_complete(&mut self, segment: u16) {
        self.complete.insert(segment);
    }

    /// Who has the address, if that is known.
    pub fn get(&self, segment: u16, address: impl Into<IpAddr>) -> Option<Neighbour> {
        let wanted = (segment, address.into());
        let found = self.known.binary_search_by_key(&wanted, |(key, _)| *key);
        found.ok().map(|at| self.known[at].1)
    }
}

/// How a question is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    mac: Mac,
    form: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// To an ARP request.
    Arp,
    /// To a solicitation of a neighbour with an address.
    Advert,
    /// To one that asks whether it may take the address: it has none to be answered at.
    AdvertToAll,
}

/// What becomes of a frame: `Ok(None)` if it goes its way. `l2` is what was read in `head`, the
/// frame's first bytes.
///
/// # Errors
/// The frame says of an address what is not true.
#[inline]
pub fn ask(
    known: &Neighbours,
    (segment, port): (u16, PortId),
    l2: &L2,
    head: &[u8],
) -> Result<Option<Answer>, DropReason> {
    if l2.ethertype != ETHERTYPE_ARP && !l2.is_to_group() {
        return Ok(None);
    }
    ask_of(known, (segment, port), l2, head)
}

#[cold]
fn ask_of(
    known: &Neighbours,
    from: (u16, PortId),
    l2: &L2,
    head: &[u8],
) -> Result<Option<Answer>, DropReason> {
    let packet = head.get(L3..).filter(|_| l2.tags == 0).unwrap_or_default();
    let look = Look { known, from };
    match l2.ethertype {
        // What is no ARP for IPv4 over Ethernet, or no solicitation that a host would heed, is not
        // ours to judge.
        ETHERTYPE_ARP => Arp::parse(packet).map_or(Ok(None), |arp| look.arp(&arp)),
        ETHERTYPE_IPV6 => look.ndp(packet, l2.src_mac()).unwrap_or(Ok(None)),
        _ => Ok(None),
    }
}

/// A look at one frame.
#[derive(Clone, Copy)]
struct Look<'a> {
    known: &'a Neighbours,
    from: (u16, PortId),
}

impl Look<'_> {
    fn arp(self, arp: &Arp<'_>) -> Result<Option<Answer>, DropReason> {
        let (sender, target) = (arp.sender_ip(), arp.target_ip());
        self.claim(sender, arp.sender_mac())?;
        // An announcement asks for the sender's own address (RFC 5227, section 3).
        if arp.operation() != arp::REQUEST || sender == target {
            return Ok(None);
        }
        self.other(target, Form::Arp)
    }

    /// `None`: not neighbour discovery as RFC 4861, section 7.1, has it. The checksum is not looked
    /// at: a question that was damaged costs an answer that nobody waits for.
    fn ndp(self, packet: &[u8], mac: Mac) -> Option<Result<Option<Answer>, DropReason>> {
        let ip = Ipv6::parse(packet).ok()?;
        if ip.next_header() != icmp::PROTOCOL_V6 || ip.hop_limit() != ndp::HOP_LIMIT {
            return None;
        }
        let end = ipv6::HEADER_LEN + usize::from(ip.payload_len());
        let ndp = Ndp::parse(packet.get(ipv6::HEADER_LEN..end)?).ok()?;
        Some(match ndp.kind() {
            ndp::SOLICITATION => self.claim(ip.src(), mac).and_then(|()| {
                let form = if ip.src().is_unspecified() { Form::AdvertToAll } else { Form::Advert };
                self.other(ndp.target(), form)
            }),
            _ => self.claim(ndp.target(), mac).map(|()| None),
        })
    }

    /// Refuses what is known to be another's.
    fn claim(self, address: impl Into<IpAddr>, mac: Mac) -> Result<(), DropReason> {
        let (segment, port) = self.from;
        match self.known.get(segment, address) {
            Some(owner) if owner != (Neighbour { mac, port }) => Err(DropReason::Spoofed),
            _ => Ok(()),
        }
    }

    /// Who has `address`; nothing if it is the sender itself, or unknown.
    fn other(self, address: impl Into<IpAddr>, form: Form) -> Result<Option<Answer>, DropReason> {
        let (segment, port) = self.from;
        match self.known.get(segment, address) {
            Some(owner) if owner.port == port => Ok(None),
            Some(owner) => Ok(Some(Answer { mac: owner.mac, form })),
            None if self.known.complete.contains(&segment) => Err(DropReason::NoRoute),
            None => Ok(None),
        }
    }
}

impl Answer {
    /// The address that the sender is told.
    pub fn mac(self) -> Mac {
        self.mac
    }

    /// Bytes of the answer, from the Ethernet header on.
    #[expect(clippy::len_without_is_empty, reason = "no answer is empty")]
    pub fn len(self) -> usize {
        match self.form {
            Form::Arp => ARP_FRAME,
            Form::Advert | Form::AdvertToAll => ADVERT_FRAME,
        }
    }

    /// Turns the question in `frame` into the answer to it, which is [`Self::len`] bytes long.
    pub fn write(self, frame: &mut [u8; HEAD]) {
        let asker: [u8; 6] = *frame[6..].first_chunk().expect("6 of 128 bytes");
        frame[..6].copy_from_slice(&asker);
        frame[6..12].copy_from_slice(&self.mac.0);
        match self.form {
            Form::Arp => self.write_arp(frame),
            Form::Advert => self.write_advert(frame, ndp::SOLICITED | ndp::OVERRIDE),
            Form::AdvertToAll => {
                frame[..6].copy_from_slice(&ALL_NODES_MAC.0);
                frame[L3 + 8..L3 + 24].copy_from_slice(&ALL_NODES.octets());
                self.write_advert(frame, ndp::OVERRIDE);
            }
        }
    }

    /// RFC 826: sender and target change places, and the sender is who was asked for.
    fn write_arp(self, frame: &mut [u8; HEAD]) {
        let packet = &mut frame[L3..];
        packet[6..8].copy_from_slice(&arp::REPLY.to_be_bytes());
        let target: [u8; 4] = *packet[24..].first_chunk().expect("4 of 114 bytes");
        packet.copy_within(8..18, 18);
        packet[8..14].copy_from_slice(&self.mac.0);
        packet[14..18].copy_from_slice(&target);
        packet[arp::PACKET_LEN..].fill(0);
    }

    /// RFC 4861, section 4.4: to the question's IPv6 source, from the address that was asked for.
    fn write_advert(self, frame: &mut [u8; HEAD], flags: u8) {
        let source: [u8; 16] = *frame[L3 + 8..].first_chunk().expect("16 of 106 bytes");
        let target: [u8; 16] = *frame[L4 + 8..].first_chunk().expect("16 of 66 bytes");
        let ip = &mut frame[L3..L4];
        ip[..4].copy_from_slice(&[0x60, 0, 0, 0]);
        ip[4..6].copy_from_slice(&(ADVERT_LEN as u16).to_be_bytes());
        ip[8..24].copy_from_slice(&target);
        ip[24..].copy_from_slice(&source);
        let message = &mut frame[L4..ADVERT_FRAME];
        message[..8].copy_from_slice(&[ndp::ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0]);
        message[ndp::MESSAGE_LEN..ndp::MESSAGE_LEN + 2].copy_from_slice(&[ndp::TARGET_ADDRESS, 1]);
        message[ndp::MESSAGE_LEN + 2..].copy_from_slice(&self.mac.0);
        let (from, to) = (Ipv6Addr::from(target), Ipv6Addr::from(source));
        let mut sum = Sum::pseudo_ipv6(from, to, icmp::PROTOCOL_V6, ADVERT_LEN as u32);
        sum.add(message);
        message[2..4].copy_from_slice(&sum.finish().to_be_bytes());
    }
}

#[cfg(test)]
mod tests;
