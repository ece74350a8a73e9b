//! Prints the figures of the README: forwarding on one core, and what 400 ports cost.

use std::path::PathBuf;

use anyhow::{Context, Result};
use benches::{figures, ports};
use clap::Parser;

/// Measures slipway on this machine and prints the figures of the README.
#[derive(Debug, Parser)]
struct Arguments {
    /// Rounds of each measurement; one more warms up
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Ports for the measurement of many ports
    #[arg(long, default_value_t = 400)]
    ports: u32,
    /// The slipwayd to measure [default: the one beside this program]
    #[arg(long)]
    slipwayd: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let slipwayd = match arguments.slipwayd {
        Some(path) => path,
        None => std::env::current_exe().context("finding this program")?.with_file_name("slipwayd"),
    };
    eprintln!("{} ports ...", arguments.ports);
    let many = ports::many_ports(&slipwayd, arguments.ports)?;
    eprintln!("forwarding, {} rounds ...", arguments.rounds);
    let forwarding = figures::forwarding(&[64, 256, 1518], arguments.rounds)?;
    if arguments.json {
        let all = serde_json::json!({ "forwarding": forwarding, "many_ports": many });
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    println!("Forwarding, two guests, one PMD core; median (least-most) of the rounds");
    println!(
        "{:>6} {:>22} {:>20} {:>24} {:>22}",
        "frame", "Mpps", "cycles a frame", "vhost-user-backend Mpps", "slipway over it"
    );
    for row in &forwarding.sizes {
        println!(
            "{:>4} B {:>22} {:>20} {:>24} {:>22}",
            row.wire_bytes,
            format!("{:.2}", row.mpps),
            format!("{:.0}", row.cycles_per_frame),
            format!("{:.2}", row.reference_mpps),
            format!("{:.1}", row.ratio),
        );
        if row.generator_bound_rounds > 0 {
            println!("       generator-bound in {} rounds", row.generator_bound_rounds);
        }
    }
    println!(
        "One cache line from core to core and back: {:.0} ns. Virtual machines move between cores of\n\
         their host: compare columns of one run, not runs.",
        forwarding.core_round_trip_ns
    );
    println!();
    println!("{} ports on one slipwayd", many.ports);
    println!("  create all over the API       {:>8.1} ms", many.create_ms);
    println!("  connect all, one by one       {:>8.1} ms", many.connect_ms);
    println!("  memory per connected port     {:>8.1} KiB", many.kib_per_port);
    println!("  threads without / with ports  {:>5} / {}", many.threads_before, many.threads_after);
    println!("  file descriptors per port     {:>8.1}", many.fds_per_port);
    println!("  CPU while all are idle        {:>8.2} % of a core", many.idle_cpu_percent);
    Ok(())
}
