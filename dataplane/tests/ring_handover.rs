//! Taking a ring out from under PMD threads, with real threads and real unmapping.
//!
//! While a ring is in its cell, two threads work on it as fast as they can: every turn reads the
//! ring and writes to it. Control takes the ring out, unmaps the switch's side of the memory, and
//! paints the guest's side. Whoever still works on the ring then either spoils the paint or touches
//! memory that is not mapped, which ends the test.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dataplane::frame::{Batch, Scratch};
use dataplane::port::cell::{RingCell, Slot};
use dataplane::testing::{GuestConfig, LocalGuest, features};
use dataplane::vring::BURST;
use dataplane::vring::tx::Limit;

const HANDOVERS: u64 = 2_000;
const PAINT: u8 = 0xa5;

/// Ends the workers, however the test ends.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Turns of one worker: all of them, and those that found a ring.
#[derive(Default)]
struct Turns {
    all: AtomicU64,
    at_work: AtomicU64,
}

/// Waits until `turns` moved on by two, so that a whole turn lies in between.
fn wait_for_a_turn(turns: &AtomicU64) {
    let start = turns.load(Ordering::SeqCst);
    while turns.load(Ordering::SeqCst) < start + 2 {
        std::thread::yield_now();
    }
}

/// What a PMD does with a transmit ring: pops, completes, arms, disarms.
fn work(cell: &RingCell, turns: &Turns, stop: &AtomicBool) {
    let mut scratch = [Scratch::EMPTY; BURST];
    while !stop.load(Ordering::Relaxed) {
        if let Some(mut slot) = cell.enter()
            && let Some(live) = slot.live()
        {
            let mut batch = Batch::new();
            live.ring
                .pop(&live.map, &mut batch, &mut scratch, Limit::frames(4))
                .expect("a sound ring");
            live.ring.complete(&batch).unwrap();
            live.ring.arm().expect("a sound ring");
            live.ring.disarm();
            turns.at_work.fetch_add(1, Ordering::SeqCst);
        } else {
            std::thread::yield_now();
        }
        turns.all.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn nobody_touches_a_ring_or_its_memory_after_it_was_taken_out() {
    // Without EVENT_IDX arming and disarming write to the ring every time.
    let config = GuestConfig::default()
        .without(features::EVENT_IDX)
        .ring_size(16)
        .tx_buffers(100, 256)
        .rx_buffers(&[64])
        .spare_bytes(0);
    let cell = RingCell::default();
    let (stop, turns) = (AtomicBool::new(false), [Turns::default(), Turns::default()]);
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        for turns in &turns {
            scope.spawn(|| work(&cell, turns, &stop));
        }
        let mut taken = 0;
        for round in 0..HANDOVERS {
            let mut guest = LocalGuest::new(config.clone()).unwrap();
            for n in 0..8 {
                guest.tx().send(&[n; 60]).unwrap();
            }
            let live = guest.start(1, None).unwrap();
            assert!(matches!(
                cell.with(|slot| std::mem::replace(slot, Slot::Live(Box::new(live)))),
                Slot::Empty
            ));
            // Now and then control comes before any worker, else in the midst of their work.
            if round % 4 != 0 {
                wait_for_a_turn(&turns[round as usize % 2].at_work);
            }

            let Slot::Live(live) = cell.take() else { panic!("the ring was not there") };
            taken += u64::from(live.ring.base());
            let memory = guest.memory().regions()[0].clone();
            let whole = guest.memory().span(memory.gpa(), memory.len()).unwrap();
            let map = std::sync::Arc::downgrade(&live.map);
            drop(live);
            drop(guest);
            assert!(map.upgrade().is_none(), "somebody still holds the memory");
            whole.fill(PAINT);

            turns.iter().for_each(|turns| wait_for_a_turn(&turns.all));
            let mut bytes = vec![0; whole.len()];
            whole.read(0, &mut bytes);
            assert!(bytes.iter().all(|&byte| byte == PAINT), "round {round}: the paint is spoilt");
        }
        assert!(taken > 0, "no worker ever took a frame");
    });
}

#[test]
fn a_worker_leaves_a_cell_alone_that_control_wants_and_comes_back_after() {
    let cell = RingCell::default();
    let (stop, turns) = (AtomicBool::new(false), Turns::default());
    let mut guest = LocalGuest::new(GuestConfig::default()).unwrap();
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| work(&cell, &turns, &stop));
        for n in 0..500u16 {
            let live = Box::new(guest.start(1, Some(n.into())).unwrap());
            guest.tx().ring().raw_avail_idx(n);
            cell.with(|slot| *slot = Slot::Live(live));
            wait_for_a_turn(&turns.at_work);
            cell.with(|slot| {
                let before = turns.at_work.load(Ordering::SeqCst);
                assert!(cell.enter().is_none(), "a worker would wait for control");
                slot.live().expect("still there").enabled = n % 2 == 0;
                assert_eq!(turns.at_work.load(Ordering::SeqCst), before);
            });
            wait_for_a_turn(&turns.at_work);
            assert!(matches!(cell.take(), Slot::Live(live) if live.ring.base() == u32::from(n)));
            assert!(matches!(cell.take(), Slot::Empty));
        }
    });
}
