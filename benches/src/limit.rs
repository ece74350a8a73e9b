//! Whether a rate is the switch's, or only that of what loads it.

use crate::measure::Sample;
use crate::stats::Rounds;

/// A switch that is idle for more than this share of its time was not the limit.
const MOST_IDLE: f64 = 0.1;
/// Nor was one for which the generator waited for less than this share of its own.
///
/// Turns in which a ring was full would not tell: a generator that takes its buffers back when there are no
/// more finds one full once in a while, and a turn in vain is short.
const LEAST_WAITED: f64 = 0.03;

/// Whether the generator was the limit in most of these windows: by the switch's own count, or by the
/// generator's if it has none.
pub fn is_generator_bound<'a>(samples: impl Iterator<Item = &'a Sample> + Clone) -> bool {
    let median = |share: fn(&Sample) -> Option<f64>| {
        let shares: Vec<_> = samples.clone().filter_map(share).collect();
        (!shares.is_empty()).then(|| Rounds::of(shares).median)
    };
    match median(|sample| sample.idle_share) {
        Some(idle) => idle > MOST_IDLE,
        None => median(|sample| sample.waited_share).is_some_and(has_waited_little),
    }
}

/// Whether a generator that waited for this share of its time was the limit itself.
pub fn has_waited_little(waited_share: f64) -> bool {
    waited_share < LEAST_WAITED
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(idle: Option<f64>, waited: Option<f64>) -> bool {
        let sample = Sample { idle_share: idle, waited_share: waited, ..Sample::default() };
        is_generator_bound([&sample].into_iter())
    }

    #[test]
    fn what_the_switch_counts_itself_goes_before_what_the_generator_saw() {
        assert!(of(Some(0.4), Some(0.5)) && !of(Some(0.01), Some(0.0)));
        assert!(of(None, Some(0.01)) && !of(None, Some(0.2)));
        assert!(!of(None, None), "nobody sent anything");
    }

    #[test]
    fn most_of_the_windows_decide() {
        let samples =
            [0.0, 0.3, 0.4].map(|idle| Sample { idle_share: Some(idle), ..Sample::default() });
        assert!(is_generator_bound(samples.iter()));
        assert!(!is_generator_bound(samples[..2].iter().chain(&samples[..1])));
    }
}
