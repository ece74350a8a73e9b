//! The switches that are compared, each as a process of its own with its polling thread on one core.
//!
//! ```text
//!  generator core                          switch core
//!  our guests  ==== vhost-user sockets ====  slipwayd | ovs-vswitchd | testpmd
//!  the same generator  ==== two rings ====   the ideal loop (a thread of ours)
//! ```
//!
//! Each polling thread has its core for itself. What else there is of a switch, its control threads and
//! its helpers, shares the other core with the generator, in all of them alike; a switch of which
//! more may run on the polling core is refused.
//!
//! A [`Peer`] starts with its ports and hands out guests that are connected to them. What it started
//! ends when it is dropped, and even if we are killed: see [`vmm_glue::process`].

pub mod dpdk_guest;
pub mod ideal;
pub(crate) mod ovs;
pub(crate) mod program;
mod slipwayd;
mod testpmd;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::ValueEnum;
use dataplane::testing::{Guest, GuestConfig};
use serde::Serialize;

use crate::host::ensure_threads_on;

/// A switch to measure.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    ValueEnum,
    Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum PeerKind {
    /// Ours, its whole pipeline on: addresses bound to ports, FDB, counters
    Slipwayd,
    /// OVS-DPDK as a learning switch (action NORMAL)
    Ovs,
    /// OVS-DPDK with an explicit flow to each port
    OvsFlow,
    /// DPDK testpmd as a bare loop between two ports (io), without any lookup
    Testpmd,
    /// A thread of ours that copies once from ring to ring, with a lookup and without virtio
    Ideal,
}

impl PeerKind {
    /// As the command line and the tables say it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Slipwayd => "slipwayd",
            Self::Ovs => "ovs",
            Self::OvsFlow => "ovs-flow",
            Self::Testpmd => "testpmd",
            Self::Ideal => "ideal",
        }
    }

    /// Whether it is for us to mend what it fails at. What another switch fails at is a finding.
    pub const fn is_ours(self) -> bool {
        matches!(self, Self::Slipwayd | Self::Ideal)
    }

    /// Why this switch cannot be set up so, if it cannot.
    pub fn refusal(self, setup: &Setup) -> Option<&'static str> {
        match self {
            Self::Testpmd if setup.ports > testpmd::MOST_PORTS => Some("at most 32 ports"),
            Self::Ideal if setup.dpdk_guest => Some("no virtio"),
            Self::Ideal if setup.ports > 2 => Some("two ends only"),
            Self::Ideal if setup.packed || setup.tso => Some("no virtio"),
            _ => None,
        }
    }

    /// What of this switch is missing on this machine, if something is.
    pub fn missing(self, programs: &Programs) -> Option<String> {
        match self {
            Self::Slipwayd | Self::Ideal => None,
            Self::Ovs | Self::OvsFlow => {
                let mut needed = ovs::PROGRAMS.iter();
                needed.find(|program| program::find(program).is_none()).map(ToString::to_string)
            }
            Self::Testpmd => {
                let missing = || "dpdk-testpmd; name its folder with --testpmd".to_owned();
                (!programs.have_testpmd()).then(missing)
            }
        }
    }
}

/// How a switch is set up: what cannot change while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Setup {
    /// Ports, each with a guest.
    pub ports: usize,
    /// How many of them, the first ones, have traffic.
    pub active: usize,
    /// Rings are packed, not split.
    pub packed: bool,
    /// Super-frames may be sent.
    pub tso: bool,
    /// Buffers rotate over more memory than caches hold.
    pub cold: bool,
    /// The guest is DPDK's testpmd with a port at each of the first two; else guests are ours.
    pub dpdk_guest: bool,
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ports", self.ports)?;
        for (is_on, name) in [
            (self.packed, "packed rings"),
            (self.tso, "super-frames"),
            (self.cold, "cold buffers"),
            (self.dpdk_guest, "DPDK guest"),
        ] {
            if is_on {
                write!(f, ", {name}")?;
            }
        }
        Ok(())
    }
}

/// Where things are and run.
#[derive(Debug, Clone)]
pub struct Place {
    /// A folder for this switch alone.
    pub dir: PathBuf,
    /// The generator's core; what a switch has besides its polling thread runs there too.
    pub generator: usize,
    /// The polling thread's core.
    pub core: usize,
    /// Other threads than the polling one may not run on `core`. Revisions of one switch are compared as
    /// they are: where their threads run is part of what differs.
    pub is_exclusive: bool,
    /// What is run.
    pub programs: Programs,
}

/// Programs that are no part of the system.
#[derive(Debug, Clone)]
pub struct Programs {
    /// Ours.
    pub slipwayd: PathBuf,
    /// The folder to which testpmd is unpacked, with its libraries.
    pub testpmd: Option<PathBuf>,
}

impl Programs {
    /// Whether there is a testpmd.
    pub fn have_testpmd(&self) -> bool {
        self.testpmd.as_deref().is_some_and(testpmd::is_in)
    }
}

/// What a switch's polling thread did so far, by its own account.
#[derive(Debug, Clone, Copy, Default)]
pub struct Work {
    /// Ticks of the time-stamp counter spent on frames.
    pub busy_ticks: u64,
    /// And on looking for some in vain.
    pub idle_ticks: u64,
    /// Frames.
    pub frames: u64,
}

impl Work {
    /// Busy ticks per frame from `before` on, if there were frames.
    pub fn ticks_per_frame_since(&self, before: &Self) -> Option<f64> {
        let frames = self.frames - before.frames;
        (frames > 0).then(|| (self.busy_ticks - before.busy_ticks) as f64 / frames as f64)
    }

    /// Share of its time from `before` on that it looked for frames in vain, if it ran at all.
    pub fn idle_share_since(&self, before: &Self) -> Option<f64> {
        // testpmd's is what its work leaves of the time until it was asked, which may shrink a little.
        let idle = self.idle_ticks.saturating_sub(before.idle_ticks);
        let all = idle + (self.busy_ticks - before.busy_ticks);
        (all > 0).then(|| idle as f64 / all as f64)
    }
}

/// Who listens at a port's socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listener {
    /// The switch; the guest connects.
    Switch,
    /// The guest; the switch connects, again and again.
    Guest,
}

/// A running switch.
pub trait Peer {
    /// Connects a guest to port `port`, counted from zero.
    ///
    /// # Errors
    /// The switch does not serve it.
    fn guest(&mut self, port: usize, config: GuestConfig) -> Result<Guest>;

    /// Where port `port` is reached, for guests that are not ours, and who listens there.
    fn socket(&self, port: usize) -> (PathBuf, Listener);

    /// Whether its polling thread sleeps when there is nothing to do.
    fn sleeps(&self) -> bool {
        false
    }

    /// What its polling thread did.
    ///
    /// # Errors
    /// It does not say.
    fn work(&mut self) -> Result<Work>;

    /// The process of the polling thread.
    fn pid(&self) -> u32;

    /// Ends it in order.
    ///
    /// # Errors
    /// It did not end in time, and was killed.
    fn stop(self: Box<Self>) -> Result<()>;
}

/// Starts a switch, which is not [`PeerKind::Ideal`].
///
/// # Errors
/// It did not start; with its last words.
///
/// # Panics
/// For the ideal loop, which is no process.
pub fn start(kind: PeerKind, setup: &Setup, place: &Place) -> Result<Box<dyn Peer>> {
    let peer: Box<dyn Peer> = match kind {
        PeerKind::Slipwayd => Box::new(slipwayd::Slipwayd::start(setup, place)?),
        PeerKind::Ovs => Box::new(ovs::Ovs::start(setup, place, ovs::Actions::Normal)?),
        PeerKind::OvsFlow => Box::new(ovs::Ovs::start(setup, place, ovs::Actions::Explicit)?),
        PeerKind::Testpmd => Box::new(testpmd::Testpmd::start(setup, place)?),
        PeerKind::Ideal => panic!("the ideal loop is a thread of ours"),
    };
    // The same for all: the polling thread has its core for itself, what else there is of a switch
    // shares the generator's.
    if place.is_exclusive {
        ensure_threads_on(place.core, peer.pid(), 1)?;
    }
    Ok(peer)
}

/// The number in addresses of the guest at `port`: not zero.
pub fn number(port: usize) -> u32 {
    port as u32 + 1
}

/// The socket of a port in a switch's folder.
fn socket(dir: &Path, port: usize) -> PathBuf {
    dir.join(format!("g{port}"))
}
