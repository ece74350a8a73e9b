//! How far the generator's core and the switch's are from each other, and windows that are taken where that
//! is the same for all.
//!
//! Whatever the two share travels as cache lines. On a virtual machine the host may put a virtual core
//! elsewhere whenever it wakes: on the same die as the other, on another one, on the other thread of the
//! same core. A line then takes several times as long or as short, and all switches become alike or one
//! seems twice as fast as another. So the usual distance is learnt first, and a window begins when the
//! cores are that far apart: a core that sleeps for a moment is soon put elsewhere.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use dataplane::clock;

use crate::interrupt;
use crate::rig::pin;
use crate::stats::Rounds;

/// Round trips of a batch: shorter than a time slice, so that most batches are not interrupted.
const TRIPS: u64 = 100;
/// Batches of a look.
const BATCHES: u64 = 41;

/// Nanoseconds that one cache line takes from the calling thread's core to `other` and back, in most of some
/// batches. Others may run on `other`; it then takes longer to find out.
pub fn core_round_trip_ns(other: usize) -> f64 {
    let (ball, is_there) = (AtomicU64::new(0), AtomicBool::new(false));
    let wait_for = |value| {
        while ball.load(Ordering::Acquire) != value {
            std::hint::spin_loop();
        }
    };
    let batches = thread::scope(|scope| {
        scope.spawn(|| {
            // Unpinned the figure is of whatever core it runs on, which is the best one can say.
            let _ = pin(other);
            is_there.store(true, Ordering::Release);
            for trip in 0..TRIPS * BATCHES {
                wait_for(2 * trip + 1);
                ball.store(2 * trip + 2, Ordering::Release);
            }
        });
        while !is_there.load(Ordering::Acquire) {
            // It begins on this core. Asleep, this one might wake up elsewhere.
            thread::yield_now();
        }
        let batch = |batch| {
            let begin = clock::ticks();
            for trip in batch * TRIPS..(batch + 1) * TRIPS {
                ball.store(2 * trip + 1, Ordering::Release);
                wait_for(2 * trip + 2);
            }
            (clock::ticks() - begin) as f64
        };
        (0..BATCHES).map(batch).collect()
    });
    Rounds::of(batches).median * 1000.0 / clock::ticks_per_us() as f64 / TRIPS as f64
}

/// Looks by which the usual distance is learnt, and the sleep before each, in which cores may move.
const LOOKS: usize = 40;
const SLEEP: Duration = Duration::from_millis(150);
/// Distances that differ by no more than this factor are the same one.
const ALIKE: f64 = 1.4;

/// The distance at which windows are taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Distance {
    /// Nanoseconds of a round trip.
    pub ns: f64,
    /// For how long a window may wait for it, in milliseconds.
    pub patience_ms: u64,
}

impl Distance {
    /// The one at which most of some looks find `core` and the caller's, the nearer of two.
    pub fn learn(core: usize, patience_ms: u64) -> Self {
        let look = |_| {
            thread::sleep(SLEEP);
            core_round_trip_ns(core)
        };
        Self { ns: usual((0..LOOKS).map(look).collect()), patience_ms }
    }

    /// Whether a look that found `ns` found this distance.
    pub fn is(&self, ns: f64) -> bool {
        are_alike(self.ns, ns)
    }

    /// Stirs the cores as what comes will, until they are at this distance or patience is at its end.
    /// Returns the last look.
    ///
    /// # Errors
    /// Those of `stir`; someone wants us to end.
    pub fn settle(&self, core: usize, mut stir: impl FnMut() -> Result<()>) -> Result<f64> {
        let end = clock::ticks() + self.patience_ms * 1000 * clock::ticks_per_us();
        loop {
            interrupt::check()?;
            stir()?;
            let ns = core_round_trip_ns(core);
            if self.is(ns) || clock::ticks() > end {
                return Ok(ns);
            }
            thread::sleep(SLEEP);
        }
    }
}

fn are_alike(one: f64, other: f64) -> bool {
    one <= other * ALIKE && other <= one * ALIKE
}

fn usual(mut looks: Vec<f64>) -> f64 {
    // The last of the longest is taken: the nearer one.
    looks.sort_by(|one, other| other.total_cmp(one));
    let like = |ns: f64| -> Vec<_> {
        looks.iter().copied().filter(|&other| are_alike(ns, other)).collect()
    };
    let most = looks.iter().map(|&ns| like(ns)).max_by_key(Vec::len);
    Rounds::of(most.unwrap_or_default()).median
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_of_most_looks_is_usual() {
        let of = |groups: &[(f64, usize)]| {
            let looks = groups.iter().flat_map(|&(ns, count)| vec![ns; count]).collect();
            usual(looks)
        };
        assert_eq!(of(&[(320.0, 10), (65.0, 12), (27.0, 2)]), 65.0);
        assert_eq!(of(&[(65.0, 4), (320.0, 20)]), 320.0);
        assert_eq!(of(&[(320.0, 12), (65.0, 12)]), 65.0);
        assert_eq!(of(&[(60.0, 3), (66.0, 3), (70.0, 3), (300.0, 8)]), 66.0);
    }

    #[test]
    fn a_distance_is_itself_within_a_factor() {
        let distance = Distance { ns: 65.0, patience_ms: 0 };
        assert!(distance.is(50.0) && distance.is(90.0));
        assert!(!distance.is(27.0) && !distance.is(110.0));
    }

    #[test]
    fn settling_stirs_at_least_once_and_ends_with_patience() {
        let Ok((_, core)) = crate::rig::cores() else { return };
        let mut stirred = 0;
        let never = Distance { ns: 1e9, patience_ms: 1 };
        let ns = never.settle(core, || {
            stirred += 1;
            Ok(())
        });
        assert!(ns.unwrap() > 0.0);
        assert!(stirred >= 1);
    }
}
