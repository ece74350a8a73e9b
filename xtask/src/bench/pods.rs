//! Whole pods for `cargo xtask compare`: started by containerd, with and without a network.
//!
//! ```text
//!  pods-vm     a microVM each     slipway's network, or none (netns)
//!  pods-runc   processes          the stock bridge, macvlan, or none (netns)
//! ```
//! Each way is a [`Node`] of its own: a containerd with its network, on a host of its own, which ends with us. All
//! nodes are there from the begin; in each round they take turns, and each starts all its pods at once. What
//! came of it goes to `bench-compare` as a file of its measurements.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use tokio::runtime;
use vmm_glue::accel::{Accel, AccelChoice};

use super::compare::{asks_for, value};
use crate::deps::{self, Purpose};
use crate::figures::starts::{self, Start};
use crate::progress::Progress;
use crate::rig::{
    Image, Leftovers, Network, NetworkSnapshot, Node, RUNC, Runtime, SLIPWAY, oci_image,
    slipway_programs,
};
use crate::{accel, guest, interrupt};

/// For a step that takes moments on an idle machine.
const SHORT: Duration = Duration::from_secs(120);
/// For all pods of a burst to start and to end.
const BURST: Duration = Duration::from_secs(300);
/// Pods at once, and those of `--quick`.
const PODS: [usize; 3] = [2, 4, 8];
const QUICK_PODS: [usize; 1] = [2];
/// As of `bench-compare`.
const ROUNDS: usize = 5;
const QUICK_ROUNDS: usize = 3;
/// Of a burst's time on all cores, that the hypervisor may take; more than this many milliseconds of it.
const MOST_STOLEN: f64 = 0.02;
const LEAST_STOLEN_MS: f64 = 20.0;
/// How often a burst is made again then.
const REPEATS: usize = 2;
/// Of `/proc/stat`, in milliseconds.
const TICK_MS: f64 = 10.0;
/// `--figures` that this is part of.
const NAMES: [&str; 3] = ["pods", "pods-vm", "pods-runc"];

/// What to measure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Both kinds of pods, or one.
    experiments: Vec<&'static str>,
    /// Only these ways, by the names of the comparison's arms; none: all.
    arms: Vec<String>,
    counts: Vec<usize>,
    rounds: usize,
}

impl Plan {
    /// What the command line of `bench-compare` asks for of this, if anything.
    pub fn of(words: &[String]) -> Option<Self> {
        let is_asked = |name: &str| asks_for(words, &[NAMES[0], name]);
        let experiments: Vec<_> =
            NAMES[1..].iter().copied().filter(|name| is_asked(name)).collect();
        let arms: Vec<_> = value(words, "--arms")
            .into_iter()
            .flat_map(|value| value.split(','))
            .map(String::from)
            .collect();
        let is_there = |(experiment, arm): &(&str, &str)| {
            experiments.contains(experiment) && is_among(&arms, arm)
        };
        let has_ways = WAYS.iter().any(is_there);
        let quick = words.iter().any(|word| word == "--quick");
        let rounds = value(words, "--rounds").and_then(|value| value.parse().ok());
        has_ways.then(|| Self {
            experiments,
            arms,
            counts: if quick { QUICK_PODS.to_vec() } else { PODS.to_vec() },
            rounds: rounds.unwrap_or(if quick { QUICK_ROUNDS } else { ROUNDS }),
        })
    }
}

/// As `bench-compare` reads it.
#[derive(Debug, Default, Serialize)]
struct Measurement {
    experiment: &'static str,
    arm: &'static str,
    x: String,
    round: usize,
    place: usize,
    values: BTreeMap<String, f64>,
    distributions: BTreeMap<String, Vec<f64>>,
    repeated: usize,
    discarded: Option<String>,
    failures: Vec<String>,
}

/// A way, and its node.
struct Way {
    experiment: &'static str,
    arm: &'static str,
    node: Node,
}

/// The ways, by the names of the comparison's experiments and arms.
const WAYS: [(&str, &str); 5] = [
    (NAMES[1], "slipway"),
    (NAMES[1], "netns"),
    (NAMES[2], "netns"),
    (NAMES[2], "cni-bridge"),
    (NAMES[2], "cni-macvlan"),
];

/// Whether an arm is asked for: all are, where none is named.
fn is_among(arms: &[String], arm: &str) -> bool {
    arms.is_empty() || arms.iter().any(|named| named == arm)
}

/// What runs the pods of [`WAYS`], in their order.
fn runtimes(accel: Accel) -> [Runtime; 5] {
    let ours = Runtime { accel, ..SLIPWAY };
    [
        ours,
        Runtime { network: Network::Nobody, ..ours },
        Runtime { network: Network::Nobody, ..RUNC },
        RUNC,
        Runtime { network: Network::Macvlan, ..RUNC },
    ]
}

/// Measures, and writes it to `out`.
///
/// # Errors
/// A node does not start or end, or leaves something behind. What single bursts fail at is part of the file.
pub fn measure(plan: &Plan, out: &Path) -> Result<()> {
    let progress = Progress::new("The comparison of pods");
    let purposes = [Purpose::Vm, Purpose::Share, Purpose::Pods, Purpose::Compare];
    progress.blocking_step("Debian packages", || deps::ensure(&purposes))?;
    progress.blocking_step("slipway's programs", slipway_programs)?;
    let paths = progress.blocking_step("Guest image", || guest::ensure(false))?;
    progress.blocking_step("The pods' image", oci_image::ensure)?;
    let image = Image { kernel: paths.vmlinux.clone(), initrd: paths.initrd.clone() };
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let measured = runtime.context("Failed to start a runtime")?.block_on(async {
        let choose = accel::choose(&image, AccelChoice::default(), &progress);
        let (_, chosen) = progress.step("Acceleration", SHORT, choose).await?;
        on_nodes(plan, chosen.accel, &progress).await
    })?;
    fs::write(out, serde_json::to_string(&measured)?)
        .with_context(|| format!("Failed to write {}", out.display()))
}

/// Starts the nodes, measures, and ends them, whatever became of it.
async fn on_nodes(plan: &Plan, accel: Accel, progress: &Progress) -> Result<Vec<Measurement>> {
    let before = NetworkSnapshot::take();
    let mut nodes = Vec::new();
    let mut started = Ok(());
    for ((experiment, arm), runtime) in WAYS.into_iter().zip(runtimes(accel)) {
        if !plan.experiments.contains(&experiment) || !is_among(&plan.arms, arm) {
            continue;
        }
        let name = format!("A node for {experiment}, {arm}");
        match progress.step(&name, SHORT, Node::start(runtime)).await {
            Ok(node) => nodes.push(Way { experiment, arm, node }),
            Err(error) => {
                started = Err(error);
                break;
            }
        }
    }
    let measured = match started {
        Ok(()) => rounds(plan, &nodes, progress).await,
        Err(error) => Err(error),
    };
    progress.say("The end of the nodes");
    let mut ended = Ok(());
    for Way { arm, node, .. } in nodes {
        let folder = node.folder().to_owned();
        let end = node.end().await.with_context(|| format!("The node of {arm} did not end well"));
        ended = ended.and(end);
        Leftovers::settle(&folder).await;
        let left = Leftovers::of(&folder, &before);
        if !left.is_empty() && ended.is_ok() {
            ended = Err(anyhow::anyhow!("Something is left behind of {arm}: {left}"));
        }
    }
    let measured = measured?;
    ended?;
    Ok(measured)
}

async fn rounds(plan: &Plan, ways: &[Way], progress: &Progress) -> Result<Vec<Measurement>> {
    let mut measured = Vec::new();
    let fewest = *plan.counts.first().context("There is nothing to measure")?;
    for way in ways {
        let name = format!("warm-up: {fewest} pods, {}, {}", way.experiment, way.arm);
        let _ = progress.step(&name, BURST, burst(way, fewest)).await;
        ensure!(!interrupt::is_requested(), interrupt::Interrupted);
        clear(way).await?;
    }
    for round in 0..plan.rounds {
        for &count in &plan.counts {
            for place in 0..ways.len() {
                let way = &ways[(place + round) % ways.len()];
                let mut repeated = 0;
                loop {
                    let of = format!("round {} of {}", round + 1, plan.rounds);
                    let name = format!("{of}: {count} pods, {}, {}", way.experiment, way.arm);
                    let outcome = progress.step(&name, BURST, burst(way, count)).await;
                    ensure!(!interrupt::is_requested(), interrupt::Interrupted);
                    clear(way).await?;
                    let mut measurement = outcome.unwrap_or_else(|error| Measurement {
                        failures: vec![format!("{error:#}")],
                        ..Measurement::default()
                    });
                    if measurement.discarded.is_some() && repeated < REPEATS {
                        repeated += 1;
                        continue;
                    }
                    for failure in &measurement.failures {
                        progress.say(&format!("FAILED: {failure}"));
                    }
                    measurement.experiment = way.experiment;
                    measurement.arm = way.arm;
                    measurement.x = count.to_string();
                    (measurement.round, measurement.place) = (round, place);
                    measurement.repeated = repeated;
                    measured.push(measurement);
                    break;
                }
            }
        }
    }
    Ok(measured)
}

/// Starts all pods at once.
async fn burst(way: &Way, count: usize) -> Result<Measurement> {
    let before = Cpu::now()?;
    let started = starts::at_once(&way.node, count).await?;
    let after = Cpu::now()?;
    let starts: Vec<_> = started.into_iter().map(|(_, start)| start).collect();
    Ok(reading(&starts, before, after))
}

/// Removes all pods, also those of a burst that failed.
async fn clear(way: &Way) -> Result<()> {
    let pods = way.node.cri().pods().await?;
    starts::remove(&way.node, pods.into_iter().map(|pod| pod.id)).await
}

/// What the cores did so far, in milliseconds of all of them.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Cpu {
    busy_ms: f64,
    stolen_ms: f64,
    all_ms: f64,
}

impl Cpu {
    fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("Failed to read /proc/stat")?;
        Self::parse(&text).context("/proc/stat has no line of all cores")
    }

    /// Of the first line: user, nice, system, idle, iowait, irq, softirq, steal (proc(5)).
    fn parse(stat: &str) -> Option<Self> {
        let fields = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
        let ms: Vec<f64> = fields.take(8).map_while(|text| text.parse().ok()).collect();
        let [user, nice, system, idle, waiting, irq, softirq, steal] = *ms.as_slice() else {
            return None;
        };
        let busy = user + nice + system + irq + softirq;
        Some(Self {
            busy_ms: busy * TICK_MS,
            stolen_ms: steal * TICK_MS,
            all_ms: (busy + idle + waiting + steal) * TICK_MS,
        })
    }
}

fn reading(starts: &[Start], before: Cpu, after: Cpu) -> Measurement {
    let mut done: Vec<_> = starts.iter().map(Start::done_ms).collect();
    done.sort_by(f64::total_cmp);
    // Nearest rank.
    let quantile = |share: f64| {
        let rank = (done.len() as f64 * share).ceil() as usize;
        done.get(rank.saturating_sub(1)).copied()
    };
    let mut values = BTreeMap::new();
    let mut put = |key: &str, value: Option<f64>| {
        values.extend(value.map(|value| (key.to_owned(), value)));
    };
    put("ready_s", done.last().map(|ms| ms / 1e3));
    put("p50_ms", quantile(0.5));
    put("p99_ms", quantile(0.99));
    let cpu_s = (after.busy_ms - before.busy_ms) / 1e3;
    put("cpu_per_pod_s", (!starts.is_empty()).then(|| cpu_s / starts.len() as f64));
    let mut stages: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for stage in starts.iter().flat_map(|start| &start.stages) {
        stages.entry(&stage.name).or_default().push(stage.ms);
    }
    for (name, mut ms) in stages {
        ms.sort_by(f64::total_cmp);
        put(&format!("{name}_ms"), ms.get(ms.len().div_ceil(2) - 1).copied());
    }
    let stolen = after.stolen_ms - before.stolen_ms;
    let share = stolen / (after.all_ms - before.all_ms).max(1.0);
    let discarded = (stolen > LEAST_STOLEN_MS && share > MOST_STOLEN)
        .then(|| format!("the hypervisor took {:.0} % of the window", 100.0 * share));
    Measurement {
        values,
        distributions: [("ready_ms".to_owned(), done)].into(),
        discarded,
        ..Measurement::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::starts::Stage;

    fn plan(line: &str) -> Option<Plan> {
        Plan::of(&line.split_whitespace().map(String::from).collect::<Vec<_>>())
    }

    #[test]
    fn pods_are_measured_where_they_are_asked_for_or_nothing_is() {
        assert_eq!(plan("--figures startup,containers"), None);
        let both = plan("--quick").unwrap();
        assert_eq!(both.experiments, ["pods-vm", "pods-runc"]);
        assert_eq!((both.counts, both.rounds), (vec![2], 3));
        let one = plan("--figures=startup,pods-vm --rounds 7").unwrap();
        assert_eq!((one.experiments, one.counts, one.rounds), (vec!["pods-vm"], vec![2, 4, 8], 7));
        assert_eq!(plan("--figures pods").unwrap().experiments.len(), 2);
        assert_eq!(plan("--arms slipway,kata").unwrap().arms, ["slipway", "kata"]);
        assert_eq!(plan("--arms veth,kata --rounds 9"), None, "none of them has pods");
        assert_eq!(plan("--figures pods-vm --arms cni-bridge"), None, "it has none with a VM");
    }

    #[test]
    fn an_arm_that_is_not_named_starts_no_pods() {
        assert!(WAYS.iter().all(|(_, arm)| is_among(&[], arm)));
        let slipway = ["slipway".to_owned()];
        let named: Vec<_> = WAYS.iter().filter(|(_, arm)| is_among(&slipway, arm)).collect();
        assert_eq!(named, [&("pods-vm", "slipway")]);
    }

    #[test]
    fn a_burst_is_read_by_its_last_pod_and_one_that_lost_time_does_not_count() {
        let cpu = |busy_ms, stolen_ms| Cpu { busy_ms, stolen_ms, all_ms: busy_ms + stolen_ms };
        let start = |asked_ms, ms| Start {
            asked_ms,
            sandbox_ms: ms,
            total_ms: ms,
            stages: vec![Stage { name: "AddCNI".to_owned(), ms: ms / 10.0 }],
        };
        let starts = [start(0.0, 1000.0), start(5.0, 3000.0)];
        let read = reading(&starts, cpu(0.0, 0.0), cpu(5000.0, 10.0));
        let value = |key: &str| read.values[key];
        assert_eq!((value("ready_s"), value("p50_ms"), value("p99_ms")), (3.005, 1000.0, 3005.0));
        assert_eq!((value("cpu_per_pod_s"), value("AddCNI_ms")), (2.5, 100.0));
        assert_eq!(read.discarded, None);
        let lost = reading(&starts, cpu(0.0, 0.0), cpu(900.0, 100.0));
        assert_eq!(lost.discarded.unwrap(), "the hypervisor took 10 % of the window");
    }

    #[test]
    fn the_cores_work_is_all_that_is_not_idle() {
        let cpu = Cpu::parse("cpu  1 2 3 40 5 6 7 8 9 10\ncpu0 1\n").unwrap();
        assert_eq!(cpu, Cpu { busy_ms: 190.0, stolen_ms: 80.0, all_ms: 720.0 });
        assert_eq!(Cpu::parse("cpu  1 2\n"), None);
    }
}
