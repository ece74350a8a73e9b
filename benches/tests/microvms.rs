//! MicroVM endpoints from end to end, too small to mean anything.
//!
//! It needs root, and the programs that are compared with: `cargo xtask test` sees to that.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use benches::compare::apart::Apart;
use benches::compare::arms::ArmKind;
use benches::compare::guests::attach::Attached;
use benches::compare::guests::fleet::{Load, Pair};
use benches::rig::{Pinned, cores};
use serde_json::Value;
use whole::{assert_nothing_is_left, hugepages, slipwayd};

mod whole;

/// Kept from each other by nothing but turns: both want the last core.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// Ours, and what every kernel that runs the tests has.
const ALWAYS: [ArmKind; 4] =
    [ArmKind::Slipway, ArmKind::TapBridge, ArmKind::Kata, ArmKind::Macvtap];
const BYTES: [u64; 4] = [1, 1460, 300_000, 5_000_000];
const LIMIT_US: u64 = 60_000_000;

fn bench() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_bench-compare"))
}

#[test]
fn guests_exchange_every_byte_as_it_was_sent_whatever_they_are_attached_to() {
    let _alone = ALONE.lock();
    let host = Apart::enter(1).unwrap();
    let _pinned = Pinned::to(cores().unwrap().0).unwrap();
    let before = host.devices().unwrap();
    for arm in ALWAYS {
        assert_eq!(arm.lack().unwrap(), None, "{}", arm.name());
        let pairs = BYTES.len();
        let mut guests = Attached::start(arm, &host, &slipwayd(bench()), pairs, true).unwrap();
        let work = guests.work().unwrap();
        // Each connection is followed by another one of the same guests.
        for turn in 0..2 {
            let fleet = &mut guests.fleet;
            fleet.begin(|n| Load::Bytes(BYTES[(n + turn) % pairs])).unwrap();
            let all_done = fleet.run(LIMIT_US, |fleet| fleet.pairs.iter().all(Pair::is_done));
            let received: Vec<_> = fleet.pairs.iter().map(|pair| pair.received).collect();
            assert!(all_done.unwrap(), "{}: {received:?} of {BYTES:?}", arm.name());
            let sent: Vec<_> = (0..pairs).map(|n| BYTES[(n + turn) % pairs]).collect();
            assert_eq!(received, sent, "{}", arm.name());
        }
        let segments = 2 * BYTES.iter().sum::<u64>() / 1460;
        let frames = guests.work().unwrap().frames - work.frames;
        assert!(frames > segments, "{}: {frames} frames for {segments} segments", arm.name());

        // One pair asks and answers while the others rest.
        let fleet = &mut guests.fleet;
        let received = |fleet: &benches::compare::guests::fleet::Fleet| {
            fleet.pairs.iter().map(|pair| pair.received).collect::<Vec<_>>()
        };
        fleet.begin(|n| if n == 1 { Load::Messages } else { Load::Rest }).unwrap();
        fleet.run(200_000, |_| false).unwrap();
        assert_eq!(received(fleet), [0; 4], "{}", arm.name());
        assert!(!fleet.pairs[1].take_round_trips_us().is_empty(), "{}", arm.name());
        assert!(fleet.pairs[0].take_round_trips_us().is_empty(), "{}", arm.name());
        guests.stop().unwrap();
        assert_eq!(host.devices().unwrap(), before, "{}", arm.name());
    }
}

/// Runs a quick comparison of one round and returns what it stored and printed.
fn compare(arguments: &[&str]) -> (Value, String) {
    let (out, temporary) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let before = hugepages();
    let programs = env::var_os("SLIPWAY_PROGRAMS").map(PathBuf::from);
    let cni = programs.unwrap_or_else(|| bench().parent().unwrap().into()).join("slipway-cni");
    let output = Command::new(bench())
        .arg("--slipwayd")
        .arg(slipwayd(bench()))
        .arg("--slipway-cni")
        .arg(cni)
        .arg("--out")
        .arg(out.path())
        .args(["--quick", "--rounds", "1", "--testpmd"])
        .arg(env::var_os("SLIPWAY_TESTPMD").expect("SLIPWAY_TESTPMD; run: cargo xtask test"))
        .args(arguments)
        .env("TMPDIR", temporary.path())
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}\n{errors}");
    assert_nothing_is_left(temporary.path(), &before);
    let folder = fs::read_dir(out.path()).unwrap().next().unwrap().unwrap().path();
    let page = fs::read_to_string(folder.join("report.html")).unwrap();
    assert!(page.contains("microVM endpoints"));
    let samples = fs::read_to_string(folder.join("samples.json")).unwrap();
    (serde_json::from_str(&samples).unwrap(), printed)
}

fn failures(samples: &Value, arm: &str) -> usize {
    let all = samples["measurements"].as_array().unwrap().iter();
    let of_arm = all.filter(|measurement| measurement["arm"] == arm);
    of_arm.map(|measurement| measurement["failures"].as_array().unwrap().len()).sum()
}

#[test]
fn every_arm_that_is_here_answers_and_every_figure_of_ours_is_told() {
    let _alone = ALONE.lock();
    let (samples, printed) = compare(&["--figures", "vm-round-trips"]);
    let measurements = samples["measurements"].as_array().unwrap();
    let absent = samples["absences"].as_array().unwrap();
    for arm in ["slipway", "tap-bridge", "vhost-net", "kata", "macvtap", "ovs", "ovs-dpdk"] {
        let is_always = ALWAYS.iter().any(|always| always.name() == arm);
        if let Some(absence) = absent.iter().find(|absence| absence["arm"] == arm) {
            assert!(!is_always, "{absence}");
            continue;
        }
        // What Open vSwitch fails at on a busy machine is a finding, and not ours.
        let failed = failures(&samples, arm);
        assert!(failed == 0 || !is_always, "{arm}: {measurements:?}");
        let of_arm = measurements.iter().filter(|measurement| measurement["arm"] == arm);
        let told =
            of_arm.filter(|measurement| measurement["values"]["p50_us"].as_f64() > Some(0.0));
        assert_eq!(told.count() + failed, 2, "{arm}: {measurements:?}");
        assert!(printed.contains(&format!("| {arm} ")), "{printed}");
    }
    assert!(printed.contains("p50 of round trips, 2 guests, lowest of all arms"), "{printed}");

    let (samples, printed) = compare(&["--figures", "microvms", "--arms", "slipway"]);
    assert_eq!(failures(&samples, "slipway"), 0, "{samples}");
    let measurements = samples["measurements"].as_array().unwrap();
    let points: Vec<_> = measurements
        .iter()
        .map(|m| format!("{} {}", m["experiment"].as_str().unwrap(), m["x"].as_str().unwrap()))
        .collect();
    let expected = [
        "vm-throughput 1",
        "vm-round-trips 2",
        "vm-packets 64",
        "vm-throughput 10",
        "vm-completion 10",
        "vm-throughput 50",
        "vm-completion 50",
        "vm-mice mice",
        "vm-mice elephants",
        "vm-round-trips 100",
    ];
    assert_eq!(points, expected);
    let value = |at: usize, key: &str| measurements[at]["values"][key].as_f64().unwrap();
    for (at, clients) in [(0, 1), (3, 10), (5, 50)] {
        let shares = &measurements[at]["distributions"]["per_client_gbit_per_s"];
        let shares: Vec<_> =
            shares.as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect();
        assert_eq!(shares.len(), clients);
        assert!((shares.iter().sum::<f64>() - value(at, "gbit_per_s")).abs() < 1e-6);
        assert!(value(at, "switch_cycles_per_byte") > 0.0);
        assert!((0.0..=100.0).contains(&value(at, "pmd_busy")));
    }
    for (at, flows) in [(4, 10), (6, 50), (7, 40), (8, 40)] {
        let completions = measurements[at]["distributions"]["completion_ms"].as_array().unwrap();
        assert_eq!(completions.len(), flows, "{}", points[at]);
        assert!(value(at, "p50_ms") <= value(at, "p99_ms"));
    }
    assert!(value(2, "mpps") > 0.0 && value(2, "switch_cycles_per_frame") > 0.0);
    assert_eq!(value(2, "lost_percent"), 0.0, "the ring holds all that circle");
    assert!(printed.contains("throughput of 50 pairs of guests"), "{printed}");
}
