//! Forwarding between two guests on one polling core: slipway's, and that of the crates' own loop.
//!
//! Both switches are measured by the same generator in the same rounds, interleaved, because machines
//! drift and are shared: compare columns of one run.

use anyhow::{Context, Result};
use dataplane::control::Control;
use dataplane::pmd::PmdConfig;
use dataplane::testing::{Guest, GuestConfig};
use serde::Serialize;

use crate::distance::core_round_trip_ns;
use crate::rig::{Rig, cores, mac, pin};
use crate::stats::Rounds;
use crate::{reference, traffic};

/// Length of one window in milliseconds.
const WINDOW_MS: u64 = 400;
/// Entries of the guests' rings.
const RING: u16 = 1024;

/// One frame size.
#[derive(Debug, Clone, Serialize)]
pub struct Forwarding {
    /// Frame size on a wire in bytes, FCS included, as benchmarks name it.
    pub wire_bytes: usize,
    /// Millions of frames per second through slipway.
    pub mpps: Rounds,
    /// Clock ticks that slipway's PMD was busy, per frame.
    pub cycles_per_frame: Rounds,
    /// Rounds in which the generator was the limit, not slipway.
    pub generator_bound_rounds: usize,
    /// Millions of frames per second through `vhost-user-backend` with `virtio-queue`.
    pub reference_mpps: Rounds,
    /// The one over the other, round by round.
    pub ratio: Rounds,
}

/// All sizes, and how far apart the cores were meanwhile.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// One item per frame size.
    pub sizes: Vec<Forwarding>,
    /// Round trip of one cache line between the two cores in nanoseconds, once per round.
    pub core_round_trip_ns: Rounds,
}

/// Forwards frames of each of `wire_bytes` from one guest to another, `rounds` rounds.
pub fn forwarding(wire_bytes: &[usize], rounds: usize) -> Result<Report> {
    let (generator, pmd) = cores()?;
    let config = GuestConfig::default().ring_size(RING);
    let rig = Rig::start(PmdConfig::default())?;
    let mut sender = rig.guest(1, config.clone())?;
    let mut receiver = rig.guest(2, config.clone())?;
    pin(generator)?;

    let mut samples: Vec<Samples> = wire_bytes.iter().map(|_| Samples::default()).collect();
    let mut round_trips = Vec::new();
    for round in 0..=rounds {
        round_trips.push(core_round_trip_ns(pmd));
        for (&size, samples) in wire_bytes.iter().zip(&mut samples) {
            let template = traffic::frame(mac(2).0, mac(1).0, size - 4);
            let before = rig.switch.pmds();
            let window = traffic::one_way(&mut sender, &mut receiver, &template, WINDOW_MS)?;
            let after = rig.switch.pmds();
            traffic::drain(&mut sender, &mut receiver)?;
            let frames = after.pmds[0].frames - before.pmds[0].frames;
            let busy = after.pmds[0].busy_cycles - before.pmds[0].busy_cycles;
            let reference = reference_window(&config, &template, pmd)?;
            // The first round warms up caches and pages.
            if round > 0 {
                samples.add(&window, busy as f64 / frames.max(1) as f64, &reference);
            }
        }
    }
    let sum_up = |(&wire_bytes, samples): (&usize, Samples)| samples.sum_up(wire_bytes);
    let sizes = wire_bytes.iter().zip(samples).map(sum_up).collect();
    Ok(Report { sizes, core_round_trip_ns: Rounds::of(round_trips) })
}

/// One window of the crates' own loop. Its daemons serve one connection each and poll as long as
/// their sender is there, so they come and go with the window: both switches use one polling core.
fn reference_window(config: &GuestConfig, template: &[u8], core: usize) -> Result<traffic::Window> {
    let dir = tempfile::tempdir().context("making a folder for sockets")?;
    let sockets = [dir.path().join("a.sock"), dir.path().join("b.sock")];
    let threads = reference::start([&sockets[0], &sockets[1]], core)?;
    let mut receiver = Guest::connect(&sockets[1], config.clone())?;
    // The sender's kick starts the loop, which needs the receiver's ring.
    let mut sender = Guest::connect(&sockets[0], config.clone())?;
    let window = traffic::one_way(&mut sender, &mut receiver, template, WINDOW_MS)?;
    sender.stop()?;
    drop((sender, receiver));
    for thread in threads {
        if thread.join().is_err() {
            anyhow::bail!("a thread of the reference panicked");
        }
    }
    Ok(window)
}

#[derive(Default)]
struct Samples {
    mpps: Vec<f64>,
    cycles: Vec<f64>,
    generator_bound: usize,
    reference: Vec<f64>,
}

impl Samples {
    fn add(&mut self, window: &traffic::Window, cycles: f64, reference: &traffic::Window) {
        self.mpps.push(window.mpps());
        self.cycles.push(cycles);
        self.generator_bound += usize::from(window.is_generator_bound());
        self.reference.push(reference.mpps());
    }

    fn sum_up(self, wire_bytes: usize) -> Forwarding {
        let ratio = self.mpps.iter().zip(&self.reference).map(|(a, b)| a / b).collect();
        Forwarding {
            wire_bytes,
            mpps: Rounds::of(self.mpps),
            cycles_per_frame: Rounds::of(self.cycles),
            generator_bound_rounds: self.generator_bound,
            reference_mpps: Rounds::of(self.reference),
            ratio: Rounds::of(ratio),
        }
    }
}
