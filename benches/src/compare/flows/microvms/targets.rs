//! What is aimed at with microVM endpoints.
//!
//! A rate says nothing of a switch that was not the limit: it is a lower bound. So what is missed is missed
//! only if our switch was the limit, and what is met in comparison only if the other's was.

use super::figures::{COMPLETION, ELEPHANTS, MICE, MICE_ALONE, ROUND_TRIPS, THROUGHPUT};
use crate::compare::arms::ArmKind::{self, OvsDpdk, Slipway, TapBridge};
use crate::compare::flows::experiment::Endpoints;
use crate::compare::report::targets::{Target, Verdict};
use crate::compare::samples::Samples;
use crate::compare::summary::Estimate;

/// A switch that was busy for less than this share of its time was not the limit; see [`crate::limit`].
const LEAST_BUSY_PERCENT: f64 = 90.0;

/// All of them, if the run has microVM endpoints.
pub fn all(samples: &Samples) -> Vec<Target> {
    if samples.experiments().iter().all(|e| e.endpoints != Endpoints::Microvm) {
        return Vec::new();
    }
    let mut targets = Vec::new();
    for x in ["1", "10", "50"] {
        targets.push(throughput(samples, x, TapBridge, 2.0));
        targets.push(throughput(samples, x, OvsDpdk, 1.3));
    }
    let spread = samples.flow_estimate(THROUGHPUT, Slipway, "50", "max_over_min");
    let is_bound = is_generator_bound(samples, THROUGHPUT, Slipway, "50");
    targets.push(at_most("the fastest guest over the slowest, 50 pairs", spread, 1.2, is_bound));
    targets.push(lowest(samples, "p99 of 5 MB at 50 pairs", COMPLETION, "50", "p99_ms"));
    let ends = ((Slipway, "50"), (Slipway, "10"));
    let growth = samples.flow_ratio(COMPLETION, ends.0, ends.1, "p99_ms");
    let is_bound = is_generator_bound(samples, COMPLETION, Slipway, "50");
    targets.push(at_most("p99 of 5 MB, 50 pairs over 10", growth, 1.3, is_bound));
    let ends = ((Slipway, ELEPHANTS), (Slipway, MICE_ALONE));
    let mice = samples.flow_ratio(MICE, ends.0, ends.1, "p99_ms");
    let is_bound = is_generator_bound(samples, MICE, Slipway, ELEPHANTS);
    targets.push(at_most("mice's p99, among elephants over among mice", mice, 1.2, is_bound));
    for (x, name) in [("2", "p50 of round trips, 2 guests"), ("100", "the same, 98 others")] {
        targets.push(lowest(samples, name, ROUND_TRIPS, x, "p50_us"));
    }
    targets
}

/// Whether most windows of the arm were limited by something else than its switch.
fn is_generator_bound(samples: &Samples, experiment: &str, arm: ArmKind, x: &str) -> bool {
    let busy = samples.flow_estimate(experiment, arm, x, "pmd_busy");
    busy.is_some_and(|busy| busy.median < LEAST_BUSY_PERCENT)
}

fn throughput(samples: &Samples, x: &str, under: ArmKind, goal: f64) -> Target {
    let ratio = samples.flow_ratio(THROUGHPUT, (Slipway, x), (under, x), "gbit_per_s");
    let is_bound = |arm| is_generator_bound(samples, THROUGHPUT, arm, x);
    // Ours would be higher with a faster generator if ours is bound, the other's if that is.
    let bound = |ratio: &Estimate| match ratio.median >= goal {
        true => is_bound(under),
        false => is_bound(Slipway),
    };
    let pairs = if x == "1" { "pair" } else { "pairs" };
    Target {
        name: format!("throughput of {x} {pairs} of guests, slipway over {}", under.name()),
        goal: format!(">= {goal}"),
        finding: finding(samples, (THROUGHPUT, x), under, ratio.as_ref()),
        verdict: match &ratio {
            None => Verdict::Unknown,
            Some(ratio) if bound(ratio) => Verdict::GeneratorBound,
            Some(ratio) => Verdict::of(ratio.median >= goal),
        },
    }
}

/// The ratio, and how busy the two switches were.
fn finding(
    samples: &Samples,
    (experiment, x): (&str, &str),
    other: ArmKind,
    ratio: Option<&Estimate>,
) -> String {
    let Some(ratio) = ratio else { return "not measured".to_owned() };
    let busy = |arm| samples.flow_estimate(experiment, arm, x, "pmd_busy");
    let percent =
        |arm| busy(arm).map_or_else(|| "?".to_owned(), |busy| format!("{:.0}", busy.median));
    format!("{} (busy {} and {} %)", ratio.text(2), percent(Slipway), percent(other))
}

fn at_most(name: &str, found: Option<Estimate>, goal: f64, is_bound: bool) -> Target {
    Target {
        name: format!("slipway: {name}"),
        goal: format!("<= {goal}"),
        finding: found.map_or_else(|| "not measured".to_owned(), |found| found.text(2)),
        verdict: match found {
            None => Verdict::Unknown,
            Some(found) if found.median > goal && is_bound => Verdict::GeneratorBound,
            Some(found) => Verdict::of(found.median <= goal),
        },
    }
}

/// Whether slipway's is below that of every other arm.
fn lowest(samples: &Samples, name: &str, experiment: &str, x: &str, key: &str) -> Target {
    let ratio = |arm| {
        let ratio = samples.flow_ratio(experiment, (Slipway, x), (arm, x), key)?;
        Some((arm, ratio))
    };
    let others = samples.flow_arms(experiment).into_iter().filter(|arm| *arm != Slipway);
    // The one that is closest, or that beats it by most.
    let closest = others.filter_map(ratio).max_by(|a, b| a.1.median.total_cmp(&b.1.median));
    let is_bound = |arm| is_generator_bound(samples, experiment, arm, x);
    let (finding, verdict) = match closest {
        None => ("not measured".to_owned(), Verdict::Unknown),
        Some((arm, ratio)) => {
            let verdict = match ratio.median < 1.0 {
                true if is_bound(arm) => Verdict::GeneratorBound,
                false if is_bound(Slipway) => Verdict::GeneratorBound,
                is_met => Verdict::of(is_met),
            };
            (format!("{} of {}'s", ratio.text(2), arm.name()), verdict)
        }
    };
    Target {
        name: format!("slipway: {name}, lowest of all arms"),
        goal: "< 1".to_owned(),
        finding,
        verdict,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::flows::measurement::Measurement;
    use crate::compare::report::tests::samples;

    fn enter(
        samples: &mut Samples,
        experiment: &str,
        arm: ArmKind,
        x: &str,
        values: &[(&str, f64)],
    ) {
        for round in 0..3 {
            let values = values.iter().map(|(key, value)| ((*key).to_owned(), *value)).collect();
            samples.measurements.push(Measurement {
                experiment: experiment.to_owned(),
                arm,
                x: x.to_owned(),
                round,
                place: 0,
                values,
                distributions: [].into(),
                repeated: 0,
                discarded: None,
                failures: vec![],
            });
        }
    }

    fn of(samples: &Samples, start: &str) -> (Verdict, String) {
        let targets = all(samples);
        let target = targets.iter().find(|target| target.name.starts_with(start)).unwrap();
        (target.verdict, target.finding.clone())
    }

    #[test]
    fn a_ratio_is_judged_only_if_no_generator_could_turn_it() {
        use Verdict::{GeneratorBound, Met, Missed, Unknown};
        let name = "throughput of 1 pair of guests, slipway over ovs-dpdk";
        for (rates, busy, expected) in [
            // Ours could only be higher still.
            ((14.0, 10.0), (50.0, 99.0), Met),
            ((14.0, 10.0), (99.0, 50.0), GeneratorBound),
            ((12.0, 10.0), (50.0, 99.0), GeneratorBound),
            // The other's could only be higher still.
            ((12.0, 10.0), (99.0, 50.0), Missed),
        ] {
            let mut samples = samples(100);
            for (arm, rate, busy) in [(Slipway, rates.0, busy.0), (OvsDpdk, rates.1, busy.1)] {
                let values = [("gbit_per_s", rate), ("pmd_busy", busy)];
                enter(&mut samples, THROUGHPUT, arm, "1", &values);
            }
            let (verdict, finding) = of(&samples, name);
            assert_eq!(verdict, expected, "{finding}");
            assert!(
                finding.contains(&format!("busy {:.0} and {:.0} %", busy.0, busy.1)),
                "{finding}"
            );
            assert_eq!(of(&samples, "throughput of 10").0, Unknown);
        }
    }

    #[test]
    fn lowest_of_all_is_below_the_one_that_is_closest() {
        let mut samples = samples(100);
        samples.parameters.arms = vec![Slipway, TapBridge, OvsDpdk];
        for (arm, us) in [(Slipway, 4.0), (TapBridge, 12.0), (OvsDpdk, 5.0)] {
            enter(&mut samples, ROUND_TRIPS, arm, "2", &[("p50_us", us)]);
        }
        let name = "slipway: p50 of round trips";
        let expected = (Verdict::Met, "0.80 (0.80-0.80) of ovs-dpdk's".to_owned());
        assert_eq!(of(&samples, name), expected);
        enter(&mut samples, ROUND_TRIPS, ArmKind::Macvtap, "2", &[("p50_us", 3.9)]);
        samples.parameters.arms.push(ArmKind::Macvtap);
        assert_eq!(of(&samples, name).0, Verdict::Missed);
        // The other's would be lower with a faster generator.
        for (arm, busy) in [(Slipway, 50.0), (OvsDpdk, 80.0)] {
            let ms = if arm == Slipway { 270.0 } else { 290.0 };
            enter(&mut samples, COMPLETION, arm, "50", &[("p99_ms", ms), ("pmd_busy", busy)]);
        }
        assert_eq!(of(&samples, "slipway: p99 of 5 MB at").0, Verdict::GeneratorBound);
    }

    #[test]
    fn growth_is_taken_round_by_round_and_nothing_is_aimed_at_without_guests() {
        assert!(all(&samples(100)).is_empty());
        let mut samples = samples(100);
        let name = "slipway: p99 of 5 MB, 50 pairs over 10";
        for (busy, verdict) in [(95.0, Verdict::Missed), (60.0, Verdict::GeneratorBound)] {
            samples.measurements.clear();
            for (x, ms) in [("10", 100.0), ("50", 131.0)] {
                let values = [("p99_ms", ms), ("pmd_busy", busy)];
                enter(&mut samples, COMPLETION, Slipway, x, &values);
            }
            assert_eq!(of(&samples, name), (verdict, "1.31 (1.31-1.31)".to_owned()));
        }
    }
}
