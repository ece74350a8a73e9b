//! MicroVM endpoints: pairs of [user-space guests](crate::compare::guests), attached to each arm's switch.
//!
//! A node has as many guests as its point needs, no more: the switch is started anew for another
//! number, since ports that are connected cost some of them time.

mod figures;
mod measure;
mod targets;

pub use figures::EXPERIMENTS;
pub use targets::all as targets;

use std::path::Path;

use anyhow::{Context as _, Result};

use super::experiment::{Endpoints, Experiment, Point};
use super::measurement::Reading;
use super::run::{Bench, Node};
use crate::belongings::Belongings;
use crate::compare::apart::Apart;
use crate::compare::arms::ArmKind;
use crate::compare::guests::attach::Attached;
use crate::rig::{Pinned, cores};

/// What guests are attached to.
const ARMS: [ArmKind; 6] = [
    ArmKind::Slipway,
    ArmKind::TapBridge,
    ArmKind::Kata,
    ArmKind::Macvtap,
    ArmKind::Ovs,
    ArmKind::OvsDpdk,
];

/// The bench.
#[derive(Debug)]
pub struct MicroVms<'a> {
    slipwayd: &'a Path,
    quick: bool,
    /// Hugepages, for those that need them.
    _belongings: Option<Belongings>,
}

impl<'a> MicroVms<'a> {
    /// For these arms. `quick`: windows are shorter.
    ///
    /// # Errors
    /// There are no hugepages to be had for an arm that needs them.
    pub fn new(arms: &[ArmKind], slipwayd: &'a Path, quick: bool) -> Result<Self> {
        let mut pages = 0;
        for arm in arms.iter().filter(|arm| ARMS.contains(arm)) {
            if arm.lack()?.is_none() {
                pages = pages.max(arm.hugepages());
            }
        }
        let belongings = if pages > 0 { Some(Belongings::take(pages)?) } else { None };
        Ok(Self { slipwayd, quick, _belongings: belongings })
    }
}

impl Bench for MicroVms<'_> {
    fn endpoints(&self) -> Endpoints {
        Endpoints::Microvm
    }

    fn absence(&self, arm: ArmKind) -> Result<Option<String>> {
        if ARMS.contains(&arm) { arm.lack() } else { Ok(Some("no way to attach a VM".to_owned())) }
    }

    fn start<'a>(&'a self, host: &'a Apart, arm: ArmKind) -> Result<Box<dyn Node + 'a>> {
        Ok(Box::new(Guests { bench: self, host, arm, attached: None }))
    }
}

/// An arm's guests, once there are any.
struct Guests<'a> {
    bench: &'a MicroVms<'a>,
    host: &'a Apart,
    arm: ArmKind,
    attached: Option<Attached<'a>>,
}

impl<'a> Guests<'a> {
    /// Guests of so many pairs.
    fn of(&mut self, pairs: usize) -> Result<&mut Attached<'a>> {
        if self.attached.as_ref().is_none_or(|attached| attached.fleet.pairs.len() != pairs) {
            self.clear()?;
            let (arm, slipwayd) = (self.arm, self.bench.slipwayd);
            let attached = Attached::start(arm, self.host, slipwayd, pairs, false);
            self.attached = Some(attached.with_context(|| format!("{pairs} pairs of guests"))?);
        }
        self.attached.as_mut().context("There are no guests")
    }

    fn clear(&mut self) -> Result<()> {
        self.attached.take().map_or(Ok(()), Attached::stop)
    }
}

impl Node for Guests<'_> {
    fn measure(&mut self, experiment: &Experiment, point: &Point) -> Result<Reading> {
        // What is started meanwhile has cores of its own choice.
        let _pinned = Pinned::to(cores()?.0)?;
        let quick = self.bench.quick;
        let outcome = self
            .of(point.pairs)
            .and_then(|guests| measure::point(guests, experiment, point, quick));
        if outcome.is_err() {
            // Whatever state they are in, the next point is not to begin in it.
            self.clear()?;
        }
        outcome
    }

    fn stop(mut self: Box<Self>) -> Result<()> {
        self.clear()
    }
}
