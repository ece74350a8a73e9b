//! All of a run as JSON: every sample of every round, and what it was measured on.

use serde_json::{Value, json};

use super::targets;
use crate::machine::Machine;
use crate::peer::PeerKind;
use crate::results::Results;
use crate::runner::Options;
use crate::syscalls::SystemCalls;

/// The run as a document.
pub fn document(
    options: &Options,
    machine: &Machine,
    results: &Results,
    calls: Option<&SystemCalls>,
) -> Value {
    let rows: Vec<_> = results
        .scenarios
        .iter()
        .map(|scenario| {
            let cells: serde_json::Map<_, _> = results
                .peers
                .iter()
                .map(|&peer| (peer.name().to_owned(), cell(results, scenario.name, peer)))
                .collect();
            json!({ "scenario": scenario, "switches": cells })
        })
        .collect();
    let targets: Vec<_> = targets::ALL
        .iter()
        .map(|target| {
            let finding = target.finding(results);
            json!({
                "name": target.name,
                "demand": target.demand(),
                "finding": finding,
                "beside": target.beside(results),
                "verdict": target.verdict(&finding),
            })
        })
        .collect();
    json!({
        "machine": machine,
        "rounds": options.rounds,
        "window_ms": options.window_ms,
        "warm_up_ms": options.warm_up_ms,
        "most_steal_percent": options.most_steal_percent,
        "patience_ms": options.patience_ms,
        "usual_core_round_trip_ns": results.usual_ns,
        "turns": results.turns,
        "steal": results.steal,
        "failures_of_others": results.failures_of_others,
        "scenarios": rows,
        "targets": targets,
        "system_calls": calls,
    })
}

/// The samples stand here even where tables say 'generator-bound': with why.
fn cell(results: &Results, name: &'static str, peer: PeerKind) -> Value {
    let key = (name, peer);
    let scenario = results.scenarios.iter().find(|scenario| scenario.name == name);
    let figures = scenario.map_or([].as_slice(), |scenario| scenario.figures());
    let figures: Vec<_> = figures
        .iter()
        .map(|&figure| {
            let samples: Vec<_> = results.samples(key, figure).into_values().collect();
            json!({
                "figure": figure,
                "samples": samples,
                "finding": results.figure(key, figure),
                "slipwayd_over_it": results.ratio((name, PeerKind::Slipwayd), key, figure),
            })
        })
        .collect();
    let windows = results.windows(key);
    let windows: Vec<_> = windows
        .map(|sample| {
            json!({ "core_round_trips_ns": sample.distances_ns, "apart": sample.is_apart })
        })
        .collect();
    json!({
        "figures": figures,
        "windows": windows,
        "generator_waited_share": results.waited_share(key),
        "generator_bound": results.is_generator_bound(key),
        "disturbed": results.disturbed(key),
    })
}
