//! Two slipwayds beside each other, for people and as JSON.

use serde_json::{Value, json};

use super::table::markdown;
use crate::ab::{LABELS, LEVEL, Options, Outcome, Row};
use crate::machine::Machine;

/// A row for each figure of each scenario.
pub fn table(outcome: &Outcome) -> String {
    let head = ["scenario", "figure", LABELS[0], LABELS[1], "head over base", "p", "head is"];
    let mut rows = vec![head.map(String::from).to_vec()];
    for row in &outcome.rows {
        let name = row.scenario.name.to_owned();
        let comparisons = row.comparisons();
        if comparisons.is_empty() {
            let nothing = std::iter::repeat_n(String::new(), head.len() - 2);
            rows.push([name].into_iter().chain(nothing).chain(["failed".to_owned()]).collect());
            continue;
        }
        for comparison in comparisons {
            rows.push(vec![
                name.clone(),
                comparison.figure.unit().to_owned(),
                format!("{:.2}", comparison.base),
                format!("{:.2}", comparison.head),
                format!("{:.3}", comparison.ratio),
                format!("{:.4}", comparison.p),
                comparison.verdict.name().to_owned(),
            ]);
        }
    }
    format!(
        "Median (least-most) of the rounds; the ratio round by round\n\n{}\n\
         p: how often chance alone shows a difference this large (Mann-Whitney U, exact, two-sided);\n\
         below {LEVEL} there is one. Of cycles, latency and CPU less is faster.\n\
         generator-bound: the generator hardly ever waited for the switch, so it was the limit.\n",
        markdown(&rows)
    )
}

/// The run as a document.
pub fn document(options: &Options, machine: &Machine, outcome: &Outcome) -> Value {
    let [base, head] = &options.sides;
    json!({
        "machine": machine,
        "base": base,
        "head": head,
        "rounds": options.rounds,
        "window_ms": options.window_ms,
        "core_round_trip_ns": outcome.core_round_trip_ns,
        "level": LEVEL,
        "scenarios": outcome.rows.iter().map(scenario).collect::<Vec<_>>(),
    })
}

fn scenario(row: &Row) -> Value {
    let shares = |side: usize| {
        row.samples[side].iter().map(|sample| sample.waited_share).collect::<Vec<_>>()
    };
    json!({
        "scenario": row.scenario,
        "figures": row.comparisons(),
        "generator_waited_share": { LABELS[0]: shares(0), LABELS[1]: shares(1) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ab::tests::row;

    #[test]
    fn a_figure_has_its_medians_its_ratio_and_what_the_test_says() {
        let mut failed = row(1.0, [1.0; 2]);
        failed.samples[0].clear();
        let rows = vec![row(1.2, [1.0; 2]), failed];
        let outcome = Outcome { rows, core_round_trip_ns: vec![], failures: vec![] };
        let table = table(&outcome);
        let cells = |line: &str| line.split('|').map(|cell| cell.trim().to_owned()).collect();
        let rows: Vec<Vec<String>> =
            table.lines().filter(|line| line.starts_with("| 64 ")).map(cells).collect();
        assert_eq!(rows[0][1..4], ["64", "Mpps", "5.00 (4.80-5.20)"]);
        assert_eq!(rows[0][4..8], ["6.00 (5.76-6.24)", "1.200 (1.200-1.200)", "0.0079", "faster"]);
        assert_eq!(rows[1][2], "cycles/frame");
        assert_eq!((rows.len(), rows[2][7].as_str()), (3, "failed"));
    }
}
