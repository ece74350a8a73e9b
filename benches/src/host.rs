//! What the machine was like while something was measured on it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use dataplane::clock;

use crate::rig::pin;

/// Round trips of one measurement: a few milliseconds.
const TRIPS: u64 = 20_000;

/// Nanoseconds that one cache line takes from the calling thread's core to `other` and back.
///
/// Whatever two cores share costs this; on a virtual machine it may change from minute to minute, as
/// the host moves its virtual cores.
pub fn core_round_trip_ns(other: usize) -> f64 {
    let ball = AtomicU64::new(0);
    let wait_for = |value| {
        while ball.load(Ordering::Acquire) != value {
            std::hint::spin_loop();
        }
    };
    let ticks = thread::scope(|scope| {
        scope.spawn(|| {
            // Unpinned the figure is of whatever core it runs on, which is the best one can say.
            let _ = pin(other);
            for trip in 0..TRIPS {
                wait_for(2 * trip + 1);
                ball.store(2 * trip + 2, Ordering::Release);
            }
        });
        // The first trip waits for the thread to start.
        let mut begin = 0;
        for trip in 0..TRIPS {
            ball.store(2 * trip + 1, Ordering::Release);
            wait_for(2 * trip + 2);
            if trip == 0 {
                begin = clock::ticks();
            }
        }
        clock::ticks() - begin
    });
    ticks as f64 * 1000.0 / clock::ticks_per_us() as f64 / (TRIPS - 1) as f64
}
