//! The figures of the README, each measured here: forwarding between two guests on one PMD core.

use anyhow::Result;
use dataplane::control::Control;
use dataplane::pmd::PmdConfig;
use dataplane::testing::GuestConfig;
use serde::Serialize;

use crate::rig::{Rig, mac};
use crate::stats::Rounds;
use crate::traffic;

/// Length of one window in milliseconds.
const WINDOW_MS: u64 = 400;

/// One frame size.
#[derive(Debug, Clone, Serialize)]
pub struct Forwarding {
    /// Frame size on a wire in bytes, FCS included, as benchmarks name it.
    pub wire_bytes: usize,
    /// Millions of frames per second.
    pub mpps: Rounds,
    /// Clock ticks that the PMD was busy, per frame.
    pub cycles_per_frame: Rounds,
    /// Rounds in which the generator was the limit.
    pub generator_bound_rounds: usize,
}

/// Forwards frames of each of `wire_bytes` from one guest to another, `rounds` rounds, interleaved.
pub fn forwarding(wire_bytes: &[usize], rounds: usize) -> Result<Vec<Forwarding>> {
    let rig = Rig::start(PmdConfig::default())?;
    let config = GuestConfig::default().ring_size(1024);
    let mut sender = rig.guest(1, config.clone())?;
    let mut receiver = rig.guest(2, config)?;
    let mut windows = vec![Vec::new(); wire_bytes.len()];
    for round in 0..=rounds {
        for (size, windows) in wire_bytes.iter().zip(&mut windows) {
            let template = traffic::frame(mac(2).0, mac(1).0, size - 4);
            let before = rig.switch.pmds();
            let window = traffic::one_way(&mut sender, &mut receiver, &template, WINDOW_MS)?;
            let after = rig.switch.pmds();
            traffic::drain(&mut sender, &mut receiver)?;
            let frames = after.pmds[0].frames - before.pmds[0].frames;
            let busy = after.pmds[0].busy_cycles - before.pmds[0].busy_cycles;
            // The first round warms up caches and pages.
            if round > 0 {
                windows.push((window, busy as f64 / frames.max(1) as f64));
            }
        }
    }
    let sum_up = |(&wire_bytes, windows): (&usize, &Vec<(traffic::Window, f64)>)| Forwarding {
        wire_bytes,
        mpps: Rounds::of(windows.iter().map(|(window, _)| window.mpps()).collect()),
        cycles_per_frame: Rounds::of(windows.iter().map(|&(_, cycles)| cycles).collect()),
        generator_bound_rounds: windows.iter().filter(|(w, _)| w.is_generator_bound()).count(),
    };
    Ok(wire_bytes.iter().zip(&windows).map(sum_up).collect())
}
