//! The figures of the data plane, each a line of a table: what is varied, and what is drawn.

use serde::{Deserialize, Serialize};

/// What sends and receives. Figures never mix them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Endpoints {
    /// Kernel TCP in a network namespace
    Container,
    /// A user-space guest behind a virtio device
    Microvm,
    /// A real guest in QEMU
    Qemu,
    /// A pod that containerd starts: nothing is sent
    Pod,
}

impl Endpoints {
    /// The group's name on the command line.
    pub const fn group(self) -> &'static str {
        match self {
            Self::Container => "containers",
            Self::Microvm | Self::Qemu => "microvms",
            Self::Pod => "pods",
        }
    }

    /// In a title.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Container => "container endpoints",
            Self::Microvm => "microVM endpoints",
            Self::Qemu => "QEMU guests",
            Self::Pod => "whole pods",
        }
    }
}

/// A place on the axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// As it is stored and drawn.
    pub x: &'static str,
    /// Pairs of pods that must be up.
    pub pairs: usize,
    /// Whether `--quick` has it.
    pub quick: bool,
}

impl Point {
    /// One that `--quick` has, too.
    pub const fn always(x: &'static str, pairs: usize) -> Self {
        Self { x, pairs, quick: true }
    }

    /// One that only a full run has.
    pub const fn full(x: &'static str, pairs: usize) -> Self {
        Self { x, pairs, quick: false }
    }
}

/// Something measured: a column of the table, and a picture if it is among an experiment's lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantity {
    /// Of the value in a measurement.
    pub key: &'static str,
    /// For heads.
    pub name: &'static str,
    /// Its unit; empty for ratios and counts.
    pub unit: &'static str,
    /// Digits after the point in tables.
    pub digits: usize,
}

impl Quantity {
    /// One.
    pub const fn new(
        key: &'static str,
        name: &'static str,
        unit: &'static str,
        digits: usize,
    ) -> Self {
        Self { key, name, unit, digits }
    }

    /// With its unit.
    pub fn head(&self) -> String {
        if self.unit.is_empty() {
            self.name.to_owned()
        } else {
            format!("{}, {}", self.name, self.unit)
        }
    }
}

/// A cumulative distribution that is drawn, of all rounds together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Curve {
    /// Of the distribution in a measurement.
    pub key: &'static str,
    /// The point it is drawn for.
    pub x: &'static str,
    /// What it is of, for the title.
    pub name: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// What the share is of.
    pub of: &'static str,
}

/// A figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experiment {
    /// Its name on the command line.
    pub id: &'static str,
    /// In words.
    pub title: &'static str,
    /// Who sends and receives.
    pub endpoints: Endpoints,
    /// What the axis is.
    pub axis: &'static str,
    /// Its places, in order.
    pub points: &'static [Point],
    /// Columns of its table.
    pub table: &'static [Quantity],
    /// What is drawn over the axis.
    pub lines: &'static [Quantity],
    /// Which distributions are drawn.
    pub curves: &'static [Curve],
    /// What is drawn against what: a dot for each arm and point.
    pub scatter: Option<(Quantity, Quantity)>,
}

impl Experiment {
    /// The points of a quick run, or of a full one.
    pub fn points(&self, quick: bool) -> impl Iterator<Item = &Point> {
        self.points.iter().filter(move |point| point.quick || !quick)
    }

    /// Whether its axis has numbers, between which lines may be drawn.
    pub fn is_numeric(&self) -> bool {
        self.points.iter().all(|point| point.x.parse::<f64>().is_ok())
    }
}

/// All of them, in the order of the report.
pub fn all() -> impl Iterator<Item = &'static Experiment> {
    [
        super::containers::EXPERIMENTS,
        super::microvms::EXPERIMENTS,
        super::qemu::EXPERIMENTS,
        super::pods::EXPERIMENTS,
    ]
    .into_iter()
    .flatten()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ids_are_one_for_each_and_every_curve_is_at_a_point() {
        let ids: Vec<_> = all().map(|experiment| experiment.id).collect();
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "{ids:?}");
        for experiment in all() {
            assert!(!["startup", "containers", "microvms", "pods"].contains(&experiment.id));
            assert!(experiment.points.iter().all(|point| point.pairs > 0), "{}", experiment.id);
            for curve in experiment.curves {
                let is_there = experiment.points.iter().any(|point| point.x == curve.x);
                assert!(is_there, "{}: {}", experiment.id, curve.x);
            }
        }
    }
}
