//! The figures of pods: times of their starts, and memory, of slipway's and beside them of runc's.
//!
//! ```text
//!  prepare   packages, programs, images, acceleration
//!  boots     the guest image alone
//!  nodes     one for each runtime, with a containerd of its own
//!  series    a pod of slipway's, a pod of runc's, and so on, each removed before the next    } as often
//!  at once   all of slipway's, their memory, all of runc's                                   } as asked
//!  end       pods, nodes; what is left
//! ```
//! The runtimes take turns because machines drift and are shared: compare within a run.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::runtime;
use tokio::time::sleep;
use vmm_glue::accel::{Accel, AccelChoice};
use vmm_glue::qemu::Qemu;

use super::machine::{self, Machine};
use super::memory::{self, Memory, NodeMemory};
use super::report::{Figures, Starts};
use super::{starts, timeline};
use crate::deps::{self, Purpose};
use crate::guest::boot::{self, Boot};
use crate::progress::Progress;
use crate::rig::{
    Image, Leftovers, NetworkSnapshot, Node, RUNC, Runtime, SLIPWAY, oci_image, slipway_programs,
};
use crate::{accel, guest, interrupt, workspace};

/// For a step that takes moments on an idle machine.
const SHORT: Duration = Duration::from_secs(120);
/// For pods to start or end; each request has a shorter limit of its own that says more.
const PODS: Duration = Duration::from_secs(900);
/// What a start took for a moment is given back by then.
const REST: Duration = Duration::from_secs(1);

/// What to measure.
#[derive(Debug)]
pub struct Plan {
    /// How many in a series, and at once.
    pub pods: usize,
    /// How often.
    pub runs: usize,
    /// Who is to run the guests' instructions.
    pub accel: AccelChoice,
    /// For the results, if not in cargo's target directory.
    pub out: Option<PathBuf>,
}

/// Measures, prints, and writes `figures.json` and `figures.svg`.
///
/// # Errors
/// The first step that failed, by its name; something is left behind.
pub fn measure(plan: &Plan) -> Result<()> {
    let progress = Progress::new("The measurement");
    let purposes = [Purpose::Vm, Purpose::Share, Purpose::Pods];
    progress.blocking_step("Debian packages", || deps::ensure(&purposes))?;
    progress.blocking_step("slipway's programs", slipway_programs)?;
    let paths = progress.blocking_step("Guest image", || guest::ensure(false))?;
    progress.blocking_step("The pods' image", oci_image::ensure)?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let work = prepared(plan, &paths, &progress);
    let figures = runtime.context("Failed to start a runtime")?.block_on(work)?;

    let folder = match &plan.out {
        Some(folder) => folder.clone(),
        None => workspace::target().join("slipway"),
    };
    let written = write(&folder, &figures).context("Failed to write the figures")?;
    println!("\n{figures}");
    for path in written {
        println!("{:<36}{}", "Written", path.display());
    }
    Ok(())
}

/// Starts nodes, measures, and ends everything, whatever became of it.
async fn prepared(plan: &Plan, paths: &guest::Paths, progress: &Progress) -> Result<Figures> {
    let load_before = machine::load()?;
    let image = Image { kernel: paths.vmlinux.clone(), initrd: paths.initrd.clone() };
    let choose = accel::choose(&image, plan.accel, progress);
    let (qemu, chosen) = progress.step("Acceleration", SHORT, choose).await?;
    let boots = boots(plan.pods, &qemu, paths, chosen.accel, progress).await?;

    let before = NetworkSnapshot::take();
    let ours = Runtime { accel: chosen.accel, ..SLIPWAY };
    let start = Node::start(ours);
    let ours = progress.step("A node with slipway", SHORT, start).await?;
    let runcs = progress.step("A node with runc and a bridge", SHORT, Node::start(RUNC)).await?;
    let folders = [ours.folder().to_owned(), runcs.folder().to_owned()];
    let guest_kernel = boots.last().context("Nothing was booted")?.info.kernel.clone();
    let acted = async {
        let machine = Machine::look(&ours, &qemu, chosen, guest_kernel, load_before).await?;
        let mut measured = Measured::new(&ours)?;
        for run in 1..=plan.runs {
            measured.run(plan, run, &ours, &runcs, progress).await?;
        }
        let Measured { slipway, runc, memory } = measured;
        let agent_ready_ms = boots.iter().map(|boot| boot.took.as_secs_f64() * 1e3).collect();
        let Plan { pods, runs, .. } = *plan;
        Ok(Figures { machine, pods, runs, agent_ready_ms, slipway, runc, memory })
    };
    let acted: Result<_> = acted.await;
    if acted.is_err() && !interrupt::is_requested() {
        eprintln!("The last lines of the logs of {}", ours.log_tail());
    }
    progress.say("The end of pods and nodes");
    let (ours, runcs) = (ours.end().await, runcs.end().await);
    let mut left = Vec::new();
    for folder in folders {
        Leftovers::settle(&folder).await;
        left.push(Leftovers::of(&folder, &before));
    }
    let figures = acted?;
    ours.and(runcs).context("The measurement did not end in order")?;
    for left in left {
        ensure!(left.is_empty(), "Something is left behind: {left}");
    }
    Ok(figures)
}

/// Boots the guest alone, a few times.
async fn boots(
    count: usize,
    qemu: &Qemu,
    paths: &guest::Paths,
    accel: Accel,
    progress: &Progress,
) -> Result<Vec<Boot>> {
    let mut boots = Vec::new();
    for number in 1..=count {
        let name = format!("Boot {number} of {count}, from QEMU's start to the agent's answer");
        let boot = progress.step(&name, SHORT, boot::measure(qemu, paths, accel)).await?;
        progress.say(&format!("  {:.2} s", boot.took.as_secs_f64()));
        boots.push(boot);
    }
    Ok(boots)
}

/// What was measured so far.
struct Measured {
    slipway: Starts,
    runc: Starts,
    memory: Memory,
}

impl Measured {
    /// On a node that never had a pod.
    fn new(ours: &Node) -> Result<Self> {
        let switch_without_pods = memory::look(ours, &[])?.switch;
        let memory = Memory { switch_without_pods, alone: Vec::new(), among: Vec::new() };
        Ok(Self { slipway: Starts::default(), runc: Starts::default(), memory })
    }

    async fn run(
        &mut self,
        plan: &Plan,
        run: usize,
        ours: &Node,
        runcs: &Node,
        progress: &Progress,
    ) -> Result<()> {
        let count = plan.pods;
        let of = format!("run {run} of {}", plan.runs);
        for number in 1..=count {
            let name = format!("Pod {number} of {count}, {of}");
            let measure = self.pair(number == count, ours, runcs);
            let (slipway, runc) = progress.step(&name, PODS, measure).await?;
            progress.say(&format!("  slipway {slipway:.2} s, runc {runc:.2} s"));
        }
        let name = format!("At once: {count} of slipway, {of}");
        let together = self.together(count, ours);
        let last = progress.step(&name, PODS, together).await?;
        progress.say(&format!("  the last after {last:.2} s"));
        let name = format!("At once: {count} of runc, {of}");
        progress.step(&name, PODS, self.runcs_together(count, runcs)).await
    }

    /// A pod of each runtime; returns the seconds of both. `is_last` of the series.
    async fn pair(&mut self, is_last: bool, ours: &Node, runcs: &Node) -> Result<(f64, f64)> {
        let (id, slipway) = starts::one(ours, "alone").await?;
        if is_last {
            self.memory.alone.push(at_rest(ours, &[&id]).await?);
        }
        starts::remove(ours, [id]).await?;
        let (id, runc) = starts::one(runcs, "alone").await?;
        starts::remove(runcs, [id]).await?;
        let seconds = (slipway.total_ms / 1e3, runc.total_ms / 1e3);
        self.slipway.one_by_one.push(slipway);
        self.runc.one_by_one.push(runc);
        Ok(seconds)
    }

    /// All of slipway's pods at once; returns the seconds up to the last.
    async fn together(&mut self, count: usize, ours: &Node) -> Result<f64> {
        let (ids, started): (Vec<_>, Vec<_>) =
            starts::at_once(ours, count).await?.into_iter().unzip();
        let names: Vec<_> = ids.iter().map(String::as_str).collect();
        self.memory.among.push(at_rest(ours, &names).await?);
        starts::remove(ours, ids).await?;
        let last = started.iter().map(starts::Start::done_ms).fold(0.0, f64::max);
        self.slipway.at_once.push(started);
        Ok(last / 1e3)
    }

    async fn runcs_together(&mut self, count: usize, runcs: &Node) -> Result<()> {
        let (ids, started): (Vec<_>, Vec<_>) =
            starts::at_once(runcs, count).await?.into_iter().unzip();
        starts::remove(runcs, ids).await?;
        self.runc.at_once.push(started);
        Ok(())
    }
}

async fn at_rest(ours: &Node, pods: &[&str]) -> Result<NodeMemory> {
    sleep(REST).await;
    memory::look(ours, pods)
}

/// Writes the figures and the timeline of the last run, and returns where.
fn write(folder: &Path, figures: &Figures) -> Result<[PathBuf; 2]> {
    fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
    let [json, svg] = ["figures.json", "figures.svg"].map(|name| folder.join(name));
    let mut text = serde_json::to_string_pretty(figures)?;
    text.push('\n');
    fs::write(&json, text).with_context(|| format!("{}", json.display()))?;
    let last = figures.slipway.at_once.last().context("No pods were started at once")?;
    let title = format!("Pods at once: {}, {}", figures.pods, figures.machine.accel);
    fs::write(&svg, timeline::svg(&title, last)).with_context(|| format!("{}", svg.display()))?;
    Ok([json, svg])
}
