//! Rings that move from one PMD to another under traffic, as they are told or by the load that was
//! measured: nothing is lost, doubled or overtaken.

mod rig;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dataplane::control::Control;
use dataplane::pmd::PmdConfig;
use dataplane::port::PortId;
use dataplane::testing::frames::{Ledger, payload_range};
use dataplane::testing::{Deadline, GuestConfig, Rng};
use rig::{Rig, Station, TIMEOUT, eventually, stamped};
use slipway_api::{Pmd, PortSpec};

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

/// What senders do beside their flows.
#[derive(Clone, Copy)]
enum Beside {
    /// They pause, now and then.
    Pause,
    /// They fill what is left of their rings with frames to themselves, which go no further: more than
    /// a PMD gets done, and nobody else needs time for them.
    Load,
}

/// Sends frames of one flow until it is told to stop.
fn send(
    from: &mut Station,
    to: [u8; 6],
    number: u32,
    (flow, stop): (&Flow, &AtomicBool),
    beside: Beside,
) {
    let mut rng = Rng::seeded(number.into());
    let to_itself = stamped(from.mac, from.mac, number, 0, 16);
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
        match beside {
            Beside::Load => {
                let rest = from.guest.tx().tx_burst(usize::MAX, |slot| slot.write(&to_itself));
                rest.expect("a sound ring");
                std::thread::yield_now();
            }
            // Long enough for its ring to be armed.
            Beside::Pause if rng.chance(1, 8) => {
                std::thread::sleep(std::time::Duration::from_micros(rng.below(200)));
            }
            Beside::Pause => std::thread::yield_now(),
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

/// Has all `senders` send to the receiver, each a flow by its place, until `is_enough`, which is asked
/// again and again, or something is lost. Every frame came once, in order and whole.
fn under_traffic(
    rig: &Rig,
    receiver: &mut Station,
    senders: &mut [Station],
    beside: Beside,
    mut is_enough: impl FnMut(&[Flow]) -> bool,
) {
    let flows: Vec<_> = senders.iter().map(|_| Flow::default()).collect();
    let (quiet, done) = (AtomicBool::new(false), AtomicBool::new(false));
    let to = receiver.mac;
    let ledger = std::thread::scope(|scope| {
        let taker = scope.spawn(|| receive(receiver, &flows, &done));
        let givers: Vec<_> = (0..)
            .zip(senders)
            .map(|(n, sender)| {
                let (flow, quiet) = (&flows[n as usize], &quiet);
                scope.spawn(move || send(sender, to, n, (flow, quiet), beside))
            })
            .collect();
        while !(taker.is_finished() || is_enough(&flows)) {
            std::thread::yield_now();
        }
        quiet.store(true, Ordering::Relaxed);
        for giver in givers {
            giver.join().expect("a sender whose frames were taken");
        }
        done.store(true, Ordering::Release);
        taker.join().expect("every frame once, and whole")
    });
    let sent: u64 = flows.iter().map(|flow| flow.sent.load(Ordering::Relaxed)).sum();
    assert!(ledger.is_perfect(sent), "{sent} frames sent: {ledger:#?}");
    receiver.expect_nothing();
    rig.assert_conserved_unicast();
}

#[test]
fn rings_that_move_without_pause_lose_double_and_reorder_nothing() {
    let rig = Rig::with_pmds(2);
    let mut receiver = rig.station(100, 0, GuestConfig::default().ring_size(256));
    let mut senders: Vec<_> =
        (0..SENDERS).map(|n| rig.station(n as u32, 0, GuestConfig::default())).collect();
    let ports: Vec<_> = senders.iter().map(|sender| rig.show(&sender.port).id).collect();
    let pmds = rig.switch.pmd_threads();
    let (mut moves, mut rng) = (0, Rng::seeded(7));
    under_traffic(&rig, &mut receiver, &mut senders, Beside::Pause, |flows| {
        let port = PortId(*rng.pick(&ports));
        moves += u64::from(pmds.move_ring(port, 0, rng.below(2) as u32).is_some());
        let is_enough = |flow: &Flow| flow.received.load(Ordering::Relaxed) >= FRAMES;
        moves >= MOVES && flows.iter().all(is_enough)
    });
    assert!(moves >= MOVES);
    let list = rig.switch.pmds();
    assert!(list.pmds.iter().all(|pmd| pmd.frames > 0), "both took part: {list:#?}");
    drop(senders);
    eventually("only the receiver's ring is left", || {
        rig.switch.pmds().pmds.iter().map(|pmd| pmd.rings.len()).sum::<usize>() == 1
    });
}

/// Names of the ports whose rings each PMD polls.
fn placement(rig: &Rig) -> Vec<Vec<String>> {
    let names = |pmd: Pmd| pmd.rings.into_iter().map(|ring| ring.port).collect();
    rig.switch.pmds().pmds.into_iter().map(names).collect()
}

/// Two rings with traffic share a PMD while the other idles, until the rebalancer, which nobody asks,
/// parts them. Returns the one that moved.
fn moved_by_load(is_first_pinned: bool) -> String {
    // As soon as it is measured that it pays, however little this machine leaves to the switch.
    let often =
        PmdConfig { rebalance_interval_s: 1, rebalance_gain_percent: 1, ..PmdConfig::default() };
    let rig = Rig::with_pmds_of(2, often);
    let station = |name: &str, n: u32, pmds: Vec<u32>| {
        let mac = Some(slipway_api::Mac(rig::mac(n)));
        let spec = PortSpec { mac, pmds, ..PortSpec::named(name) };
        // Full, one holds work for as long as its guest may wait for a core on a busy machine.
        rig.station_of(n, spec, GuestConfig::default().ring_size(8192))
    };
    // Two that send nothing are pinned to one PMD, so the two that will start on the other.
    let _idle = station("idle", 100, vec![1]);
    let mut receiver = station("receiver", 101, vec![1]);
    let first = station("first", 0, if is_first_pinned { vec![0] } else { Vec::new() });
    let mut senders = [first, station("second", 1, Vec::new())];
    assert_eq!(placement(&rig), [["first", "second"], ["idle", "receiver"]]);

    let too_late = Deadline::after(TIMEOUT);
    // Frames of each flow when the move was seen.
    let mut before: Option<Vec<u64>> = None;
    let mut goes_on = false;
    under_traffic(&rig, &mut receiver, &mut senders, Beside::Load, |flows| {
        std::thread::sleep(std::time::Duration::from_millis(1));
        let received = flows.iter().map(|flow| flow.received.load(Ordering::Relaxed));
        match &before {
            Some(before) => {
                goes_on = received.zip(before).all(|(now, before)| now >= before + FRAMES);
            }
            None if placement(&rig)[0].len() == 1 => before = Some(received.collect()),
            None => {}
        }
        goes_on || too_late.passed()
    });
    let list = rig.switch.pmds();
    assert!(goes_on, "no move that was seen, or no traffic since: {list:#?}");
    // But for those that were taken when it moved.
    assert!(list.pmds[1].frames >= FRAMES - WINDOW, "not polled where it is said to be: {list:#?}");
    // Nothing moves back: each of the two has a PMD for itself and those that idle.
    let mut placement = placement(&rig);
    let (others, stayed) = (placement.remove(1), placement.remove(0));
    let moved = if stayed == ["first"] { "second" } else { "first" };
    let mut expected = vec!["idle", "receiver", moved];
    expected.sort_unstable();
    assert_eq!((stayed.len(), others), (1, expected.into_iter().map(String::from).collect()));
    moved.to_owned()
}

#[test]
fn a_ring_moves_to_the_other_pmd_by_measured_load_alone() {
    let moved = moved_by_load(false);
    assert!(["first", "second"].contains(&&*moved), "{moved}");
}

#[test]
fn of_two_rings_with_load_the_one_that_is_not_pinned_moves() {
    assert_eq!(moved_by_load(true), "second");
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
