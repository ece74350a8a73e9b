//! Deadlines of the control thread, soonest first; at most one for each purpose.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use crate::clock;

/// What is due when a deadline passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Timer {
    /// The message in hand of this port should have been completed, or its reply read.
    Message(u32),
    /// The connection that this port has should have ended by now for the next one's sake.
    Patience(u32),
    /// Messages of this port are left over from its last turn.
    Serve(u32),
    /// Connections to this port are left over, or could not be accepted before.
    Accept(u32),
    /// Try to connect this port.
    Connect(u32),
    /// Run this periodic task.
    Task(usize),
}

/// Monotonic time since some moment before the start of the process.
pub(super) type Time = Duration;

/// The current time.
pub(super) fn now() -> Time {
    Duration::from_micros(clock::ticks() / clock::ticks_per_us())
}

#[derive(Debug, Default)]
pub(super) struct Timers {
    queue: BTreeSet<(Time, Timer)>,
    due: HashMap<Timer, Time>,
}

impl Timers {
    /// Makes `timer` due at `at`, instead of when it was due before.
    pub fn set(&mut self, timer: Timer, at: Time) {
        self.clear(timer);
        self.due.insert(timer, at);
        self.queue.insert((at, timer));
    }

    /// As [`Self::set`], unless it is due at some time already.
    pub fn set_once(&mut self, timer: Timer, at: Time) {
        if !self.due.contains_key(&timer) {
            self.set(timer, at);
        }
    }

    /// Makes `timer` never due.
    pub fn clear(&mut self, timer: Timer) {
        if let Some(at) = self.due.remove(&timer) {
            self.queue.remove(&(at, timer));
        }
    }

    /// How long until the next is due.
    pub fn next_in(&self, now: Time) -> Option<Duration> {
        self.queue.first().map(|(at, _)| at.saturating_sub(now))
    }

    /// Takes the soonest that is due.
    pub fn pop(&mut self, now: Time) -> Option<Timer> {
        let &(at, timer) = self.queue.first().filter(|(at, _)| *at <= now)?;
        self.queue.remove(&(at, timer));
        self.due.remove(&timer);
        Some(timer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_come_due_in_order_and_only_once() {
        let (t0, s) = (now(), Duration::from_secs(1));
        let mut timers = Timers::default();
        timers.set(Timer::Task(1), t0 + 3 * s);
        timers.set(Timer::Message(7), t0 + 2 * s);
        timers.set(Timer::Task(1), t0 + s);
        timers.set_once(Timer::Task(1), t0 + 9 * s);
        timers.set(Timer::Connect(7), t0);
        timers.clear(Timer::Connect(7));
        assert_eq!(timers.next_in(t0), Some(s));
        assert_eq!(timers.pop(t0), None);
        assert_eq!(timers.pop(t0 + 2 * s), Some(Timer::Task(1)));
        assert_eq!(timers.pop(t0 + 2 * s), Some(Timer::Message(7)));
        assert_eq!(timers.pop(t0 + 9 * s), None);
        assert_eq!(timers.next_in(t0), None);
    }
}
