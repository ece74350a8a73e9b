//! Container endpoints: kernel TCP and UDP in network namespaces, pairs of a client and a server.
//!
//! ```text
//!  client pod  eth0 --- the arm's network --- eth0  server pod       x 1 to 50
//!    a thread in its namespace                a thread in its namespace
//!      streams      writes for a window, bytes counted where they arrive
//!      completion   flows of a fixed size, one after the other, as netcat sends files
//!      overlay      a second host, for servers that are not on the clients' node
//!      tools        sockperf for round trips, iperf3 beside our own streams
//! ```
//! Clients and servers are threads of this program, each in its pod's namespace: so all of them begin and end
//! together, and a total is of one window, not of fifty that overlap somehow. What a thread of one process costs
//! less than a process of its own (a switch of address spaces now and then) it costs less in each arm.

mod arms;
mod completion;
mod figures;
mod node;
mod overlay;
mod place;
mod streams;
mod tools;

use anyhow::Result;

pub use figures::EXPERIMENTS;

use super::experiment::{Endpoints, Experiment, Point};
use super::run::{Bench, Node};
use crate::compare::apart::Apart;
use crate::compare::arms::{ArmKind, Programs};

/// All that is the same for each arm.
#[derive(Debug)]
pub struct Containers {
    programs: Programs,
    /// TCP's, in pods.
    congestion_control: String,
    windows: node::Windows,
}

impl Containers {
    /// For a quick run or a full one.
    pub const fn new(programs: Programs, congestion_control: String, quick: bool) -> Self {
        let windows = if quick { node::QUICK } else { node::FULL };
        Self { programs, congestion_control, windows }
    }
}

impl Bench for Containers {
    fn endpoints(&self) -> Endpoints {
        Endpoints::Container
    }

    fn absence(&self, arm: ArmKind) -> Result<Option<String>> {
        arms::absence(arm)
    }

    fn lack(&self, arm: ArmKind, experiment: &Experiment, point: &Point) -> Option<&'static str> {
        arms::lack(arm, experiment, point)
    }

    fn start<'a>(&'a self, host: &'a Apart, arm: ArmKind) -> Result<Box<dyn Node + 'a>> {
        let network = arms::start(arm, host, &self.programs)?;
        Ok(Box::new(node::Pairs::new(host, arm, network, self)))
    }
}
