//! MicroVM endpoints: pairs of [user-space guests](crate::compare::guests), attached to each arm's switch.
//!
//! A node has as many guests as its point needs, no more: the switch is started anew for another
//! number, since ports that are connected cost some of them time.

mod figures;
mod measure;
mod packets;
mod targets;

pub use figures::EXPERIMENTS;
pub use targets::all as targets;

use anyhow::{Context as _, Result};

use figures::PACKETS;
use packets::Packets;

use super::experiment::{Endpoints, Experiment, Point};
use super::measurement::Reading;
use super::run::{Bench, Node};
use crate::belongings::Belongings;
use crate::compare::apart::Apart;
use crate::compare::arms::ArmKind;
use crate::compare::guests::attach::Attached;
use crate::peer::{Programs, dpdk_guest};
use crate::rig::{Pinned, cores};

/// What guests are attached to.
const ARMS: [ArmKind; 7] = [
    ArmKind::Slipway,
    ArmKind::TapBridge,
    ArmKind::VhostNet,
    ArmKind::Kata,
    ArmKind::Macvtap,
    ArmKind::Ovs,
    ArmKind::OvsDpdk,
];

/// The bench.
#[derive(Debug)]
pub struct MicroVms {
    programs: Programs,
    quick: bool,
    /// Hugepages, for those that need them.
    _belongings: Option<Belongings>,
}

impl MicroVms {
    /// For these arms and figures. `quick`: windows are shorter.
    ///
    /// # Errors
    /// There are no hugepages to be had for an arm that needs them.
    pub fn new(
        arms: &[ArmKind],
        figures: &[&Experiment],
        programs: Programs,
        quick: bool,
    ) -> Result<Self> {
        let mut pages = 0;
        for arm in arms.iter().filter(|arm| ARMS.contains(arm)) {
            if arm.lack()?.is_none() {
                let has_packets = figures.iter().any(|figure| figure.id == PACKETS)
                    && packets::refusal(*arm, &programs).is_none();
                let of_guest = if has_packets { dpdk_guest::HUGEPAGES } else { 0 };
                pages = pages.max(arm.hugepages() + of_guest);
            }
        }
        let belongings = if pages > 0 { Some(Belongings::take(pages)?) } else { None };
        Ok(Self { programs, quick, _belongings: belongings })
    }
}

impl Bench for MicroVms {
    fn endpoints(&self) -> Endpoints {
        Endpoints::Microvm
    }

    fn absence(&self, arm: ArmKind) -> Result<Option<String>> {
        if ARMS.contains(&arm) { arm.lack() } else { Ok(Some("no way to attach a VM".to_owned())) }
    }

    fn lack(&self, arm: ArmKind, experiment: &Experiment, _point: &Point) -> Option<&'static str> {
        if experiment.id != PACKETS {
            return None;
        }
        packets::refusal(arm, &self.programs)
    }

    fn start<'a>(&'a self, host: &'a Apart, arm: ArmKind) -> Result<Box<dyn Node + 'a>> {
        Ok(Box::new(Guests { bench: self, host, arm, attached: None, packets: None }))
    }
}

/// An arm's guests, once there are any.
struct Guests<'a> {
    bench: &'a MicroVms,
    host: &'a Apart,
    arm: ArmKind,
    attached: Option<Attached<'a>>,
    packets: Option<Packets>,
}

impl<'a> Guests<'a> {
    /// Guests of so many pairs.
    fn of(&mut self, pairs: usize) -> Result<&mut Attached<'a>> {
        if self.attached.as_ref().is_none_or(|attached| attached.fleet.pairs.len() != pairs) {
            self.clear()?;
            let (arm, slipwayd) = (self.arm, &self.bench.programs.slipwayd);
            let attached = Attached::start(arm, self.host, slipwayd, pairs, false);
            self.attached = Some(attached.with_context(|| format!("{pairs} pairs of guests"))?);
        }
        self.attached.as_mut().context("There are no guests")
    }

    /// DPDK's guest.
    fn packets(&mut self) -> Result<&mut Packets> {
        if self.packets.is_none() {
            self.clear()?;
            let programs = self.bench.programs.clone();
            let packets = Packets::start(self.arm, self.host, programs);
            self.packets = Some(packets.context("DPDK's guest")?);
        }
        self.packets.as_mut().context("There is no DPDK guest")
    }

    fn clear(&mut self) -> Result<()> {
        let attached = self.attached.take().map_or(Ok(()), Attached::stop);
        self.packets.take().map_or(Ok(()), Packets::stop).and(attached)
    }
}

impl Node for Guests<'_> {
    fn measure(&mut self, experiment: &Experiment, point: &Point) -> Result<Reading> {
        // What is started meanwhile has cores of its own choice.
        let _pinned = Pinned::to(cores()?.0)?;
        let quick = self.bench.quick;
        let outcome = if experiment.id == PACKETS {
            self.packets().and_then(|packets| packets.measure(point, quick))
        } else {
            let guests = self.of(point.pairs);
            guests.and_then(|guests| measure::point(guests, experiment, point, quick))
        };
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
