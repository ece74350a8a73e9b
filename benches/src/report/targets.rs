//! What is aimed at, each as a figure of one run.

use crate::peer::PeerKind::{self, Ideal, Ovs, Slipwayd, Testpmd};
use crate::results::{Finding, Results};
use crate::scenario::Figure::{
    self, CpuPercent, ExtraP99Us, FloorP50Us, FloorP99Us, Gbps, Mpps, P50Us,
};

/// What a target is about.
#[derive(Debug, Clone, Copy)]
enum Value {
    /// A figure of ours, over another one.
    Ratio(Figure, &'static str, &'static str, PeerKind),
    /// A figure of ours.
    Own(Figure, &'static str),
    /// What the first frame of a sleeping port takes longer than one that is polled for.
    WakeUp(&'static str),
}

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Better {
    More,
    Less,
}

/// A target.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// In words.
    pub name: &'static str,
    value: Value,
    better: Better,
    /// What is required.
    pub goal: f64,
    /// What is hoped for.
    pub stretch: f64,
    /// Of both.
    pub unit: &'static str,
}

/// Whether a target was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Even what was hoped for
    Stretch,
    /// What was required
    Met,
    /// It was not
    Missed,
    /// Nothing can be said
    Unknown,
}

impl Verdict {
    /// For tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stretch => "met, stretch",
            Self::Met => "met",
            Self::Missed => "MISSED",
            Self::Unknown => "unknown",
        }
    }
}

const fn ratio(
    name: &'static str,
    value: (Figure, &'static str, &'static str, PeerKind),
    goal: f64,
    stretch: f64,
) -> Target {
    let value = Value::Ratio(value.0, value.1, value.2, value.3);
    Target { name, value, better: Better::More, goal, stretch, unit: "x" }
}

/// All of them.
pub const ALL: &[Target] = &[
    ratio("64 B over OVS", (Mpps, "64", "64", Ovs), 2.5, 3.5),
    ratio("64 B over testpmd", (Mpps, "64", "64", Testpmd), 1.4, 1.8),
    ratio("64 B over the ideal loop", (Mpps, "64", "64", Ideal), 0.85, 1.0),
    ratio("1518 B over OVS, buffers hot", (Mpps, "1518", "1518", Ovs), 2.0, 2.5),
    ratio("1518 B over OVS, buffers cold", (Mpps, "1518-cold", "1518-cold", Ovs), 1.4, 1.8),
    ratio("64 KiB TSO over OVS", (Gbps, "tso", "tso", Ovs), 1.5, 2.5),
    ratio("64 B packed over own split", (Mpps, "64-packed", "64", Slipwayd), 0.8, 1.0),
    ratio("64 B at 400 ports over own at 2", (Mpps, "64-ports400", "64", Slipwayd), 0.95, 1.0),
    ratio("64 B at 400 ports over OVS", (Mpps, "64-ports400", "64-ports400", Ovs), 20.0, 35.0),
    ratio("1 to 8 over own 1 to 1", (Mpps, "64-fan8", "64", Slipwayd), 0.7, 0.9),
    ratio("10,000 flows over own 1 flow", (Mpps, "64-flows", "64", Slipwayd), 0.85, 0.95),
    Target {
        better: Better::Less,
        ..ratio(
            "round trip at 400 ports over OVS at 2",
            (P50Us, "rtt-ports400", "rtt", Ovs),
            1.0,
            0.7,
        )
    },
    Target {
        name: "CPU of an idle switch, 400 ports",
        value: Value::Own(CpuPercent, "idle-ports400"),
        better: Better::Less,
        goal: 2.0,
        stretch: 0.5,
        unit: "%",
    },
    Target {
        name: "first frame of a sleeping port, extra p99",
        value: Value::WakeUp("wake-ports400"),
        better: Better::Less,
        goal: 100.0,
        stretch: 30.0,
        unit: "us",
    },
    Target {
        name: "the same while another port is busy",
        value: Value::WakeUp("wake-busy-ports400"),
        better: Better::Less,
        goal: 100.0,
        stretch: 30.0,
        unit: "us",
    },
];

impl Target {
    /// What was measured of it.
    pub fn finding(&self, results: &Results) -> Finding {
        match self.value {
            Value::Ratio(figure, of, to, peer) => results.ratio((of, Slipwayd), (to, peer), figure),
            Value::Own(figure, of) => results.figure((of, Slipwayd), figure),
            Value::WakeUp(of) => results.figure((of, Slipwayd), ExtraP99Us),
        }
    }

    /// What is to be read with it: how much of a wake-up's latency any thread would have had on this
    /// machine.
    pub fn beside(&self, results: &Results) -> Option<String> {
        let Value::WakeUp(of) = self.value else { return None };
        let figure = |figure| results.figure((of, Slipwayd), figure);
        let floors = (figure(FloorP50Us), figure(FloorP99Us));
        let (median, most) = (floors.0.rounds()?.median, floors.1.rounds()?.median);
        Some(format!("kernel's own wake-up here: p50 {median:.1}, p99 {most:.1} us"))
    }

    /// Whether `finding` meets it.
    pub fn verdict(&self, finding: &Finding) -> Verdict {
        let Some(rate) = finding.rounds() else { return Verdict::Unknown };
        let (rounds, is_all) = match finding {
            // What it does in less time it would do more often if it were given more to do.
            Finding::AtLeast { rate, by_cycles: Some(rounds) } if rounds.median > rate.median => {
                (rounds, true)
            }
            Finding::AtLeast { by_cycles, .. } => (rate, by_cycles.is_some()),
            _ => (rate, true),
        };
        let reaches = |goal| match self.better {
            Better::More => rounds.median >= goal,
            Better::Less => rounds.median <= goal,
        };
        match is_all {
            _ if reaches(self.stretch) => Verdict::Stretch,
            _ if reaches(self.goal) => Verdict::Met,
            true => Verdict::Missed,
            // It is at least this: a faster generator might show it to be met.
            false => Verdict::Unknown,
        }
    }

    /// What is required, e.g. `>= 2.5 x`.
    pub fn demand(&self) -> String {
        let sign = if self.better == Better::More { ">=" } else { "<=" };
        format!("{sign} {} {} ({})", self.goal, self.unit, self.stretch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Sample;
    use crate::results::tests::results;
    use crate::scenario;
    use crate::stats::Rounds;

    #[test]
    fn every_target_names_scenarios_that_there_are() {
        let names: Vec<_> = scenario::all().iter().map(|scenario| scenario.name).collect();
        for target in ALL {
            let (of, to) = match target.value {
                Value::Ratio(_, of, to, _) => (of, to),
                Value::Own(_, of) => (of, of),
                Value::WakeUp(of) => (of, of),
            };
            assert!(names.contains(&of) && names.contains(&to), "{}", target.name);
        }
    }

    #[test]
    fn a_median_on_the_right_side_meets_a_target() {
        let (target, finding) = (ALL[0], ALL[0].finding(&results(1.0, 1.0)));
        assert_eq!(target.verdict(&finding), Verdict::Met);
        assert_eq!(Target { goal: 3.1, ..target }.verdict(&finding), Verdict::Missed);
        assert_eq!(Target { stretch: 3.0, ..target }.verdict(&finding), Verdict::Stretch);
        let less = Target { better: Better::Less, goal: 3.1, stretch: 2.0, ..target };
        assert_eq!(less.verdict(&finding), Verdict::Met);
    }

    #[test]
    fn the_wake_up_has_the_machines_own_beside_it() {
        let of = |name| ALL.iter().find(|target| target.name == name).unwrap();
        let (target, busy) = (
            of("first frame of a sleeping port, extra p99"),
            of("the same while another port is busy"),
        );
        let mut results = results(1.0, 1.0);
        let figures = [(ExtraP99Us, 60.0), (FloorP50Us, 30.0), (FloorP99Us, 45.0)].into();
        let sample = Sample { figures, ..Sample::default() };
        results.enter(("wake-ports400", Slipwayd), 0, sample);
        assert_eq!(target.verdict(&target.finding(&results)), Verdict::Met);
        let beside = "kernel's own wake-up here: p50 30.0, p99 45.0 us";
        assert_eq!(target.beside(&results).as_deref(), Some(beside));
        assert_eq!(busy.beside(&results), None);
    }

    #[test]
    fn where_the_generator_bounds_the_rate_the_time_per_frame_decides() {
        let rounds = |value| Rounds::of(vec![value]);
        let of =
            |cycles: f64| Finding::AtLeast { rate: rounds(1.4), by_cycles: Some(rounds(cycles)) };
        assert_eq!(ALL[0].verdict(&of(2.6)), Verdict::Met);
        assert_eq!(ALL[0].verdict(&of(2.2)), Verdict::Missed);
        let rate_alone = Finding::AtLeast { rate: rounds(1.4), by_cycles: None };
        assert_eq!(ALL[0].verdict(&rate_alone), Verdict::Unknown);
    }

    #[test]
    fn what_the_generator_bounds_may_meet_a_target_and_never_misses_it() {
        let finding = ALL[0].finding(&results(0.01, 1.0));
        assert_eq!(ALL[0].verdict(&finding), Verdict::Met);
        assert_eq!(Target { goal: 3.1, ..ALL[0] }.verdict(&finding), Verdict::Unknown);
        let missing = ALL[1].finding(&results(1.0, 1.0));
        assert_eq!(ALL[1].verdict(&missing), Verdict::Unknown);
    }
}
