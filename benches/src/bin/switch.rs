//! Compares slipwayd with OVS-DPDK, testpmd and an ideal loop: see [`benches::runner`].

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs};

use anyhow::{Context as _, Result, ensure};
use benches::machine::Machine;
use benches::peer::{PeerKind, Programs};
use benches::report::{json, svg, table};
use benches::runner::{self, Options};
use benches::syscalls::{self, SystemCalls};
use benches::{interrupt, scenario};
use clap::{Parser, ValueEnum as _};

/// Compares slipwayd with other switches on this machine: same generator, same rounds.
#[derive(Debug, Parser)]
#[command(name = "bench-switch")]
struct Arguments {
    /// Rounds; each starts every switch anew
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Length of a window in milliseconds
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    window_ms: u64,
    /// Length of what precedes each window, in milliseconds
    #[arg(long, default_value_t = runner::WARM_UP_MS, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    warm_up_ms: u64,
    /// Windows of which the hypervisor takes more than this share are measured anew
    #[arg(long, default_value_t = runner::MOST_STEAL_PERCENT)]
    most_steal_percent: f64,
    /// A window waits so many milliseconds for the cores to be at their usual distance; 0: any will do
    #[arg(long, default_value_t = runner::PATIENCE_MS)]
    patience_ms: u64,
    /// Only these scenarios, by name; --list shows them
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only these switches
    #[arg(long, value_delimiter = ',', value_enum)]
    peers: Vec<PeerKind>,
    /// One round of what takes two ports, in windows of 50 ms: shows that it works, measures nothing
    #[arg(long, conflicts_with_all = ["rounds", "window_ms", "warm_up_ms", "most_steal_percent", "patience_ms"])]
    quick: bool,
    /// Show the scenarios and end
    #[arg(long)]
    list: bool,
    /// The slipwayd to measure [default: the one beside this program]
    #[arg(long)]
    slipwayd: Option<PathBuf>,
    /// The folder to which testpmd and its libraries are unpacked
    #[arg(long)]
    testpmd: Option<PathBuf>,
    /// Where JSON and SVG go [default: benches/results]
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
    let mut scenarios = scenario::named(&arguments.only)?;
    if arguments.quick {
        scenarios.retain(|scenario| scenario.setup.ports == 2);
    }
    let mut peers = match arguments.peers.as_slice() {
        [] => PeerKind::value_variants().to_vec(),
        some => some.to_vec(),
    };
    // Ours first, and each once.
    peers.sort_unstable();
    peers.dedup();
    let slipwayd = match arguments.slipwayd {
        Some(path) => path,
        None => {
            env::current_exe().context("Failed to find this program")?.with_file_name("slipwayd")
        }
    };
    ensure!(slipwayd.exists(), "There is no {}; name it with --slipwayd", slipwayd.display());
    let options = Options {
        rounds: if arguments.quick { 1 } else { arguments.rounds.into() },
        window_ms: if arguments.quick { 50 } else { arguments.window_ms },
        warm_up_ms: if arguments.quick { 20 } else { arguments.warm_up_ms },
        most_steal_percent: if arguments.quick { 100.0 } else { arguments.most_steal_percent },
        patience_ms: if arguments.quick { 0 } else { arguments.patience_ms },
        scenarios,
        peers,
        programs: Programs { slipwayd, testpmd: arguments.testpmd },
    };
    let machine = Machine::here();
    let outcome = runner::run(&options)?;
    let mut failures = outcome.failures;
    let calls = match count_calls(&options) {
        Some(Ok(calls)) => Some(calls),
        None => None,
        Some(Err(error)) => {
            interrupt::check()?;
            failures.push(format!("{error:#}"));
            None
        }
    };
    println!("{machine}\n");
    println!("{}", table::all(&outcome.results));
    if let Some(calls) = &calls {
        println!("{}", table::system_calls(calls, &outcome.results));
    }

    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("results");
    let out = arguments.out.unwrap_or(default);
    fs::create_dir_all(&out).with_context(|| format!("Failed to make {}", out.display()))?;
    let base = out.join(format!("switch-{}", machine.unix_ms / 1000));
    let document = json::document(&options, &machine, &outcome.results, calls.as_ref());
    let files = [
        (base.with_extension("json"), format!("{document:#}\n")),
        (base.with_extension("svg"), svg::bars(&outcome.results)),
    ];
    for (path, text) in files {
        fs::write(&path, text).with_context(|| format!("Failed to write {}", path.display()))?;
        println!("Stored {}", path.display());
    }
    if let Some(Err(error)) = calls.map(|calls| calls.check()) {
        failures.push(format!("{error:#}"));
    }
    ensure!(failures.is_empty(), "Not all is as it should be:\n{}", failures.join("\n"));
    Ok(())
}

/// After the rates, which strace would disturb; `None`: it was not asked for, or there is no strace.
fn count_calls(options: &Options) -> Option<Result<SystemCalls>> {
    let is_asked_for = options.peers.contains(&PeerKind::Slipwayd)
        && options.scenarios.iter().any(|scenario| scenario.name == syscalls::SCENARIO);
    if !is_asked_for {
        return None;
    }
    if !syscalls::is_possible() {
        eprintln!("strace is not installed: system calls are not counted");
        return None;
    }
    eprintln!("System calls of slipwayd");
    let counted = syscalls::count(&options.programs, options.window_ms);
    Some(counted.context("Failed to count system calls"))
}
