//! The rounds of the data plane.
//!
//! ```text
//!  warm-up   arm a: the first point; arm b; ...                thrown away
//!  round 1   arm a: set up, all points, fewest pairs first, taken down; arm b; ...
//!  round 2   arm b ...                                         each round in another order
//! ```
//! Pods are added as points need them, so that a point with one pair has one pair on the node.

use anyhow::{Context as _, Result};
use dataplane::clock;

use super::experiment::{Endpoints, Experiment, Point};
use super::measurement::{Absence, Lack, Measurement, Reading};
use crate::compare::apart::Apart;
use crate::compare::arms::ArmKind;
use crate::compare::samples::{Parameters, Samples};
use crate::order::order;
use crate::steal::{Watched, watch};
use crate::{interrupt, runner};

/// A point of an experiment.
type Place = (&'static Experiment, &'static Point);

/// A kind of endpoints.
pub trait Bench {
    /// Which.
    fn endpoints(&self) -> Endpoints;

    /// Why an arm is not in its figures, if it is not.
    ///
    /// # Errors
    /// The kernel does not tell.
    fn absence(&self, arm: ArmKind) -> Result<Option<String>>;

    /// Why an arm that is in its figures cannot be measured at this point, if it cannot.
    fn lack(
        &self,
        _arm: ArmKind,
        _experiment: &Experiment,
        _point: &Point,
    ) -> Option<&'static str> {
        None
    }

    /// Whether it can measure at this point of its figures.
    fn has(&self, _point: &Point) -> bool {
        true
    }

    /// How many rounds there are, of as many as were asked for.
    fn rounds(&self, asked: usize) -> usize {
        asked
    }

    /// Whether a first point of each arm is measured and thrown away, to see whether it works.
    fn is_tried(&self) -> bool {
        true
    }

    /// Sets an arm up, without pods.
    ///
    /// # Errors
    /// In the words of whoever refuses.
    fn start<'a>(&'a self, host: &'a Apart, arm: ArmKind) -> Result<Box<dyn Node + 'a>>;
}

/// An arm that is up.
pub trait Node {
    /// Measures a point; pods that it needs and are not there yet are added first.
    ///
    /// # Errors
    /// Nothing can be measured here. What single clients say is part of the reading.
    fn measure(&mut self, experiment: &Experiment, point: &Point) -> Result<Reading>;

    /// Takes everything back.
    ///
    /// # Errors
    /// Something does not end.
    fn stop(self: Box<Self>) -> Result<()>;
}

/// Measures all `experiments` of the bench's kind, and enters them into `samples`.
///
/// # Errors
/// Someone wants us to end, or the kernel does not tell what is to be measured. What an arm fails at
/// stands in the samples.
pub fn run(
    host: &Apart,
    samples: &mut Samples,
    bench: &dyn Bench,
    experiments: &[&'static Experiment],
) -> Result<()> {
    let endpoints = bench.endpoints();
    let mut points = points(endpoints, experiments, &samples.parameters);
    points.retain(|(_, point)| bench.has(point));
    if points.is_empty() {
        return Ok(());
    }
    let mut arms = Vec::new();
    for &arm in &samples.parameters.arms {
        match bench.absence(arm)? {
            None => {
                let (own, lacks) = split(bench, arm, &points);
                samples.lacks.extend(lacks);
                if !own.is_empty() {
                    arms.push((arm, own));
                }
            }
            Some(reason) => samples.absences.push(Absence { endpoints, arm, reason }),
        }
    }
    let rounds = bench.rounds(samples.parameters.rounds);
    let mut progress = Progress {
        group: endpoints.group(),
        all: arms.iter().map(|(_, points)| 1 + rounds * points.len()).sum(),
        done: 0,
        begin: clock::ticks(),
    };
    let mut working = Vec::new();
    for (arm, points) in arms {
        if !bench.is_tried() {
            working.push((arm, points));
            continue;
        }
        let mut trial = Vec::new();
        let visit = Visit { host, bench, arm, round: 0, place: 0 };
        let outcome =
            visit.run(&points[..1], &mut progress, &mut trial).map_err(|e| format!("{e:#}"));
        let failure = trial.iter().find_map(|m| m.failures.first().cloned());
        match outcome.and(failure.map_or(Ok(()), Err)) {
            Ok(()) => working.push((arm, points)),
            Err(error) => {
                interrupt::check()?;
                let reason = format!("does not work here: {error}");
                eprintln!("FAILED: {}: {reason}", arm.name());
                samples.absences.push(Absence { endpoints, arm, reason });
            }
        }
    }
    progress.all = working.iter().map(|(_, points)| rounds * points.len()).sum();
    progress.all += progress.done;
    for round in 0..rounds {
        for (place, at) in order(working.len(), round).into_iter().enumerate() {
            let (arm, points) = &working[at];
            let visit = Visit { host, bench, arm: *arm, round, place };
            if let Err(error) = visit.run(points, &mut progress, &mut samples.measurements) {
                interrupt::check()?;
                let what = format!("{} ({}): {error:#}", arm.name(), endpoints.words());
                eprintln!("FAILED: {what}");
                samples.failures.push(what);
            }
        }
    }
    Ok(())
}

/// What can be measured of an arm, and what cannot.
fn split(bench: &dyn Bench, arm: ArmKind, points: &[Place]) -> (Vec<Place>, Vec<Lack>) {
    let (mut own, mut lacks) = (Vec::new(), Vec::new());
    for &(experiment, point) in points {
        match bench.lack(arm, experiment, point) {
            None => own.push((experiment, point)),
            Some(reason) => lacks.push(Lack {
                experiment: experiment.id.to_owned(),
                arm,
                x: point.x.to_owned(),
                reason: reason.to_owned(),
            }),
        }
    }
    (own, lacks)
}

/// What is measured on a node, in this order.
fn points(
    endpoints: Endpoints,
    experiments: &[&'static Experiment],
    parameters: &Parameters,
) -> Vec<Place> {
    let of_kind = experiments.iter().filter(|experiment| experiment.endpoints == endpoints);
    let each = |experiment: &&'static Experiment| {
        let experiment = *experiment;
        experiment.points(parameters.quick).map(move |point| (experiment, point))
    };
    let mut points: Vec<_> = of_kind.flat_map(each).collect();
    points.retain(|(_, point)| parameters.pairs.is_none_or(|most| point.pairs <= most));
    points.sort_by_key(|(_, point)| point.pairs);
    points
}

/// One arm's turn in a round.
struct Visit<'a> {
    host: &'a Apart,
    bench: &'a dyn Bench,
    arm: ArmKind,
    round: usize,
    place: usize,
}

impl Visit<'_> {
    fn run(
        &self,
        points: &[Place],
        progress: &mut Progress,
        measurements: &mut Vec<Measurement>,
    ) -> Result<()> {
        interrupt::check()?;
        let before = self.host.devices()?;
        let end = progress.done + points.len();
        let node = self.bench.start(self.host, self.arm);
        let mut node = node.with_context(|| format!("Failed to prepare {}", self.arm.name()))?;
        let outcome = points.iter().try_for_each(|(experiment, point)| {
            interrupt::check()?;
            progress.step(self.round, self.arm, experiment, point);
            let watched = watch(|| node.measure(experiment, point));
            let watched = watched.or_else(|error| {
                interrupt::check()?;
                // A finding: it stands in the arm's column.
                let failures = vec![format!("{error:#}")];
                let outcome = Reading { failures, ..Reading::default() };
                anyhow::Ok(Watched { outcome, repeated: 0, discarded: None })
            })?;
            measurements.push(self.measurement(experiment, point, watched));
            anyhow::Ok(())
        });
        // What was not reached is done, too.
        progress.done = end;
        let stopped = node.stop();
        outcome.and(stopped)?;
        let left: Vec<_> = self.host.devices()?.difference(&before).cloned().collect();
        anyhow::ensure!(left.is_empty(), "devices are left: {}", left.join(", "));
        Ok(())
    }

    fn measurement(
        &self,
        experiment: &Experiment,
        point: &Point,
        watched: Watched<Reading>,
    ) -> Measurement {
        let Watched { outcome: Reading { values, distributions, failures }, repeated, discarded } =
            watched;
        if let Some(first) = failures.first() {
            let (arm, id) = (self.arm.name(), experiment.id);
            eprintln!("FAILED: {} of {arm}, {id} at {}: {first}", failures.len(), point.x);
        }
        Measurement {
            experiment: experiment.id.to_owned(),
            arm: self.arm,
            x: point.x.to_owned(),
            round: self.round,
            place: self.place,
            values,
            distributions,
            repeated,
            discarded,
            failures,
        }
    }
}

/// How far we are, in points.
struct Progress {
    group: &'static str,
    all: usize,
    done: usize,
    begin: u64,
}

impl Progress {
    fn step(&mut self, round: usize, arm: ArmKind, experiment: &Experiment, point: &Point) {
        let passed_s = (clock::ticks() - self.begin) / clock::ticks_per_us() / 1_000_000;
        let left = runner::seconds_left(passed_s, self.done, self.all);
        let percent = 100 * self.done / self.all;
        let (group, arm, id, x) = (self.group, arm.name(), experiment.id, point.x);
        eprintln!("[{percent:>3} %] {group}, round {}: {arm}, {id} at {x}{left}", round + 1);
        self.done += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::flows::experiment::all;
    use crate::compare::report::tests::samples;

    /// Where one arm has no place but one.
    struct Lacking;

    impl Bench for Lacking {
        fn endpoints(&self) -> Endpoints {
            Endpoints::Container
        }

        fn absence(&self, _arm: ArmKind) -> Result<Option<String>> {
            Ok(None)
        }

        fn lack(&self, _: ArmKind, experiment: &Experiment, _: &Point) -> Option<&'static str> {
            (experiment.id != "throughput").then_some("not yet")
        }

        fn start<'a>(&'a self, _: &'a Apart, _: ArmKind) -> Result<Box<dyn Node + 'a>> {
            anyhow::bail!("it is never started")
        }
    }

    #[test]
    fn what_an_arm_lacks_is_named_and_not_measured() {
        let experiments: Vec<_> = all().collect();
        let all = points(Endpoints::Container, &experiments, &samples(100).parameters);
        let (own, lacks) = split(&Lacking, ArmKind::Slipway, &all);
        assert_eq!(own.len() + lacks.len(), all.len());
        assert!(!own.is_empty() && own.iter().all(|(e, _)| e.id == "throughput"));
        assert!(lacks.iter().all(|l| l.experiment != "throughput" && l.reason == "not yet"));
    }

    #[test]
    fn points_come_by_their_pairs_and_quick_runs_have_fewer() {
        let experiments: Vec<_> = all().collect();
        let of = |quick, pairs| {
            let parameters = Parameters { quick, pairs, ..samples(100).parameters };
            points(Endpoints::Container, &experiments, &parameters)
        };
        let (full, quick) = (of(false, None), of(true, None));
        assert!(quick.len() < full.len() && !quick.is_empty());
        assert!(full.windows(2).all(|pair| pair[0].1.pairs <= pair[1].1.pairs));
        assert!(of(false, Some(1)).iter().all(|(_, point)| point.pairs == 1));
        assert!(!of(true, Some(1)).is_empty());
    }
}
