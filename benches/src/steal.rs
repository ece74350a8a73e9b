//! Windows in which the hypervisor took too much time: repeated a few times, then counted and left out.

use anyhow::Result;

use crate::host::stolen_ms;
use crate::rig::cores;

/// Of a window's time on all cores, that the hypervisor may take.
pub const MOST: f64 = 0.02;
/// How often a window is repeated.
pub const REPEATS: usize = 2;
/// A clock of 10 ms may show as much for one that took nothing to speak of.
const LEAST_MS: u64 = 20;

/// What came of repeated windows: the last one, and why the ones before it did not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watched<T> {
    /// Of the last window.
    pub outcome: T,
    /// Windows thrown away before it.
    pub repeated: usize,
    /// Why the last one does not count either, if it does not.
    pub discarded: Option<String>,
}

/// Runs `window` until one of them lost little to the hypervisor, `1 + REPEATS` times at most.
///
/// # Errors
/// Those of `window`; the kernel does not tell.
pub fn watch<T>(window: impl FnMut() -> Result<T>) -> Result<Watched<T>> {
    let (first, last) = cores()?;
    let cores: Vec<_> = (first..=last).collect();
    let now_ms = || dataplane::clock::ticks() / dataplane::clock::ticks_per_us() / 1000;
    watch_with(window, cores.len(), now_ms, || stolen_ms(&cores))
}

fn watch_with<T>(
    mut window: impl FnMut() -> Result<T>,
    cores: usize,
    now_ms: impl Fn() -> u64,
    stolen_ms: impl Fn() -> Result<u64>,
) -> Result<Watched<T>> {
    let mut repeated = 0;
    loop {
        let before = (now_ms(), stolen_ms()?);
        let outcome = window()?;
        let (passed, stolen) = (now_ms() - before.0, stolen_ms()? - before.1);
        let share = stolen as f64 / (passed.max(1) * cores as u64) as f64;
        let discarded = (stolen > LEAST_MS && share > MOST)
            .then(|| format!("the hypervisor took {:.0} % of the window", 100.0 * share));
        if discarded.is_none() || repeated == REPEATS {
            return Ok(Watched { outcome, repeated, discarded });
        }
        repeated += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Windows of a second on two cores that lose `stolen` milliseconds each.
    fn watched(stolen: &[u64]) -> Watched<usize> {
        let (window, sum) = (Cell::new(0), Cell::new(0));
        let run = || {
            sum.set(sum.get() + stolen[window.get()]);
            window.set(window.get() + 1);
            Ok(window.get())
        };
        watch_with(run, 2, || window.get() as u64 * 1000, || Ok(sum.get())).unwrap()
    }

    #[test]
    fn a_window_that_lost_time_is_repeated_and_at_last_thrown_away() {
        assert_eq!(watched(&[30]), Watched { outcome: 1, repeated: 0, discarded: None });
        assert_eq!(watched(&[100, 90, 10]), Watched { outcome: 3, repeated: 2, discarded: None });
        let lost = watched(&[100, 100, 100]);
        assert_eq!((lost.outcome, lost.repeated), (3, 2));
        assert_eq!(lost.discarded.unwrap(), "the hypervisor took 5 % of the window");
    }
}
