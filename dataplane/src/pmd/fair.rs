//! Fair service by bytes between the rings of one PMD: deficit round robin.
//!
//! Each polled ring gets a quantum of bytes per *cycle* (a round in the words of M. Shreedhar and
//! G. Varghese, "Efficient Fair Queuing Using Deficit Round Robin", IEEE/ACM Transactions on
//! Networking 4(3), 1996). A cycle spans as many rounds of the PMD as it takes, so that bursts of
//! all rings alternate however many of them a quantum is:
//!
//! ```text
//! round:    1    2    3        4   ...        27   28
//! 64 KiB    1 frame, in debt   -   (sits out)  -   1 frame      quantum 48 KB, burst 32 frames
//! 1518 B    32   -    -        -               -   32
//! 64 B      32   32   32       32  ...         10  32
//!           '---------- one cycle ------------'   '--- the next
//! ```
//!
//! A turn goes on until its credit is used up. The frame that crosses the end of it is still taken;
//! what it went over is a debt that the quanta of later cycles pay. A cycle ends once no ring that
//! had frames has credit left, so nothing waits while there is nobody to wait for. Credit that is left
//! at the end of a cycle is lost: an idle ring saves none up. Within a cycle it keeps it, so a
//! ring with few frames never waits for rings with many.
//!
//! # Bounds
//! Between rings that always have frames, the bytes taken differ by less than one frame of maximum
//! length at the end of a cycle, and by less than that and a quantum at any time. No turn takes more
//! than a quantum and the rest of the frame that crosses it. With one ring at work there is nobody
//! to be fair to: no accounts are kept.

/// How a ring stands; owned by the PMD that polls it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Account {
    /// Bytes that it may still take in `cycle`; in debt if negative.
    credit: i64,
    /// The last cycle that it was given a quantum for.
    cycle: u64,
}

/// What the rings of one PMD share.
#[derive(Debug)]
pub struct Fair {
    quantum: u32,
    cycle: u64,
    /// More than one ring wanted a turn in the last round.
    is_contended: bool,
    /// Rings that had frames in this round.
    worked: u32,
    /// Rings that were in debt in this round.
    sat_out: u32,
    /// What the least of them owes.
    least_debt: u64,
    /// A ring that had frames has credit left.
    goes_on: bool,
}

impl Fair {
    /// `quantum_bytes` for each ring per cycle, at least 1.
    pub fn new(quantum_bytes: u32) -> Self {
        Self {
            quantum: quantum_bytes.max(1),
            // So that a new account has one cycle's quantum to its name.
            cycle: 1,
            is_contended: false,
            worked: 0,
            sat_out: 0,
            least_debt: u64::MAX,
            goes_on: false,
        }
    }

    /// How many bytes a ring may take in this round; `None`: it sits out.
    #[inline]
    pub fn turn(&mut self, account: &mut Account) -> Option<u32> {
        if !self.is_contended {
            return Some(self.quantum);
        }
        if account.cycle != self.cycle {
            self.pay(account);
        }
        if account.credit > 0 {
            // At most a quantum, as `pay` leaves no more.
            return Some(account.credit as u32);
        }
        self.sat_out += 1;
        self.least_debt = self.least_debt.min(account.credit.unsigned_abs());
        None
    }

    /// Adds the quanta of the cycles that the account has not seen.
    fn pay(&self, account: &mut Account) {
        let (quantum, cycles) = (i64::from(self.quantum), self.cycle - account.cycle);
        // What was saved up is lost, what is owed is not.
        let paid = i64::try_from(cycles).unwrap_or(i64::MAX).saturating_mul(quantum);
        account.credit = account.credit.min(0).saturating_add(paid).min(quantum);
        account.cycle = self.cycle;
    }

    /// A ring took frames of `bytes` in its turn.
    #[inline]
    pub fn charge(&mut self, account: &mut Account, bytes: u32) {
        self.worked += 1;
        if self.is_contended {
            account.credit -= i64::from(bytes);
            self.goes_on |= account.credit > 0;
        }
    }

    /// Every polled ring was asked.
    #[inline]
    pub fn end_round(&mut self) {
        if !self.goes_on {
            self.cycle += match self.worked {
                // All that have frames are in debt: on to the first that has paid.
                0 if self.sat_out > 0 => self.least_debt / u64::from(self.quantum) + 1,
                _ => 1,
            };
        }
        self.is_contended = self.worked + self.sat_out > 1;
        (self.worked, self.sat_out, self.goes_on) = (0, 0, false);
        self.least_debt = u64::MAX;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const QUANTUM: u32 = 32 * 1518;
    const BURST: usize = 32;
    /// A TSO frame of maximum length.
    const LONGEST: u32 = 65_549;

    /// A sender of frames of one length.
    struct Sender {
        frame: u32,
        /// Frames that it has; `None`: always one more.
        waiting: Option<usize>,
        account: Account,
        taken: u64,
    }

    impl Sender {
        fn flooding(frame: u32) -> Self {
            Self { frame, waiting: None, account: Account::default(), taken: 0 }
        }

        fn has_frames(&self) -> bool {
            self.waiting != Some(0)
        }

        /// As a ring's turn goes; returns the bytes taken.
        fn take(&mut self, limit: u32) -> u32 {
            let mut bytes = 0;
            for _ in 0..BURST.min(self.waiting.unwrap_or(BURST)) {
                bytes += self.frame;
                self.waiting = self.waiting.map(|n| n - 1);
                if bytes >= limit {
                    break;
                }
            }
            self.taken += u64::from(bytes);
            bytes
        }
    }

    /// One round of a PMD; returns how many senders had their turn and frames.
    fn round(fair: &mut Fair, senders: &mut [Sender]) -> usize {
        let mut worked = 0;
        for sender in senders {
            let Some(limit) = fair.turn(&mut sender.account) else { continue };
            let bytes = sender.take(limit);
            if bytes > 0 {
                worked += 1;
                fair.charge(&mut sender.account, bytes);
            }
        }
        fair.end_round();
        worked
    }

    /// Bytes between the sender that was served most since `start` and the one served least.
    fn spread(senders: &[Sender], start: &[u64]) -> u64 {
        let taken = || senders.iter().zip(start).map(|(sender, start)| sender.taken - start);
        taken().max().unwrap_or(0) - taken().min().unwrap_or(0)
    }

    fn taken(senders: &[Sender]) -> Vec<u64> {
        senders.iter().map(|sender| sender.taken).collect()
    }

    #[test]
    fn senders_of_long_and_short_frames_get_the_same_bytes() {
        let mut fair = Fair::new(QUANTUM);
        let mut senders = [LONGEST, 1518, 60].map(Sender::flooding);
        // The first round has yet to find that there are several.
        round(&mut fair, &mut senders);
        let start = taken(&senders);
        let mut cycles = 0;
        while cycles < 1000 {
            let before = fair.cycle;
            round(&mut fair, &mut senders);
            let most = u64::from(LONGEST + QUANTUM);
            assert!(spread(&senders, &start) < most, "in the midst of a cycle");
            if fair.cycle != before {
                cycles += 1;
                assert!(spread(&senders, &start) < u64::from(LONGEST), "after {cycles} cycles");
            }
        }
        let each = senders[0].taken - start[0];
        assert!(each > 999 * u64::from(QUANTUM), "{each} bytes in {cycles} cycles");
    }

    #[test]
    fn a_sender_alone_has_its_turn_in_every_round_and_nothing_on_account() {
        let mut fair = Fair::new(QUANTUM);
        let mut senders = [Sender::flooding(LONGEST)];
        for _ in 0..100 {
            assert_eq!(round(&mut fair, &mut senders), 1);
        }
        assert_eq!(senders[0].account, Account::default());
    }

    #[test]
    fn a_sender_of_few_frames_never_waits_for_those_of_many() {
        let mut fair = Fair::new(QUANTUM);
        let mut senders = [LONGEST, 1518, 60].map(Sender::flooding);
        senders[2].waiting = Some(0);
        for n in 0..10_000 {
            // Nothing at all for a while must not help it, nor hinder.
            senders[2].waiting = Some(if n % 100 < 50 { 0 } else { 1 });
            round(&mut fair, &mut senders);
            assert_eq!(senders[2].waiting, Some(0), "round {n}: its frame was left lying");
        }
    }

    #[test]
    fn an_idle_ring_saves_no_credit_and_a_debt_is_forgiven_by_time_only() {
        let mut fair = Fair::new(QUANTUM);
        let mut senders = [1518, 1518, 1518].map(Sender::flooding);
        senders[2].waiting = Some(0);
        for _ in 0..1000 {
            round(&mut fair, &mut senders);
        }
        senders[2].waiting = None;
        let start = taken(&senders);
        for _ in 0..1000 {
            round(&mut fair, &mut senders);
            assert!(spread(&senders, &start) <= u64::from(QUANTUM + 1518));
        }
        // An account in debt that left the rounds comes back with it.
        let mut account = Account { credit: -3 * i64::from(QUANTUM), cycle: fair.cycle };
        fair.cycle += 1;
        assert_eq!(fair.turn(&mut account), None);
        fair.cycle += 2;
        assert_eq!(fair.turn(&mut account), None);
        fair.cycle += 1;
        assert_eq!(fair.turn(&mut account), Some(QUANTUM));
        fair.cycle += 1_000_000;
        assert_eq!(fair.turn(&mut account), Some(QUANTUM));
    }

    proptest! {
        /// Whatever the lengths, the quantum and how many senders there are.
        #[test]
        fn shares_stay_within_one_frame_and_the_pmd_is_never_idle_for_long(
            frames in prop::collection::vec(60..=LONGEST, 2..12),
            quantum in 60..=4 * LONGEST,
        ) {
            let longest = u64::from(*frames.iter().max().expect("two at least"));
            let mut fair = Fair::new(quantum);
            let mut senders: Vec<_> = frames.into_iter().map(Sender::flooding).collect();
            round(&mut fair, &mut senders);
            let start = taken(&senders);
            let mut idle = 0;
            for n in 0..2_000 {
                let before = fair.cycle;
                idle = if round(&mut fair, &mut senders) == 0 { idle + 1 } else { 0 };
                prop_assert!(idle <= 1, "{idle} rounds without work up to {n}");
                let apart = spread(&senders, &start);
                prop_assert!(apart < longest + u64::from(quantum), "round {n}: {apart}");
                if fair.cycle == before + 1 {
                    prop_assert!(apart < longest, "round {n}, at a cycle's end: {apart}");
                }
            }
        }

        /// Senders come and go: who has frames gets a turn in this round or the next but one, or
        /// waits for somebody who had one.
        #[test]
        fn frames_that_wait_are_never_all_left_lying(
            frames in prop::collection::vec(60..=LONGEST, 1..6),
            arrivals in prop::collection::vec((0..6usize, 0..200usize), 1..400),
        ) {
            let mut fair = Fair::new(QUANTUM);
            let mut senders: Vec<_> = frames.into_iter().map(Sender::flooding).collect();
            senders.iter_mut().for_each(|sender| sender.waiting = Some(0));
            let mut idle = 0;
            for (sender, more) in arrivals {
                let at = sender % senders.len();
                senders[at].waiting = senders[at].waiting.map(|n| n + more);
                let someone_waits = senders.iter().any(Sender::has_frames);
                let worked = round(&mut fair, &mut senders);
                idle = if someone_waits && worked == 0 { idle + 1 } else { 0 };
                prop_assert!(idle <= 1, "frames wait and nobody had a turn, {idle} rounds long");
            }
        }
    }
}
