//! Loops of PMDs without their threads: rounds are called one by one, on real rings of guests.

use arc_swap::ArcSwap;
use nix::sys::epoll::EpollCreateFlags;

use super::*;
use crate::fdb::Fdb;
use crate::flow::HashSeed;
use crate::neighbour::Neighbours;
use crate::pmd::Reports;
use crate::policy::Policies;
use crate::port::cell::Slot;
use crate::port::{PortId, VportRules};
use crate::tables::{Segment, UnknownUnicast};
use crate::testing::frames::FrameBuilder;
use crate::testing::{GuestConfig, LocalGuest};
use crate::wire::Mac;

const LONGEST: u32 = 65_549;

fn mac(n: usize) -> [u8; 6] {
    [2, 0, 0, 0, 0, n as u8]
}

/// A switch whose PMDs do a round when they are told.
struct Stepped {
    shared: Shared,
    looper: Loop,
    vports: Vec<Arc<Vport>>,
    guests: Vec<LocalGuest>,
}

impl Stepped {
    /// A PMD with a port for each guest, all of one segment.
    fn new(config: PmdConfig, guests: Vec<GuestConfig>) -> Self {
        let shared = Shared {
            tables: Arc::new(ArcSwap::from_pointee(Tables::default())),
            fdb: Arc::new(Fdb::new(64, HashSeed::new(1))),
            reports: Arc::new(Reports::new(16)),
            hash_seed: HashSeed::new(2),
        };
        let epoll = Arc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("an epoll"));
        let mailbox = Arc::new(Mailbox::new(&epoll).expect("an event"));
        let looper = Loop::new(0, config, shared.clone(), mailbox, epoll, Arc::default());
        let mut all = Self { shared, looper, vports: Vec::new(), guests: Vec::new() };
        for guest in guests {
            all.add(guest);
        }
        let ids = all.vports.iter().map(|vport| vport.id).collect();
        let unknown_unicast = UnknownUnicast::Drop;
        let segment = Segment { vni: 0, unknown_unicast, ageing_s: 300, members: ids };
        all.shared.tables.store(Arc::new(Tables {
            ports: all.vports.iter().cloned().map(Some).collect(),
            segments: vec![Some(segment)],
            neighbours: Neighbours::default(),
            policies: Policies::default(),
        }));
        all
    }

    fn add(&mut self, config: GuestConfig) {
        let n = self.guests.len();
        let own = Mac(mac(n));
        let rules = VportRules {
            segment: 0,
            mac: Some(own.key()),
            anti_spoof: true,
            bound: None,
            learning: false,
            mac_quota: 1,
            max_frame_bytes: LONGEST,
        };
        let vport = Arc::new(Vport::new(PortId(n as u32), format!("port{n}"), rules, 1));
        vport.set_rx_enabled(1);
        self.shared.fdb.insert_static(0, own, vport.id).expect("room");
        let mut guest = LocalGuest::new(config).expect("memory");
        for (index, cell) in [(0, &vport.rx[0].cell), (1, &vport.tx[0].cell)] {
            let live = guest.start(index, None).expect("a sound ring");
            cell.with(|slot| *slot = Slot::Live(Box::new(live)));
        }
        self.looper.mailbox.visit(Arc::clone(&vport), 0);
        self.vports.push(vport);
        self.guests.push(guest);
    }

    fn round(&mut self) {
        self.looper.take_visits(0);
        self.looper.round(0);
    }

    fn received_bytes(&self, n: usize) -> u64 {
        self.vports[n].tx[0].counters.received_bytes.get()
    }

    /// As many frames of guest `from` to guest 0 as its ring holds.
    fn flood(&mut self, from: usize, frame_bytes: usize) {
        let frame = FrameBuilder::new(mac(from), mac(0)).payload(&vec![7; frame_bytes - 14]);
        let frame = frame.unpadded().build();
        assert_eq!(frame.len(), frame_bytes);
        while self.guests[from].tx().send(&frame).is_ok() {}
    }
}

#[test]
fn guests_that_flood_with_long_and_short_frames_get_equal_shares_in_bytes() {
    const LENGTHS: [usize; 3] = [LONGEST as usize, 1518, 60];
    let receiver = GuestConfig::default().ring_size(256).rx_buffers(&[4096]);
    let config = |bytes: usize| GuestConfig::default().ring_size(128).tx_buffers(bytes, bytes + 12);
    let mut guests = vec![receiver];
    guests.extend(LENGTHS.map(config));
    let pmd = PmdConfig { burst_frames: 32, ..PmdConfig::default() };
    let mut all = Stepped::new(pmd, guests);
    let shares = |all: &Stepped| [1, 2, 3].map(|n| all.received_bytes(n));
    let mut start = None;
    for round in 0..2_000 {
        for (n, bytes) in (1..).zip(LENGTHS) {
            all.flood(n, bytes);
        }
        all.round();
        all.guests[0].rx().rx_burst(usize::MAX, |_| {}).expect("a sound ring");
        let now = shares(&all);
        // The first round has yet to find that there are several.
        let start = *start.get_or_insert(now);
        let gained = [0, 1, 2].map(|n| now[n] - start[n]);
        let apart = gained.iter().max().unwrap_or(&0) - gained.iter().min().unwrap_or(&0);
        let most = u64::from(LONGEST + pmd.quantum_bytes);
        assert!(apart < most, "round {round}: {gained:?}");
    }
    let received = all.vports[0].rx[0].counters.delivered_frames.get();
    assert!(received > 32_000, "{received} frames came through");
    for (n, vport) in all.vports.iter().enumerate() {
        let tx = &vport.tx[0].counters;
        let fates = tx.forwarded_frames.get() + tx.drops.total();
        assert_eq!(tx.received_frames.get(), fates, "port {n}");
    }
}

#[test]
fn a_guest_alone_is_served_in_every_round() {
    let receiver = GuestConfig::default().ring_size(256).rx_buffers(&[4096]);
    let bytes = LONGEST as usize;
    let sender = GuestConfig::default().ring_size(128).tx_buffers(bytes, bytes + 12);
    let mut all = Stepped::new(PmdConfig::default(), vec![receiver, sender]);
    for _ in 0..200 {
        all.flood(1, bytes);
        let before = all.received_bytes(1);
        all.round();
        all.guests[0].rx().rx_burst(usize::MAX, |_| {}).expect("a sound ring");
        assert!(all.received_bytes(1) > before);
    }
}
