//! Counters of ports and PMD threads.
//!
//! Counters only grow while a port lives. Two laws hold in every reply, up to frames that move
//! while the counters are read:
//! ```text
//! ingress:  received_frames = forwarded_frames + answered_frames + sum(drops) + in_hand_frames
//! egress:   offered_frames  = delivered_frames + sum(drops)
//! ```
//! A frame that is flooded to n ports is forwarded once and offered n times.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Frames dropped, by reason in snake case (`ring_full`). A reason that never happened may be absent.
pub type Drops = BTreeMap<String, u64>;

/// What came from a port's guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IngressStats {
    /// Frames taken from the TX vrings.
    pub received_frames: u64,
    /// Their bytes, without the virtio-net header.
    pub received_bytes: u64,
    /// Frames that went on to at least one port.
    pub forwarded_frames: u64,
    /// Frames that the switch answered itself: who asked for the address of a guest it knows. The
    /// answers are among the frames offered to the port.
    #[serde(default)]
    pub answered_frames: u64,
    /// Frames that went no further, by reason.
    pub drops: Drops,
}

/// What was meant for a port's guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EgressStats {
    /// Frames that the pipeline sent this way.
    pub offered_frames: u64,
    /// Frames put into the RX vrings.
    pub delivered_frames: u64,
    /// Their bytes, without the virtio-net header.
    pub delivered_bytes: u64,
    /// Frames that found no room or no guest, by reason.
    pub drops: Drops,
}

/// The counters of one port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortStats {
    /// The port's name.
    pub port: String,
    /// The port's segment.
    pub vni: u32,
    /// What came from the guest.
    pub ingress: IngressStats,
    /// What was meant for the guest.
    pub egress: EgressStats,
    /// Frames received whose fate is not settled yet.
    pub in_hand_frames: u64,
    /// How often vrings of the port were stopped for a violation, by its name in snake case
    /// (`avail_jump`).
    pub ring_faults: BTreeMap<String, u64>,
}

/// The counters of every port, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Stats {
    /// One item per port.
    pub ports: Vec<PortStats>,
}

/// A vring that a PMD thread polls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PmdRing {
    /// The port's name.
    pub port: String,
    /// The vring's index.
    pub ring: u16,
    /// The share of a core's time that it took over the last interval or two, in thousandths.
    #[serde(default)]
    pub load_permille: u32,
    /// Whether the port's settings keep it on this thread.
    #[serde(default)]
    pub is_pinned: bool,
}

/// A vring that was moved from one polling thread to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RingMove {
    /// The port's name.
    pub port: String,
    /// The vring's index.
    pub ring: u16,
    /// The thread that polled it.
    pub from: u32,
    /// The thread that polls it now.
    pub to: u32,
}

/// What a look at the loads of polling threads came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Rebalanced {
    /// The vrings moved; none when it would not have paid.
    pub moves: Vec<RingMove>,
}

/// One polling thread.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pmd {
    /// Its number, from 0.
    pub id: u32,
    /// The core it is pinned to; absent when it could not be pinned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub core: Option<u32>,
    /// The vrings it polls.
    pub rings: Vec<PmdRing>,
    /// Time spent in rounds that found frames, in clock ticks.
    pub busy_cycles: u64,
    /// Time spent in rounds that found none, in clock ticks; sleep is not counted.
    pub idle_cycles: u64,
    /// Looks at a vring.
    pub polls: u64,
    /// Looks that found frames.
    pub bursts: u64,
    /// Frames taken in those bursts.
    pub frames: u64,
    /// Times it went to sleep.
    pub sleeps: u64,
    /// Times a kick or a message woke it.
    pub wakeups: u64,
    /// Time spent looking for kicks of armed vrings, in clock ticks.
    #[serde(default)]
    pub kick_check_cycles: u64,
    /// Time slept, in clock ticks; a sleep counts when it ends.
    #[serde(default)]
    pub sleep_cycles: u64,
    /// How many vrings it polls now.
    #[serde(default)]
    pub polled_rings: u64,
    /// How many vrings without traffic are armed to wake it.
    #[serde(default)]
    pub armed_rings: u64,
    /// Where its busy time goes.
    #[serde(default)]
    pub samples: StageSamples,
}

/// Looks at vrings that were measured stage by stage: one in 16, chosen by chance. What a stage costs a
/// frame is its cycles over `frames`; both only grow, so their changes tell of an interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StageSamples {
    /// Bursts that were measured.
    pub bursts: u64,
    /// Their frames.
    pub frames: u64,
    /// Taking them from the guest and copying their heads, in clock ticks.
    pub take_cycles: u64,
    /// Judging them: anti-spoofing, neighbours, forwarding database.
    pub judge_cycles: u64,
    /// Writing them to their receivers.
    pub deliver_cycles: u64,
    /// Accounting for them, and giving the buffers back to the sender.
    pub settle_cycles: u64,
    /// Looks at vrings without frames that were measured.
    pub empty_looks: u64,
    /// What those took, in clock ticks.
    pub empty_cycles: u64,
}

/// The polling threads, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PmdList {
    /// Ticks per second of the clock behind `*_cycles`.
    pub cycles_hz: u64,
    /// The threads.
    pub pmds: Vec<Pmd>,
}
