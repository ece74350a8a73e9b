//! What may be said of an arm: figures of each burst, their median over the rounds, and how sure that is.

use dataplane::testing::Rng;
use serde::Serialize;

use super::arms::ArmKind;
use super::burst::{Burst, STAGES, Times};
use super::samples::Samples;
use crate::stats::Rounds;

/// Samples that the bootstrap draws.
const DRAWS: usize = 2000;
/// Share of them that the interval leaves out on each side.
const TAIL: f64 = 0.025;

/// A figure of a burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Figure {
    /// Until the last pod was ready
    Ready,
    /// Until half of the pods were ready
    PodP50,
    /// Until 99 of 100 pods were ready
    PodP99,
    /// The middle pod's time in the first stage
    NetNs,
    /// In the second
    AddCni,
    /// In the third
    AttachIf,
    /// CPU time for a pod
    Cpu,
    /// Kernel objects for a pod
    Slab,
    /// Memory for a pod
    Memory,
    /// Until all was taken back
    Teardown,
}

impl Figure {
    /// All, in the order of the tables.
    pub const ALL: [Self; 10] = [
        Self::Ready,
        Self::PodP50,
        Self::PodP99,
        Self::NetNs,
        Self::AddCni,
        Self::AttachIf,
        Self::Cpu,
        Self::Slab,
        Self::Memory,
        Self::Teardown,
    ];
    /// The stages, in their order.
    pub const STAGES: [Self; 3] = [Self::NetNs, Self::AddCni, Self::AttachIf];

    /// For the head of a column.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ready => "all ready",
            Self::PodP50 => "pod p50",
            Self::PodP99 => "pod p99",
            Self::NetNs => STAGES[0],
            Self::AddCni => STAGES[1],
            Self::AttachIf => STAGES[2],
            Self::Cpu => "CPU per pod",
            Self::Slab => "slab per pod",
            Self::Memory => "memory per pod",
            Self::Teardown => "teardown",
        }
    }

    /// Its unit.
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Ready | Self::Teardown => "s",
            Self::Slab | Self::Memory => "KiB",
            _ => "ms",
        }
    }

    /// Digits after the point in tables.
    pub const fn digits(self) -> usize {
        match self {
            Self::Slab | Self::Memory => 0,
            Self::Ready | Self::Teardown => 3,
            _ => 2,
        }
    }

    /// Of one burst; `None`: it has no pod that became ready.
    pub fn of(self, burst: &Burst) -> Option<f64> {
        let ready = burst.times.len();
        if ready == 0 {
            return None;
        }
        let ms = |of: &dyn Fn(&Times) -> u64, share| {
            Some(quantile(
                burst.times.iter().map(|times| of(times) as f64 / 1000.0).collect(),
                share,
            ))
        };
        match self {
            Self::Ready => Some(burst.ready_s),
            Self::PodP50 => ms(&Times::ready_us, 0.5),
            Self::PodP99 => ms(&Times::ready_us, 0.99),
            Self::NetNs => ms(&|times| times.stages_us[0], 0.5),
            Self::AddCni => ms(&|times| times.stages_us[1], 0.5),
            Self::AttachIf => ms(&|times| times.stages_us[2], 0.5),
            Self::Cpu => Some(burst.cpu_s * 1000.0 / ready as f64),
            Self::Slab => Some(burst.slab_kib as f64 / ready as f64),
            Self::Memory => Some(burst.memory_kib as f64 / ready as f64),
            Self::Teardown => Some(burst.teardown_s),
        }
    }
}

/// The sample below or at which a `share` of all lie (nearest rank).
///
/// # Panics
/// There is none.
pub fn quantile(mut samples: Vec<f64>, share: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    let rank = (share * samples.len() as f64).ceil() as usize;
    samples[rank.clamp(1, samples.len()) - 1]
}

/// A median with its interval of 95 %.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// Of all samples.
    pub median: f64,
    /// From here
    pub low: f64,
    /// to here.
    pub high: f64,
    /// How many samples.
    pub samples: usize,
}

impl Estimate {
    /// By the percentile bootstrap (Efron 1979): medians of samples drawn from the samples, with
    /// replacement. The same seed gives the same interval. `None`: there are no samples.
    pub fn of(samples: &[f64], seed: u64) -> Option<Self> {
        if samples.is_empty() {
            return None;
        }
        let median = |samples: Vec<f64>| Rounds::of(samples).median;
        let mut rng = Rng::seeded(seed);
        let mut draw = || *rng.pick(samples);
        let drawn = |_| median((0..samples.len()).map(|_| draw()).collect());
        let medians: Vec<_> = (0..DRAWS).map(drawn).collect();
        Some(Self {
            median: median(samples.to_vec()),
            low: quantile(medians.clone(), TAIL),
            high: quantile(medians, 1.0 - TAIL),
            samples: samples.len(),
        })
    }

    /// With so many digits.
    pub fn text(&self, digits: usize) -> String {
        let Self { median, low, high, .. } = self;
        format!("{median:.digits$} ({low:.digits$}-{high:.digits$})")
    }
}

impl Samples {
    /// A figure of an arm with so many pods.
    pub fn estimate(&self, arm: ArmKind, pods: usize, figure: Figure) -> Option<Estimate> {
        Estimate::of(&self.values(arm, pods, figure), self.parameters.seed)
    }

    /// Its samples, one for each round.
    pub fn values(&self, arm: ArmKind, pods: usize, figure: Figure) -> Vec<f64> {
        self.of(arm, pods).filter_map(|burst| figure.of(burst)).collect()
    }

    /// A figure of `over` divided by that of `under`, round by round.
    pub fn ratio(
        &self,
        over: ArmKind,
        under: ArmKind,
        pods: usize,
        figure: Figure,
    ) -> Option<Estimate> {
        let in_round = |arm, round| {
            let mut samples = self.bursts.iter();
            let sample =
                samples.find(|s| s.arm == arm && s.round == round && s.burst.pods == pods)?;
            // Some of the pods are no burst of that many.
            let counts = sample.burst.failures.is_empty() && sample.discarded.is_none();
            counts.then(|| figure.of(&sample.burst)).flatten()
        };
        let rounds = 0..self.parameters.rounds;
        let ratios: Vec<_> =
            rounds.filter_map(|n| Some(in_round(over, n)? / in_round(under, n)?)).collect();
        Estimate::of(&ratios, self.parameters.seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples() {
        let samples: Vec<_> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(quantile(samples.clone(), 0.5), 100.0);
        assert_eq!(quantile(samples.clone(), 0.99), 198.0);
        assert_eq!(quantile(samples, 1.0), 200.0);
        assert_eq!(quantile(vec![7.0], 0.01), 7.0);
    }

    #[test]
    fn the_interval_holds_the_median_and_is_the_same_for_a_seed() {
        let samples = [5.0, 1.0, 4.0, 2.0, 3.0, 9.0, 8.0];
        let estimate = Estimate::of(&samples, 1).unwrap();
        assert_eq!(estimate.median, 4.0);
        assert!(1.0 <= estimate.low && estimate.low < 4.0, "{estimate:?}");
        assert!(4.0 < estimate.high && estimate.high <= 9.0, "{estimate:?}");
        assert_eq!(Some(estimate), Estimate::of(&samples, 1));
        let one = Estimate::of(&[2.0], 1).unwrap();
        assert_eq!((one.low, one.median, one.high), (2.0, 2.0, 2.0));
        assert_eq!(Estimate::of(&[], 1), None);
    }

    /// In 95 of 100 sets of samples the interval should hold what they come from; of few samples
    /// the bootstrap holds it a little less often.
    #[test]
    fn the_interval_mostly_holds_what_the_samples_come_from() {
        let mut rng = Rng::seeded(7);
        let held = (0..200).filter(|_| {
            let samples: Vec<_> = (0..15).map(|_| rng.below(1_000_001) as f64).collect();
            let estimate = Estimate::of(&samples, 1).unwrap();
            (estimate.low..=estimate.high).contains(&500_000.0)
        });
        let held = held.count();
        assert!((176..=200).contains(&held), "{held} of 200");
    }
}
