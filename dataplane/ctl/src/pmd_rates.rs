//! What PMD threads did between two readings of their counters, for `stats --pmd`.
//!
//! ```text
//! of the time:   busy + polling + kick checks + asleep = 100 %   by the clock of slipwayctl
//! of a frame:    take + judge + deliver + settle + other = total
//!                `---------- sampled bursts ---------'   ^ all busy time over all frames
//! ```
//! `other` is what a round costs beside its bursts: turns, tables, empty rings beside busy ones. Cycles are
//! those of the time-stamp counter, which runs at one rate whatever the core does.

use serde::Serialize;
use slipway_api::{Pmd, PmdList};

/// What all threads did.
#[derive(Debug, PartialEq, Serialize)]
pub struct PmdRates {
    /// Time between the readings, in seconds.
    pub interval_s: f64,
    /// Ticks per second of the clock behind `cycles`.
    pub cycles_hz: u64,
    /// The threads, by number.
    pub pmds: Vec<PmdRate>,
}

/// What one thread did.
#[derive(Debug, PartialEq, Serialize)]
pub struct PmdRate {
    /// Its number.
    pub id: u32,
    /// Its core.
    pub core: Option<u32>,
    /// Vrings that it polls at the end of the interval.
    pub polled_rings: u64,
    /// Vrings that are armed to wake it, at that time.
    pub armed_rings: u64,
    /// Names of its vrings, PORT:INDEX.
    pub rings: Vec<String>,
    /// Rounds that found frames, in percent of the interval.
    pub busy_percent: f64,
    /// Rounds that found none.
    pub polling_percent: f64,
    /// Looks for kicks of armed vrings.
    pub kick_check_percent: f64,
    /// What is left: the thread slept.
    pub asleep_percent: f64,
    /// Frames a second.
    pub frames_per_s: f64,
    /// Frames of a burst; absent without bursts.
    pub frames_per_burst: Option<f64>,
    /// Sleeps a second.
    pub sleeps_per_s: f64,
    /// Kicks and messages that woke it, a second.
    pub wakeups_per_s: f64,
    /// What a frame cost, in cycles; absent without frames.
    pub cycles_per_frame: Option<FrameCost>,
    /// The same in nanoseconds.
    pub ns_per_frame: Option<FrameCost>,
    /// What a look at an empty vring cost, in cycles; absent if none was measured.
    pub cycles_per_empty_look: Option<f64>,
}

/// What a frame costs, and where.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct FrameCost {
    /// Busy time over frames.
    pub total: f64,
    /// The stages; absent while no burst was sampled.
    pub stages: Option<StageCost>,
}

/// What each stage of the pipeline costs a frame.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StageCost {
    /// Taking it from the guest.
    pub take: f64,
    /// Judging it.
    pub judge: f64,
    /// Writing it to its receivers.
    pub deliver: f64,
    /// Accounting for it, and giving its buffer back.
    pub settle: f64,
}

impl StageCost {
    /// All stages together.
    pub fn sum(&self) -> f64 {
        self.take + self.judge + self.deliver + self.settle
    }
}

impl FrameCost {
    fn scaled(self, by: f64) -> Self {
        let stages = self.stages.map(|of| StageCost {
            take: of.take * by,
            judge: of.judge * by,
            deliver: of.deliver * by,
            settle: of.settle * by,
        });
        Self { total: self.total * by, stages }
    }
}

/// What happened between two readings, `interval_s` apart. A thread that the first does not know has done
/// nothing before.
pub fn rates(before: &PmdList, after: &PmdList, interval_s: f64) -> PmdRates {
    let hz = after.cycles_hz;
    let rate = |now: &Pmd| {
        let none = Pmd::default();
        let then = before.pmds.iter().find(|then| then.id == now.id).unwrap_or(&none);
        of_thread(then, now, interval_s, hz as f64)
    };
    PmdRates { interval_s, cycles_hz: hz, pmds: after.pmds.iter().map(rate).collect() }
}

fn of_thread(then: &Pmd, now: &Pmd, interval_s: f64, hz: f64) -> PmdRate {
    // A daemon that was started anew counts from zero.
    let change = |count: fn(&Pmd) -> u64| count(now).saturating_sub(count(then)) as f64;
    let share = |count| (100.0 * change(count) / (interval_s * hz).max(1.0)).min(100.0);
    let (busy, polling) = (share(|pmd| pmd.busy_cycles), share(|pmd| pmd.idle_cycles));
    let kick_checks = share(|pmd| pmd.kick_check_cycles);
    let cost = quotient(change(|pmd| pmd.busy_cycles), change(|pmd| pmd.frames)).map(|total| {
        let sampled = change(|pmd| pmd.samples.frames);
        let stage = |count| quotient(change(count), sampled);
        let stages = || {
            Some(StageCost {
                take: stage(|pmd| pmd.samples.take_cycles)?,
                judge: stage(|pmd| pmd.samples.judge_cycles)?,
                deliver: stage(|pmd| pmd.samples.deliver_cycles)?,
                settle: stage(|pmd| pmd.samples.settle_cycles)?,
            })
        };
        FrameCost { total, stages: stages() }
    });
    PmdRate {
        id: now.id,
        core: now.core,
        polled_rings: now.polled_rings,
        armed_rings: now.armed_rings,
        rings: now.rings.iter().map(|ring| format!("{}:{}", ring.port, ring.ring)).collect(),
        busy_percent: busy,
        polling_percent: polling,
        kick_check_percent: kick_checks,
        asleep_percent: (100.0 - busy - polling - kick_checks).max(0.0),
        frames_per_s: change(|pmd| pmd.frames) / interval_s,
        frames_per_burst: quotient(change(|pmd| pmd.frames), change(|pmd| pmd.bursts)),
        sleeps_per_s: change(|pmd| pmd.sleeps) / interval_s,
        wakeups_per_s: change(|pmd| pmd.wakeups) / interval_s,
        cycles_per_frame: cost,
        ns_per_frame: cost.map(|cost| cost.scaled(1e9 / hz.max(1.0))),
        cycles_per_empty_look: quotient(
            change(|pmd| pmd.samples.empty_cycles),
            change(|pmd| pmd.samples.empty_looks),
        ),
    }
}

fn quotient(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| part / whole)
}

#[cfg(test)]
mod tests {
    use slipway_api::StageSamples;

    use super::*;

    fn list(pmd: Pmd) -> PmdList {
        PmdList { cycles_hz: 2_000_000_000, pmds: vec![pmd] }
    }

    #[test]
    fn shares_of_the_time_and_of_a_frame_add_up() {
        let before = Pmd { busy_cycles: 7, frames: 1, ..Pmd::default() };
        let after = Pmd {
            busy_cycles: 7 + 1_000_000_000,
            idle_cycles: 400_000_000,
            kick_check_cycles: 100_000_000,
            sleep_cycles: 500_000_000,
            bursts: 500_000,
            frames: 1 + 10_000_000,
            sleeps: 4,
            samples: StageSamples {
                bursts: 31_250,
                frames: 625_000,
                take_cycles: 12_500_000,
                judge_cycles: 6_250_000,
                deliver_cycles: 25_000_000,
                settle_cycles: 3_125_000,
                empty_looks: 10,
                empty_cycles: 400,
            },
            ..Pmd::default()
        };
        let rates = rates(&list(before), &list(after), 1.0);
        let pmd = &rates.pmds[0];
        let shares = [pmd.busy_percent, pmd.polling_percent, pmd.kick_check_percent];
        assert_eq!((shares, pmd.asleep_percent), ([50.0, 20.0, 5.0], 25.0));
        assert_eq!((pmd.frames_per_s, pmd.frames_per_burst), (10_000_000.0, Some(20.0)));
        let cost = pmd.cycles_per_frame.expect("frames");
        let stages = cost.stages.expect("samples");
        assert_eq!((cost.total, stages.sum()), (100.0, 75.0));
        assert_eq!((stages.take, stages.settle), (20.0, 5.0));
        assert_eq!(pmd.ns_per_frame.expect("frames").total, 50.0);
        assert_eq!(pmd.cycles_per_empty_look, Some(40.0));
    }

    #[test]
    fn a_thread_that_slept_has_no_cost_of_a_frame() {
        let same = list(Pmd { frames: 9, busy_cycles: 900, ..Pmd::default() });
        let pmd = rates(&same, &same, 0.5).pmds.remove(0);
        assert_eq!((pmd.asleep_percent, pmd.cycles_per_frame), (100.0, None));
        assert_eq!((pmd.frames_per_burst, pmd.cycles_per_empty_look), (None, None));
    }

    #[test]
    fn a_switch_that_was_started_anew_has_no_negative_rate() {
        let before = list(Pmd { frames: 1000, busy_cycles: 1000, sleeps: 3, ..Pmd::default() });
        let pmd = rates(&before, &list(Pmd::default()), 1.0).pmds.remove(0);
        assert_eq!((pmd.frames_per_s, pmd.sleeps_per_s, pmd.busy_percent), (0.0, 0.0, 0.0));
    }
}
