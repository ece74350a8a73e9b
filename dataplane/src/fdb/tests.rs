//! Edges of the table; `tests/model_fdb.rs` compares it with a map.

use super::*;

const A: PortId = PortId(1);
const B: PortId = PortId(2);
const QUOTA: u32 = 100;

fn fdb(capacity: usize) -> Fdb {
    Fdb::new(capacity, HashSeed::new(42))
}

fn mac(n: u64) -> Mac {
    Mac::from_key(0x0200_0000_0000 | n)
}

#[test]
fn capacity_is_rounded_up_and_kept_within_limits() {
    assert_eq!(fdb(0).capacity(), 8);
    assert_eq!(fdb(1000).capacity(), 1024);
}

#[test]
fn same_address_in_two_segments_is_two_entries() {
    let fdb = fdb(64);
    assert_eq!(fdb.learn(1, mac(9), A, QUOTA, 0), Ok(Learned::New { evicted: 0 }));
    assert_eq!(fdb.learn(2, mac(9), B, QUOTA, 0), Ok(Learned::New { evicted: 0 }));
    assert_eq!(fdb.lookup(1, mac(9).key()), Some(A));
    assert_eq!(fdb.lookup(2, mac(9).key()), Some(B));
    assert_eq!(fdb.lookup(0, mac(9).key()), None);
    assert_eq!(fdb.remove_segment(1), 1);
    assert_eq!((fdb.lookup(1, mac(9).key()), fdb.len()), (None, 1));
}

#[test]
fn zero_address_of_segment_zero_does_not_match_free_slots() {
    let fdb = fdb(8);
    assert_eq!(fdb.lookup(0, 0), None);
    assert_eq!(fdb.seen(0, 0, A, 1), Seen::Unknown);
}

#[test]
fn group_and_zero_addresses_are_refused() {
    let fdb = fdb(8);
    for mac in [Mac::BROADCAST, Mac([1, 0, 0, 0, 0, 0]), Mac::default()] {
        assert_eq!(fdb.learn(1, mac, A, QUOTA, 0), Err(Refused::NotUnicast { mac }));
        assert_eq!(fdb.insert_static(1, mac, A), Err(Refused::NotUnicast { mac }));
    }
    assert!(fdb.is_empty());
}

#[test]
fn source_is_refreshed_once_a_second() {
    let fdb = fdb(64);
    assert_eq!(fdb.seen(1, mac(1).key(), A, 5), Seen::Unknown);
    fdb.learn(1, mac(1), A, QUOTA, 5).expect("room");
    assert_eq!(fdb.seen(1, mac(1).key(), A, 5), Seen::Fresh);
    assert_eq!(fdb.seen(1, mac(1).key(), A, 6), Seen::Refreshed);
    assert_eq!(fdb.seen(1, mac(1).key(), A, 6), Seen::Fresh);
    assert_eq!(fdb.entries().next().expect("one").last_seen_s, 6);
}

#[test]
fn learned_address_moves_with_its_station_and_counts_for_the_new_port() {
    let fdb = fdb(64);
    fdb.learn(1, mac(1), A, QUOTA, 0).expect("room");
    fdb.learn(1, mac(2), B, 1, 0).expect("room");
    assert_eq!(fdb.seen(1, mac(1).key(), B, 1), Seen::Moved { from: A });
    assert_eq!(fdb.learn(1, mac(1), B, 1, 1), Ok(Learned::Moved { from: A, evicted: 1 }));
    assert_eq!(fdb.lookup(1, mac(1).key()), Some(B));
    assert_eq!(fdb.lookup(1, mac(2).key()), None);
    assert_eq!(fdb.remove_port(A), 0);
}

#[test]
fn static_address_cannot_be_learned_elsewhere_nor_age() {
    let fdb = fdb(64);
    assert_eq!(fdb.insert_static(1, mac(1), A), Ok(true));
    assert_eq!(fdb.insert_static(1, mac(1), A), Ok(false));
    assert_eq!(fdb.insert_static(1, mac(1), B), Err(Refused::Held { by: A }));
    assert_eq!(fdb.seen(1, mac(1).key(), A, 9), Seen::Fresh);
    assert_eq!(fdb.seen(1, mac(1).key(), B, 9), Seen::Held { by: A });
    assert_eq!(fdb.learn(1, mac(1), B, QUOTA, 9), Err(Refused::Held { by: A }));
    assert_eq!(fdb.learn(1, mac(1), A, QUOTA, 9), Ok(Learned::Known));
    assert_eq!(fdb.age(u32::MAX, |_| 0, fdb.buckets()), 0);
    assert_eq!(fdb.lookup(1, mac(1).key()), Some(A));
    assert_eq!(fdb.remove_static(1, mac(1)), Some(A));
    assert_eq!(fdb.remove_static(1, mac(1)), None);
}

#[test]
fn learned_address_becomes_static_and_no_longer_counts_for_the_quota() {
    let fdb = fdb(64);
    fdb.learn(1, mac(1), A, 1, 0).expect("room");
    assert_eq!(fdb.remove_static(1, mac(1)), None);
    assert_eq!(fdb.insert_static(1, mac(1), B), Ok(true));
    assert_eq!(fdb.learn(1, mac(2), A, 1, 0), Ok(Learned::New { evicted: 0 }));
    assert_eq!(fdb.lookup(1, mac(1).key()), Some(B));
}

#[test]
fn port_over_its_quota_loses_the_address_seen_longest_ago() {
    let fdb = fdb(64);
    for n in 0..4 {
        fdb.learn(1, mac(n), A, 4, n as u32).expect("room");
    }
    assert_eq!(fdb.seen(1, mac(0).key(), A, 10), Seen::Refreshed);
    assert_eq!(fdb.learn(1, mac(4), A, 4, 10), Ok(Learned::New { evicted: 1 }));
    assert_eq!(fdb.lookup(1, mac(0).key()), Some(A));
    assert_eq!(fdb.lookup(1, mac(1).key()), None);
    assert_eq!(fdb.learn(1, mac(5), A, 2, 10), Ok(Learned::New { evicted: 3 }));
    assert_eq!(fdb.len(), 2);
    assert_eq!(fdb.learn(1, mac(6), A, 0, 10), Err(Refused::NoQuota));
}

#[test]
fn full_table_refuses_a_stranger_but_lets_a_port_replace_its_own() {
    let fdb = fdb(8);
    let mut learned = 0;
    for n in 0..100 {
        learned += usize::from(fdb.learn(1, mac(n), A, QUOTA, n as u32).is_ok());
    }
    assert_eq!((learned, fdb.len()), (100, 8));
    assert_eq!(fdb.learn(1, mac(200), B, QUOTA, 200), Err(Refused::Full));
    assert_eq!(fdb.insert_static(1, mac(200), B), Ok(true));
    assert_eq!((fdb.lookup(1, mac(200).key()), fdb.len()), (Some(B), 8));
}

#[test]
fn table_half_full_takes_every_address() {
    let fdb = fdb(4096);
    for n in 0..2048 {
        assert_eq!(fdb.insert_static(7, mac(n), A), Ok(true), "address {n}");
    }
    assert!((0..2048).all(|n| fdb.lookup(7, mac(n).key()) == Some(A)));
}

#[test]
fn ageing_takes_only_what_is_old_and_visits_only_its_budget() {
    let fdb = fdb(256);
    for n in 0..64 {
        fdb.learn(1, mac(n), A, QUOTA, if n < 32 { 10 } else { 20 }).expect("room");
    }
    assert_eq!(fdb.age(40, |_| 30, fdb.buckets()), 0);
    let mut removed = 0;
    for _ in 0..fdb.buckets() {
        let now = fdb.age(45, |_| 30, 1);
        assert!(now <= SLOTS);
        removed += now;
    }
    assert_eq!((removed, fdb.len()), (32, 32));
    assert!(fdb.entries().all(|entry| entry.last_seen_s == 20));
    // A clock that another thread read a little later makes nobody old.
    assert_eq!(fdb.age(19, |_| 0, fdb.buckets()), 0);
}
