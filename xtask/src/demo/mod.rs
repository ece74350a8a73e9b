//! `cargo xtask demo`: two pods in microVMs that talk through slipwayd, from nothing, in one command
//! ([`pods`]). With `--vms` it shows two bare VMs instead:
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
use crate::progress::Progress;
use crate::rig::{
    Image, Leftovers, NetworkSnapshot, RUNC, Runtime, SLIPWAY, oci_image, slipway_programs,
};
use crate::{accel, guest, interrupt, workspace};
use act::{Act, Stage};
use report::Report;
use trace::Tracer;

mod act;
mod pods;
mod programs;
mod report;
mod size;
mod trace;

/// Arguments of `cargo xtask demo`
#[derive(Args)]
pub struct Arguments {
    /// Who runs the guests' instructions: kvm, tcg, or auto, which tries KVM first
    #[arg(long, default_value_t)]
    accel: AccelChoice,
    /// Who runs the pods: slipway, or runc with a bridge, to compare
    #[arg(long, default_value = SLIPWAY.handler, value_parser = runtime_named)]
    pods: Runtime,
    /// Show two bare VMs on the switch instead of pods
    #[arg(long)]
    vms: bool,
    /// How much to send from one VM to the other: bytes, with k, M or G if you like
    #[arg(long, requires = "vms", default_value = "100M", value_parser = size::parse)]
    bytes: u64,
    /// Use this slipwayd for the VMs instead of building one
    #[arg(long, requires = "vms", value_name = "FILE")]
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
    let progress = Progress::new("The demo");
    if arguments.vms {
        let prepared = prepare(arguments, &progress)?;
        return block_on(show(arguments, prepared, &progress));
    }
    let mut runtime = arguments.pods;
    let (tracer, image) = prepare_pods(runtime, &progress)?;
    block_on(async {
        if let Some(image) = image {
            let probe = accel::choose(&image, arguments.accel, &progress);
            let (_, chosen) = progress.step("Acceleration", act::SHORT, probe).await?;
            runtime.accel = chosen.accel;
        }
        pods::show(runtime, tracer, &progress).await
    })
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

/// The guest image is for runtimes with VMs.
fn prepare_pods(runtime: Runtime, progress: &Progress) -> Result<(Tracer, Option<Image>)> {
    let purposes = [Purpose::Vm, Purpose::Share, Purpose::Trace, Purpose::Pods];
    progress.blocking_step("Debian packages", || deps::ensure(&purposes))?;
    let mut image = None;
    if runtime.has_vm {
        progress.blocking_step("slipway's programs", slipway_programs)?;
        let paths = progress.blocking_step("Guest image", || guest::ensure(false))?;
        image = Some(Image { kernel: paths.vmlinux, initrd: paths.initrd });
    }
    progress.blocking_step("The pods' image", oci_image::ensure)?;
    Ok((progress.blocking_step("A trial of strace", Tracer::new)?, image))
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
