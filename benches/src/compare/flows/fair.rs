//! How evenly clients are served.

/// Jain's index: 1 if all get the same, 1/n if one gets all (Jain, Chiu, Hawe 1984). `None`: nobody gets
/// anything.
pub fn jain(shares: &[f64]) -> Option<f64> {
    let sum: f64 = shares.iter().sum();
    let squares: f64 = shares.iter().map(|share| share * share).sum();
    (squares > 0.0).then(|| sum * sum / (shares.len() as f64 * squares))
}

/// The most over the least. `None`: there is nobody, or somebody gets nothing.
pub fn max_over_min(shares: &[f64]) -> Option<f64> {
    let most = shares.iter().copied().fold(0.0, f64::max);
    let least = shares.iter().copied().fold(f64::INFINITY, f64::min);
    (least > 0.0 && most > 0.0).then(|| most / least)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_is_one_for_equals_and_one_of_n_if_one_has_all() {
        assert_eq!(jain(&[2.0; 7]), Some(1.0));
        assert_eq!(jain(&[0.0, 3.0, 0.0, 0.0]), Some(0.25));
        // (1+2+3)^2 / (3 * 14)
        assert!((jain(&[1.0, 2.0, 3.0]).unwrap() - 36.0 / 42.0).abs() < 1e-12);
        assert_eq!((jain(&[]), jain(&[0.0])), (None, None));
    }

    #[test]
    fn the_most_over_the_least_is_told_only_if_all_got_something() {
        assert_eq!(max_over_min(&[2.0, 6.0, 3.0]), Some(3.0));
        assert_eq!(max_over_min(&[5.0]), Some(1.0));
        assert_eq!((max_over_min(&[]), max_over_min(&[1.0, 0.0])), (None, None));
    }
}
