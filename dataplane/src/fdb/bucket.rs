//! One bucket of the forwarding database, and what its readers and its writer agree on.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Kind, PortId};

/// Entries in a bucket.
pub(super) const SLOTS: usize = 4;

/// One cache line of entries.
///
/// A free slot has key 0, which stands for no entry (segment 0, zero address). Values carry a count
/// of the rewrites of their slot, so two values of a slot are never equal.
///
/// ```text
/// writer, new entry in a slot          reader, wants the value of K
///   key   = 0                            v  = value     acquire
///   value = v'      release              k  = key       acquire; not K: no hit
///   key   = K'      release              v2 = value     not v: look again
/// writer, entry changes its value
///   value = v'      release
/// ```
///
/// Claim: a reader that gets `v`, `K`, `v` has a value that was stored for K. Say `v` was stored for
/// another key.
///  * Stored before K was: having read K (acquire), the reader sees at `v2` the value stored before
///    K (release) or a later one. None of them is `v`, as values do not repeat.
///  * Stored after K was taken away: having read `v` (acquire), the reader sees the key as it was
///    before `v` was stored (release) or later, i.e. 0 or a later key. If that is K again, it was
///    stored after a value later than `v`, and the first case applies.
///
/// The count has 30 bits: it would need a reader held up between two adjacent loads for exactly a
/// multiple of 2^30 rewrites of one slot to confuse two values.
///
/// An entry that is being evicted or re-learned in another slot may be missed once by a lookup under
/// way: the frame is treated as for an unknown address.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Bucket {
    keys: [AtomicU64; SLOTS],
    values: [AtomicU64; SLOTS],
}

impl Bucket {
    #[inline]
    pub(super) fn find(&self, key: u64) -> Option<(usize, Value)> {
        // All four compares and one branch: which slot hits cannot be predicted.
        let mut hits = 0u32;
        for (i, slot) in self.keys.iter().enumerate() {
            // ORDERING: a hint which slot to read; `read` looks again.
            hits |= u32::from(slot.load(Ordering::Relaxed) == key) << i;
        }
        if hits == 0 {
            return None;
        }
        let slot = hits.trailing_zeros() as usize % SLOTS;
        self.read(slot, key).map(|value| (slot, value))
    }

    /// The reader's half of the protocol. A turn is repeated only because a writer made progress.
    #[inline]
    fn read(&self, slot: usize, key: u64) -> Option<Value> {
        loop {
            // ORDERING: each load acquires what its store released; see the proof above.
            let value = self.values[slot].load(Ordering::Acquire);
            if self.keys[slot].load(Ordering::Acquire) != key {
                return None;
            }
            // ORDERING: coherence after the acquire of the key is all the proof asks for.
            if self.values[slot].load(Ordering::Relaxed) == value {
                return Some(Value(value));
            }
        }
    }

    /// What a slot holds, whatever the key.
    pub(super) fn entry(&self, slot: usize) -> Option<(u64, Value)> {
        let key = self.keys[slot].load(Ordering::Relaxed);
        if key == 0 { None } else { self.read(slot, key).map(|value| (key, value)) }
    }

    /// The writer's half of the protocol: replaces whatever is in the slot.
    pub(super) fn write(&self, slot: usize, key: u64, port: PortId, kind: Kind) {
        self.clear(slot);
        self.rewrite(slot, port, kind);
        // ORDERING: whoever sees the key sees the value.
        self.keys[slot].store(key, Ordering::Release);
    }

    /// Changes the value of the entry in a slot.
    pub(super) fn rewrite(&self, slot: usize, port: PortId, kind: Kind) {
        // ORDERING: only writers store, and the lock orders them.
        let old = Value(self.values[slot].load(Ordering::Relaxed));
        // ORDERING: whoever sees the value sees that the key before it is gone.
        self.values[slot].store(old.next(port, kind).0, Ordering::Release);
    }

    pub(super) fn clear(&self, slot: usize) {
        // ORDERING: ordered by the store of the next value; until then a hit on the old entry is
        // as good as one a moment earlier.
        self.keys[slot].store(0, Ordering::Relaxed);
    }
}

/// Port (bits 0 to 31), rewrites of the slot (32 to 61), whether static (62).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Value(u64);

impl Value {
    const STATIC: u64 = 1 << 62;
    const REWRITES: u64 = ((1 << 30) - 1) << 32;

    #[inline]
    pub(super) fn port(self) -> PortId {
        PortId(self.0 as u32)
    }

    #[inline]
    pub(super) fn is_static(self) -> bool {
        self.0 & Self::STATIC != 0
    }

    pub(super) fn kind(self) -> Kind {
        if self.is_static() { Kind::Static } else { Kind::Learned }
    }

    fn next(self, port: PortId, kind: Kind) -> Self {
        let rewrites = self.0.wrapping_add(1 << 32) & Self::REWRITES;
        let kind = if kind == Kind::Static { Self::STATIC } else { 0 };
        Self(kind | rewrites | u64::from(port.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_is_one_cache_line() {
        assert_eq!((size_of::<Bucket>(), align_of::<Bucket>()), (64, 64));
    }

    #[test]
    fn value_differs_from_the_one_before_even_if_it_says_the_same() {
        let bucket = Bucket::default();
        bucket.write(2, 9, PortId(u32::MAX), Kind::Static);
        let (_, before) = bucket.find(9).expect("written");
        bucket.rewrite(2, PortId(u32::MAX), Kind::Static);
        let (slot, after) = bucket.find(9).expect("still there");
        assert_ne!(before, after);
        assert_eq!((slot, after.port(), after.kind()), (2, PortId(u32::MAX), Kind::Static));
    }

    /// Two keys take turns in one slot as fast as a writer can, which no table would do.
    #[test]
    fn value_read_under_a_key_was_stored_for_that_key() {
        const READS: u64 = 10_000_000;
        let bucket = Bucket::default();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                for read in 0..READS {
                    let key = read % 2 + 1;
                    let port = bucket.read(0, key).map(Value::port);
                    assert!(port.is_none_or(|port| u64::from(port.0) == key), "{key} at {port:?}");
                }
            });
            let mut writes = 0;
            while !reader.is_finished() {
                let key = writes % 2 + 1;
                bucket.write(0, u64::from(key), PortId(key), Kind::Learned);
                writes += 1;
            }
            reader.join().expect("no wrong value");
        });
    }

    #[test]
    fn count_of_rewrites_wraps_without_touching_port_and_kind() {
        let last = Value(Value::REWRITES | Value::STATIC | 7);
        let next = last.next(PortId(8), Kind::Learned);
        assert_eq!(next, Value(8));
    }
}
