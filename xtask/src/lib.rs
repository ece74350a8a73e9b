//! What a developer runs: `cargo xtask <command>`.
//!
//! Every command says what it does while it does it, works from a clean clone, leaves its
//! results in cargo's target directory, and ends in order on Ctrl-C. The [`rig`] of switch and
//! guests is public for the tests that drive real guests.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod accel;
mod bench;
mod command;
mod demo;
mod deps;
mod figures;
mod guest;
mod hugepages;
mod install;
mod interrupt;
mod peers;
mod progress;
pub mod rig;
mod test;
mod workspace;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, tests and shows slipway")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Shows two microVMs that talk through slipwayd, and what it cost
    Demo(demo::Arguments),
    /// Installs the Debian packages that are missing, or prints how to
    Deps(deps::Arguments),
    /// Builds the guest image: a Debian kernel and our own init
    Guest(guest::Arguments),
    /// Runs every check and test that continuous integration runs
    Test(test::Arguments),
    /// Installs slipway on this node, or removes it
    Install(install::Arguments),
    /// Makes the Debian package
    Deb(install::deb::Arguments),
    /// Measures on this machine and prints the figures of the README
    Figures(figures::Arguments),
    /// Compares slipway with other switches on this machine
    #[command(subcommand)]
    Bench(bench::What),
    /// Compares ways to connect pods: slipway, bridges, macvlan, tc, stock CNI plugins, OVS
    Compare(bench::compare::Arguments),
}

/// Runs the command that the command line names. Exit codes: 0 done, 1 failed, 2 wrong command line,
/// 130 interrupted.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = interrupt::install().and_then(|()| run(arguments));
    match outcome {
        // An interrupted command fails in many ways, all of them for one reason.
        _ if interrupt::is_requested() => {
            eprintln!("Interrupted");
            ExitCode::from(interrupt::EXIT_CODE)
        }
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without the backtraces that anyhow would add: a failure is one of the machine's.
            eprintln!("Error: {error}");
            for cause in error.chain().skip(1) {
                eprintln!("  because: {cause}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    match arguments.command {
        Command::Demo(arguments) => demo::main(&arguments),
        Command::Deps(arguments) => deps::main(&arguments),
        Command::Guest(arguments) => guest::main(&arguments),
        Command::Test(arguments) => test::main(&arguments),
        Command::Install(arguments) => install::main(&arguments),
        Command::Deb(arguments) => install::deb::main(&arguments),
        Command::Figures(arguments) => figures::main(&arguments),
        Command::Bench(what) => bench::main(&what),
        Command::Compare(arguments) => bench::compare::main(&arguments),
    }
}
