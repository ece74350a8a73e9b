//! `cargo xtask figures --pods` as a user runs it: all figures are there and may be true, and nothing is
//! left, however it ends.

use std::ffi::OsStr;
use std::fs;

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;
use whole::Ended;
use xtask::rig::slipway_programs;

mod whole;

/// Of a pod's guest, in KiB, as the rig sets pods up.
const GUEST_SIZE: f64 = 262_144.0;

/// Measures two pods; the results go to `out`.
async fn figures(out: &TempDir, signal: Option<(&str, Signal)>) -> Ended {
    // Not within the time of the measurement.
    slipway_programs().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["figures", "--pods", "2", "--accel", "tcg", "--out"].map(OsStr::new));
    whole::run(command.arg(out.path()), signal).await
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("{key} is no number: {value}"))
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().unwrap_or_else(|| panic!("{key} is no list: {value}"))
}

/// A start that took time, all of it accounted for by stages of these names.
fn assert_start(start: &Value, names: &[&str]) {
    let stages = list(start, "stages");
    let found: Vec<_> = stages.iter().map(|stage| stage["name"].as_str().unwrap()).collect();
    assert_eq!(found, names);
    let times: Vec<_> = stages.iter().map(|stage| number(stage, "ms")).collect();
    assert!(times.iter().all(|ms| *ms >= 0.0), "{start}");
    let (total, sandbox) = (number(start, "total_ms"), number(start, "sandbox_ms"));
    assert!(0.0 < sandbox && sandbox < total, "{start}");
    let sum: f64 = times.iter().sum();
    // The notes are whole milliseconds of two processes.
    assert!((sum - total).abs() <= 2.0, "the stages come to {sum}: {start}");
}

fn assert_starts(starts: &Value, names: &[&str]) {
    let (alone, at_once) = (list(starts, "one_by_one"), list(starts, "at_once"));
    assert_eq!((alone.len(), at_once.len()), (2, 1), "{starts}");
    let at_once = at_once[0].as_array().unwrap();
    assert_eq!(at_once.len(), 2, "{starts}");
    for start in alone.iter().chain(at_once) {
        assert_start(start, names);
    }
}

fn assert_pod_memory(pod: &Value) {
    let kib = |key| number(pod, key);
    for part in ["shim", "vmm", "vmm_files", "translated", "guest", "files"] {
        // Less than a tenth of a MiB would be no process.
        assert!(kib(part) > 100.0, "{part}: {pod}");
    }
    assert_eq!(kib("guest_size"), GUEST_SIZE);
    assert!(kib("guest") <= GUEST_SIZE, "{pod}");
    // Guest memory that was counted as the VMM's would make it as large.
    assert!(kib("vmm") < GUEST_SIZE, "{pod}");
}

#[tokio::test]
async fn all_figures_of_pods_are_there_and_may_be_true() {
    let out = TempDir::new().unwrap();
    let Ended { status, stdout, stderr } = figures(&out, None).await;
    assert!(status.success(), "{stdout}{stderr}");

    let text = fs::read_to_string(out.path().join("figures.json")).unwrap();
    let figures: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(figures["machine"]["accel"], "tcg");
    let boots = list(&figures, "agent_ready_ms");
    assert_eq!(boots.len(), 2);
    assert!(boots.iter().all(|ms| ms.as_f64().is_some_and(|ms| ms > 0.0)), "{boots:?}");
    let container = ["CreateContainer", "StartContainer"];
    let stages = ["NetNS", "AddCNI", "Cgroup", "AttachIf", "StartVM", "Guest", "PauseContainer"];
    assert_starts(&figures["slipway"], &[&stages[..], &container[..]].concat());
    assert_starts(&figures["runc"], &[&["RunPodSandbox"][..], &container[..]].concat());
    let memory = &figures["memory"];
    assert!(number(memory, "switch_without_pods") > 0.0, "{memory}");
    for (key, pods) in [("alone", 1), ("among", 2)] {
        let nodes = list(memory, key);
        assert_eq!(nodes.len(), 1, "{memory}");
        assert!(number(&nodes[0], "switch") > 0.0, "{memory}");
        assert_eq!(list(&nodes[0], "pods").len(), pods, "{memory}");
        list(&nodes[0], "pods").iter().for_each(assert_pod_memory);
    }

    for line in [
        "Acceleration                        tcg",
        "times of guests are not KVM's",
        "Agent ready after QEMU's start      p50 ",
        "slipway: 2 one after the other",
        "runc, bridge: 2 at once",
        "  StartVM ",
        "  touched by the guest ",
        "overhead.podFixed.memory",
        "cargo xtask demo counts them",
    ] {
        assert!(stdout.contains(line), "'{line}' is missing:\n{stdout}");
    }
    let timeline = fs::read_to_string(out.path().join("figures.svg")).unwrap();
    assert_eq!(timeline.matches("<title>StartVM: ").count(), 2, "{timeline}");
}

#[tokio::test]
async fn an_interrupt_while_pods_start_ends_all_and_writes_nothing() {
    let out = TempDir::new().unwrap();
    let Ended { status, stdout, stderr } =
        figures(&out, Some(("At once: 2 of slipway", Signal::SIGINT))).await;
    assert_eq!(status.code(), Some(130), "{stdout}{stderr}");
    assert!(stderr.contains("Interrupted"), "{stderr}");
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
}
