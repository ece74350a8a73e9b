//! The guest's clock: the agent is a tool that measures.

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

/// Now, for measuring spans.
#[expect(clippy::disallowed_methods, reason = "the agent measures round trips and transfers")]
pub fn now() -> Instant {
    Instant::now()
}

/// Time since the kernel started.
pub fn since_boot() -> nix::Result<Duration> {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from)
}
