//! A seeded simulation of the pipeline: guests in several VNIs send anything, their rings fill up,
//! stop, break and come back, and a plain model ([`common::model`]) says what must become of every
//! frame.
//!
//! What the guests see is compared with the model byte by byte and in order, counters to the frame;
//! the conservation law is checked after every step. Without the model, every frame proves by its
//! stamp that it comes from the receiver's own VNI and came in the order of its flow.

mod common;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use common::Seed;
use common::model::{Model, Port, Rx, Sent, Tally};
use common::net::{MAX_FRAME, Net, mac, mac_key, rules};
use dataplane::pmd::Report;
use dataplane::policy::rules::Rules;
use dataplane::port::cell::Slot;
use dataplane::port::{PortId, VportRules};
use dataplane::stats::{DropReason, Drops};
use dataplane::tables::UnknownUnicast;
use dataplane::testing::frames::{FrameBuilder, Stamp, payload_range};
use dataplane::testing::{
    AnyVring, Desc, DriverRing as _, GuestConfig, Layout, Rng, VirtioNetHdr, features,
};
use dataplane::vring::{MAX_SEGMENTS, RingFault};
use dataplane::wire::Mac;
use slipway_api::{Policy, PolicyAction};

const SEGMENTS: [UnknownUnicast; 4] =
    [UnknownUnicast::Flood, UnknownUnicast::Drop, UnknownUnicast::Flood, UnknownUnicast::Flood];

/// Segment of each port: floods have two receivers, one, or none.
/// No guest has memory there.
const NOWHERE: u64 = 1 << 60;
const SEGMENT_OF: [u16; 9] = [0, 1, 2, 3, 0, 1, 2, 0, 1];

const SHAPES: [&[usize]; 6] = [&[2048], &[1600], &[256], &[12, 500], &[64, 1, 256], &[7, 9, 1200]];

struct Sim {
    net: Net,
    rng: Rng,
    model: Model,
    /// Frames in each transmit ring that the switch has not taken.
    sent: Vec<VecDeque<Sent>>,
    /// Where each transmit ring stood that was stopped.
    stopped: Vec<Option<u32>>,
    /// Next sequence number of each flow.
    sequences: HashMap<u32, u64>,
    /// Highest sequence number that each port saw of each flow.
    seen: HashMap<(usize, u32), u64>,
}

impl Sim {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::seeded(seed);
        let mut sim = Self {
            net: Net::new(&SEGMENTS, 1 + rng.below(32) as u16),
            rng,
            model: Model::new(&SEGMENTS),
            sent: vec![VecDeque::new(); SEGMENT_OF.len()],
            stopped: vec![None; SEGMENT_OF.len()],
            sequences: HashMap::new(),
            seen: HashMap::new(),
        };
        for (n, segment) in SEGMENT_OF.into_iter().enumerate() {
            sim.add_port(n, segment);
        }
        sim
    }

    fn add_port(&mut self, n: usize, segment: u16) {
        let rng = &mut self.rng;
        let own = rng.chance(2, 3).then(|| mac_key(mac(segment, n)));
        let rules = VportRules {
            mac: own,
            anti_spoof: own.is_some() && rng.chance(1, 2),
            learning: own.is_none() || rng.chance(1, 2),
            ..rules(segment)
        };
        let shape = *rng.pick(&SHAPES);
        let (mergeable, checksums) = (rng.chance(1, 2), rng.chance(1, 3));
        let mut features = features::PLAIN;
        for (feature, on) in [
            (features::MRG_RXBUF, mergeable),
            (features::CSUM, checksums),
            (features::EVENT_IDX, rng.chance(1, 2)),
            (features::RING_PACKED, rng.chance(1, 2)),
        ] {
            features = if on { features | feature } else { features & !feature };
        }
        let config = GuestConfig::default()
            .features(features)
            .ring_size(1 << rng.range(5..9))
            .first_index(*rng.pick(&[0, 1, 32_768, 65_500, 65_535]))
            .rx_buffers(shape)
            .rx_repost(false)
            .tx_buffers(3000, 4096)
            .regions(1 << rng.range(0..3));
        assert_eq!(self.net.add(rules.clone(), 1, config), n);
        self.model.add(Port {
            rules,
            policy: None,
            buffer: shape.iter().sum(),
            mergeable,
            checksums,
            rx: Rx::Up,
            room: 0,
            expected: VecDeque::new(),
            ingress: Tally::default(),
            egress: Tally::default(),
        });
    }

    fn step(&mut self) {
        let port = self.rng.range(0..SEGMENT_OF.len());
        match self.rng.below(17) {
            0..=4 => {
                for _ in 0..self.rng.range(1..24) {
                    self.send(port);
                }
            }
            5..=9 => self.run(port),
            10 | 11 => self.receive(port),
            12 | 13 => self.post(port),
            14 => self.disturb_rx(port),
            15 => self.change_policy(port),
            _ => self.disturb_tx(port),
        }
        self.net.assert_conserved();
    }

    /// Everything that is on its way arrives or is dropped.
    fn settle(&mut self) {
        for port in 0..SEGMENT_OF.len() {
            if let Some(base) = self.stopped[port].take() {
                self.net.start(port, 1, Some(base));
            }
            while !self.sent[port].is_empty() {
                self.run(port);
            }
        }
        for port in 0..SEGMENT_OF.len() {
            self.receive(port);
            let all_given_back = self.net.guests[port].tx().tx_reap().unwrap();
            assert_eq!(self.net.guests[port].tx().in_flight(), 0, "after {all_given_back}");
        }
    }

    // What guests do.

    fn send(&mut self, port: usize) {
        let (header, bytes) = self.frame(port);
        let total = VirtioNetHdr::BYTES + bytes.len();
        let rng = &mut self.rng;
        let cuts = match rng.below(8) {
            0..=3 => vec![],
            4 => vec![VirtioNetHdr::BYTES],
            5 => rng.cuts(total, 6),
            6 => rng.cuts(200.min(total), 30),
            // As many descriptors as the switch takes, or a few more, some of them empty.
            _ => (0..MAX_SEGMENTS - 2 + rng.range(0..8)).map(|n| 1 + n / 2).collect(),
        };
        let descriptors = 1 + cuts.iter().filter(|&&cut| cut > 0 && cut < total).count();
        let layout = Layout::cut_at(&cuts);
        let layout = if rng.chance(1, 2) { layout.indirect() } else { layout };
        let tx = self.net.guests[port].tx();
        if tx.send_with_header(header, &bytes, &layout).is_ok() {
            self.sent[port].push_back(Sent { header, bytes, descriptors });
        }
    }

    /// Any frame that `port` could think of.
    fn frame(&mut self, port: usize) -> (VirtioNetHdr, Vec<u8>) {
        let segment = SEGMENT_OF[port];
        let rng = &mut self.rng;
        let other = rng.range(0..SEGMENT_OF.len());
        let foreign = (segment + 1) % SEGMENTS.len() as u16;
        let stranger = rng.range(0..3);
        // A flow has one destination.
        let (kind, destination) = match rng.below(12) {
            // The address of a port, of this segment or another, perhaps our own.
            0..=5 => (other, mac(SEGMENT_OF[other], other)),
            6 => (20 + other, mac(foreign, other)),
            7 => (40, [0xff; 6]),
            8 => (41, [0x33, 0x33, 0, 0, 0, 1]),
            9 => (42 + stranger, mac(segment, 1000 + stranger)),
            10 => (50, [0; 6]),
            _ => (60 + other, mac(segment, 100 + other)),
        };
        let mut source = match rng.below(8) {
            0..=4 => mac(segment, port),
            5 => mac(segment, other),
            6 => mac(segment, 100 + other),
            _ => mac(segment, 1000 + stranger),
        };
        if rng.chance(1, 40) {
            source[0] |= 1;
        }
        let flow = (port << 8 | kind) as u32;
        let sequence = self.sequences.entry(flow).or_default();
        *sequence += 1;
        let stamp = Stamp { flow, sequence: *sequence };
        let longest = MAX_FRAME as usize - 14;
        let len = match rng.below(6) {
            0 => 16,
            1 => rng.range(16..200),
            2 => longest,
            3 => longest + rng.range(1..3),
            4 => rng.range(16..2900),
            _ => rng.range(16..1500),
        };
        let frame = FrameBuilder::new(source, destination).payload(&stamp.payload(len));
        let mut frame = frame.unpadded().build();
        let mut header = VirtioNetHdr::default();
        match rng.below(30) {
            0 => frame.truncate(rng.range(0..14)),
            1 => {
                frame.truncate(rng.range(14..18));
                frame[12..14].copy_from_slice(&[0x81, 0]);
            }
            2 => header.flags = VirtioNetHdr::NEEDS_CSUM,
            3 => header.gso_type = VirtioNetHdr::GSO_TCPV4,
            // What a device must not look at on transmission.
            4 => header = VirtioNetHdr { num_buffers: 77, hdr_len: 9999, ..header },
            _ => {}
        }
        (header, frame)
    }

    fn post(&mut self, port: usize) {
        let most = self.rng.range(1..200);
        if !matches!(self.model.ports[port].rx, Rx::Rotten | Rx::Broken) {
            self.model.ports[port].room += self.net.guests[port].rx().post(most);
        }
    }

    /// The guest looks at what it got: exactly what the model says, in that order.
    fn receive(&mut self, port: usize) {
        let (expected, seen) = (&mut self.model.ports[port].expected, &mut self.seen);
        let check = |bytes: &[u8], header: VirtioNetHdr| {
            let stamp = Stamp::check(&bytes[payload_range(bytes).unwrap()]).unwrap();
            let sender = (stamp.flow >> 8) as usize;
            assert_eq!(SEGMENT_OF[sender], SEGMENT_OF[port], "a frame crossed into another VNI");
            assert_ne!(sender, port, "a frame came back to its sender");
            let last = seen.insert((port, stamp.flow), stamp.sequence).unwrap_or(0);
            assert!(stamp.sequence > last, "{stamp:?} came after {last}");

            let (right, buffers) = expected.pop_front().expect("no frame more than was sent");
            assert_eq!(bytes, right);
            let plain = VirtioNetHdr { num_buffers: buffers as u16, ..VirtioNetHdr::default() };
            assert_eq!(header, plain);
        };
        let mut check = check;
        let rx = self.net.guests[port].rx();
        rx.rx_burst(usize::MAX, |frame| check(&frame.to_vec(), frame.header())).unwrap();
        assert!(expected.is_empty(), "a frame was to be delivered, but is not there");
    }

    // What happens to rings.

    fn disturb_rx(&mut self, port: usize) {
        let state = match self.model.ports[port].rx {
            Rx::Up if self.rng.chance(1, 3) => {
                self.net.enable(port, 0, false);
                Rx::Disabled
            }
            Rx::Up if self.model.ports[port].room == 0 => {
                // Without buffers, the switch has to look at the index again, and finds this.
                match self.net.guests[port].rx().any_ring() {
                    AnyVring::Split(ring) => {
                        let beyond = ring.avail_next().wrapping_add(ring.size() + 1);
                        ring.raw_avail_idx(beyond);
                    }
                    // Where a buffer waits that the guest did not take back there is no place.
                    AnyVring::Packed(ring) if ring.free() == 0 => return,
                    AnyVring::Packed(ring) => {
                        ring.push(&[Desc::writable(NOWHERE, 64)]);
                        ring.publish();
                    }
                }
                Rx::Rotten
            }
            Rx::Up => Rx::Stopped(self.net.stop(port, 0).expect("a running ring")),
            Rx::Disabled => {
                self.net.enable(port, 0, true);
                Rx::Up
            }
            Rx::Stopped(base) => {
                self.net.start(port, 0, Some(base));
                Rx::Up
            }
            Rx::Rotten => Rx::Rotten,
            Rx::Broken => {
                self.receive(port);
                assert!(self.net.stop(port, 0).is_some());
                self.net.guests[port].boot_rx(0);
                self.net.start(port, 0, None);
                Rx::Up
            }
        };
        self.model.ports[port].rx = state;
    }

    /// Mostly for the better: a frame that nothing denies has to be found often.
    fn change_policy(&mut self, port: usize) {
        let mut action =
            || if self.rng.chance(1, 4) { PolicyAction::Deny } else { PolicyAction::Allow };
        let actions = (action(), action());
        self.model.ports[port].policy = self.rng.chance(1, 2).then_some(actions);
        let rules = |port: &Port| {
            let (egress_default, ingress_default) = port.policy?;
            let policy = Policy { egress_default, ingress_default, rules: Vec::new() };
            Some(Arc::new(Rules::new(&policy)))
        };
        let rules = self.model.ports.iter().map(rules).collect();
        self.net.tables.policies = self.net.tables.policies.next(rules);
    }

    fn disturb_tx(&mut self, port: usize) {
        if let Some(base) = self.stopped[port].take() {
            self.net.start(port, 1, Some(base));
        } else if self.rng.chance(1, 2) {
            self.stopped[port] = self.net.stop(port, 1);
        } else {
            self.break_tx(port);
        }
    }

    /// A head that does not exist, behind whatever waits; then the driver starts anew.
    fn break_tx(&mut self, port: usize) {
        let ring = self.net.guests[port].tx().any_ring();
        let size = ring.size();
        if ring.free() == 0 {
            return;
        }
        let is_packed = matches!(ring, AnyVring::Packed(_));
        match ring {
            AnyVring::Split(ring) => ring.raw_push(size + 3),
            AnyVring::Packed(ring) => _ = ring.push(&[Desc::readable(NOWHERE, 64)]),
        }
        ring.publish();
        let fault = loop {
            let waiting = self.sent[port].len();
            match self.burst(port) {
                Ok(()) => assert!(waiting > 0, "the bad head was passed over"),
                Err(fault) => break fault,
            }
        };
        assert_eq!(
            fault,
            match is_packed {
                true => RingFault::BadAddress { gpa: NOWHERE, len: 64 },
                false => RingFault::HeadOutOfRange { head: size + 3, size },
            }
        );
        assert!(self.sent[port].is_empty(), "frames before the bad head were left out");
        let is_broken = self.net.with_slot(port, 1, |slot| matches!(slot, Slot::Broken(..)));
        assert!(is_broken);
        self.net.stop(port, 1);
        self.net.guests[port].boot_tx(0);
        self.net.start(port, 1, None);
    }

    // What the switch does, and the model with it.

    fn run(&mut self, port: usize) {
        let waiting = self.sent[port].len();
        self.burst(port).expect("a sound ring");
        let is_done = self.sent[port].len() < waiting || waiting == 0;
        assert!(is_done || self.stopped[port].is_some(), "{waiting} frames wait, none was taken");
    }

    fn burst(&mut self, port: usize) -> Result<(), RingFault> {
        let received = |net: &Net| net.port(port).tx[0].counters.received_frames.get();
        let before = received(&self.net);
        let outcome = self.net.run(port);
        let taken = (received(&self.net) - before) as usize;
        let burst: Vec<Sent> = self.sent[port].drain(..taken).collect();
        let told = self.model.burst(port, &burst);
        self.follow_reports(told);
        self.compare_counters();
        outcome.map(|_| ())
    }

    /// What the control thread is told is what the model says; it learns addresses from it.
    fn follow_reports(&mut self, (sighted, broken): (Vec<Report>, Vec<usize>)) {
        let (mut seen, mut broke) = (Vec::new(), Vec::new());
        for report in self.net.take_reports() {
            match report {
                Report::Sighted { segment, mac, port } => {
                    seen.push(report);
                    self.net.fdb.learn(segment, Mac::from_key(mac), port, 64, 0).unwrap();
                    self.model.learn(segment, mac, port.0 as usize);
                }
                Report::Broken { port: PortId(port), vring, fault } => {
                    let is_ours = matches!(
                        fault,
                        RingFault::AvailJump { .. } | RingFault::BadAddress { gpa: NOWHERE, .. }
                    );
                    assert!(is_ours && vring == 0, "{fault}");
                    broke.push(port as usize);
                }
            }
        }
        // The same news twice in one burst is the same news.
        assert_eq!((each_once(seen), broke), (each_once(sighted), broken));
    }

    fn compare_counters(&self) {
        let drops = |drops: &Drops| DropReason::ALL.map(|reason| drops.get(reason));
        for (n, port) in self.model.ports.iter().enumerate() {
            let vport = self.net.port(n);
            let (tx, rx) = (&vport.tx[0].counters, &vport.rx[0].counters);
            let good = tx.forwarded_frames.get();
            assert_eq!(Tally { good, drops: drops(&tx.drops) }, port.ingress, "sent by {n}");
            let good = rx.delivered_frames.get();
            assert_eq!(Tally { good, drops: drops(&rx.drops) }, port.egress, "sent to {n}");
        }
    }
}

#[test]
fn every_frame_meets_the_fate_that_the_model_says() {
    let mut fates = [0; DropReason::COUNT];
    let (mut forwarded, mut delivered) = (0, 0);
    for seed in 0..64 {
        let _seed = Seed(seed);
        let mut sim = Sim::new(seed);
        for _ in 0..600 {
            sim.step();
        }
        sim.settle();
        sim.net.assert_conserved();
        for port in &sim.model.ports {
            forwarded += port.ingress.good;
            delivered += port.egress.good;
            for (fate, n) in fates.iter_mut().zip(port.ingress.drops) {
                *fate += n;
            }
        }
    }
    // The simulation went everywhere.
    assert!(forwarded > 5_000 && delivered > forwarded, "{forwarded}, {delivered}");
    for (reason, n) in DropReason::ALL.into_iter().zip(fates) {
        // No port of it is a tap: tests/netns.rs.
        let is_of_taps = matches!(reason, DropReason::TapFull | DropReason::TapRefused);
        assert!(n > 0 || is_of_taps, "no frame was dropped as {}", reason.name());
    }
}

fn each_once(reports: Vec<Report>) -> Vec<Report> {
    let mut once = Vec::new();
    for report in reports {
        if !once.contains(&report) {
            once.push(report);
        }
    }
    once
}
