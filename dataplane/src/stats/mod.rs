//! Counters: who writes them, what they mean, and the law that ties them together.
//!
//! # The conservation law
//! Every frame that the switch takes from a guest ends in exactly one place:
//!
//! ```text
//! ingress, per vport:  received = forwarded + answered + sum of drops by reason + in hand
//! egress,  per vport:  offered  = delivered + sum of drops by reason
//! the whole switch:    sum of copies made at ingress = sum of offered at egress
//! ```
//!
//! A frame counts as forwarded when at least one copy of it was delivered: a broadcast is one frame
//! received and as many copies as its segment has other vports. When no copy could be delivered,
//! the frame is a drop at ingress too, with the reason of the first refusal.
//!
//! A frame that the switch answers itself ([`crate::neighbour`]) goes no further: it is answered when
//! the answer reached its sender, which counts as one copy, offered to the sender's own vport; otherwise
//! it is a drop with the reason of that refusal.
//!
//! # Threads
//! Every counter has one writer at a time: ingress counters the PMD that holds the TX vring, egress
//! counters the PMD that holds the RX vring's lock. Readers are the control thread and the metrics.

mod drop_reason;
pub mod stages;

use std::sync::atomic::{AtomicU64, Ordering};

pub use drop_reason::DropReason;
use stages::StageCounters;

/// One writer at a time, any number of readers.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    ///
    /// ORDERING: a plain load and store, no locked instruction. Only the owner writes, and a
    /// reader wants a recent value, not one ordered against other memory.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Replaces the value: a gauge.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value now.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One counter per [`DropReason`].
#[derive(Debug, Default)]
pub struct Drops([Counter; DropReason::COUNT]);

impl Drops {
    /// Counts `n` frames dropped for `reason`.
    #[inline]
    pub fn add(&self, reason: DropReason, n: u64) {
        self.0[reason as usize].add(n);
    }

    /// Frames dropped for `reason` so far.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason as usize].get()
    }

    /// Frames dropped for any reason so far.
    pub fn total(&self) -> u64 {
        self.0.iter().map(Counter::get).sum()
    }
}

/// What a vport's guest sent, and what became of it. Written by the PMD that holds the TX vring.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Ingress {
    /// Frames taken from the guest.
    pub received_frames: Counter,
    /// Their bytes, Ethernet header included, virtio-net header and FCS not.
    pub received_bytes: Counter,
    /// Frames of which at least one copy reached a guest.
    pub forwarded_frames: Counter,
    /// Frames that were answered to their sender.
    pub answered_frames: Counter,
    /// Copies offered to egress vports.
    pub copies: Counter,
    /// Gauge: frames of the burst that is being worked on.
    pub in_hand: Counter,
    /// Clock ticks that PMDs spent on the vring ([`crate::clock::ticks`]).
    pub busy_ticks: Counter,
    /// Frames that reached no one.
    pub drops: Drops,
}

/// What was meant for a vport's guest, and what became of it. Written under the RX vring's lock.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Egress {
    /// Frames that were to be delivered.
    pub offered_frames: Counter,
    /// Frames written to the guest's buffers; a segmented frame counts once.
    pub delivered_frames: Counter,
    /// Their bytes, Ethernet header included, virtio-net header and FCS not.
    pub delivered_bytes: Counter,
    /// Frames that did not fit or met no running vring.
    pub drops: Drops,
}

/// What a PMD thread did. Written by that thread.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct PmdCounters {
    /// Rounds over the polled vrings.
    pub rounds: Counter,
    /// Bursts with at least one frame.
    pub bursts: Counter,
    /// Frames taken from TX vrings.
    pub frames: Counter,
    /// Clock ticks spent in rounds that found work ([`crate::clock::ticks`]).
    pub busy_ticks: Counter,
    /// Clock ticks spent in rounds that found none.
    pub idle_ticks: Counter,
    /// Clock ticks spent looking for kicks between rounds.
    pub kick_check_ticks: Counter,
    /// Clock ticks slept; a sleep counts when it ends.
    pub sleep_ticks: Counter,
    /// Times the thread went to sleep.
    pub sleeps: Counter,
    /// Kicks from guests that put a sleeping vring back to polling.
    pub wakeups: Counter,
    /// Source addresses that could not be reported for learning, as the queue was full.
    pub learn_overflow: Counter,
    /// Where the busy time goes: samples.
    pub stages: StageCounters,
    /// Gauge: vrings polled now.
    pub polled_rings: Counter,
    /// Gauge: vrings armed to kick now.
    pub armed_rings: Counter,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_counter_and_a_name_of_its_own() {
        let drops = Drops::default();
        let mut names = std::collections::HashSet::new();
        for (n, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, n);
            assert!(names.insert(reason.name()), "{} twice", reason.name());
            drops.add(reason, 1 + n as u64);
            assert_eq!(drops.get(reason), 1 + n as u64);
        }
        let count = DropReason::COUNT as u64;
        assert_eq!(drops.total(), count * (count + 1) / 2);
    }
}
