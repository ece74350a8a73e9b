//! `cargo xtask bench`: comparisons, each a program of the package `benches`.
//!
//! Installs what is compared with and builds in release first, so that nothing of that runs beside a
//! measurement.

mod ab;
pub mod compare;
mod instructions;
mod pods;
mod qemu;
mod source;

use std::process::Command;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};

use crate::command::{self, Ending};
use crate::deps::{self, Purpose};
use crate::hugepages::Hugepages;
use crate::{peers, workspace};

/// What to compare
#[derive(Subcommand)]
pub enum What {
    /// slipwayd, OVS-DPDK, testpmd and an ideal loop: throughput, latency, CPU
    Switch(Arguments),
    /// slipwayd of the working tree with that of another revision: what a change does
    Ab(ab::Arguments),
    /// The switch's instructions for each frame, stage by stage, with those that were stored
    Instructions(instructions::Arguments),
}

/// Arguments of `cargo xtask bench switch`
#[derive(Args)]
pub struct Arguments {
    /// Passed on, e.g. `--rounds 9 --only 64,1518`; `--help` after `--` shows them all
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Runs `cargo xtask bench`.
pub fn main(what: &What) -> Result<()> {
    match what {
        What::Switch(arguments) => switch(arguments),
        What::Ab(arguments) => ab::main(arguments),
        What::Instructions(arguments) => instructions::main(arguments),
    }
}

fn switch(arguments: &Arguments) -> Result<()> {
    deps::ensure(&[Purpose::Trace])?;
    let testpmd = peers::ensure()?;
    let programs = workspace::build(&[("dataplane", "slipwayd"), ("benches", "bench-switch")])?;
    let mut bench = Command::new(programs.join("bench-switch"));
    run(bench.arg("--testpmd").arg(testpmd).args(&arguments.rest))
}

fn run(bench: &mut Command) -> Result<()> {
    // Dropped when the program and its group have ended, by themselves or not.
    let _hugepages = Hugepages::note()?;
    if !command::status(bench, Ending::Firm)?.success() {
        bail!("The comparison failed; see above");
    }
    Ok(())
}
