//! The figures of the switch alone: forwarding on one core, and what many ports cost.
//!
//! Builds what is measured first, so that no compiler runs beside a measurement.

use std::process::Command;

use anyhow::{Result, bail};

use crate::command::{self, Ending};
use crate::workspace;

/// Measures and prints; `rest` is for the program that does.
pub fn measure(rest: &[String]) -> Result<()> {
    let build = ["build", "--release", "-p", "dataplane", "--bin", "slipwayd", "-p", "benches"];
    let mut cargo = Command::new(workspace::cargo());
    cargo.args(build).args(["--bin", "figures"]).current_dir(workspace::root());
    if !command::status(&mut cargo, Ending::Firm)?.success() {
        bail!("The build failed; see above");
    }
    let mut figures = Command::new(workspace::target().join("release/figures"));
    if !command::status(figures.args(rest), Ending::Firm)?.success() {
        bail!("The measurement failed; see above");
    }
    Ok(())
}
