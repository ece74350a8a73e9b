//! Two slipwayds, round by round: what [`runner`](crate::runner) does for different switches, for two
//! programs of the same one.
//!
//! ```text
//!  round 1   2 ports:  base  head     9 ports:  base  head   ...
//!  round 2   2 ports:  head  base     9 ports:  head  base   ...
//!  round 3   as round 1
//! ```
//!
//! Who goes first changes with each round, so that what drifts or warms up favours neither. Each
//! starts anew for each set-up and round, so a round is an independent sample. What is said of a
//! figure is said by a [test](mann_whitney) of these samples, never by the ratio alone.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use crate::belongings::Belongings;
use crate::distance::{Distance, core_round_trip_ns};
use crate::interrupt;
use crate::limit;
use crate::mann_whitney::{self, Test};
use crate::measure::{Conditions, Sample};
use crate::peer::{PeerKind, Place, Programs};
use crate::rig::{cores, pin};
use crate::runner::{
    HUGE_PAGES, MOST_STEAL_PERCENT, PATIENCE_MS, Progress, Session, WARM_UP_MS, Windows,
};
use crate::scenario::{Figure, Scenario};
use crate::stats::Rounds;

/// A difference counts if chance alone would show one as large this rarely.
pub const LEVEL: f64 = 0.01;
/// With fewer rounds not even the most extreme order reaches [`LEVEL`]: 2 of 70 with four.
pub const LEAST_ROUNDS: u16 = 5;

/// One of the two.
#[derive(Debug, Clone, Serialize)]
pub struct Side {
    /// What it was built from.
    pub name: String,
    /// Its slipwayd; a path of this machine is nobody else's.
    #[serde(skip)]
    pub program: PathBuf,
}

/// What to measure, and how.
#[derive(Debug)]
pub struct Options {
    /// Rounds.
    pub rounds: usize,
    /// Length of a window in milliseconds.
    pub window_ms: u64,
    /// What.
    pub scenarios: Vec<Scenario>,
    /// What is compared with, and what is compared.
    pub sides: [Side; 2],
}

/// What all rounds gave.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// One item for each scenario.
    pub rows: Vec<Row>,
    /// Nanoseconds that a cache line took from core to core and back, once per round.
    pub core_round_trip_ns: Vec<f64>,
    /// What went wrong, in words.
    pub failures: Vec<String>,
}

/// The samples of one scenario, those of base and those of head, by round.
#[derive(Debug, Clone)]
pub struct Row {
    /// What was measured.
    pub scenario: Scenario,
    /// What each round gave.
    pub samples: [Vec<Sample>; 2],
}

/// What may be said of a figure of head beside base's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Head is better
    Faster,
    /// Head is worse
    Slower,
    /// Chance explains it
    NoDifferenceShown,
    /// The generator was the limit where it must not have been
    GeneratorBound,
}

impl Verdict {
    /// For tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Faster => "faster",
            Self::Slower => "SLOWER",
            Self::NoDifferenceShown => "no difference shown",
            Self::GeneratorBound => "generator-bound",
        }
    }
}

/// A figure of both.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// Which.
    pub figure: Figure,
    /// Of base.
    pub base: Rounds,
    /// Of head.
    pub head: Rounds,
    /// Head's over base's, round by round.
    pub ratio: Rounds,
    /// How likely a difference this large is if there is none.
    pub p: f64,
    /// What may be said.
    pub verdict: Verdict,
}

/// Measures both.
///
/// # Errors
/// The machine does not have what it takes, or someone wants us to end. What fails of a single
/// scenario is part of the outcome.
pub fn run(options: &Options) -> Result<Outcome> {
    for side in &options.sides {
        let program = side.program.display();
        ensure!(side.program.exists(), "There is no {program}; build it first");
    }
    let (generator, core) = cores()?;
    pin(generator)?;
    let belongings = Belongings::take(HUGE_PAGES)?;
    let row = |scenario: &Scenario| Row { scenario: scenario.clone(), samples: Default::default() };
    let mut rows: Vec<_> = options.scenarios.iter().map(row).collect();
    let distance = Distance::learn(core, PATIENCE_MS);
    let (mut failures, mut core_round_trips_ns) = (Vec::new(), Vec::new());
    let groups = rows.chunk_by(|a, b| a.scenario.setup == b.scenario.setup).count();
    let mut progress = Progress::new(options.rounds * groups * options.sides.len());
    for round in 0..options.rounds {
        core_round_trips_ns.push(core_round_trip_ns(core));
        for group in rows.chunk_by_mut(|a, b| a.scenario.setup == b.scenario.setup) {
            for side in order(round) {
                let setup = group[0].scenario.setup;
                let (label, Side { name, program }) = (LABELS[side], &options.sides[side]);
                progress.step(round, label, &setup);
                // Once it failed the samples of the two would no longer be of the same rounds.
                if group[0].samples.iter().any(|samples| samples.len() < round) {
                    continue;
                }
                let dir = belongings.dir().join(format!("{label}-{}", progress.done()));
                fs::create_dir(&dir)
                    .with_context(|| format!("Failed to make {}", dir.display()))?;
                let programs = Programs { slipwayd: program.clone(), testpmd: None };
                let place = Place { dir, generator, core, is_exclusive: false, programs };
                let window_ms = options.window_ms;
                let distance = Some(distance);
                let conditions = Conditions { window_ms, warm_up_ms: WARM_UP_MS, core, distance };
                let windows = Windows::new(conditions, generator, MOST_STEAL_PERCENT);
                let mut session = Session { kind: PeerKind::Slipwayd, setup, place, windows };
                let scenarios: Vec<_> = group.iter().map(|row| &row.scenario).collect();
                let outcome = session.run(&scenarios, round == 0);
                interrupt::check()?;
                fs::remove_dir_all(&session.place.dir)?;
                match outcome {
                    Ok(samples) => {
                        for (row, sample) in group.iter_mut().zip(samples) {
                            row.samples[side].push(sample);
                        }
                    }
                    Err(error) => {
                        let failure = format!("{label} ({name}) with {setup}: {error:#}");
                        eprintln!("FAILED: {failure}");
                        failures.push(failure);
                    }
                }
            }
        }
    }
    Ok(Outcome { rows, core_round_trip_ns: core_round_trips_ns, failures })
}

/// What the two are called.
pub const LABELS: [&str; 2] = ["base", "head"];

/// Which goes first in a round.
const fn order(round: usize) -> [usize; 2] {
    if round.is_multiple_of(2) { [0, 1] } else { [1, 0] }
}

impl Row {
    /// Every figure of the scenario, the main one first; none if it failed.
    pub fn comparisons(&self) -> Vec<Comparison> {
        let figures = self.scenario.figures().iter();
        figures.filter_map(|&figure| self.comparison(figure)).collect()
    }

    fn comparison(&self, figure: Figure) -> Option<Comparison> {
        let [base, head] = &self.samples;
        if base.len() != head.len() {
            return None;
        }
        // Rounds in which the cores were apart for either say nothing.
        let pairs = base.iter().zip(head).filter(|(base, head)| !base.is_apart && !head.is_apart);
        let of = |sample: &Sample| sample.figures.get(&figure).copied();
        let pairs = pairs.map(|(base, head)| Some((of(base)?, of(head)?)));
        let (base, head): (Vec<_>, Vec<_>) = pairs.collect::<Option<Vec<_>>>()?.into_iter().unzip();
        if base.is_empty() {
            return None;
        }
        let ratios = base.iter().zip(&head).map(|(base, head)| head / base).collect();
        let test = mann_whitney::compare(&base, &head);
        let is_bound = [0, 1].map(|side| {
            figure.is_throughput() && limit::is_generator_bound(self.samples[side].iter())
        });
        Some(Comparison {
            figure,
            base: Rounds::of(base),
            head: Rounds::of(head),
            ratio: Rounds::of(ratios),
            p: test.p,
            verdict: verdict(figure, &test, is_bound),
        })
    }
}

/// A side that was bound by the generator is at least as fast as its samples: if they are the better
/// ones, it is better all the more; if not, they say nothing.
fn verdict(figure: Figure, test: &Test, is_bound: [bool; 2]) -> Verdict {
    let is_faster = test.is_second_greater().map(|greater| greater == figure.is_more_better());
    let shown = if test.p < LEVEL { is_faster } else { None };
    match (shown, is_bound) {
        (Some(true), [false, _]) => Verdict::Faster,
        (Some(false), [_, false]) => Verdict::Slower,
        (_, [true, _] | [_, true]) => Verdict::GeneratorBound,
        (None, _) => Verdict::NoDifferenceShown,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::scenario;

    const BASE: [f64; 5] = [5.0, 5.2, 4.8, 5.1, 4.9];

    /// The two are `factor` apart.
    pub fn row(factor: f64, waited_shares: [f64; 2]) -> Row {
        let sample = |mpps: f64, waited_share| Sample {
            figures: [(Figure::Mpps, mpps), (Figure::CyclesPerFrame, 1000.0 / mpps)].into(),
            waited_share: Some(waited_share),
            length_ms: 300.0,
            ..Sample::default()
        };
        let samples = [1.0, factor].into_iter().zip(waited_shares);
        let samples = samples
            .map(|(factor, share)| BASE.iter().map(|mpps| sample(mpps * factor, share)).collect());
        let samples: Vec<_> = samples.collect();
        Row { scenario: scenario::all().remove(0), samples: samples.try_into().unwrap() }
    }

    fn verdicts(row: &Row) -> [Verdict; 2] {
        let comparisons = row.comparisons();
        [comparisons[0].verdict, comparisons[1].verdict]
    }

    #[test]
    fn each_goes_first_in_every_other_round() {
        assert_eq!([0, 1, 2, 3].map(|round| order(round)[0]), [0, 1, 0, 1]);
    }

    #[test]
    fn samples_that_do_not_overlap_differ_and_less_cycles_are_faster() {
        assert_eq!(verdicts(&row(1.2, [1.0; 2])), [Verdict::Faster; 2]);
        assert_eq!(verdicts(&row(0.8, [1.0; 2])), [Verdict::Slower; 2]);
        let comparison = &row(1.2, [1.0; 2]).comparisons()[0];
        assert_eq!(format!("{:.1}", comparison.ratio), "1.2 (1.2-1.2)");
        assert!((comparison.p - 2.0 / 252.0).abs() < 1e-12);
    }

    #[test]
    fn a_ratio_within_the_spread_shows_no_difference() {
        let comparison = &row(1.02, [1.0; 2]).comparisons()[0];
        assert!(comparison.ratio.median > 1.01);
        assert_eq!(comparison.verdict, Verdict::NoDifferenceShown);
    }

    #[test]
    fn what_the_generator_bounds_is_at_least_what_it_measured() {
        use Verdict::{Faster, GeneratorBound, Slower};
        let of = |factor, shares| verdicts(&row(factor, shares))[0];
        assert_eq!(of(1.2, [1.0, 0.01]), Faster);
        assert_eq!(of(1.2, [0.01, 1.0]), GeneratorBound);
        assert_eq!(of(0.8, [0.01, 1.0]), Slower);
        assert_eq!(of(0.8, [1.0, 0.01]), GeneratorBound);
        assert_eq!(of(1.0, [1.0, 0.01]), GeneratorBound);
        assert_eq!(of(1.2, [0.01, 0.01]), GeneratorBound);
    }

    #[test]
    fn rounds_that_one_of_them_lacks_are_not_compared() {
        let mut row = row(1.2, [1.0; 2]);
        row.samples[1].pop();
        assert!(row.comparisons().is_empty());
    }

    #[test]
    fn with_the_least_rounds_there_is_something_to_show_and_with_fewer_nothing() {
        let p = |rounds: usize| {
            let base: Vec<_> = (0..rounds).map(|n| n as f64).collect();
            let head: Vec<_> = base.iter().map(|sample| sample + 100.0).collect();
            mann_whitney::compare(&base, &head).p
        };
        assert!(p(usize::from(LEAST_ROUNDS)) < LEVEL);
        assert!(p(usize::from(LEAST_ROUNDS) - 1) >= LEVEL);
    }
}
