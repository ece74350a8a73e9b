//! One burst after the other through a pipeline without threads: what callgrind counts.
//!
//! ```sh
//! cargo build --release -p benches --bin pipeline
//! valgrind --tool=callgrind --toggle-collect='*Worker*run*' target/release/pipeline --frames 32000
//! ```
//! prints the instructions spent inside of the pipeline, `Worker::run` and what it calls, on all frames
//! together. Guests fill and empty their rings outside of it. The count repeats exactly.

use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use benches::local::Net;
use benches::traffic;
use clap::Parser;
use dataplane::testing::GuestConfig;
use slipway_api::Policy;

/// Sends bursts of frames through the pipeline of a switch
#[derive(Parser)]
struct Arguments {
    /// Bytes of a frame, with its check sequence
    #[arg(long, default_value_t = 64)]
    bytes: usize,
    /// Frames, all together
    #[arg(long, default_value_t = 64_000)]
    frames: usize,
    /// Packed rings
    #[arg(long)]
    packed: bool,
    /// Receivers in turn
    #[arg(long, default_value_t = 1)]
    receivers: usize,
    /// Ports are bound to their addresses, as those of pods are
    #[arg(long)]
    bound: bool,
    /// Ports have this many rules each way, of which the last allows the frames
    #[arg(long, value_name = "RULES")]
    policy: Option<u16>,
}

const BURST: usize = 32;

/// Rules of which only the last matches: others name ports that no frame goes to.
fn policy(rules: u16) -> Result<Policy> {
    let mut texts = Vec::new();
    for direction in ["egress", "ingress"] {
        let others = (1..rules).map(|n| format!("deny {direction} protocol tcp ports {n}"));
        texts.extend(others.chain([format!("allow {direction}")]));
    }
    let rules = texts.iter().map(|text| text.parse().context("a rule"));
    Ok(Policy { rules: rules.collect::<Result<_>>()?, ..Policy::default() })
}

fn run(arguments: &Arguments) -> Result<()> {
    let config = GuestConfig::default().ring_size(256).packed(arguments.packed);
    let mut net = Net::new();
    for _ in 0..=arguments.receivers {
        net.add(arguments.bound, config.clone())?;
    }
    if let Some(rules) = arguments.policy {
        net.set_policy(&policy(rules)?);
    }
    let frames: Vec<_> = (1..=arguments.receivers)
        .map(|to| traffic::ipv4(net.address(to), net.address(0), arguments.bytes - 4))
        .collect();
    let mut done = 0;
    while done < arguments.frames {
        let mut turn = 0;
        let sent = net.guests[0].tx().tx_burst(BURST, |slot| {
            slot.write(&frames[turn % frames.len()]);
            turn += 1;
        });
        ensure!(sent.context("sending")? == BURST, "the transmit ring is full");
        net.run(0).context("the pipeline")?;
        let mut received = 0;
        for guest in &mut net.guests[1..] {
            received += guest.rx().rx_burst(BURST, |_| {}).context("receiving")?;
        }
        ensure!(received == BURST, "{received} of {BURST} frames came through");
        done += BURST;
    }
    println!("{done}");
    Ok(())
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
