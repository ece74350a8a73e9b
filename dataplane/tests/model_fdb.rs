//! The forwarding database against a plain map, and what it promises when crowded or raced.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use dataplane::fdb::{Entry, Fdb, Kind, Learned, PortId, Refused, Seen};
use dataplane::flow::HashSeed;
use dataplane::wire::Mac;
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
enum Op {
    Seen { segment: u16, mac: Mac, port: PortId },
    Learn { segment: u16, mac: Mac, port: PortId, quota: u32 },
    InsertStatic { segment: u16, mac: Mac, port: PortId },
    RemoveStatic { segment: u16, mac: Mac },
    RemovePort(PortId),
    RemoveSegment(u16),
    Age { max_age_s: u32 },
    Wait { seconds: u32 },
}

fn any_mac() -> impl Strategy<Value = Mac> {
    prop_oneof![
        12 => (0u64..16).prop_map(|n| Mac::from_key(0x0200_0000_0000 | n)),
        1 => Just(Mac::default()),
        1 => Just(Mac::BROADCAST),
    ]
}

fn any_op() -> impl Strategy<Value = Op> {
    let (segment, port) = (0u16..3, (0u32..4).prop_map(PortId));
    let (mac, quota) = (any_mac(), 0u32..6);
    prop_oneof![
        6 => (segment.clone(), mac, port.clone(), quota)
            .prop_map(|(segment, mac, port, quota)| Op::Learn { segment, mac, port, quota }),
        4 => (segment.clone(), any_mac(), port.clone())
            .prop_map(|(segment, mac, port)| Op::Seen { segment, mac, port }),
        2 => (segment.clone(), any_mac(), port.clone())
            .prop_map(|(segment, mac, port)| Op::InsertStatic { segment, mac, port }),
        1 => (segment.clone(), any_mac())
            .prop_map(|(segment, mac)| Op::RemoveStatic { segment, mac }),
        1 => port.prop_map(Op::RemovePort),
        1 => segment.prop_map(Op::RemoveSegment),
        1 => (0u32..20).prop_map(|max_age_s| Op::Age { max_age_s }),
        3 => (1u32..10).prop_map(|seconds| Op::Wait { seconds }),
    ]
}

#[derive(Clone, Copy)]
struct Row {
    port: PortId,
    kind: Kind,
    last_seen_s: u32,
    /// When it came to its port, among all arrivals.
    arrival: u64,
}

/// What the table would be if memory and time did not matter.
#[derive(Default)]
struct Model {
    rows: HashMap<(u16, Mac), Row>,
    arrivals: u64,
}

impl Model {
    fn seen(&mut self, segment: u16, mac: Mac, port: PortId, now_s: u32) -> Seen {
        let Some(row) = self.rows.get_mut(&(segment, mac)) else { return Seen::Unknown };
        if row.port != port {
            return match row.kind {
                Kind::Static => Seen::Held { by: row.port },
                Kind::Learned => Seen::Moved { from: row.port },
            };
        }
        if row.kind == Kind::Static || row.last_seen_s == now_s {
            return Seen::Fresh;
        }
        row.last_seen_s = now_s;
        Seen::Refreshed
    }

    fn learn(
        &mut self,
        (segment, mac): (u16, Mac),
        port: PortId,
        quota: u32,
        now_s: u32,
    ) -> Result<Learned, Refused> {
        if !mac.is_unicast() {
            return Err(Refused::NotUnicast { mac });
        }
        let found = self.rows.get(&(segment, mac)).copied();
        match found {
            Some(row) if row.kind == Kind::Static && row.port != port => {
                return Err(Refused::Held { by: row.port });
            }
            Some(row) if row.port == port => {
                if row.kind == Kind::Learned {
                    self.rows.insert((segment, mac), Row { last_seen_s: now_s, ..row });
                }
                return Ok(Learned::Known);
            }
            _ if quota == 0 => return Err(Refused::NoQuota),
            _ => {}
        }
        let mut evicted = 0;
        while self.learned_by(port) >= quota as usize {
            let oldest = self
                .rows
                .iter()
                .filter(|(_, row)| row.port == port && row.kind == Kind::Learned)
                .min_by_key(|(_, row)| (row.last_seen_s, row.arrival))
                .map(|(key, _)| *key)
                .expect("a port over its quota has entries");
            self.rows.remove(&oldest);
            evicted += 1;
        }
        self.insert((segment, mac), port, Kind::Learned, now_s);
        Ok(match found {
            Some(row) => Learned::Moved { from: row.port, evicted },
            None => Learned::New { evicted },
        })
    }

    fn insert_static(&mut self, segment: u16, mac: Mac, port: PortId) -> Result<bool, Refused> {
        if !mac.is_unicast() {
            return Err(Refused::NotUnicast { mac });
        }
        match self.rows.get(&(segment, mac)) {
            Some(row) if row.kind == Kind::Static && row.port == port => Ok(false),
            Some(row) if row.kind == Kind::Static => Err(Refused::Held { by: row.port }),
            _ => {
                self.insert((segment, mac), port, Kind::Static, 0);
                Ok(true)
            }
        }
    }

    fn remove_static(&mut self, segment: u16, mac: Mac) -> Option<PortId> {
        let row = self.rows.get(&(segment, mac)).filter(|row| row.kind == Kind::Static)?;
        let port = row.port;
        self.rows.remove(&(segment, mac));
        Some(port)
    }

    fn remove_where(&mut self, condemns: impl Fn(u16, &Row) -> bool) -> usize {
        let before = self.rows.len();
        self.rows.retain(|&(segment, _), row| !condemns(segment, row));
        before - self.rows.len()
    }

    fn insert(&mut self, key: (u16, Mac), port: PortId, kind: Kind, last_seen_s: u32) {
        self.arrivals += 1;
        self.rows.insert(key, Row { port, kind, last_seen_s, arrival: self.arrivals });
    }

    fn learned_by(&self, port: PortId) -> usize {
        self.rows.values().filter(|row| row.port == port && row.kind == Kind::Learned).count()
    }

    fn entries(&self) -> Vec<Entry> {
        let entry = |(&(segment, mac), row): (&(u16, Mac), &Row)| Entry {
            segment,
            mac,
            port: row.port,
            kind: row.kind,
            last_seen_s: row.last_seen_s,
        };
        sorted(self.rows.iter().map(entry))
    }
}

fn sorted(entries: impl Iterator<Item = Entry>) -> Vec<Entry> {
    let mut entries: Vec<_> = entries.collect();
    entries.sort_by_key(|entry| (entry.segment, entry.mac));
    entries
}

proptest! {
    #[test]
    fn table_with_room_answers_like_a_map(
        seed: u64,
        ops in prop::collection::vec(any_op(), 1..200),
    ) {
        let (fdb, mut model, mut now_s) = (Fdb::new(1024, HashSeed::new(seed)), Model::default(), 100);
        for op in ops {
            match op {
                Op::Seen { segment, mac, port } => prop_assert_eq!(
                    fdb.seen(segment, mac.key(), port, now_s),
                    model.seen(segment, mac, port, now_s)
                ),
                Op::Learn { segment, mac, port, quota } => prop_assert_eq!(
                    fdb.learn(segment, mac, port, quota, now_s),
                    model.learn((segment, mac), port, quota, now_s)
                ),
                Op::InsertStatic { segment, mac, port } => prop_assert_eq!(
                    fdb.insert_static(segment, mac, port),
                    model.insert_static(segment, mac, port)
                ),
                Op::RemoveStatic { segment, mac } => prop_assert_eq!(
                    fdb.remove_static(segment, mac),
                    model.remove_static(segment, mac)
                ),
                Op::RemovePort(port) => prop_assert_eq!(
                    fdb.remove_port(port),
                    model.remove_where(|_, row| row.port == port)
                ),
                Op::RemoveSegment(segment) => prop_assert_eq!(
                    fdb.remove_segment(segment),
                    model.remove_where(|of, _| of == segment)
                ),
                Op::Age { max_age_s } => prop_assert_eq!(
                    fdb.age(now_s, |_| max_age_s, fdb.buckets()),
                    model.remove_where(|_, row| {
                        row.kind == Kind::Learned && now_s - row.last_seen_s > max_age_s
                    })
                ),
                Op::Wait { seconds } => now_s += seconds,
            }
            prop_assert_eq!(sorted(fdb.entries()), model.entries());
            prop_assert_eq!(fdb.len(), model.rows.len());
        }
        for segment in 0..3 {
            for n in 0..20 {
                let mac = Mac::from_key(0x0200_0000_0000 | n);
                let expected = model.rows.get(&(segment, mac)).map(|row| row.port);
                prop_assert_eq!(fdb.lookup(segment, mac.key()), expected);
            }
        }
    }

    #[test]
    fn crowded_table_takes_from_others_only_what_moved(
        seed: u64,
        ops in prop::collection::vec(any_op(), 1..200),
    ) {
        const QUOTA: u32 = 3;
        let (fdb, mut now_s) = (Fdb::new(8, HashSeed::new(seed)), 0);
        for op in ops {
            let before = sorted(fdb.entries());
            match op {
                Op::Learn { segment, mac, port, .. } => {
                    let learned = fdb.learn(segment, mac, port, QUOTA, now_s);
                    let gone = before.iter().filter(|old| fdb.lookup(old.segment, old.mac.key()) != Some(old.port));
                    for old in gone {
                        prop_assert_eq!(old.kind, Kind::Learned);
                        prop_assert!(old.port == port || (old.segment, old.mac) == (segment, mac));
                    }
                    if learned.is_err() {
                        prop_assert_eq!(&sorted(fdb.entries()), &before);
                    } else {
                        prop_assert_eq!(fdb.lookup(segment, mac.key()), Some(port));
                    }
                }
                Op::InsertStatic { segment, mac, port } => {
                    let inserted = fdb.insert_static(segment, mac, port);
                    let after = sorted(fdb.entries());
                    prop_assert!(before.iter().filter(|old| old.kind == Kind::Static).all(|old| after.contains(old)));
                    if inserted.is_err() {
                        prop_assert_eq!(&after, &before);
                    }
                }
                Op::RemoveStatic { segment, mac } => _ = fdb.remove_static(segment, mac),
                Op::Wait { seconds } => now_s += seconds,
                _ => {}
            }
            for port in (0..4).map(PortId) {
                let learned = fdb.entries().filter(|entry| entry.port == port && entry.kind == Kind::Learned);
                prop_assert!(learned.count() <= QUOTA as usize);
            }
            prop_assert_eq!(fdb.entries().count(), fdb.len());
        }
    }

    #[test]
    fn guest_that_invents_addresses_evicts_nobody_else(seed: u64, invented in 500u64..2000) {
        const QUOTA: u32 = 64;
        let fdb = Fdb::new(1024, HashSeed::new(seed));
        let (victim, guest) = (PortId(1), PortId(2));
        let honest = |n: u64| Mac::from_key(0x0200_0000_0000 | n);
        for n in 0..64 {
            fdb.learn(1, honest(n), victim, QUOTA, 0).expect("the table is nearly empty");
            fdb.insert_static(1, honest(1000 + n), victim).expect("the table is nearly empty");
        }
        for n in 0..invented {
            fdb.learn(1, Mac::from_key(0x0600_0000_0000 | n), guest, QUOTA, n as u32).expect("its own make room");
        }
        for n in (0..64).chain(1000..1064) {
            prop_assert_eq!(fdb.lookup(1, honest(n).key()), Some(victim));
        }
        prop_assert_eq!(fdb.entries().filter(|entry| entry.port == guest).count(), QUOTA as usize);
        // Those that are left are the newest.
        prop_assert!(fdb.entries().all(|e| e.port == victim || u64::from(e.last_seen_s) >= invented - 64));
    }

    #[test]
    fn ageing_in_small_steps_removes_what_one_sweep_would(
        seed: u64,
        budget in 1usize..40,
        times in prop::collection::vec(0u32..100, 1..100),
    ) {
        let fdb = Fdb::new(512, HashSeed::new(seed));
        for (n, &time) in times.iter().enumerate() {
            fdb.learn(1, Mac::from_key(0x0200_0000_0000 | n as u64), PortId(1), 200, time).expect("room");
        }
        let steps = fdb.buckets().div_ceil(budget);
        let removed: usize = (0..steps).map(|_| fdb.age(100, |_| 50, budget)).sum();
        let old = times.iter().filter(|&&time| 100 - time > 50).count();
        prop_assert_eq!(removed, old);
        prop_assert!(fdb.entries().all(|entry| entry.last_seen_s >= 50));
    }
}

/// Thirty-two addresses fight for eight slots, so slots change hands all the time. Each address is only
/// ever at one of two ports that no other address has.
#[test]
fn reader_never_sees_the_port_of_another_address() {
    const ADDRESSES: u64 = 32;
    const WRITES: u64 = 100_000;
    let fdb = Fdb::new(8, HashSeed::new(1));
    let mac = |n: u64| Mac::from_key(0x0200_0000_0000 | n);
    let ports = |n: u64| [PortId(n as u32), PortId(100 + n as u32)];
    let is_done = AtomicBool::new(false);

    /// Sets the flag whatever way the writer ends, so that the readers end too.
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }

    let hits: Vec<u64> = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let (mut hits, mut is_last) = (0, false);
                    while !is_last {
                        is_last = is_done.load(Ordering::Acquire);
                        for n in 0..ADDRESSES {
                            if let Some(port) = fdb.lookup(7, mac(n).key()) {
                                assert!(ports(n).contains(&port), "{} at {port:?}", mac(n));
                                hits += 1;
                            }
                        }
                        for entry in fdb.entries() {
                            let n = entry.mac.key() & 0xff;
                            assert!(ports(n).contains(&entry.port), "{entry:?}");
                        }
                    }
                    hits
                })
            })
            .collect();
        {
            let _done = Done(&is_done);
            let mut random = 1u64;
            for _ in 0..WRITES {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let (n, side) = (random >> 33 & (ADDRESSES - 1), (random >> 40 & 1) as usize);
                if fdb.learn(7, mac(n), ports(n)[side], 1, 0) == Err(Refused::Full) {
                    let taken = fdb.entries().nth((random >> 50 & 7) as usize).expect("full");
                    fdb.remove_port(taken.port);
                }
            }
        }
        readers.into_iter().map(|reader| reader.join().expect("no wrong answer")).collect()
    });
    assert!(hits.iter().all(|&hits| hits > 0), "a reader saw nothing: {hits:?}");
}
