//! Frames of a guest that is bound to one address of each family, honest and not.

use std::net::Ipv4Addr;

use etherparse::{
    ArpEthIpv4Packet, ArpOperation, IpFragOffset, IpNumber, Ipv6Extensions, Ipv6FlowLabel,
    Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader, PacketBuilder, VlanId,
};

use super::*;
use crate::flow::HEAD_LEN;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 7]);
const OTHER_MAC: Mac = Mac([2, 0, 0, 0, 0, 8]);
const TO: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OWN: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 7);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 8);
const OWN6: Ipv6Addr = Ipv6Addr::new(0xfd88, 0, 0, 0, 0, 0, 0, 7);
const OTHER6: Ipv6Addr = Ipv6Addr::new(0xfd88, 0, 0, 0, 0, 0, 0, 8);
const NONE6: Ipv6Addr = Ipv6Addr::UNSPECIFIED;
const ALL: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

fn check(frame: &[u8]) -> Result<(), DropReason> {
    let bound = Bound::new(MAC, &[OWN.into(), OWN6.into()]);
    let head = &frame[..frame.len().min(HEAD_LEN)];
    let l2 = flow::l2(head, frame.len() as u32).expect("an Ethernet header");
    bound.check(&l2, head, frame.len() as u32)
}

#[track_caller]
fn passes(frame: &[u8]) {
    assert_eq!(check(frame), Ok(()));
}

#[track_caller]
fn is_spoofed(frame: &[u8]) {
    assert_eq!(check(frame), Err(DropReason::Spoofed));
}

fn udp4(source: Ipv4Addr) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(MAC.0, TO).ipv4(source.octets(), [10, 88, 0, 1], 64);
    builder.udp(1, 2).write(&mut frame, &[7; 100]).expect("writes");
    frame
}

fn udp6(source: Ipv6Addr) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(MAC.0, TO).ipv6(source.octets(), ALL.octets(), 64);
    builder.udp(1, 2).write(&mut frame, &[7; 100]).expect("writes");
    frame
}

fn icmp6(source: Ipv6Addr, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(MAC.0, TO).ipv6(source.octets(), ALL.octets(), 255);
    builder.icmpv6_raw(kind, 0, [0; 4]).write(&mut frame, body).expect("writes");
    frame
}

fn nd(source: Ipv6Addr, kind: u8, target: Ipv6Addr, option: Option<Mac>) -> Vec<u8> {
    let mut body = target.octets().to_vec();
    if let Some(mac) = option {
        body.extend([if kind == ndp::SOLICITATION { 1 } else { 2 }, 1]);
        body.extend(mac.0);
    }
    icmp6(source, kind, &body)
}

fn arp(sender_mac: Mac, sender: Ipv4Addr) -> Vec<u8> {
    let mut frame = Vec::new();
    let packet = ArpEthIpv4Packet {
        operation: ArpOperation::REQUEST,
        sender_mac: sender_mac.0,
        sender_ipv4: sender.octets(),
        target_mac: [0; 6],
        target_ipv4: [10, 88, 0, 1],
    };
    let builder = PacketBuilder::ethernet2(MAC.0, [0xff; 6]);
    builder.arp(packet.into()).write(&mut frame).expect("writes");
    frame
}

/// An advertisement of another's address, behind these extension headers.
fn hidden(extensions: Ipv6Extensions) -> Vec<u8> {
    let plain = nd(OWN6, ndp::ADVERTISEMENT, OTHER6, None);
    let (ethernet, message) = (&plain[..14], &plain[54..]);
    let mut extensions = extensions;
    let next_header = extensions.set_next_headers(IpNumber::IPV6_ICMP);
    let ip = Ipv6Header {
        traffic_class: 0,
        flow_label: Ipv6FlowLabel::ZERO,
        payload_length: (extensions.header_len() + message.len()) as u16,
        next_header,
        hop_limit: 255,
        source: OWN6.octets(),
        destination: ALL.octets(),
    };
    let mut frame = ethernet.to_vec();
    ip.write(&mut frame).expect("writes");
    extensions.write(&mut frame, next_header).expect("writes");
    frame.extend_from_slice(message);
    frame
}

#[test]
fn datagrams_from_its_own_addresses_pass() {
    passes(&udp4(OWN));
    passes(&udp6(OWN6));
    passes(&udp6(ndp::link_local(MAC)));
    passes(&icmp6(OWN6, 128, &[1; 300]));
}

#[test]
fn datagrams_from_any_other_address_do_not() {
    for source in [OTHER, Ipv4Addr::UNSPECIFIED, Ipv4Addr::LOCALHOST, Ipv4Addr::BROADCAST] {
        is_spoofed(&udp4(source));
    }
    for source in [OTHER6, NONE6, Ipv6Addr::LOCALHOST, ndp::link_local(OTHER_MAC)] {
        is_spoofed(&udp6(source));
        is_spoofed(&icmp6(source, 128, &[1; 30]));
    }
    // Of no family that it is bound in.
    let v4_only = Bound::new(MAC, &[OWN.into()]);
    let frame = udp6(OWN6);
    let l2 = flow::l2(&frame, frame.len() as u32).expect("an Ethernet header");
    assert_eq!(v4_only.check(&l2, &frame, frame.len() as u32), Err(DropReason::Spoofed));
}

#[test]
fn a_tag_hides_nothing() {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(MAC.0, TO)
        .single_vlan(VlanId::try_new(5).expect("12 bits"))
        .ipv4(OTHER.octets(), [10, 88, 0, 1], 64)
        .udp(1, 2)
        .write(&mut frame, &[])
        .expect("writes");
    is_spoofed(&frame);
    frame[30..34].copy_from_slice(&OWN.octets());
    passes(&frame);
}

#[test]
fn other_protocols_do_not_pass() {
    let mut frame = udp4(OWN);
    for ethertype in [0x88b5u16, 0x8035, 0x8847, 0x0100] {
        frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
        is_spoofed(&frame);
    }
}

#[test]
fn arp_says_who_it_is() {
    passes(&arp(MAC, OWN));
    passes(&arp(MAC, Ipv4Addr::UNSPECIFIED));
    is_spoofed(&arp(MAC, OTHER));
    is_spoofed(&arp(OTHER_MAC, OWN));
    let frame = arp(MAC, OWN);
    assert_eq!(check(&frame[..41]), Err(DropReason::Malformed));
}

#[test]
fn neighbour_discovery_says_who_it_is() {
    let (ask, tell) = (ndp::SOLICITATION, ndp::ADVERTISEMENT);
    passes(&nd(OWN6, ask, OTHER6, Some(MAC)));
    passes(&nd(ndp::link_local(MAC), ask, OTHER6, Some(MAC)));
    passes(&nd(OWN6, tell, OWN6, Some(MAC)));
    passes(&nd(OWN6, tell, ndp::link_local(MAC), Some(MAC)));
    passes(&nd(NONE6, ask, OWN6, None));
    passes(&nd(NONE6, ask, ndp::link_local(MAC), None));
    is_spoofed(&nd(OWN6, tell, OTHER6, Some(MAC)));
    is_spoofed(&nd(OWN6, tell, OWN6, Some(OTHER_MAC)));
    is_spoofed(&nd(OWN6, ask, OTHER6, Some(OTHER_MAC)));
    is_spoofed(&nd(OTHER6, ask, OWN6, Some(MAC)));
    is_spoofed(&nd(NONE6, ask, OTHER6, None));
    is_spoofed(&nd(NONE6, tell, OWN6, None));
}

#[test]
fn a_guest_is_no_router() {
    passes(&icmp6(ndp::link_local(MAC), ndp::ROUTER_SOLICITATION, &[]));
    is_spoofed(&icmp6(ndp::link_local(MAC), ndp::ROUTER_ADVERTISEMENT, &[0; 8]));
    is_spoofed(&icmp6(OWN6, ndp::REDIRECT, &[0; 32]));
}

#[test]
fn a_host_without_an_address_may_say_what_it_listens_to() {
    for kind in LISTENER_REPORTS {
        passes(&icmp6(NONE6, kind, &[0; 20]));
    }
}

#[test]
fn nothing_hides_behind_extension_headers() {
    let options = Ipv6RawExtHeader::new_raw(IpNumber(0), &[1, 4, 0, 0, 0, 0]).expect("6 bytes");
    is_spoofed(&hidden(Ipv6Extensions::default()));
    is_spoofed(&hidden(Ipv6Extensions {
        destination_options: Some(options.clone()),
        ..Default::default()
    }));
    is_spoofed(&hidden(Ipv6Extensions { hop_by_hop_options: Some(options), ..Default::default() }));
    // A fragment that is the whole datagram (RFC 6946).
    let atomic = Ipv6FragmentHeader::new(IpNumber(0), IpFragOffset::ZERO, false, 7);
    is_spoofed(&hidden(Ipv6Extensions { fragment: Some(atomic), ..Default::default() }));
    let deep = Ipv6RawExtHeader::new_raw(IpNumber(0), &[0; 6 + 8 * 10]).expect("86 bytes");
    let deep = Ipv6Extensions { destination_options: Some(deep), ..Default::default() };
    assert_eq!(check(&hidden(deep)), Err(DropReason::Malformed));
}

#[test]
fn what_is_cut_short_is_malformed() {
    for (frame, ends) in [(udp4(OWN), [14, 29]), (udp6(OWN6), [14, 37])] {
        for end in ends {
            assert_eq!(check(&frame[..end]), Err(DropReason::Malformed), "{end} bytes");
        }
    }
    let frame = nd(OWN6, ndp::SOLICITATION, OTHER6, Some(MAC));
    for end in 55..frame.len() {
        assert_eq!(check(&frame[..end]), Err(DropReason::Malformed), "{end} bytes");
    }
}
