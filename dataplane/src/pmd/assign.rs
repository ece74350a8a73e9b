//! Which PMD polls which transmit ring: a pure function from what is there to a plan.
//!
//! A ring stays where it is as long as that PMD exists, so a plan moves as little as it can. A new
//! ring goes to the PMD with the fewest rings, the lowest number first; the queue pairs of one port
//! so spread over the PMDs.

/// How many rings each PMD polls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    rings: Vec<u32>,
}

impl Plan {
    /// No ring anywhere. There is at least one PMD.
    pub fn new(pmds: usize) -> Self {
        Self { rings: vec![0; pmds.max(1)] }
    }

    /// Assigns one more ring; returns its PMD.
    pub fn add(&mut self) -> u32 {
        let least = self.rings.iter().enumerate().min_by_key(|&(_, &n)| n);
        let pmd = least.map_or(0, |(pmd, _)| pmd);
        self.rings[pmd] += 1;
        pmd as u32
    }

    /// Takes one ring off `pmd`.
    pub fn remove(&mut self, pmd: u32) {
        if let Some(n) = self.rings.get_mut(pmd as usize) {
            *n = n.saturating_sub(1);
        }
    }

    /// How many rings each PMD polls, by number of the PMD.
    pub fn rings(&self) -> &[u32] {
        &self.rings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_spread_evenly_and_fill_gaps_first() {
        let mut plan = Plan::new(3);
        let order: Vec<_> = (0..6).map(|_| plan.add()).collect();
        assert_eq!(order, [0, 1, 2, 0, 1, 2]);
        plan.remove(1);
        assert_eq!(plan.add(), 1);
        assert_eq!(plan.rings(), [2, 2, 2]);
    }

    #[test]
    fn removing_from_a_pmd_that_does_not_exist_changes_nothing() {
        let mut plan = Plan::new(1);
        plan.remove(7);
        plan.remove(0);
        assert_eq!(plan.rings(), [0]);
    }
}
