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
use crate::port::watch::{Wake, Watch};
use crate::port::{PortId, VportRules};
use crate::tables::{Segment, UnknownUnicast};
use crate::testing::frames::FrameBuilder;
use crate::testing::{GuestConfig, LocalGuest};
use crate::vhost::eventfd::EventFd;
use crate::wire::Mac;

const LONGEST: u32 = 65_549;

fn mac(n: usize) -> [u8; 6] {
    [2, 0, 0, 0, 0, n as u8]
}

/// A switch whose two PMDs do a round when they are told; all rings are the first one's at first.
struct Stepped {
    shared: Shared,
    loops: [Loop; 2],
    vports: Vec<Arc<Vport>>,
    guests: Vec<LocalGuest>,
}

impl Stepped {
    /// A port for each guest, all of one segment.
    fn new(config: PmdConfig, guests: Vec<GuestConfig>) -> Self {
        let shared = Shared {
            tables: Arc::new(ArcSwap::from_pointee(Tables::default())),
            fdb: Arc::new(Fdb::new(64, HashSeed::new(1))),
            reports: Arc::new(Reports::new(16)),
            hash_seed: HashSeed::new(2),
        };
        let loops = [0, 1].map(|index| {
            let epoll = Arc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("an epoll"));
            let mailbox = Arc::new(Mailbox::new(&epoll).expect("an event"));
            Loop::new(index, config, shared.clone(), mailbox, epoll, Arc::default())
        });
        let mut all = Self { shared, loops, vports: Vec::new(), guests: Vec::new() };
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
            let mut live = guest.start(index, None).expect("a sound ring");
            let kick = EventFd::new().expect("a descriptor");
            let watch = Watch::new(&self.loops[0].epoll, Wake::Kick(kick), ring_tag(vport.id, 0));
            live.watch = Some(watch.expect("a descriptor that can be watched"));
            cell.with(|slot| *slot = Slot::Live(Box::new(live)));
        }
        self.loops[0].mailbox.visit(Arc::clone(&vport), 0);
        self.vports.push(vport);
        self.guests.push(guest);
    }

    /// One round of a PMD at that time, in clock ticks.
    fn round_of(&mut self, pmd: usize, now: u64) -> Round {
        self.loops[pmd].take_visits(now);
        self.loops[pmd].round(now)
    }

    fn round(&mut self) {
        self.round_of(0, 0);
    }

    /// Hands the transmit ring of a port to a PMD, of which no PMD knows yet.
    fn hand_over(&self, port: usize, to: usize) {
        let tx = &self.vports[port].tx[0];
        tx.cell.with(|slot| {
            let watch = slot.live().and_then(|live| live.watch.as_mut()).expect("a running ring");
            watch.follow(&self.loops[to].epoll).expect("a descriptor that can be watched");
            tx.owner.store(to as u32, Ordering::Relaxed);
        });
    }

    fn visit(&self, port: usize, pmd: usize) {
        self.loops[pmd].mailbox.visit(Arc::clone(&self.vports[port]), 0);
    }

    /// How many rings a PMD knows, and how many of them it polls.
    fn known_and_polled(&self, pmd: usize) -> (usize, usize) {
        (self.loops[pmd].by_tag.len(), self.loops[pmd].polled.len())
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

/// Beyond the time after which an idle ring is armed.
const LATER: u64 = u64::MAX / 2;

#[test]
fn a_ring_that_left_stays_armed_as_its_new_pmd_left_it() {
    let config = GuestConfig::default().ring_size(16);
    let mut all = Stepped::new(PmdConfig::default(), vec![config.clone(), config]);
    all.round_of(0, 0);
    assert_eq!(all.known_and_polled(0), (2, 2));
    all.hand_over(1, 1);
    all.visit(1, 1);
    assert_eq!(all.round_of(1, 0), Round::Idle);
    all.round_of(1, LATER);
    assert_eq!(all.known_and_polled(1), (1, 0), "its new PMD has armed it");

    // Only now the old one hears of it.
    all.visit(1, 0);
    all.round_of(0, 0);
    assert_eq!(all.known_and_polled(0).0, 1, "its old PMD has let go of it");

    let before = all.guests[1].tx().any_ring().kicks();
    all.guests[1].tx().send(&[0; 60]).expect("room");
    assert_eq!(all.guests[1].tx().any_ring().kicks(), before + 1, "the guest is not asked to kick");
}

#[test]
fn a_ring_that_moves_to_and_fro_is_served_by_its_owner_alone() {
    let receiver = GuestConfig::default().ring_size(256);
    let sender = GuestConfig::default().ring_size(64);
    let mut all = Stepped::new(PmdConfig::default(), vec![receiver, sender]);
    for turn in 0..200 {
        let (old, new) = (turn % 2, (turn + 1) % 2);
        all.flood(1, 60);
        all.round_of(old, 0);
        all.flood(1, 60);
        all.hand_over(1, new);
        let before = all.received_bytes(1);
        all.round_of(old, 0);
        assert_eq!(all.received_bytes(1), before, "a PMD took frames of a ring that it lost");
        all.visit(1, old);
        all.visit(1, new);
        all.round_of(new, 0);
        assert!(all.received_bytes(1) > before);
        all.round_of(old, 0);
        all.guests[0].rx().rx_burst(usize::MAX, |_| {}).expect("a sound ring");
    }
}
