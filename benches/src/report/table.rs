//! Tables for a terminal and for Markdown alike.

use std::fmt::Write as _;

use super::targets;
use crate::host::Calibration;
use crate::peer::PeerKind;
use crate::results::{Results, Steal};
use crate::scenario::{Figure, Scenario};
use crate::stats::Rounds;
use crate::syscalls::{self, SystemCalls};

/// The figures, the ratios of ours to the others', and the targets.
pub fn all(results: &Results) -> String {
    let are_compared = results.peers.contains(&PeerKind::Slipwayd) && results.peers.len() > 1;
    let mut text = String::new();
    let parts = [
        (false, "Figures: median (least-most) of the rounds", ""),
        (
            true,
            "Cross-check, DPDK guests: frames circle between two ports of one testpmd",
            CROSS_CHECK,
        ),
    ];
    for (is_cross_check, title, notes) in parts {
        let is_in = |scenario: &&Scenario| scenario.is_cross_check() == is_cross_check;
        let scenarios: Vec<_> = results.scenarios.iter().filter(is_in).collect();
        if scenarios.is_empty() {
            continue;
        }
        let _ = write!(text, "{title}\n\n{}\n{notes}", figures(results, &scenarios));
        if are_compared {
            text += "slipwayd over each, round by round (of cycles, latency and CPU less is better)\n\n";
            text += &ratios(results, &scenarios);
            text.push('\n');
        }
    }
    if !results.failures_of_others.is_empty() {
        text += "What other switches failed at: their columns end there\n\n";
        for failure in &results.failures_of_others {
            let _ = writeln!(text, "  {failure}");
        }
        text.push('\n');
    }
    if are_compared {
        let _ = write!(text, "Targets (and what is hoped for)\n\n{}\n", of_targets(results));
    }
    text + &machine(results) + NOTES
}

/// How the machine changed meanwhile, and what it took from us.
fn machine(results: &Results) -> String {
    let Steal { windows, discarded, kept, stolen_ms } = results.steal;
    let mut text = String::from("The machine during the run\n");
    let of = |figure: fn(&Calibration) -> f64| {
        let turns = results.turns.iter().map(|turn| figure(&turn.calibration));
        let turns: Vec<_> = turns.filter(|value| value.is_finite()).collect();
        (!turns.is_empty()).then(|| Rounds::of(turns))
    };
    if let Some(ns) = of(|calibration| calibration.core_round_trip_ns) {
        let _ = writeln!(text, "  a cache line from core to core and back: {ns:.0} ns");
    }
    let loops = [
        ("generator's", of(|calibration| calibration.generator_loop_ticks)),
        ("switch's", of(|calibration| calibration.switch_loop_ticks)),
    ];
    for (whose, ticks) in loops {
        if let Some(ticks) = ticks {
            let _ = writeln!(text, "  a step of a fixed loop, {whose} core: {ticks:.2} ticks");
        }
    }
    let _ = writeln!(
        text,
        "  stolen by the hypervisor: {stolen_ms} ms; of {windows} windows {discarded} were \
         discarded for it and measured anew, {kept} kept all the same"
    );
    if let Some(ns) = results.usual_ns {
        let keys = results
            .scenarios
            .iter()
            .flat_map(|scenario| results.peers.iter().map(|&peer| (scenario.name, peer)));
        let samples = keys.flat_map(|key| results.windows(key));
        let apart = samples.filter(|sample| sample.is_apart).count();
        let _ = writeln!(
            text,
            "  windows were taken where that line took about {ns:.0} ns; {apart} were not, and are \
             stored but not compared"
        );
    }
    let disturbed: u64 = results
        .scenarios
        .iter()
        .flat_map(|scenario| results.peers.iter().map(|&peer| (scenario.name, peer)))
        .map(|key| results.disturbed(key))
        .sum();
    if disturbed > 0 {
        let _ = writeln!(
            text,
            "  single wake-ups dropped as the generator was off its core: {disturbed}"
        );
    }
    text + "\n"
}

const CROSS_CHECK: &str = "\
Mpps: what both of its ports received, by testpmd's own counters and clock. % idle: share of the switch's
polling thread without frames; above 10 the guest's core was the limit, and the rate has a >=.

";

const NOTES: &str = "\
>=: the generator was the limit, and the switch may be faster: by its own count it was idle for more than
a tenth of the time.
by cycles per frame: the other's time on a frame over slipwayd's, looks in vain not counted; more is
better. It stands in place of the ratio of rates where the other was generator-bound, and beside it
where slipwayd was. generator-bound: neither can be told.
cycles/frame: time spent on frames, by each switch's own count; looks in vain are not in it.
wake-ups: first frame of a port after 1 to 5 ms of silence; polled: the frame right after it; extra: p99 of
the first less p50 of the polled; floor: eventfd to a thread asleep in epoll_wait on the same core
and its answer in shared memory, in turns with the frames; beyond: extra less the floor's p99.
";

/// A row for each figure of each scenario, a column for each switch.
pub fn figures(results: &Results, scenarios: &[&Scenario]) -> String {
    let names = results.peers.iter().map(|peer| peer.name().to_owned());
    let mut rows = vec![heads().into_iter().chain(names).collect::<Vec<_>>()];
    for scenario in scenarios {
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
pub fn ratios(results: &Results, scenarios: &[&Scenario]) -> String {
    let others = || results.peers.iter().filter(|&&peer| peer != PeerKind::Slipwayd);
    let names = others().map(|peer| format!("over {}", peer.name()));
    let mut rows = vec![heads().into_iter().chain(names).collect::<Vec<_>>()];
    for scenario in scenarios {
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
        let mut measured = format!("{finding:.2}");
        if let Some(beside) = target.beside(results) {
            let _ = write!(measured, "; {beside}");
        }
        rows.push(vec![target.name.to_owned(), target.demand(), measured, verdict]);
    }
    markdown(&rows)
}

fn heads() -> [String; 2] {
    ["scenario", "figure"].map(String::from)
}

/// Rows as a table, the first one as its head.
pub(crate) fn markdown(rows: &[Vec<String>]) -> String {
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
        let scenarios: Vec<_> = results.scenarios.iter().collect();
        let table = figures(&results, &scenarios);
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
        let results = results(1.0, 1.0);
        let table = ratios(&results, &results.scenarios.iter().collect::<Vec<_>>());
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
    fn what_another_switch_failed_at_is_told() {
        let mut results = results(1.0, 1.0);
        assert!(!all(&results).contains("failed at"));
        results.failures_of_others.push("ovs with 400 ports: nothing arrives".to_owned());
        assert!(all(&results).contains("columns end there\n\n  ovs with 400 ports: nothing"));
    }

    #[test]
    fn targets_tell_what_was_met() {
        let table = of_targets(&results(1.0, 1.0));
        let row = table.lines().find(|line| line.contains("64 B over OVS")).unwrap();
        assert!(row.contains("3.00 (2.50-4.00)") && row.contains(" met "), "{row}");
    }
}
