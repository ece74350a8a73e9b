//! What the pipeline does with rings that break under it, and with many rings of one guest.

mod common;

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;

use common::net::{Net, mac, mac_key, rules};
use dataplane::pmd::Report;
use dataplane::port::cell::Slot;
use dataplane::port::{PortId, VportRules};
use dataplane::stats::DropReason;
use dataplane::tables::UnknownUnicast;
use dataplane::testing::GuestConfig;
use dataplane::testing::driver::Desc;
use dataplane::testing::frames::{FrameBuilder, Ledger, Stamp, payload_range};
use dataplane::vring::RingFault;
use dataplane::wire::Mac;

fn owner_of(n: usize) -> VportRules {
    VportRules { mac: Some(mac_key(mac(0, n))), ..rules(0) }
}

fn two_ports(receiver: GuestConfig) -> Net {
    let mut net = Net::new(&[UnknownUnicast::Drop], 32);
    net.add(owner_of(0), 1, GuestConfig::default());
    net.add(owner_of(1), 1, receiver);
    net
}

fn frame(sequence: u64) -> Vec<u8> {
    let stamp = Stamp { flow: 0, sequence };
    FrameBuilder::new(mac(0, 0), mac(0, 1)).payload(&stamp.payload(100)).build()
}

#[test]
fn tables_are_looked_at_once_frames_are_taken() {
    let mut net = two_ports(GuestConfig::default());
    net.guests[1].rx().post(8);
    assert_eq!((net.run(0), net.looked_after), (Ok(0), None));
    // What is published before a frame is sent holds for it: a look before the take may be older.
    for sequence in 0..3 {
        net.guests[0].tx().send(&frame(sequence)).unwrap();
    }
    assert_eq!((net.run(0), net.looked_after), (Ok(3), Some(3)));
}

#[test]
fn receive_ring_that_breaks_in_a_burst_costs_only_the_frames_after_the_fault() {
    let config = GuestConfig::default().ring_size(8).rx_buffers(&[64, 64]).rx_repost(false);
    let mut net = two_ports(config);
    assert_eq!(net.guests[1].rx().post(1), 1);
    let ring = net.guests[1].rx().ring();
    let head = ring.next_head();
    let gpa = ring.desc_table().gpa();
    ring.raw_desc(
        head,
        Desc { flags: Desc::WRITE | Desc::NEXT, next: head, ..Desc::readable(gpa, 1) },
    );
    ring.raw_push(head);
    ring.publish();
    for sequence in 0..3 {
        net.guests[0].tx().send(&frame(sequence)).unwrap();
    }

    assert_eq!(net.run(0), Ok(3));

    net.assert_conserved();
    let (sender, receiver) = (net.port(0), net.port(1));
    let (tx, rx) = (&sender.tx[0].counters, &receiver.rx[0].counters);
    assert_eq!((tx.forwarded_frames.get(), tx.drops.get(DropReason::LinkDown)), (1, 2));
    assert_eq!((rx.delivered_frames.get(), rx.drops.get(DropReason::LinkDown)), (1, 2));
    let fault = RingFault::Loop { head };
    assert_eq!(net.take_reports(), [Report::Broken { port: PortId(1), vring: 0, fault }]);
    net.with_slot(1, 0, |slot| assert!(matches!(slot, Slot::Broken(1, f) if *f == fault)));
    let mut received = Vec::new();
    net.guests[1].rx().rx_burst(8, |frame| received.push(frame.to_vec())).unwrap();
    assert_eq!(received, [frame(0)]);

    // The ring is reported once, and the sender goes on.
    net.guests[0].tx().send(&frame(3)).unwrap();
    assert_eq!(net.run(0), Ok(1));
    assert_eq!(net.take_reports(), []);
    assert_eq!(rx.drops.get(DropReason::LinkDown), 3);
}

#[test]
fn transmit_ring_that_breaks_gives_what_came_before_the_fault_to_the_receiver() {
    let mut net = two_ports(GuestConfig::default());
    net.guests[0].tx().send(&frame(0)).unwrap();
    let ring = net.guests[0].tx().ring();
    let size = ring.size();
    ring.raw_push(size);
    ring.publish();
    assert_eq!(net.run(0), Err(RingFault::HeadOutOfRange { head: size, size }));
    net.assert_conserved();
    assert_eq!(net.port(0).tx[0].counters.forwarded_frames.get(), 1);
    assert_eq!(net.guests[0].tx().tx_reap().unwrap(), 1);
    let mut received = Vec::new();
    net.guests[1].rx().rx_burst(8, |frame| received.push(frame.to_vec())).unwrap();
    assert_eq!(received, [frame(0)]);
}

#[test]
fn flows_spread_over_the_enabled_rings_of_a_guest_and_each_stays_in_order_on_one() {
    let mut net = Net::new(&[UnknownUnicast::Drop], 32);
    net.add(owner_of(0), 1, GuestConfig::default());
    net.add(owner_of(1), 4, GuestConfig::default());
    for enabled in [4, 2, 1] {
        net.port(1).set_rx_enabled(enabled);
        let mut rings_of = HashMap::<u32, HashSet<usize>>::new();
        let mut ledger = Ledger::default();
        for sequence in 0..20 {
            for flow in 0..40 {
                let frame = FrameBuilder::new(mac(0, 0), mac(0, 1))
                    .ipv4(Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2))
                    .udp(1000 + flow as u16, 53)
                    .payload(&Stamp { flow, sequence }.payload(30));
                net.guests[0].tx().send(&frame.build()).unwrap();
            }
            assert_eq!(net.run_all(0), 40);
            for queue in 0..4 {
                let rx = &mut net.guests[1].pair(queue).rx;
                rx.rx_burst(usize::MAX, |frame| {
                    let bytes = frame.to_vec();
                    let stamp = ledger.enter(&bytes[payload_range(&bytes).unwrap()]).unwrap();
                    rings_of.entry(stamp.flow).or_default().insert(queue);
                })
                .unwrap();
            }
        }
        assert!(ledger.is_perfect(800), "{:?}", ledger.total());
        assert!(rings_of.values().all(|rings| rings.len() == 1));
        let used: HashSet<_> = rings_of.values().flatten().copied().collect();
        assert_eq!(used, (0..usize::from(enabled)).collect());
    }
    net.assert_conserved();
}

#[test]
fn address_that_leads_into_another_segment_leads_nowhere() {
    let mut net = Net::new(&[UnknownUnicast::Drop, UnknownUnicast::Drop], 32);
    net.add(owner_of(0), 1, GuestConfig::default());
    let other = net.add(rules(1), 1, GuestConfig::default());
    // As while an entry is being replaced: no API lets one be made like this.
    net.fdb.insert_static(0, Mac(mac(0, 1)), PortId(other as u32)).unwrap();
    net.guests[0].tx().send(&frame(0)).unwrap();
    assert_eq!(net.run(0), Ok(1));
    assert_eq!(net.guests[other].rx().rx_burst(1, |_| ()).unwrap(), 0);
    assert_eq!(net.port(0).tx[0].counters.drops.get(DropReason::NoRoute), 1);
    net.assert_conserved();
}
