//! Where a PMD's time goes, by stage of the pipeline.
//!
//! A reading of the clock costs some 25 cycles, and a look at a ring is done in as many. So looks are
//! sampled: one in [`MEAN_GAP`] is measured, with a reading at the end of each stage. The gap to the next
//! one is drawn by chance, from 1 to twice the mean, so that no number of rings falls in step with it and
//! hides one of them. The others cost a branch for each stage.
//!
//! ```text
//! ring with frames:  |-- take --|-- judge --|-- deliver --|-- settle --|   one sample, its frames counted
//! empty ring:        |- look -|                                           one empty sample
//! ```
//! Counters hold the samples as they were measured, and how many frames they had: the cost of a frame is
//! a quotient of two of them, and their sums stay below the busy time of the same PMD.
//!
//! # Threads
//! One writer, the PMD; see [`super::Counter`].

use super::Counter;
use crate::clock;

/// Looks from one sample to the next, on average.
pub const MEAN_GAP: u32 = 16;

/// A stage of [`crate::pipeline`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Chains are taken from the guest, their heads copied.
    Take,
    /// Each frame is judged.
    Judge,
    /// Frames are written to their receivers.
    Deliver,
    /// Frames are accounted for, and their chains given back.
    Settle,
}

impl Stage {
    /// All stages, in their order.
    pub const ALL: [Self; Self::COUNT] = [Self::Take, Self::Judge, Self::Deliver, Self::Settle];
    /// How many stages there are.
    pub const COUNT: usize = 4;
}

/// What was measured.
#[derive(Debug, Default)]
pub struct StageCounters {
    /// Bursts that were measured.
    pub bursts: Counter,
    /// Their frames.
    pub frames: Counter,
    /// Clock ticks that each stage took of them.
    ticks: [Counter; Stage::COUNT],
    /// Looks at rings without a frame that were measured.
    pub empty_looks: Counter,
    /// Clock ticks that those took.
    pub empty_ticks: Counter,
}

impl StageCounters {
    /// Clock ticks of `stage` in all samples.
    pub fn ticks(&self, stage: Stage) -> u64 {
        self.ticks[stage as usize].get()
    }
}

/// Chooses the looks that are measured.
#[derive(Debug)]
pub struct Sampler {
    /// Looks until the next sample.
    left: u32,
    chance: u32,
}

impl Default for Sampler {
    fn default() -> Self {
        Self { left: MEAN_GAP, chance: 1 }
    }
}

impl Sampler {
    /// Begins a look at a ring.
    #[inline]
    pub fn begin(&mut self) -> Stopwatch {
        self.left -= 1;
        if self.left > 0 {
            return Stopwatch { is_running: false, last: 0, ticks: [0; Stage::COUNT] };
        }
        self.left = self.gap();
        Stopwatch { is_running: true, last: clock::ticks(), ticks: [0; Stage::COUNT] }
    }

    /// 1 to twice the mean less 1. Nothing depends on it being hard to guess.
    fn gap(&mut self) -> u32 {
        // Xorshift (Marsaglia: Xorshift RNGs, 2003): no state but 0 leads to 0.
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 17;
        self.chance ^= self.chance << 5;
        (self.chance >> 8) % (2 * MEAN_GAP - 1) + 1
    }
}

/// One look at a ring, measured or not.
#[derive(Debug)]
pub struct Stopwatch {
    is_running: bool,
    last: u64,
    ticks: [u64; Stage::COUNT],
}

impl Stopwatch {
    /// The end of `stage`.
    #[inline]
    pub fn lap(&mut self, stage: Stage) {
        if self.is_running {
            let now = clock::ticks();
            self.ticks[stage as usize] = now.wrapping_sub(self.last);
            self.last = now;
        }
    }

    /// The look is over: it found `frames`.
    #[inline]
    pub fn end(self, frames: usize, counters: &StageCounters) {
        if self.is_running {
            self.note(frames, counters);
        }
    }

    #[cold]
    fn note(self, frames: usize, counters: &StageCounters) {
        if frames == 0 {
            counters.empty_looks.add(1);
            counters.empty_ticks.add(self.ticks[Stage::Take as usize]);
            return;
        }
        for (counter, ticks) in counters.ticks.iter().zip(self.ticks) {
            counter.add(ticks);
        }
        counters.bursts.add(1);
        counters.frames.add(frames as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_look_in_sixteen_is_measured_and_never_in_step() {
        let (mut sampler, mut gaps, mut since) = (Sampler::default(), Vec::new(), 0);
        for _ in 0..160_000 {
            since += 1;
            if sampler.begin().is_running {
                gaps.push(since);
                since = 0;
            }
        }
        assert!((9_500..10_500).contains(&gaps.len()), "{}", gaps.len());
        for gap in 1..2 * MEAN_GAP {
            let times = gaps.iter().filter(|&&of| of == gap).count();
            assert!((200..500).contains(&times), "{times} gaps of {gap}");
        }
    }

    #[test]
    fn stages_of_a_sample_add_up_to_its_time() {
        let (mut sampler, counters) = (Sampler { left: 1, chance: 1 }, StageCounters::default());
        let before = clock::ticks();
        let mut watch = sampler.begin();
        for stage in Stage::ALL {
            let until = clock::ticks() + 100;
            while clock::ticks() < until {}
            watch.lap(stage);
        }
        watch.end(7, &counters);
        let took = clock::ticks() - before;
        let each = Stage::ALL.map(|stage| counters.ticks(stage));
        assert!(each.iter().all(|&ticks| ticks >= 100), "{each:?}");
        assert!(each.iter().sum::<u64>() <= took, "{each:?} of {took}");
        assert_eq!((counters.bursts.get(), counters.frames.get()), (1, 7));
        assert_eq!(counters.empty_looks.get(), 0);
    }

    #[test]
    fn a_look_that_is_not_sampled_or_finds_nothing_counts_no_frame() {
        let (mut sampler, counters) = (Sampler { left: 2, chance: 1 }, StageCounters::default());
        let mut unmeasured = sampler.begin();
        unmeasured.lap(Stage::Take);
        unmeasured.end(32, &counters);
        assert_eq!(counters.bursts.get() + counters.empty_looks.get(), 0);
        let mut empty = sampler.begin();
        empty.lap(Stage::Take);
        empty.end(0, &counters);
        assert_eq!((counters.empty_looks.get(), counters.bursts.get()), (1, 0));
        assert_eq!(counters.ticks(Stage::Take), 0);
    }
}
