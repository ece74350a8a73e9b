//! What the literature says of these ways, and whether it is so here.
//!
//! A study of container networks on one node (1 to 50 pairs; bridge, macvlan, OVS) and one of the start-up
//! of secure containers say what follows. Each claim is a line: what the samples of the kernel's arms show,
//! and what they show of slipway. What was not measured is unknown.

use super::arms::ArmKind;
use super::flows::experiment::Endpoints;
use super::samples::Samples;
use super::summary::Estimate;

/// Whether a claim holds here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// At least one arm shows it.
    Yes,
    /// None does.
    No,
    /// Nothing can be said.
    Unknown,
}

impl Verdict {
    /// For tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::Unknown => "unknown",
        }
    }
}

/// A claim and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// In words.
    pub text: &'static str,
    /// Whether the kernel's arms show it.
    pub verdict: Verdict,
    /// Their figures.
    pub others: String,
    /// Slipway's.
    pub slipway: String,
}

/// All that there are figures for, and those that there could be.
pub fn all(samples: &Samples) -> Vec<Claim> {
    if samples.experiments().iter().all(|e| e.endpoints != Endpoints::Container) {
        return Vec::new();
    }
    DATA_PLANE.iter().map(|line| line.judge(samples)).collect()
}

/// How a claim is judged: a figure of each arm, and from where to where it may be.
struct Line {
    text: &'static str,
    /// What the figure is.
    name: &'static str,
    figure: fn(&Samples, ArmKind) -> Option<Estimate>,
    /// Medians in here show it.
    holds: fn(f64) -> bool,
}

const DATA_PLANE: &[Line] = &[
    Line {
        text: "Clients of 50 pairs are served unevenly, the fastest up to 3 times the slowest",
        name: "max/min",
        figure: |samples, arm| samples.flow_estimate("throughput", arm, "50", "max_over_min"),
        holds: |ratio| ratio >= 2.0,
    },
    Line {
        text: "The p99 of completion of 5 MB grows by 31 to 40 % from 10 to 50 pairs",
        name: "p99 at 50 over 10 pairs",
        figure: |samples, arm| samples.flow_ratio("completion", (arm, "50"), (arm, "10"), "p99_ms"),
        // Where the cores are shared by all pairs it grows as these do: that is more than the claim.
        holds: |ratio| (1.31..=1.40).contains(&ratio),
    },
    Line {
        text: "Elephants double the completion of mice",
        name: "mice's p99 with over without",
        figure: |samples, arm| {
            samples.flow_ratio("mice", (arm, "elephants"), (arm, "nothing"), "p99_ms")
        },
        holds: |ratio| ratio >= 1.8,
    },
    Line {
        text: "Pinning is worth 20 %",
        name: "best pinning over none",
        figure: |samples, arm| {
            let of = |x| samples.flow_ratio("pinning", (arm, x), (arm, "any"), "gbit_per_s");
            let pinned = ["both on the first", "first and last", "both on the last"];
            let best = |a: &Estimate, b: &Estimate| a.median.total_cmp(&b.median);
            pinned.into_iter().filter_map(of).max_by(best)
        },
        holds: |ratio| ratio >= 1.2,
    },
    Line {
        text: "Throughput grows with the size of messages",
        name: "TCP with the largest over 64 B",
        figure: |samples, arm| {
            let ends = ((arm, "65507"), (arm, "64"));
            samples.flow_ratio("messages-tcp", ends.0, ends.1, "gbit_per_s")
        },
        holds: |ratio| ratio >= 2.0,
    },
    Line {
        text: "Between nodes arms differ by 10 % at most",
        name: "throughput over that of the bridge",
        figure: |samples, arm| {
            let ends = ((arm, "1"), (ArmKind::Veth, "1"));
            samples.flow_ratio("inter-node", ends.0, ends.1, "gbit_per_s")
        },
        holds: |ratio| (0.9..=1.1).contains(&ratio),
    },
];

impl Line {
    fn judge(&self, samples: &Samples) -> Claim {
        let figure = |arm: &ArmKind| Some((*arm, (self.figure)(samples, *arm)?));
        let arms = samples.parameters.arms.iter();
        let found: Vec<_> = arms.filter_map(figure).collect();
        let others: Vec<_> = found.iter().filter(|(arm, _)| *arm != ArmKind::Slipway).collect();
        let verdict = match others.as_slice() {
            [] => Verdict::Unknown,
            some if some.iter().any(|(_, e)| (self.holds)(e.median)) => Verdict::Yes,
            _ => Verdict::No,
        };
        let words = |(arm, e): &(ArmKind, Estimate)| format!("{} {:.2}", arm.name(), e.median);
        let others: Vec<_> = others.into_iter().map(words).collect();
        let ours = found.iter().find(|(arm, _)| *arm == ArmKind::Slipway);
        let none = "not measured".to_owned();
        Claim {
            text: self.text,
            verdict,
            others: if others.is_empty() {
                none.clone()
            } else {
                format!("{}: {}", self.name, others.join(", "))
            },
            slipway: ours.map_or(none, |(_, e)| e.text(2)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::report::tests::{samples, with_flows};

    #[test]
    fn a_claim_is_judged_by_the_others_and_slipway_stands_beside_it() {
        let claims = all(&with_flows(30.0));
        let of = |start: &str| claims.iter().find(|claim| claim.text.starts_with(start)).unwrap();
        let uneven = of("Clients of 50");
        assert_eq!((uneven.verdict, uneven.others.as_str()), (Verdict::Yes, "max/min: veth 3.00"));
        assert_eq!(uneven.slipway, "3.00 (3.00-3.00)");
        // It grows by 30 %, just less.
        let grows = of("The p99");
        assert_eq!((grows.verdict, grows.slipway.as_str()), (Verdict::No, "1.30 (1.30-1.30)"));
    }

    #[test]
    fn what_was_not_measured_is_unknown() {
        let claims = all(&with_flows(30.0));
        let mice = claims.iter().find(|claim| claim.text.starts_with("Elephants")).unwrap();
        assert_eq!((mice.verdict, mice.slipway.as_str()), (Verdict::Unknown, "not measured"));
        assert!(all(&samples(100)).is_empty());
    }
}
