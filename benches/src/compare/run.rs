//! The rounds of the start-up figures.
//!
//! ```text
//!  warm-up     fewest pods:  a  b  c  d              thrown away
//!  50 pods     round 1:      a  b  d  c              each: prepare the host, burst, take down,
//!              round 2:      b  c  a  d              look whether something is left
//!  200 pods    ...
//!  counting    fewest pods:  a  b  c  d              with tracers, not timed
//! ```
//! Each round has another order ([`crate::order`]). A burst during which the hypervisor took much is
//! made again, set-up and teardown, a few times at most ([`crate::steal`]).

use anyhow::{Context as _, Result};
use dataplane::clock;

use super::apart::Apart;
use super::arms::{ArmKind, Programs};
use super::burst::{self, Burst};
use super::count::{Count, Tracer, again};
use super::samples::{Sample, Samples};
use crate::belongings::Belongings;
use crate::order::order;
use crate::steal::{Watched, watch};
use crate::{interrupt, runner};

/// Measures, and enters it into `samples`.
///
/// # Errors
/// We are not root, the kernel does not tell what is to be measured, or someone wants us to end.
pub fn run(host: &Apart, samples: &mut Samples, programs: &Programs) -> Result<()> {
    let parameters = samples.parameters.clone();
    let mut present = Vec::new();
    let mut absent = Vec::new();
    for &arm in &parameters.arms {
        match arm.absence()? {
            None => present.push(arm),
            Some(reason) => {
                eprintln!("{}: {reason}", arm.name());
                absent.push((arm, reason));
            }
        }
    }
    let pages = present.iter().map(|arm| arm.hugepages()).max().unwrap_or(0);
    // Also the folder that ends with us, for those that need pages.
    let _belongings = if pages > 0 { Some(Belongings::take(pages)?) } else { None };
    let fewest = parameters.pods.iter().copied().min().context("There is nothing to measure")?;
    let sizes: usize = parameters.pods.iter().sum();
    // In pods, as a burst takes about as long as it has pods.
    let all = present.len() * (2 * fewest + parameters.rounds * sizes);
    let warm_up = present.len() * fewest;
    let mut progress = Progress { all, warm_up, done: 0, begin: clock::ticks() };
    let (mut bursts, mut failures) = (Vec::new(), Vec::new());
    let parallel = parameters.parallel;
    let mut fail = |what: String| {
        eprintln!("FAILED: {what}");
        failures.push(what);
    };
    let mut working = Vec::new();
    for arm in present {
        progress.step(&format!("warm-up: {}, {fewest} pods", arm.name()), fewest);
        match one(host, arm, programs, fewest, parallel) {
            Ok(_) => working.push(arm),
            Err(error) => {
                interrupt::check()?;
                fail(format!("{error:#}"));
                absent.push((arm, format!("does not work here: {error:#}")));
            }
        }
    }
    let present = working;
    for (index, &pods) in parameters.pods.iter().enumerate() {
        for round in 0..parameters.rounds {
            for (place, at) in order(present.len(), round + index).into_iter().enumerate() {
                let arm = present[at];
                let name = arm.name();
                progress.step(&format!("round {}: {name}, {pods} pods", round + 1), pods);
                match watch(|| one(host, arm, programs, pods, parallel)) {
                    Ok(Watched { outcome: burst, repeated, discarded }) => {
                        if let Some(first) = burst.failures.first() {
                            eprintln!("FAILED: {} of {name}: {first}", burst.failures.len());
                        }
                        bursts.push(Sample { arm, round, place, burst, repeated, discarded });
                    }
                    Err(error) => {
                        interrupt::check()?;
                        fail(format!("{error:#}"));
                    }
                }
            }
        }
    }
    let tracer = Tracer::new(host)?;
    let (mut counts, mut uncounted) = (Vec::new(), Vec::new());
    for &arm in &present {
        progress.step(&format!("counting: {}, {fewest} pods", arm.name()), fewest);
        match again(|| count(host, &tracer, arm, programs, fewest, parallel), |_| true) {
            Ok(count) => counts.push(count),
            Err(error) => {
                interrupt::check()?;
                let reason = format!("{} was not counted: {error:#}", arm.name());
                if arm == ArmKind::Slipway {
                    fail(reason);
                } else {
                    eprintln!("{reason}");
                    uncounted.push(reason);
                }
            }
        }
    }
    samples.absent = absent;
    samples.failures.extend(failures);
    samples.bursts = bursts;
    samples.methods = tracer.methods;
    samples.counts = counts;
    samples.uncounted = uncounted;
    Ok(())
}

/// One burst on a host that was prepared for it.
fn one(
    host: &Apart,
    kind: ArmKind,
    programs: &Programs,
    pods: usize,
    parallel: usize,
) -> Result<Burst> {
    interrupt::check()?;
    let before = host.devices()?;
    let arm = kind.start(host, programs);
    let arm = arm.with_context(|| format!("Failed to prepare {}", kind.name()))?;
    let outcome = burst::run(host, &*arm, pods, parallel, || Ok(()));
    let stopped = arm.stop();
    let mut burst = outcome.with_context(|| format!("{} with {pods} pods", kind.name()))?;
    if let Err(error) = stopped {
        burst.failures.push(format!("{error:#}"));
    }
    let left: Vec<_> = host.devices()?.difference(&before).cloned().collect();
    if !left.is_empty() {
        burst.failures.push(format!("devices are left: {}", left.join(", ")));
    }
    Ok(burst)
}

fn count(
    host: &Apart,
    tracer: &Tracer<'_>,
    kind: ArmKind,
    programs: &Programs,
    pods: usize,
    parallel: usize,
) -> Result<Count> {
    let arm = kind.start(host, programs)?;
    let counted = tracer.count(kind, &*arm, pods, |set_up| {
        let burst = burst::run(host, &*arm, pods, parallel, set_up)?;
        // What a burst with failures asked for is not what its pods ask for.
        burst.failures.into_iter().next().map_or(Ok(()), |failure| Err(anyhow::Error::msg(failure)))
    });
    let stopped = arm.stop();
    let count = counted?;
    stopped.map(|()| count)
}

/// How far we are.
struct Progress {
    all: usize,
    /// Until each arm had its turn nothing tells what the slow ones take.
    warm_up: usize,
    done: usize,
    begin: u64,
}

impl Progress {
    /// Begins a step with so many pods.
    fn step(&mut self, name: &str, pods: usize) {
        let passed_s = (clock::ticks() - self.begin) / clock::ticks_per_us() / 1_000_000;
        let left = if self.done < self.warm_up {
            String::new()
        } else {
            runner::seconds_left(passed_s, self.done, self.all)
        };
        let percent = 100 * self.done / self.all;
        eprintln!("[{percent:>3} %] {name}{left}");
        self.done += pods;
    }
}
