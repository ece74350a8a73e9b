//! What a developer runs: `cargo xtask <command>`.
//!
//! Every command says what it does while it does it, works from a clean clone, and leaves its
//! results in cargo's target directory.

use anyhow::Result;
use clap::{Parser, Subcommand};

mod deps;
mod guest;
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
    /// Installs the Debian packages that are missing, or prints how to
    Deps(deps::Arguments),
    /// Builds the guest image: a Debian kernel and our own init
    Guest(guest::Arguments),
    /// Runs every check and test that continuous integration runs
    Test(test::Arguments),
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Deps(arguments) => deps::main(&arguments),
        Command::Guest(arguments) => guest::main(&arguments),
        Command::Test(arguments) => test::main(&arguments),
    }
}
