//! The only place that reads time.
//!
//! [`ticks`] is the CPU's time-stamp counter where it is constant and synchronised (every x86-64 of
//! this decade), else the monotonic clock in nanoseconds; [`ticks_per_us`] says how many make a
//! microsecond. Everything else is told the time.

use std::sync::OnceLock;

/// Monotonic ticks since some moment before the start of the process.
#[inline]
pub fn ticks() -> u64 {
    clock().raw()
}

/// How many [`ticks`] make a microsecond; at least 1.
pub fn ticks_per_us() -> u64 {
    static RATE: OnceLock<u64> = OnceLock::new();
    *RATE.get_or_init(|| {
        // quanta calibrates when its clock is made; one million ticks divide finely enough.
        let ns = clock().delta_as_nanos(0, 1_000_000).max(1);
        (1_000_000_000 / ns).max(1)
    })
}

/// Whole seconds on the monotonic clock, for ageing.
pub fn seconds() -> u32 {
    let us = ticks() / ticks_per_us();
    u32::try_from(us / 1_000_000).unwrap_or(u32::MAX)
}

/// The wall clock, in milliseconds since 1970: for people, and to tell when; never to measure.
pub fn unix_ms() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "this module is where time is read")]
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn clock() -> &'static quanta::Clock {
    static CLOCK: OnceLock<quanta::Clock> = OnceLock::new();
    CLOCK.get_or_init(quanta::Clock::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_do_not_go_back() {
        let first = ticks();
        assert!(ticks() >= first);
        assert!(ticks_per_us() >= 1);
    }

    #[test]
    fn the_wall_clock_is_past_the_day_this_was_written() {
        assert!(unix_ms() > 1_700_000_000_000);
    }
}
