//! The rounds: each starts each switch anew for each set-up, one after the other, so that what the
//! machine does meanwhile hits them all alike.
//!
//! ```text
//!  round 1   2 ports:  slipwayd  ovs  testpmd  ideal      each: start, connect guests, settle,
//!            packed:   slipwayd  ovs  testpmd                   (prove, in round 1,)
//!            ...                                                a window of each scenario, stop
//!  round 2   2 ports:  slipwayd  ovs  ...
//! ```
//!
//! What fails is told at once and in its cells, and is not tried again; the others go on.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use dataplane::clock;

use crate::belongings::Belongings;
use crate::measure::{self, Sample};
use crate::peer::ideal::Ideal;
use crate::peer::{self, PeerKind, Place, Programs, Setup, number};
use crate::results::Results;
use crate::rig::{cores, mac, pin};
use crate::scenario::{self, Scenario};
use crate::{host, interrupt};

/// Hugepages for the largest peer (OVS: 512 MiB, and it takes more if there is) and for guests.
pub(crate) const HUGE_PAGES: u64 = 640;

/// What to measure, and how.
#[derive(Debug)]
pub struct Options {
    /// Rounds.
    pub rounds: usize,
    /// Length of a window in milliseconds.
    pub window_ms: u64,
    /// What.
    pub scenarios: Vec<Scenario>,
    /// On which switches.
    pub peers: Vec<PeerKind>,
    /// What is run.
    pub programs: Programs,
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// The numbers.
    pub results: Results,
    /// What went wrong, in words.
    pub failures: Vec<String>,
}

/// Measures.
///
/// # Errors
/// The machine does not have what it takes, or someone wants us to end. What fails of a single
/// switch is part of the outcome.
pub fn run(options: &Options) -> Result<Outcome> {
    let (generator, core) = cores()?;
    pin(generator)?;
    let belongings = Belongings::take(HUGE_PAGES)?;
    let mut missing = Vec::new();
    for &peer in &options.peers {
        if let Some(what) = peer.missing(&options.programs) {
            eprintln!("{} is not installed: there is no {what}", peer.name());
            missing.push(peer);
        }
    }
    let mut results = Results::new(options.scenarios.clone(), options.peers.clone());
    for scenario in &options.scenarios {
        for &peer in &options.peers {
            let refusal = scenario.refusal(peer);
            let refusal = refusal.or(missing.contains(&peer).then_some("not installed"));
            if let Some(reason) = refusal {
                results.refuse((scenario.name, peer), reason);
            }
        }
    }
    let groups: Vec<_> = options.scenarios.chunk_by(|a, b| a.setup == b.setup).collect();
    let mut progress = Progress::new(options.rounds * groups.len() * options.peers.len());
    let mut failures = Vec::new();
    for round in 0..options.rounds {
        results.core_round_trip_ns.push(host::core_round_trip_ns(core));
        for scenarios in &groups {
            for &kind in &options.peers {
                let setup = scenarios[0].setup;
                progress.step(round, kind.name(), &setup);
                let open = |scenario: &&Scenario| !results.is_refused((scenario.name, kind));
                let scenarios: Vec<_> = scenarios.iter().filter(open).collect();
                if scenarios.is_empty() {
                    continue;
                }
                let dir = belongings.dir().join(format!("{}-{}", kind.name(), progress.done));
                fs::create_dir(&dir)
                    .with_context(|| format!("Failed to make {}", dir.display()))?;
                let place = Place { dir, generator, core, programs: options.programs.clone() };
                let session = Session { kind, setup, place, window_ms: options.window_ms };
                let outcome = session.run(&scenarios, round == 0);
                interrupt::check()?;
                fs::remove_dir_all(&session.place.dir)?;
                match outcome {
                    Ok(samples) => {
                        for (scenario, sample) in scenarios.iter().zip(samples) {
                            results.enter((scenario.name, kind), round, sample);
                        }
                    }
                    Err(error) => {
                        let failure = format!("{} with {setup}: {error:#}", kind.name());
                        eprintln!("FAILED: {failure}");
                        failures.push(failure);
                        for scenario in scenarios {
                            results.refuse((scenario.name, kind), "failed");
                        }
                    }
                }
            }
        }
    }
    Ok(Outcome { results, failures })
}

/// One switch, from its start to its end.
pub(crate) struct Session {
    pub(crate) kind: PeerKind,
    pub(crate) setup: Setup,
    pub(crate) place: Place,
    pub(crate) window_ms: u64,
}

impl Session {
    /// Starts it, measures and ends it; what was measured, by scenario.
    pub(crate) fn run(
        &self,
        scenarios: &[&Scenario],
        is_to_be_proved: bool,
    ) -> Result<Vec<Sample>> {
        if self.kind == PeerKind::Ideal {
            return self.run_ideal(scenarios, is_to_be_proved);
        }
        let Setup { ports, active, tso, .. } = self.setup;
        let mut peer =
            peer::start(self.kind, &self.setup, &self.place).context("It did not start")?;
        let connect = |port| {
            interrupt::check()?;
            let config = scenario::guest(&self.setup, port < active);
            let guest = peer.guest(port, config);
            guest.with_context(|| format!("Failed to connect guest {port}"))
        };
        let mut guests = (0..ports).map(connect).collect::<Result<Vec<_>>>()?;
        let busy = &mut guests[..active];
        measure::settle(busy)?;
        if is_to_be_proved {
            measure::prove(busy, tso).context("Frames do not arrive as they were sent")?;
        }
        let measure = |scenario: &&Scenario| {
            let sample = measure::measure(scenario, busy, &mut *peer, self.window_ms);
            sample.with_context(|| format!("Failed to measure {}", scenario.name))
        };
        let samples = scenarios.iter().map(measure).collect::<Result<Vec<_>>>()?;
        drop(guests);
        peer.stop()?;
        Ok(samples)
    }

    fn run_ideal(&self, scenarios: &[&Scenario], is_to_be_proved: bool) -> Result<Vec<Sample>> {
        let turns = scenario::turns(&self.setup);
        let mut ideal = Ideal::start(self.place.core, turns, mac(number(1)).0)?;
        if is_to_be_proved {
            measure::prove_ideal(&mut ideal).context("Frames do not arrive as they were sent")?;
        }
        let measure = |scenario: &&Scenario| {
            let sample = measure::measure_ideal(scenario, &mut ideal, self.window_ms);
            sample.with_context(|| format!("Failed to measure {}", scenario.name))
        };
        let samples = scenarios.iter().map(measure).collect::<Result<Vec<_>>>()?;
        ensure!(ideal.is_running(), "The ideal loop has ended");
        Ok(samples)
    }
}

/// Tells how far we are, and how long it will take.
pub(crate) struct Progress {
    steps: usize,
    done: usize,
    begin: u64,
}

impl Progress {
    pub(crate) fn new(steps: usize) -> Self {
        Self { steps, done: 0, begin: clock::ticks() }
    }

    /// Begins a step, on the switch `name`.
    pub(crate) fn step(&mut self, round: usize, name: &str, setup: &Setup) {
        let passed_s = (clock::ticks() - self.begin) / clock::ticks_per_us() / 1_000_000;
        let left = seconds_left(passed_s, self.done, self.steps);
        self.done += 1;
        let (at, of, round) = (self.done, self.steps, round + 1);
        eprintln!("[{at:>3}/{of}] round {round}, {setup}: {name}{left}");
    }

    /// Steps that were begun.
    pub(crate) fn done(&self) -> usize {
        self.done
    }
}

/// By the time that the steps so far took.
fn seconds_left(passed_s: u64, done: usize, steps: usize) -> String {
    if done < 3 {
        return String::new();
    }
    let left_s = passed_s * (steps - done) as u64 / done as u64;
    if left_s < 90 {
        format!("; {left_s} s left")
    } else {
        format!("; {} min left", left_s.div_ceil(60))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_follows_from_the_steps_so_far() {
        assert_eq!(seconds_left(5, 2, 100), "");
        assert_eq!(seconds_left(10, 10, 20), "; 10 s left");
        assert_eq!(seconds_left(10, 10, 110), "; 2 min left");
    }
}
