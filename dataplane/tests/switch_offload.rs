//! Guests that negotiated different things, at one switch: whatever the sender left undone, the
//! receiver gets what it can take, with right checksums. etherparse is the judge.

mod rig;

use std::net::{Ipv4Addr, Ipv6Addr};

use dataplane::testing::frames::{FrameBuilder, Stream, payload_range};
use dataplane::testing::{GuestConfig, Layout, VirtioNetHdr, features};
use etherparse::{SlicedPacket, TransportSlice};
use rig::{Rig, Station, TIMEOUT, mac};

const A4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const B4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const A6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
const B6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
/// Largest TCP payload of an IPv4 packet: 65535 without 20 and 20 bytes of headers.
const MOST_PAYLOAD: usize = 65_495;
const GSO_SIZE: u16 = 1400;

/// What the sender leaves to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Nothing,
    Checksum,
    Segmentation,
}

/// A frame from station 1 to station 2 with `len` bytes of the stream as payload.
fn frame(is_v6: bool, is_tcp: bool, left: Left, len: usize) -> (VirtioNetHdr, Vec<u8>) {
    let mut payload = vec![0; len];
    Stream(1).fill(0, &mut payload);
    let builder = FrameBuilder::new(mac(1), mac(2));
    let builder = if is_v6 { builder.ipv6(A6, B6) } else { builder.ipv4(A4, B4) };
    let builder = if is_tcp { builder.tcp(5, 6, 1000) } else { builder.udp(5, 6) };
    let builder = builder.payload(&payload);
    match left {
        Left::Nothing => (VirtioNetHdr::default(), builder.build()),
        Left::Checksum => builder.build_partial(),
        Left::Segmentation => builder.build_gso(GSO_SIZE),
    }
}

/// The checksum that a frame has and the one it should have, by etherparse.
fn transport_checksums(frame: &[u8]) -> (u16, u16) {
    let packet = SlicedPacket::from_ethernet(frame).expect("whole headers");
    let v4 = packet.net.as_ref().and_then(|net| net.ipv4_ref()).map(|ip| ip.header());
    if let Some(ip) = &v4 {
        assert_eq!(ip.header_checksum(), ip.to_header().calc_header_checksum());
    }
    let v6 = || packet.net.as_ref().and_then(|net| net.ipv6_ref()).expect("IPv6").header();
    let right = match (&packet.transport, &v4) {
        (Some(TransportSlice::Tcp(tcp)), Some(ip)) => {
            tcp.to_header().calc_checksum_ipv4(&ip.to_header(), tcp.payload())
        }
        (Some(TransportSlice::Tcp(tcp)), None) => {
            tcp.to_header().calc_checksum_ipv6(&v6().to_header(), tcp.payload())
        }
        (Some(TransportSlice::Udp(udp)), Some(ip)) => {
            udp.to_header().calc_checksum_ipv4(&ip.to_header(), udp.payload())
        }
        (Some(TransportSlice::Udp(udp)), None) => {
            udp.to_header().calc_checksum_ipv6(&v6().to_header(), udp.payload())
        }
        (other, _) => panic!("neither TCP nor UDP: {other:?}"),
    };
    let found = match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => tcp.checksum(),
        Some(TransportSlice::Udp(udp)) => udp.checksum(),
        _ => unreachable!("matched above"),
    };
    (found, right.expect("a length that fits"))
}

/// The receiver gets all `len` bytes, in frames that are finished.
fn receive_finished(to: &mut Station, len: usize, is_tcp: bool) {
    let (mut at, mut frames) = (0, 0);
    while at < len {
        let (header, frame) = to.guest.recv(TIMEOUT).unwrap().expect("the next segment");
        assert_eq!(header.gso_type, VirtioNetHdr::GSO_NONE);
        assert_eq!(header.flags & VirtioNetHdr::NEEDS_CSUM, 0);
        let (found, right) = transport_checksums(&frame);
        assert_eq!(found, right);
        if is_tcp {
            let sequence = u32::from_be_bytes(tcp_sequence(&frame));
            assert_eq!(sequence, 1000 + at as u32);
        }
        let payload = &frame[payload_range(&frame).unwrap()];
        assert!(Stream(1).matches(at as u64, payload), "payload at {at}");
        at += payload.len();
        frames += 1;
    }
    assert_eq!(at, len);
    assert!(frames == 1 || frames == len.div_ceil(GSO_SIZE.into()));
    to.expect_nothing();
}

fn tcp_sequence(frame: &[u8]) -> [u8; 4] {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(TransportSlice::Tcp(tcp)) = packet.transport else { panic!("no TCP") };
    tcp.sequence_number().to_be_bytes()
}

/// The receiver gets the very frame, and the header that says what is left to do.
fn receive_unfinished(to: &mut Station, header: VirtioNetHdr, sent: &[u8]) {
    let (found, frame) = to.guest.recv(TIMEOUT).unwrap().expect("the frame");
    assert!(frame == sent, "the frame was changed");
    assert_eq!(found.flags & VirtioNetHdr::NEEDS_CSUM, VirtioNetHdr::NEEDS_CSUM);
    let asked = |h: VirtioNetHdr| (h.gso_type, h.gso_size, h.csum_start, h.csum_offset);
    assert_eq!(asked(found), asked(header));
    to.expect_nothing();
}

/// One receiver's way of being different.
fn receivers() -> Vec<(&'static str, GuestConfig, bool)> {
    let offloading = features::PLAIN | features::RX_OFFLOADS;
    let whole = [VirtioNetHdr::BYTES + 14 + 40 + 65_535];
    let config = GuestConfig::default;
    let large = || config().ring_size(64).rx_buffers(&whole);
    vec![
        ("mergeable", config(), false),
        ("not mergeable", large().without(features::MRG_RXBUF), false),
        ("no event index", config().without(features::EVENT_IDX), false),
        ("no indirect", config().without(features::INDIRECT_DESC), false),
        ("buffers in pieces", config().rx_buffers(&[12, 700, 1336]), false),
        ("interrupts", config().interrupts(true), false),
        ("offloads, mergeable", config().features(offloading), true),
        (
            "offloads, not mergeable",
            large().features(offloading).without(features::MRG_RXBUF),
            true,
        ),
        (
            "offloads, no event index, interrupts",
            config().features(offloading).without(features::EVENT_IDX).interrupts(true),
            true,
        ),
        ("offloads, buffers in pieces", config().features(offloading).rx_buffers(&[5, 2043]), true),
    ]
}

/// How the sender lays its frames out.
fn senders() -> Vec<(&'static str, GuestConfig, Layout)> {
    let all = features::PLAIN | features::TX_OFFLOADS;
    let config =
        || GuestConfig::default().features(all).ring_size(64).tx_buffers(14 + 40 + 65_535, 65_536);
    vec![
        ("in one piece", config(), Layout::single()),
        (
            "header apart, no event index",
            config().without(features::EVENT_IDX),
            Layout::header_apart(),
        ),
        ("pages", config(), Layout::every(4096)),
        ("indirect pages", config(), Layout::every(4096).indirect()),
    ]
}

#[test]
fn every_receiver_gets_what_it_negotiated_whatever_the_sender_left_undone() {
    for (sender, sender_config, layout) in senders() {
        for (receiver, receiver_config, takes_offloads) in receivers() {
            let rig = Rig::start();
            let mut from = rig.station(1, 0, sender_config.clone());
            let mut to = rig.station(2, 0, receiver_config);
            let mut frames = 0;
            for (is_v6, is_tcp) in [(false, true), (false, false), (true, true), (true, false)] {
                for (left, len) in [
                    (Left::Nothing, 1000),
                    (Left::Checksum, 1001),
                    (Left::Segmentation, 9000),
                    (Left::Segmentation, MOST_PAYLOAD - 40),
                ] {
                    println!("{sender} -> {receiver}: IPv6 {is_v6}, TCP {is_tcp}, {left:?}, {len}");
                    let (header, frame) = frame(is_v6, is_tcp, left, len);
                    from.guest.tx().send_with_header(header, &frame, &layout).unwrap();
                    if takes_offloads && left != Left::Nothing {
                        receive_unfinished(&mut to, header, &frame);
                    } else {
                        receive_finished(&mut to, len, is_tcp);
                    }
                    frames += 1;
                }
            }
            from.drain();
            rig.assert_conserved_unicast();
            assert_eq!(rig.stats(&to.port).egress.delivered_frames, frames);
        }
    }
}

#[test]
fn a_64_kib_segment_fits_2_kib_mergeable_buffers_and_no_fewer_than_it_needs() {
    let rig = Rig::start();
    let sends = features::PLAIN | features::TX_OFFLOADS;
    let takes = features::PLAIN | features::RX_OFFLOADS;
    let sender = GuestConfig::default().features(sends).tx_buffers(14 + 40 + 65_535, 65_536);
    let mut from = rig.station(1, 0, sender.ring_size(16));
    let mut to = rig.station(2, 0, GuestConfig::default().features(takes).rx_repost(false));
    let (header, sent) = frame(false, true, Left::Segmentation, MOST_PAYLOAD);
    let needs = (VirtioNetHdr::BYTES + sent.len()).div_ceil(2048);

    to.guest.rx().post(needs - 1);
    from.guest.tx().send_with_header(header, &sent, &Layout::single()).unwrap();
    from.drain();
    to.expect_nothing();
    assert_eq!(rig.dropped(&from.port, "ring_full"), 1);

    // What was not enough is still there, and one more makes it enough.
    to.guest.rx().post(1);
    from.guest.tx().send_with_header(header, &sent, &Layout::single()).unwrap();
    receive_unfinished(&mut to, header, &sent);
    assert_eq!(to.guest.rx().posted(), 0);
    rig.assert_conserved_unicast();
}

#[test]
fn an_offload_that_was_not_negotiated_is_dropped_by_name() {
    let rig = Rig::start();
    let mut from = rig.station(1, 0, GuestConfig::default().tx_buffers(65_535, 65_536));
    let mut to = rig.station(2, 0, GuestConfig::default());
    for left in [Left::Checksum, Left::Segmentation] {
        let (header, frame) = frame(false, true, left, 3000);
        from.guest.tx().send_with_header(header, &frame, &Layout::single()).unwrap();
    }
    from.drain();
    to.expect_nothing();
    assert_eq!(rig.dropped(&from.port, "offload_not_negotiated"), 2);
    rig.assert_conserved_unicast();
}

#[test]
fn a_flooded_segment_reaches_each_receiver_in_its_own_form() {
    let rig = Rig::start();
    let sends = features::PLAIN | features::TX_OFFLOADS;
    let takes = features::PLAIN | features::RX_OFFLOADS;
    let sender = GuestConfig::default().features(sends).tx_buffers(14 + 40 + 65_535, 65_536);
    let mut from = rig.learner(1, 0, sender.ring_size(16));
    let mut plain = rig.learner(3, 0, GuestConfig::default());
    let mut capable = rig.learner(4, 0, GuestConfig::default().features(takes));
    let (header, sent) = frame(true, true, Left::Segmentation, 20_000);
    for _ in 0..3 {
        from.guest.tx().send_with_header(header, &sent, &Layout::single()).unwrap();
        receive_finished(&mut plain, 20_000, true);
        receive_unfinished(&mut capable, header, &sent);
    }
    from.drain();
    rig.assert_conserved();
}
