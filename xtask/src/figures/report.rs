//! All figures of pods, as a short text.

use std::fmt;

use serde::Serialize;

use super::machine::Machine;
use super::memory::{Memory, NodeMemory, PodMemory};
use super::spread::Spread;
use super::starts::{Stage, Start};

/// All there is to say.
#[derive(Debug, Serialize)]
pub struct Figures {
    /// Where.
    pub machine: Machine,
    /// How many in a series, and at once.
    pub pods: usize,
    /// How often.
    pub runs: usize,
    /// From QEMU's start to the agent's answer, in milliseconds, of each boot.
    pub agent_ready_ms: Vec<f64>,
    /// Ours.
    pub slipway: Starts,
    /// For scale: runc with a bridge.
    pub runc: Starts,
    /// Of slipway's pods.
    pub memory: Memory,
}

/// Starts of one runtime, of all runs.
#[derive(Debug, Default, Serialize)]
pub struct Starts {
    /// Each alone on its node.
    pub one_by_one: Vec<Start>,
    /// Those of each run.
    pub at_once: Vec<Vec<Start>>,
}

impl Starts {
    fn all_at_once(&self) -> impl Iterator<Item = &Start> {
        self.at_once.iter().flatten()
    }

    /// From the first request to the last running container, of each run.
    fn last_ms(&self) -> impl Iterator<Item = f64> {
        let last = |run: &Vec<Start>| run.iter().map(Start::done_ms).max_by(f64::total_cmp);
        self.at_once.iter().filter_map(last)
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.setting(f)?;
        writeln!(f)?;
        self.starts(f)?;
        writeln!(f)?;
        self.stages(f)?;
        writeln!(f)?;
        self.memory(f)?;
        writeln!(f)?;
        row(
            f,
            "Devices and rtnetlink messages",
            "cargo xtask demo counts them (with strace, which slows)",
        )?;
        row(
            f,
            "Memory and speed of many ports",
            "cargo xtask figures measures them, without guests",
        )
    }
}

impl Figures {
    fn setting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { accel, accel_reason, processor, cores, kernel, .. } = &self.machine;
        let Machine { guest_kernel, qemu, containerd, load_before, .. } = &self.machine;
        row(f, "Acceleration", &format!("{accel} ({accel_reason})"))?;
        if accel == "tcg" {
            row(f, "", "TCG emulates: times of guests are not KVM's, which are shorter")?;
        }
        row(f, "Machine", &format!("{cores} cores of {processor}, load {load_before:.2} before"))?;
        let programs = format!(
            "Linux {kernel}, containerd {containerd}, QEMU {qemu}, in the guest {guest_kernel}"
        );
        row(f, "Programs", &programs)?;
        let Some(ready) = Spread::of(self.agent_ready_ms.iter().map(|ms| ms / 1e3)) else {
            return Ok(());
        };
        let Spread { p50, min, max } = ready;
        let boots = self.agent_ready_ms.len();
        row(
            f,
            "Agent ready after QEMU's start",
            &format!(
                "p50 {p50:.2}, min {min:.2}, max {max:.2} s ({boots} boots without a network)"
            ),
        )
    }

    fn starts(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (pods, runs) = (self.pods, self.runs);
        let heading = format!("Start to running container (runs: {runs})");
        columns(f, &heading, &["p50 s", "min s", "max s", "last s"])?;
        for (name, starts) in [("slipway", &self.slipway), ("runc, bridge", &self.runc)] {
            let alone = seconds(starts.one_by_one.iter());
            columns(f, &format!("{name}: {pods} one after the other"), &spread(alone, 2))?;
            let mut values = spread(seconds(starts.all_at_once()), 2).to_vec();
            let last = Spread::of(starts.last_ms().map(|ms| ms / 1e3));
            values.push(last.map_or(NONE.to_owned(), |last| format!("{:.2}", last.p50)));
            columns(f, &format!("{name}: {pods} at once"), &values)?;
        }
        for (run, starts) in self.slipway.at_once.iter().enumerate() {
            let mut each: Vec<_> = starts.iter().map(|start| start.total_ms / 1e3).collect();
            each.sort_by(f64::total_cmp);
            let each: Vec<_> = each.iter().map(|s| format!("{s:.2}")).collect();
            row(f, &format!("  slipway at once, each, run {}", run + 1), &each.join(" "))?;
        }
        Ok(())
    }

    fn stages(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Starts { one_by_one, .. } = &self.slipway;
        let heading = "Stages of slipway's starts";
        columns(f, heading, &["alone p50 ms", "max ms", "at once p50 ms", "max ms"])?;
        let Some(first) = one_by_one.first() else { return Ok(()) };
        for Stage { name, .. } in &first.stages {
            let alone = of_stage(one_by_one.iter(), name);
            let at_once = of_stage(self.slipway.all_at_once(), name);
            let values = [alone, at_once].map(|stage| {
                stage.map_or([NONE.to_owned(), NONE.to_owned()], |Spread { p50, max, .. }| {
                    [format!("{p50:.1}"), format!("{max:.1}")]
                })
            });
            columns(f, &format!("  {name}"), &values.concat())?;
        }
        writeln!(
            f,
            "  NetNS: up to the plugin's start. AddCNI: plugin, and containerd up to the shim's first step."
        )?;
        writeln!(
            f,
            "  StartVM: up to the agent's answer. PauseContainer: the pod's own container, and containerd."
        )
    }

    fn memory(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Memory { alone, among, switch_without_pods } = &self.memory;
        let heading = "Memory of an idle pod (PSS, p50)";
        columns(f, heading, &["alone MiB".to_owned(), format!("of {} MiB", self.pods)])?;
        let parts: [(&str, Part); 9] = [
            ("shim", |pod| pod.shim),
            ("VMM's own", |pod| pod.vmm),
            ("files that the VMM maps", |pod| pod.vmm_files),
            ("translated code (TCG alone)", |pod| pod.translated),
            ("touched by the guest", |pod| pod.guest),
            ("virtiofsd, both processes", |pod| pod.files),
            ("vsock device", |pod| pod.vsock),
            ("sum", PodMemory::total),
            ("sum without translated code", PodMemory::total_without_translation),
        ];
        for (name, part) in parts {
            columns(f, &format!("  {name}"), &[mib(alone, part), mib(among, part)])?;
        }
        if let Some(grown) = self.memory.switch_per_pod() {
            let own = *switch_without_pods as f64 / 1024.0;
            let text = format!("{own:.1} MiB without pods, {grown:.0} KiB more for each port");
            row(f, "slipwayd's own", &text)?;
        }
        let Some((idle, full)) = self.memory.suggestions() else { return Ok(()) };
        row(f, "For a RuntimeClass", "overhead.podFixed.memory, by the largest pod, with KVM:")?;
        row(f, "  its guest as idle as here", &format!("{}Mi", idle / 1024))?;
        row(f, "  its guest using all its memory", &format!("{}Mi", full / 1024))
    }
}

/// For what was not measured.
const NONE: &str = "-";

/// A part of a pod's memory, or a sum of some, in KiB.
type Part = fn(&PodMemory) -> u64;

fn seconds<'a>(starts: impl Iterator<Item = &'a Start>) -> Option<Spread> {
    Spread::of(starts.map(|start| start.total_ms / 1e3))
}

fn of_stage<'a>(starts: impl Iterator<Item = &'a Start>, name: &str) -> Option<Spread> {
    let stages = starts.flat_map(|start| &start.stages).filter(|stage| stage.name == name);
    Spread::of(stages.map(|stage| stage.ms))
}

fn spread(spread: Option<Spread>, digits: usize) -> [String; 3] {
    match spread {
        Some(Spread { p50, min, max }) => [p50, min, max].map(|value| format!("{value:.digits$}")),
        None => [NONE; 3].map(str::to_owned),
    }
}

fn mib(nodes: &[NodeMemory], part: Part) -> String {
    let pods = nodes.iter().flat_map(|node| &node.pods);
    let spread = Spread::of(pods.map(|pod| part(pod) as f64 / 1024.0));
    spread.map_or(NONE.to_owned(), |spread| format!("{:.1}", spread.p50))
}

fn row(f: &mut fmt::Formatter<'_>, name: &str, value: &str) -> fmt::Result {
    writeln!(f, "{name:<36}{value}")
}

fn columns(f: &mut fmt::Formatter<'_>, name: &str, values: &[impl AsRef<str>]) -> fmt::Result {
    write!(f, "{name:<36}")?;
    for value in values {
        write!(f, "{:>16}", value.as_ref())?;
    }
    writeln!(f)
}
