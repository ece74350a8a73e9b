//! A switch without threads and sockets: a pipeline worker, tables, and guests whose rings it holds.

use std::sync::Arc;

use dataplane::fdb::Fdb;
use dataplane::flow::HashSeed;
use dataplane::neighbour::Neighbours;
use dataplane::pipeline::{Origin, Taken, Worker};
use dataplane::pmd::{Report, Reports};
use dataplane::policy::Policies;
use dataplane::port::cell::Slot;
use dataplane::port::{PortId, Vport, VportRules};
use dataplane::stats::PmdCounters;
use dataplane::tables::{Segment, Tables, UnknownUnicast};
use dataplane::testing::{GuestConfig, LocalGuest};
use dataplane::vring::RingFault;
use dataplane::wire::Mac;

/// Longest frame of the ports made here, in bytes: an MTU of 1500 and a VLAN tag.
pub const MAX_FRAME: u32 = 1518;

/// Address number `n` of segment `segment`.
pub fn mac(segment: u16, n: usize) -> [u8; 6] {
    let [high, low] = (n as u16).to_be_bytes();
    [2, 0, 0, segment as u8, high, low]
}

/// As the switch writes it.
pub fn mac_key(mac: [u8; 6]) -> u64 {
    Mac(mac).key()
}

/// Rules of a port that may do everything but has no address of its own.
pub fn rules(segment: u16) -> VportRules {
    VportRules {
        segment,
        mac: None,
        anti_spoof: false,
        bound: None,
        learning: false,
        mac_quota: 64,
        max_frame_bytes: MAX_FRAME,
    }
}

/// The switch and its guests; port `n` is guest `n`'s.
pub struct Net {
    pub tables: Tables,
    pub fdb: Fdb,
    pub reports: Reports,
    pub pmd: PmdCounters,
    pub worker: Worker,
    pub guests: Vec<LocalGuest>,
    /// Frames that had been taken from a ring when the last turn looked at the tables; `None`: none did.
    pub looked_after: Option<u64>,
}

impl Net {
    /// A switch with these segments, VNI 100 and up.
    pub fn new(segments: &[UnknownUnicast], burst_frames: u16) -> Self {
        let segment = |(n, &unknown_unicast)| {
            let vni = 100 + n as u32;
            Some(Segment { vni, unknown_unicast, ageing_s: 300, members: Vec::new() })
        };
        let seed = HashSeed::new(42);
        Self {
            tables: Tables {
                ports: Vec::new(),
                segments: segments.iter().enumerate().map(segment).collect(),
                neighbours: Neighbours::default(),
                policies: Policies::default(),
            },
            fdb: Fdb::new(1024, seed),
            reports: Reports::new(4096),
            pmd: PmdCounters::default(),
            worker: Worker::new(burst_frames, seed),
            guests: Vec::new(),
            looked_after: None,
        }
    }

    /// Adds a port and its guest, all rings started; returns the port's number. A port's own address
    /// is in the FDB.
    pub fn add(&mut self, rules: VportRules, pairs: u16, config: GuestConfig) -> usize {
        let n = self.guests.len();
        let id = PortId(n as u32);
        if let Some(mac) = rules.mac {
            self.fdb.insert_static(rules.segment, Mac::from_key(mac), id).unwrap();
        }
        let segment = self.tables.segments[usize::from(rules.segment)].as_mut().unwrap();
        segment.members.push(id);
        let vport = Vport::new(id, format!("port{n}"), rules, pairs);
        vport.set_rx_enabled(pairs);
        self.tables.ports.push(Some(Arc::new(vport)));
        self.guests.push(LocalGuest::new(config.queue_pairs(pairs)).unwrap());
        for index in 0..2 * pairs {
            self.start(n, index, None);
        }
        n
    }

    /// The vport of that number.
    pub fn port(&self, port: usize) -> Arc<Vport> {
        Arc::clone(self.tables.ports[port].as_ref().unwrap())
    }

    /// Starts a ring of a guest's and gives it to the port.
    pub fn start(&mut self, port: usize, index: u16, base: Option<u32>) {
        let live = self.guests[port].start(index, base).unwrap();
        let slot = Slot::Live(Box::new(live));
        self.with_slot(port, index, |cell| *cell = slot);
    }

    /// Takes a ring from the port; returns where it stood, if it was there.
    pub fn stop(&mut self, port: usize, index: u16) -> Option<u32> {
        match self.with_slot(port, index, std::mem::take) {
            Slot::Empty => None,
            Slot::Live(live) => Some(live.ring.base()),
            Slot::Broken(base, _) => Some(base),
        }
    }

    /// Lets a ring carry frames, or not.
    pub fn enable(&mut self, port: usize, index: u16, on: bool) {
        self.with_slot(port, index, |slot| slot.live().expect("a running ring").enabled = on);
    }

    /// What is in a ring's place.
    pub fn with_slot<T>(&self, port: usize, index: u16, see: impl FnOnce(&mut Slot) -> T) -> T {
        let (vport, queue) = (self.port(port), usize::from(index / 2));
        if index.is_multiple_of(2) {
            vport.rx[queue].cell.with(see)
        } else {
            vport.tx[queue].cell.with(see)
        }
    }

    /// One turn of a transmit ring, as a PMD thread gives it when no other ring has frames.
    pub fn run_queue(&mut self, port: usize, queue: usize) -> Result<u32, RingFault> {
        self.turn(port, queue, u32::MAX).map(|taken| taken.frames)
    }

    /// One turn of a transmit ring that takes frames until they are `max_bytes`.
    pub fn turn(&mut self, port: usize, queue: usize, max_bytes: u32) -> Result<Taken, RingFault> {
        let vport = self.port(port);
        let tx = &vport.tx[queue];
        let mut slot = tx.cell.enter().expect("no one else wants the ring");
        let Some(live) = slot.live() else { return Ok(Taken::default()) };
        let origin = Origin {
            vport: &vport,
            counters: &tx.counters,
            fdb: &self.fdb,
            reports: &self.reports,
            pmd: &self.pmd,
        };
        let looked_after = &mut self.looked_after;
        let tables = || {
            *looked_after = Some(tx.counters.received_frames.get());
            &self.tables
        };
        self.worker.run(&origin, tables, live, max_bytes).inspect_err(|&fault| {
            slot.break_with(fault);
        })
    }

    /// One turn of the first transmit ring.
    pub fn run(&mut self, port: usize) -> Result<u32, RingFault> {
        self.run_queue(port, 0)
    }

    /// Turns until the guest has no frame left; returns how many it had.
    pub fn run_all(&mut self, port: usize) -> u32 {
        let mut frames = 0;
        for queue in 0..self.port(port).tx.len() {
            loop {
                match self.run_queue(port, queue).expect("a sound ring") {
                    0 => break,
                    n => frames += n,
                }
            }
        }
        frames
    }

    /// All reports there are.
    pub fn take_reports(&self) -> Vec<Report> {
        std::iter::from_fn(|| self.reports.take()).collect()
    }

    /// The conservation law, for every vport and the whole switch, at rest.
    #[track_caller]
    pub fn assert_conserved(&self) {
        let (mut copies, mut offered) = (0, 0);
        for vport in self.tables.ports.iter().flatten() {
            for (queue, tx) in vport.tx.iter().enumerate() {
                let c = &tx.counters;
                assert_eq!(
                    c.received_frames.get(),
                    c.forwarded_frames.get()
                        + c.answered_frames.get()
                        + c.drops.total()
                        + c.in_hand.get(),
                    "{} queue {queue}: received = forwarded + answered + drops + in hand",
                    vport.name
                );
                copies += c.copies.get();
            }
            for (queue, rx) in vport.rx.iter().enumerate() {
                let c = &rx.counters;
                assert_eq!(
                    c.offered_frames.get(),
                    c.delivered_frames.get() + c.drops.total(),
                    "{} queue {queue}: offered = delivered + drops",
                    vport.name
                );
                offered += c.offered_frames.get();
            }
        }
        assert_eq!(copies, offered, "copies made = copies offered");
    }
}
