//! Nothing is allocated for a frame: a counting allocator watches the thread while bursts run.
#![expect(unsafe_code, reason = "a global allocator is unsafe by nature; this one only counts")]

mod common;

use std::alloc::{GlobalAlloc, Layout as MemoryLayout, System};
use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use common::net::{Net, mac, mac_key, rules};
use dataplane::neighbour::Neighbour;
use dataplane::policy::rules::Rules;
use dataplane::port::{PortId, VportRules};
use dataplane::spoof::Bound;
use dataplane::stats::DropReason;
use dataplane::tables::UnknownUnicast;
use dataplane::testing::frames::FrameBuilder;
use dataplane::testing::{GuestConfig, Layout, VirtioNetHdr, features};
use dataplane::wire::Mac;
use slipway_api::Policy;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

fn count() {
    // The cell is gone only while the thread ends.
    let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
}

// SAFETY: every call is handed to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: MemoryLayout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: MemoryLayout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: MemoryLayout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above; `at` came from `System`.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: MemoryLayout) {
        // SAFETY: as above; `at` came from `System`.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Allocations of this thread while `work` runs.
fn allocations_in<T>(work: impl FnOnce() -> T) -> (u64, T) {
    let before = ALLOCATIONS.get();
    let result = work();
    (ALLOCATIONS.get() - before, result)
}

/// Sends `burst` over and over from port 0 and counts what the switch allocates, after a first
/// round. Every frame must be delivered, as `copies` frames each.
fn allocations(
    ports: usize,
    sender: u64,
    receiver: u64,
    burst: &[(VirtioNetHdr, Vec<u8>, Layout)],
    copies: usize,
) -> u64 {
    let mut net = Net::new(&[UnknownUnicast::Flood], 32);
    for n in 0..ports {
        let rules = VportRules {
            mac: Some(mac_key(mac(0, n))),
            anti_spoof: true,
            learning: true,
            ..rules(0)
        };
        let config = GuestConfig::default().tx_buffers(66_000, 66_000).ring_size(512);
        net.add(rules, 1, config.features(if n == 0 { sender } else { receiver }));
    }
    let mut allocated = 0;
    for round in 0..20 {
        for (header, bytes, layout) in burst {
            net.guests[0].tx().send_with_header(*header, bytes, layout).unwrap();
        }
        let (n, frames) = allocations_in(|| net.run_all(0));
        assert_eq!(frames as usize, burst.len());
        if round > 0 {
            allocated += n;
        }
        for guest in &mut net.guests[1..] {
            let received = guest.rx().rx_burst(usize::MAX, |_| ()).unwrap();
            assert_eq!(received, copies);
        }
    }
    net.assert_conserved();
    assert_eq!(net.port(0).tx[0].counters.drops.total(), 0);
    allocated
}

fn to_second() -> FrameBuilder {
    let [a, b] = [1, 2].map(|n| Ipv4Addr::new(10, 0, 0, n));
    FrameBuilder::new(mac(0, 0), mac(0, 1)).ipv4(a, b)
}

const OFFLOADS: u64 = features::PLAIN | features::TX_OFFLOADS;

#[test]
fn allocator_of_this_test_counts() {
    assert_eq!(allocations_in(|| Box::new(7)).0, 1);
    assert_eq!(allocations_in(|| 7).0, 0);
}

#[test]
fn plain_unicast_allocates_nothing() {
    let bytes = to_second().udp(1, 2).payload(&[7; 1000]).build();
    for layout in [Layout::single(), Layout::every(100), Layout::every(100).indirect()] {
        let burst = vec![(VirtioNetHdr::default(), bytes.clone(), layout); 32];
        assert_eq!(allocations(2, features::PLAIN, features::PLAIN, &burst, 32), 0);
    }
}

#[test]
fn answers_of_the_switch_allocate_nothing() {
    let mut net = Net::new(&[UnknownUnicast::Drop], 32);
    let [asker, other] = [0, 1].map(|n| IpAddr::from(Ipv4Addr::new(10, 0, 0, 1 + n)));
    let own = Mac(mac(0, 0));
    let bound = Some(Box::new(Bound::new(own, &[asker])));
    let rules = VportRules { mac: Some(own.key()), anti_spoof: true, bound, ..rules(0) };
    net.add(rules, 1, GuestConfig::default());
    let neighbour = Neighbour { mac: Mac(mac(0, 1)), port: PortId(1) };
    net.tables.neighbours.insert(0, other, neighbour);
    let question = FrameBuilder::new(mac(0, 0), [0xff; 6])
        .arp_request(Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2))
        .build();
    for round in 0..20 {
        for _ in 0..32 {
            net.guests[0].tx().send(&question).unwrap();
        }
        let (allocated, frames) = allocations_in(|| net.run_all(0));
        assert_eq!(frames, 32);
        assert!(round == 0 || allocated == 0, "{allocated} allocations");
        assert_eq!(net.guests[0].rx().rx_burst(usize::MAX, |_| ()).unwrap(), 32);
    }
    assert_eq!(net.port(0).tx[0].counters.answered_frames.get(), 20 * 32);
}

#[test]
fn policy_allocates_nothing_whether_verdicts_are_known_or_not() {
    let mut net = Net::new(&[UnknownUnicast::Drop], 32);
    for n in 0..2 {
        let rules = VportRules { mac: Some(mac_key(mac(0, n))), ..rules(0) };
        net.add(rules, 1, GuestConfig::default());
    }
    let texts = ["deny egress protocol udp ports 9", "allow egress", "allow ingress"];
    let parsed = texts.map(|text| text.parse().unwrap()).to_vec();
    let policy = Policy { rules: parsed, ..Policy::default() };
    let rules = [0, 1].map(|_| Some(Arc::new(Rules::new(&policy))));
    net.tables.policies = net.tables.policies.next(rules.to_vec());
    for round in 0..20 {
        for n in 0..32 {
            // Flows that come again, ever new ones, and some that are denied.
            let from = if n % 2 == 0 { 7 } else { 1000 + round * 32 + n };
            let to = if n % 8 == 0 { 9 } else { 10 };
            net.guests[0].tx().send(&to_second().udp(from, to).build()).unwrap();
        }
        let (allocated, frames) = allocations_in(|| net.run_all(0));
        assert_eq!(frames, 32);
        assert!(round == 0 || allocated == 0, "{allocated} allocations");
        assert_eq!(net.guests[1].rx().rx_burst(usize::MAX, |_| ()).unwrap(), 28);
    }
    net.assert_conserved();
    let drops = net.port(0).tx[0].counters.drops.get(DropReason::PolicyEgress);
    assert_eq!(drops, 20 * 4);
}

#[test]
fn flood_allocates_nothing() {
    let bytes = FrameBuilder::new(mac(0, 0), [0xff; 6]).payload(&[7; 100]).build();
    let burst = vec![(VirtioNetHdr::default(), bytes, Layout::single()); 32];
    assert_eq!(allocations(6, features::PLAIN, features::PLAIN, &burst, 32), 0);
}

#[test]
fn software_checksum_allocates_nothing() {
    let (header, bytes) = to_second().udp(1, 2).payload(&[7; 1000]).build_partial();
    let burst = vec![(header, bytes, Layout::every(200)); 32];
    assert_eq!(allocations(2, OFFLOADS, features::PLAIN, &burst, 32), 0);
}

#[test]
fn software_segmentation_allocates_nothing() {
    let (header, bytes) = to_second().tcp(1, 2, 3).payload(&[7; 60_000]).build_gso(1400);
    let segments = 60_000usize.div_ceil(1400);
    let burst = vec![(header, bytes, Layout::every(8_000)); 4];
    assert_eq!(allocations(2, OFFLOADS, features::PLAIN, &burst, 4 * segments), 0);
}

#[test]
fn super_frame_over_many_buffers_allocates_nothing() {
    let (header, bytes) = to_second().tcp(1, 2, 3).payload(&[7; 60_000]).build_gso(1400);
    let burst = vec![(header, bytes, Layout::single()); 4];
    let receiver = features::PLAIN | features::RX_OFFLOADS;
    assert_eq!(allocations(2, OFFLOADS, receiver, &burst, 4), 0);
}
