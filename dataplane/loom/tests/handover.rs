//! A ring is never worked on by two, nor after it was taken out, nor by a PMD that lost it.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;
use slipway_loom::handover::Handover;

/// A ring: loom fails the test when two threads touch it at once, or without order.
#[derive(Debug)]
struct Ring(UnsafeCell<Vec<u32>>);

/// A place for a ring, and whose turn it is, as in `port::TxQueue`.
#[derive(Debug, Default)]
struct Queue {
    cell: Handover<Option<Arc<Ring>>>,
    owner: AtomicU32,
}

/// A turn of PMD `me`, which takes a frame if the ring is its own; returns whether it did.
fn turn(queue: &Queue, me: u32) -> bool {
    let Some(mut slot) = queue.cell.enter() else { return false };
    let Some(ring) = slot.as_mut() else { return false };
    if queue.owner.load(Ordering::Relaxed) != me {
        return false;
    }
    touch(ring, me);
    true
}

#[expect(unsafe_code, reason = "loom's cell is what tells of two at work")]
fn touch(ring: &Ring, who: u32) {
    // SAFETY: the cell checks at run time that nobody else is at it; that is the test.
    ring.0.with_mut(|frames| unsafe { (*frames).push(who) });
}

#[expect(unsafe_code, reason = "as above")]
fn taken(ring: &Ring) -> Vec<u32> {
    // SAFETY: as above.
    ring.0.with(|frames| unsafe { (*frames).clone() })
}

fn queue() -> (Arc<Queue>, Arc<Ring>) {
    let ring = Arc::new(Ring(UnsafeCell::new(Vec::new())));
    let queue = Arc::new(Queue::default());
    queue.cell.with(|slot| *slot = Some(Arc::clone(&ring)));
    (queue, ring)
}

/// Walks through all interleavings with at most that many preemptions: where threads go wrong, two
/// mostly suffice (M. Musuvathi and S. Qadeer, "Iterative Context Bounding", PLDI 2007).
fn model(preemptions: usize, threads: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(threads);
}

#[test]
fn nobody_touches_a_ring_that_was_taken_out() {
    model(3, || {
        let (queue, ring) = queue();
        let at_work = Arc::clone(&queue);
        let pmd = thread::spawn(move || (turn(&at_work, 0), turn(&at_work, 0)));
        let taken_out = queue.cell.take();
        assert!(taken_out.is_some());
        // As control does with memory that it unmaps: whoever still is at the ring fails the model.
        touch(&ring, 99);
        pmd.join().unwrap();
        assert!(!turn(&queue, 0), "an empty place has no frames");
    });
}

#[test]
fn a_ring_that_moves_is_worked_on_by_one_pmd_at_a_time_and_in_order() {
    model(2, || {
        let (queue, ring) = queue();
        let pmds: Vec<_> = [0, 1]
            .map(|me| {
                let queue = Arc::clone(&queue);
                thread::spawn(move || (turn(&queue, me), turn(&queue, me)))
            })
            .into();
        queue.cell.with(|_| queue.owner.store(1, Ordering::Relaxed));
        for pmd in pmds {
            pmd.join().unwrap();
        }
        let frames = taken(&ring);
        assert!(frames.is_sorted(), "the old PMD took frames after the new one: {frames:?}");
        assert!(turn(&queue, 1) && !turn(&queue, 0));
    });
}

#[test]
fn two_pmds_fill_one_receive_ring_in_turn() {
    model(3, || {
        let (queue, ring) = queue();
        let pmds: Vec<_> = [1, 2]
            .map(|me| {
                let queue = Arc::clone(&queue);
                thread::spawn(move || {
                    let slot = queue.cell.enter().expect("control does not want it");
                    let ring = slot.as_ref().expect("it is there");
                    touch(ring, me);
                    touch(ring, me);
                })
            })
            .into();
        for pmd in pmds {
            pmd.join().unwrap();
        }
        let frames = taken(&ring);
        assert!(frames == [1, 1, 2, 2] || frames == [2, 2, 1, 1], "{frames:?}");
    });
}
