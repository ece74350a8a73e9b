//! Tables of the data plane, one for each experiment: a row for each arm and place.

use super::table::Rows;
use crate::compare::arms::ArmKind;
use crate::compare::flows::experiment::{Endpoints, Experiment};
use crate::compare::samples::Samples;
use crate::report::table::markdown;

/// The rows, the head first.
pub fn rows(samples: &Samples, experiment: &Experiment) -> Rows {
    let mut head = vec!["arm".to_owned(), experiment.axis.to_owned()];
    head.extend(experiment.table.iter().map(|quantity| quantity.head()));
    head.extend(["failures", "discarded"].map(String::from));
    let mut rows = vec![head];
    let width = rows[0].len();
    // What an arm has not stands in the first column of figures.
    let without = |arm: ArmKind, x: &str, reason: &str| {
        let mut row = vec![arm.name().to_owned(), x.to_owned(), reason.to_owned()];
        row.resize(width, "-".to_owned());
        row
    };
    let measured = samples.flow_arms(experiment.id);
    let lacks: Vec<_> = samples.lacks.iter().filter(|l| l.experiment == experiment.id).collect();
    for arm in samples.parameters.arms.iter().copied() {
        if !measured.contains(&arm) {
            // The same for all of its places.
            let lack = lacks.iter().find(|lack| lack.arm == arm);
            rows.extend(lack.map(|lack| without(arm, "-", &lack.reason)));
            continue;
        }
        for x in samples.points_of(experiment) {
            if let Some(reason) = samples.lack(experiment.id, arm, x) {
                rows.push(without(arm, x, reason));
                continue;
            }
            let mut row = vec![arm.name().to_owned(), x.to_owned()];
            for quantity in experiment.table {
                let estimate = samples.flow_estimate(experiment.id, arm, x, quantity.key);
                row.push(estimate.map_or_else(|| "-".to_owned(), |e| e.text(quantity.digits)));
            }
            let all = samples.measurements.iter();
            let here = all.filter(|m| m.arm == arm && m.experiment == experiment.id && m.x == x);
            let (failures, discarded) = here.fold((0, 0), |(failures, discarded), m| {
                let lost = m.repeated + usize::from(m.discarded.is_some());
                (failures + m.failures.len(), discarded + lost)
            });
            row.extend([failures.to_string(), discarded.to_string()]);
            rows.push(row);
        }
    }
    rows
}

/// Arms without a row, and why.
pub fn absences(samples: &Samples, endpoints: Endpoints) -> String {
    let absent = samples.absences.iter().filter(|absence| absence.endpoints == endpoints);
    let absent = absent.map(|absence| format!("{}: {}", absence.arm.name(), absence.reason));
    absent.collect::<Vec<_>>().join("; ")
}

/// Kinds of endpoints that there are figures of.
pub fn kinds(samples: &Samples) -> Vec<Endpoints> {
    let experiments = samples.experiments();
    let has = |kind: &Endpoints| experiments.iter().any(|experiment| experiment.endpoints == *kind);
    [Endpoints::Container, Endpoints::Microvm, Endpoints::Qemu, Endpoints::Pod]
        .into_iter()
        .filter(has)
        .collect()
}

/// All of it, for a terminal.
pub fn all(samples: &Samples) -> String {
    let mut text = String::new();
    for kind in kinds(samples) {
        for experiment in samples.experiments() {
            if experiment.endpoints == kind {
                let table = markdown(&rows(samples, experiment));
                text += &format!("{} ({})\n\n{table}\n", experiment.title, kind.words());
            }
        }
        let absences = absences(samples, kind);
        if !absences.is_empty() {
            text += &format!("Not among them: {absences}\n\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::flows::experiment;
    use crate::compare::flows::measurement::Lack;
    use crate::compare::report::tests::{samples, with_flows};

    #[test]
    fn a_row_has_the_medians_of_what_counts_and_the_number_of_what_does_not() {
        let samples = with_flows(30.0);
        let throughput = experiment::all().find(|e| e.id == "throughput").unwrap();
        let rows = rows(&samples, throughput);
        assert_eq!(rows.len(), 1 + 2 * 2);
        assert!(rows.iter().all(|row| row.len() == throughput.table.len() + 4));
        assert_eq!(rows[1][..4], ["slipway", "10", "31.00 (30.00-32.00)", "-"]);
        // One window repeated, and one that did not count in the end.
        assert_eq!(rows[1].last().unwrap(), "3");
        assert_eq!(rows[2].last().unwrap(), "1");
    }

    #[test]
    fn what_an_arm_has_not_is_a_row_with_the_reason() {
        let mut samples = with_flows(30.0);
        let lack = |arm, x: &str, reason: &str| Lack {
            experiment: "throughput".to_owned(),
            arm,
            x: x.to_owned(),
            reason: reason.to_owned(),
        };
        samples.measurements.retain(|m| m.arm != ArmKind::Slipway || m.x == "10");
        samples.lacks = vec![
            lack(ArmKind::Slipway, "50", "not yet"),
            lack(ArmKind::Kata, "10", "no way"),
            lack(ArmKind::Kata, "50", "no way"),
        ];
        let throughput = experiment::all().find(|e| e.id == "throughput").unwrap();
        let rows = rows(&samples, throughput);
        let of = |arm: &str| rows.iter().filter(|row| row[0] == arm).collect::<Vec<_>>();
        assert_eq!(of("slipway")[1][1..4], ["50", "not yet", "-"]);
        assert_eq!(of("kata").len(), 1, "the same for all points");
        assert_eq!(of("kata")[0][1..3], ["-", "no way"]);
        assert!(rows.iter().all(|row| row.len() == rows[0].len()));
    }

    #[test]
    fn an_arm_without_a_row_says_why_and_a_run_without_flows_says_nothing() {
        let text = all(&with_flows(30.0));
        assert!(text.contains("Not among them: ipvlan: not on this kernel: ipvlan"), "{text}");
        assert!(text.contains("| veth    | 50    | 21.00 (20.00-22.00) |"), "{text}");
        assert_eq!(all(&samples(100)), "");
    }
}
