//! What the pipeline asks of each frame: parsing, the forwarding database, anti-spoofing and
//! neighbours.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, ensure};
use dataplane::fdb::{Fdb, Seen};
use dataplane::flow::{self, HashSeed};
use dataplane::neighbour::{self, Neighbour, Neighbours};
use dataplane::pipeline;
use dataplane::port::{PortId, Vport, VportRules};
use dataplane::spoof::Bound;
use dataplane::testing::frames::FrameBuilder;
use dataplane::wire::Mac;

use super::{Case, FCS, FRAMES};
use crate::rig;

/// Addresses in the forwarding database.
const STATIONS: u32 = 1000;
const PORT: PortId = PortId(1);

/// What is asked of every frame, without anything to prepare.
struct Each<T, F> {
    of: T,
    ask: F,
}

impl<T, F: Fn(&T, usize) -> Result<u64>> Case for Each<T, F> {
    fn prepare(&mut self) -> Result<()> {
        Ok(())
    }

    fn run(&mut self) -> Result<u64> {
        (0..FRAMES).map(|n| (self.ask)(black_box(&self.of), n)).sum()
    }
}

fn each<T: 'static>(
    of: T,
    ask: impl Fn(&T, usize) -> Result<u64> + 'static,
) -> Result<Box<dyn Case>> {
    Ok(Box::new(Each { of, ask }))
}

/// The address of guest `n`.
fn mac(n: u32) -> Mac {
    Mac(rig::mac(n).0)
}

/// From guest 1 to guest 2.
fn udp4() -> Vec<u8> {
    let builder = FrameBuilder::new(mac(1).0, mac(2).0).ipv4(v4(1), v4(2));
    builder.udp(1000, 2000).filled_to(64 - FCS, 0).build()
}

fn v4(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, n)
}

/// Addresses and EtherType.
pub fn parse_l2() -> Result<Box<dyn Case>> {
    each(udp4(), |frame, _| {
        let l2 = flow::l2(frame, frame.len() as u32)?;
        Ok(l2.dst ^ l2.src ^ u64::from(l2.ethertype))
    })
}

fn parse(frame: Vec<u8>) -> Result<Box<dyn Case>> {
    each((frame, HashSeed::new(42)), |(frame, seed), _| {
        Ok(flow::parse(frame, frame.len() as u32)?.hash(seed) >> 32)
    })
}

/// To the ports of a UDP datagram in IPv4, and its hash.
pub fn parse_udp4() -> Result<Box<dyn Case>> {
    parse(udp4())
}

/// To the ports of a TCP segment in IPv6, and its hash.
pub fn parse_tcp6() -> Result<Box<dyn Case>> {
    let ip = |n| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n);
    let builder = FrameBuilder::new(mac(1).0, mac(2).0).ipv6(ip(1), ip(2));
    parse(builder.tcp(1000, 2000, 1).build())
}

/// A database that learned [`STATIONS`] addresses.
fn fdb() -> Result<Fdb> {
    let fdb = Fdb::new(1 << 14, HashSeed::new(42));
    for n in 0..STATIONS {
        fdb.learn(0, mac(n), PORT, STATIONS, 0)?;
    }
    Ok(fdb)
}

/// The keys of stations from `first`.
fn keys(first: u32) -> Vec<u64> {
    (first..).take(FRAMES).map(|n| mac(n).key()).collect()
}

/// Where addresses are that were learned.
pub fn fdb_hit() -> Result<Box<dyn Case>> {
    each((fdb()?, keys(0)), |(fdb, keys), n| {
        let port = fdb.lookup(0, keys[n]).context("a learned address is not found")?;
        Ok(u64::from(port.0))
    })
}

/// Where addresses are that nobody has.
pub fn fdb_miss() -> Result<Box<dyn Case>> {
    each((fdb()?, keys(STATIONS)), |(fdb, keys), n| {
        ensure!(fdb.lookup(0, keys[n]).is_none(), "an address that was not learned is found");
        Ok(1)
    })
}

struct Refresh {
    fdb: Fdb,
    keys: Vec<u64>,
    now_s: u32,
}

/// Sources that are seen for the first time in a second.
pub fn fdb_refresh() -> Result<Box<dyn Case>> {
    Ok(Box::new(Refresh { fdb: fdb()?, keys: keys(0), now_s: 0 }))
}

impl Case for Refresh {
    fn prepare(&mut self) -> Result<()> {
        self.now_s += 1;
        Ok(())
    }

    fn run(&mut self) -> Result<u64> {
        let seen = |&key: &u64| self.fdb.seen(0, key, PORT, self.now_s) == Seen::Refreshed;
        let refreshed = self.keys.iter().filter(|&key| seen(key)).count();
        ensure!(refreshed == FRAMES, "{refreshed} of {FRAMES} addresses were brought up to date");
        Ok(refreshed as u64)
    }
}

/// Whether the source addresses are the port's own, those of IP included.
pub fn spoof_bound() -> Result<Box<dyn Case>> {
    let rules = VportRules {
        segment: 0,
        mac: Some(mac(1).key()),
        anti_spoof: true,
        bound: Some(Box::new(Bound::new(mac(1), &[IpAddr::V4(v4(1))]))),
        learning: false,
        mac_quota: 0,
        max_frame_bytes: 1518,
    };
    let (frame, vport) = (udp4(), Vport::new(PORT, "port".to_owned(), rules, 1));
    let l2 = flow::l2(&frame, frame.len() as u32)?;
    each((vport, l2, frame), |(vport, l2, frame), _| {
        let verdict = pipeline::anti_spoof(vport, l2, frame, frame.len() as u32);
        ensure!(verdict.is_ok(), "the guest's own address counts as forged: {verdict:?}");
        Ok(1)
    })
}

fn ask(frame: Vec<u8>, is_answered: bool) -> Result<Box<dyn Case>> {
    let mut known = Neighbours::default();
    known.insert(0, IpAddr::V4(v4(2)), Neighbour { mac: mac(2), port: PortId(2) });
    let l2 = flow::l2(&frame, frame.len() as u32)?;
    each((known, l2, frame), move |(known, l2, frame), _| {
        let answer = neighbour::ask(known, (0, PORT), l2, frame).ok().flatten();
        ensure!(answer.is_some() == is_answered, "what becomes of the frame: {answer:?}");
        Ok(1)
    })
}

/// Frames that ask for no neighbour.
pub fn neighbour_none() -> Result<Box<dyn Case>> {
    ask(udp4(), false)
}

/// ARP requests that are answered.
pub fn neighbour_arp() -> Result<Box<dyn Case>> {
    let builder = FrameBuilder::new(mac(1).0, [0xff; 6]).arp_request(v4(1), v4(2));
    ask(builder.build(), true)
}
