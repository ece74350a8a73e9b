//! Compares two slipwayds: see [`benches::ab`].

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use benches::ab::{self, LEAST_ROUNDS, Options, Side};
use benches::machine::Machine;
use benches::{interrupt, report, scenario};
use clap::Parser;

/// Compares two slipwayds on this machine: same generator, rounds that alternate.
#[derive(Debug, Parser)]
#[command(name = "bench-ab")]
struct Arguments {
    /// The slipwayd to compare with
    #[arg(long)]
    base: PathBuf,
    /// The slipwayd to compare
    #[arg(long)]
    head: PathBuf,
    /// What base was built from
    #[arg(long, default_value = "base")]
    base_name: String,
    /// What head was built from
    #[arg(long, default_value = "head")]
    head_name: String,
    /// Rounds; each starts both anew
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(i64::from(LEAST_ROUNDS)..=100))]
    rounds: u16,
    /// Length of a window in milliseconds
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    window_ms: u64,
    /// These scenarios, by name; --list shows them
    #[arg(long, value_delimiter = ',', default_value = "64,1518,64-fan8,64-ports400")]
    only: Vec<String>,
    /// Show the scenarios and end
    #[arg(long)]
    list: bool,
    /// Where the JSON goes [default: benches/results]
    #[arg(long)]
    out: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    interrupt::guard(|| run(arguments))
}

fn run(arguments: Arguments) -> Result<()> {
    if arguments.list {
        scenario::list();
        return Ok(());
    }
    let base = Side { name: arguments.base_name, program: arguments.base };
    let head = Side { name: arguments.head_name, program: arguments.head };
    let options = Options {
        rounds: arguments.rounds.into(),
        window_ms: arguments.window_ms,
        scenarios: scenario::named(&arguments.only)?,
        sides: [base, head],
    };
    let machine = Machine::here();
    let outcome = ab::run(&options)?;
    println!("{machine}\n");
    for (label, side) in ab::LABELS.iter().zip(&options.sides) {
        println!("{label}: {}", side.name);
    }
    println!("\n{}", report::ab::table(&outcome));

    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("results");
    let out = arguments.out.unwrap_or(default);
    fs::create_dir_all(&out).with_context(|| format!("Failed to make {}", out.display()))?;
    let path = out.join(format!("ab-{}.json", machine.unix_ms / 1000));
    let document = report::ab::document(&options, &machine, &outcome);
    fs::write(&path, format!("{document:#}\n"))
        .with_context(|| format!("Failed to write {}", path.display()))?;
    println!("Stored {}", path.display());
    ensure!(
        outcome.failures.is_empty(),
        "Not all could be measured:\n{}",
        outcome.failures.join("\n")
    );
    Ok(())
}
