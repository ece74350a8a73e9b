//! What the API shows of ports, counters and PMD threads.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use slipway_api::{
    AppliedPortSpec, Direction, EgressStats, IngressStats, LinkState, MemoryRegion, Pmd, PmdList,
    PmdRing, Port, PortStats, Rebalanced, Ring, RingMove, RingState, StageSamples,
};

use crate::clock;
use crate::pmd::Pmds;
use crate::pmd::plan::Moved;
use crate::port::Vport;
use crate::port::vhost_user::RingInfo;
use crate::stats::stages::{Stage, StageCounters};
use crate::stats::{Counter, DropReason, Drops};
use crate::vhost::device::LinkEvent;

use super::features;

/// A port and how it is doing.
pub fn port(spec: &AppliedPortSpec, vport: &Vport) -> Port {
    let info = vport.link.info();
    let (link, reason) = link(vport);
    let negotiated = match info.event {
        Some(LinkEvent::Up { features, .. }) => features,
        _ => 0,
    };
    let rings =
        (0..2 * vport.tx.len() as u16).map(|index| ring(vport, index, info.rings.get(&index)));
    let region = |&(guest_address, size_bytes)| MemoryRegion { guest_address, size_bytes };
    Port {
        id: vport.id.0,
        spec: spec.clone(),
        link,
        reason,
        features: features::names(negotiated),
        rings: rings.collect(),
        memory: info.regions.iter().map(region).collect(),
    }
}

/// How far a port's connection has come, and why it is broken.
pub fn link(vport: &Vport) -> (LinkState, Option<String>) {
    let info = vport.link.info();
    if let Some(reason) = info.broken_ring() {
        return (LinkState::Broken, Some(reason));
    }
    match info.event {
        None | Some(LinkEvent::Waiting) => (LinkState::Waiting, None),
        Some(LinkEvent::Negotiating) => (LinkState::Negotiating, None),
        Some(LinkEvent::Up { .. }) => (LinkState::Up, None),
        Some(LinkEvent::Broken { reason }) => (LinkState::Broken, Some(reason)),
    }
}

fn ring(vport: &Vport, index: u16, info: Option<&RingInfo>) -> Ring {
    let state = match info {
        None => RingState::Stopped,
        Some(RingInfo { fault: Some(_), .. }) => RingState::Broken,
        Some(_) => RingState::Running,
    };
    let is_receive = index.is_multiple_of(2);
    let owner = || vport.tx[usize::from(index / 2)].owner.load(Ordering::Relaxed);
    Ring {
        index,
        direction: if is_receive { Direction::Rx } else { Direction::Tx },
        size: info.map_or(0, |info| info.size),
        enabled: info.is_some_and(|info| info.enabled),
        state,
        pmd: info.filter(|_| !is_receive).map(|_| owner()),
    }
}

/// The counters of a port: the sums over its queue pairs.
pub fn stats(spec: &AppliedPortSpec, vport: &Vport) -> PortStats {
    let mut stats = PortStats { port: spec.name.clone(), vni: spec.vni, ..PortStats::default() };
    let faults = vport.link.info().faults;
    stats.ring_faults = faults.into_iter().map(|(name, n)| (name.to_owned(), n)).collect();
    for tx in &vport.tx {
        let (from, into) = (&tx.counters, &mut stats.ingress);
        let IngressStats {
            received_frames,
            received_bytes,
            forwarded_frames,
            answered_frames,
            drops,
        } = into;
        add(received_frames, &from.received_frames);
        add(received_bytes, &from.received_bytes);
        add(forwarded_frames, &from.forwarded_frames);
        add(answered_frames, &from.answered_frames);
        add_drops(drops, &from.drops);
        add(&mut stats.in_hand_frames, &from.in_hand);
    }
    for rx in &vport.rx {
        let from = &rx.counters;
        let EgressStats { offered_frames, delivered_frames, delivered_bytes, drops } =
            &mut stats.egress;
        add(offered_frames, &from.offered_frames);
        add(delivered_frames, &from.delivered_frames);
        add(delivered_bytes, &from.delivered_bytes);
        add_drops(drops, &from.drops);
    }
    stats
}

fn add(sum: &mut u64, counter: &Counter) {
    *sum += counter.get();
}

fn add_drops(sums: &mut BTreeMap<String, u64>, drops: &Drops) {
    for reason in DropReason::ALL {
        let n = drops.get(reason);
        if n > 0 {
            *sums.entry(reason.name().to_owned()).or_default() += n;
        }
    }
}

fn samples(stages: &StageCounters) -> StageSamples {
    StageSamples {
        bursts: stages.bursts.get(),
        frames: stages.frames.get(),
        take_cycles: stages.ticks(Stage::Take),
        judge_cycles: stages.ticks(Stage::Judge),
        deliver_cycles: stages.ticks(Stage::Deliver),
        settle_cycles: stages.ticks(Stage::Settle),
        empty_looks: stages.empty_looks.get(),
        empty_cycles: stages.empty_ticks.get(),
    }
}

/// The PMD threads, with the vrings that the plan says they poll.
pub fn pmds(pmds: &Pmds) -> PmdList {
    let mut rings: BTreeMap<u32, Vec<PmdRing>> = BTreeMap::new();
    for placed in pmds.placed() {
        rings.entry(placed.pmd).or_default().push(PmdRing {
            port: placed.vport.name.clone(),
            ring: 2 * placed.queue + 1,
            load_permille: placed.load_permille,
            is_pinned: placed.is_pinned,
        });
    }
    rings
        .values_mut()
        .for_each(|rings| rings.sort_by(|a, b| (&a.port, a.ring).cmp(&(&b.port, b.ring))));
    let view = |pmd: &crate::pmd::Pmd| {
        let counters = &pmd.counters;
        Pmd {
            id: pmd.index,
            core: Some(pmd.core as u32),
            rings: rings.remove(&pmd.index).unwrap_or_default(),
            busy_cycles: counters.busy_ticks.get(),
            idle_cycles: counters.idle_ticks.get(),
            polls: counters.rounds.get(),
            bursts: counters.bursts.get(),
            frames: counters.frames.get(),
            sleeps: counters.sleeps.get(),
            wakeups: counters.wakeups.get(),
            kick_check_cycles: counters.kick_check_ticks.get(),
            sleep_cycles: counters.sleep_ticks.get(),
            polled_rings: counters.polled_rings.get(),
            armed_rings: counters.armed_rings.get(),
            samples: samples(&counters.stages),
        }
    };
    PmdList {
        cycles_hz: clock::ticks_per_us() * 1_000_000,
        pmds: pmds.threads().iter().map(view).collect(),
    }
}

/// Vrings that were moved.
pub fn rebalanced(moved: &[Moved]) -> Rebalanced {
    let view = |moved: &Moved| RingMove {
        port: moved.vport.name.clone(),
        ring: 2 * moved.queue + 1,
        from: moved.from,
        to: moved.to,
    };
    Rebalanced { moves: moved.iter().map(view).collect() }
}
