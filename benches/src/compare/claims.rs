//! What the literature says of these ways, and whether it is so here.
//!
//! A study of container networks on one node (1 to 50 pairs; bridge, macvlan, OVS) and one of the start-up
//! of secure containers say what follows. Each claim is a line: what the samples of the kernel's arms show,
//! and what they show of slipway. What was not measured is unknown.

use super::arms::ArmKind;
use super::flows::experiment::Endpoints;
use super::samples::Samples;
use super::summary::{Estimate, Figure};

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
    let experiments = samples.experiments();
    let has = |kind| experiments.iter().any(|experiment| experiment.endpoints == kind);
    let groups = [
        (has(Endpoints::Container), DATA_PLANE),
        (!samples.counts.is_empty() || !samples.bursts.is_empty(), START_UP),
        (has(Endpoints::Pod), PODS),
    ];
    let lines = groups.iter().filter(|(is_there, _)| *is_there).flat_map(|(_, lines)| *lines);
    lines.map(|line| line.judge(samples)).collect()
}

/// RTNL acquisitions for a pod, all stages together.
fn acquisitions(samples: &Samples, arm: ArmKind) -> Option<Estimate> {
    let count = samples.count(arm)?;
    let sum: u64 = count.acquisitions.as_ref()?.values().sum();
    Estimate::of(&[sum as f64 / count.pods as f64], samples.parameters.seed)
}

/// Turns of RTNL, as the study counted them with 400 pods on 64 cores.
const START_UP: &[Line] = &[
    turns("A pod takes RTNL about 50 times for veth", ArmKind::Veth, |n| n >= 40.0),
    turns("41 times for ipvlan", ArmKind::Ipvlan, |n| n >= 33.0),
    turns("47 times for tc-routing", ArmKind::TcRouting, |n| n >= 38.0),
    turns("15 times for ipvtap", ArmKind::Ipvtap, |n| n >= 12.0),
    turns("2 times without a network", ArmKind::Netns, |n| n <= 3.0),
    Line {
        text: "Networks are what the start of many pods waits for: twice a namespace alone and more",
        name: "all ready over netns",
        figure: |samples, arm| {
            let most = samples.parameters.pods.iter().copied().max()?;
            (arm != ArmKind::Netns)
                .then(|| samples.ratio(arm, ArmKind::Netns, most, Figure::Ready))?
        },
        only: None,
        holds: |ratio| ratio >= 2.0,
    },
];

/// Of whole pods.
const PODS: &[Line] = &[Line {
    text: "To start with a network takes twice as long as without",
    name: "all ready with over without, most pods at once",
    figure: |samples, arm| {
        let of = |id| {
            let experiments = samples.experiments();
            let experiment = *experiments.iter().find(|experiment| experiment.id == id)?;
            let x = samples.points_of(experiment).pop()?;
            samples.flow_ratio(id, (arm, x), (ArmKind::Netns, x), "ready_s")
        };
        (arm != ArmKind::Netns).then(|| of("pods-vm").or_else(|| of("pods-runc")))?
    },
    only: None,
    holds: |ratio| ratio >= 1.8,
}];

/// A count of one of the kernel's ways, with slipway's beside it.
const fn turns(text: &'static str, of: ArmKind, holds: fn(f64) -> bool) -> Line {
    Line { text, name: "RTNL for a pod", figure: acquisitions, only: Some(of), holds }
}

/// How a claim is judged: a figure of each arm, and from where to where it may be.
struct Line {
    text: &'static str,
    /// What the figure is.
    name: &'static str,
    figure: fn(&Samples, ArmKind) -> Option<Estimate>,
    /// Whom it is of, if of one arm alone.
    only: Option<ArmKind>,
    /// Medians in here show it.
    holds: fn(f64) -> bool,
}

const DATA_PLANE: &[Line] = &[
    Line {
        text: "Clients of 50 pairs are served unevenly, the fastest up to 3 times the slowest",
        name: "max/min",
        figure: |samples, arm| samples.flow_estimate("throughput", arm, "50", "max_over_min"),
        only: None,
        holds: |ratio| ratio >= 2.0,
    },
    Line {
        text: "The p99 of completion of 5 MB grows by 31 to 40 % from 10 to 50 pairs",
        name: "p99 at 50 over 10 pairs",
        figure: |samples, arm| samples.flow_ratio("completion", (arm, "50"), (arm, "10"), "p99_ms"),
        // Where the cores are shared by all pairs it grows as these do: that is more than the claim.
        only: None,
        holds: |ratio| (1.31..=1.40).contains(&ratio),
    },
    Line {
        text: "Elephants double the completion of mice",
        name: "mice's p99 with over without",
        figure: |samples, arm| {
            samples.flow_ratio("mice", (arm, "elephants"), (arm, "nothing"), "p99_ms")
        },
        only: None,
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
        only: None,
        holds: |ratio| ratio >= 1.2,
    },
    Line {
        text: "Throughput grows with the size of messages",
        name: "TCP with the largest over 64 B",
        figure: |samples, arm| {
            let ends = ((arm, "65507"), (arm, "64"));
            samples.flow_ratio("messages-tcp", ends.0, ends.1, "gbit_per_s")
        },
        only: None,
        holds: |ratio| ratio >= 2.0,
    },
    Line {
        text: "Between nodes throughput is within 10 % of that on one node",
        name: "two nodes over one",
        figure: |samples, arm| {
            let ends = ((arm, "two nodes"), (arm, "one node"));
            samples.flow_ratio("inter-node", ends.0, ends.1, "gbit_per_s")
        },
        only: None,
        holds: |ratio| (0.9..=1.1).contains(&ratio),
    },
    Line {
        text: "Between nodes arms differ by 10 % at most",
        name: "throughput over that of the bridge",
        figure: |samples, arm| {
            let ends = ((arm, "two nodes"), (ArmKind::Veth, "two nodes"));
            // It does not differ from itself.
            (arm != ArmKind::Veth)
                .then(|| samples.flow_ratio("inter-node", ends.0, ends.1, "gbit_per_s"))?
        },
        only: None,
        holds: |ratio| (0.9..=1.1).contains(&ratio),
    },
];

impl Line {
    fn judge(&self, samples: &Samples) -> Claim {
        let figure = |arm: &ArmKind| Some((*arm, (self.figure)(samples, *arm)?));
        let is_of = |arm: &&ArmKind| {
            **arm == ArmKind::Slipway || self.only.is_none_or(|only| only == **arm)
        };
        let arms = samples.parameters.arms.iter().filter(is_of);
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
    use crate::compare::flows::measurement::Measurement;
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
    fn claims_of_start_up_are_judged_by_what_was_counted_and_by_the_largest_burst() {
        let samples = samples(100);
        let claims = all(&samples);
        let of = |part: &str| claims.iter().find(|claim| claim.text.contains(part)).unwrap();
        // 4 and more times that of a namespace alone, and slipway 100 us in place of 20.
        let waits = of("twice a namespace alone");
        assert_eq!(waits.verdict, Verdict::Yes);
        assert!(waits.others.contains("kata ") && !waits.others.contains("netns "), "{waits:?}");
        assert_eq!(of("2 times without").slipway, "2.00 (2.00-2.00)");
        assert_eq!(of("41 times for ipvlan").verdict, Verdict::Unknown);
        assert!(claims.iter().all(|claim| !claim.text.starts_with("Elephants")));
    }

    #[test]
    fn what_goes_between_nodes_is_held_against_one_node_and_against_the_bridge() {
        let mut samples = with_flows(30.0);
        samples.parameters.arms.push(ArmKind::Ovs);
        for (arm, x, rate) in [
            (ArmKind::Slipway, "one node", 9.0),
            (ArmKind::Veth, "one node", 20.0),
            (ArmKind::Veth, "two nodes", 19.0),
            (ArmKind::Ovs, "one node", 2.0),
            (ArmKind::Ovs, "two nodes", 1.0),
        ] {
            samples.measurements.push(Measurement {
                experiment: "inter-node".to_owned(),
                arm,
                x: x.to_owned(),
                values: [("gbit_per_s".to_owned(), rate)].into(),
                ..samples.measurements[0].clone()
            });
        }
        let claims = all(&samples);
        let of = |part: &str| claims.iter().find(|claim| claim.text.contains(part)).unwrap();
        let one = of("of that on one node");
        assert_eq!(one.others, "two nodes over one: veth 0.95, ovs 0.50");
        assert_eq!((one.verdict, one.slipway.as_str()), (Verdict::Yes, "not measured"));
        let bridge = of("arms differ");
        assert_eq!(bridge.others, "throughput over that of the bridge: ovs 0.05");
        assert_eq!(bridge.verdict, Verdict::No);
    }

    #[test]
    fn what_was_not_measured_is_unknown() {
        let claims = all(&with_flows(30.0));
        let mice = claims.iter().find(|claim| claim.text.starts_with("Elephants")).unwrap();
        assert_eq!((mice.verdict, mice.slipway.as_str()), (Verdict::Unknown, "not measured"));
    }
}
