//! Who is measured when: no switch is to profit from its place in a round.

/// The order of `count` switches in round `round`, as indices.
///
/// A Williams design (Williams 1949): in `count` rounds, or twice as many of an odd `count`, each comes
/// equally often at each place, and equally often right after each of the others. So neither a
/// machine that warms up nor what another leaves behind in caches or memory favours one.
pub fn order(count: usize, round: usize) -> Vec<usize> {
    // 0, 1, -1, 2, -2, ...: the differences between neighbours are all different.
    let step = |place: usize| match place % 2 {
        1 => place.div_ceil(2),
        _ => (count - place / 2) % count,
    };
    let is_reversed = count % 2 == 1 && (round / count) % 2 == 1;
    let mut order: Vec<_> = (0..count).map(|place| (step(place) + round) % count).collect();
    if is_reversed {
        order.reverse();
    }
    order
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn each_comes_equally_often_at_each_place_and_after_each_other() {
        for count in 1..=6 {
            let rounds = if count % 2 == 0 { count } else { 2 * count };
            let (mut places, mut pairs) = (HashMap::new(), HashMap::new());
            for round in 0..rounds {
                let order = order(count, round);
                for (place, &who) in order.iter().enumerate() {
                    *places.entry((place, who)).or_insert(0) += 1;
                }
                for pair in order.windows(2) {
                    *pairs.entry((pair[0], pair[1])).or_insert(0) += 1;
                }
            }
            assert_eq!(places.len(), count * count, "{count}");
            assert!(places.values().all(|&n| n == rounds / count), "{count}: {places:?}");
            assert_eq!(pairs.len(), count * (count - 1), "{count}: {pairs:?}");
            assert!(pairs.values().all(|&n| n == rounds / count), "{count}: {pairs:?}");
        }
    }
}
