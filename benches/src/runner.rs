//! The rounds: each starts each switch anew for each set-up, one after the other, so that what the
//! machine does meanwhile hits them all alike.
//!
//! ```text
//!  round 1   2 ports:  slipwayd  ovs  ideal  testpmd      each: start, connect guests, settle,
//!            packed:   ovs  testpmd  slipwayd                   (prove, in round 1,)
//!            ...                                                a window of each scenario, stop
//!  round 2   2 ports:  ovs  testpmd  slipwayd  ideal
//! ```
//!
//! Each round has another order ([`crate::order`]). Before each set-up of each round the machine itself is
//! measured ([`Calibration`]), so that its drift is seen beside the figures. A window in which the
//! hypervisor took time from one of the two cores is discarded and measured anew at once, on the
//! same running switch, a few times at most; both is counted. So is one in which it moved the cores
//! ([`crate::distance`]); what was moved all the same is counted, stored and not compared.
//!
//! What fails is told at once and in its cells, and is not tried again; the others go on.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use dataplane::clock;

use crate::belongings::Belongings;
use crate::distance::Distance;
use crate::host::{self, Calibration};
use crate::measure::{self, Conditions, Sample};
use crate::order::order;
use crate::peer::dpdk_guest::DpdkGuest;
use crate::peer::ideal::Ideal;
use crate::peer::{self, PeerKind, Place, Programs, Setup, number};
use crate::results::{Results, Steal, Turn};
use crate::rig::{cores, mac, pin};
use crate::scenario::{self, Scenario};
use crate::{circle, interrupt};

/// Hugepages for the largest peer (OVS: 512 MiB, and it takes more if there is) and for guests.
pub(crate) const HUGE_PAGES: u64 = 640;

/// Length of what precedes a window, in milliseconds.
pub const WARM_UP_MS: u64 = 100;
/// Share of a window in percent that the hypervisor may take of the two cores.
pub const MOST_STEAL_PERCENT: f64 = 0.5;
/// For how long a window may wait until the cores are at their usual distance, in milliseconds.
pub const PATIENCE_MS: u64 = 5000;

/// What to measure, and how.
#[derive(Debug)]
pub struct Options {
    /// Rounds.
    pub rounds: usize,
    /// Length of a window in milliseconds.
    pub window_ms: u64,
    /// Length of what precedes each window, in milliseconds.
    pub warm_up_ms: u64,
    /// Share of a window in percent that the hypervisor may take of the two cores.
    pub most_steal_percent: f64,
    /// For how long a window may wait until the cores are at their usual distance, in milliseconds; 0:
    /// they are taken at any.
    pub patience_ms: u64,
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
    /// What went wrong with what is ours, in words.
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
            } else if scenario.is_cross_check() && !options.programs.have_testpmd() {
                results.refuse((scenario.name, peer), "no testpmd to be the guest");
            }
        }
    }
    let patience_ms = options.patience_ms;
    let distance = (patience_ms > 0).then(|| Distance::learn(core, patience_ms));
    results.usual_ns = distance.map(|distance| distance.ns);
    let groups: Vec<_> = options.scenarios.chunk_by(|a, b| a.setup == b.setup).collect();
    let mut progress = Progress::new(options.rounds * groups.len() * options.peers.len());
    let mut failures = Vec::new();
    for round in 0..options.rounds {
        for (index, scenarios) in groups.iter().enumerate() {
            let setup = scenarios[0].setup;
            // Another one for each set-up, too: over the rounds each comes everywhere all the same.
            let order = order(options.peers.len(), round + index);
            let order: Vec<_> = order.into_iter().map(|at| options.peers[at]).collect();
            results.turns.push(Turn {
                round,
                setup: setup.to_string(),
                order: order.clone(),
                calibration: Calibration::now(core),
            });
            for kind in order {
                progress.step(round, kind.name(), &setup);
                let open = |scenario: &&Scenario| !results.is_refused((scenario.name, kind));
                let scenarios: Vec<_> = scenarios.iter().filter(open).collect();
                if scenarios.is_empty() {
                    continue;
                }
                let dir = belongings.dir().join(format!("{}-{}", kind.name(), progress.done));
                fs::create_dir(&dir)
                    .with_context(|| format!("Failed to make {}", dir.display()))?;
                let programs = options.programs.clone();
                let place = Place { dir, generator, core, is_exclusive: true, programs };
                let Options { window_ms, warm_up_ms, .. } = *options;
                let conditions = Conditions { window_ms, warm_up_ms, core, distance };
                let windows = Windows::new(conditions, generator, options.most_steal_percent);
                let mut session = Session { kind, setup, place, windows };
                let outcome = session.run(&scenarios, round == 0);
                interrupt::check()?;
                fs::remove_dir_all(&session.place.dir)?;
                results.steal.add(&session.windows.steal);
                match outcome {
                    Ok(samples) => {
                        for (scenario, sample) in scenarios.iter().zip(samples) {
                            results.enter((scenario.name, kind), round, sample);
                        }
                    }
                    Err(error) => {
                        let failure = format!("{} with {setup}: {error:#}", kind.name());
                        eprintln!("FAILED: {failure}");
                        match kind.is_ours() {
                            true => failures.push(failure),
                            false => results.failures_of_others.push(failure),
                        }
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
    pub(crate) windows: Windows,
}

/// How windows are taken, and what came of it.
pub(crate) struct Windows {
    conditions: Conditions,
    cores: [usize; 2],
    most_steal_percent: f64,
    pub(crate) steal: Steal,
}

/// How often a window is measured anew.
const REPEATS: usize = 3;

impl Windows {
    /// Windows under `conditions`, anew if more than `most_steal_percent` of one were stolen from
    /// its core or from the `generator`'s.
    pub(crate) fn new(conditions: Conditions, generator: usize, most_steal_percent: f64) -> Self {
        Self {
            conditions,
            cores: [generator, conditions.core],
            most_steal_percent,
            steal: Steal::default(),
        }
    }

    /// Measures until the hypervisor leaves the cores to us, or has not done so often enough.
    fn take(&mut self, mut measure: impl FnMut(&Conditions) -> Result<Sample>) -> Result<Sample> {
        let mut repeats = 0;
        loop {
            let before = host::stolen_ms(&self.cores)?;
            let sample = measure(&self.conditions)?;
            let stolen_ms = host::stolen_ms(&self.cores)? - before;
            let is_clean = stolen_ms as f64 <= sample.length_ms * self.most_steal_percent / 100.0;
            let is_last = repeats == REPEATS;
            // Cores that did not come together in time will not do so for being asked again.
            let has_moved = sample.has_moved(&self.conditions);
            if self.steal.count(stolen_ms, is_clean, is_last) && (is_last || !has_moved) {
                return Ok(sample);
            }
            repeats += 1;
        }
    }
}

impl Session {
    /// Starts it, measures and ends it; what was measured, by scenario.
    pub(crate) fn run(
        &mut self,
        scenarios: &[&Scenario],
        is_to_be_proved: bool,
    ) -> Result<Vec<Sample>> {
        if self.kind == PeerKind::Ideal {
            return self.run_ideal(scenarios, is_to_be_proved);
        }
        if self.setup.dpdk_guest {
            return self.run_cross_check(scenarios);
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
            let sample = self
                .windows
                .take(|conditions| measure::measure(scenario, &mut guests, &mut *peer, conditions));
            sample.with_context(|| format!("Failed to measure {}", scenario.name))
        };
        let samples = scenarios.iter().map(measure).collect::<Result<Vec<_>>>()?;
        drop(guests);
        peer.stop()?;
        Ok(samples)
    }

    /// With a guest that is not ours. It checks itself that what it receives is what it sent.
    fn run_cross_check(&mut self, scenarios: &[&Scenario]) -> Result<Vec<Sample>> {
        let mut peer =
            peer::start(self.kind, &self.setup, &self.place).context("It did not start")?;
        self.windows.conditions.settle(|| Ok(()))?;
        let guest = DpdkGuest::start(&*peer, &self.setup, &self.place);
        let mut guest = guest.context("The DPDK guest did not start")?;
        let measure = |scenario: &&Scenario| {
            let sample = self
                .windows
                .take(|conditions| circle::measure(scenario, &mut guest, &mut *peer, conditions));
            sample.with_context(|| format!("Failed to measure {}", scenario.name))
        };
        let samples = scenarios.iter().map(measure).collect::<Result<Vec<_>>>()?;
        guest.stop()?;
        peer.stop()?;
        Ok(samples)
    }

    fn run_ideal(&mut self, scenarios: &[&Scenario], is_to_be_proved: bool) -> Result<Vec<Sample>> {
        let turns = scenario::turns(&self.setup);
        let mut ideal = Ideal::start(self.place.core, turns, mac(number(1)).0)?;
        if is_to_be_proved {
            measure::prove_ideal(&mut ideal).context("Frames do not arrive as they were sent")?;
        }
        let measure = |scenario: &&Scenario| {
            let sample = self
                .windows
                .take(|conditions| measure::measure_ideal(scenario, &mut ideal, conditions));
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
pub(crate) fn seconds_left(passed_s: u64, done: usize, steps: usize) -> String {
    // What so short a time says is the haste of the first step.
    if done < 3 || passed_s < 5 {
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
        assert_eq!(seconds_left(0, 50, 100), "");
        assert_eq!(seconds_left(10, 10, 20), "; 10 s left");
        assert_eq!(seconds_left(10, 10, 110), "; 2 min left");
    }
}
