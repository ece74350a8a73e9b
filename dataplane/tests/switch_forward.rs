//! Who receives what: the switch as a whole, over real sockets, judged by its guests.

mod rig;

use std::collections::{HashMap, HashSet};

use dataplane::control::Control;
use dataplane::testing::frames::{Ledger, Mac, Stamp, payload_range};
use dataplane::testing::{Guest, GuestConfig, GuestListener, features};
use rig::{QUOTA, Rig, Station, TIMEOUT, eventually, mac, stamp_of, stamped};
use slipway_api::{
    Created, ErrorCode, FdbKind, LinkState, PortMode, PortSpec, StaticEntry, UnknownUnicast,
};

const BROADCAST: Mac = [0xff; 6];
/// All hosts (RFC 1112), all nodes (RFC 2464), and spanning tree (IEEE 802.1Q).
const GROUPS: [Mac; 4] =
    [BROADCAST, [1, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1], [1, 0x80, 0xc2, 0, 0, 0]];

fn plain() -> GuestConfig {
    GuestConfig::default()
}

/// `from` sends a frame to `to`, and exactly `receivers` get it, once.
fn reaches(
    from: &mut Station,
    to: Mac,
    receivers: &mut [&mut Station],
    others: &mut [&mut Station],
) {
    let sent = from.send(to);
    from.drain();
    for receiver in receivers {
        receiver.expect(sent);
        receiver.expect_nothing();
    }
    for other in others {
        other.expect_nothing();
    }
    from.expect_nothing();
}

#[test]
fn a_port_that_listens_and_one_that_connects_reach_each_other() {
    let rig = Rig::start();
    let mut here = rig.station(1, 0, plain());

    // A VMM that listens already, and one that is late.
    let mut stations = Vec::new();
    for (n, is_late) in [(2, false), (3, true)] {
        let socket = rig.path(&format!("vmm{n}"));
        let spec = PortSpec {
            mode: PortMode::Connect,
            socket: Some(socket.clone()),
            mac: Some(slipway_api::Mac(mac(n))),
            ..PortSpec::named(format!("c{n}"))
        };
        let early = (!is_late).then(|| GuestListener::bind(&socket).unwrap());
        rig.port(spec.clone());
        let listener = early.unwrap_or_else(|| {
            assert_eq!(rig.show(&spec.name).link, LinkState::Waiting);
            GuestListener::bind(&socket).unwrap()
        });
        let guest = listener.accept(plain(), TIMEOUT).unwrap();
        rig.await_link(&spec.name, LinkState::Up);
        stations.push(Station::new(spec.name, n, socket, guest));
    }
    for there in &mut stations {
        here.talk(there);
    }
    let [second, third] = &mut stations[..] else { panic!("two were made") };
    second.talk(third);
    rig.assert_conserved_unicast();
}

#[test]
fn a_frame_for_one_station_reaches_that_station_alone() {
    let rig = Rig::start();
    let [mut a, mut b, mut c] = [1, 2, 3].map(|n| rig.station(n, 7, plain()));
    for _ in 0..50 {
        reaches(&mut a, b.mac, &mut [&mut b], &mut [&mut c]);
        reaches(&mut b, c.mac, &mut [&mut c], &mut [&mut a]);
    }
    assert_eq!(rig.stats(&a.port).ingress.forwarded_frames, 50);
    assert_eq!(rig.stats(&b.port).egress.delivered_frames, 50);
    rig.assert_conserved_unicast();
}

#[test]
fn frames_for_groups_reach_every_other_port_of_the_vni_and_none_beyond() {
    let rig = Rig::start();
    let [mut a, mut b, mut c] = [1, 2, 3].map(|n| rig.station(n, 7, plain()));
    let [mut x, mut y] = [4, 5].map(|n| rig.station(n, 8, plain()));
    let mut alone = rig.station(6, 9, plain());
    for group in GROUPS {
        reaches(&mut a, group, &mut [&mut b, &mut c], &mut [&mut x, &mut y, &mut alone]);
        reaches(&mut x, group, &mut [&mut y], &mut [&mut a, &mut b, &mut c, &mut alone]);
        reaches(&mut alone, group, &mut [], &mut [&mut a, &mut b, &mut c, &mut x, &mut y]);
    }
    assert_eq!(rig.dropped(&alone.port, "no_receiver"), GROUPS.len() as u64);
    let stats = rig.stats(&a.port);
    assert_eq!(stats.ingress.forwarded_frames, GROUPS.len() as u64, "once, however many copies");
    rig.assert_conserved();
}

#[test]
fn a_flood_counts_as_forwarded_if_only_one_of_many_can_receive() {
    let rig = Rig::start();
    let [mut a, mut b] = [1, 2].map(|n| rig.station(n, 0, plain()));
    rig.port(PortSpec::named("nobody-connected"));
    reaches(&mut a, BROADCAST, &mut [&mut b], &mut []);
    b.guest.disconnect();
    rig.await_link(&b.port, LinkState::Waiting);
    a.send(BROADCAST);
    a.drain();
    rig.assert_conserved();
    let stats = rig.stats(&a.port).ingress;
    assert_eq!((stats.forwarded_frames, stats.drops["link_down"]), (1, 1));
    assert_eq!(rig.stats("nobody-connected").egress.drops["link_down"], 2);
}

#[test]
fn equal_addresses_in_two_vnis_stay_apart() {
    let rig = Rig::start();
    let [mut a, mut b] = [1, 2].map(|n| rig.station(n, 10, plain()));
    let [mut a2, mut b2] = [1, 2].map(|n| rig.station(n, 0xff_ffff, plain()));
    for _ in 0..20 {
        reaches(&mut a, mac(2), &mut [&mut b], &mut [&mut a2, &mut b2]);
        reaches(&mut b2, mac(1), &mut [&mut a2], &mut [&mut a, &mut b]);
        reaches(&mut a2, mac(2), &mut [&mut b2], &mut [&mut a, &mut b]);
    }
    // An address that only the other segment has is unknown here.
    let mut other = rig.station(3, 10, plain());
    a2.send(other.mac);
    a2.drain();
    other.expect_nothing();
    assert_eq!(rig.dropped(&a2.port, "no_route"), 1);
    rig.assert_conserved_unicast();
}

#[test]
fn unknown_unicast_is_dropped_where_all_addresses_are_known_and_flooded_where_a_port_learns() {
    let rig = Rig::start();
    let [mut a, mut b] = [1, 2].map(|n| rig.station(n, 5, plain()));
    reaches(&mut a, mac(99), &mut [], &mut [&mut b]);
    assert_eq!(rig.dropped(&a.port, "no_route"), 1);

    let mut c = rig.learner(3, 5, plain());
    reaches(&mut a, mac(99), &mut [&mut b, &mut c], &mut []);
    rig.switch.delete_port(&c.port).unwrap();
    reaches(&mut a, mac(99), &mut [], &mut [&mut b]);
    assert_eq!(rig.dropped(&a.port, "no_route"), 2);
}

#[test]
fn the_policy_of_a_segment_overrules_what_its_ports_suggest() {
    let rig = Rig::start();
    rig.policy(5, UnknownUnicast::Flood, None);
    rig.policy(6, UnknownUnicast::Drop, None);
    let [mut a, mut b] = [1, 2].map(|n| rig.station(n, 5, plain()));
    let [mut x, mut y] = [1, 2].map(|n| rig.learner(n, 6, plain()));
    reaches(&mut a, mac(99), &mut [&mut b], &mut [&mut x, &mut y]);
    reaches(&mut x, mac(99), &mut [], &mut [&mut a, &mut b, &mut y]);
    rig.policy(5, UnknownUnicast::Drop, None);
    reaches(&mut a, mac(99), &mut [], &mut [&mut b]);
    assert_eq!(rig.dropped(&a.port, "no_route"), 1);
    rig.assert_conserved();
}

#[test]
fn a_frame_to_where_it_came_from_is_dropped() {
    let rig = Rig::start();
    let [mut a, mut b] = [1, 2].map(|n| rig.station(n, 0, plain()));
    reaches(&mut a, mac(1), &mut [], &mut [&mut b]);
    assert_eq!(rig.dropped(&a.port, "hairpin"), 1);
    a.talk(&mut b);
    rig.assert_conserved_unicast();
}

#[test]
fn a_port_with_an_address_sends_from_no_other() {
    let rig = Rig::start();
    let [mut a, mut b] = [1, 2].map(|n| rig.station(n, 0, plain()));
    for (source, reason) in [
        (mac(2), "spoofed"),
        (mac(77), "spoofed"),
        (BROADCAST, "malformed"),
        (GROUPS[1], "malformed"),
    ] {
        for to in [mac(2), BROADCAST] {
            let before = rig.dropped(&a.port, reason);
            a.send_from(source, to);
            a.drain();
            b.expect_nothing();
            assert_eq!(rig.dropped(&a.port, reason), before + 1, "{source:x?} to {to:x?}");
        }
    }
    a.talk(&mut b);
    rig.assert_conserved_unicast();
}

#[test]
fn an_address_is_learned_and_moves_with_its_station() {
    let rig = Rig::start();
    let [mut a, mut b, mut c] = [1, 2, 3].map(|n| rig.learner(n, 4, plain()));
    let roaming = mac(50);
    for round in 0..20 {
        let (here, there) = if round % 2 == 0 { (&mut b, &mut c) } else { (&mut c, &mut b) };
        reaches_after_flood(here, &mut a, there, roaming);
        eventually("the address is at its new port", || {
            rig.fdb(&here.port).iter().any(|entry| entry.mac.0 == roaming)
        });
        assert!(rig.fdb(&there.port).iter().all(|entry| entry.mac.0 != roaming));
        reaches(&mut a, roaming, &mut [here], &mut [there]);
    }
    rig.assert_conserved();
}

/// `here` announces `roaming` by a broadcast, which the two others receive.
fn reaches_after_flood(here: &mut Station, a: &mut Station, there: &mut Station, roaming: Mac) {
    let sent = here.send_from(roaming, BROADCAST);
    a.expect(sent);
    there.expect(sent);
}

#[test]
fn a_port_that_learns_beyond_its_quota_forgets_its_own_addresses_only() {
    let rig = Rig::start();
    let spec = PortSpec { mac_quota: Some(4), ..PortSpec::named("few") };
    let mut few = rig.station_of(1, spec, plain());
    let mut other = rig.learner(2, 0, plain());
    let known: HashSet<Mac> = (0..QUOTA).map(|n| mac(1000 + n)).collect();
    for &source in &known {
        other.send_from(source, BROADCAST);
        few.next();
    }
    let other_port = other.port.clone();
    let at_other = || -> HashSet<Mac> { rig.fdb(&other_port).iter().map(|e| e.mac.0).collect() };
    eventually("all addresses learned", || at_other() == known);

    for n in 0..300 {
        few.send_from(mac(5000 + n), BROADCAST);
        other.next();
    }
    few.send_from(mac(9000), BROADCAST);
    eventually("the latest is learned", || {
        rig.fdb(&few.port).iter().any(|entry| entry.mac.0 == mac(9000))
    });
    assert_eq!(rig.fdb(&few.port).len(), 4);
    assert_eq!(at_other(), known);
    rig.assert_conserved();
}

#[test]
fn a_silent_address_ages_out_and_is_flooded_again_and_a_static_one_stays() {
    let rig = Rig::start();
    rig.policy(3, UnknownUnicast::Auto, Some(1));
    let [mut a, mut b, mut c] = [1, 2, 3].map(|n| rig.learner(n, 3, plain()));
    let fixed = StaticEntry { vni: 3, mac: slipway_api::Mac(mac(60)), port: c.port.clone() };
    rig.switch.add_fdb(&fixed).unwrap();
    b.send(BROADCAST);
    a.next();
    c.next();
    eventually("learned", || rig.fdb(&b.port).len() == 1);
    reaches(&mut a, mac(2), &mut [&mut b], &mut [&mut c]);
    eventually("forgotten", || rig.fdb(&b.port).is_empty());
    reaches(&mut a, mac(2), &mut [&mut b, &mut c], &mut []);
    reaches(&mut a, mac(60), &mut [&mut c], &mut [&mut b]);
    rig.assert_conserved();
}

#[test]
fn a_static_entry_directs_frames_whatever_guests_claim() {
    let rig = Rig::start();
    let [mut a, mut b, mut c] = [1, 2, 3].map(|n| rig.learner(n, 3, plain()));
    let wanted = StaticEntry { vni: 3, mac: slipway_api::Mac(mac(60)), port: b.port.clone() };
    // Learned elsewhere before: the operator's word counts more.
    c.send_from(mac(60), BROADCAST);
    a.next();
    b.next();
    eventually("learned", || rig.fdb(&c.port).len() == 1);
    assert_eq!(rig.switch.add_fdb(&wanted).unwrap().1, Created::New);
    assert_eq!(rig.switch.add_fdb(&wanted).unwrap().1, Created::Existing);
    reaches(&mut a, mac(60), &mut [&mut b], &mut [&mut c]);
    // Claimed elsewhere later.
    let claim = c.send_from(mac(60), BROADCAST);
    a.expect(claim);
    b.expect(claim);
    reaches(&mut a, mac(60), &mut [&mut b], &mut [&mut c]);
    assert!(rig.fdb(&b.port).iter().any(|entry| entry.kind == FdbKind::Static));

    let refused = |entry: StaticEntry| rig.switch.add_fdb(&entry).unwrap_err().code;
    assert_eq!(
        refused(StaticEntry { port: c.port.clone(), ..wanted.clone() }),
        ErrorCode::Conflict
    );
    assert_eq!(refused(StaticEntry { vni: 4, ..wanted.clone() }), ErrorCode::InvalidValue);
    assert_eq!(refused(StaticEntry { port: "x".into(), ..wanted.clone() }), ErrorCode::NotFound);

    rig.switch.delete_fdb(3, wanted.mac).unwrap();
    assert_eq!(rig.switch.delete_fdb(3, wanted.mac).unwrap_err().code, ErrorCode::NotFound);
    reaches(&mut a, mac(60), &mut [&mut b, &mut c], &mut []);
    rig.assert_conserved();
}

#[test]
fn the_address_of_a_port_goes_with_the_port() {
    let rig = Rig::start();
    let [mut a, mut b] = [1, 2].map(|n| rig.station(n, 3, plain()));
    assert_eq!(
        rig.switch.delete_fdb(3, slipway_api::Mac(b.mac)).unwrap_err().code,
        ErrorCode::InUse
    );
    a.talk(&mut b);
    rig.switch.delete_port(&b.port).unwrap();
    a.send(b.mac);
    a.drain();
    assert_eq!(rig.dropped(&a.port, "no_route"), 1);
    // Another port may have the address now, and the number of the port that is gone.
    let spec = PortSpec { vni: 3, mac: Some(slipway_api::Mac(mac(2))), ..PortSpec::named("next") };
    let mut next = rig.station_of(2, spec, plain());
    a.talk(&mut next);
}

const FLOWS: u32 = 64;
const FRAMES_PER_FLOW: u64 = 50;

#[test]
fn flows_spread_over_the_receive_rings_and_each_stays_in_order_on_one() {
    let rig = Rig::start();
    let pairs = 4;
    let spec = |n| PortSpec {
        queue_pairs: pairs,
        mac: Some(slipway_api::Mac(mac(n))),
        ..PortSpec::named(format!("mq{n}"))
    };
    let config = || plain().queue_pairs(pairs).ring_size(1024);
    let mut sender = rig.station_of(1, spec(1), config());
    let mut receiver = rig.station_of(2, spec(2), config());
    assert_ne!(sender.guest.acked() & features::MQ, 0);

    let mut ring_of_flow = HashMap::new();
    let mut ledger = Ledger::default();
    for sequence in 0..FRAMES_PER_FLOW {
        for flow in 0..FLOWS {
            // A flow is sent by one of the guest's CPUs, on its transmit ring.
            let tx = &mut sender.guest.pair((flow % u32::from(pairs)) as usize).tx;
            let frame = stamped(mac(1), mac(2), flow, sequence, 16 + flow as usize);
            tx.send(&frame).unwrap();
        }
        receive(&mut receiver.guest, &mut ledger, &mut ring_of_flow);
    }
    assert!(ledger.is_perfect(u64::from(FLOWS) * FRAMES_PER_FLOW), "{ledger:?}");
    let rings: HashSet<_> = ring_of_flow.values().collect();
    assert_eq!(rings.len(), usize::from(pairs), "64 flows, seeded: {ring_of_flow:?}");
    rig.assert_conserved_unicast();
}

/// One frame of each flow.
fn receive(guest: &mut Guest, ledger: &mut Ledger, ring_of_flow: &mut HashMap<u32, usize>) {
    let mut left = FLOWS as usize;
    eventually("one frame of each flow", || {
        for (ring, pair) in guest.pairs().iter_mut().enumerate() {
            left -= pair
                .rx
                .rx_burst(left, |frame| {
                    let frame = frame.to_vec();
                    let Stamp { flow, .. } = stamp_of(&frame);
                    ledger.enter(&frame[payload_range(&frame).unwrap()]).unwrap();
                    assert_eq!(*ring_of_flow.entry(flow).or_insert(ring), ring, "flow {flow}");
                })
                .unwrap();
        }
        left == 0
    });
}

#[test]
fn flows_keep_to_the_rings_that_the_guest_enabled() {
    let rig = Rig::start();
    let spec =
        PortSpec { queue_pairs: 4, mac: Some(slipway_api::Mac(mac(2))), ..PortSpec::named("mq") };
    let mut sender = rig.station(1, 0, plain());
    let mut receiver = rig.station_of(2, spec, plain().queue_pairs(4));
    for enabled in [1, 3, 4, 2] {
        for pair in 0..4 {
            receiver.guest.set_enabled(pair, pair < enabled).unwrap();
        }
        let mut ring_of_flow = HashMap::new();
        for flow in 0..FLOWS {
            sender.guest.send(&stamped(mac(1), mac(2), flow, 0, 16)).unwrap();
        }
        receive(&mut receiver.guest, &mut Ledger::default(), &mut ring_of_flow);
        let rings: HashSet<_> = ring_of_flow.values().copied().collect();
        assert_eq!(rings, (0..enabled).collect());
    }
    rig.assert_conserved_unicast();
}
