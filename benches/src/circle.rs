//! The cross-check: frames that circle between the ports of a guest that is not ours, counted by it.

use std::thread;
use std::time::Duration;

use anyhow::Result;
use dataplane::clock;

use crate::distance::core_round_trip_ns;
use crate::interrupt;
use crate::measure::{Conditions, Sample};
use crate::peer::Peer;
use crate::peer::dpdk_guest::{DpdkGuest, ensure_size};
use crate::scenario::{Figure, Scenario};

/// Measures `scenario` on `peer`, whose first two ports are `guest`'s.
///
/// The caller, who is on the generator's core, sleeps meanwhile: that core is the guest's.
///
/// # Errors
/// Frames do not circle, or others do; the switch does not say what it did.
pub fn measure(
    scenario: &Scenario,
    guest: &mut DpdkGuest,
    peer: &mut dyn Peer,
    conditions: &Conditions,
) -> Result<Sample> {
    interrupt::check()?;
    let len = scenario.frame_bytes();
    guest.begin(len)?;
    thread::sleep(Duration::from_millis(conditions.warm_up_ms));
    // The guest polls all the time, so neither core moves for waiting.
    let distance_ns = core_round_trip_ns(conditions.core);
    let (before, shown_before) = (peer.work()?, guest.show()?);
    let begin = clock::ticks();
    thread::sleep(Duration::from_millis(conditions.window_ms));
    let (shown, after) = (guest.show()?, peer.work()?);
    let passed_us = (clock::ticks() - begin) as f64 / clock::ticks_per_us() as f64;
    ensure_size(shown_before, shown, len)?;
    guest.pause()?;
    let rate = shown.frames_per_s as f64;
    let mut sample = Sample::default();
    sample.figures.insert(Figure::Mpps, rate / 1e6);
    let ticks = after.ticks_per_frame_since(&before);
    let idle = after.idle_share_since(&before);
    sample.figures.extend(ticks.map(|ticks| (Figure::CyclesPerFrame, ticks)));
    sample.figures.extend(idle.map(|share| (Figure::IdlePercent, share * 100.0)));
    sample.idle_share = idle;
    sample.length_ms = passed_us / 1e3;
    Ok(sample.between(distance_ns, conditions))
}
