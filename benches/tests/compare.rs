//! The comparison of start-up from end to end, too small to mean anything: every arm that this machine has.
//!
//! It needs root, and the programs that are compared with: `cargo xtask test` sees to that.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;
use std::{env, fs};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const PODS: usize = 3;
/// Ours, and what every kernel that runs the tests has.
const ALWAYS: [&str; 8] =
    ["slipway", "netns", "veth", "kata", "macvlan", "macvtap", "cni-bridge", "cni-macvlan"];

/// An empty /run, its folder, pods' namespaces, and tracefs.
const OUR_MOUNTS: [&str; 4] = ["run /run ", " /run/compare", " /run/netns/pod", "tracefs "];

/// One test at a time: each looks at the whole machine.
fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A comparison with the programs that `SLIPWAYD` and `SLIPWAY_PROGRAMS` name, or those beside it.
fn compare(out: &Path) -> Command {
    let bench = Path::new(env!("CARGO_BIN_EXE_bench-compare"));
    let programs = env::var_os("SLIPWAY_PROGRAMS").map(PathBuf::from);
    let cni = programs.unwrap_or_else(|| bench.parent().unwrap().into()).join("slipway-cni");
    let slipwayd = env::var_os("SLIPWAYD").map(PathBuf::from);
    let slipwayd = slipwayd.unwrap_or_else(|| bench.with_file_name("slipwayd"));
    for program in [&cni, &slipwayd] {
        assert!(program.exists(), "there is no {}; build it first", program.display());
    }
    let mut command = Command::new(bench);
    command.arg("--slipwayd").arg(slipwayd).arg("--slipway-cni").arg(cni).arg("--out").arg(out);
    command
}

/// What a comparison could leave on a machine: others have theirs, which come and go.
#[derive(Debug, PartialEq, Eq)]
struct Machine {
    devices: BTreeSet<String>,
    mounts: BTreeSet<String>,
    hugepages: String,
    /// Programs whose files are on the host of a comparison.
    processes: BTreeSet<String>,
}

impl Machine {
    fn now() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap();
        let devices = read("/proc/net/dev");
        let devices = devices.lines().skip(2).filter_map(|line| line.split_once(':'));
        let mounts = read("/proc/self/mounts");
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
        let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
        Self {
            devices: devices
                .map(|(name, _)| name.trim().to_owned())
                .filter(|name| name.starts_with("cmp") || name == "cni0")
                .collect(),
            mounts: mounts
                .lines()
                .filter(|line| OUR_MOUNTS.iter().any(|ours| line.contains(ours)))
                .map(str::to_owned)
                .collect(),
            hugepages: read("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"),
            processes: lines.filter(|line| line.contains("/run/compare/")).collect(),
        }
    }

    /// The same again, soon: the kernel takes a few things back in its own time.
    fn comes_back(&self) {
        for _ in 0..100 {
            if Self::now() == *self {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(Self::now(), *self);
    }
}

#[test]
fn every_arm_sets_its_pods_up_and_nothing_is_left() {
    let _alone = alone();
    let (out, temporary) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let before = Machine::now();
    let output = compare(out.path())
        .args(["--figures", "startup", "--rounds", "1", "--pods", &PODS.to_string()])
        .env("TMPDIR", temporary.path())
        .output()
        .unwrap();
    let (printed, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{printed}\n{errors}");
    before.comes_back();
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0);

    let folder = fs::read_dir(out.path()).unwrap().next().unwrap().unwrap().path();
    let file = folder.join("samples.json");
    let samples: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    let absent: Vec<_> =
        samples["absent"].as_array().unwrap().iter().map(|arm| arm[0].as_str().unwrap()).collect();
    assert!(ALWAYS.iter().all(|arm| !absent.contains(arm)), "{}", samples["absent"]);
    let bursts = samples["bursts"].as_array().unwrap();
    let arms = samples["parameters"]["arms"].as_array().unwrap();
    assert_eq!(bursts.len() + absent.len(), arms.len());
    let mut ready = 0;
    for sample in bursts {
        let (arm, burst) = (&sample["arm"], &sample["burst"]);
        let [times, failures] =
            ["times", "failures"].map(|key| burst[key].as_array().unwrap().len());
        // What Open vSwitch fails at on a busy machine is a finding, and not ours.
        let may_fail = arm.as_str().unwrap().starts_with("ovs");
        assert!(times + failures >= PODS, "{arm}: {burst}");
        assert!(failures == 0 || may_fail, "{arm}: {burst}");
        ready += times;
        assert!(burst["ready_s"].as_f64().unwrap() > 0.0, "{arm}: {burst}");
        assert!(printed.contains(&format!("| {} ", arm.as_str().unwrap())), "{printed}");
    }
    counts_are_plausible(&samples);
    files_are_whole(&folder, ready);

    // Drawn anew the report is the same.
    let again = tempfile::tempdir().unwrap();
    let replay = Command::new(env!("CARGO_BIN_EXE_bench-compare"))
        .arg("--replay")
        .arg(&file)
        .arg("--out")
        .arg(again.path())
        .output()
        .unwrap();
    assert!(replay.status.success(), "{replay:?}");
    let page = |folder: &Path| fs::read_to_string(folder.join("report.html")).unwrap();
    assert_eq!(page(again.path()), page(&folder));
    let diff = Command::new(env!("CARGO_BIN_EXE_bench-compare"))
        .arg("--diff")
        .args([&file, &file])
        .output()
        .unwrap();
    assert!(diff.status.success(), "{diff:?}");
    let table = String::from_utf8_lossy(&diff.stdout).into_owned();
    let rows = table.lines().filter(|line| line.starts_with("| slipway ")).count();
    assert_eq!(rows, 10, "{table}");
}

/// Where this kernel lets us count: slipway asks nothing of the kernel, and a device takes messages.
fn counts_are_plausible(samples: &Value) {
    let sum = |arm: &str, what: &str| {
        let counts = samples["counts"].as_array().unwrap();
        let count = counts.iter().find(|count| count["arm"] == arm)?;
        let by = count[what].as_object()?;
        let of = |name: &str| name != "NetNS";
        Some(by.iter().filter(|(name, _)| of(name)).map(|(_, n)| n.as_u64().unwrap()).sum::<u64>())
    };
    let pods = PODS as u64;
    for (what, least_of_veth) in [("messages", 5 * pods), ("acquisitions", 5 * pods)] {
        let method = samples["methods"][what].as_str().unwrap();
        let is_counted = !method.starts_with("not counted");
        assert_eq!(sum("slipway", what), is_counted.then_some(0), "{what}: {method}");
        assert_eq!(sum("netns", what), is_counted.then_some(0), "{what}: {method}");
        if is_counted {
            assert!(sum("veth", what).unwrap() >= least_of_veth, "{what}: {}", samples["counts"]);
            assert!(sum("kata", what) > sum("veth", what), "{what}: {}", samples["counts"]);
        }
    }
}

fn files_are_whole(folder: &Path, pods: usize) {
    let csv = fs::read_to_string(folder.join("samples.csv")).unwrap();
    assert_eq!(csv.lines().filter(|line| line.contains(",NetNS,us,")).count(), pods);
    let page = fs::read_to_string(folder.join("report.html")).unwrap();
    assert!(page.ends_with("</body></html>\n") && page.contains("<h2>Method</h2>"));
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let pictures: Vec<_> = names.filter(|p| p.extension().is_some_and(|e| e == "svg")).collect();
    assert!(pictures.len() >= 7, "{pictures:?}");
    for picture in pictures {
        let svg = fs::read_to_string(&picture).unwrap();
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{}", picture.display());
        assert!(page.contains(&svg), "{}", picture.display());
    }
}

#[test]
fn containers_of_every_arm_exchange_traffic_and_nothing_is_left() {
    let _alone = alone();
    let out = tempfile::tempdir().unwrap();
    let before = Machine::now();
    let figures = "throughput,completion,round-trips,messages-udp,inter-node";
    let output = compare(out.path())
        .args(["--figures", figures, "--quick", "--rounds", "1", "--pairs", "10"])
        .output()
        .unwrap();
    let (printed, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{printed}\n{errors}");
    before.comes_back();

    let folder = fs::read_dir(out.path()).unwrap().next().unwrap().unwrap().path();
    let text = fs::read_to_string(folder.join("samples.json")).unwrap();
    let samples: Value = serde_json::from_str(&text).unwrap();
    let list = |key: &str| samples[key].as_array().unwrap().clone();
    let absent: Vec<_> = list("absences")
        .iter()
        .map(|absence| absence["arm"].as_str().unwrap().to_owned())
        .collect();
    for arm in ["slipway", "veth", "macvlan"] {
        assert!(!absent.iter().any(|absent| absent == arm), "{arm}: {}", samples["absences"]);
    }
    assert!(list("bursts").is_empty());
    for measurement in list("measurements") {
        let (arm, failures) = (&measurement["arm"], measurement["failures"].as_array().unwrap());
        // On a busy machine a stream of the others may get nothing, and that is a finding.
        assert!(arm != "slipway" || failures.is_empty(), "{measurement}");
        let value = |key: &str| measurement["values"][key].as_f64();
        let figure = match measurement["experiment"].as_str().unwrap() {
            "completion" => value("p99_ms"),
            "round-trips" => value("p50_us"),
            // All of them may be lost: one fragment of 45 is enough.
            "messages-udp" => value("gbit_per_s").map(|rate| rate + 1.0),
            _ => value("gbit_per_s"),
        };
        assert!(figure.is_some_and(|figure| figure > 0.0) || !failures.is_empty(), "{measurement}");
        if arm == "slipway" && measurement["experiment"] == "throughput" {
            assert!(value("pmd_busy").is_some_and(|busy| busy > 0.0), "{measurement}");
            let clients = measurement["distributions"]["per_client_gbit_per_s"].as_array();
            assert_eq!(clients.unwrap().len().to_string(), measurement["x"], "{measurement}");
        }
    }
    let of_slipway = |m: &&Value| m["arm"] == "slipway";
    assert_eq!(list("measurements").iter().filter(of_slipway).count(), 2 + 1 + 1 + 3 + 1);
    // The bridge's pods reach those of a second node; ours do not yet.
    let is_on_two = |m: &&Value| m["experiment"] == "inter-node" && m["x"] == "two nodes";
    let measurements = list("measurements");
    let on_two: Vec<_> = measurements.iter().filter(is_on_two).collect();
    assert!(on_two.iter().any(|m| m["arm"] == "veth" && m["failures"] == Value::Array(vec![])));
    assert!(list("lacks").iter().any(|lack| lack["arm"] == "slipway" && is_on_two(&lack)));
    assert!(printed.contains("not yet"), "{printed}");
    assert!(printed.contains("reproduced here?"), "{printed}");
    let page = fs::read_to_string(folder.join("report.html")).unwrap();
    assert!(page.contains("Total throughput of TCP") && page.contains("container endpoints"));
    for name in ["throughput-gbit-per-s.svg", "completion-cdf-10.svg", "flows.csv"] {
        assert!(folder.join(name).exists(), "{name}");
    }
}

/// Starts a comparison and returns when its rounds run, with a daemon at work.
fn start_one(out: &Path) -> Child {
    let mut child = compare(out)
        .args(["--figures", "startup", "--arms", "slipway,kata", "--pods", "20", "--rounds", "500"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap());
    let mut lines = lines.lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("round 2: slipway")), "it ended early");
    // It may write on.
    thread::spawn(move || lines.for_each(drop));
    child
}

#[test]
fn an_interrupt_and_a_crash_leave_nothing() {
    let _alone = alone();
    let out = tempfile::tempdir().unwrap();
    let before = Machine::now();
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let mut child = start_one(out.path());
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        let status = child.wait().unwrap();
        match signal {
            Signal::SIGINT => assert_eq!(status.code(), Some(130), "{status}"),
            _ => assert_eq!(status.signal(), Some(9), "{status}"),
        }
        before.comes_back();
        assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0, "results of half a run");
    }
}
