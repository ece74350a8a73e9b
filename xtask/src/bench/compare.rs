//! `cargo xtask compare`: ways to connect pods beside each other.

use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::deps::{self, Purpose};
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
    let mut programs = vec![("benches", "bench-compare")];
    if !only_reads(&arguments.rest) {
        deps::ensure(&[Purpose::Compare])?;
        programs.extend([("dataplane", "slipwayd"), ("slipwayctl", "slipway-cni")]);
    }
    let programs = workspace::build(&programs)?;
    super::run(Command::new(programs.join("bench-compare")).args(&arguments.rest))
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
