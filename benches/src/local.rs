//! A pipeline and its guests in one thread, without sockets: nothing but the code that forwards.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use dataplane::clock;
use dataplane::fdb::Fdb;
use dataplane::flow::HashSeed;
use dataplane::neighbour::Neighbours;
use dataplane::pipeline::{Origin, Worker};
use dataplane::pmd::Reports;
use dataplane::policy::Policies;
use dataplane::policy::rules::Rules;
use dataplane::port::cell::Slot;
use dataplane::port::{PortId, Vport, VportRules};
use dataplane::spoof::Bound;
use dataplane::stats::PmdCounters;
use dataplane::tables::{Segment, Tables, UnknownUnicast};
use dataplane::testing::{GuestConfig, LocalGuest};
use dataplane::wire::Mac;
use slipway_api::Policy;

use crate::rig::mac;

/// The switch and its guests; port `n` is guest `n`'s.
#[derive(Debug)]
pub struct Net {
    tables: Tables,
    fdb: Fdb,
    reports: Reports,
    pmd: PmdCounters,
    worker: Worker,
    /// The guests, by port.
    pub guests: Vec<LocalGuest>,
}

/// Ethernet and IPv4 address of a guest.
pub type Address = ([u8; 6], [u8; 4]);

impl Default for Net {
    fn default() -> Self {
        Self::new()
    }
}

impl Net {
    /// A switch with one segment and no port.
    pub fn new() -> Self {
        // The clock measures its own rate when it is first asked; a PMD has asked before its first frame.
        clock::ticks_per_us();
        let seed = HashSeed::new(42);
        let members = Vec::new();
        let segment =
            Segment { vni: 1, unknown_unicast: UnknownUnicast::Flood, ageing_s: 300, members };
        Self {
            tables: Tables {
                ports: Vec::new(),
                segments: vec![Some(segment)],
                neighbours: Neighbours::default(),
                policies: Policies::default(),
            },
            fdb: Fdb::new(1 << 14, seed),
            reports: Reports::new(4096),
            pmd: PmdCounters::default(),
            worker: Worker::new(32, seed),
            guests: Vec::new(),
        }
    }

    /// The addresses of guest `n`.
    pub fn address(&self, n: usize) -> Address {
        let [high, low] = (n as u16 + 1).to_be_bytes();
        (mac(n as u32 + 1).0, [10, 88, high, low])
    }

    /// Adds a port with its own address, checked, and if `is_bound` its IP address as well.
    ///
    /// # Errors
    /// No memory.
    pub fn add(&mut self, is_bound: bool, config: GuestConfig) -> Result<()> {
        let n = self.guests.len();
        let (id, (mac, ip)) = (PortId(n as u32), self.address(n));
        let mac = Mac(mac);
        let rules = VportRules {
            segment: 0,
            mac: Some(mac.key()),
            anti_spoof: true,
            bound: is_bound.then(|| Box::new(Bound::new(mac, &[ip.into()]))),
            learning: false,
            mac_quota: 64,
            max_frame_bytes: 1518,
        };
        self.fdb.insert_static(0, mac, id).ok().context("The forwarding database is full")?;
        if let Some(segment) = &mut self.tables.segments[0] {
            segment.members.push(id);
        }
        let vport = Vport::new(id, format!("port{n}"), rules, 1);
        vport.set_rx_enabled(1);
        let mut guest = LocalGuest::new(config)?;
        for (index, ring) in [(0, &vport.rx[0].cell), (1, &vport.tx[0].cell)] {
            let live = Box::new(guest.start(index, None)?);
            ring.with(|slot| *slot = Slot::Live(live));
        }
        self.tables.ports.push(Some(Arc::new(vport)));
        self.guests.push(guest);
        Ok(())
    }

    /// Gives every port these rules.
    pub fn set_policy(&mut self, policy: &Policy) {
        let rules = self.guests.iter().map(|_| Some(Arc::new(Rules::new(policy)))).collect();
        self.tables.policies = self.tables.policies.next(rules);
    }

    /// Takes one burst from the guest of `port` and forwards it; returns how many frames it had.
    ///
    /// # Errors
    /// The ring is broken.
    pub fn run(&mut self, port: usize) -> Result<u32> {
        let vport = self.tables.ports[port].as_ref().context("There is no such port")?;
        let tx = &vport.tx[0];
        let mut slot = tx.cell.enter().context("The ring is wanted elsewhere")?;
        let live = slot.live().context("The ring does not run")?;
        let origin = Origin {
            vport,
            counters: &tx.counters,
            fdb: &self.fdb,
            reports: &self.reports,
            pmd: &self.pmd,
        };
        Ok(self.worker.run(&origin, || &self.tables, live, u32::MAX)?.frames)
    }
}
