//! The demo with pods: containerd starts two of them, which reach each other and the host.
//!
//! ```text
//!  node     private host, switch, containerd, image      traced from their first call on
//!  pods     two at once, a container in each              who made which device, and when
//!  talk     pings, a command, logs, consumption
//!  end      pods, node; what is left; the traces are counted
//! ```
//! The runtime is a parameter: with runc one sees what the stock way costs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};

use super::programs::Counts;
use super::trace::Tracer;
use crate::interrupt;
use crate::progress::Progress;
use crate::rig::{
    Container, ContainerSpec, Leftovers, Network, NetworkSnapshot, Node, Pod, Runtime,
};

/// For a step that takes moments on an idle machine.
const SHORT: Duration = Duration::from_secs(120);
/// For pods to start; each has shorter limits of its own that say more.
const BOOT: Duration = Duration::from_secs(400);
/// Echoes of a series.
const ECHOES: u32 = 10;

/// What was seen while it ran.
#[derive(Debug)]
struct Findings {
    runtime: Runtime,
    pods: Vec<PodFindings>,
    pings: Vec<(String, String)>,
    /// Network devices that appeared on the host.
    host_devices: BTreeSet<String>,
    /// Network devices in the pods' namespaces, `lo` aside.
    pod_devices: Vec<String>,
    log: String,
}

#[derive(Debug)]
struct PodFindings {
    name: String,
    started: Duration,
    /// By name, in milliseconds.
    stages: Vec<(String, f64)>,
    memory: u64,
    cpu: Duration,
}

/// Shows two pods of `runtime`.
///
/// # Errors
/// The first step that failed, by its name; something is left behind.
pub async fn show(runtime: Runtime, mut tracer: Tracer, progress: &Progress) -> Result<()> {
    let before = NetworkSnapshot::take();
    let folder = tempfile::Builder::new().prefix("slipway-demo-").tempdir();
    let folder = folder.context("Failed to make a folder for the traces")?;
    let start = Node::start_under(runtime, |name| tracer.wrapper(folder.path(), name));
    let node = progress.step("A node: switch, containerd, image", BOOT, start).await?;
    let path = node.folder().to_owned();
    let acted = act(&node, progress).await;
    if acted.is_err() && !interrupt::is_requested() {
        eprintln!("The last lines of the logs of {}", node.log_tail());
    }
    progress.say("The end of pods and node");
    let ended = node.end().await;
    for path in [&path, folder.path()] {
        Leftovers::settle(path).await;
    }
    let messages = tracer.count_by_program();
    folder.close().context("Failed to remove the demo's folder")?;
    let left = Leftovers::of(&path, &before);
    progress.say(&format!("Left behind: {left}"));

    let findings = acted?;
    ended.context("The demo did not end in order")?;
    ensure!(left.is_empty(), "Something is left behind: {left}");
    println!("\n{}", Report { findings, messages });
    Ok(())
}

async fn act(node: &Node, progress: &Progress) -> Result<Findings> {
    let devices_before = node.host().devices().await?;
    let start = async { tokio::try_join!(start(node, "one"), start(node, "two")) };
    let (one, two) = progress.step("Two pods, a container in each", BOOT, start).await?;
    let host_devices = &node.host().devices().await? - &devices_before;
    let pod_devices = pod_devices(node).await?;

    let pings = progress.step("Pings", SHORT, pings(node, &one, &two)).await?;
    let exec = one.container.shell("echo \"$(hostname): $(uname -sr)\"");
    let said = progress.step("A command in a container", SHORT, exec).await?;
    progress.say(&format!("  {}", said.trim_end()));
    let log = progress.step("The log of a container", SHORT, log(&two.pod)).await?;
    let mut pods = Vec::new();
    for started in [&one, &two] {
        let look = consumption(node, started);
        pods.push(progress.step("Consumption and stages", SHORT, look).await?);
    }
    Ok(Findings { runtime: node.runtime(), pods, pings, host_devices, pod_devices, log })
}

struct Started<'a> {
    name: &'static str,
    pod: Pod<'a>,
    container: Container<'a>,
    asked: SystemTime,
    took: Duration,
}

async fn start<'a>(node: &'a Node, name: &'static str) -> Result<Started<'a>> {
    #[expect(clippy::disallowed_methods, reason = "the demo tells how long a start took")]
    let now = SystemTime::now;
    let asked = now();
    let pod = node.pod(name).await?;
    let container = pod.idle("idle").await?;
    // The machine's clock may have been set back meanwhile.
    let took = now().duration_since(asked).unwrap_or_default();
    Ok(Started { name, pod, container, asked, took })
}

/// Devices in the namespaces that containerd made for the pods, but `lo`, which is the kernel's.
async fn pod_devices(node: &Node) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for namespace in node.pod_namespaces()? {
        let mut list = node.host().command("nsenter");
        list.arg(format!("--net={}", namespace.display())).args(["cat", "/proc/net/dev"]);
        let output = list.output().await.context("Failed to look into a pod's namespace")?;
        ensure!(output.status.success(), "nsenter: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let names = text.lines().skip(2).filter_map(|line| line.split_once(':'));
        found.extend(names.map(|(name, _)| name.trim().to_owned()).filter(|name| name != "lo"));
    }
    Ok(found)
}

async fn pings(node: &Node, one: &Started<'_>, two: &Started<'_>) -> Result<Vec<(String, String)>> {
    let ping = |to: &dyn fmt::Display| format!("ping -q -c {ECHOES} -i 0.2 -W 10 {to}");
    let there = one.container.shell(&ping(&two.pod.address())).await?;
    let back = two.container.shell(&ping(&one.pod.address())).await?;
    let out = one.container.shell(&ping(&Network::GATEWAY)).await?;
    let script = ping(&one.pod.address());
    let output = node.host_busybox().args(script.split(' ')).output().await?;
    ensure!(output.status.success(), "host -> one: {}", String::from_utf8_lossy(&output.stderr));
    let into = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut pings = Vec::new();
    for (way, printed) in
        [("one -> two", there), ("two -> one", back), ("one -> host", out), ("host -> one", into)]
    {
        let all = format!("{ECHOES} packets received");
        ensure!(printed.contains(&all), "{way}: not all echoes were answered:\n{printed}");
        let times = printed.lines().find_map(|line| line.strip_prefix("round-trip min/avg/max = "));
        pings.push((way.to_owned(), times.context("ping told no times")?.to_owned()));
    }
    Ok(pings)
}

async fn log(pod: &Pod<'_>) -> Result<String> {
    let greeter = pod.run(ContainerSpec::shell("greeter", "echo \"hello from $HOSTNAME\"")).await?;
    greeter.printed("hello").await?;
    ensure!(greeter.ended().await? == 0, "the greeter failed");
    let lines = greeter.log()?;
    Ok(lines.iter().map(|line| format!("{}: {}", line.stream, line.text)).collect())
}

async fn consumption(node: &Node, started: &Started<'_>) -> Result<PodFindings> {
    let stats = node.cri().pod_stats(started.pod.id()).await?;
    let memory = stats.memory.and_then(|memory| memory.working_set_bytes);
    let cpu = stats.cpu.and_then(|cpu| cpu.usage_core_nano_seconds);
    let stages = node.stages(started.pod.id(), started.asked).await?;
    Ok(PodFindings {
        name: started.name.to_owned(),
        started: started.took,
        stages,
        memory: memory.map(|memory| memory.value).unwrap_or_default(),
        cpu: Duration::from_nanos(cpu.map(|cpu| cpu.value).unwrap_or_default()),
    })
}

/// All there is to say.
struct Report {
    findings: Findings,
    messages: Result<BTreeMap<String, Counts>, String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Findings { runtime, pods, pings, host_devices, pod_devices, log } = &self.findings;
        row(f, "Runtime", runtime.runtime_type)?;
        for PodFindings { name, started, stages, memory, cpu } in pods {
            row(f, &format!("Pod {name}, to its container"), &seconds(*started))?;
            let stages = stages.iter().map(|(stage, ms)| format!("{stage} {ms:.0} ms"));
            let stages: Vec<_> = stages.collect();
            if !stages.is_empty() {
                row(f, "  stages", &stages.join(", "))?;
            }
            #[expect(clippy::cast_precision_loss, reason = "one digit is shown")]
            let mib = *memory as f64 / f64::from(1 << 20);
            row(f, "  consumption", &format!("{mib:.1} MiB, CPU {}", seconds(*cpu)))?;
        }
        for (way, times) in pings {
            row(f, &format!("Round trip {way}"), &format!("min/avg/max {times}"))?;
        }
        row(f, "Log", log)?;
        row(f, "Devices on the host", &devices(host_devices.iter()))?;
        row(f, "Devices in the pods", &devices(pod_devices.iter()))?;
        match &self.messages {
            Err(reason) => row(f, "rtnetlink messages", &format!("not measured: {reason}")),
            Ok(programs) => {
                for (program, Counts { sockets, messages, .. }) in programs {
                    let value = format!("{messages} messages, {sockets} sockets");
                    row(f, &format!("rtnetlink of {program}"), &value)?;
                }
                Ok(())
            }
        }
    }
}

fn devices<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<_> = names.map(String::as_str).collect();
    if names.is_empty() { "0".to_owned() } else { format!("{}: {}", names.len(), names.join(", ")) }
}

fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}

fn row(f: &mut fmt::Formatter<'_>, name: &str, value: &str) -> fmt::Result {
    writeln!(f, "{name:<42}{value}")
}
