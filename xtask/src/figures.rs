//! `cargo xtask figures`: the figures of the README, measured on this machine.
//!
//! Builds what is measured first, so that no compiler runs beside a measurement.

use std::process::Command;

use anyhow::{Result, bail};
use clap::Args;

use crate::command::{self, Ending};
use crate::workspace;

/// Arguments of `cargo xtask figures`
#[derive(Args)]
pub struct Arguments {
    /// Passed on, e.g. `--rounds 9 --json`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Runs `cargo xtask figures`.
pub fn main(arguments: &Arguments) -> Result<()> {
    let build = ["build", "--release", "-p", "dataplane", "--bin", "slipwayd", "-p", "benches"];
    let mut cargo = Command::new(workspace::cargo());
    cargo.args(build).args(["--bin", "figures"]).current_dir(workspace::root());
    if !command::status(&mut cargo, Ending::Firm)?.success() {
        bail!("The build failed; see above");
    }
    let mut figures = Command::new(workspace::target().join("release/figures"));
    if !command::status(figures.args(&arguments.rest), Ending::Firm)?.success() {
        bail!("The measurement failed; see above");
    }
    Ok(())
}
