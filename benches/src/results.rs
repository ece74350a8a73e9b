//! What all rounds gave, and what may be said of it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::measure::Sample;
use crate::peer::PeerKind;
use crate::scenario::{Figure, Scenario};
use crate::stats::Rounds;
use crate::traffic::is_generator_bound;

/// What can be said of a figure.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finding {
    /// It was measured.
    Measured(Rounds),
    /// It is this or more: the generator was the limit of what is compared, not of what to.
    AtLeast(Rounds),
    /// The generator was the limit, so it says nothing of the switch.
    GeneratorBound,
    /// It was not measured, for this reason.
    Missing(String),
}

impl Finding {
    /// The numbers, if there are some that say something.
    pub fn rounds(&self) -> Option<&Rounds> {
        match self {
            Self::Measured(rounds) | Self::AtLeast(rounds) => Some(rounds),
            Self::GeneratorBound | Self::Missing(_) => None,
        }
    }
}

impl std::fmt::Display for Finding {
    /// Median and range with the precision asked for, or why there are none.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Measured(rounds) => rounds.fmt(f),
            Self::AtLeast(rounds) => {
                f.write_str(">= ")?;
                rounds.fmt(f)
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

/// Where a figure comes from.
pub type Key = (&'static str, PeerKind);

/// All that was measured.
#[derive(Debug, Clone, Default)]
pub struct Results {
    /// Which scenarios, in the order of the tables.
    pub scenarios: Vec<Scenario>,
    /// Which switches, ours first.
    pub peers: Vec<PeerKind>,
    /// Nanoseconds that a cache line took from core to core and back, once per round.
    pub core_round_trip_ns: Vec<f64>,
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
        let of = |(&round, sample): (&usize, &Sample)| Some((round, *sample.figures.get(&figure)?));
        let cell = self.cells.get(&key);
        cell.into_iter().flat_map(|cell| cell.samples.iter().filter_map(of)).collect()
    }

    /// Share of turns in which the ring was full: the median of the rounds.
    pub fn full_share(&self, key: Key) -> Option<f64> {
        let samples = self.cells.get(&key)?.samples.values();
        let shares: Vec<_> = samples.filter_map(|sample| sample.full_share).collect();
        (!shares.is_empty()).then(|| Rounds::of(shares).median)
    }

    fn is_generator_bound(&self, key: Key) -> bool {
        self.full_share(key).is_some_and(is_generator_bound)
    }

    /// A figure of one scenario and switch.
    pub fn figure(&self, key: Key, figure: Figure) -> Finding {
        let samples: Vec<_> = self.samples(key, figure).into_values().collect();
        let refusal = self.cells.get(&key).and_then(|cell| cell.refusal.clone());
        if let Some(reason) = refusal {
            return Finding::Missing(reason);
        }
        // A switch that does not count its work, and so has no cycles here, is judged alike.
        if self.is_generator_bound(key) && (figure.is_throughput() || samples.is_empty()) {
            return Finding::GeneratorBound;
        }
        if samples.is_empty() {
            return Finding::Missing("not measured".to_owned());
        }
        Finding::Measured(Rounds::of(samples))
    }

    /// The figure of `of` over that of `to`, round by round.
    pub fn ratio(&self, of: Key, to: Key, figure: Figure) -> Finding {
        for key in [to, of] {
            if let missing @ Finding::Missing(_) = self.figure(key, figure) {
                return missing;
            }
        }
        let bound = |key| figure.is_throughput() && self.is_generator_bound(key);
        if bound(to) {
            return Finding::GeneratorBound;
        }
        let (over, under) = (self.samples(of, figure), self.samples(to, figure));
        let pairs = over.iter().filter_map(|(round, a)| Some(a / under.get(round)?));
        let ratios: Vec<_> = pairs.collect();
        if ratios.is_empty() {
            Finding::GeneratorBound
        } else if bound(of) {
            Finding::AtLeast(Rounds::of(ratios))
        } else {
            Finding::Measured(Rounds::of(ratios))
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::scenario;

    const OURS: Key = ("64", PeerKind::Slipwayd);
    const OVS: Key = ("64", PeerKind::Ovs);

    fn sample(mpps: f64, full_share: f64) -> Sample {
        Sample { figures: [(Figure::Mpps, mpps)].into(), full_share: Some(full_share) }
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
    fn a_cell_whose_ring_was_hardly_ever_full_says_so_instead_of_a_number() {
        let results = results(0.02, 0.98);
        assert_eq!(results.figure(OURS, Figure::Mpps).to_string(), "generator-bound");
        assert_eq!(format!("{:.1}", results.figure(OVS, Figure::Mpps)), "3.0 (3.0-4.0)");
    }

    #[test]
    fn a_ratio_to_what_was_generator_bound_says_nothing_one_of_it_is_at_least_that() {
        let ours = results(0.02, 1.0).ratio(OURS, OVS, Figure::Mpps);
        assert_eq!(format!("{ours:.1}"), ">= 3.0 (2.5-4.0)");
        let theirs = results(1.0, 0.02).ratio(OURS, OVS, Figure::Mpps);
        assert!(matches!(theirs, Finding::GeneratorBound));
    }

    #[test]
    fn what_is_missing_gives_its_reason_in_every_figure_and_ratio() {
        let (results, testpmd) = (results(1.0, 1.0), ("64", PeerKind::Testpmd));
        assert_eq!(results.figure(testpmd, Figure::Mpps).to_string(), "not installed");
        assert_eq!(results.ratio(OURS, testpmd, Figure::Mpps).to_string(), "not installed");
        assert_eq!(results.figure(OVS, Figure::P50Us).to_string(), "not measured");
    }
}
