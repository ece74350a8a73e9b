//! Which PMD polls which transmit ring: pure functions from what is there to a plan.
//!
//! A ring stays where it is as long as that pays, so a plan moves as little as it can. A new ring
//! goes to the PMD with the least load, and among equals to the one with the fewest rings, the
//! lowest number first; the queue pairs of one port so spread over the PMDs. Load is the share of a
//! core's time, in thousandths. Pinned rings count, but are never moved.

/// Loads of PMDs that differ by less than this are equal to a new ring: what is measured is noisy,
/// and rings of guests that boot together should spread evenly.
const STEP_PERMILLE: u32 = 50;

/// One transmit ring as the planner sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingLoad {
    /// The PMD that polls it.
    pub pmd: u32,
    /// The share of a core's time that it took, in thousandths.
    pub load_permille: u32,
    /// It stays where it is.
    pub is_pinned: bool,
}

/// A ring, by its place in the list that was planned for, and the PMD to move it to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// Which ring.
    pub ring: usize,
    /// Where to.
    pub to: u32,
}

/// The sum of loads on each of `pmds` PMDs, in thousandths of a core.
fn loads(pmds: usize, rings: &[RingLoad]) -> Vec<u32> {
    let mut loads = vec![0; pmds];
    for ring in rings {
        loads[ring.pmd as usize] += ring.load_permille;
    }
    loads
}

/// The PMD for one more ring. There is at least one PMD, and `rings` are on those there are.
pub fn place(pmds: usize, rings: &[RingLoad]) -> u32 {
    let loads = loads(pmds, rings);
    let count = |pmd: usize| rings.iter().filter(|ring| ring.pmd as usize == pmd).count();
    let best = (0..pmds).min_by_key(|&pmd| (loads[pmd] / STEP_PERMILLE, count(pmd)));
    best.unwrap_or(0) as u32
}

/// The moves that level the loads, if the largest falls by at least `gain_permille` of a core's
/// time; none otherwise. Each takes a ring off the PMD with most load at that point to the one with
/// least; there are no more of them than it takes for the largest load that this reaches.
pub fn rebalance(pmds: usize, given: &[RingLoad], gain_permille: u32) -> Vec<Move> {
    let mut loads = loads(pmds, given);
    let mut rings = given.to_vec();
    let largest = |loads: &[u32]| loads.iter().copied().max().unwrap_or(0);
    let (at_first, mut best) = (largest(&loads), (largest(&loads), 0));
    let mut moves = Vec::new();
    // Every move shrinks the difference of two PMDs; the bound is for the reader.
    for _ in 0..rings.len() {
        let by_load = |&pmd: &usize| loads[pmd];
        let Some(hot) = (0..pmds).max_by_key(by_load) else { break };
        let Some(cold) = (0..pmds).min_by_key(by_load) else { break };
        let difference = loads[hot] - loads[cold];
        let may_move = |ring: &RingLoad| {
            let fits = (1..difference).contains(&ring.load_permille);
            !ring.is_pinned && ring.pmd as usize == hot && fits
        };
        // What comes nearest to half of the difference levels the two best.
        let ring = (0..rings.len())
            .filter(|&at| may_move(&rings[at]))
            .min_by_key(|&at| (2 * rings[at].load_permille).abs_diff(difference));
        let Some(ring) = ring else { break };
        let load = rings[ring].load_permille;
        loads[hot] -= load;
        loads[cold] += load;
        rings[ring].pmd = cold as u32;
        moves.push(Move { ring, to: cold as u32 });
        if largest(&loads) < best.0 {
            best = (largest(&loads), moves.len());
        }
    }
    let (reached, needed) = best;
    moves.truncate(if at_first - reached >= gain_permille.max(1) { needed } else { 0 });
    last_of_each(moves, given)
}

/// A ring that was moved on goes straight to where it ends, if that is elsewhere.
fn last_of_each(moves: Vec<Move>, given: &[RingLoad]) -> Vec<Move> {
    let mut kept: Vec<Move> = Vec::with_capacity(moves.len());
    for one in moves {
        match kept.iter_mut().find(|kept| kept.ring == one.ring) {
            Some(kept) => kept.to = one.to,
            None => kept.push(one),
        }
    }
    kept.retain(|one| given[one.ring].pmd != one.to);
    kept
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ring(pmd: u32, load_permille: u32) -> RingLoad {
        RingLoad { pmd, load_permille, is_pinned: false }
    }

    fn after(rings: &[RingLoad], moves: &[Move]) -> Vec<RingLoad> {
        let mut rings = rings.to_vec();
        for one in moves {
            rings[one.ring].pmd = one.to;
        }
        rings
    }

    fn largest(pmds: usize, rings: &[RingLoad]) -> u32 {
        loads(pmds, rings).into_iter().max().unwrap_or(0)
    }

    #[test]
    fn rings_spread_evenly_and_fill_gaps_first() {
        let mut rings = Vec::new();
        for expected in [0, 1, 2, 0, 1, 2] {
            let pmd = place(3, &rings);
            assert_eq!(pmd, expected);
            rings.push(ring(pmd, 0));
        }
        rings.remove(1);
        assert_eq!(place(3, &rings), 1);
    }

    #[test]
    fn a_new_ring_goes_to_the_pmd_with_least_load_and_noise_decides_nothing() {
        assert_eq!(place(2, &[ring(0, 700), ring(1, 100), ring(1, 100)]), 1);
        assert_eq!(place(2, &[ring(0, 3), ring(1, 40), ring(0, 9)]), 1);
    }

    #[test]
    fn two_busy_rings_on_one_pmd_are_parted_by_one_move() {
        let rings = [ring(0, 450), ring(0, 450), ring(1, 10), ring(0, 5)];
        assert_eq!(rebalance(2, &rings, 100).len(), 1);
        assert_eq!(largest(2, &after(&rings, &rebalance(2, &rings, 100))), 460);
    }

    #[test]
    fn a_ring_that_fills_a_core_stays_and_the_others_leave() {
        let rings = [ring(0, 800), ring(0, 150), ring(1, 20)];
        assert_eq!(rebalance(2, &rings, 100), [Move { ring: 1, to: 1 }]);
    }

    #[test]
    fn nothing_moves_for_less_than_the_gain_or_when_the_culprits_are_pinned() {
        let rings = [ring(0, 60), ring(0, 50), ring(1, 20)];
        assert_eq!(rebalance(2, &rings, 100), []);
        let pinned = RingLoad { is_pinned: true, ..ring(0, 450) };
        assert_eq!(rebalance(2, &[pinned, pinned, ring(1, 0)], 100), []);
        assert_eq!(rebalance(1, &[ring(0, 900), ring(0, 90)], 100), []);
        assert_eq!(rebalance(2, &[], 100), []);
    }

    proptest! {
        /// Moves pay, are few, leave pinned rings alone, and once made leave nothing to do.
        #[test]
        fn moves_pay_and_end(
            pmds in 1..6usize,
            rings in prop::collection::vec((0..6u32, 0..400u32, prop::bool::weighted(0.2)), 0..40),
            gain in 0..200u32,
        ) {
            let rings: Vec<_> = rings
                .into_iter()
                .map(|(pmd, load_permille, is_pinned)| {
                    RingLoad { pmd: pmd % pmds as u32, load_permille, is_pinned }
                })
                .collect();
            let moves = rebalance(pmds, &rings, gain);
            let then = after(&rings, &moves);
            let (before, after) = (largest(pmds, &rings), largest(pmds, &then));
            prop_assert!(moves.is_empty() || before - after >= gain.max(1), "{before} {after}");
            let mut moved: Vec<_> = moves.iter().map(|one| one.ring).collect();
            moved.sort_unstable();
            moved.dedup();
            prop_assert_eq!(moved.len(), moves.len(), "a ring moves once");
            prop_assert!(moves.iter().all(|one| !rings[one.ring].is_pinned));
            prop_assert!(moves.iter().all(|one| (one.to as usize) < pmds));
            if !moves.is_empty() {
                // No ping-pong: at most what one more ring would gain is left.
                let again = rebalance(pmds, &then, gain);
                prop_assert!(largest(pmds, &self::after(&then, &again)) <= after);
            }
        }
    }
}
