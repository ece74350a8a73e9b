//! The switch answers who asks for a guest that it knows: rings, counters and tables together.

mod common;

use std::net::{IpAddr, Ipv4Addr};

use common::net::{Net, mac, mac_key, rules};
use dataplane::neighbour::Neighbour;
use dataplane::port::{PortId, VportRules};
use dataplane::spoof::Bound;
use dataplane::stats::DropReason;
use dataplane::tables::UnknownUnicast;
use dataplane::testing::frames::FrameBuilder;
use dataplane::testing::{GuestConfig, VirtioNetHdr, features};
use dataplane::wire::Mac;

fn address(n: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 88, 0, n as u8)
}

/// Guests with addresses, all bound to them.
fn net(guests: usize, config: &GuestConfig) -> Net {
    let mut net = Net::new(&[UnknownUnicast::Drop], 32);
    for n in 0..guests {
        let ip = IpAddr::from(address(n));
        let own = Mac(mac(0, n));
        let bound = Some(Box::new(Bound::new(own, &[ip])));
        let rules =
            VportRules { mac: Some(mac_key(mac(0, n))), anti_spoof: true, bound, ..rules(0) };
        net.add(rules, 1, config.clone());
        let neighbour = Neighbour { mac: own, port: PortId(n as u32) };
        net.tables.neighbours.insert(0, ip, neighbour);
    }
    net
}

fn who_has(from: usize, target: Ipv4Addr) -> Vec<u8> {
    FrameBuilder::new(mac(0, from), [0xff; 6]).arp_request(address(from), target).build()
}

fn received(net: &mut Net, n: usize) -> Vec<(VirtioNetHdr, Vec<u8>)> {
    let mut frames = Vec::new();
    let rx = net.guests[n].rx();
    rx.rx_burst(usize::MAX, |frame| frames.push((frame.header(), frame.to_vec()))).unwrap();
    frames
}

#[test]
fn the_answer_comes_back_alone_and_every_frame_is_accounted_for() {
    let mut net = net(4, &GuestConfig::default());
    let datagram =
        FrameBuilder::new(mac(0, 0), mac(0, 2)).ipv4(address(0), address(2)).udp(1, 2).build();
    for frame in [who_has(0, address(1)), datagram.clone(), who_has(0, address(3))] {
        net.guests[0].tx().send(&frame).unwrap();
    }
    assert_eq!(net.run_all(0), 3);
    let answers = received(&mut net, 0);
    assert_eq!(answers.len(), 2);
    for ((header, answer), of) in answers.iter().zip([1, 3]) {
        let (to, from) = (mac(0, 0), mac(0, of));
        let right = FrameBuilder::new(from, to).arp_reply(address(of), to, address(0)).build();
        assert_eq!(answer, &right);
        assert_eq!(*header, VirtioNetHdr { num_buffers: 1, ..VirtioNetHdr::default() });
    }
    assert_eq!(received(&mut net, 2).into_iter().map(|(_, f)| f).collect::<Vec<_>>(), [datagram]);
    assert!(received(&mut net, 1).is_empty() && received(&mut net, 3).is_empty());
    let port = net.port(0);
    let (tx, rx) = (&port.tx[0].counters, &port.rx[0].counters);
    assert_eq!((tx.answered_frames.get(), tx.forwarded_frames.get(), tx.copies.get()), (2, 1, 3));
    assert_eq!((rx.delivered_frames.get(), rx.delivered_bytes.get()), (2, 120));
    net.assert_conserved();
}

#[test]
fn an_answer_that_finds_no_room_is_a_drop_like_any_other() {
    let config = GuestConfig::default().ring_size(8).rx_repost(false);
    let mut net = net(2, &config);
    assert_eq!(net.guests[0].rx().post(8), 8);
    for _ in 0..4 {
        for _ in 0..4 {
            net.guests[0].tx().send(&who_has(0, address(1))).unwrap();
        }
        net.run_all(0);
    }
    net.stop(0, 0).unwrap();
    net.guests[0].tx().send(&who_has(0, address(1))).unwrap();
    net.run_all(0);
    let port = net.port(0);
    let tx = &port.tx[0].counters;
    assert_eq!(tx.answered_frames.get(), 8);
    assert_eq!(tx.drops.get(DropReason::RingFull), 8);
    assert_eq!(tx.drops.get(DropReason::LinkDown), 1);
    net.assert_conserved();
}

#[test]
fn a_lie_about_an_address_reaches_nobody() {
    let mut net = net(3, &GuestConfig::default());
    let lies = [
        // It says that it has the address of guest 1: as a question, an announcement, a datagram.
        FrameBuilder::new(mac(0, 0), [0xff; 6]).arp_request(address(1), address(2)).build(),
        FrameBuilder::new(mac(0, 0), [0xff; 6]).arp_request(address(1), address(1)).build(),
        FrameBuilder::new(mac(0, 0), mac(0, 2)).ipv4(address(1), address(2)).udp(1, 2).build(),
    ];
    for lie in &lies {
        net.guests[0].tx().send(lie).unwrap();
    }
    net.run_all(0);
    for n in 0..3 {
        assert!(received(&mut net, n).is_empty());
    }
    let port = net.port(0);
    assert_eq!(port.tx[0].counters.drops.get(DropReason::Spoofed), lies.len() as u64);
    net.assert_conserved();
}

#[test]
fn an_answer_carries_no_offload_of_the_question() {
    let offloads = features::PLAIN | features::TX_OFFLOADS | features::RX_OFFLOADS;
    let mut net = net(2, &GuestConfig::default().features(offloads));
    let header = VirtioNetHdr { flags: 2, ..VirtioNetHdr::default() }; // DATA_VALID
    let layout = dataplane::testing::Layout::every(20);
    net.guests[0].tx().send_with_header(header, &who_has(0, address(1)), &layout).unwrap();
    net.run_all(0);
    let answers = received(&mut net, 0);
    assert_eq!(answers.len(), 1);
    assert_eq!((answers[0].0.flags, answers[0].1.len()), (0, 60));
    net.assert_conserved();
}
