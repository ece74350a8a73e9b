//! What is stored of the data plane.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::experiment::{Endpoints, Experiment};
use crate::compare::arms::ArmKind;
use crate::compare::samples::Samples;
use crate::compare::summary::Estimate;

/// What a node gave at one point.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reading {
    /// Figures, by [`Quantity::key`](super::experiment::Quantity::key).
    pub values: BTreeMap<String, f64>,
    /// Samples of single clients or flows, by name.
    pub distributions: BTreeMap<String, Vec<f64>>,
    /// What went wrong with single clients or flows.
    pub failures: Vec<String>,
}

impl Reading {
    /// Adds a figure.
    pub fn value(&mut self, key: &str, value: f64) {
        // A ratio of nothing to nothing is no number, and JSON has none of those.
        if value.is_finite() {
            self.values.insert(key.to_owned(), value);
        }
    }

    /// Adds samples.
    pub fn distribution(&mut self, key: &str, samples: Vec<f64>) {
        self.distributions.insert(key.to_owned(), samples);
    }
}

/// What one arm gave at one point in one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// [`Experiment::id`].
    pub experiment: String,
    /// Who.
    pub arm: ArmKind,
    /// [`Point::x`](super::experiment::Point::x).
    pub x: String,
    /// From 0.
    pub round: usize,
    /// Who was before it in this round.
    pub place: usize,
    /// See [`Reading`].
    pub values: BTreeMap<String, f64>,
    /// See [`Reading`].
    pub distributions: BTreeMap<String, Vec<f64>>,
    /// Windows thrown away before this one, because the hypervisor took too much time.
    pub repeated: usize,
    /// Why it does not count, if it does not.
    pub discarded: Option<String>,
    /// See [`Reading`].
    pub failures: Vec<String>,
}

/// An arm that is not in the figures of one kind of endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Absence {
    /// Of which kind.
    pub endpoints: Endpoints,
    /// Who.
    pub arm: ArmKind,
    /// Why.
    pub reason: String,
}

/// A point of one figure that an arm cannot be measured at, though it is in the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lack {
    /// [`Experiment::id`].
    pub experiment: String,
    /// Who.
    pub arm: ArmKind,
    /// [`Point::x`](super::experiment::Point::x).
    pub x: String,
    /// Why.
    pub reason: String,
}

impl Samples {
    /// Why an arm was not measured at a point, if there is a reason in the arm.
    pub fn lack(&self, experiment: &str, arm: ArmKind, x: &str) -> Option<&str> {
        let is_it = |l: &&Lack| l.experiment == experiment && l.arm == arm && l.x == x;
        self.lacks.iter().find(is_it).map(|lack| lack.reason.as_str())
    }

    /// What counts of an experiment with an arm at a point.
    pub fn flows<'a>(
        &'a self,
        experiment: &'a str,
        arm: ArmKind,
        x: &'a str,
    ) -> impl Iterator<Item = &'a Measurement> {
        let is_it = move |m: &&Measurement| {
            m.arm == arm && m.experiment == experiment && m.x == x && m.discarded.is_none()
        };
        self.measurements.iter().filter(is_it)
    }

    /// A figure's samples, one for each round.
    pub fn flow_values(&self, experiment: &str, arm: ArmKind, x: &str, key: &str) -> Vec<f64> {
        let flows = self.flows(experiment, arm, x);
        flows.filter_map(|m| m.values.get(key).copied()).collect()
    }

    /// A figure's median.
    pub fn flow_estimate(
        &self,
        experiment: &str,
        arm: ArmKind,
        x: &str,
        key: &str,
    ) -> Option<Estimate> {
        Estimate::of(&self.flow_values(experiment, arm, x, key), self.parameters.seed)
    }

    /// The samples of single clients or flows, of all rounds together.
    pub fn pooled(&self, experiment: &str, arm: ArmKind, x: &str, key: &str) -> Vec<f64> {
        let flows = self.flows(experiment, arm, x);
        flows.filter_map(|m| m.distributions.get(key)).flatten().copied().collect()
    }

    /// One figure over another one of the same experiment, round by round: `(arm, x)` each.
    pub fn flow_ratio(
        &self,
        experiment: &str,
        over: (ArmKind, &str),
        under: (ArmKind, &str),
        key: &str,
    ) -> Option<Estimate> {
        let ratio = |m: &Measurement| {
            let mut others = self.flows(experiment, under.0, under.1);
            let other = others.find(|other| other.round == m.round)?;
            let (over, under) = (m.values.get(key)?, other.values.get(key)?);
            (*under > 0.0).then(|| over / under)
        };
        let ratios: Vec<_> = self.flows(experiment, over.0, over.1).filter_map(ratio).collect();
        Estimate::of(&ratios, self.parameters.seed)
    }

    /// Arms that an experiment was made with, in the order of the tables.
    pub fn flow_arms(&self, experiment: &str) -> Vec<ArmKind> {
        let has = |arm: &&ArmKind| {
            self.measurements.iter().any(|m| m.arm == **arm && m.experiment == experiment)
        };
        self.parameters.arms.iter().filter(has).copied().collect()
    }

    /// Experiments that were made, in the order of the report.
    pub fn experiments(&self) -> Vec<&'static Experiment> {
        let is_there = |experiment: &&Experiment| {
            self.measurements.iter().any(|m| m.experiment == experiment.id)
        };
        super::experiment::all().filter(is_there).collect()
    }

    /// Points of an experiment that were measured, in order.
    pub fn points_of(&self, experiment: &Experiment) -> Vec<&'static str> {
        let is_there = |x: &&str| {
            self.measurements.iter().any(|m| m.experiment == experiment.id && m.x == **x)
        };
        experiment.points.iter().map(|point| point.x).filter(is_there).collect()
    }

    /// What went wrong in the windows of an arm.
    pub fn flow_failures_of(&self, arm: ArmKind) -> usize {
        let of_arm = self.measurements.iter().filter(|m| m.arm == arm);
        of_arm.map(|m| m.failures.len()).sum()
    }
}
