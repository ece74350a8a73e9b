//! The guest of the tests, tested: against a switch made of `vhost` and `virtio-queue`, so that a
//! failure elsewhere can be blamed on the switch.

mod reference;

use std::net::Ipv4Addr;
use std::time::Duration;

use dataplane::testing::frames::{FrameBuilder, Ledger, Stamp, payload_range};
use dataplane::testing::memory::{Backing, RegionSpec};
use dataplane::testing::{
    Deadline, Desc, DeviceFault, Guest, GuestConfig, GuestError, GuestListener, Layout, QueuePair,
    Rng, TxError, VirtioNetHdr, features,
};
use reference::{Reference, Wiring};

const OFFERED: u64 = features::PLAIN | features::TX_OFFLOADS | features::RX_OFFLOADS;
const TIMEOUT: Duration = Duration::from_secs(20);

/// Frames under way at most: fewer than the smallest ring of these tests takes in pieces.
const WINDOW: u64 = 16;

fn echo(offered: u64) -> (tempfile::TempDir, Reference) {
    let dir = tempfile::tempdir().unwrap();
    let switch = Reference::start(dir.path(), 1, Wiring::Echo, offered);
    (dir, switch)
}

fn stamped(flow: u32, sequence: u64, payload_len: usize) -> Vec<u8> {
    let payload = Stamp { flow, sequence }.payload(payload_len);
    FrameBuilder::new([2; 6], [4; 6])
        .ipv4(Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2))
        .udp(flow as u16, 9)
        .payload(&payload)
        .build()
}

fn enter(ledger: &mut Ledger, frame: &[u8]) {
    let payload = payload_range(frame).unwrap();
    ledger.enter(&frame[payload]).unwrap();
}

/// Sends `frames` frames of random lengths and layouts to an echoing port; all must come back.
fn echo_random_frames(pair: &mut QueuePair, rng: &mut Rng, frames: u64, indirect: bool) {
    let longest = pair.tx.capacity().min(pair.rx.buffer_len() - VirtioNetHdr::BYTES) - 42;
    let mut ledger = Ledger::default();
    for sequence in 0..frames + WINDOW {
        if sequence < frames {
            let frame = stamped(1, sequence, rng.range(16..longest + 1));
            let layout = Layout::cut_at(&rng.cuts(VirtioNetHdr::BYTES + frame.len(), 12));
            let layout = if indirect && rng.chance(1, 2) { layout.indirect() } else { layout };
            pair.tx.send_with_header(VirtioNetHdr::default(), &frame, &layout).unwrap();
        }
        if sequence >= WINDOW {
            let (_, frame) = pair.rx.recv(TIMEOUT).unwrap().expect("the frame comes back");
            enter(&mut ledger, &frame);
        }
    }
    assert!(pair.tx.drain(TIMEOUT).unwrap());
    assert!(ledger.is_perfect(frames), "{ledger:?}");
}

#[test]
fn a_frame_comes_back_as_it_was_sent() {
    let (_dir, switch) = echo(OFFERED);
    let mut guest = Guest::connect(switch.socket(0), GuestConfig::default()).unwrap();
    assert_eq!(guest.acked(), features::PLAIN);
    let frame: Vec<u8> = (0..60).collect();
    guest.send(&frame).unwrap();
    let (header, received) = guest.recv(TIMEOUT).unwrap().unwrap();
    assert_eq!(received, frame);
    assert_eq!(header, VirtioNetHdr { num_buffers: 1, ..VirtioNetHdr::default() });
    assert!(guest.tx().drain(TIMEOUT).unwrap());
}

#[test]
fn a_frame_crosses_from_one_guest_to_another() {
    let dir = tempfile::tempdir().unwrap();
    let switch = Reference::start(dir.path(), 2, Wiring::Cross, OFFERED);
    let mut sender = Guest::connect(switch.socket(0), GuestConfig::default()).unwrap();
    let mut receiver = Guest::connect(switch.socket(1), GuestConfig::default()).unwrap();
    sender.send(&[7; 1500]).unwrap();
    assert_eq!(receiver.recv(TIMEOUT).unwrap().unwrap().1, [7; 1500]);
    assert_eq!(sender.recv(Duration::ZERO).unwrap(), None);
}

#[test]
fn frames_cut_at_random_survive_every_mix_of_ring_features() {
    let mut rng = Rng::seeded(1);
    for chosen in 0..8 {
        let bits = [features::EVENT_IDX, features::INDIRECT_DESC, features::MRG_RXBUF];
        let left_out = (0..3).filter(|n| chosen >> n & 1 == 0).map(|n| bits[n]).sum::<u64>();
        for rx in [&[2048][..], &[12, 2036], &[5, 100, 7, 1936]] {
            let (_dir, switch) = echo(OFFERED);
            let config = GuestConfig::default().without(left_out).rx_buffers(rx);
            let mut guest = Guest::connect(switch.socket(0), config).unwrap();
            let indirect = guest.acked() & features::INDIRECT_DESC != 0;
            echo_random_frames(guest.pair(0), &mut rng, 300, indirect);
        }
    }
}

#[test]
fn a_header_cut_at_every_offset_comes_back_whole() {
    let (_dir, switch) = echo(OFFERED);
    let mut guest = Guest::connect(switch.socket(0), GuestConfig::default()).unwrap();
    let frame = stamped(0, 0, 64);
    let total = VirtioNetHdr::BYTES + frame.len();
    let cuts = (1..total).map(|at| Layout::cut_at(&[at]));
    let thrice = (1..total - 2).map(|at| Layout::cut_at(&[at, at + 1, at + 2]));
    let odd = [Layout::every(1), Layout::every(1).indirect(), Layout::header_apart()];
    for layout in cuts.chain(thrice).chain(odd) {
        guest.tx().send_with_header(VirtioNetHdr::default(), &frame, &layout).unwrap();
        assert_eq!(guest.recv(TIMEOUT).unwrap().unwrap().1, frame, "{layout:?}");
    }
}

/// Sends `frames` stamped frames of `flow` in bursts; all must come back in order.
fn echo_bursts(pair: &mut QueuePair, flow: u32, frames: u64) {
    let mut ledger = Ledger::default();
    let mut sent = 0;
    while ledger.total().received < frames {
        let burst = (frames - sent).min(32) as usize;
        pair.tx
            .tx_burst(burst, |slot| {
                slot.write(&stamped(flow, sent, 18));
                sent += 1;
            })
            .unwrap();
        let got = pair.rx.rx_burst(64, |frame| enter(&mut ledger, &frame.to_vec())).unwrap();
        if got == 0 && ledger.total().received < frames {
            let deadline = Deadline::after(TIMEOUT);
            assert!(pair.rx.ring().wait(deadline).unwrap(), "nothing comes back");
        }
    }
    assert!(pair.tx.drain(TIMEOUT).unwrap());
    assert!(ledger.is_perfect(frames), "{:?}", ledger.total());
}

#[test]
fn bursts_carry_on_past_the_wrap_of_16_bit_indexes() {
    for left_out in [0, features::EVENT_IDX] {
        let (_dir, switch) = echo(OFFERED);
        let config = GuestConfig::default().ring_size(1024).without(left_out).first_index(65_000);
        let mut guest = Guest::connect(switch.socket(0), config).unwrap();
        echo_bursts(guest.pair(0), 1, 70_000);
        assert_eq!(guest.tx().ring().raw_used_idx(), (65_000u32 + 70_000) as u16);
    }
}

#[test]
fn bursts_work_in_every_buffer_shape() {
    let base = GuestConfig::default;
    let shapes = [
        base().ring_size(64),
        base().tx_header_apart(true),
        base().tx_indirect(true),
        base().tx_indirect(true).tx_header_apart(true),
        base().tx_buffers(1500, 40),
        base().rx_buffers(&[64]),
        base().rx_buffers(&[12, 30]),
        base().regions(4),
        base().regions(2).backing(Backing { one_file: true, ..Backing::default() }),
        base().backing(Backing { sealed: false, ..Backing::default() }),
        base().regions(8).memory_slots(true),
        base().interrupts(true),
        base().interrupts(true).without(features::EVENT_IDX),
        base().reply_ack(false),
        base().acks_as_qemu(true),
        base().without(features::PROTOCOL),
    ];
    for shape in shapes {
        let (_dir, switch) = echo(OFFERED);
        let mut guest = Guest::connect(switch.socket(0), shape.clone()).expect("set-up");
        echo_bursts(guest.pair(0), 1, 2000);
    }
}

#[test]
fn queue_pairs_are_driven_by_a_thread_each() {
    let (_dir, switch) = echo(OFFERED);
    let config = GuestConfig::default().queue_pairs(4);
    let mut guest = Guest::connect(switch.socket(0), config).unwrap();
    std::thread::scope(|scope| {
        for (flow, pair) in guest.pairs().iter_mut().enumerate() {
            scope.spawn(move || echo_bursts(pair, flow as u32, 2000));
        }
    });
    assert_eq!(guest.pairs().len(), 4);
}

#[test]
fn a_super_frame_of_64_kib_passes_with_its_header_over_small_mergeable_buffers() {
    let (_dir, switch) = echo(OFFERED);
    let config = GuestConfig::default()
        .features(features::PLAIN | features::TX_OFFLOADS | features::RX_OFFLOADS)
        .tx_buffers(65_550, 4096);
    let mut guest = Guest::connect(switch.socket(0), config).unwrap();
    assert_eq!(guest.acked(), OFFERED);
    let (header, frame) = FrameBuilder::new([2; 6], [4; 6])
        .ipv4(Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2))
        .tcp(1, 2, 3)
        .payload(&Stamp { flow: 1, sequence: 2 }.payload(65_000))
        .build_gso(1448);
    for layout in [Layout::every(4096), Layout::every(700).indirect()] {
        guest.tx().send_with_header(header, &frame, &layout).unwrap();
        let (received, bytes) = guest.recv(TIMEOUT).unwrap().unwrap();
        let num_buffers = (12 + frame.len()).div_ceil(2048) as u16;
        assert_eq!(received, VirtioNetHdr { num_buffers, ..header });
        assert!(bytes == frame, "the super-frame was changed");
    }
}

#[test]
fn a_guest_that_posts_no_buffers_gets_its_frames_once_it_does() {
    let (_dir, switch) = echo(OFFERED);
    let config = GuestConfig::default().rx_repost(false);
    let mut guest = Guest::connect(switch.socket(0), config).unwrap();
    assert_eq!(guest.rx().posted(), 0);
    for sequence in 0..3 {
        guest.send(&stamped(0, sequence, 18)).unwrap();
    }
    assert_eq!(guest.rx().post(2), 2);
    let mut ledger = Ledger::default();
    for _ in 0..2 {
        enter(&mut ledger, &guest.recv(TIMEOUT).unwrap().unwrap().1);
    }
    assert_eq!(guest.rx().posted(), 0);
    assert_eq!(guest.recv(Duration::from_millis(1)).unwrap(), None);
    guest.rx().post(1);
    enter(&mut ledger, &guest.recv(TIMEOUT).unwrap().unwrap().1);
    assert!(ledger.is_perfect(3));
}

#[test]
fn rings_stopped_resume_from_their_bases() {
    let (_dir, switch) = echo(OFFERED);
    let mut guest = Guest::connect(switch.socket(0), GuestConfig::default()).unwrap();
    for round in 1..=3 {
        echo_bursts(guest.pair(0), round, 500);
        let bases = guest.stop().unwrap();
        // Everything sent was taken, and as many receive buffers were used.
        assert_eq!(bases, [500 * round as u16; 2]);
        guest.resume(&bases).unwrap();
    }
}

#[test]
fn a_reboot_negotiates_anew() {
    let slots = [false, true];
    for memory_slots in slots {
        let (_dir, switch) = echo(OFFERED);
        let config = GuestConfig::default().memory_slots(memory_slots);
        let mut guest = Guest::connect(switch.socket(0), config).unwrap();
        for wanted in [features::PROTOCOL, features::PLAIN, features::PLAIN & !features::MRG_RXBUF]
        {
            guest.reboot(wanted).unwrap();
            assert_eq!(guest.acked(), wanted | features::VERSION_1);
            let indirect = wanted & features::INDIRECT_DESC != 0;
            echo_random_frames(guest.pair(0), &mut Rng::seeded(wanted), 100, indirect);
        }
    }
}

#[test]
fn memory_added_while_running_carries_frames() {
    let (_dir, switch) = echo(OFFERED);
    let mut guest = Guest::connect(switch.socket(0), GuestConfig::default()).unwrap();
    let spec = RegionSpec { gpa: 1 << 32, len: 1 << 16 };
    let index = guest.hot_add(spec).unwrap();
    let frame = stamped(0, 0, 100);
    let bytes = [&VirtioNetHdr::default().to_bytes()[..], &frame].concat();
    guest.memory().write(spec.gpa, &bytes).unwrap();
    let ring = guest.tx().ring();
    ring.push(&[Desc::readable(spec.gpa, bytes.len() as u32)]);
    ring.publish();
    ring.kick_if_asked();
    assert_eq!(guest.recv(TIMEOUT).unwrap().unwrap().1, frame);
    guest.hot_remove(index).unwrap();
    guest.send(&frame).unwrap();
    assert_eq!(guest.recv(TIMEOUT).unwrap().unwrap().1, frame);
}

#[test]
fn a_guest_outlives_its_switch_and_goes_on_with_the_next() {
    let (dir, switch) = echo(OFFERED);
    let mut guest = Guest::connect(switch.socket(0), GuestConfig::default()).unwrap();
    echo_bursts(guest.pair(0), 0, 300);
    drop(switch);
    assert!(matches!(guest.sync(), Err(GuestError::Request { .. })));
    guest.disconnect();
    assert!(matches!(guest.sync(), Err(GuestError::Detached)));
    // Sent while nobody listens: the next switch finds it in the ring.
    guest.send(&[5; 60]).unwrap();
    std::fs::remove_file(dir.path().join("port0")).unwrap();
    let switch = Reference::start(dir.path(), 1, Wiring::Echo, OFFERED);
    guest.reconnect(switch.socket(0)).unwrap();
    assert_eq!(guest.recv(TIMEOUT).unwrap().unwrap().1, [5; 60]);
    echo_bursts(guest.pair(0), 1, 300);
}

#[test]
fn a_vmm_that_listens_is_served_by_a_switch_that_connects() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vmm");
    let listener = GuestListener::bind(&path).unwrap();
    let nobody = listener.accept(GuestConfig::default(), Duration::ZERO);
    assert!(matches!(nobody, Err(GuestError::NoPeer { .. })));
    let _switch = Reference::dial(&path, OFFERED);
    let mut guest = listener.accept(GuestConfig::default(), TIMEOUT).unwrap();
    echo_bursts(guest.pair(0), 0, 100);
}

#[test]
fn a_device_without_version_1_is_refused() {
    let (_dir, switch) = echo(OFFERED & !features::VERSION_1);
    let outcome = Guest::connect(switch.socket(0), GuestConfig::default());
    let missing = features::VERSION_1;
    assert!(matches!(outcome, Err(GuestError::MissingFeatures { missing: m, .. }) if m == missing));
}

/// A guest whose device is the test: connected once, then cut off, no chain ever used.
fn guest_without_device(config: GuestConfig) -> Guest {
    let (_dir, switch) = echo(OFFERED);
    let mut guest = Guest::connect(switch.socket(0), config).unwrap();
    guest.stop().unwrap();
    guest.disconnect();
    guest
}

/// Plays the device: uses `chains` (id, length), each buffer starting with `num_buffers`.
fn use_receive_buffers(guest: &mut Guest, num_buffers: u16, chains: &[(u32, u32)]) {
    let header = VirtioNetHdr { num_buffers, ..VirtioNetHdr::default() }.to_bytes();
    let first_buffer: [u8; 8] = guest.rx().ring().desc_table().array(0);
    guest.memory().write(u64::from_le_bytes(first_buffer), &header).unwrap();
    let ring = guest.rx().ring();
    let used = ring.used();
    for (slot, (id, len)) in chains.iter().enumerate() {
        used.write(4 + 8 * slot, &[id.to_le_bytes(), len.to_le_bytes()].concat());
    }
    used.write(2, &(chains.len() as u16).to_le_bytes());
}

#[test]
fn a_device_that_misbehaves_is_found_out() {
    type Case<'a> = (u16, &'a [(u32, u32)], fn(&DeviceFault) -> bool);
    let cases: [Case<'_>; 8] = [
        (1, &[(256, 72)], |f| matches!(f, DeviceFault::UsedId { id: 256, at: 0 })),
        (1, &[(u32::MAX, 72)], |f| matches!(f, DeviceFault::UsedId { id: u32::MAX, .. })),
        (1, &[(0, 11)], |f| matches!(f, DeviceFault::UsedLength { head: 0, len: 11, min: 12, .. })),
        (1, &[(0, 2049)], |f| matches!(f, DeviceFault::UsedLength { len: 2049, max: 2048, .. })),
        (0, &[(0, 72)], |f| matches!(f, DeviceFault::NumBuffers { found: 0, mergeable: true })),
        (3, &[(0, 2048), (1, 2048)], |f| {
            matches!(f, DeviceFault::MissingBuffers { need: 3, found: 2 })
        }),
        (2, &[(0, 100), (1, 100)], |f| {
            matches!(f, DeviceFault::UsedLength { head: 0, len: 100, min: 2048, .. })
        }),
        (2, &[(0, 2048), (1, 0)], |f| matches!(f, DeviceFault::UsedLength { head: 1, len: 0, .. })),
    ];
    for (num_buffers, chains, judge) in cases {
        let mut guest = guest_without_device(GuestConfig::default());
        use_receive_buffers(&mut guest, num_buffers, chains);
        let fault = guest.recv(Duration::ZERO).unwrap_err();
        let GuestError::Device(fault) = fault else { panic!("{fault}") };
        assert!(judge(&fault), "{chains:?}: {fault:?}");
    }
}

#[test]
fn two_buffers_for_one_frame_are_a_fault_without_mergeable_buffers() {
    let config = GuestConfig::default().without(features::MRG_RXBUF);
    let mut guest = guest_without_device(config);
    use_receive_buffers(&mut guest, 2, &[(0, 2048), (1, 2048)]);
    let fault = guest.rx().rx_burst(1, |_| ()).unwrap_err();
    assert!(matches!(fault, DeviceFault::NumBuffers { found: 2, mergeable: false }), "{fault:?}");
}

#[test]
fn a_used_index_that_jumps_and_a_written_transmit_buffer_are_faults() {
    let mut guest = guest_without_device(GuestConfig::default());
    guest.tx().ring().used().write(2, &300u16.to_le_bytes());
    let fault = guest.tx().tx_reap().unwrap_err();
    assert!(matches!(fault, DeviceFault::UsedIndex { expected: 0, found: 300 }), "{fault:?}");

    let mut guest = guest_without_device(GuestConfig::default());
    guest.send(&[0; 60]).unwrap();
    guest.tx().ring().used().write(2, &[1, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    let fault = guest.tx().tx_reap().unwrap_err();
    assert!(matches!(fault, DeviceFault::UsedLength { head: 0, len: 1, max: 0, .. }), "{fault:?}");
}

#[test]
fn the_device_is_kicked_only_when_it_asks() {
    // Without EVENT_IDX the device says so by a flag.
    let mut guest = guest_without_device(GuestConfig::default().without(features::EVENT_IDX));
    let before = guest.tx().ring().kicks();
    guest.send(&[0; 60]).unwrap();
    assert_eq!(guest.tx().ring().kicks() - before, 1);
    guest.tx().ring().used().write(0, &1u16.to_le_bytes());
    guest.send(&[0; 60]).unwrap();
    assert_eq!(guest.tx().ring().kicks() - before, 1);

    // With it, by the index it wants to be told of: here that of the sixth frame.
    let mut guest = guest_without_device(GuestConfig::default());
    let avail_event = 4 + 8 * 256;
    guest.tx().ring().used().write(avail_event, &5u16.to_le_bytes());
    let before = guest.tx().ring().kicks();
    let kicks: Vec<u64> = (0..4)
        .map(|_| {
            guest.tx().tx_burst(2, |slot| slot.set_len(60)).unwrap();
            guest.tx().ring().kicks() - before
        })
        .collect();
    assert_eq!(kicks, [0, 0, 1, 1]);
}

#[test]
fn interrupts_come_when_asked_for_and_not_otherwise() {
    for left_out in [0, features::EVENT_IDX] {
        for interrupts in [false, true] {
            let (_dir, switch) = echo(OFFERED);
            let config = GuestConfig::default().without(left_out).interrupts(interrupts);
            let mut guest = Guest::connect(switch.socket(0), config).unwrap();
            guest.send(&[0; 60]).unwrap();
            let deadline = Deadline::after(TIMEOUT);
            while guest.rx().ring().raw_used_idx() == 0 {
                assert!(!deadline.passed(), "the frame does not come back");
                std::thread::yield_now();
            }
            // Once the rings are stopped, the device is through with the frame, call and all.
            guest.stop().unwrap();
            assert_eq!(guest.rx().ring().call_fd().read().is_ok(), interrupts);
        }
    }
}

#[test]
fn frames_that_do_not_fit_are_refused_and_change_nothing() {
    let mut guest = guest_without_device(GuestConfig::default().without(features::INDIRECT_DESC));
    let plain = VirtioNetHdr::default();
    let tx = guest.tx();
    let longest = tx.capacity();
    assert!(matches!(tx.send(&vec![0; longest + 1]), Err(TxError::TooLong { .. })));
    let indirect = Layout::single().indirect();
    assert!(matches!(tx.send_with_header(plain, &[0; 60], &indirect), Err(TxError::NoIndirect)));
    let many = Layout::every(1);
    let outcome = tx.send_with_header(plain, &vec![0; longest], &many);
    assert!(matches!(outcome, Err(TxError::TooManyPieces { need: 2048, max: 256 })));
    assert_eq!((tx.in_flight(), tx.ring().free()), (0, 256));
    assert_eq!(tx.tx_burst(1000, |slot| slot.set_len(60)).unwrap(), 256);
    assert!(matches!(tx.send(&[0; 60]), Err(TxError::Full { free: 0, need: 1 })));
}

#[test]
fn raw_writes_reach_the_ring_unjudged() {
    let mut guest = guest_without_device(GuestConfig::default());
    let table = guest.memory().alloc(0, 32, 1).unwrap();
    let wild = Desc { addr: u64::MAX - 4, len: u32::MAX, flags: 0xffff, next: 0xabcd };
    table.write(16, &wild.to_bytes());
    let nested = Desc { addr: table.gpa(), len: 31, flags: Desc::INDIRECT | Desc::NEXT, next: 7 };
    let ring = guest.tx().ring();
    ring.raw_desc(7, nested);
    ring.raw_push(0x9999);
    ring.publish();
    assert_eq!(ring.desc_table().array(16 * 7), nested.to_bytes());
    assert_eq!(ring.avail().array(2), [1, 0, 0x99, 0x99]);
    ring.raw_avail_idx(0x8000);
    assert_eq!(ring.avail().array(2), [0, 0x80]);
    let mut bytes = [0; 16];
    guest.memory().read(table.gpa() + 16, &mut bytes).unwrap();
    assert_eq!(
        bytes,
        [251, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0xcd, 0xab]
    );
}
