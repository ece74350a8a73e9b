//! `cargo xtask compare`: ways to connect pods beside each other.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};
use clap::Args;

use super::{pods, qemu};
use crate::deps::{self, Purpose};
use crate::rig::{PROGRAMS, take_programs};
use crate::{peers, workspace};

/// What needs no measurement.
const READS: [&str; 4] = ["--replay", "--diff", "--help", "-h"];

/// `--figures` with packet rates, which DPDK's testpmd sends.
const PACKETS: [&str; 2] = ["microvms", "vm-packets"];

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
        eprintln!("Looking for the Debian packages that the arms need");
        deps::ensure(&[Purpose::Compare])?;
        match plan {
            Some(_) => programs.extend(PROGRAMS),
            None => programs.extend([("dataplane", "slipwayd"), ("slipway-cni", "slipway-cni")]),
        }
    }
    let names: Vec<_> = programs.iter().map(|(_, program)| *program).collect();
    eprintln!("Building {}: minutes the first time", names.join(", "));
    let programs = workspace::build(&programs)?;
    let mut bench = Command::new(programs.join("bench-compare"));
    // Held until the comparison has ended.
    let folder = tempfile::tempdir().context("Failed to make a folder for the comparison")?;
    if let Some(plan) = plan {
        take_programs(&programs);
        let file = folder.path().join("pods.json");
        pods::measure(&plan, &file)?;
        bench.arg("--pods-measured").arg(file);
    }
    if !reads && asks_for(&arguments.rest, &PACKETS) {
        bench.arg("--testpmd").arg(peers::ensure()?);
    }
    let guest = folder.path().join("guest");
    if !reads && qemu::is_asked(&arguments.rest) {
        fs::create_dir(&guest).context("Failed to make a folder for the guests' image")?;
        qemu::prepare(&guest)?;
        bench.arg("--guest").arg(guest);
    }
    super::run(bench.args(&arguments.rest))
}

fn only_reads(rest: &[String]) -> bool {
    rest.iter().any(|word| READS.contains(&word.split('=').next().unwrap_or(word)))
}

/// What the command line says of the option `name`.
pub(super) fn value<'a>(words: &'a [String], name: &str) -> Option<&'a str> {
    let at = words.iter().position(|word| word.split('=').next() == Some(name))?;
    match words[at].split_once('=') {
        Some((_, value)) => Some(value),
        None => words.get(at + 1).map(String::as_str),
    }
}

/// Whether `--figures` has one of these names, or is not there: then all are meant.
pub(super) fn asks_for(words: &[String], names: &[&str]) -> bool {
    let figures = value(words, "--figures");
    figures.is_none_or(|figures| figures.split(',').any(|figure| names.contains(&figure)))
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

    #[test]
    fn testpmd_is_fetched_for_packet_rates_only() {
        let asks =
            |line: &str| asks_for(&line.split(' ').map(String::from).collect::<Vec<_>>(), &PACKETS);
        assert!(
            asks("--quick") && asks("--figures=startup,vm-packets") && asks("--figures microvms")
        );
        assert!(!asks("--figures startup --quick") && !asks("--figures=containers"));
    }
}
