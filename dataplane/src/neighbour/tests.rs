//! Questions and answers, built and read by `etherparse`.

use std::net::Ipv4Addr;

use etherparse::{
    ArpEthIpv4Packet, ArpOperation, EtherType, LinkSlice, NetSlice, PacketBuilder, SlicedPacket,
    TransportSlice, VlanId,
};
use proptest::prelude::*;

use super::*;
use crate::flow;

const SEGMENT: u16 = 3;
const ASKER: Neighbour = Neighbour { mac: Mac([2, 0, 0, 0, 0, 1]), port: PortId(1) };
const OTHER: Neighbour = Neighbour { mac: Mac([2, 0, 0, 0, 0, 2]), port: PortId(2) };
const BROADCAST: [u8; 6] = [0xff; 6];
const NOBODY: Mac = Mac([0; 6]);

fn v4(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 88, 0, n)
}

fn v6(n: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd88, 0, 0, 0, 0, 0, 0, n)
}

/// Addresses end as the port's number does.
fn known() -> Neighbours {
    let mut known = Neighbours::default();
    for neighbour in [ASKER, OTHER] {
        let n = neighbour.port.0 as u8;
        known.insert(SEGMENT, v4(n).into(), neighbour);
        known.insert(SEGMENT, v6(n.into()).into(), neighbour);
    }
    known
}

fn asked_of(known: &Neighbours, segment: u16, frame: &[u8]) -> Result<Option<Answer>, DropReason> {
    let head = &frame[..frame.len().min(HEAD)];
    let l2 = flow::l2(head, frame.len() as u32).expect("an Ethernet header");
    ask(known, (segment, ASKER.port), &l2, head)
}

/// What becomes of a frame from the asker's port.
fn asked(frame: &[u8]) -> Result<Option<Answer>, DropReason> {
    asked_of(&known(), SEGMENT, frame)
}

/// The bytes that the asker receives.
fn answer_to(frame: &[u8]) -> Vec<u8> {
    let answer = asked(frame).expect("no lie").expect("an answer");
    assert_eq!(answer.mac(), OTHER.mac);
    let mut head = [0xee; HEAD];
    let len = frame.len().min(HEAD);
    head[..len].copy_from_slice(&frame[..len]);
    answer.write(&mut head);
    head[..answer.len()].to_vec()
}

fn arp_packet(op: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> ArpEthIpv4Packet {
    ArpEthIpv4Packet {
        operation: ArpOperation(op),
        sender_mac: sender.0.0,
        sender_ipv4: sender.1.octets(),
        target_mac: target.0.0,
        target_ipv4: target.1.octets(),
    }
}

/// As Linux sends it, padded.
fn arp_to(to: [u8; 6], packet: &ArpEthIpv4Packet) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(packet.sender_mac, to);
    builder.arp(packet.clone().into()).write(&mut frame).expect("writes");
    frame.resize(60, 0);
    frame
}

fn who_has(sender: (Mac, Ipv4Addr), target: Ipv4Addr) -> Vec<u8> {
    arp_to(BROADCAST, &arp_packet(arp::REQUEST, sender, (NOBODY, target)))
}

/// The group of a solicited node (RFC 4291, section 2.7.1) and its Ethernet group.
fn solicited_node(target: Ipv6Addr) -> (Ipv6Addr, [u8; 6]) {
    let [.., a, b, c] = target.octets();
    let group = 0xff02_0000_0000_0000_0000_0001_ff00_0000;
    let group = group | u128::from(u32::from_be_bytes([0, a, b, c]));
    (Ipv6Addr::from_bits(group), [0x33, 0x33, 0xff, a, b, c])
}

struct Nd {
    kind: u8,
    source: Ipv6Addr,
    target: Ipv6Addr,
    hops: u8,
    options: Vec<u8>,
}

impl Nd {
    fn solicitation(source: Ipv6Addr, target: Ipv6Addr) -> Self {
        let [a, b, c, d, e, f] = ASKER.mac.0;
        let options = match source.is_unspecified() {
            true => vec![],
            false => vec![ndp::SOURCE_ADDRESS, 1, a, b, c, d, e, f],
        };
        Self { kind: ndp::SOLICITATION, source, target, hops: 255, options }
    }

    fn advertisement(target: Ipv6Addr) -> Self {
        Self { kind: ndp::ADVERTISEMENT, source: target, target, hops: 255, options: vec![] }
    }

    fn build(&self) -> Vec<u8> {
        let (group, mac) = match self.kind {
            ndp::SOLICITATION => solicited_node(self.target),
            _ => (ALL_NODES, ALL_NODES_MAC.0),
        };
        let mut frame = Vec::new();
        let body = [&self.target.octets()[..], &self.options].concat();
        PacketBuilder::ethernet2(ASKER.mac.0, mac)
            .ipv6(self.source.octets(), group.octets(), self.hops)
            .icmpv6_raw(self.kind, 0, [0; 4])
            .write(&mut frame, &body)
            .expect("writes");
        frame
    }
}

#[test]
fn who_asks_for_a_known_address_is_told() {
    let reply = answer_to(&who_has((ASKER.mac, v4(1)), v4(2)));
    assert_eq!(reply.len(), 60);
    let sliced = SlicedPacket::from_ethernet(&reply).expect("parses");
    let Some(LinkSlice::Ethernet2(ethernet)) = sliced.link else { panic!("no Ethernet") };
    assert_eq!((ethernet.source(), ethernet.destination()), (OTHER.mac.0, ASKER.mac.0));
    let Some(NetSlice::Arp(arp)) = sliced.net else { panic!("no ARP: {:?}", sliced.net) };
    let arp = arp.to_packet().try_eth_ipv4().expect("for IPv4");
    let right = arp_packet(arp::REPLY, (OTHER.mac, v4(2)), (ASKER.mac, v4(1)));
    assert_eq!(arp, right);
    assert!(reply[42..].iter().all(|byte| *byte == 0), "padding tells nothing");
}

#[test]
fn a_question_to_one_station_is_answered_too() {
    let packet = arp_packet(arp::REQUEST, (ASKER.mac, v4(1)), (OTHER.mac, v4(2)));
    assert!(matches!(asked(&arp_to(OTHER.mac.0, &packet)), Ok(Some(_))));
}

#[test]
fn a_probe_for_anothers_address_is_told_that_it_is_taken() {
    let reply = answer_to(&who_has((ASKER.mac, Ipv4Addr::UNSPECIFIED), v4(2)));
    let arp = Arp::parse(&reply[L3..]).expect("an ARP packet");
    assert_eq!((arp.sender_ip(), arp.sender_mac()), (v4(2), OTHER.mac));
    assert_eq!((arp.target_ip(), arp.target_mac()), (Ipv4Addr::UNSPECIFIED, ASKER.mac));
}

#[test]
fn what_is_no_question_for_another_goes_its_way() {
    let own = (ASKER.mac, v4(1));
    let passing = [
        ("unknown target", who_has(own, v4(9))),
        ("a probe for its own", who_has((ASKER.mac, Ipv4Addr::UNSPECIFIED), v4(1))),
        ("announcement of its own", who_has(own, v4(1))),
        ("announcement of the unknown", who_has((ASKER.mac, v4(9)), v4(9))),
        ("a reply", arp_to(OTHER.mac.0, &arp_packet(arp::REPLY, own, (OTHER.mac, v4(2))))),
        ("its own, by discovery", Nd::solicitation(v6(1), v6(1)).build()),
        ("unknown, by discovery", Nd::solicitation(v6(1), v6(9)).build()),
        ("is its own address free?", Nd::solicitation(Ipv6Addr::UNSPECIFIED, v6(1)).build()),
        ("from beyond the link", Nd { hops: 254, ..Nd::solicitation(v6(1), v6(2)) }.build()),
        ("advertisement of its own", Nd::advertisement(v6(1)).build()),
        ("echo to all", Nd { kind: 128, ..Nd::solicitation(v6(1), v6(2)) }.build()),
    ];
    for (what, frame) in passing {
        assert_eq!(asked(&frame), Ok(None), "{what}");
    }
}

#[test]
fn where_all_is_known_a_question_for_the_unknown_reaches_nobody() {
    let mut known = known();
    known.set_complete(SEGMENT);
    let unknown = [who_has((ASKER.mac, v4(1)), v4(9)), Nd::solicitation(v6(1), v6(9)).build()];
    for frame in unknown {
        assert_eq!(asked_of(&known, SEGMENT, &frame), Err(DropReason::NoRoute));
        assert_eq!(asked_of(&known, SEGMENT + 1, &frame), Ok(None));
    }
    let own = [
        who_has((ASKER.mac, v4(1)), v4(1)),
        Nd::solicitation(Ipv6Addr::UNSPECIFIED, v6(1)).build(),
        Nd::advertisement(v6(1)).build(),
    ];
    for frame in own {
        assert_eq!(asked_of(&known, SEGMENT, &frame), Ok(None));
    }
}

#[test]
fn in_another_segment_the_addresses_are_unknown() {
    for frame in [who_has((ASKER.mac, v4(1)), v4(2)), Nd::solicitation(v6(1), v6(2)).build()] {
        assert_eq!(asked_of(&known(), SEGMENT + 1, &frame), Ok(None));
    }
}

#[test]
fn a_question_in_a_vlan_goes_its_way() {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(ASKER.mac.0, BROADCAST)
        .single_vlan(VlanId::try_new(7).expect("12 bits"))
        .arp(arp_packet(arp::REQUEST, (ASKER.mac, v4(1)), (NOBODY, v4(2))).into())
        .write(&mut frame)
        .expect("writes");
    assert_eq!(frame[16..18], EtherType::ARP.0.to_be_bytes());
    assert_eq!(asked(&frame), Ok(None));
}

#[test]
fn who_claims_what_is_anothers_is_refused() {
    let theirs = (ASKER.mac, v4(2));
    let wrong_mac = (OTHER.mac, v4(1));
    let lies = [
        ("announcement", who_has(theirs, v4(2))),
        ("question from it", who_has(theirs, v4(9))),
        ("reply", arp_to(BROADCAST, &arp_packet(arp::REPLY, theirs, (NOBODY, v4(1))))),
        ("own address elsewhere", who_has(wrong_mac, v4(1))),
        ("advertisement", Nd::advertisement(v6(2)).build()),
        ("solicitation from it", Nd::solicitation(v6(2), v6(9)).build()),
    ];
    for (what, frame) in lies {
        assert_eq!(asked(&frame), Err(DropReason::Spoofed), "{what}");
    }
}

/// The advertisement in a reply: flags, target, Ethernet address; its checksum is right.
fn advert(reply: &[u8], destination: Ipv6Addr) -> (u8, Ipv6Addr, Mac) {
    let sliced = SlicedPacket::from_ethernet(reply).expect("parses");
    let Some(NetSlice::Ipv6(ip)) = sliced.net else { panic!("no IPv6") };
    let header = ip.header();
    assert_eq!((header.hop_limit(), header.destination_addr()), (255, destination));
    let Some(TransportSlice::Icmpv6(icmp)) = sliced.transport else { panic!("no ICMPv6") };
    assert!(icmp.is_checksum_valid(header.source(), header.destination()));
    let ndp = Ndp::parse(icmp.slice()).expect("neighbour discovery");
    assert_eq!((ndp.kind(), ndp.target()), (ndp::ADVERTISEMENT, header.source_addr()));
    let macs: Vec<_> = ndp.addresses().collect();
    assert_eq!(macs.len(), 1);
    (icmp.slice()[4], ndp.target(), macs[0])
}

#[test]
fn who_solicits_a_known_neighbour_is_told() {
    let reply = answer_to(&Nd::solicitation(v6(1), v6(2)).build());
    assert_eq!(reply[..6], ASKER.mac.0);
    assert_eq!(reply[6..12], OTHER.mac.0);
    let flags = ndp::SOLICITED | ndp::OVERRIDE;
    assert_eq!(advert(&reply, v6(1)), (flags, v6(2), OTHER.mac));
}

#[test]
fn who_wants_to_take_anothers_address_hears_the_answer_to_all() {
    let reply = answer_to(&Nd::solicitation(Ipv6Addr::UNSPECIFIED, v6(2)).build());
    assert_eq!(reply[..6], ALL_NODES_MAC.0);
    assert_eq!(advert(&reply, ALL_NODES), (ndp::OVERRIDE, v6(2), OTHER.mac));
}

#[test]
fn options_that_are_not_known_do_not_matter() {
    let mut question = Nd::solicitation(v6(1), v6(2));
    question.options.extend([14, 1, 1, 2, 3, 4, 5, 6]);
    let reply = answer_to(&question.build());
    assert_eq!(advert(&reply, v6(1)).1, v6(2));
}

proptest! {
    /// Whatever the bytes are, a port is never told of itself, and a frame that is no question for
    /// a known address of another port is never answered.
    #[test]
    fn only_questions_for_others_are_answered(
        is_arp in any::<bool>(),
        to_group in any::<bool>(),
        mut bytes in proptest::collection::vec(any::<u8>(), 14..160),
        spots in proptest::collection::vec((0usize..160, any::<u8>()), 0..6),
        plausible in any::<bool>(),
    ) {
        if plausible {
            bytes = match is_arp {
                true => who_has((ASKER.mac, v4(1)), v4(2)),
                false => Nd::solicitation(v6(1), v6(2)).build(),
            };
            for (at, byte) in spots {
                if let Some(spot) = bytes.get_mut(at) {
                    *spot = byte;
                }
            }
        } else {
            bytes[0] = u8::from(to_group);
            bytes[12..14].copy_from_slice(if is_arp { &[8, 6] } else { &[0x86, 0xdd] });
        }
        if flow::l2(&bytes, bytes.len() as u32).is_err() {
            return Ok(());
        }
        if let Ok(Some(answer)) = asked(&bytes) {
            prop_assert_eq!(answer.mac(), OTHER.mac);
            let of = |at: usize, target: &[u8]| bytes.get(at..at + target.len()) == Some(target);
            prop_assert!(of(38, &v4(2).octets()) || of(62, &v6(2).octets()));
            let mut head = [0; HEAD];
            let len = bytes.len().min(HEAD);
            head[..len].copy_from_slice(&bytes[..len]);
            answer.write(&mut head);
            prop_assert!(SlicedPacket::from_ethernet(&head[..answer.len()]).is_ok());
        }
    }
}
