//! Rings that move from one PMD to another under traffic: nothing is lost, doubled or overtaken.

mod rig;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dataplane::control::Control;
use dataplane::port::PortId;
use dataplane::testing::frames::{Ledger, payload_range};
use dataplane::testing::{Deadline, GuestConfig, Rng};
use rig::{Rig, Station, TIMEOUT, eventually, stamped};
use slipway_api::PortSpec;

const SENDERS: usize = 3;
/// Frames of one sender under way at most: those of all fit the receive ring, so none may be lost.
const WINDOW: u64 = 64;
/// How often rings move at least, and how many frames each sender sends at least.
const MOVES: u64 = 1_000;
const FRAMES: u64 = 3_000;

/// How far one sender is.
#[derive(Default)]
struct Flow {
    sent: AtomicU64,
    received: AtomicU64,
}

/// Sends frames of one flow until it is told to stop.
fn send(mut from: Station, to: [u8; 6], number: u32, flow: &Flow, stop: &AtomicBool) {
    let mut rng = Rng::seeded(number.into());
    let mut sequence = 0;
    while !stop.load(Ordering::Relaxed) {
        let under_way = sequence - flow.received.load(Ordering::Acquire);
        let room = (WINDOW - under_way) as usize;
        let burst = rng.range(1..33).min(room);
        let sent = from.guest.tx().tx_burst(burst, |slot| {
            slot.write(&stamped(from.mac, to, number, sequence, rng.range(16..1400)));
            sequence += 1;
        });
        sent.expect("a sound ring");
        flow.sent.store(sequence, Ordering::Release);
        match rng.below(8) {
            // Long enough for its ring to be armed, now and then.
            0 => std::thread::sleep(std::time::Duration::from_micros(rng.below(200))),
            _ => std::thread::yield_now(),
        }
    }
    from.drain();
}

/// Takes what comes until every frame sent was received.
fn receive(to: &mut Station, flows: &[Flow], stop: &AtomicBool) -> Ledger {
    let mut ledger = Ledger::default();
    let mut deadline = Deadline::after(TIMEOUT);
    loop {
        // In this order: what is sent is final once they stopped.
        let is_last = stop.load(Ordering::Acquire);
        let mut came = [0; SENDERS];
        let got = to.guest.rx().rx_burst(usize::MAX, |frame| {
            let bytes = frame.to_vec();
            let payload = payload_range(&bytes).expect("a stamped frame");
            let stamp = ledger.enter(&bytes[payload]).expect("a whole frame");
            came[stamp.flow as usize] += 1;
        });
        // Only now their buffers are back with the switch.
        for (flow, came) in flows.iter().zip(came) {
            flow.received.fetch_add(came, Ordering::Release);
        }
        if got.expect("a sound ring") > 0 {
            deadline = Deadline::after(TIMEOUT);
        }
        let count = |flow: &Flow| flow.sent.load(Ordering::Acquire);
        let total = flows.iter().map(count).sum::<u64>();
        if is_last && ledger.total().received >= total {
            return ledger;
        }
        assert!(!deadline.passed(), "{total} frames sent, and no more come: {ledger:#?}");
        std::thread::yield_now();
    }
}

#[test]
fn rings_that_move_without_pause_lose_double_and_reorder_nothing() {
    let rig = Rig::with_pmds(2);
    let mut receiver = rig.station(100, 0, GuestConfig::default().ring_size(256));
    let senders: Vec<_> =
        (0..SENDERS).map(|n| rig.station(n as u32, 0, GuestConfig::default())).collect();
    let ports: Vec<_> = senders.iter().map(|sender| rig.show(&sender.port).id).collect();
    let flows: Vec<_> = (0..SENDERS).map(|_| Flow::default()).collect();
    let (quiet, done) = (AtomicBool::new(false), AtomicBool::new(false));
    let to = receiver.mac;
    let (ledger, moves) = std::thread::scope(|scope| {
        let taker = scope.spawn(|| receive(&mut receiver, &flows, &done));
        let givers: Vec<_> = (0..)
            .zip(senders)
            .map(|(n, sender)| {
                let (flow, quiet) = (&flows[n as usize], &quiet);
                scope.spawn(move || send(sender, to, n, flow, quiet))
            })
            .collect();
        let pmds = rig.switch.pmd_threads();
        let (mut moves, mut rng) = (0, Rng::seeded(7));
        let is_enough = |flow: &Flow| flow.received.load(Ordering::Relaxed) >= FRAMES;
        while !(taker.is_finished() || moves >= MOVES && flows.iter().all(is_enough)) {
            let port = PortId(*rng.pick(&ports));
            moves += u64::from(pmds.move_ring(port, 0, rng.below(2) as u32).is_some());
            std::thread::yield_now();
        }
        quiet.store(true, Ordering::Relaxed);
        for giver in givers {
            giver.join().expect("a sender whose frames were taken");
        }
        done.store(true, Ordering::Release);
        (taker.join().expect("every frame once, and whole"), moves)
    });
    assert!(moves >= MOVES);
    let sent: u64 = flows.iter().map(|flow| flow.sent.load(Ordering::Relaxed)).sum();
    assert!(ledger.is_perfect(sent), "{sent} frames sent, {moves} moves: {ledger:#?}");
    receiver.expect_nothing();
    rig.assert_conserved_unicast();
    // Both took part; the senders are gone, and their rings go off the plan.
    let list = rig.switch.pmds();
    assert!(list.pmds.iter().all(|pmd| pmd.frames > 0), "{list:#?}");
    eventually("only the receiver's ring is left", || {
        rig.switch.pmds().pmds.iter().map(|pmd| pmd.rings.len()).sum::<usize>() == 1
    });
}

#[test]
fn a_ring_that_sleeps_is_moved_and_wakes_where_it_is() {
    let rig = Rig::with_pmds(2);
    let mut left = rig.station(1, 0, GuestConfig::default());
    let mut right = rig.station(2, 0, GuestConfig::default());
    let port = PortId(rig.show(&left.port).id);
    let pmd = |rig: &Rig| rig.show(&left_port(rig)).rings[1].pmd.expect("a running ring");
    for _ in 0..20 {
        let from = pmd(&rig);
        eventually("all rings sleep", || {
            let before = rig.switch.pmds();
            std::thread::sleep(std::time::Duration::from_millis(1));
            let after = rig.switch.pmds();
            before.pmds.iter().zip(&after.pmds).all(|(then, now)| then.polls == now.polls)
        });
        let moved = rig.switch.pmd_threads().move_ring(port, 0, 1 - from).expect("it runs");
        assert_eq!((moved.from, moved.to), (from, 1 - from));
        assert_eq!(pmd(&rig), 1 - from);
        left.talk(&mut right);
    }
    rig.assert_conserved_unicast();
}

/// The port whose ring moves.
fn left_port(rig: &Rig) -> String {
    rig.switch.list_ports().ports[0].spec.name.clone()
}

#[test]
fn pinned_rings_are_where_they_were_pinned_and_unknown_pmds_are_refused() {
    let rig = Rig::with_pmds(2);
    let spec = PortSpec { queue_pairs: 2, pmds: vec![1], ..PortSpec::named("both") };
    let _both = rig.station_of(1, spec, GuestConfig::default().queue_pairs(2));
    let spec = PortSpec { queue_pairs: 2, pmds: vec![1, 0], ..PortSpec::named("each") };
    let _each = rig.station_of(2, spec, GuestConfig::default().queue_pairs(2));
    let pmds = |port: &str| {
        let rings = rig.show(port).rings;
        rings.iter().filter_map(|ring| ring.pmd).collect::<Vec<_>>()
    };
    assert_eq!((pmds("both"), pmds("each")), (vec![1, 1], vec![1, 0]));
    let list = rig.switch.pmds();
    let rings = list.pmds.iter().flat_map(|pmd| &pmd.rings);
    assert_eq!(rings.filter(|ring| ring.is_pinned).count(), 4, "{list:#?}");
    assert_eq!(rig.switch.rebalance().moves, []);

    let spec = PortSpec { pmds: vec![2], ..PortSpec::named("nowhere") };
    let refused = rig.switch.create_port(spec).expect_err("there are two");
    assert_eq!((refused.field.as_deref(), refused.value.as_deref()), (Some("pmds"), Some("2")));
    assert!(refused.message.contains("PMDs 0 to 1"), "{refused:?}");
    assert!(refused.remedy.contains("slipwayctl pmd list"), "{refused:?}");
}
