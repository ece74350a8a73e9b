//! One point of one arm.

use anyhow::{Result, bail, ensure};
use dataplane::clock;

use super::figures::{COMPLETION, ELEPHANTS, MICE, ROUND_TRIPS, THROUGHPUT};
use crate::compare::flows::cpu::Cpu;
use crate::compare::flows::experiment::{Experiment, Point};
use crate::compare::flows::fair::{jain, max_over_min};
use crate::compare::flows::measurement::Reading;
use crate::compare::guests::attach::Attached;
use crate::compare::guests::fleet::{Fleet, Load, Pair};
use crate::compare::summary::quantile;
use crate::peer::Work;

/// What a mouse sends.
const MOUSE_BYTES: u64 = 5_000_000;
/// What an elephant sends.
const ELEPHANT_BYTES: u64 = 50_000_000;
/// One of so many pairs is an elephant.
const ONE_OF: usize = 5;
/// Flows that are not complete by then are failures.
const LIMIT_US: u64 = 60_000_000;
/// Least round trips for which a p99.9 is told.
const ROUND_TRIPS_LEAST: usize = 1000;

/// How long things are measured.
struct Length {
    warm_up_us: u64,
    window_us: u64,
    /// Times that flows are begun all at once.
    bursts: usize,
}

impl Length {
    const fn of(quick: bool) -> Self {
        if quick {
            Self { warm_up_us: 150_000, window_us: 500_000, bursts: 1 }
        } else {
            Self { warm_up_us: 500_000, window_us: 2_000_000, bursts: 3 }
        }
    }
}

/// Measures it.
///
/// # Errors
/// Guests do not reach each other, or bytes arrive that were not sent; the switch does not say what it did.
pub fn point(
    guests: &mut Attached<'_>,
    experiment: &Experiment,
    point: &Point,
    quick: bool,
) -> Result<Reading> {
    let length = Length::of(quick);
    match experiment.id {
        THROUGHPUT => throughput(guests, &length),
        COMPLETION => flows(guests, &length, |_| false),
        MICE if point.x == ELEPHANTS => flows(guests, &length, is_elephant),
        // The same pairs of the same number: what differs is how much the others send.
        MICE => mice_among_mice(guests, &length),
        ROUND_TRIPS => round_trips(&mut guests.fleet, &length),
        id => bail!("{id} is not measured with guests"),
    }
}

fn is_elephant(pair: usize) -> bool {
    pair % ONE_OF == ONE_OF - 1
}

fn throughput(guests: &mut Attached<'_>, length: &Length) -> Result<Reading> {
    guests.fleet.begin(|_| Load::Endless)?;
    guests.fleet.run(length.warm_up_us, |_| false)?;
    let received = |fleet: &Fleet| fleet.pairs.iter().map(|p| p.received).collect::<Vec<_>>();
    let work = guests.work()?;
    let (cpu, before, waited) = (Cpu::now()?, received(&guests.fleet), guests.fleet.waited);
    let begin = clock::ticks();
    guests.fleet.run(length.window_us, |_| false)?;
    let ticks = clock::ticks() - begin;
    let (cpu, after) = (Cpu::now()? - cpu, received(&guests.fleet));
    let waited = guests.fleet.waited - waited;
    let work = (work, guests.work()?);
    let bytes: Vec<_> = after.iter().zip(before).map(|(after, b)| (after - b) as f64).collect();
    let all: f64 = bytes.iter().sum();
    ensure!(all > 0.0, "Nothing arrived in {} us", length.window_us);
    let us = ticks as f64 / clock::ticks_per_us() as f64;
    let rates: Vec<_> = bytes.iter().map(|bytes| bytes * 8.0 / us / 1e3).collect();
    let mut reading = Reading::default();
    reading.value("gbit_per_s", rates.iter().sum());
    reading.value("generator_waited", 100.0 * waited as f64 / ticks as f64);
    for (key, value) in [("jain", jain(&rates)), ("max_over_min", max_over_min(&rates))] {
        if let Some(value) = value {
            reading.value(key, value);
        }
    }
    let busy = (work.1.busy_ticks - work.0.busy_ticks) as f64;
    reading.value("switch_cycles_per_byte", busy / all);
    enter_busy(&mut reading, &work.0, &work.1);
    cpu.enter(&mut reading, all);
    let starved = rates.iter().filter(|rate| **rate == 0.0).count();
    if starved > 0 {
        reading.failures.push(format!("{starved} of {} guests received nothing", rates.len()));
    }
    reading.distribution("per_client_gbit_per_s", rates);
    Ok(reading)
}

pub fn enter_busy(reading: &mut Reading, before: &Work, after: &Work) {
    if let Some(idle) = after.idle_share_since(before) {
        reading.value("pmd_busy", 100.0 * (1.0 - idle));
    }
}

/// Flows of 5 MB, all begun at once; those of `elephant`s were begun before, and are not waited for.
fn flows(
    guests: &mut Attached<'_>,
    length: &Length,
    elephant: fn(usize) -> bool,
) -> Result<Reading> {
    let load = |n| if elephant(n) { Load::Bytes(ELEPHANT_BYTES) } else { Load::Rest };
    collect(guests, length, |fleet, warm_up_us| {
        fleet.begin(load)?;
        if (0..fleet.pairs.len()).any(elephant) {
            fleet.run(warm_up_us, |_| false)?;
        }
        let mice: Vec<_> = (0..fleet.pairs.len()).filter(|n| !elephant(*n)).collect();
        for &n in &mice {
            fleet.begin_one(n, Load::Bytes(MOUSE_BYTES))?;
        }
        Ok(mice)
    })
}

/// As [`flows`], but who else is an elephant sends 5 MB after 5 MB: as many pairs are at work all the time.
fn mice_among_mice(guests: &mut Attached<'_>, length: &Length) -> Result<Reading> {
    collect(guests, length, |fleet, _| {
        fleet.begin(|_| Load::Bytes(MOUSE_BYTES))?;
        Ok((0..fleet.pairs.len()).filter(|n| !is_elephant(*n)).collect())
    })
}

/// Has `begin` begin flows, waits until those of the pairs that it returns are complete, and so on.
fn collect(
    guests: &mut Attached<'_>,
    length: &Length,
    begin: impl Fn(&mut Fleet, u64) -> Result<Vec<usize>>,
) -> Result<Reading> {
    let (mut completions, mut reading) = (Vec::new(), Reading::default());
    let before = guests.work()?;
    for _ in 0..length.bursts {
        let mice = begin(&mut guests.fleet, length.warm_up_us)?;
        let pairs = |fleet: &Fleet, is: fn(&Pair) -> bool| {
            mice.iter().filter(|n| is(&fleet.pairs[**n])).count()
        };
        guests.fleet.run(LIMIT_US, |fleet| pairs(fleet, Pair::is_done) == mice.len())?;
        let late = mice.len() - pairs(&guests.fleet, Pair::is_done);
        if late > 0 {
            let limit_s = LIMIT_US / 1_000_000;
            reading.failures.push(format!("{late} flows are not complete after {limit_s} s"));
        }
        completions.extend(mice.iter().filter_map(|n| guests.fleet.pairs[*n].completion_ms()));
    }
    enter_busy(&mut reading, &before, &guests.work()?);
    ensure!(!completions.is_empty(), "No flow was complete in time");
    for (key, share) in [("p50_ms", 0.5), ("p90_ms", 0.9), ("p99_ms", 0.99)] {
        reading.value(key, quantile(completions.clone(), share));
    }
    reading.distribution("completion_ms", completions);
    Ok(reading)
}

/// Between the first two guests; the others are connected and rest.
fn round_trips(fleet: &mut Fleet, length: &Length) -> Result<Reading> {
    fleet.begin(|n| if n == 0 { Load::Messages } else { Load::Rest })?;
    fleet.run(length.warm_up_us, |_| false)?;
    fleet.pairs[0].take_round_trips_us();
    fleet.run(length.window_us, |_| false)?;
    let trips = fleet.pairs[0].take_round_trips_us();
    ensure!(!trips.is_empty(), "No message came back in {} us", length.window_us);
    let mut reading = Reading::default();
    for (key, share) in [("p50_us", 0.5), ("p99_us", 0.99), ("p999_us", 0.999)] {
        if share < 0.999 || trips.len() >= ROUND_TRIPS_LEAST {
            reading.value(key, quantile(trips.clone(), share));
        }
    }
    Ok(reading)
}
