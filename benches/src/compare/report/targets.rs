//! What is aimed at, each as a figure of one run.

use crate::compare::arms::ArmKind::{self, CniBridge, Kata, Netns, Slipway};
use crate::compare::count::{Count, without_namespaces};
use crate::compare::flows::experiment::Experiment;
use crate::compare::flows::microvms;
use crate::compare::flows::pods::{READY, VM};
use crate::compare::samples::Samples;
use crate::compare::summary::Figure;

/// Pods of a full node: the number for which ratios are aimed at.
pub const FULL_NODE: usize = 400;

/// What a network may add to the start of a pod.
const WITH_NETWORK: f64 = 1.05;

/// Whether a target was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It was.
    Met,
    /// It was not.
    Missed,
    /// Nothing can be said.
    Unknown,
    /// Nothing can be said of the switch: what loads it was the limit.
    GeneratorBound,
}

impl Verdict {
    /// For tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "MISSED",
            Self::Unknown => "unknown",
            Self::GeneratorBound => "generator-bound",
        }
    }

    /// It was, or it was not.
    pub const fn of(is_met: bool) -> Self {
        if is_met { Self::Met } else { Self::Missed }
    }
}

/// A target and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// In words.
    pub name: String,
    /// What is required.
    pub goal: String,
    /// What was measured, or why not.
    pub finding: String,
    /// Whether that will do.
    pub verdict: Verdict,
}

/// All of them; none of what the run was not asked for.
pub fn all(samples: &Samples) -> Vec<Target> {
    let mut targets =
        if samples.parameters.pods.is_empty() { Vec::new() } else { startup(samples) };
    targets.extend(microvms::targets(samples));
    targets.extend(pods(samples));
    targets
}

/// Whole pods: what a network adds to their start, where most of them start at once.
fn pods(samples: &Samples) -> Vec<Target> {
    let is_vm = |experiment: &&&Experiment| experiment.id == VM;
    let experiments = samples.experiments();
    let Some(experiment) = experiments.iter().find(is_vm) else { return Vec::new() };
    let Some(x) = samples.points_of(experiment).pop() else { return Vec::new() };
    let ratio = samples.flow_ratio(VM, (Slipway, x), (Netns, x), READY);
    let ours = samples.measurements.iter().filter(|m| m.experiment == VM && m.arm == Slipway);
    let failures: usize = ours.map(|m| m.failures.len()).sum();
    let (finding, verdict) = match ratio {
        Some(ratio) => (ratio.text(3), Verdict::of(ratio.median <= WITH_NETWORK)),
        None => ("not measured".to_owned(), Verdict::Unknown),
    };
    vec![
        Target {
            name: format!("{x} microVM pods ready, with a network over without"),
            goal: format!("<= {WITH_NETWORK}"),
            finding,
            verdict,
        },
        Target {
            name: "failures of slipway's pods".to_owned(),
            goal: "0".to_owned(),
            finding: failures.to_string(),
            verdict: Verdict::of(failures == 0),
        },
    ]
}

fn startup(samples: &Samples) -> Vec<Target> {
    let failures = samples.failures_of(Slipway);
    vec![
        none(samples, "rtnetlink messages of slipway for a pod", |count| {
            Some(count.messages.as_ref()?.values().sum())
        }),
        none(samples, "RTNL acquisitions of slipway for a pod, its namespace left out", |count| {
            count.acquisitions.as_ref().map(without_namespaces)
        }),
        ratio(samples, CniBridge, 0.15),
        ratio(samples, Kata, 0.5),
        Target {
            name: "failures of slipway".to_owned(),
            goal: "0".to_owned(),
            finding: failures.to_string(),
            verdict: Verdict::of(failures == 0),
        },
    ]
}

fn none(samples: &Samples, name: &str, of: impl Fn(&Count) -> Option<u64>) -> Target {
    let count = samples.count(Slipway).and_then(|count| Some((of(count)?, count.pods)));
    let (finding, verdict) = match count {
        Some((sum, pods)) => (
            format!("{:.2} ({sum} for {pods} pods)", sum as f64 / pods as f64),
            Verdict::of(sum == 0),
        ),
        None => ("not counted".to_owned(), Verdict::Unknown),
    };
    Target { name: name.to_owned(), goal: "0".to_owned(), finding, verdict }
}

fn ratio(samples: &Samples, under: ArmKind, goal: f64) -> Target {
    let ratio = samples.ratio(Slipway, under, FULL_NODE, Figure::Ready);
    let (finding, verdict) = match ratio {
        Some(ratio) => (ratio.text(3), Verdict::of(ratio.median <= goal)),
        None => (format!("not measured with {FULL_NODE} pods"), Verdict::Unknown),
    };
    Target {
        name: format!("{FULL_NODE} pods ready, slipway over {}", under.name()),
        goal: format!("<= {goal}"),
        finding,
        verdict,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::report::tests::samples;

    fn verdicts(samples: &Samples) -> Vec<Verdict> {
        all(samples).iter().map(|target| target.verdict).collect()
    }

    #[test]
    fn ratios_are_judged_at_a_full_node_and_one_failure_is_too_many() {
        use Verdict::{Met, Missed, Unknown};
        assert_eq!(verdicts(&samples(100)), [Met; 5]);
        assert_eq!(verdicts(&samples(180)), [Met, Met, Missed, Met, Met]);
        assert_eq!(verdicts(&samples(300)), [Met, Met, Missed, Missed, Met]);
        let mut samples = samples(100);
        samples.bursts.retain(|sample| sample.burst.pods == 50 && sample.arm != CniBridge);
        samples.bursts[0].burst.failures.push("refused".to_owned());
        assert_eq!(verdicts(&samples), [Met, Met, Unknown, Unknown, Missed]);
    }

    #[test]
    fn what_was_not_counted_is_unknown_and_never_zero() {
        let mut samples = samples(100);
        samples.counts[0].messages = None;
        assert_eq!(verdicts(&samples)[..2], [Verdict::Unknown, Verdict::Met]);
        samples.counts[0].messages = Some([("slipwayd".to_owned(), 1)].into());
        assert_eq!(verdicts(&samples)[0], Verdict::Missed);
        samples.counts.clear();
        assert_eq!(verdicts(&samples)[..2], [Verdict::Unknown; 2]);
    }
}
