//! Compares ways to connect pods: see [`benches::compare`].

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs};

use anyhow::{Context as _, Result, ensure};
use benches::compare::apart::Apart;
use benches::compare::arms::{ArmKind, Programs};
use benches::compare::figures::Figures;
use benches::compare::flows::experiment::{Endpoints, Experiment};
use benches::compare::flows::microvms::MicroVms;
use benches::compare::flows::qemu::{Image, Qemus};
use benches::compare::flows::{self, congestion, containers::Containers};
use benches::compare::report::{self, diff, table};
use benches::compare::run;
use benches::compare::samples::{Parameters, Samples};
use benches::{interrupt, peer};
use clap::{Parser, ValueEnum};

/// Pods at once.
const PODS: [usize; 3] = [50, 200, 400];
const ROUNDS: u16 = 5;
const QUICK_ROUNDS: u16 = 3;
/// Threads that set pods up. More would only wait: for cores, or for each other in the kernel.
const PARALLEL: u16 = 32;
/// Any number would do; the same one gives the same intervals.
const SEED: u64 = 1979;

/// Compares ways to connect pods on this machine: same rounds, a host of their own.
#[derive(Debug, Parser)]
#[command(name = "bench-compare")]
struct Arguments {
    /// Fewer rounds and points, shorter windows, and 50 pods at once at most
    #[arg(long)]
    quick: bool,
    /// Which figures: groups (startup, containers, microvms) or single ones by their ids [default: all]
    #[arg(long, value_delimiter = ',')]
    figures: Vec<String>,
    /// Only these arms
    #[arg(long, value_delimiter = ',', value_enum)]
    arms: Vec<ArmKind>,
    /// Rounds that count [default: 5, or 3 with --quick]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: Option<u16>,
    /// Pods at once, a burst for each number [default: 50,200,400, or 50 with --quick]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=1000))]
    pods: Vec<u16>,
    /// Leave out points of the data plane with more pairs of pods
    #[arg(long)]
    pairs: Option<u16>,
    /// TCP's congestion control in the pods, e.g. cubic [default: the kernel's]
    #[arg(long)]
    congestion_control: Option<String>,
    /// Threads that set pods up
    #[arg(long, default_value_t = PARALLEL, value_parser = clap::value_parser!(u16).range(1..=1000))]
    parallel: u16,
    /// Draw the report of a samples.json anew, without measuring
    #[arg(long, value_name = "FILE", conflicts_with = "diff")]
    replay: Option<PathBuf>,
    /// Hold two samples.json against each other, without measuring
    #[arg(long, num_args = 2, value_names = ["FIRST", "SECOND"])]
    diff: Vec<PathBuf>,
    /// The slipwayd to measure [default: the one beside this program]
    #[arg(long)]
    slipwayd: Option<PathBuf>,
    /// Its plugin [default: the one beside this program]
    #[arg(long)]
    slipway_cni: Option<PathBuf>,
    /// The folder to which DPDK's testpmd and its libraries are unpacked
    #[arg(long, value_name = "FOLDER")]
    testpmd: Option<PathBuf>,
    /// Kernel, initrd, command line and accelerator of QEMU guests, as `cargo xtask compare` makes them
    #[arg(long, value_name = "FOLDER")]
    guest: Option<PathBuf>,
    /// What `cargo xtask compare` measured of whole pods
    #[arg(long, value_name = "FILE")]
    pods_measured: Option<PathBuf>,
    /// Where the folder of results goes [default: benches/results]
    #[arg(long)]
    out: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    interrupt::guard(|| run(arguments))
}

fn run(arguments: Arguments) -> Result<()> {
    if let [first, second] = arguments.diff.as_slice() {
        println!("{}", diff::table(&Samples::read(first)?, &Samples::read(second)?));
        return Ok(());
    }
    if let Some(file) = &arguments.replay {
        let samples = Samples::read(file)?;
        let beside = file.parent().unwrap_or(Path::new("."));
        let out = arguments.out.as_deref().unwrap_or(beside);
        println!("{}", table::all(&samples));
        report::draw(&samples, out)?;
        println!("Drawn anew in {}", out.display());
        return Ok(());
    }
    let figures = Figures::parse(&arguments.figures)?;
    let beside = |name: &str| -> Result<PathBuf> {
        Ok(env::current_exe().context("Failed to find this program")?.with_file_name(name))
    };
    let program = |given: Option<PathBuf>, name: &str| -> Result<PathBuf> {
        let path = given.map_or_else(|| beside(name), Ok)?;
        ensure!(path.exists(), "There is no {}; name it with --{name}", path.display());
        // Nothing is where it was for a program that is started in a folder of its own.
        fs::canonicalize(&path).with_context(|| format!("Failed to resolve {}", path.display()))
    };
    let programs = Programs {
        slipwayd: program(arguments.slipwayd, "slipwayd")?,
        slipway_cni: program(arguments.slipway_cni, "slipway-cni")?,
    };
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("results");
    let out = arguments.out.unwrap_or(default);
    let mut arms = match arguments.arms.as_slice() {
        [] => ArmKind::value_variants().to_vec(),
        some => some.to_vec(),
    };
    // Ours first, and each once.
    arms.sort_unstable();
    arms.dedup();
    let mut pods: Vec<usize> = arguments.pods.iter().map(|pods| usize::from(*pods)).collect();
    if !figures.startup {
        pods.clear();
    } else if pods.is_empty() {
        pods = if arguments.quick { vec![PODS[0]] } else { PODS.to_vec() };
    }
    let rounds = arguments.rounds.unwrap_or(if arguments.quick { QUICK_ROUNDS } else { ROUNDS });
    let congestion_control = arguments.congestion_control.map_or_else(congestion::preset, Ok)?;
    let parameters = Parameters {
        arms,
        figures: arguments.figures,
        quick: arguments.quick,
        pairs: arguments.pairs.map(usize::from),
        congestion_control,
        pods,
        rounds: rounds.into(),
        parallel: arguments.parallel.into(),
        seed: SEED,
    };
    let host = Apart::enter(parameters.parallel)?;
    let mut samples = Samples::begin(parameters);
    if figures.startup {
        run::run(&host, &mut samples, &programs)?;
    }
    let Parameters { congestion_control, quick, .. } = &samples.parameters;
    let containers = Containers::new(programs.clone(), congestion_control.clone(), *quick);
    flows::run::run(&host, &mut samples, &containers, &figures.experiments)?;
    let is_with_guests = |e: &&Experiment| e.endpoints == Endpoints::Microvm;
    if figures.experiments.iter().any(is_with_guests) {
        let Parameters { arms, quick, .. } = &samples.parameters;
        let slipwayd = programs.slipwayd.clone();
        let testpmd = arguments.testpmd.map(fs::canonicalize).transpose();
        let testpmd = testpmd.context("Failed to resolve testpmd's folder")?;
        let programs = peer::Programs { slipwayd, testpmd };
        let bench = MicroVms::new(arms, &figures.experiments, programs, *quick)?;
        flows::run::run(&host, &mut samples, &bench, &figures.experiments)?;
    }
    if figures.experiments.iter().any(|e| e.endpoints == Endpoints::Qemu) {
        let Parameters { arms, quick, .. } = &samples.parameters;
        let guest = arguments.guest.as_deref().map(Image::read).transpose()?;
        let bench = Qemus::new(arms, guest, programs.slipwayd.clone(), *quick)?;
        flows::run::run(&host, &mut samples, &bench, &figures.experiments)?;
    }
    flows::pods::enter(&mut samples, &figures.experiments, arguments.pods_measured.as_deref())?;
    let out = out.join(format!("compare-{}", samples.machine.unix_ms));
    // What was measured first: a report can be drawn again.
    report::store(&samples, &out)?;
    report::draw(&samples, &out)?;
    println!("{}", table::all(&samples));
    println!("Stored {}", out.display());
    // What others fail at is a finding; that we do, or that something could not be measured, is not.
    let own = samples.failures_of(ArmKind::Slipway) + samples.flow_failures_of(ArmKind::Slipway);
    let failures = own + samples.failures.len();
    ensure!(failures == 0, "{failures} failures; {}/report.html names them", out.display());
    Ok(())
}
