//! `cargo xtask bench ab`: slipwayd of the working tree beside that of another revision.

use std::process::Command;

use anyhow::Result;
use clap::Args;

use super::source::{Source, Workshop};
use crate::workspace;

/// Arguments of `cargo xtask bench ab`
#[derive(Args)]
pub struct Arguments {
    /// What to compare with, as git names it: `HEAD`, `main`, `HEAD~3`
    revision: String,
    /// Passed on, e.g. `--rounds 20 --window-ms 500 --only 64,rtt`; `--help` after `--` shows them all
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Runs `cargo xtask bench ab`.
pub fn main(arguments: &Arguments) -> Result<()> {
    let workshop = Workshop::open()?;
    let base = Source::of_revision(&arguments.revision)?;
    let head = Source::of_working_tree(&workshop)?;
    if base.tree == head.tree {
        println!("Both are the same source: this shows what the machine makes of no difference");
    }
    let programs = [workshop.slipwayd(&base)?, workshop.slipwayd(&head)?];
    let tools = workspace::build(&[("benches", "bench-ab")])?;
    let mut bench = Command::new(tools.join("bench-ab"));
    bench.arg("--base").arg(&programs[0]).arg("--base-name").arg(&base.name);
    bench.arg("--head").arg(&programs[1]).arg("--head-name").arg(&head.name);
    super::run(bench.args(&arguments.rest))
}
