//! What all rounds gave, and what may be said of it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::host::Calibration;
use crate::limit;
use crate::measure::Sample;
use crate::peer::PeerKind;
use crate::scenario::{Figure, Scenario};
use crate::stats::Rounds;

/// Marks a ratio of times per frame.
const BY_CYCLES: &str = " by cycles per frame";

/// What the hypervisor took, and what was done about it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Steal {
    /// Windows that were measured, all together.
    pub windows: u64,
    /// Those that were discarded and measured anew.
    pub discarded: u64,
    /// Those that were kept although time was stolen, after a few that were discarded.
    pub kept: u64,
    /// Milliseconds that it took of all of them.
    pub stolen_ms: u64,
}

impl Steal {
    /// Counts a window, and says whether it is to be kept.
    pub fn count(&mut self, stolen_ms: u64, is_clean: bool, is_last: bool) -> bool {
        self.windows += 1;
        self.stolen_ms += stolen_ms;
        self.kept += u64::from(!is_clean && is_last);
        self.discarded += u64::from(!is_clean && !is_last);
        is_clean || is_last
    }

    /// Adds what another counted.
    pub fn add(&mut self, other: &Self) {
        self.windows += other.windows;
        self.discarded += other.discarded;
        self.kept += other.kept;
        self.stolen_ms += other.stolen_ms;
    }
}

/// One set-up in one round.
#[derive(Debug, Clone, Serialize)]
pub struct Turn {
    /// From 0.
    pub round: usize,
    /// In words.
    pub setup: String,
    /// Who was measured when.
    pub order: Vec<PeerKind>,
    /// The machine just before.
    pub calibration: Calibration,
}

/// What can be said of a figure.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finding {
    /// It was measured.
    Measured(Rounds),
    /// It is this or more: the generator was the limit of what is compared, not of what to.
    AtLeast {
        /// What the generator allowed.
        rate: Rounds,
        /// How much less time it took for a frame, where both count that.
        by_cycles: Option<Rounds>,
    },
    /// Rates say nothing, as the generator was the limit of what is compared to: how much less time it
    /// took for a frame.
    ByCycles(Rounds),
    /// The generator was the limit, so it says nothing of the switch.
    GeneratorBound,
    /// It was not measured, for this reason.
    Missing(String),
}

impl Finding {
    /// The numbers, if there are some that say something.
    pub fn rounds(&self) -> Option<&Rounds> {
        match self {
            Self::Measured(rounds) | Self::AtLeast { rate: rounds, .. } => Some(rounds),
            Self::ByCycles(rounds) => Some(rounds),
            Self::GeneratorBound | Self::Missing(_) => None,
        }
    }
}

impl std::fmt::Display for Finding {
    /// Median and range with the precision asked for, or why there are none.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Measured(rounds) => rounds.fmt(f),
            Self::AtLeast { rate, by_cycles } => {
                f.write_str(">= ")?;
                rate.fmt(f)?;
                let Some(rounds) = by_cycles else { return Ok(()) };
                f.write_str("; ")?;
                rounds.fmt(f)?;
                f.write_str(BY_CYCLES)
            }
            Self::ByCycles(rounds) => {
                rounds.fmt(f)?;
                f.write_str(BY_CYCLES)
            }
            Self::GeneratorBound => f.write_str("generator-bound"),
            Self::Missing(reason) => f.write_str(reason),
        }
    }
}

/// One scenario on one switch.
#[derive(Debug, Clone, Default)]
struct Cell {
    /// By round.
    samples: BTreeMap<usize, Sample>,
    /// Why there are none, or no more.
    refusal: Option<String>,
}

impl Cell {
    /// Those that may be compared, by round.
    fn kept(&self) -> impl Iterator<Item = (usize, &Sample)> + Clone {
        let samples = self.samples.iter().filter(|(_, sample)| !sample.is_apart);
        samples.map(|(&round, sample)| (round, sample))
    }
}

/// Where a figure comes from.
pub type Key = (&'static str, PeerKind);

/// All that was measured.
#[derive(Debug, Clone, Default)]
pub struct Results {
    /// Which scenarios, in the order of the tables.
    pub scenarios: Vec<Scenario>,
    /// Which switches, ours first.
    pub peers: Vec<PeerKind>,
    /// Each set-up of each round, in the order they ran.
    pub turns: Vec<Turn>,
    /// What the hypervisor took.
    pub steal: Steal,
    /// What switches that are not ours failed at, in words.
    pub failures_of_others: Vec<String>,
    /// Nanoseconds of a cache line from core to core and back at which windows count; `None`: at any.
    pub usual_ns: Option<f64>,
    cells: BTreeMap<Key, Cell>,
}

impl Results {
    /// None yet.
    pub fn new(scenarios: Vec<Scenario>, peers: Vec<PeerKind>) -> Self {
        Self { scenarios, peers, ..Self::default() }
    }

    /// Enters what one window gave.
    pub fn enter(&mut self, key: Key, round: usize, sample: Sample) {
        self.cells.entry(key).or_default().samples.insert(round, sample);
    }

    /// Notes why there is nothing, or nothing more.
    pub fn refuse(&mut self, key: Key, reason: impl Into<String>) {
        self.cells.entry(key).or_default().refusal = Some(reason.into());
    }

    /// Whether there is a reason not to measure this.
    pub fn is_refused(&self, key: Key) -> bool {
        self.cells.get(&key).is_some_and(|cell| cell.refusal.is_some())
    }

    /// Every sample of a figure, by round.
    pub fn samples(&self, key: Key, figure: Figure) -> BTreeMap<usize, f64> {
        let of = |(round, sample): (usize, &Sample)| Some((round, *sample.figures.get(&figure)?));
        let cell = self.cells.get(&key);
        cell.into_iter().flat_map(|cell| cell.kept().filter_map(of)).collect()
    }

    /// Every window of it, by round, those that may not be compared as well.
    pub fn windows(&self, key: Key) -> impl Iterator<Item = &Sample> {
        self.cells.get(&key).into_iter().flat_map(|cell| cell.samples.values())
    }

    /// Share of its time that the generator waited: the median of the rounds.
    pub fn waited_share(&self, key: Key) -> Option<f64> {
        let samples = self.cells.get(&key)?.kept();
        let shares: Vec<_> = samples.filter_map(|(_, sample)| sample.waited_share).collect();
        (!shares.is_empty()).then(|| Rounds::of(shares).median)
    }

    /// Single measurements that were dropped because the generator was off its core.
    pub fn disturbed(&self, key: Key) -> u64 {
        self.windows(key).map(|sample| sample.disturbed).sum()
    }

    /// Whether what sends frames, not the switch, was the limit.
    pub fn is_generator_bound(&self, key: Key) -> bool {
        let samples = self.cells.get(&key).into_iter().flat_map(Cell::kept);
        limit::is_generator_bound(samples.map(|(_, sample)| sample))
    }

    /// A figure of one scenario and switch.
    pub fn figure(&self, key: Key, figure: Figure) -> Finding {
        let samples: Vec<_> = self.samples(key, figure).into_values().collect();
        let refusal = self.cells.get(&key).and_then(|cell| cell.refusal.clone());
        if let Some(reason) = refusal {
            return Finding::Missing(reason);
        }
        // A switch that does not count its work, and so has no cycles here, is judged alike.
        let is_bound = self.is_generator_bound(key);
        if samples.is_empty() {
            let is_kept = self.cells.get(&key).is_some_and(|cell| cell.kept().next().is_some());
            let is_measured = self.windows(key).next().is_some();
            return match (is_bound, is_kept, is_measured) {
                (true, ..) => Finding::GeneratorBound,
                (_, true, _) => Finding::Missing("not counted".to_owned()),
                (_, _, true) => Finding::Missing("cores apart".to_owned()),
                (_, _, false) => Finding::Missing("not measured".to_owned()),
            };
        }
        let rate = Rounds::of(samples);
        if is_bound && figure.is_throughput() {
            Finding::AtLeast { rate, by_cycles: None }
        } else {
            Finding::Measured(rate)
        }
    }

    /// The figure of `of` over that of `to`, round by round.
    pub fn ratio(&self, of: Key, to: Key, figure: Figure) -> Finding {
        for key in [to, of] {
            if let missing @ Finding::Missing(_) = self.figure(key, figure) {
                return missing;
            }
        }
        let bound = |key| figure.is_throughput() && self.is_generator_bound(key);
        // Of times less is better, so the other way round.
        let by_cycles = || self.quotients(to, of, Figure::CyclesPerFrame);
        if bound(to) {
            return by_cycles().map_or(Finding::GeneratorBound, Finding::ByCycles);
        }
        match self.quotients(of, to, figure) {
            None => Finding::GeneratorBound,
            Some(rate) if bound(of) => Finding::AtLeast { rate, by_cycles: by_cycles() },
            Some(ratios) => Finding::Measured(ratios),
        }
    }

    /// The figure of `of` over that of `to` in the rounds that have both, if there are some.
    fn quotients(&self, of: Key, to: Key, figure: Figure) -> Option<Rounds> {
        let (over, under) = (self.samples(of, figure), self.samples(to, figure));
        let pairs = over.iter().filter_map(|(round, a)| Some(a / under.get(round)?));
        let ratios: Vec<_> = pairs.collect();
        (!ratios.is_empty()).then(|| Rounds::of(ratios))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::scenario;

    const OURS: Key = ("64", PeerKind::Slipwayd);
    const OVS: Key = ("64", PeerKind::Ovs);

    fn sample(mpps: f64, waited_share: f64) -> Sample {
        let figures = [(Figure::Mpps, mpps)].into();
        Sample { figures, waited_share: Some(waited_share), ..Sample::default() }
    }

    /// Three rounds of two switches; a third is not there.
    pub fn results(our_share: f64, ovs_share: f64) -> Results {
        let peers = vec![PeerKind::Slipwayd, PeerKind::Ovs, PeerKind::Testpmd];
        let mut results = Results::new(scenario::all(), peers);
        for (round, (ours, ovs)) in [(10.0, 4.0), (12.0, 3.0), (9.0, 3.0)].into_iter().enumerate() {
            results.enter(OURS, round, sample(ours, our_share));
            results.enter(OVS, round, sample(ovs, ovs_share));
        }
        results.refuse(("64", PeerKind::Testpmd), "not installed");
        results
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let finding = results(1.0, 1.0).ratio(OURS, OVS, Figure::Mpps);
        assert_eq!(finding.rounds().unwrap().samples, [2.5, 4.0, 3.0]);
        assert!(matches!(finding, Finding::Measured(_)));
    }

    #[test]
    fn a_rate_for_which_nobody_waited_is_at_least_that() {
        let results = results(0.02, 0.98);
        assert_eq!(format!("{:.1}", results.figure(OURS, Figure::Mpps)), ">= 10.0 (9.0-12.0)");
        assert_eq!(format!("{:.1}", results.figure(OVS, Figure::Mpps)), "3.0 (3.0-4.0)");
    }

    #[test]
    fn where_rates_say_nothing_the_time_per_frame_is_compared() {
        let mut results = results(0.02, 0.02);
        for (round, (ours, theirs)) in [(100.0, 150.0), (100.0, 90.0)].into_iter().enumerate() {
            for (key, cycles) in [(OURS, ours), (OVS, theirs)] {
                let mut sample = sample(5.0, 0.02);
                sample.figures.insert(Figure::CyclesPerFrame, cycles);
                results.enter(key, round, sample);
            }
        }
        let finding = results.ratio(OURS, OVS, Figure::Mpps);
        assert_eq!(format!("{finding:.1}"), "1.2 (0.9-1.5) by cycles per frame");
        // Of cycles themselves: ours over theirs, less is better.
        let finding = results.ratio(OURS, OVS, Figure::CyclesPerFrame);
        assert_eq!(format!("{finding:.2}"), "0.89 (0.67-1.11)");
        results.enter(
            OVS,
            0,
            Sample { waited_share: Some(1.0), ..results.cells[&OVS].samples[&0].clone() },
        );
        results.enter(
            OVS,
            1,
            Sample { waited_share: Some(1.0), ..results.cells[&OVS].samples[&1].clone() },
        );
        let finding = results.ratio(OURS, OVS, Figure::Mpps);
        let printed = ">= 1.0 (1.0-3.0); 1.2 (0.9-1.5) by cycles per frame";
        assert_eq!(format!("{finding:.1}"), printed);
    }

    #[test]
    fn a_guest_of_others_was_the_limit_of_a_switch_that_is_idle_now_and_then() {
        let mut results = results(1.0, 1.0);
        let of = |idle_share| Sample {
            figures: [(Figure::Mpps, 5.0)].into(),
            idle_share: Some(idle_share),
            ..Sample::default()
        };
        let (ours, ovs) = (("dpdk-64", PeerKind::Slipwayd), ("dpdk-64", PeerKind::Ovs));
        results.enter(ours, 0, of(0.3));
        results.enter(ovs, 0, of(0.01));
        assert!(results.is_generator_bound(ours) && !results.is_generator_bound(ovs));
        assert_eq!(results.figure(ours, Figure::CyclesPerFrame).to_string(), "generator-bound");
        assert_eq!(results.figure(ovs, Figure::CyclesPerFrame).to_string(), "not counted");
    }

    #[test]
    fn a_window_with_stolen_time_is_discarded_until_the_last() {
        let mut steal = Steal::default();
        assert!(steal.count(0, true, false));
        assert!(!steal.count(20, false, false));
        assert!(steal.count(30, false, true));
        let all = Steal { windows: 3, discarded: 1, kept: 1, stolen_ms: 50 };
        assert_eq!(steal, all);
        steal.add(&all);
        assert_eq!(steal.stolen_ms, 100);
    }

    #[test]
    fn a_ratio_to_what_was_generator_bound_says_nothing_one_of_it_is_at_least_that() {
        let ours = results(0.02, 1.0).ratio(OURS, OVS, Figure::Mpps);
        assert_eq!(format!("{ours:.1}"), ">= 3.0 (2.5-4.0)");
        let theirs = results(1.0, 0.02).ratio(OURS, OVS, Figure::Mpps);
        assert!(matches!(theirs, Finding::GeneratorBound));
    }

    #[test]
    fn windows_with_the_cores_apart_are_told_and_not_compared() {
        let mut results = results(1.0, 1.0);
        results.cells.get_mut(&OVS).unwrap().samples.get_mut(&1).unwrap().is_apart = true;
        let finding = results.ratio(OURS, OVS, Figure::Mpps);
        assert_eq!(finding.rounds().unwrap().samples, [2.5, 3.0]);
        assert_eq!(results.windows(OVS).filter(|sample| sample.is_apart).count(), 1);
        for sample in results.cells.get_mut(&OVS).unwrap().samples.values_mut() {
            sample.is_apart = true;
        }
        assert_eq!(results.figure(OVS, Figure::Mpps).to_string(), "cores apart");
        assert_eq!(results.ratio(OURS, OVS, Figure::Mpps).to_string(), "cores apart");
    }

    #[test]
    fn what_is_missing_gives_its_reason_in_every_figure_and_ratio() {
        let (results, testpmd) = (results(1.0, 1.0), ("64", PeerKind::Testpmd));
        assert_eq!(results.figure(testpmd, Figure::Mpps).to_string(), "not installed");
        assert_eq!(results.ratio(OURS, testpmd, Figure::Mpps).to_string(), "not installed");
        assert_eq!(results.figure(OVS, Figure::P50Us).to_string(), "not counted");
        let other = ("256", PeerKind::Ovs);
        assert_eq!(results.figure(other, Figure::Mpps).to_string(), "not measured");
    }
}
