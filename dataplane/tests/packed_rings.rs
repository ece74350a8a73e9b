//! Packed rings: what goes through them, hostile drivers, notifications. How they behave over long
//! histories `sim_pipeline` shows, whose ports have rings of either layout.

mod common;

use std::sync::Arc;

use common::rig::{BUFFERS, RINGS, TABLES};
use dataplane::frame::{Batch, HEAD, Scratch, Tail};
use dataplane::stats::DropReason;
use dataplane::testing::driver::{Desc, PackedVring};
use dataplane::testing::features::{EVENT_IDX, INDIRECT_DESC, RING_PACKED};
use dataplane::testing::memory::{Backing, GuestMemory, RegionSpec};
use dataplane::testing::{Rng, local};
use dataplane::vhost::device::RingSetup;
use dataplane::vhost::eventfd::EventFd;
use dataplane::vhost::mem::{GuestMap, GuestSlice};
use dataplane::vring::chain::Direction;
use dataplane::vring::ring::Ring;
use dataplane::vring::rx::{Expected, Refusal};
use dataplane::vring::split::SetupError;
use dataplane::vring::tx::Limit;
use dataplane::vring::{BURST, MAX_SEGMENTS, MAX_SPREAD, RingFault, VNET_HDR};

const SIZE: u16 = 8;
/// At the start of a ring: the guest's turn is over, it offers.
const OFFERED: u16 = 1 << 7;
const NO_CALLS: u16 = 1;
const CALL_AT: u16 = 2;

/// One packed ring of a driver that may be hostile.
struct Rig {
    memory: GuestMemory,
    map: Arc<GuestMap>,
    driver: PackedVring,
    ring: Ring,
    call: EventFd,
    direction: Direction,
}

fn setup(driver: &PackedVring, features: u64, call: &EventFd) -> RingSetup {
    RingSetup {
        index: 0,
        size: driver.size(),
        desc: driver.desc_table().user_addr(),
        avail: driver.driver_area().user_addr(),
        used: driver.device_area().user_addr(),
        base: 0x8000,
        kick: None,
        call: Some(call.clone()),
        err: None,
        features: features | RING_PACKED,
        enabled: true,
    }
}

impl Rig {
    fn new(direction: Direction, size: u16, features: u64) -> Self {
        let rings =
            RegionSpec { len: RINGS.len + 16 * usize::from(size).next_multiple_of(256), ..RINGS };
        let (mut buffers, mut tables) = (BUFFERS, TABLES);
        buffers.gpa += rings.len as u64;
        tables.gpa += rings.len as u64;
        let mut memory = GuestMemory::new(&[rings, buffers, tables], Backing::default()).unwrap();
        let mut driver = PackedVring::new(&mut memory, 0, size).unwrap();
        driver.reset(features & EVENT_IDX != 0);
        let (map, call) = (local::map(&memory).unwrap(), EventFd::new().unwrap());
        let ring = Ring::new(&setup(&driver, features, &call), &map, direction).unwrap();
        Self { memory, map, driver, ring, call, direction }
    }

    fn buffer(&self) -> u64 {
        self.memory.regions()[1].gpa()
    }

    fn table(&self) -> u64 {
        self.memory.regions()[2].gpa()
    }

    /// Writes a descriptor of the first round, whatever it says.
    fn raw(&self, index: u16, addr: u64, len: u32, id: u16, flags: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&id.to_le_bytes());
        bytes[14..].copy_from_slice(&flags.to_le_bytes());
        self.driver.desc_table().write(16 * usize::from(index), &bytes);
    }

    /// The flag of the ring's own direction.
    fn way(&self) -> u16 {
        if self.direction == Direction::Receive { Desc::WRITE } else { 0 }
    }

    /// One burst taken: lengths of the frames, or why they were dropped.
    fn pop(&mut self) -> (Vec<Result<u32, DropReason>>, Result<(), RingFault>) {
        let (mut batch, mut scratch) = (Batch::new(), [Scratch::EMPTY; BURST]);
        let outcome =
            self.ring.pop(&self.map, &mut batch, &mut scratch, Limit::frames(BURST as u16));
        let frames = batch.frames.iter().map(|frame| frame.drop.map_or(Ok(frame.len), Err));
        let frames = frames.collect();
        self.ring.complete(&batch).unwrap();
        (frames, outcome)
    }

    /// Frames of these lengths delivered, as far as the ring goes.
    fn fill(&mut self, lengths: &[usize]) -> Vec<Result<(), Refusal>> {
        let expected = Expected { frames: lengths.len(), frame_bytes: 1000 };
        let mut fill = match self.ring.fill(&self.map, expected, true) {
            Ok(fill) => fill,
            Err(fault) => return vec![Err(Refusal::Fault(fault))],
        };
        let mut outcomes = Vec::new();
        for len in lengths {
            let mut head = vec![0x11; VNET_HDR + HEAD.min(*len)];
            let mut rest = vec![0x22; len.saturating_sub(HEAD)];
            let tail = Tail { body: GuestSlice::of_private(&mut rest), more: &[] };
            outcomes.push(fill.push(&mut head, tail, *len as u32));
        }
        fill.finish().unwrap();
        outcomes
    }

    #[track_caller]
    fn fault(&mut self) -> RingFault {
        match self.direction {
            Direction::Transmit => {
                let (frames, outcome) = self.pop();
                assert_eq!(frames, [], "frames before the fault");
                outcome.expect_err("a fault")
            }
            Direction::Receive => match self.fill(&[100])[..] {
                [Err(Refusal::Fault(fault))] => fault,
                ref other => panic!("{other:?}"),
            },
        }
    }
}

const BOTH: [Direction; 2] = [Direction::Transmit, Direction::Receive];

#[test]
fn a_descriptor_is_taken_in_its_round_only() {
    for flags in [0, 1 << 15, OFFERED | 1 << 15] {
        let mut rig = Rig::new(Direction::Transmit, SIZE, 0);
        rig.raw(0, rig.buffer(), 100, 0, flags);
        assert_eq!(rig.pop(), (vec![], Ok(())), "{flags:#x}");
    }
    let mut rig = Rig::new(Direction::Transmit, SIZE, 0);
    (0..SIZE).for_each(|n| rig.raw(n, rig.buffer(), 100, n, OFFERED));
    // All of the ring once, and not again in the next round.
    assert_eq!(rig.pop().0.len(), usize::from(SIZE));
    assert_eq!(rig.pop().0.len(), 0);
    // As in the first round: what the device gave back has both bits set.
    for n in 0..SIZE {
        let word = rig.driver.desc_table().array::<4>(16 * usize::from(n) + 12);
        let [id, flags] =
            [u16::from_le_bytes([word[0], word[1]]), u16::from_le_bytes([word[2], word[3]])];
        assert_eq!((id, flags), (n, OFFERED | 1 << 15));
    }
}

#[test]
fn faults_have_their_names() {
    for direction in BOTH {
        let rig = || Rig::new(direction, SIZE, INDIRECT_DESC);
        let mut bad = rig();
        bad.raw(0, 1 << 60, 64, 0, OFFERED | bad.way());
        assert_eq!(bad.fault(), RingFault::BadAddress { gpa: 1 << 60, len: 64 });

        let mut wrong = rig();
        wrong.raw(0, wrong.buffer(), 64, 0, OFFERED | wrong.way() ^ Desc::WRITE);
        assert!(matches!(wrong.fault(), RingFault::WrongDirection { .. }));

        let mut endless = rig();
        let way = endless.way();
        (0..SIZE).for_each(|n| endless.raw(n, endless.buffer(), 64, n, OFFERED | Desc::NEXT | way));
        assert_eq!(endless.fault(), RingFault::Loop { head: 0 });

        let mut long = Rig::new(direction, 2048, INDIRECT_DESC);
        (0..2048).for_each(|n| long.raw(n, long.buffer(), 64, n, OFFERED | Desc::NEXT | way));
        assert_eq!(long.fault(), RingFault::ChainTooLong);

        let mut linked = rig();
        linked.raw(0, linked.buffer(), 64, 0, OFFERED | Desc::NEXT | way);
        linked.raw(1, linked.table(), 16, 0, OFFERED | Desc::INDIRECT | way);
        assert_eq!(linked.fault(), RingFault::IndirectLinked);
        linked = rig();
        linked.raw(0, linked.table(), 16, 0, OFFERED | Desc::INDIRECT | Desc::NEXT | way);
        assert_eq!(linked.fault(), RingFault::IndirectLinked);

        let mut nested = rig();
        let entry = Desc { addr: nested.table(), len: 16, flags: 0, next: Desc::INDIRECT };
        nested.memory.write(nested.table(), &entry.to_bytes()).unwrap();
        nested.raw(0, nested.table(), 16, 0, OFFERED | Desc::INDIRECT);
        assert_eq!(nested.fault(), RingFault::NestedIndirect);

        for len in [0, 15, 17, 16 * 32_769] {
            let mut table = rig();
            table.raw(0, table.table(), len, 0, OFFERED | Desc::INDIRECT);
            assert_eq!(table.fault(), RingFault::IndirectLength { len });
        }
        let mut refused = Rig::new(direction, SIZE, 0);
        refused.raw(0, refused.table(), 16, 0, OFFERED | Desc::INDIRECT);
        assert_eq!(refused.fault(), RingFault::IndirectNotNegotiated);
    }
}

#[test]
fn a_chain_with_too_many_buffers_costs_its_frame_and_is_skipped() {
    let long = MAX_SEGMENTS as u16 + 1;
    assert!(usize::from(long) < MAX_SPREAD);
    let mut rig = Rig::new(Direction::Transmit, 256, 0);
    (0..long).for_each(|n| {
        let more = if n + 1 < long { Desc::NEXT } else { 0 };
        rig.raw(n, rig.buffer(), 20, 77, OFFERED | more);
    });
    rig.raw(long, rig.buffer(), 100, 78, OFFERED);
    let (frames, outcome) = rig.pop();
    assert_eq!(outcome, Ok(()));
    assert_eq!(frames, [Err(DropReason::TooManySegments), Ok(100 - VNET_HDR as u32)]);
}

#[test]
fn a_frame_goes_over_several_buffers_and_each_is_given_back_with_its_length() {
    let mut rig = Rig::new(Direction::Receive, SIZE, INDIRECT_DESC);
    // A buffer of two descriptors, one in a table, and a plain one.
    let (buffer, table) = (rig.buffer(), rig.table());
    rig.driver.push(&[Desc::writable(buffer, 50), Desc::writable(buffer + 50, 50)]);
    let entry = Desc { addr: buffer + 100, len: 100, flags: 0, next: Desc::WRITE };
    rig.memory.write(table, &entry.to_bytes()).unwrap();
    rig.driver.push(&[Desc { addr: table, len: 16, flags: Desc::INDIRECT, next: 0 }]);
    rig.driver.push(&[Desc::writable(buffer + 200, 100)]);
    rig.driver.publish();

    assert_eq!(rig.fill(&[250 - VNET_HDR, 60]), [Ok(()), Err(Refusal::Drop(DropReason::RingFull))]);
    assert_eq!(rig.driver.used_waiting().unwrap(), 3);
    let used: Vec<_> = (0..3).map(|_| rig.driver.take_used().unwrap()).collect();
    assert_eq!(used, [(0, 100), (1, 100), (2, 50)]);
    let mut bytes = [0; 250];
    rig.memory.read(buffer, &mut bytes).unwrap();
    assert_eq!(bytes[10..12], [3, 0], "num_buffers");
    assert!(bytes[VNET_HDR..VNET_HDR + HEAD].iter().all(|&byte| byte == 0x11));
    assert!(bytes[VNET_HDR + HEAD..].iter().all(|&byte| byte == 0x22));
}

#[test]
fn setups_that_cannot_be_are_refused_by_name() {
    let rig = Rig::new(Direction::Transmit, SIZE, 0);
    let start = |change: &dyn Fn(&mut RingSetup)| {
        let mut setup = setup(&rig.driver, 0, &rig.call);
        change(&mut setup);
        Ring::new(&setup, &rig.map, Direction::Transmit).map(|_| ()).unwrap_err()
    };
    assert_eq!(start(&|s| s.base = 8), SetupError::Base { base: 8, size: SIZE });
    let as_split = |s: &mut RingSetup| (s.features, s.base) = (0, 0x1_0000);
    assert_eq!(start(&as_split), SetupError::Base { base: 0x1_0000, size: SIZE });
    assert_eq!(start(&|s| s.size = 0), SetupError::Size(0));
    assert_eq!(start(&|s| s.size = 32_769), SetupError::Size(32_769));
    let areas: [fn(&mut RingSetup) -> &mut u64; 3] =
        [|setup| &mut setup.desc, |setup| &mut setup.avail, |setup| &mut setup.used];
    for area in areas {
        assert!(matches!(start(&|setup| *area(setup) += 2), SetupError::Misaligned { .. }));
        assert!(matches!(start(&|setup| *area(setup) = 1 << 60), SetupError::Unmapped { .. }));
    }
}

#[test]
fn the_guest_is_called_when_it_asked_and_where() {
    // By position: where it wants to be called, and whether going from 6 over the end to 4 does.
    let places = [(5, true, false), (6, true, true), (7, true, true), (0, false, true)];
    let more = [(3, false, true), (4, false, false), (6, false, false), (3, true, false)];
    for (index, wrap, is_due) in places.into_iter().chain(more) {
        let mut rig = Rig::new(Direction::Transmit, SIZE, EVENT_IDX);
        let buffer = rig.buffer();
        let send = |rig: &mut Rig, n: u16| {
            for _ in 0..n {
                rig.driver.push(&[Desc::readable(buffer, 100)]);
            }
            rig.driver.publish();
            assert_eq!(rig.pop().0.len(), usize::from(n));
            for _ in 0..rig.driver.used_waiting().unwrap() {
                let (id, _) = rig.driver.take_used().unwrap();
                rig.driver.release(id);
            }
        };
        let ask = |rig: &Rig, place: u16, flags: u16| {
            let bytes = [place.to_le_bytes(), flags.to_le_bytes()].concat();
            rig.driver.driver_area().write(0, &bytes);
        };
        ask(&rig, 0, NO_CALLS);
        send(&mut rig, 6);
        assert!(!rig.call.drain(), "it wants none");
        ask(&rig, index | if wrap { 0x8000 } else { 0 }, CALL_AT);
        send(&mut rig, 6);
        assert_eq!(rig.call.drain(), is_due, "at {index}, wrap {wrap}");
        ask(&rig, 0, 0);
        send(&mut rig, 1);
        assert!(rig.call.drain(), "it wants all");
    }
}

#[test]
fn an_armed_ring_is_kicked_and_a_polled_one_is_not() {
    for features in [0, EVENT_IDX] {
        let mut rig = Rig::new(Direction::Transmit, SIZE, features);
        let buffer = rig.buffer();
        // Over the end of the ring, so that the place asked for is of either round.
        for _ in 0..3 * SIZE {
            let offer = |rig: &mut Rig| {
                rig.driver.push(&[Desc::readable(buffer, 100)]);
                rig.driver.publish();
                let before = rig.driver.kicks();
                rig.driver.kick_if_asked();
                rig.driver.kicks() > before
            };
            let take = |rig: &mut Rig| {
                assert_eq!(rig.pop().0.len(), 1);
                assert_eq!(rig.driver.used_waiting().unwrap(), 1);
                let (id, _) = rig.driver.take_used().unwrap();
                rig.driver.release(id);
            };
            assert!(!offer(&mut rig), "polled");
            assert_eq!(rig.ring.arm(), Ok(true), "there is work");
            take(&mut rig);
            assert_eq!(rig.ring.arm(), Ok(false));
            assert!(offer(&mut rig), "armed");
            rig.ring.disarm();
            take(&mut rig);
        }
    }
}

#[test]
fn garbage_changes_nothing_but_ring_event_area_and_writable_buffers() {
    let (mut frames, mut delivered) = (0, 0);
    for seed in 0..3_000 {
        let mut rng = Rng::seeded(seed);
        let direction = *rng.pick(&BOTH);
        let mut rig = Rig::new(direction, 1 << rng.range(0..7), INDIRECT_DESC | EVENT_IDX);
        let (buffer, table) = (rig.buffer(), rig.table());
        let buffers_end = buffer + BUFFERS.len as u64;
        let descs = |rng: &mut Rng| {
            let addr = match rng.below(12) {
                0 => rng.next_u64(),
                1 => buffers_end - rng.below(200),
                2 => table + 16 * rng.below(64),
                _ => buffer + rng.below(BUFFERS.len as u64 - 2048),
            };
            let len = if rng.chance(1, 10) { 16 * rng.below(9) } else { rng.below(2000) };
            let way = if direction == Direction::Receive { Desc::WRITE } else { 0 };
            let flags = match rng.below(20) {
                0 => Desc::INDIRECT,
                1..=4 => way | Desc::NEXT,
                5 => way ^ Desc::WRITE,
                _ => way,
            };
            (addr, len as u32, rng.next_u64() as u16, flags)
        };
        for n in 0..rig.driver.size() {
            let (addr, len, id, flags) = descs(&mut rng);
            let turn = if rng.chance(1, 20) { rng.next_u64() as u16 & 0x8080 } else { OFFERED };
            rig.raw(n, addr, len, id, flags | turn);
        }
        for n in 0..64 {
            let (addr, len, id, flags) = descs(&mut rng);
            let entry = Desc { addr, len, flags: id, next: flags };
            rig.memory.write(table + 16 * n, &entry.to_bytes()).unwrap();
        }
        let before: Vec<Vec<u8>> = snapshot(&rig.memory);
        for _ in 0..4 {
            match direction {
                Direction::Transmit => {
                    let (taken, outcome) = rig.pop();
                    frames += taken.iter().filter(|frame| frame.is_ok()).count();
                    if outcome.is_err() {
                        break;
                    }
                }
                Direction::Receive => {
                    let lengths: Vec<usize> = (0..8).map(|_| rng.range(14..1500)).collect();
                    let outcomes = rig.fill(&lengths);
                    delivered += outcomes.iter().filter(|outcome| outcome.is_ok()).count();
                }
            }
        }
        let after = snapshot(&rig.memory);
        // Tables may lie where a descriptor says that a buffer is: then they are one.
        assert!(direction == Direction::Receive || before[1..] == after[1..], "seed {seed}");
        let ring = 16 * usize::from(rig.driver.size());
        let device = (rig.driver.device_area().gpa() - rig.memory.regions()[0].gpa()) as usize;
        let start = (rig.driver.desc_table().gpa() - rig.memory.regions()[0].gpa()) as usize;
        for (at, (old, new)) in before[0].iter().zip(&after[0]).enumerate() {
            let is_ours = (start..start + ring).contains(&at) && (at - start) % 16 >= 8
                || (device..device + 4).contains(&at);
            assert!(old == new || is_ours, "seed {seed}: byte {at:#x} of the ring's region");
        }
    }
    assert!(frames > 1_000 && delivered > 300, "{frames} taken, {delivered} delivered");
}

fn snapshot(memory: &GuestMemory) -> Vec<Vec<u8>> {
    let regions = memory.regions().iter();
    let copy = regions.map(|region| {
        let mut bytes = vec![0; region.len()];
        memory.read(region.gpa(), &mut bytes).unwrap();
        bytes
    });
    copy.collect()
}
