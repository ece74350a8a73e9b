//! Two comparisons held against each other: which figures differ by more than chance.

use crate::ab::LEVEL;
use crate::compare::samples::Samples;
use crate::compare::summary::Figure;
use crate::mann_whitney;
use crate::report::table::markdown;
use crate::stats::Rounds;

/// A row for each figure that both have of an arm with as many pods.
pub fn table(first: &Samples, second: &Samples) -> String {
    let head = ["arm", "at", "figure", "first", "second", "second over first", "p", "second is"];
    let mut rows = vec![head.map(String::from).to_vec()];
    for &pods in &first.parameters.pods {
        for arm in first.arms() {
            for figure in Figure::ALL {
                let values = [first, second].map(|samples| samples.values(arm, pods, figure));
                let [a, b] = &values;
                if a.is_empty() || b.is_empty() {
                    continue;
                }
                let name = format!("{}, {}", figure.name(), figure.unit());
                let head = vec![arm.name().to_owned(), pods.to_string(), name];
                rows.push(row(head, a, b, figure.digits()));
            }
        }
    }
    rows.extend(flows(first, second));
    format!(
        "first:  {}\nsecond: {}\n\n{}\nMedians of the rounds. p: how often chance alone shows a \
         difference this large (Mann-Whitney U, exact, two-sided); below {LEVEL} there is one.\n\
         With fewer than 5 rounds on each side no difference can be shown. Of many rows some fall \
         below it by chance.\n",
        first.machine,
        second.machine,
        markdown(&rows)
    )
}

/// The data plane's: at each point that both have.
fn flows(first: &Samples, second: &Samples) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for experiment in first.experiments() {
        for arm in first.flow_arms(experiment.id) {
            for x in first.points_of(experiment) {
                for quantity in experiment.table {
                    let values = [first, second]
                        .map(|samples| samples.flow_values(experiment.id, arm, x, quantity.key));
                    let [a, b] = &values;
                    if a.is_empty() || b.is_empty() {
                        continue;
                    }
                    let name = format!("{}: {}", experiment.id, quantity.head());
                    let head = vec![arm.name().to_owned(), x.to_owned(), name];
                    rows.push(row(head, a, b, quantity.digits));
                }
            }
        }
    }
    rows
}

fn row(mut row: Vec<String>, a: &[f64], b: &[f64], digits: usize) -> Vec<String> {
    let test = mann_whitney::compare(a, b);
    let [a, b] = [a, b].map(|values| Rounds::of(values.to_vec()).median);
    let word = match test.is_second_greater() {
        Some(true) if test.p < LEVEL => "more",
        Some(false) if test.p < LEVEL => "less",
        _ => "no different",
    };
    row.extend([
        format!("{a:.digits$}"),
        format!("{b:.digits$}"),
        // Memory may have shrunk, and a stage may take no time.
        if a > 0.0 { format!("{:.3}", b / a) } else { "-".to_owned() },
        format!("{:.4}", test.p),
        word.to_owned(),
    ]);
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::report::tests::{samples, with_flows};

    #[test]
    fn what_differs_by_more_than_chance_says_which_way() {
        let many = |us| {
            // The same again with other numbers of the round: six of each.
            let mut samples = samples(us);
            samples.bursts.extend(samples.bursts.clone());
            samples
        };
        let table = table(&many(100), &many(300));
        let row = |start: &str| table.lines().find(|line| line.starts_with(start)).unwrap();
        let ready = row("| slipway    | 400 | all ready, s ");
        assert!(ready.contains("more") && ready.contains("2.923"), "{ready}");
        let kata = row("| kata       | 400 | all ready, s ");
        assert!(kata.contains("no different") && kata.contains("1.000"), "{kata}");
        assert!(!table.contains("ipvlan"), "{table}");
    }

    #[test]
    fn the_data_planes_figures_are_held_against_each_other_too() {
        let many = |rate| {
            let mut samples = with_flows(rate);
            samples.bursts.clear();
            samples.measurements.extend(samples.measurements.clone());
            samples
        };
        let table = table(&many(30.0), &many(60.0));
        let row = |start: &str| table.lines().find(|line| line.starts_with(start)).unwrap();
        assert!(
            row("| slipway | 50 | throughput: throughput, Gbit/s ").contains("more"),
            "{table}"
        );
        assert!(row("| veth    | 50 | throughput: throughput, Gbit/s ").contains("no different"));
        assert!(!table.contains("1000"), "{table}");
    }
}
