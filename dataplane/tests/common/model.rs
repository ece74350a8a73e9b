//! What must become of every frame, said as plainly as it can be.
//!
//! The model knows no ring and no burst: it takes frames in the order the switch took them, asks a
//! map of addresses, counts free buffers, and writes down what every receiver must see next, what
//! every counter must say and what the control thread must be told.

use std::collections::{HashMap, VecDeque};

use dataplane::pmd::Report;
use dataplane::port::{PortId, VportRules};
use dataplane::stats::DropReason;
use dataplane::tables::UnknownUnicast;
use dataplane::testing::VirtioNetHdr;
use dataplane::vring::MAX_SEGMENTS;
use dataplane::wire::Mac;
use slipway_api::PolicyAction;

/// A frame on its way.
#[derive(Debug, Clone)]
pub struct Sent {
    pub header: VirtioNetHdr,
    pub bytes: Vec<u8>,
    /// Descriptors it lies in.
    pub descriptors: usize,
}

/// How a port's receive ring is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rx {
    Up,
    Disabled,
    /// Taken out; where it stood.
    Stopped(u32),
    /// It will be found broken when the switch looks at it next.
    Rotten,
    Broken,
}

/// What counters say, ingress or egress.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tally {
    /// Forwarded or delivered.
    pub good: u64,
    pub drops: [u64; DropReason::COUNT],
}

/// A port as the model sees it.
#[derive(Debug)]
pub struct Port {
    pub rules: VportRules,
    /// Its policy has no rules: what it does with frames from the guest, and to it.
    pub policy: Option<(PolicyAction, PolicyAction)>,
    /// Bytes of one receive buffer, virtio-net header included.
    pub buffer: usize,
    pub mergeable: bool,
    /// The guest may leave checksums to the switch.
    pub checksums: bool,
    pub rx: Rx,
    /// Receive buffers the switch may fill.
    pub room: usize,
    /// What the guest must see next: frame, and buffers it lies in.
    pub expected: VecDeque<(Vec<u8>, usize)>,
    pub ingress: Tally,
    pub egress: Tally,
}

/// Where a frame goes.
struct Route {
    to: Vec<usize>,
    is_flood: bool,
}

/// The switch, as it should be.
#[derive(Debug, Default)]
pub struct Model {
    pub ports: Vec<Port>,
    unknown_unicast: Vec<UnknownUnicast>,
    /// Port of each address of a segment, and whether it is static.
    addresses: HashMap<(u16, u64), (usize, bool)>,
}

impl Model {
    /// A switch with these segments.
    pub fn new(segments: &[UnknownUnicast]) -> Self {
        Self { unknown_unicast: segments.to_vec(), ..Self::default() }
    }

    /// One more port.
    pub fn add(&mut self, port: Port) {
        if let Some(mac) = port.rules.mac {
            self.addresses.insert((port.rules.segment, mac), (self.ports.len(), true));
        }
        self.ports.push(port);
    }

    /// The control thread learned an address.
    pub fn learn(&mut self, segment: u16, mac: u64, port: usize) {
        let entry = self.addresses.entry((segment, mac)).or_insert((port, false));
        if !entry.1 {
            entry.0 = port;
        }
    }

    /// The switch took these frames from `from` in one burst. Returns what it must report: sources
    /// sighted, and ports whose receive ring broke.
    pub fn burst(&mut self, from: usize, burst: &[Sent]) -> (Vec<Report>, Vec<usize>) {
        let (mut sighted, mut broken, mut last) = (Vec::new(), Vec::new(), None);
        let routes: Vec<_> =
            burst.iter().map(|sent| self.judge(from, sent, &mut sighted, &mut last)).collect();
        let mut fates: Vec<_> = routes
            .iter()
            .map(|route| Some(route.as_ref().err().copied().unwrap_or(DropReason::NoReceiver)))
            .collect();
        // Each receiver gets what is for it alone first, then what is for all, each in order.
        for is_flood in [false, true] {
            for to in 0..self.ports.len() {
                let is_meant = |route: &Route| route.is_flood == is_flood && route.to.contains(&to);
                let meant: Vec<usize> = (0..burst.len())
                    .filter(|&at| routes[at].as_ref().is_ok_and(is_meant))
                    .collect();
                if !meant.is_empty() {
                    self.offer(to, burst, &meant, &mut fates, &mut broken);
                }
            }
        }
        let ingress = &mut self.ports[from].ingress;
        for fate in fates {
            match fate {
                None => ingress.good += 1,
                Some(reason) => ingress.drops[reason as usize] += 1,
            }
        }
        (sighted, broken)
    }

    fn judge(
        &self,
        from: usize,
        sent: &Sent,
        sighted: &mut Vec<Report>,
        last: &mut Option<Mac>,
    ) -> Result<Route, DropReason> {
        let Sent { header, bytes, descriptors } = sent;
        let Port { rules, policy, checksums, .. } = &self.ports[from];
        if *descriptors > MAX_SEGMENTS {
            return Err(DropReason::TooManySegments);
        }
        let Some(&[d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1]) = bytes.first_chunk()
        else {
            return Err(DropReason::Truncated);
        };
        if [t0, t1] == [0x81, 0] && bytes.len() < 18 {
            return Err(DropReason::Malformed);
        }
        // All frames of this simulation are of an experimental EtherType: nothing to offload.
        match (header.flags & VirtioNetHdr::NEEDS_CSUM != 0, header.gso_type) {
            (false, VirtioNetHdr::GSO_NONE) => {}
            (true, _) if !checksums => return Err(DropReason::OffloadNotNegotiated),
            _ => return Err(DropReason::BadOffload),
        }
        if bytes.len() > rules.max_frame_bytes as usize {
            return Err(DropReason::TooLong);
        }
        let destination = Mac([d0, d1, d2, d3, d4, d5]);
        let source = Mac([s0, s1, s2, s3, s4, s5]);
        if source.is_multicast() {
            return Err(DropReason::Malformed);
        }
        let is_own = rules.mac == Some(source.key());
        if rules.anti_spoof && !is_own {
            return Err(DropReason::Spoofed);
        }
        if matches!(policy, Some((PolicyAction::Deny, _))) {
            return Err(DropReason::PolicyEgress);
        }
        let segment = rules.segment;
        // Of frames in a row from one source, the first is looked at.
        if last.replace(source) != Some(source) && rules.learning && !is_own {
            let known = self.addresses.get(&(segment, source.key()));
            if known.is_none_or(|&(at, is_static)| at != from && !is_static) {
                let port = PortId(from as u32);
                sighted.push(Report::Sighted { segment, mac: source.key(), port });
            }
        }
        let others = || {
            let is_other = |&n: &usize| n != from && self.ports[n].rules.segment == segment;
            Route { to: (0..self.ports.len()).filter(is_other).collect(), is_flood: true }
        };
        if destination.is_multicast() {
            return Ok(others());
        }
        match self.addresses.get(&(segment, destination.key())) {
            Some(&(at, _)) if at == from => Err(DropReason::Hairpin),
            Some(&(at, _)) => Ok(Route { to: vec![at], is_flood: false }),
            None => match self.unknown_unicast[usize::from(segment)] {
                UnknownUnicast::Flood => Ok(others()),
                UnknownUnicast::Drop => Err(DropReason::NoRoute),
            },
        }
    }

    /// Offers frames `meant` of a burst to port `to`.
    fn offer(
        &mut self,
        to: usize,
        burst: &[Sent],
        meant: &[usize],
        fates: &mut [Option<DropReason>],
        broken: &mut Vec<usize>,
    ) {
        let port = &mut self.ports[to];
        if matches!(port.policy, Some((_, PolicyAction::Deny))) {
            // Nobody looks at the ring.
            for &at in meant {
                port.egress.drops[DropReason::PolicyIngress as usize] += 1;
                if fates[at] == Some(DropReason::NoReceiver) {
                    fates[at] = Some(DropReason::PolicyIngress);
                }
            }
            return;
        }
        if port.rx == Rx::Rotten {
            broken.push(to);
            port.rx = Rx::Broken;
        }
        for &at in meant {
            let bytes = &burst[at].bytes;
            let need = (VirtioNetHdr::BYTES + bytes.len()).div_ceil(port.buffer);
            let refusal = if port.rx != Rx::Up {
                Some(DropReason::LinkDown)
            } else if port.room == 0 {
                Some(DropReason::RingFull)
            } else if need > 1 && !port.mergeable {
                Some(DropReason::BufferTooSmall)
            } else if need > port.room {
                Some(DropReason::RingFull)
            } else {
                None
            };
            match refusal {
                Some(reason) => {
                    port.egress.drops[reason as usize] += 1;
                    // The first refusal counts, and none if anybody got the frame.
                    if fates[at] == Some(DropReason::NoReceiver) {
                        fates[at] = Some(reason);
                    }
                }
                None => {
                    port.room -= need;
                    port.egress.good += 1;
                    port.expected.push_back((bytes.clone(), need));
                    fates[at] = None;
                }
            }
        }
    }
}
