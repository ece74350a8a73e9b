//! Rings of hostile drivers: every fault provoked and named, chains cut in every way.

mod common;

use common::rig::{BUFFERS, BUFFERS_END, RINGS, Rig, TABLES, TABLES_END, chain, link, readable};
use dataplane::stats::DropReason;
use dataplane::testing::driver::Desc;
use dataplane::testing::features::INDIRECT_DESC;
use dataplane::testing::{Rng, local};
use dataplane::vhost::device::RingSetup;
use dataplane::vring::chain::Direction;
use dataplane::vring::ring::Ring;
use dataplane::vring::rx::Refusal;
use dataplane::vring::split::SetupError;
use dataplane::vring::{BURST, MAX_FRAME_BYTES, MAX_SEGMENTS, RingFault, VNET_HDR};

/// A buffer of the ring's own direction.
fn buffer(direction: Direction, addr: u64, len: u32) -> Desc {
    match direction {
        Direction::Transmit => Desc::readable(addr, len),
        Direction::Receive => Desc::writable(addr, len),
    }
}

const BOTH: [Direction; 2] = [Direction::Transmit, Direction::Receive];

#[track_caller]
fn assert_fault(direction: Direction, descs: &[Desc], right: RingFault) {
    let mut rig = Rig::new(direction, 8, INDIRECT_DESC);
    rig.offer(descs);
    assert_eq!(rig.fault(), right, "{descs:x?}");
}

#[test]
fn available_index_that_jumps_is_a_fault() {
    for direction in BOTH {
        for jump in [9, 10, 0x7fff, 0x8000, 0xffff] {
            let mut rig = Rig::new(direction, 8, INDIRECT_DESC);
            rig.driver.raw_avail_idx(jump);
            assert_eq!(rig.fault(), RingFault::AvailJump { jump, size: 8 });
        }
    }
}

#[test]
fn available_index_one_ring_ahead_is_none() {
    let mut rig = Rig::transmit(8);
    rig.driver.raw_desc(0, readable(BUFFERS.gpa, 100));
    rig.driver.raw_avail_idx(8);
    let (frames, outcome) = rig.pop();
    assert_eq!((frames.len(), outcome), (8, Ok(())));
}

#[test]
fn head_that_does_not_exist_is_a_fault() {
    for direction in BOTH {
        for head in [8, 9, 0x8000, 0xffff] {
            let mut rig = Rig::new(direction, 8, INDIRECT_DESC);
            rig.offer_head(head);
            assert_eq!(rig.fault(), RingFault::HeadOutOfRange { head, size: 8 });
        }
    }
}

#[test]
fn link_that_does_not_exist_is_a_fault_in_ring_and_indirect_table() {
    for direction in BOTH {
        let desc = buffer(direction, BUFFERS.gpa, 20);
        for next in [8, 0xffff] {
            let fault = RingFault::NextOutOfRange { next, size: 8 };
            assert_fault(direction, &[link(desc, next)], fault);
        }
        let mut rig = Rig::new(direction, 8, INDIRECT_DESC);
        let table = rig.table(TABLES.gpa, &[link(desc, 2), desc]);
        rig.offer(&[table]);
        assert_eq!(rig.fault(), RingFault::NextOutOfRange { next: 2, size: 2 });
    }
}

#[test]
fn chain_that_loops_is_a_fault_in_ring_and_indirect_table() {
    for direction in BOTH {
        for len in [0, 20] {
            let desc = buffer(direction, BUFFERS.gpa, len);
            let rings: [&[Desc]; 3] = [
                &[link(desc, 0)],
                &[link(desc, 1), link(desc, 0)],
                &[link(desc, 1), link(desc, 2), link(desc, 1)],
            ];
            for descs in rings {
                assert_fault(direction, descs, RingFault::Loop { head: 0 });
                let mut rig = Rig::new(direction, 8, INDIRECT_DESC);
                let table = rig.table(TABLES.gpa, descs);
                rig.offer(&[table]);
                assert_eq!(rig.fault(), RingFault::Loop { head: 0 });
            }
        }
    }
}

#[test]
fn buffer_outside_of_guest_memory_is_a_fault() {
    let bad = [
        (0, 1),
        (RINGS.gpa - 1, 1),
        (RINGS.gpa - 1, 2),
        (BUFFERS_END, 1),
        (BUFFERS_END - 1, 2),
        (BUFFERS_END + 0x1000, 64),
        // Across two regions that adjoin for the guest, but not for us.
        (BUFFERS.gpa - 1, 2),
        (TABLES_END - 10, 11),
        (BUFFERS.gpa, u32::MAX),
        (BUFFERS.gpa, BUFFERS.len as u32 + 1),
        (u64::MAX, 1),
        (u64::MAX, u32::MAX),
        (u64::MAX - 19, 20),
        (1 << 63, 100),
    ];
    for direction in BOTH {
        for (gpa, len) in bad {
            let fault = RingFault::BadAddress { gpa, len };
            let desc = buffer(direction, gpa, len);
            assert_fault(direction, &[desc], fault);
            let first = buffer(direction, BUFFERS.gpa, 20);
            assert_fault(direction, &[link(first, 1), desc], fault);
        }
    }
}

#[test]
fn indirect_table_that_breaks_the_rules_is_a_fault() {
    for direction in BOTH {
        let indirect = |addr, len| Desc { addr, len, flags: Desc::INDIRECT, next: 0 };
        for len in [0, 1, 8, 15, 17, 31, 32_768 * 16 + 16, u32::MAX, u32::MAX - 15] {
            let fault = RingFault::IndirectLength { len };
            assert_fault(direction, &[indirect(TABLES.gpa, len)], fault);
        }
        for (gpa, len) in [(0, 16), (TABLES_END - 15, 16), (BUFFERS.gpa - 16, 32), (u64::MAX, 16)] {
            assert_fault(direction, &[indirect(gpa, len)], RingFault::BadAddress { gpa, len });
        }
        let linked = link(indirect(TABLES.gpa, 16), 1);
        assert_fault(direction, &[linked], RingFault::IndirectLinked);

        let mut rig = Rig::new(direction, 8, INDIRECT_DESC);
        let inner = rig.table(TABLES.gpa, &[buffer(direction, BUFFERS.gpa, 64)]);
        let outer = rig.table(TABLES.gpa + 64, &[inner]);
        rig.offer(&[outer]);
        assert_eq!(rig.fault(), RingFault::NestedIndirect);

        let mut rig = Rig::new(direction, 8, 0);
        let table = rig.table(TABLES.gpa, &[buffer(direction, BUFFERS.gpa, 64)]);
        rig.offer(&[table]);
        assert_eq!(rig.fault(), RingFault::IndirectNotNegotiated);
    }
}

#[test]
fn indirect_table_at_an_odd_address_or_behind_direct_descriptors_is_none() {
    for gpa in [TABLES.gpa + 1, TABLES.gpa + 7, TABLES_END - 32] {
        let mut rig = Rig::transmit(8);
        rig.memory.write(BUFFERS.gpa, &[7; 100]).unwrap();
        let table = rig.table(gpa, &chain(&[readable(BUFFERS.gpa, 30), readable(BUFFERS.gpa, 20)]));
        // The flag WRITE beside INDIRECT is to be ignored (virtio 1.3, section 2.7.5.3.2).
        let table = Desc { flags: table.flags | Desc::WRITE, ..table };
        rig.offer(&[link(readable(BUFFERS.gpa, 12), 1), table]);
        assert_eq!(rig.pop(), (vec![Ok(vec![7; 62])], Ok(())));
    }
}

#[test]
fn buffer_of_the_wrong_direction_is_a_fault() {
    let wrong = |found, ring| RingFault::WrongDirection { found, ring };
    let (read, write) = (readable(BUFFERS.gpa, 64), Desc::writable(BUFFERS.gpa, 64));
    for descs in [&[write][..], &[link(read, 1), write]] {
        assert_fault(Direction::Transmit, descs, wrong("writable", "transmit"));
    }
    for descs in [&[read][..], &[link(write, 1), read]] {
        assert_fault(Direction::Receive, descs, wrong("read-only", "receive"));
    }
}

#[test]
fn receive_chain_without_a_byte_is_a_fault() {
    let empty = Desc::writable(BUFFERS.gpa, 0);
    assert_fault(Direction::Receive, &[empty], RingFault::EmptyBuffer);
    assert_fault(Direction::Receive, &chain(&[empty; 3]), RingFault::EmptyBuffer);
}

#[test]
fn every_fault_has_a_name_of_its_own() {
    let faults = [
        RingFault::AvailJump { jump: 0, size: 0 },
        RingFault::HeadOutOfRange { head: 0, size: 0 },
        RingFault::NextOutOfRange { next: 0, size: 0 },
        RingFault::Loop { head: 0 },
        RingFault::BadAddress { gpa: 0, len: 0 },
        RingFault::IndirectLength { len: 0 },
        RingFault::NestedIndirect,
        RingFault::IndirectLinked,
        RingFault::IndirectNotNegotiated,
        RingFault::WrongDirection { found: "", ring: "" },
        RingFault::EmptyBuffer,
        RingFault::MemoryLost,
    ];
    let names: std::collections::HashSet<_> = faults.iter().map(|fault| fault.name()).collect();
    assert_eq!(names.len(), faults.len());
}

#[test]
fn frames_before_a_fault_are_taken_and_the_ring_stands_at_the_fault() {
    let mut rig = Rig::transmit(8);
    rig.offer(&[readable(BUFFERS.gpa, 100)]);
    rig.offer_head(0);
    rig.driver.raw_desc(1, readable(0, 100));
    rig.offer_head(1);
    rig.offer_head(0);
    let (frames, outcome) = rig.pop();
    assert_eq!(frames.len(), 2);
    assert_eq!(outcome, Err(RingFault::BadAddress { gpa: 0, len: 100 }));
    assert_eq!((rig.ring.base(), rig.driver.raw_used_idx()), (2, 2));
}

#[test]
fn chain_of_more_buffers_than_the_switch_walks_is_dropped_and_the_ring_goes_on() {
    let byte = readable(BUFFERS.gpa, 1);
    for (buffers, is_taken) in [(MAX_SEGMENTS, true), (MAX_SEGMENTS + 1, false), (128, false)] {
        for len in [0, 1] {
            let mut rig = Rig::transmit(256);
            let mut descs = vec![Desc { len, ..byte }; buffers];
            descs[0] = readable(BUFFERS.gpa, 60);
            rig.offer(&chain(&descs));
            rig.driver.raw_desc(200, readable(BUFFERS.gpa, 60));
            rig.offer_head(200);
            let (frames, outcome) = rig.pop();
            let right = if is_taken { None } else { Some(DropReason::TooManySegments) };
            assert_eq!(frames[0].as_ref().err().copied(), right, "{buffers} of {len} bytes");
            assert!(frames[1].is_ok());
            assert_eq!((frames.len(), outcome), (2, Ok(())));
        }
    }
}

/// A bound on work: such chains would be walked to their ends for every frame of every burst.
#[test]
fn longest_chains_of_empty_buffers_are_not_walked_to_their_end() {
    for direction in BOTH {
        let size = 32_768;
        let mut rig = Rig::new(direction, size, INDIRECT_DESC);
        let empty = buffer(direction, RINGS.gpa, 0);
        for index in 0..size {
            rig.driver.raw_desc(index, link(empty, (index + 1) % size));
            rig.driver.raw_push(index);
        }
        rig.driver.publish();
        match direction {
            Direction::Transmit => {
                let (frames, outcome) = rig.pop();
                assert_eq!(frames, vec![Err(DropReason::TooManySegments); BURST]);
                assert_eq!(outcome, Ok(()));
            }
            Direction::Receive => {
                let refused = Err(Refusal::Drop(DropReason::TooManySegments));
                assert_eq!(rig.fill(&[100; BURST], true), [refused; BURST]);
            }
        }
    }
}

#[test]
fn chains_beyond_the_room_of_a_burst_wait_for_the_next() {
    let mut rig = Rig::transmit(256);
    let descs = vec![readable(BUFFERS.gpa, 10); MAX_SEGMENTS];
    rig.offer(&chain(&descs));
    (1..20).for_each(|_| rig.offer_head(0));
    let mut taken = Vec::new();
    while taken.iter().sum::<usize>() < 20 {
        let (frames, outcome) = rig.pop();
        assert!(outcome.is_ok() && !frames.is_empty() && frames.iter().all(Result::is_ok));
        taken.push(frames.len());
    }
    assert_eq!(taken.iter().sum::<usize>(), 20);
    assert!(taken.len() > 1);
}

#[test]
fn sizes_at_the_edges_are_judged_right() {
    let least = VNET_HDR as u32 + 14;
    let most = VNET_HDR as u32 + MAX_FRAME_BYTES;
    for (total, right) in [
        (1, Some(DropReason::Truncated)),
        (least - 1, Some(DropReason::Truncated)),
        (least, None),
        (most, None),
        (most + 1, Some(DropReason::TooLong)),
    ] {
        // Long frames are made of the same bytes over and over.
        let mut rig = Rig::transmit(64);
        let (mut descs, mut left) = (Vec::new(), total);
        while left > 0 {
            let len = left.min(BUFFERS.len as u32);
            descs.push(readable(BUFFERS.gpa, len));
            left -= len;
        }
        rig.offer(&chain(&descs));
        let (frames, outcome) = rig.pop();
        assert_eq!(outcome, Ok(()));
        assert_eq!(frames[0].as_ref().err().copied(), right, "{total} bytes");
    }
}

/// A frame of 200 bytes and its header, in buffers cut at `cuts`, back to front and with a gap of
/// other bytes after each.
fn take_cut_at(rig: &mut Rig, cuts: &[usize], indirect: bool) {
    let bytes: Vec<u8> = (0..212).map(|n| n as u8).collect();
    let mut ends: Vec<usize> = cuts.to_vec();
    ends.push(bytes.len());
    let (mut descs, mut start, mut at) = (Vec::new(), 0, BUFFERS_END);
    for end in ends {
        at -= (end - start) as u64 + 3;
        rig.memory.write(at, &bytes[start..end]).unwrap();
        rig.memory.write(at + (end - start) as u64, &[0xee; 3]).unwrap();
        descs.push(readable(at, (end - start) as u32));
        start = end;
    }
    let descs = chain(&descs);
    let descs = if indirect { vec![rig.table(TABLES.gpa, &descs)] } else { descs };
    rig.offer(&descs);
    assert_eq!(rig.pop(), (vec![Ok(bytes)], Ok(())), "cut at {cuts:?}");
}

#[test]
fn frame_cut_at_any_offset_is_the_same_frame() {
    let mut rig = Rig::transmit(64);
    for cut in 0..=212 {
        take_cut_at(&mut rig, &[cut], false);
        take_cut_at(&mut rig, &[cut], true);
        // The same offset twice makes an empty descriptor.
        take_cut_at(&mut rig, &[cut, cut], false);
    }
}

#[test]
fn frame_cut_at_any_two_offsets_is_the_same_frame() {
    let mut rig = Rig::transmit(64);
    for first in 0..=212 {
        for second in first..=212 {
            take_cut_at(&mut rig, &[first, second], (first + second) % 2 == 0);
        }
    }
}

#[test]
fn frame_cut_at_many_offsets_is_the_same_frame() {
    let (mut rig, mut rng) = (Rig::transmit(64), Rng::seeded(5));
    for _ in 0..5_000 {
        let cuts = rng.cuts(212, MAX_SEGMENTS - 1);
        take_cut_at(&mut rig, &cuts, rng.chance(1, 2));
    }
    take_cut_at(&mut rig, &(1..MAX_SEGMENTS).collect::<Vec<_>>(), false);
}

#[test]
fn ring_must_lie_in_one_region_and_be_aligned() {
    let size = 8;
    let rig = Rig::transmit(size);
    let good = local::ring_setup(&rig.driver, 0, 0, 0);
    let start = |setup| Ring::new(&setup, &rig.map, Direction::Transmit).map(|_| ());
    let region = &rig.memory.regions()[0];
    let end = region.user_addr() + region.len() as u64;
    // The kernel may have put another region of this guest right beside it.
    let is_elsewhere = |addr: u64| {
        let others = &rig.memory.regions()[1..];
        others.iter().any(|r| addr.checked_sub(r.user_addr()).is_some_and(|at| at < r.len() as u64))
    };
    assert_eq!(start(good.clone()), Ok(()));

    let areas = [("descriptor table", 128, 16), ("available ring", 22, 2), ("used ring", 70, 4)];
    for (n, (area, len, align)) in areas.into_iter().enumerate() {
        let at = |addr| {
            let mut setup = good.clone();
            *[&mut setup.desc, &mut setup.avail, &mut setup.used][n] = addr;
            start(setup)
        };
        let unmapped = |addr| Err(SetupError::Unmapped { area, addr, len });
        let last = (end - u64::from(len)) / align as u64 * align as u64;
        assert_eq!(at(last), Ok(()), "{area} at the very end");
        let far = end + 0x10_0000_0000;
        let around = [last + align as u64, region.user_addr() - 16, end, far];
        for addr in around.into_iter().filter(|&addr| !is_elsewhere(addr)) {
            assert_eq!(at(addr), unmapped(addr));
        }
        for addr in [0, u64::MAX, u64::MAX - 15] {
            assert_eq!(at(addr), unmapped(addr));
        }
        let addr = region.user_addr() + 1;
        assert_eq!(at(addr), Err(SetupError::Misaligned { area, addr, align }));
    }
    for size in [0, 3, 12, 32_769, u16::MAX] {
        let setup = RingSetup { size, ..good.clone() };
        assert_eq!(start(setup), Err(SetupError::Size(size)));
    }
}
