//! What is measured: how the switch is set up, and what traffic it gets.

use anyhow::{Result, ensure};
use dataplane::testing::memory::Backing;
use dataplane::testing::{GuestConfig, features};
use serde::Serialize;

use crate::peer::{PeerKind, Setup};

/// Entries of the rings of guests that have traffic.
const RING: u16 = 1024;
/// And with super-frames, whose buffers are large.
const TSO_RING: u16 = 256;
/// Bytes of a super-frame at most, and of a descriptor in its chain, a page as Linux has it.
const TSO_BYTES: usize = 65_536;
const PAGE: usize = 4096;
/// Buffers of each descriptor when caches are to be of no use: 24 x 1024 frames of 1518 bytes are
/// 37 MB on each side.
const COLD_TURNS: u16 = 24;
/// Receivers of one sender.
const RECEIVERS: usize = 8;

/// Who sends to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Traffic {
    /// The first guest to the second, as fast as it goes
    OneWay,
    /// Both of them
    BothWays,
    /// The first guest to all others in turn
    Fan,
    /// One frame to the other guest and back, then a pause
    RoundTrip,
    /// Nothing at all
    Idle,
    /// One frame after a silence in which a port falls asleep, if it does
    WakeUp,
    /// As before, while another port keeps the polling thread awake
    WakeUpBusy,
    /// Frames that circle between the two ports of a DPDK guest, both ways, as fast as it goes
    Circle,
}

/// A number that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Figure {
    /// Millions of frames per second
    Mpps,
    /// Billions of bits per second
    Gbps,
    /// Ticks of the time-stamp counter that the switch's core worked for one frame
    CyclesPerFrame,
    /// Median latency in microseconds
    P50Us,
    /// The latency in microseconds that one of a hundred exceeds
    P99Us,
    /// CPU time in percent of a core
    CpuPercent,
    /// Share of its time in percent that the polling thread looked for frames in vain
    IdlePercent,
    /// Median latency in microseconds of a frame that is polled for
    PolledUs,
    /// What one first frame of a hundred takes longer, or more, than the median of those polled for
    ExtraP99Us,
    /// Median time in microseconds to wake a thread on the polling core that does nothing but answer
    FloorP50Us,
    /// The time that one of a hundred such wake-ups exceeds
    FloorP99Us,
    /// What of the extra latency is more than the floor's, both of one in a hundred
    BeyondFloorUs,
}

impl Figure {
    /// For tables.
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Mpps => "Mpps",
            Self::Gbps => "Gbit/s",
            Self::CyclesPerFrame => "cycles/frame",
            Self::P50Us => "us p50",
            Self::P99Us => "us p99",
            Self::CpuPercent => "% CPU",
            Self::IdlePercent => "% idle",
            Self::PolledUs => "us p50, polled",
            Self::ExtraP99Us => "us p99, extra",
            Self::FloorP50Us => "us p50, floor",
            Self::FloorP99Us => "us p99, floor",
            Self::BeyondFloorUs => "us p99, beyond",
        }
    }

    /// Whether more of it is better.
    pub const fn is_more_better(self) -> bool {
        self.is_throughput()
    }

    /// Whether the generator's speed is in it.
    pub const fn is_throughput(self) -> bool {
        matches!(self, Self::Mpps | Self::Gbps)
    }
}

/// One measurement, to be made of each switch.
#[derive(Debug, Clone, Serialize)]
pub struct Scenario {
    /// What `--only` and the tables call it.
    pub name: &'static str,
    /// How the switch is set up.
    pub setup: Setup,
    /// What it gets.
    pub traffic: Traffic,
    /// Frame size on a wire in bytes, FCS included, as benchmarks name it.
    pub wire_bytes: usize,
    /// Flows that the frames are of, in turn.
    pub flows: u32,
}

impl Scenario {
    /// The figures of it, the main one first.
    pub const fn figures(&self) -> &'static [Figure] {
        match self.traffic {
            Traffic::RoundTrip => &[Figure::P50Us, Figure::P99Us],
            Traffic::WakeUp => &[
                Figure::P50Us,
                Figure::P99Us,
                Figure::PolledUs,
                Figure::ExtraP99Us,
                Figure::FloorP50Us,
                Figure::FloorP99Us,
                Figure::BeyondFloorUs,
            ],
            Traffic::WakeUpBusy => {
                &[Figure::P50Us, Figure::P99Us, Figure::PolledUs, Figure::ExtraP99Us]
            }
            Traffic::Circle => &[Figure::Mpps, Figure::CyclesPerFrame, Figure::IdlePercent],
            Traffic::Idle => &[Figure::CpuPercent],
            _ if self.setup.tso => &[Figure::Gbps, Figure::CyclesPerFrame],
            _ => &[Figure::Mpps, Figure::CyclesPerFrame],
        }
    }

    /// Whether its guests are DPDK's: it says whether our own generator is to be trusted.
    pub const fn is_cross_check(&self) -> bool {
        self.setup.dpdk_guest
    }

    /// Bytes of a frame without FCS.
    pub const fn frame_bytes(&self) -> usize {
        self.wire_bytes - 4
    }

    /// Why this cannot be measured of `peer`, if it cannot.
    pub fn refusal(&self, peer: PeerKind) -> Option<&'static str> {
        let refusal = peer.refusal(&self.setup);
        refusal.or(match (peer, self.traffic) {
            (PeerKind::Testpmd, Traffic::Fan) => Some("a loop between two ports"),
            (PeerKind::Ideal, Traffic::OneWay) => None,
            (PeerKind::Ideal, _) => Some("one way only"),
            _ => None,
        })
    }
}

const PAIR: Setup =
    Setup { ports: 2, active: 2, packed: false, tso: false, cold: false, dpdk_guest: false };

/// All there is to measure, those of one set-up beside each other.
pub fn all() -> Vec<Scenario> {
    use Traffic::{BothWays, Circle, Fan, Idle, OneWay, RoundTrip, WakeUp, WakeUpBusy};
    let of = |setup, name, traffic, wire_bytes, flows| Scenario {
        name,
        setup,
        traffic,
        wire_bytes,
        flows,
    };
    let ports = |ports| Setup { ports, ..PAIR };
    let packed = Setup { packed: true, ..PAIR };
    let cold = Setup { cold: true, ..PAIR };
    let tso = Setup { tso: true, ..PAIR };
    let dpdk = Setup { dpdk_guest: true, ..PAIR };
    let dpdk_packed = Setup { packed: true, ..dpdk };
    let fan = Setup { ports: 1 + RECEIVERS, active: 1 + RECEIVERS, ..PAIR };
    vec![
        of(PAIR, "64", OneWay, 64, 1),
        of(PAIR, "256", OneWay, 256, 1),
        of(PAIR, "1518", OneWay, 1518, 1),
        of(PAIR, "64-flows", OneWay, 64, 10_000),
        of(PAIR, "64-both", BothWays, 64, 1),
        of(PAIR, "1518-both", BothWays, 1518, 1),
        of(PAIR, "rtt", RoundTrip, 64, 1),
        of(cold, "1518-cold", OneWay, 1518, 1),
        of(packed, "64-packed", OneWay, 64, 1),
        of(packed, "1518-packed", OneWay, 1518, 1),
        of(tso, "tso", OneWay, 65_218, 1),
        of(dpdk, "dpdk-64", Circle, 64, 1),
        of(dpdk, "dpdk-1518", Circle, 1518, 1),
        of(dpdk_packed, "dpdk-64-packed", Circle, 64, 1),
        of(dpdk_packed, "dpdk-1518-packed", Circle, 1518, 1),
        of(fan, "64-fan8", Fan, 64, 1),
        of(ports(16), "64-ports16", OneWay, 64, 1),
        of(ports(64), "64-ports64", OneWay, 64, 1),
        of(ports(400), "64-ports400", OneWay, 64, 1),
        of(ports(400), "rtt-ports400", RoundTrip, 64, 1),
        of(ports(400), "wake-ports400", WakeUp, 64, 1),
        of(ports(400), "wake-busy-ports400", WakeUpBusy, 64, 1),
        of(ports(400), "idle-ports400", Idle, 64, 1),
    ]
}

/// Those of these names, or all if there are no names; in the order of [`all`].
///
/// # Errors
/// There is none of one of these names.
pub fn named(names: &[String]) -> Result<Vec<Scenario>> {
    let mut scenarios = all();
    for name in names {
        let is_known = scenarios.iter().any(|scenario| scenario.name == name);
        ensure!(is_known, "There is no scenario {name:?}; --list shows those that there are");
    }
    if !names.is_empty() {
        scenarios.retain(|scenario| names.iter().any(|name| name == scenario.name));
    }
    Ok(scenarios)
}

/// Prints the names of all there are.
pub fn list() {
    for scenario in all() {
        println!("{:<16} {}", scenario.name, scenario.setup);
    }
}

/// The guest at a port that has traffic, or has none.
pub fn guest(setup: &Setup, is_active: bool) -> GuestConfig {
    let config = GuestConfig::default().packed(setup.packed);
    if !is_active {
        return config.ring_size(64);
    }
    // A VM's memory is on hugepages wherever its network is meant to be fast.
    let config = config.backing(Backing { huge: true, ..Backing::default() });
    if setup.tso {
        let offloads = features::TX_OFFLOADS | features::RX_OFFLOADS;
        let accepted = features::PLAIN | offloads;
        return config
            .features(accepted)
            .ring_size(TSO_RING)
            .tx_buffers(TSO_BYTES, PAGE)
            .tx_indirect(true)
            .rx_buffers(&[PAGE]);
    }
    config.ring_size(RING).buffer_turns(turns(setup))
}

/// Buffers of each descriptor.
pub const fn turns(setup: &Setup) -> u16 {
    if setup.cold { COLD_TURNS } else { 1 }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_set_ups_lie_together() {
        let all = all();
        let names: HashSet<_> = all.iter().map(|scenario| scenario.name).collect();
        assert_eq!(names.len(), all.len());
        let mut setups: Vec<_> = all.iter().map(|scenario| scenario.setup).collect();
        setups.dedup();
        let unique: HashSet<_> = setups.iter().collect();
        assert_eq!(unique.len(), setups.len(), "a switch would be started twice a round");
    }

    #[test]
    fn super_frames_are_as_long_as_their_scenario_says() {
        let tso = all().into_iter().find(|scenario| scenario.setup.tso).unwrap();
        assert_eq!(crate::traffic::Pattern::tso(1, 2).len(), tso.frame_bytes());
    }
}
