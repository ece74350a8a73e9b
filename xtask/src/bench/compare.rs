//! `cargo xtask compare`: ways to connect pods beside each other.

use std::process::Command;

use anyhow::{Context as _, Result};
use clap::Args;

use super::pods;
use crate::deps::{self, Purpose};
use crate::rig::{PROGRAMS, take_programs};
use crate::workspace;

/// What needs no measurement.
const READS: [&str; 4] = ["--replay", "--diff", "--help", "-h"];

/// Arguments of `cargo xtask compare`
#[derive(Args)]
pub struct Arguments {
    /// Passed on, e.g. `--quick --arms slipway,kata,cni-bridge`; `--help` after `--` shows them all
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Runs `cargo xtask compare`.
pub fn main(arguments: &Arguments) -> Result<()> {
    let reads = only_reads(&arguments.rest);
    let plan = pods::Plan::of(&arguments.rest).filter(|_| !reads);
    let mut programs = vec![("benches", "bench-compare")];
    if !reads {
        deps::ensure(&[Purpose::Compare])?;
        match plan {
            Some(_) => programs.extend(PROGRAMS),
            None => programs.extend([("dataplane", "slipwayd"), ("slipwayctl", "slipway-cni")]),
        }
    }
    let programs = workspace::build(&programs)?;
    let mut bench = Command::new(programs.join("bench-compare"));
    // Held until the comparison has read it.
    let folder = tempfile::tempdir().context("Failed to make a folder for the pods' figures")?;
    if let Some(plan) = plan {
        take_programs(&programs);
        let file = folder.path().join("pods.json");
        pods::measure(&plan, &file)?;
        bench.arg("--pods-measured").arg(file);
    }
    super::run(bench.args(&arguments.rest))
}

fn only_reads(rest: &[String]) -> bool {
    rest.iter().any(|word| READS.contains(&word.split('=').next().unwrap_or(word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawing_a_report_anew_takes_no_packages() {
        let is = |line: &str| only_reads(&line.split(' ').map(String::from).collect::<Vec<_>>());
        assert!(is("--replay a.json") && is("--replay=a.json") && is("--diff a b"));
        assert!(!is("--quick --arms slipway,veth"));
    }
}
