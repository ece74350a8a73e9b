//! Forwarding database: which port answers for a MAC address in a segment.
//!
//! A segment is the dense number this host gives to a VNI in use, so segment and address make one
//! 64-bit key. The table is an array of buckets, each one cache line of four keys and four values; a
//! key may live in two of them, chosen by a seeded hash. A lookup reads one line if the entry is in
//! its first bucket, which it is in a table that is not crowded, and two otherwise. When a source
//! was last seen stands in an array of its own, so that refreshing it does not take the line away
//! from other readers.
//!
//! Entries are static (from the operator, kept until removed) or learned (from traffic, aged and
//! replaced). A learned entry never overrides a static one.
//!
//! # Bounds
//! The table never grows nor rehashes. A port may hold as many learned entries as its quota says: a
//! guest that invents source addresses evicts its own oldest entries, never those of others, never a
//! static one. Size the table to at least twice the sum of quotas and static entries; then two full
//! candidate buckets ([`Refused::Full`]) do not happen in practice, and cost one address its entry
//! if they do. Guests cannot aim at a bucket as they do not know the seed. Ageing visits as many
//! buckets per call as it is told. Memory: 20 bytes an entry.
//!
//! # Threads
//! PMD threads read ([`Fdb::lookup`], [`Fdb::seen`]) without a lock. The control thread writes; should
//! there be several, a lock inside puts them in order. `bucket.rs` says what they agree on.

mod bucket;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};

use crate::flow::HashSeed;
use crate::wire::Mac;

use bucket::{Bucket, SLOTS, Value};

/// Number of a port of this switch.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PortId(pub u32);

/// How an entry came to be.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Kind {
    /// The operator said so; it stays until removed.
    Static,
    /// A frame from this address was seen at the port.
    Learned,
}

/// One entry, as listed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Entry {
    /// Dense number of the VNI.
    pub segment: u16,
    /// The address.
    pub mac: Mac,
    /// The port it is behind.
    pub port: PortId,
    /// Static or learned.
    pub kind: Kind,
    /// When a frame from it was last seen, in the seconds given to [`Fdb::seen`] and
    /// [`Fdb::learn`]; of a static entry, 0.
    pub last_seen_s: u32,
}

/// What the table knows of a frame's source.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Seen {
    /// At this port, and nothing was to be done.
    Fresh,
    /// At this port; its last-seen second was brought up to date.
    Refreshed,
    /// Not at all: to be reported for [`Fdb::learn`].
    Unknown,
    /// Learned at another port: to be reported for [`Fdb::learn`].
    Moved {
        /// The port it was at.
        from: PortId,
    },
    /// Static at another port: the frame's source is forged, or the operator's table is wrong.
    Held {
        /// The port it belongs to.
        by: PortId,
    },
}

/// What [`Fdb::learn`] changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Learned {
    /// The entry was there; its last-seen second was brought up to date.
    Known,
    /// A new entry.
    New {
        /// Learned entries of the same port that had to go.
        evicted: u32,
    },
    /// The entry was at another port.
    Moved {
        /// That port.
        from: PortId,
        /// Learned entries of the new port that had to go.
        evicted: u32,
    },
}

/// Why an entry was not made. The table is as it was.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refused {
    /// The address is static at another port.
    #[error("the address is static at port {}: remove that entry first", by.0)]
    Held {
        /// That port.
        by: PortId,
    },
    /// The address cannot be one station's.
    #[error("{mac} is a group or zero address, which no station can have")]
    NotUnicast {
        /// The address.
        mac: Mac,
    },
    /// The port's quota is 0.
    #[error("the port may not learn addresses: its quota is 0")]
    NoQuota,
    /// Both buckets of the address are full of entries that may not be evicted.
    #[error("the forwarding table has no room for the address: raise its capacity")]
    Full,
}

/// What only writers know.
#[derive(Debug, Default)]
struct Writer {
    /// Learned entries of each port by slot number, in the order they came.
    learned: HashMap<PortId, Vec<u32>>,
    /// Entries in the table.
    len: usize,
    /// Bucket the next [`Fdb::age`] starts with.
    next_to_age: usize,
}

impl Writer {
    fn learned_by(&self, port: PortId) -> &[u32] {
        self.learned.get(&port).map_or(&[], Vec::as_slice)
    }

    fn forget_learned(&mut self, port: PortId, slot: u32) {
        let Some(slots) = self.learned.get_mut(&port) else { return };
        slots.retain(|&other| other != slot);
        if slots.is_empty() {
            self.learned.remove(&port);
        }
    }
}

/// The forwarding database.
#[derive(Debug)]
pub struct Fdb {
    buckets: Box<[Bucket]>,
    /// Last-seen second of each slot.
    last_seen_s: Box<[[AtomicU32; SLOTS]]>,
    seed: HashSeed,
    writer: Mutex<Writer>,
}

/// Where an entry is: bucket and slot in it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Place {
    bucket: usize,
    slot: usize,
}

impl Place {
    fn number(self) -> u32 {
        (self.bucket * SLOTS + self.slot) as u32
    }

    fn from_number(number: u32) -> Self {
        let number = number as usize;
        Self { bucket: number / SLOTS, slot: number % SLOTS }
    }
}

#[inline]
fn key_of(segment: u16, mac_key: u64) -> u64 {
    debug_assert!(mac_key >> 48 == 0, "not a 48-bit address: {mac_key:#x}");
    u64::from(segment) << 48 | mac_key
}

fn unicast_key(segment: u16, mac: Mac) -> Result<u64, Refused> {
    if mac.is_unicast() { Ok(key_of(segment, mac.key())) } else { Err(Refused::NotUnicast { mac }) }
}

impl Fdb {
    /// Fewest and most entries a table can be made for.
    pub const CAPACITY_ENTRIES: std::ops::RangeInclusive<usize> = 8..=1 << 24;

    /// Makes an empty table for `capacity_entries` or a little more (the next power of two; limited
    /// to [`Self::CAPACITY_ENTRIES`]). `seed` is secret and random.
    pub fn new(capacity_entries: usize, seed: HashSeed) -> Self {
        let (least, most) = Self::CAPACITY_ENTRIES.into_inner();
        let buckets = capacity_entries.clamp(least, most).next_power_of_two() / SLOTS;
        Self {
            buckets: (0..buckets).map(|_| Bucket::default()).collect(),
            last_seen_s: (0..buckets).map(|_| Default::default()).collect(),
            seed,
            writer: Mutex::default(),
        }
    }

    /// Entries the table has slots for.
    pub fn capacity(&self) -> usize {
        self.buckets.len() * SLOTS
    }

    /// Entries in the table.
    pub fn len(&self) -> usize {
        self.lock().len
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The port that answers for an address, given as [`Mac::key`]. Group addresses have no entry.
    #[inline]
    pub fn lookup(&self, segment: u16, mac_key: u64) -> Option<PortId> {
        self.find(key_of(segment, mac_key)).map(|(_, value)| value.port())
    }

    /// Notes that a frame from an address, given as [`Mac::key`], came in at `port`.
    ///
    /// Costs a lookup and a load; a store once a second per address.
    #[inline]
    pub fn seen(&self, segment: u16, mac_key: u64, port: PortId, now_s: u32) -> Seen {
        let Some((place, value)) = self.find(key_of(segment, mac_key)) else {
            return Seen::Unknown;
        };
        match (value.port() == port, value.is_static()) {
            (true, true) => Seen::Fresh,
            (true, false) => {
                // ORDERING: only ageing and eviction look at it, and a late look is as good. If the
                // slot was given to another entry just now, that one ages a little later.
                let last_seen_s = &self.last_seen_s[place.bucket][place.slot];
                if last_seen_s.load(Ordering::Relaxed) == now_s {
                    Seen::Fresh
                } else {
                    last_seen_s.store(now_s, Ordering::Relaxed);
                    Seen::Refreshed
                }
            }
            (false, true) => Seen::Held { by: value.port() },
            (false, false) => Seen::Moved { from: value.port() },
        }
    }

    /// Learns that an address is behind `port`, which may have `quota` learned entries; those
    /// beyond it that were seen longest ago are evicted. Also moves an entry from another port.
    ///
    /// A report may be old: the caller makes sure that `port` and `segment` still exist.
    /// Costs up to `quota` loads.
    ///
    /// # Errors
    /// [`Refused`] if the address is static at another port, is no station's, or has no room.
    pub fn learn(
        &self,
        segment: u16,
        mac: Mac,
        port: PortId,
        quota: u32,
        now_s: u32,
    ) -> Result<Learned, Refused> {
        let key = unicast_key(segment, mac)?;
        let mut writer = self.lock();
        let found = self.find(key);
        if let Some((place, value)) = found {
            match (value.kind(), value.port() == port) {
                (Kind::Static, true) => return Ok(Learned::Known),
                (Kind::Static, false) => return Err(Refused::Held { by: value.port() }),
                (Kind::Learned, true) => {
                    self.touch(place, now_s);
                    return Ok(Learned::Known);
                }
                (Kind::Learned, false) => {}
            }
        }
        if quota == 0 {
            return Err(Refused::NoQuota);
        }
        if let Some((place, value)) = found {
            let evicted = self.make_quota(&mut writer, port, quota);
            writer.forget_learned(value.port(), place.number());
            self.buckets[place.bucket].rewrite(place.slot, port, Kind::Learned);
            self.touch(place, now_s);
            writer.learned.entry(port).or_default().push(place.number());
            return Ok(Learned::Moved { from: value.port(), evicted });
        }
        let is_own = |value: Value| !value.is_static() && value.port() == port;
        let (place, victim) = self.place_for(key, is_own).ok_or(Refused::Full)?;
        let mut evicted = 0;
        if victim.is_some() {
            self.remove(&mut writer, place);
            evicted += 1;
        }
        evicted += self.make_quota(&mut writer, port, quota);
        self.buckets[place.bucket].write(place.slot, key, port, Kind::Learned);
        self.touch(place, now_s);
        writer.learned.entry(port).or_default().push(place.number());
        writer.len += 1;
        Ok(Learned::New { evicted })
    }

    /// Pins an address to a port. A learned entry for it, at whatever port, becomes static; where
    /// there is no room, the learned entry seen longest ago makes it. Returns whether it is new.
    ///
    /// # Errors
    /// [`Refused`] if the address is static at another port, is no station's, or has no room.
    pub fn insert_static(&self, segment: u16, mac: Mac, port: PortId) -> Result<bool, Refused> {
        let key = unicast_key(segment, mac)?;
        let mut writer = self.lock();
        if let Some((place, value)) = self.find(key) {
            return match (value.kind(), value.port() == port) {
                (Kind::Static, true) => Ok(false),
                (Kind::Static, false) => Err(Refused::Held { by: value.port() }),
                (Kind::Learned, _) => {
                    writer.forget_learned(value.port(), place.number());
                    self.buckets[place.bucket].rewrite(place.slot, port, Kind::Static);
                    self.touch(place, 0);
                    Ok(true)
                }
            };
        }
        let (place, victim) =
            self.place_for(key, |value| !value.is_static()).ok_or(Refused::Full)?;
        if victim.is_some() {
            self.remove(&mut writer, place);
        }
        self.buckets[place.bucket].write(place.slot, key, port, Kind::Static);
        self.touch(place, 0);
        writer.len += 1;
        Ok(true)
    }

    /// Removes a static entry and returns its port, or `None` if there is none.
    pub fn remove_static(&self, segment: u16, mac: Mac) -> Option<PortId> {
        let key = unicast_key(segment, mac).ok()?;
        let mut writer = self.lock();
        let (place, value) = self.find(key).filter(|(_, value)| value.is_static())?;
        self.remove(&mut writer, place);
        Some(value.port())
    }

    /// Removes every entry of a port, static or learned, and returns how many. Sweeps the table.
    pub fn remove_port(&self, port: PortId) -> usize {
        self.remove_where(|entry| entry.port == port)
    }

    /// Removes every entry of a segment, static or learned, and returns how many. Sweeps the table.
    pub fn remove_segment(&self, segment: u16) -> usize {
        self.remove_where(|entry| entry.segment == segment)
    }

    /// Removes the entries that `condemns` says, and returns how many. Sweeps the table.
    pub fn remove_where(&self, condemns: impl Fn(&Entry) -> bool) -> usize {
        let mut writer = self.lock();
        (0..self.buckets.len()).map(|bucket| self.sweep(&mut writer, bucket, &condemns)).sum()
    }

    /// Removes learned entries last seen more than `max_age_s` of their segment before `now_s`, in
    /// the next `budget_buckets` buckets, and returns how many. Successive calls go round the table.
    pub fn age(&self, now_s: u32, max_age_s: impl Fn(u16) -> u32, budget_buckets: usize) -> usize {
        let mut writer = self.lock();
        let is_old = |entry: &Entry| {
            entry.kind == Kind::Learned
                && now_s.saturating_sub(entry.last_seen_s) > max_age_s(entry.segment)
        };
        let mut removed = 0;
        for _ in 0..budget_buckets.min(self.buckets.len()) {
            let bucket = writer.next_to_age;
            writer.next_to_age = (bucket + 1) % self.buckets.len();
            removed += self.sweep(&mut writer, bucket, &is_old);
        }
        removed
    }

    /// Buckets in the table, for [`Self::age`]: visiting all of them takes a full round.
    pub fn buckets(&self) -> usize {
        self.buckets.len()
    }

    /// All entries, in no order. Takes no lock: an entry that is made or moved meanwhile may be
    /// missing, none is wrong.
    pub fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        (0..self.buckets.len())
            .flat_map(|bucket| (0..SLOTS).map(move |slot| Place { bucket, slot }))
            .filter_map(|place| self.entry(place))
    }

    #[inline]
    fn find(&self, key: u64) -> Option<(Place, Value)> {
        if key == 0 {
            return None; // It would match free slots.
        }
        let first = self.seed.word(key) as usize & (self.buckets.len() - 1);
        match self.buckets[first].find(key) {
            Some((slot, value)) => Some((Place { bucket: first, slot }, value)),
            None => self.find_in_second(key),
        }
    }

    /// Out of line: in a table that is not crowded, only what is not there is looked for here.
    #[cold]
    fn find_in_second(&self, key: u64) -> Option<(Place, Value)> {
        let (_, second) = self.candidates(key);
        let (slot, value) = self.buckets[second].find(key)?;
        Some((Place { bucket: second, slot }, value))
    }

    /// The two buckets a key may be in. They differ, as no table has fewer than two.
    #[inline]
    fn candidates(&self, key: u64) -> (usize, usize) {
        let mask = self.buckets.len() - 1;
        let hash = self.seed.word(key);
        let first = hash as usize & mask;
        let second = (hash >> 32) as usize & mask;
        (first, if second == first { first ^ 1 } else { second })
    }

    fn lock(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().expect("a writer panicked half-way through a change")
    }

    fn entry(&self, place: Place) -> Option<Entry> {
        let (key, value) = self.buckets[place.bucket].entry(place.slot)?;
        Some(Entry {
            segment: (key >> 48) as u16,
            mac: Mac::from_key(key),
            port: value.port(),
            kind: value.kind(),
            last_seen_s: self.last_seen(place),
        })
    }

    fn last_seen(&self, place: Place) -> u32 {
        // ORDERING: see `seen`.
        self.last_seen_s[place.bucket][place.slot].load(Ordering::Relaxed)
    }

    fn touch(&self, place: Place, now_s: u32) {
        // ORDERING: see `seen`.
        self.last_seen_s[place.bucket][place.slot].store(now_s, Ordering::Relaxed);
    }

    /// A free slot for a key that is not in the table; without one, the slot of the entry seen
    /// longest ago among those that may be evicted, and its value.
    fn place_for(
        &self,
        key: u64,
        may_evict: impl Fn(Value) -> bool,
    ) -> Option<(Place, Option<Value>)> {
        let (first, second) = self.candidates(key);
        let free = |bucket: usize| {
            (0..SLOTS).filter(move |&slot| self.buckets[bucket].entry(slot).is_none())
        };
        // Rather the first bucket, which makes lookups cheap, until it is half full; then the
        // emptier one, which makes it most unlikely that both are ever full.
        let (free_first, free_second) = (free(first).count(), free(second).count());
        let bucket =
            if free_first >= SLOTS / 2 || free_first >= free_second { first } else { second };
        if let Some(slot) = free(bucket).next() {
            return Some((Place { bucket, slot }, None));
        }
        [first, second]
            .into_iter()
            .flat_map(|bucket| (0..SLOTS).map(move |slot| Place { bucket, slot }))
            .filter_map(|place| {
                let (_, value) = self.buckets[place.bucket].entry(place.slot)?;
                may_evict(value).then_some((place, Some(value)))
            })
            .min_by_key(|&(place, _)| self.last_seen(place))
    }

    /// Evicts learned entries of a port, oldest first, until it may have one more.
    fn make_quota(&self, writer: &mut Writer, port: PortId, quota: u32) -> u32 {
        let mut evicted = 0;
        while writer.learned_by(port).len() >= quota as usize {
            let slots = writer.learned_by(port).iter().map(|&slot| Place::from_number(slot));
            let Some(oldest) = slots.min_by_key(|&place| self.last_seen(place)) else { break };
            self.remove(writer, oldest);
            evicted += 1;
        }
        evicted
    }

    fn remove(&self, writer: &mut Writer, place: Place) {
        let bucket = &self.buckets[place.bucket];
        let Some((_, value)) = bucket.entry(place.slot) else { return };
        bucket.clear(place.slot);
        writer.len -= 1;
        if !value.is_static() {
            writer.forget_learned(value.port(), place.number());
        }
    }

    fn sweep(
        &self,
        writer: &mut Writer,
        bucket: usize,
        condemns: &impl Fn(&Entry) -> bool,
    ) -> usize {
        let condemned = (0..SLOTS)
            .map(|slot| Place { bucket, slot })
            .filter(|&place| self.entry(place).is_some_and(|entry| condemns(&entry)));
        condemned.map(|place| self.remove(writer, place)).count()
    }
}

#[cfg(test)]
mod tests;
