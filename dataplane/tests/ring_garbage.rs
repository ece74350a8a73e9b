//! Garbage in rings: whatever a ring says, taking and filling end, and write nothing but the used
//! ring and the buffers that the driver gave to be written.

mod common;

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use common::Seed;
use common::rig::{BUFFERS, BUFFERS_END, RINGS, Rig, TABLES};
use dataplane::testing::Rng;
use dataplane::testing::driver::Desc;
use dataplane::testing::features::{EVENT_IDX, INDIRECT_DESC, MRG_RXBUF};
use dataplane::testing::memory::{GuestMemory, Region, RegionSpec, Span};
use dataplane::vring::BURST;
use dataplane::vring::chain::Direction;
use dataplane::vring::rx::Refusal;

/// All of the guest's memory.
fn snapshot(memory: &GuestMemory) -> Vec<(u64, Vec<u8>)> {
    let read = |region: &Arc<Region>| {
        let mut bytes = vec![0; region.len()];
        memory.read(region.gpa(), &mut bytes).unwrap();
        (region.gpa(), bytes)
    };
    memory.regions().iter().map(read).collect()
}

/// Addresses of bytes that differ are all in `allowed`.
fn assert_changed_only(memory: &GuestMemory, before: &[(u64, Vec<u8>)], allowed: &[Range<u64>]) {
    for ((gpa, now), (_, then)) in snapshot(memory).iter().zip(before) {
        if now == then {
            continue;
        }
        for (offset, _) in now.iter().zip(then).enumerate().filter(|(_, (a, b))| a != b) {
            let at = gpa + offset as u64;
            assert!(allowed.iter().any(|range| range.contains(&at)), "{at:#x} was written");
        }
    }
}

fn range(span: &Span) -> Range<u64> {
    span.gpa()..span.gpa() + span.len() as u64
}

/// Descriptors that are nearly right: addresses in and around guest memory, lengths likewise.
fn garbage_desc(rng: &mut Rng, size: u16, flags: &[u16]) -> Desc {
    let addr = match rng.below(12) {
        0 => rng.next_u64(),
        1 => BUFFERS_END - rng.below(64),
        2 => BUFFERS.gpa - rng.below(64),
        _ => BUFFERS.gpa + rng.below(BUFFERS.len as u64 - 600),
    };
    let len = match rng.below(12) {
        0 => rng.next_u64() as u32,
        1 | 2 => 0,
        3 => rng.below(20) as u32,
        _ => rng.below(600) as u32,
    };
    let mut desc =
        Desc { addr, len, flags: *rng.pick(flags), next: rng.below(u64::from(size) + 1) as u16 };
    if desc.flags & Desc::INDIRECT != 0 && rng.chance(7, 8) {
        desc.addr = TABLES.gpa + 16 * rng.below(900);
        desc.len = 16 * rng.below(10) as u32;
    }
    desc
}

/// Fills ring and tables with descriptors from `make`, and the available ring with heads.
fn scribble(rig: &mut Rig, rng: &mut Rng, mut make: impl FnMut(&mut Rng) -> Desc) -> Vec<Desc> {
    let size = rig.driver.size();
    let mut descs = Vec::new();
    for index in 0..size {
        descs.push(make(rng));
        rig.driver.raw_desc(index, descs[usize::from(index)]);
    }
    let table: Vec<Desc> = (0..TABLES.len / 16).map(|_| make(rng)).collect();
    rig.table(TABLES.gpa, &table);
    descs.extend(table);
    for at in 0..u64::from(size) {
        let bad = rng.chance(1, 60);
        let head = if bad { rng.next_u64() } else { rng.below(u64::from(size)) } as u16;
        let gpa = rig.driver.avail().gpa() + 4 + 2 * at;
        rig.memory.write(gpa, &head.to_le_bytes()).unwrap();
    }
    descs
}

/// A base, and an available index that is mostly not too far from it.
fn restart_anywhere(rig: &mut Rig, rng: &mut Rng) {
    let base = rng.next_u64() as u16;
    rig.restart(base.into());
    let size = u64::from(rig.driver.size());
    let ahead = if rng.chance(1, 20) { rng.next_u64() } else { rng.below(size + 1) };
    rig.driver.raw_avail_idx(base.wrapping_add(ahead as u16));
}

#[test]
fn garbage_in_a_transmit_ring_changes_nothing_but_the_used_ring() {
    let (mut frames, mut faults) = (0, HashSet::new());
    for seed in 0..3_000 {
        let _seed = Seed(seed);
        let mut rng = Rng::seeded(seed);
        let features = if rng.chance(1, 2) { INDIRECT_DESC | EVENT_IDX } else { INDIRECT_DESC };
        let mut rig = Rig::new(Direction::Transmit, 1 << rng.below(7), features);
        let size = rig.driver.size();
        let flags = [0, 0, 0, 0, Desc::NEXT, Desc::NEXT, Desc::NEXT, Desc::INDIRECT, Desc::WRITE];
        let is_noise = rng.chance(1, 4);
        scribble(&mut rig, &mut rng, |rng| {
            if is_noise {
                let [addr, rest] = [rng.next_u64(), rng.next_u64()];
                let (flags, next) = ((rest >> 32) as u16 & 7, (rest >> 48) as u16);
                return Desc { addr, len: rest as u32, flags, next };
            }
            garbage_desc(rng, size, &flags)
        });
        restart_anywhere(&mut rig, &mut rng);
        let before = snapshot(&rig.memory);
        for _ in 0..8 {
            let (taken, outcome) = rig.pop();
            frames += taken.iter().filter(|frame| frame.is_ok()).count();
            if let Err(fault) = outcome {
                faults.insert(fault.name());
                break;
            }
        }
        assert_changed_only(&rig.memory, &before, &[range(rig.driver.used())]);
    }
    // The garbage was good enough to get somewhere, and bad enough to be refused in all ways.
    assert!(frames > 1_000, "{frames} frames");
    assert_eq!(faults.len(), 9, "{faults:?}");
}

#[test]
fn garbage_in_a_receive_ring_changes_nothing_but_the_used_ring_and_writable_buffers() {
    let (mut delivered, mut faults) = (0, HashSet::new());
    for seed in 0..3_000 {
        let _seed = Seed(seed);
        let mut rng = Rng::seeded(seed);
        let mergeable = rng.chance(1, 2);
        let features = INDIRECT_DESC | if mergeable { MRG_RXBUF } else { 0 };
        let mut rig = Rig::new(Direction::Receive, 1 << rng.below(7), features);
        let size = rig.driver.size();
        let (write, linked) = (Desc::WRITE, Desc::WRITE | Desc::NEXT);
        let flags = [
            write,
            write,
            write,
            write,
            linked,
            linked,
            Desc::INDIRECT,
            Desc::INDIRECT | linked,
            0,
        ];
        // Buffers never lie upon rings and tables, so what may be written is known beforehand.
        let is_in = |spec: RegionSpec, gpa| (spec.gpa..spec.gpa + spec.len as u64).contains(&gpa);
        let descs = scribble(&mut rig, &mut rng, |rng| {
            loop {
                let desc = garbage_desc(rng, size, &flags);
                let is_table = desc.flags & Desc::INDIRECT != 0;
                if is_table || !is_in(RINGS, desc.addr) && !is_in(TABLES, desc.addr) {
                    return desc;
                }
            }
        });
        let end = |desc: &Desc| desc.addr.saturating_add(u64::from(desc.len));
        let mut allowed: Vec<_> = descs
            .iter()
            .filter(|desc| desc.flags & Desc::WRITE != 0 && end(desc) <= BUFFERS_END)
            .map(|desc| desc.addr..end(desc))
            .collect();
        allowed.push(range(rig.driver.used()));
        restart_anywhere(&mut rig, &mut rng);
        let before = snapshot(&rig.memory);
        for _ in 0..8 {
            let frames: Vec<usize> = (0..rng.range(1..BURST)).map(|_| rng.range(0..1500)).collect();
            let outcomes = rig.fill(&frames, mergeable);
            delivered += outcomes.iter().filter(|outcome| outcome.is_ok()).count();
            if let Some(Err(Refusal::Fault(fault))) = outcomes.last() {
                faults.insert(fault.name());
                break;
            }
        }
        assert_changed_only(&rig.memory, &before, &allowed);
    }
    assert!(delivered > 300, "{delivered} frames");
    assert_eq!(faults.len(), 10, "{faults:?}");
}
