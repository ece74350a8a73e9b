//! Tables for a terminal and for Markdown alike.

use std::fmt::Write as _;

use super::targets;
use crate::peer::PeerKind;
use crate::results::Results;
use crate::scenario::Figure;
use crate::syscalls::{self, SystemCalls};

/// The figures, the ratios of ours to the others', and the targets.
pub fn all(results: &Results) -> String {
    let mut text = String::from("Figures: median (least-most) of the rounds\n\n");
    text += &figures(results);
    if results.peers.contains(&PeerKind::Slipwayd) && results.peers.len() > 1 {
        text +=
            "\nslipwayd over each, round by round (of cycles, latency and CPU less is better)\n\n";
        text += &ratios(results);
        text += "\nTargets (and what is hoped for)\n\n";
        text += &of_targets(results);
    }
    text + "\n" + NOTES
}

const NOTES: &str = "\
generator-bound: the sender's ring was hardly ever full, so the generator was the limit.
>=: only slipwayd was generator-bound, so it is this much faster or more.
cycles/frame: slipwayd, ovs and ideal by their own count of time spent on frames; testpmd polls all
the time and counts nothing, so all of the window's ticks over its frames.
";

/// A row for each figure of each scenario, a column for each switch.
pub fn figures(results: &Results) -> String {
    let names = results.peers.iter().map(|peer| peer.name().to_owned());
    let mut rows = vec![heads().into_iter().chain(names).collect::<Vec<_>>()];
    for scenario in &results.scenarios {
        for &figure in scenario.figures() {
            let mut row = vec![scenario.name.to_owned(), figure.unit().to_owned()];
            for &peer in &results.peers {
                let finding = results.figure((scenario.name, peer), figure);
                row.push(format!("{finding:.2}"));
            }
            rows.push(row);
        }
    }
    markdown(&rows)
}

/// A row for each figure of each scenario, a column for each switch besides ours.
pub fn ratios(results: &Results) -> String {
    let others = || results.peers.iter().filter(|&&peer| peer != PeerKind::Slipwayd);
    let names = others().map(|peer| format!("over {}", peer.name()));
    let mut rows = vec![heads().into_iter().chain(names).collect::<Vec<_>>()];
    for scenario in &results.scenarios {
        for &figure in scenario.figures() {
            let mut row = vec![scenario.name.to_owned(), figure.unit().to_owned()];
            for &peer in others() {
                let ours = (scenario.name, PeerKind::Slipwayd);
                row.push(format!("{:.2}", results.ratio(ours, (scenario.name, peer), figure)));
            }
            rows.push(row);
        }
    }
    markdown(&rows)
}

/// What strace counted, and what that is at the rate without it.
pub fn system_calls(calls: &SystemCalls, results: &Results) -> String {
    let mut text = format!("{calls}\n");
    let ours = (syscalls::SCENARIO, PeerKind::Slipwayd);
    if let Some(rounds) = results.figure(ours, Figure::Mpps).rounds() {
        let (mpps, us) = (rounds.median, calls.kick_check_us);
        let most = calls.most_per_million_frames(mpps);
        let _ = writeln!(
            text,
            "One every {us} us are at most {most:.0} per million frames at {mpps:.2} Mpps"
        );
    }
    text
}

/// A row for each target.
pub fn of_targets(results: &Results) -> String {
    let head = ["target", "at least or most", "measured", "verdict"].map(String::from);
    let mut rows = vec![head.to_vec()];
    for target in targets::ALL {
        let finding = target.finding(results);
        let verdict = target.verdict(&finding).name().to_owned();
        rows.push(vec![target.name.to_owned(), target.demand(), format!("{finding:.2}"), verdict]);
    }
    markdown(&rows)
}

fn heads() -> [String; 2] {
    ["scenario", "figure"].map(String::from)
}

/// Rows as a table, the first one as its head.
pub(super) fn markdown(rows: &[Vec<String>]) -> String {
    let columns = rows[0].len();
    let width =
        |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (cell, &width) in row.iter().zip(&widths) {
            let _ = write!(text, "| {cell:<width$} ");
        }
        text += "|\n";
        if index == 0 {
            for width in &widths {
                let _ = write!(text, "|{:-<1$}", "", width + 2);
            }
            text += "|\n";
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::results;

    #[test]
    fn a_table_has_a_row_for_each_figure_and_lines_of_one_width() {
        let results = results(1.0, 1.0);
        let table = figures(&results);
        let rows: usize = results.scenarios.iter().map(|scenario| scenario.figures().len()).sum();
        assert_eq!(table.lines().count(), rows + 2);
        let widths: Vec<_> = table.lines().map(|line| line.chars().count()).collect();
        assert!(widths.windows(2).all(|pair| pair[0] == pair[1]), "{table}");
        let row = table.lines().nth(2).unwrap();
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let right =
            ["", "64", "Mpps", "10.00 (9.00-12.00)", "3.00 (3.00-4.00)", "not installed", ""];
        assert_eq!(cells, right);
    }

    #[test]
    fn ratios_are_to_each_of_the_others() {
        let table = ratios(&results(1.0, 1.0));
        let row = table.lines().nth(2).unwrap();
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        assert_eq!(cells, ["", "64", "Mpps", "3.00 (2.50-4.00)", "not installed", ""]);
    }

    #[test]
    fn system_calls_are_told_at_the_rate_without_strace_too() {
        let calls = [("epoll_wait".to_owned(), 4000)].into();
        let calls = SystemCalls { calls, frames: 1_000_000, traced_us: 100_000, kick_check_us: 25 };
        let text = system_calls(&calls, &results(1.0, 1.0));
        assert!(text.contains("epoll_wait 4000, in 0.10 s"), "{text}");
        assert!(text.contains("at most 4000 per million frames at 10.00 Mpps"), "{text}");
    }

    #[test]
    fn targets_tell_what_was_met() {
        let table = of_targets(&results(1.0, 1.0));
        let row = table.lines().find(|line| line.contains("64 B over OVS")).unwrap();
        assert!(row.contains("3.00 (2.50-4.00)") && row.contains(" met "), "{row}");
    }
}
