//! Medians and spreads of a few rounds.

use serde::Serialize;

/// What several rounds of one measurement gave.
#[derive(Debug, Clone, Serialize)]
pub struct Rounds {
    /// Each round, in the order they ran.
    pub samples: Vec<f64>,
    /// The middle one.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
}

impl Rounds {
    /// Sums up `samples`, of which there is at least one.
    pub fn of(samples: Vec<f64>) -> Self {
        assert!(!samples.is_empty(), "no round was run");
        let mut sorted = samples.clone();
        sorted.sort_by(f64::total_cmp);
        let mid = sorted.len() / 2;
        let median =
            if sorted.len() % 2 == 1 { sorted[mid] } else { (sorted[mid - 1] + sorted[mid]) / 2.0 };
        Self { median, min: sorted[0], max: sorted[sorted.len() - 1], samples }
    }
}

impl std::fmt::Display for Rounds {
    /// Median and range, with the precision asked for.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = f.precision().unwrap_or(2);
        write!(f, "{:.digits$} ({:.digits$}-{:.digits$})", self.median, self.min, self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_of_rounds_is_the_mean_of_the_middle_two() {
        let rounds = Rounds::of(vec![4.0, 1.0, 3.0, 2.0]);
        assert_eq!((rounds.min, rounds.median, rounds.max), (1.0, 2.5, 4.0));
        assert_eq!(format!("{rounds:.1}"), "2.5 (1.0-4.0)");
    }
}
