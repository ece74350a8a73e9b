//! Verdicts that were found before, for one PMD.
//!
//! Two ways of [`SETS`] sets, each entry a cache line: 128 KiB, allocated once. The set follows from a hash
//! with a secret seed. A verdict is stored with its epoch, and counts in no other; so a change of rules
//! needs no sweep. A new verdict takes the first way of its set and moves the one there to the second.

use super::Direction;
use super::rules::Verdict;
use super::subject::{Flow, Shows};
use crate::flow::{FlowKey, HashSeed, Network};
use crate::port::PortId;

/// Sets; a power of two.
const SETS: usize = 1024;
const WAYS: usize = 2;

/// Whose verdict it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// The datagram.
    pub flow: Flow,
    /// The vport whose rules are asked.
    pub port: PortId,
    /// Which way it goes.
    pub direction: Direction,
}

impl Key {
    /// What is not in the flow's own key, in one word.
    fn tag(&self) -> u64 {
        let shows = match self.flow.shows {
            Shows::Nothing => 0,
            Shows::Ports => 1 << 8,
            Shows::IcmpType(kind) => 2 << 8 | u64::from(kind),
        };
        let direction = match self.direction {
            Direction::Egress => 0,
            Direction::Ingress => 1 << 16,
        };
        u64::from(self.port.0) << 32 | direction | shows
    }
}

#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Entry {
    key: FlowKey,
    tag: u64,
    /// With the verdict in its lowest bit. 0: the entry is empty, as no rules have epoch 0.
    epoch: u64,
}

const EMPTY: Entry = Entry {
    key: FlowKey { src: 0, dst: 0, src_port: 0, dst_port: 0, protocol: 0, network: Network::Other },
    tag: 0,
    epoch: 0,
};

/// The verdicts of one PMD.
#[derive(Debug)]
pub struct VerdictCache {
    sets: Box<[[Entry; WAYS]]>,
    seed: HashSeed,
}

impl VerdictCache {
    /// An empty cache. `seed` must be secret: guests choose the keys.
    pub fn new(seed: HashSeed) -> Self {
        Self { sets: vec![[EMPTY; WAYS]; SETS].into_boxed_slice(), seed }
    }

    /// A cache that remembers nothing.
    pub fn none() -> Self {
        Self { sets: Box::default(), seed: HashSeed::new(0) }
    }

    /// The verdict on `key` in `epoch`: the one that is known, or what `judge` says.
    #[inline]
    pub fn get_or(&mut self, epoch: u64, key: &Key, judge: impl FnOnce() -> Verdict) -> Verdict {
        let tag = key.tag();
        let hash = self.seed.word(key.flow.key.hash(&self.seed) ^ tag);
        let Some(set) = self.sets.get_mut((hash >> 32) as usize & (SETS - 1)) else {
            return judge();
        };
        for entry in set.iter() {
            if entry.epoch >> 1 == epoch && entry.tag == tag && entry.key == key.flow.key {
                return if entry.epoch & 1 == 0 { Verdict::Allow } else { Verdict::Deny };
            }
        }
        let verdict = judge();
        let denies = u64::from(verdict == Verdict::Deny);
        set[1] = set[0];
        set[0] = Entry { key: key.flow.key, tag, epoch: epoch << 1 | denies };
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(src_port: u16) -> Key {
        let key = FlowKey { src: 1, dst: 2, src_port, protocol: 17, ..EMPTY.key };
        let flow = Flow { key: FlowKey { network: Network::Ipv4, ..key }, shows: Shows::Ports };
        Key { flow, port: PortId(3), direction: Direction::Egress }
    }

    /// What the cache knows; nothing is found out.
    fn known(cache: &mut VerdictCache, epoch: u64, key: &Key) -> Option<Verdict> {
        let mut asked = false;
        let verdict = cache.get_or(epoch, key, || {
            asked = true;
            Verdict::Allow
        });
        (!asked).then_some(verdict)
    }

    #[test]
    fn an_entry_is_a_cache_line() {
        assert_eq!(size_of::<Entry>(), 64);
    }

    #[test]
    fn a_verdict_is_remembered_for_its_epoch_and_its_key_only() {
        let mut cache = VerdictCache::new(HashSeed::new(7));
        let all = [Verdict::Allow, Verdict::Deny];
        for (port, verdict) in (0..).zip(all) {
            assert_eq!(cache.get_or(5, &key(port), || verdict), verdict);
            assert_eq!(known(&mut cache, 5, &key(port)), Some(verdict));
        }
        let base = key(1);
        let others = [
            (6, base),
            (4, base),
            (0, base),
            (5, key(9)),
            (5, Key { port: PortId(4), ..base }),
            (5, Key { direction: Direction::Ingress, ..base }),
            (5, Key { flow: Flow { shows: Shows::Nothing, ..base.flow }, ..base }),
            (5, Key { flow: Flow { shows: Shows::IcmpType(0), ..base.flow }, ..base }),
        ];
        for (epoch, other) in others {
            let mut cache = VerdictCache::new(HashSeed::new(7));
            cache.get_or(5, &base, || Verdict::Deny);
            assert_eq!(known(&mut cache, epoch, &other), None, "{epoch} {other:?}");
        }
    }

    #[test]
    fn a_thousand_flows_stay_and_ever_new_ones_take_their_places() {
        let mut cache = VerdictCache::new(HashSeed::new(7));
        for port in 0..1000 {
            cache.get_or(1, &key(port), || Verdict::Deny);
        }
        let kept = (0..1000).filter(|&port| known(&mut cache, 1, &key(port)).is_some()).count();
        // Where more than two share a set, each that is asked for takes the place of the next: with one key
        // a set on average that is 1 - (1 + 1) / e of all.
        assert!((690..790).contains(&kept), "{kept}");
        for port in 1000..60_000 {
            cache.get_or(1, &key(port), || Verdict::Allow);
        }
        assert_eq!(known(&mut cache, 1, &key(7)), None);
    }

    #[test]
    fn no_cache_asks_every_time() {
        let mut cache = VerdictCache::none();
        assert_eq!(cache.get_or(1, &key(1), || Verdict::Deny), Verdict::Deny);
        assert_eq!(known(&mut cache, 1, &key(1)), None);
    }
}
