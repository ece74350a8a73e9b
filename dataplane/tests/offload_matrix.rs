//! Every offload of a sender against every ability of a receiver, through real rings.
//!
//! What arrives is what the frame's description says: as it was sent, behind a header that says what
//! is left to do, if the receiver negotiated that; otherwise with every checksum right, by the word
//! of etherparse and of the builder that made the frame, and payloads that make up what was sent.

mod common;

use std::net::{Ipv4Addr, Ipv6Addr};

use common::net::{MAX_FRAME, Net, mac, mac_key, rules};
use dataplane::port::VportRules;
use dataplane::stats::DropReason;
use dataplane::tables::UnknownUnicast;
use dataplane::testing::features::*;
use dataplane::testing::frames::{FrameBuilder, Mac, Stream, payload_range};
use dataplane::testing::{GuestConfig, Layout, VirtioNetHdr};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};

const GSO_SIZE: u16 = 1300;
const CWR_ECE_FIN_PSH_ACK: u8 = 0x80 | 0x40 | 0x01 | 0x08 | 0x10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Nothing,
    Checksum,
    Segmentation,
}

/// One frame of the matrix.
#[derive(Debug, Clone)]
struct Case {
    is_v4: bool,
    is_tcp: bool,
    asked: Asked,
    builder: FrameBuilder,
    payload: usize,
}

impl Case {
    fn made(&self) -> (VirtioNetHdr, Vec<u8>) {
        match self.asked {
            Asked::Nothing => (VirtioNetHdr::default(), self.builder.build()),
            Asked::Checksum => self.builder.build_partial(),
            Asked::Segmentation => self.builder.build_gso(GSO_SIZE),
        }
    }

    /// What a receiver must have negotiated to be given the frame as it is.
    fn needs(&self) -> u64 {
        match (self.asked, self.is_tcp, self.is_v4) {
            (Asked::Nothing, ..) => 0,
            (Asked::Checksum, ..) => GUEST_CSUM,
            (Asked::Segmentation, true, true) => GUEST_CSUM | GUEST_TSO4,
            (Asked::Segmentation, true, false) => GUEST_CSUM | GUEST_TSO6,
            (Asked::Segmentation, false, true) => GUEST_CSUM | GUEST_USO4,
            (Asked::Segmentation, false, false) => GUEST_CSUM | GUEST_USO6,
        }
    }

    /// What a sender must have negotiated to ask for it.
    fn needs_of_sender(&self) -> u64 {
        match (self.asked, self.is_tcp, self.is_v4) {
            (Asked::Nothing, ..) => 0,
            (Asked::Checksum, ..) => CSUM,
            (Asked::Segmentation, true, true) => CSUM | HOST_TSO4,
            (Asked::Segmentation, true, false) => CSUM | HOST_TSO6,
            (Asked::Segmentation, false, _) => CSUM | HOST_USO,
        }
    }
}

/// IPv4 and IPv6, TCP and UDP, with up to two VLAN tags, asking for nothing or for anything.
fn cases(destination: Mac) -> Vec<Case> {
    let mut cases = Vec::new();
    for tags in 0..=2 {
        for (is_v4, is_tcp) in [(true, true), (true, false), (false, true), (false, false)] {
            let mut builder = FrameBuilder::new(mac(0, 0), destination);
            for tag in 0..tags {
                builder = builder.vlan(0x2000 | (100 + tag));
            }
            builder = if is_v4 {
                builder.ipv4(Ipv4Addr::new(10, 9, 8, 7), Ipv4Addr::new(10, 200, 0, 255))
            } else {
                let ip = |n| Ipv6Addr::new(0xfd00, 1, 2, 3, 0xffff, 5, 6, n);
                builder.ipv6(ip(7), ip(0xff00))
            };
            builder = if is_tcp {
                // Sequence numbers wrap within the payload.
                builder.tcp(40_000, 443, u32::MAX - 2_000).tcp_flags(CWR_ECE_FIN_PSH_ACK)
            } else {
                builder.udp(40_000, 443)
            };
            let lengths: [(Asked, &[usize]); 3] = [
                (Asked::Nothing, &[0, 1, 700, 1300]),
                (Asked::Checksum, &[0, 1, 33, 700, 1301]),
                // One byte more than a segment, a whole number of segments, many.
                (Asked::Segmentation, &[1301, 2600, 5001, 60_000]),
            ];
            for (asked, lengths) in lengths {
                for &payload in lengths {
                    let mut bytes = vec![0; payload];
                    Stream(9).fill(0, &mut bytes);
                    let builder = builder.clone().payload(&bytes);
                    cases.push(Case { is_v4, is_tcp, asked, builder, payload });
                }
            }
        }
    }
    cases
}

/// Ways to lay a frame into descriptors, at most 64 of them.
fn layouts(len: usize) -> Vec<Layout> {
    let through_headers: Vec<usize> = (0..30).map(|n| 5 + 5 * n).collect();
    let twice_at_the_head = [1, 11, 12, 26, 140, 140, 141];
    vec![
        Layout::single(),
        Layout::header_apart(),
        Layout::cut_at(&through_headers),
        Layout::cut_at(&twice_at_the_head).indirect(),
        Layout::every(len.div_ceil(60).max(1)).indirect(),
    ]
}

fn port(n: usize) -> VportRules {
    VportRules { mac: Some(mac_key(mac(0, n))), ..rules(0) }
}

fn sender_config(offloads: u64) -> GuestConfig {
    GuestConfig::default().features(PLAIN | offloads).tx_buffers(66_000, 66_000).ring_size(128)
}

type Received = Vec<(VirtioNetHdr, Vec<u8>)>;

fn receive(net: &mut Net, port: usize) -> Received {
    let mut received = Vec::new();
    net.guests[port]
        .rx()
        .rx_burst(usize::MAX, |frame| received.push((frame.header(), frame.to_vec())))
        .unwrap();
    received
}

/// IP and transport checksums of a frame are right.
fn assert_checksums(frame: &[u8]) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let transport = packet.transport.expect("TCP or UDP");
    match packet.net.expect("IP") {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            let right = match &transport {
                TransportSlice::Tcp(tcp) => {
                    tcp.to_header().calc_checksum_ipv4(&header, tcp.payload())
                }
                TransportSlice::Udp(udp) => {
                    udp.to_header().calc_checksum_ipv4(&header, udp.payload())
                }
                other => panic!("{other:?}"),
            };
            assert_eq!(checksum_of(&transport), right.unwrap());
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header().to_header();
            let right = match &transport {
                TransportSlice::Tcp(tcp) => {
                    tcp.to_header().calc_checksum_ipv6(&header, tcp.payload())
                }
                TransportSlice::Udp(udp) => {
                    udp.to_header().calc_checksum_ipv6(&header, udp.payload())
                }
                other => panic!("{other:?}"),
            };
            assert_eq!(checksum_of(&transport), right.unwrap());
        }
        other => panic!("{other:?}"),
    }
}

fn checksum_of(transport: &TransportSlice<'_>) -> u16 {
    match transport {
        TransportSlice::Tcp(tcp) => tcp.checksum(),
        TransportSlice::Udp(udp) => udp.checksum(),
        other => panic!("{other:?}"),
    }
}

/// What arrived is right for a receiver that negotiated `features`.
fn assert_right(case: &Case, received: &Received, features: u64) {
    let (header, bytes) = case.made();
    let plain = |header: &VirtioNetHdr| VirtioNetHdr { num_buffers: 0, ..*header };
    if features & case.needs() == case.needs() {
        let [(found, frame)] = &received[..] else { panic!("{} frames", received.len()) };
        assert_eq!(plain(found), header);
        assert_eq!(frame, &bytes);
        return;
    }
    for (found, frame) in received {
        assert_eq!(plain(found), VirtioNetHdr::default(), "not negotiated");
        assert!(frame.len() <= MAX_FRAME as usize);
        assert_checksums(frame);
    }
    if case.asked == Asked::Checksum {
        assert_eq!(
            received.iter().map(|(_, frame)| frame).collect::<Vec<_>>(),
            [&case.builder.build()]
        );
    } else {
        assert_segments(case, received);
    }
}

/// The segments make up the super-frame.
fn assert_segments(case: &Case, received: &Received) {
    let size = usize::from(GSO_SIZE);
    assert_eq!(received.len(), case.payload.div_ceil(size));
    let whole = case.builder.build();
    let headers = payload_range(&whole).unwrap().start;
    let mut offset = 0;
    for (n, (_, frame)) in received.iter().enumerate() {
        let is_last = n + 1 == received.len();
        let payload = &frame[payload_range(frame).unwrap()];
        assert_eq!(frame.len(), headers + payload.len());
        assert!(payload.len() == size || is_last);
        assert!(Stream(9).matches(offset as u64, payload), "segment {n}");

        let packet = SlicedPacket::from_ethernet(frame).unwrap();
        // Addresses and tags are the frame's.
        let l3 = headers - if case.is_tcp { 20 } else { 8 } - if case.is_v4 { 20 } else { 40 };
        assert_eq!(frame[..l3], whole[..l3]);
        if let Some(NetSlice::Ipv4(ip)) = &packet.net {
            assert_eq!(usize::from(ip.header().identification()), n);
        }
        match packet.transport.unwrap() {
            TransportSlice::Tcp(tcp) => {
                let sequence = (u32::MAX - 2_000).wrapping_add(offset as u32);
                assert_eq!(tcp.sequence_number(), sequence);
                assert_eq!((tcp.fin(), tcp.psh()), (is_last, is_last));
                assert_eq!((tcp.cwr(), tcp.ece(), tcp.ack()), (n == 0, true, true));
            }
            TransportSlice::Udp(udp) => {
                assert_eq!(usize::from(udp.length()), 8 + payload.len());
            }
            other => panic!("{other:?}"),
        }
        offset += payload.len();
    }
    assert_eq!(offset, case.payload);
}

/// The whole matrix for one receiver.
fn every_case_is_right_for(features: u64, config: GuestConfig) {
    let mut net = Net::new(&[UnknownUnicast::Drop], 32);
    net.add(port(0), 1, sender_config(TX_OFFLOADS));
    net.add(port(1), 1, config.features(features));
    let mut sent = 0;
    for case in cases(mac(0, 1)) {
        let (header, bytes) = case.made();
        for layout in layouts(VirtioNetHdr::BYTES + bytes.len()) {
            net.guests[0].tx().send_with_header(header, &bytes, &layout).unwrap();
            assert_eq!(net.run(0), Ok(1));
            assert_right(&case, &receive(&mut net, 1), features);
            sent += 1;
        }
    }
    net.assert_conserved();
    assert_eq!(net.port(0).tx[0].counters.forwarded_frames.get(), sent);
}

/// Abilities to receive.
const ABILITIES: [u64; 8] = [
    0,
    GUEST_CSUM,
    GUEST_CSUM | GUEST_TSO4,
    GUEST_CSUM | GUEST_TSO6,
    GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6,
    GUEST_CSUM | GUEST_USO4,
    GUEST_CSUM | GUEST_USO6,
    RX_OFFLOADS,
];

#[test]
fn every_offload_suits_every_receiver_with_mergeable_buffers() {
    for abilities in ABILITIES {
        let config = GuestConfig::default().rx_buffers(&[2048]);
        every_case_is_right_for(PLAIN | abilities, config);
    }
}

#[test]
fn every_offload_suits_every_receiver_with_buffers_in_odd_pieces() {
    for abilities in [0, GUEST_CSUM, RX_OFFLOADS] {
        // The header lies across three descriptors, and a super-frame in 45.
        let config = GuestConfig::default().rx_buffers(&[5, 6, 4000]);
        every_case_is_right_for(PLAIN | abilities, config);
    }
}

#[test]
fn every_offload_suits_every_receiver_without_mergeable_buffers() {
    for abilities in [0, GUEST_CSUM, RX_OFFLOADS] {
        let config = GuestConfig::default().ring_size(64).rx_buffers(&[66_000]);
        every_case_is_right_for((PLAIN & !MRG_RXBUF) | abilities, config);
    }
}

#[test]
fn offload_that_its_sender_did_not_negotiate_is_dropped_by_that_name() {
    for offloads in [0, CSUM, CSUM | HOST_TSO4, CSUM | HOST_TSO6, CSUM | HOST_USO, HOST_TSO4] {
        let mut net = Net::new(&[UnknownUnicast::Drop], 32);
        net.add(port(0), 1, sender_config(offloads));
        net.add(port(1), 1, GuestConfig::default().features(PLAIN | RX_OFFLOADS));
        let mut dropped = 0;
        for case in cases(mac(0, 1)) {
            let (header, bytes) = case.made();
            net.guests[0].tx().send_with_header(header, &bytes, &Layout::single()).unwrap();
            assert_eq!(net.run(0), Ok(1));
            let is_negotiated = offloads & case.needs_of_sender() == case.needs_of_sender();
            assert_eq!(receive(&mut net, 1).len(), usize::from(is_negotiated), "{case:?}");
            dropped += u64::from(!is_negotiated);
        }
        let vport = net.port(0);
        let drops = &vport.tx[0].counters.drops;
        assert_eq!(drops.get(DropReason::OffloadNotNegotiated), dropped);
        assert_eq!(drops.total(), dropped);
        assert!(dropped > 0);
    }
}

#[test]
fn flooded_frame_reaches_each_receiver_as_that_one_can_take_it() {
    let mut net = Net::new(&[UnknownUnicast::Drop], 32);
    net.add(port(0), 1, sender_config(TX_OFFLOADS));
    for (n, abilities) in ABILITIES.into_iter().enumerate() {
        net.add(port(1 + n), 1, GuestConfig::default().features(PLAIN | abilities));
    }
    for case in cases([0xff; 6]) {
        let (header, bytes) = case.made();
        let layout = Layout::cut_at(&[12, 40, 130, 200]);
        net.guests[0].tx().send_with_header(header, &bytes, &layout).unwrap();
        assert_eq!(net.run(0), Ok(1));
        for (n, abilities) in ABILITIES.into_iter().enumerate() {
            assert_right(&case, &receive(&mut net, 1 + n), PLAIN | abilities);
        }
    }
    net.assert_conserved();
}

#[test]
fn checksum_known_to_be_right_is_told_only_to_who_can_hear_it() {
    for (abilities, flags) in [(0, 0), (GUEST_CSUM, VirtioNetHdr::DATA_VALID)] {
        let mut net = Net::new(&[UnknownUnicast::Drop], 32);
        net.add(port(0), 1, sender_config(0));
        net.add(port(1), 1, GuestConfig::default().features(PLAIN | abilities));
        let case = &cases(mac(0, 1))[0];
        let header = VirtioNetHdr { flags: VirtioNetHdr::DATA_VALID, ..VirtioNetHdr::default() };
        let bytes = case.builder.build();
        net.guests[0].tx().send_with_header(header, &bytes, &Layout::single()).unwrap();
        net.run_all(0);
        let right = VirtioNetHdr { flags, num_buffers: 1, ..VirtioNetHdr::default() };
        assert_eq!(receive(&mut net, 1), [(right, bytes)]);
    }
}

#[test]
fn segments_that_find_no_buffer_are_one_drop_and_the_frame_is_not_forwarded() {
    let mut net = Net::new(&[UnknownUnicast::Drop], 32);
    net.add(port(0), 1, sender_config(TX_OFFLOADS));
    net.add(port(1), 1, GuestConfig::default().rx_repost(false));
    assert_eq!(net.guests[1].rx().post(2), 2);
    let case = cases(mac(0, 1)).into_iter().find(|case| case.payload == 5001).unwrap();
    let (header, bytes) = case.made();
    net.guests[0].tx().send_with_header(header, &bytes, &Layout::single()).unwrap();
    assert_eq!(net.run(0), Ok(1));
    net.assert_conserved();
    assert_eq!(net.port(1).rx[0].counters.drops.get(DropReason::RingFull), 1);
    assert_eq!(net.port(0).tx[0].counters.drops.get(DropReason::RingFull), 1);
    // The receiver sees a loss, as on any wire.
    let received = receive(&mut net, 1);
    assert_eq!(received.len(), 2);
    received.iter().for_each(|(_, frame)| assert_checksums(frame));
}
