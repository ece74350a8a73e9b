//! `cargo xtask demo`: two microVMs that talk through slipwayd, from nothing, in one command.
//!
//! ```text
//!  prepare   packages, slipwayd, guest image, acceleration      blocking, programs of ours
//!  act       slipwayd, ports, guests, pings, stream, counters   asynchronous, steps with limits
//!  end       guests, slipwayd, tracers, folder; look for leftovers
//! ```
//! `end` comes whatever became of `act`: done, failed or interrupted. Before the folder goes, the
//! traces in it are counted. Only `prepare` may need root, for packages that are missing.
//!
//! # Bounds
//! Every step has a limit, every program too. An interrupt at any point ends all within seconds.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use tokio::runtime;
use vmm_glue::accel::AccelChoice;

use crate::deps::{self, Purpose};
use crate::rig::{
    Image, Leftovers, NetworkSnapshot, RUNC, Runtime, SLIPWAY, oci_image, slipway_programs,
};
use crate::{guest, interrupt, workspace};
use act::{Act, Stage};
use progress::Progress;
use report::Report;
use trace::Tracer;

mod act;
mod pods;
mod programs;
mod progress;
mod report;
mod size;
mod trace;

/// Arguments of `cargo xtask demo`
#[derive(Args)]
pub struct Arguments {
    /// Who runs the guests' instructions: kvm, tcg, or auto, which tries KVM first
    #[arg(long, default_value_t)]
    accel: AccelChoice,
    /// How much to send from one guest to the other: bytes, with k, M or G if you like
    #[arg(long, default_value = "100M", value_parser = size::parse)]
    bytes: u64,
    /// Show two pods of this runtime on a private containerd, instead of two bare VMs
    #[arg(long, value_parser = runtime_named)]
    pods: Option<Runtime>,
    /// Use this slipwayd instead of building one
    #[arg(long, value_name = "FILE")]
    slipwayd: Option<PathBuf>,
}

/// What there is once everything is built.
struct Prepared {
    slipwayd: PathBuf,
    image: Image,
    tracer: Tracer,
}

/// Runs `cargo xtask demo`.
pub fn main(arguments: &Arguments) -> Result<()> {
    let progress = Progress::new();
    if let Some(runtime) = arguments.pods {
        let tracer = prepare_pods(runtime, &progress)?;
        return block_on(pods::show(runtime, tracer, &progress));
    }
    let prepared = prepare(arguments, &progress)?;
    block_on(show(arguments, prepared, &progress))
}

fn block_on(work: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("Failed to start a runtime")?.block_on(work)
}

fn runtime_named(name: &str) -> Result<Runtime, String> {
    let all = [RUNC, SLIPWAY];
    let found = all.into_iter().find(|runtime| runtime.handler == name);
    found.ok_or_else(|| {
        let names = all.map(|runtime| runtime.handler);
        format!("there is no such runtime here: take {}", names.join(" or "))
    })
}

fn prepare_pods(runtime: Runtime, progress: &Progress) -> Result<Tracer> {
    let purposes = [Purpose::Vm, Purpose::Trace, Purpose::Pods];
    progress.blocking_step("Debian packages", || deps::ensure(&purposes))?;
    if runtime.has_vm {
        progress.blocking_step("slipway, in release", slipway_programs)?;
        progress.blocking_step("Guest image", || guest::ensure(false))?;
    }
    progress.blocking_step("The pods' image", oci_image::ensure)?;
    progress.blocking_step("A trial of strace", Tracer::new)
}

fn prepare(arguments: &Arguments, progress: &Progress) -> Result<Prepared> {
    let purposes = [Purpose::Vm, Purpose::Trace];
    progress.blocking_step("Debian packages", || deps::ensure(&purposes))?;
    let slipwayd = match &arguments.slipwayd {
        Some(file) => std::path::absolute(file)?,
        None => progress.blocking_step("slipwayd, in release", workspace::build_slipwayd)?,
    };
    let paths = progress.blocking_step("Guest image", || guest::ensure(false))?;
    let image = Image { kernel: paths.vmlinux, initrd: paths.initrd };
    let tracer = progress.blocking_step("A trial of strace", Tracer::new)?;
    Ok(Prepared { slipwayd, image, tracer })
}

/// Acts, ends everything, looks for leftovers and reports.
async fn show(arguments: &Arguments, prepared: Prepared, progress: &Progress) -> Result<()> {
    let Prepared { slipwayd, image, mut tracer } = prepared;
    let before = NetworkSnapshot::take();
    let folder = tempfile::Builder::new().prefix("slipway-demo-").tempdir();
    let folder = folder.context("Failed to make a folder for the demo")?;
    let mut stage = Stage::default();
    let act = Act {
        progress,
        prepared: progress.elapsed(),
        accel: arguments.accel,
        bytes: arguments.bytes,
        slipwayd: &slipwayd,
        image: &image,
        folder: folder.path(),
    };
    let acted = act.run(&mut stage, &mut tracer).await;
    if acted.is_err() && !interrupt::is_requested() {
        eprint!("{}", stage.last_words());
    }

    progress.say("The end of guests, switch and files");
    let ended = stage.end().await;
    let path = folder.path().to_owned();
    // The traces are complete when strace has ended, too.
    Leftovers::settle(&path).await;
    let netlink = tracer.count();
    let removed = folder.close();
    let left = Leftovers::of(&path, &before);
    progress.say(&format!("Left behind: {left}"));

    let findings = acted?;
    ended.context("The demo did not end in order")?;
    removed.context("Failed to remove the demo's folder")?;
    ensure!(left.is_empty(), "Something is left behind: {left}");
    println!("\n{}", Report { findings, netlink });
    Ok(())
}
