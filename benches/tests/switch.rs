//! The comparison from end to end with its real peers, in windows too short to mean anything.
//!
//! It needs root for hugepages, and the peers: `cargo xtask test` sees to both.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// The slipwayd that `SLIPWAYD` names, or the one beside the program under test.
fn slipwayd(bench: &Path) -> PathBuf {
    let program = env::var_os("SLIPWAYD").map(PathBuf::from);
    let program = program.unwrap_or_else(|| bench.with_file_name("slipwayd"));
    assert!(
        program.exists(),
        "there is no {}; run: cargo build -p dataplane --bin slipwayd",
        program.display()
    );
    program
}

/// Command lines of processes that name `folder`.
fn processes_of(folder: &Path) -> Vec<String> {
    let folder = folder.to_string_lossy();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(&*folder)).collect()
}

fn hugepages() -> String {
    fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages").unwrap()
}

#[test]
fn every_row_of_a_comparison_has_its_figures_and_nothing_is_left() {
    let bench = Path::new(env!("CARGO_BIN_EXE_bench-switch"));
    let testpmd = env::var_os("SLIPWAY_TESTPMD").expect("SLIPWAY_TESTPMD; run: cargo xtask test");
    let (temporary, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let before = hugepages();

    let output = Command::new(bench)
        .args(["--quick", "--peers", "slipwayd,ovs,testpmd"])
        .arg("--slipwayd")
        .arg(slipwayd(bench))
        .arg("--testpmd")
        .arg(testpmd)
        .arg("--out")
        .arg(out.path())
        .env("TMPDIR", temporary.path())
        .output()
        .unwrap();
    let (printed, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{printed}\n{errors}");

    let stored: Vec<_> = fs::read_dir(out.path()).unwrap().map(|e| e.unwrap().path()).collect();
    let with = |extension: &str| {
        let path = stored.iter().find(|path| path.extension().is_some_and(|e| e == extension));
        fs::read_to_string(path.unwrap_or_else(|| panic!("no {extension} in {stored:?}"))).unwrap()
    };
    let document: serde_json::Value = serde_json::from_str(&with("json")).unwrap();
    let scenarios = document["scenarios"].as_array().unwrap();
    assert_eq!(scenarios.len(), TWO_PORTS.len());
    for (row, name) in scenarios.iter().zip(TWO_PORTS) {
        assert_eq!(row["scenario"]["name"], *name);
        assert!(printed.contains(&format!("| {name} ")), "{name} in\n{printed}");
        for switch in ["slipwayd", "ovs", "testpmd"] {
            let main = &row["switches"][switch]["figures"][0];
            let samples = main["samples"].as_array().unwrap();
            assert_eq!(samples.len(), 1, "{name} on {switch}: {main}");
            assert!(samples[0].as_f64().unwrap() > 0.0, "{name} on {switch}: {main}");
            let windows = row["switches"][switch]["windows"].as_array().unwrap();
            let distances = windows[0]["core_round_trips_ns"].as_array().unwrap();
            assert_eq!(distances.len(), 2, "{name} on {switch}: {windows:?}");
            // Each by its own count.
            if row["scenario"]["traffic"] != "round-trip" {
                let cycles = &row["switches"][switch]["figures"][1];
                assert_eq!(cycles["figure"], "cycles-per-frame", "{name} on {switch}");
                let cycles = cycles["samples"][0].as_f64();
                assert!(cycles.is_some_and(|cycles| cycles > 0.0), "{name} on {switch}");
            }
        }
    }
    assert!(printed.contains("Cross-check, DPDK guests"), "{printed}");
    let circle = scenarios.iter().filter(|row| row["scenario"]["traffic"] == "circle");
    for row in circle {
        for (switch, unit) in [("slipwayd", "idle-percent"), ("ovs", "idle-percent")] {
            let figures = row["switches"][switch]["figures"].as_array().unwrap();
            let figure = figures.iter().find(|figure| figure["figure"] == unit).unwrap();
            let percent = figure["samples"][0].as_f64().unwrap();
            assert!((0.0..=100.0).contains(&percent), "{switch}: {row}");
        }
    }
    let turns = document["turns"].as_array().unwrap();
    assert!(!turns.is_empty());
    for turn in turns {
        let mut order: Vec<_> =
            turn["order"].as_array().unwrap().iter().map(|who| who.as_str().unwrap()).collect();
        order.sort_unstable();
        assert_eq!(order, ["ovs", "slipwayd", "testpmd"], "{turn}");
        assert!(turn["calibration"]["core_round_trip_ns"].as_f64().unwrap() > 0.0, "{turn}");
    }
    let windows = document["steal"]["windows"].as_u64().unwrap();
    assert_eq!(windows, 3 * scenarios.len() as u64);
    assert!(with("svg").ends_with("</svg>\n"));
    let calls = &document["system_calls"];
    assert!(calls["frames"].as_u64().unwrap() > 0, "{calls}");
    let calls = calls["calls"].as_object().unwrap();
    assert_eq!(calls.keys().collect::<Vec<_>>(), ["epoll_wait"]);

    assert_eq!(processes_of(temporary.path()), Vec::<String>::new());
    assert_eq!(hugepages(), before);
    let left: Vec<_> = fs::read_dir(temporary.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

const TWO_PORTS: &[&str] = &[
    "64",
    "256",
    "1518",
    "64-flows",
    "64-both",
    "1518-both",
    "rtt",
    "1518-cold",
    "64-packed",
    "1518-packed",
    "tso",
    "dpdk-64",
    "dpdk-1518",
    "dpdk-64-packed",
    "dpdk-1518-packed",
];
