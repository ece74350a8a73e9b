//! Whether two sets of samples differ: the U test of Mann and Whitney (Annals of Mathematical
//! Statistics 18, 1947), exact.
//!
//! All samples are ranked together, ties by the mean of their ranks. If both sets came from the same
//! source, every choice of ranks for the first set would be as likely as any other; p is the share
//! of choices whose sum of ranks lies as far from the middle as the one found, or further, on either
//! side. The choices are counted by their sum, one rank after the other, so ties need no correction
//! and few samples no table. Nothing is assumed of how samples spread.

/// What the test says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Test {
    /// Pairs in which the second set's sample is the greater one; a tie is half a pair.
    pub u: f64,
    /// Pairs.
    pub pairs: f64,
    /// How likely a difference this large is if there is none, on either side.
    pub p: f64,
}

impl Test {
    /// Whether samples of the second set tend to be greater; `None` if to neither side.
    pub fn is_second_greater(&self) -> Option<bool> {
        (self.u * 2.0 != self.pairs).then_some(self.u * 2.0 > self.pairs)
    }
}

/// Compares `first` with `second`.
///
/// # Panics
/// One of them is empty.
pub fn compare(first: &[f64], second: &[f64]) -> Test {
    assert!(!first.is_empty() && !second.is_empty(), "no samples to compare");
    let ranks = doubled_ranks(first, second);
    let (of_first, _) = ranks.split_at(first.len());
    let sum: usize = of_first.iter().sum();
    let counts = sums(&ranks, first.len());
    // Twice the mean of all sums, which lies between two of them if it is odd.
    let middle = first.len() * (ranks.len() + 1);
    let distance = sum.abs_diff(middle);
    let (mut as_far, mut all) = (0.0, 0.0);
    for (sum, count) in counts.into_iter().enumerate() {
        all += count;
        if sum.abs_diff(middle) >= distance {
            as_far += count;
        }
    }
    let pairs = (first.len() * second.len()) as f64;
    let least = first.len() * (first.len() + 1);
    let u = pairs - (sum - least) as f64 / 2.0;
    Test { u, pairs, p: as_far / all }
}

/// Twice the rank of each sample, from 2, the first set's before the second's: whole numbers, as a
/// tie's rank may be a half.
fn doubled_ranks(first: &[f64], second: &[f64]) -> Vec<usize> {
    let all: Vec<f64> = first.iter().chain(second).copied().collect();
    let rank = |sample: &f64| {
        let below = all.iter().filter(|other| other.total_cmp(sample).is_lt()).count();
        let equal = all.iter().filter(|other| other.total_cmp(sample).is_eq()).count();
        2 * below + equal + 1
    };
    all.iter().map(rank).collect()
}

/// In how many ways `chosen` of `ranks` make each sum. As floating point: a hundred of two hundred
/// are 9e58, and what that rounds is far below any p.
fn sums(ranks: &[usize], chosen: usize) -> Vec<f64> {
    let most: usize = ranks.iter().sum();
    let mut ways = vec![vec![0.0; most + 1]; chosen + 1];
    ways[0][0] = 1.0;
    let mut reached = 0;
    for &rank in ranks {
        reached += rank;
        for n in (1..=chosen).rev() {
            let (fewer, these) = ways.split_at_mut(n);
            let with = &fewer[n - 1][..=reached - rank];
            for (way, with) in these[0][rank..].iter_mut().zip(with) {
                *way += with;
            }
        }
    }
    ways.swap_remove(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Samples without ties of which `u` pairs are won by the second set.
    fn with_u(first: usize, second: usize, mut u: usize) -> (Vec<f64>, Vec<f64>) {
        let a: Vec<_> = (0..first).map(|n| n as f64).collect();
        let place = |n: usize| {
            let won = u.min(first);
            u -= won;
            won as f64 - 0.5 + n as f64 / 1000.0
        };
        let b = (0..second).map(place).collect();
        assert_eq!(u, 0);
        (a, b)
    }

    #[test]
    fn samples_are_made_as_the_other_tests_take_them() {
        for u in [0, 1, 7, 13, 64] {
            let (a, b) = with_u(8, 8, u);
            assert_eq!(compare(&a, &b).u, u as f64);
            assert_eq!(compare(&b, &a).u, (64 - u) as f64);
        }
    }

    /// Two-sided critical values of U, as in the tables of statistics books (after Milton, Journal of
    /// the American Statistical Association 59, 1964): the greatest U that is significant.
    #[test]
    fn the_greatest_significant_u_is_that_of_the_published_tables() {
        for (first, second, level, critical) in [
            (5, 5, 0.05, 2),
            (5, 5, 0.01, 0),
            (5, 8, 0.05, 6),
            (5, 8, 0.01, 2),
            (6, 6, 0.05, 5),
            (6, 6, 0.01, 2),
            (7, 7, 0.05, 8),
            (8, 8, 0.05, 13),
            (8, 8, 0.01, 7),
            (9, 9, 0.01, 11),
            (10, 10, 0.05, 23),
            (10, 10, 0.01, 16),
            (12, 12, 0.01, 27),
            (15, 15, 0.05, 64),
            (20, 20, 0.05, 127),
            (20, 20, 0.01, 105),
        ] {
            let p = |u| {
                let (a, b) = with_u(first, second, u);
                compare(&a, &b).p
            };
            let (at, above) = (p(critical), p(critical + 1));
            assert!(at <= level, "{first}, {second}: p of U = {critical} is {at}");
            assert!(above > level, "{first}, {second}: p of U = {} is {above}", critical + 1);
        }
    }

    #[test]
    fn the_most_extreme_order_is_two_of_all_choices() {
        let (a, b) = with_u(8, 8, 0);
        assert!((compare(&a, &b).p - 2.0 / 12_870.0).abs() < 1e-12);
        let (a, b) = with_u(4, 4, 16);
        assert!((compare(&a, &b).p - 2.0 / 70.0).abs() < 1e-12);
    }

    #[test]
    fn ties_are_counted_as_every_choice_among_them_would_be() {
        let (a, b) = ([1.0, 2.0, 2.0, 5.0], [2.0, 3.0, 5.0]);
        let test = compare(&a, &b);
        assert_eq!(test.u, 8.5);
        // All 35 choices of four of the seven, each ranked anew.
        let all: Vec<_> = a.iter().chain(&b).copied().collect();
        let u = |a: &[f64], b: &[f64]| -> f64 {
            let won = |x: &f64, y: &f64| if x < y { 1.0 } else { f64::from(x == y) / 2.0 };
            a.iter().flat_map(|x| b.iter().map(move |y| won(x, y))).sum()
        };
        let (mut as_far, mut choices) = (0, 0);
        for bits in 0_u32..128 {
            if bits.count_ones() != 4 {
                continue;
            }
            let of = |wanted| {
                let chosen = (0..7).filter(move |n| (bits >> n & 1 == 1) == wanted);
                chosen.map(|n| all[n]).collect::<Vec<_>>()
            };
            choices += 1;
            as_far += usize::from((u(&of(true), &of(false)) - 6.0).abs() >= 2.5);
        }
        assert_eq!(choices, 35);
        assert!((test.p - as_far as f64 / 35.0).abs() < 1e-12, "{test:?}, {as_far} of 35");
    }

    #[test]
    fn what_is_equal_shows_nothing_whatever_there_is_of_it() {
        let test = compare(&[3.0; 100], &[3.0; 100]);
        assert!((test.p - 1.0).abs() < 1e-9, "{test:?}");
        assert_eq!(test.is_second_greater(), None);
        let (a, b): (Vec<f64>, Vec<f64>) = (0..100).map(|n| (n as f64, n as f64 + 0.5)).unzip();
        let test = compare(&a, &b);
        assert!(test.p > 0.8 && test.is_second_greater() == Some(true), "{test:?}");
    }
}
