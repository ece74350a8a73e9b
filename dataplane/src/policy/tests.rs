//! The rules against a reading of them that shares no code with them, and the cache against the rules.

use std::net::IpAddr;

use proptest::prelude::*;
use slipway_api::{IpVersion, Policy, PolicyAction, PolicyRule, PortRange, Protocol};

use super::*;
use crate::flow::{HEAD_LEN, HashSeed};

/// A datagram as a test thinks of it, before it is bytes.
#[derive(Debug, Clone, Copy)]
struct Datagram {
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    /// Ports, or type and code and checksum: the first four bytes of the transport.
    ports: (u16, u16),
    /// The first piece of a larger one, a later one, or neither.
    piece: Option<bool>,
    /// IPv6 only: behind a header of destination options.
    has_options: bool,
}

impl Datagram {
    fn icmp_type(&self) -> u8 {
        self.ports.0.to_be_bytes()[0]
    }

    fn bytes(&self) -> Vec<u8> {
        let mut transport = [self.ports.0.to_be_bytes(), self.ports.1.to_be_bytes()].concat();
        // A TCP header of 20 bytes, a UDP length of 20: enough for either.
        transport.extend([0, 20, 0, 0, 0, 0, 0, 0, 0x50, 0, 0, 0, 0, 0, 0, 0]);
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let fragment: u16 = match self.piece {
                    None => 0,
                    Some(true) => 0x2000,
                    Some(false) => 3,
                };
                let [f0, f1] = fragment.to_be_bytes();
                frame.extend([8, 0, 0x45, 0, 0, 40, 0, 9, f0, f1, 64, self.protocol, 0, 0]);
                frame.extend([src.octets(), dst.octets()].concat());
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let mut between = Vec::new();
                let mut next = self.protocol;
                if let Some(is_first) = self.piece {
                    between = vec![next, 0, 0, if is_first { 1 } else { 24 }, 0, 0, 0, 7];
                    next = 44;
                }
                if self.has_options {
                    between = [vec![next, 0, 1, 4, 0, 0, 0, 0], between].concat();
                    next = 60;
                }
                let len = (between.len() + transport.len()) as u8;
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, len, next, 64]);
                frame.extend([src.octets(), dst.octets()].concat());
                frame.extend(between);
            }
            _ => unreachable!("addresses of one family"),
        }
        frame.extend(transport);
        frame
    }
}

/// What a policy says, by the words of its documentation.
fn by_the_book(policy: &Policy, direction: Direction, of: &Datagram) -> Verdict {
    let is_later = of.piece == Some(false);
    let remote = if direction == Direction::Egress { of.dst } else { of.src };
    for rule in policy.rules.iter().filter(|rule| rule.direction == direction) {
        let mut holds = true;
        if let Some(version) = rule.ip {
            holds &= (version == IpVersion::Ipv4) == of.src.is_ipv4();
        }
        if let Some(protocol) = rule.protocol {
            holds &= protocol.0 == of.protocol;
        }
        if let Some(prefix) = rule.remote {
            holds &= prefix.contains(&remote);
        }
        for (range, port) in [(rule.source_ports, of.ports.0), (rule.ports, of.ports.1)] {
            if let Some(range) = range {
                holds &= !is_later && port >= range.first() && port <= range.last();
            }
        }
        if let Some(kind) = rule.icmp_type {
            let is_icmp = of.protocol == if of.src.is_ipv4() { 1 } else { 58 };
            holds &= !is_later && is_icmp && kind == of.icmp_type();
        }
        if holds {
            return rule.action.into();
        }
    }
    policy.default_of(direction).into()
}

/// Few values, so that rules and frames often meet.
fn address(is_v4: bool) -> impl Strategy<Value = IpAddr> {
    (0..3u8, 0..4u8).prop_map(move |(net, host)| {
        if is_v4 {
            IpAddr::from([10, net, 0, host])
        } else {
            IpAddr::from([0xfd, net, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host])
        }
    })
}

fn datagram() -> impl Strategy<Value = Datagram> {
    let protocol = prop::sample::select(vec![1u8, 6, 17, 58, 132]);
    let piece = prop::sample::select(vec![None, None, None, Some(true), Some(false)]);
    any::<bool>().prop_flat_map(move |is_v4| {
        (
            (address(is_v4), address(is_v4), protocol.clone()),
            ((0..5u16), (0..5u16), piece.clone(), any::<bool>()),
        )
            .prop_map(|((src, dst, protocol), (from, to, piece, has_options))| {
                let is_icmp = matches!(protocol, 1 | 58);
                // Types 0 to 4, which are not neighbour discovery.
                let ports = if is_icmp { (from << 8, to) } else { (from, to) };
                Datagram { src, dst, protocol, ports, piece, has_options }
            })
    })
}

fn rule() -> impl Strategy<Value = PolicyRule> {
    let action = prop::sample::select(vec![PolicyAction::Allow, PolicyAction::Deny]);
    let direction = prop::sample::select(vec![Direction::Egress, Direction::Ingress]);
    let protocol = prop::sample::select(vec![1u8, 6, 17, 58, 132]);
    let range = || {
        prop::option::weighted(0.3, (0..5u16, 0..3u16).prop_map(|(a, n)| PortRange::new(a, a + n)))
    };
    let remote = any::<bool>().prop_flat_map(|is_v4| {
        (address(is_v4), 0..4u8).prop_map(move |(address, step)| {
            let len = if is_v4 { [0, 16, 31, 32] } else { [0, 16, 127, 128] }[usize::from(step)];
            ipnet::IpNet::new(address, len).expect("a length of its family").trunc()
        })
    });
    (
        (action, direction, prop::option::of(protocol), prop::option::of(remote)),
        (range(), range(), prop::option::weighted(0.3, 0..5u8)),
        prop::option::weighted(0.2, prop::sample::select(vec![IpVersion::Ipv4, IpVersion::Ipv6])),
    )
        .prop_map(|((action, direction, protocol, remote), (ports, from, kind), ip)| {
            let protocol = protocol.map(Protocol);
            PolicyRule {
                ip,
                protocol,
                remote,
                ports: ports.flatten(),
                source_ports: from.flatten(),
                icmp_type: kind,
                ..PolicyRule::any(action, direction)
            }
        })
}

/// Policies that the API takes: rules that it refuses are left out.
fn policy() -> impl Strategy<Value = Policy> {
    let action = || prop::sample::select(vec![PolicyAction::Allow, PolicyAction::Deny]);
    (prop::collection::vec(rule(), 0..12), action(), action()).prop_map(
        |(rules, egress_default, ingress_default)| {
            let is_taken = |rule: &PolicyRule| {
                Policy { rules: vec![rule.clone()], ..Policy::default() }.check().is_ok()
            };
            let rules = rules.into_iter().filter(is_taken).collect();
            Policy { egress_default, ingress_default, rules }
        },
    )
}

fn published(policies: &[Policy]) -> Policies {
    let rules = policies.iter().map(|policy| Some(Arc::new(Rules::new(policy)))).collect();
    Policies::default().next(rules)
}

fn expected(verdict: Verdict, direction: Direction) -> Result<(), DropReason> {
    match (verdict, direction) {
        (Verdict::Allow, _) => Ok(()),
        (Verdict::Deny, Direction::Egress) => Err(DropReason::PolicyEgress),
        (Verdict::Deny, Direction::Ingress) => Err(DropReason::PolicyIngress),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn rules_say_what_their_documentation_says(policy in policy(), frames in prop::collection::vec(datagram(), 1..12)) {
        let policies = published(std::slice::from_ref(&policy));
        let guard = policies.of(PortId(0)).expect("has rules");
        for frame in frames {
            let bytes = frame.bytes();
            for direction in [Direction::Egress, Direction::Ingress] {
                let asked = guard.check(direction, &bytes, bytes.len() as u32, &mut VerdictCache::none());
                let wanted = expected(by_the_book(&policy, direction, &frame), direction);
                prop_assert_eq!(asked, wanted, "{:?} {}", frame, policy);
            }
        }
    }

    /// Two ports, whose rules change now and then, and frames that come again and again.
    #[test]
    fn a_cached_verdict_is_what_the_rules_say_now(
        choices in prop::collection::vec(policy(), 2..5),
        frames in prop::collection::vec(datagram(), 1..5),
        steps in prop::collection::vec((0..10u8, any::<prop::sample::Index>(), any::<bool>(), any::<bool>()), 1..120),
    ) {
        let compiled: Vec<_> = choices.iter().map(|policy| Arc::new(Rules::new(policy))).collect();
        let mut chosen = [0, 1];
        let publish = |chosen: &[usize; 2], before: &Policies| {
            before.next(chosen.iter().map(|&at| Some(Arc::clone(&compiled[at]))).collect())
        };
        let mut policies = publish(&chosen, &Policies::default());
        let mut cache = VerdictCache::new(HashSeed::new(7));
        for (kind, which, is_second, is_egress) in steps {
            let port = usize::from(is_second);
            if kind == 0 {
                chosen[port] = which.index(choices.len());
                policies = publish(&chosen, &policies);
                continue;
            }
            let frame = frames[which.index(frames.len())];
            let bytes = frame.bytes();
            let direction = if is_egress { Direction::Egress } else { Direction::Ingress };
            let guard = policies.of(PortId(port as u32)).expect("has rules");
            let asked = guard.check(direction, &bytes, bytes.len() as u32, &mut cache);
            let verdict = by_the_book(&choices[chosen[port]], direction, &frame);
            prop_assert_eq!(asked, expected(verdict, direction));
        }
    }
}

/// With these defaults and no rules.
fn denies_all() -> Policies {
    published(&[Policy::default()])
}

fn ask(policies: &Policies, frame: &[u8]) -> Result<(), DropReason> {
    let head = &frame[..frame.len().min(HEAD_LEN)];
    let guard = policies.of(PortId(0)).expect("has rules");
    let check = |direction| {
        guard.check(direction, head, frame.len() as u32, &mut VerdictCache::new(HashSeed::new(7)))
    };
    let ingress = check(Direction::Ingress);
    assert_eq!(check(Direction::Egress).is_ok(), ingress.is_ok());
    ingress
}

fn ethernet(ethertype: [u8; 2], rest: &[u8]) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2], &ethertype[..], rest].concat()
}

#[test]
fn arp_passes_whatever_the_rules_say_and_other_ethertypes_by_the_default_action() {
    let denied = Err(DropReason::PolicyIngress);
    assert_eq!(ask(&denies_all(), &ethernet([8, 6], &[0; 46])), Ok(()));
    assert_eq!(
        ask(&denies_all(), &ethernet([0x81, 0], &[&[0, 7, 8, 6][..], &[0; 46]].concat())),
        Ok(())
    );
    assert_eq!(ask(&denies_all(), &ethernet([0x88, 0xcc], &[0; 46])), denied);
    let allow = PolicyAction::Allow;
    // A rule for everything does not match what is not IP.
    let rules =
        vec!["deny egress".parse().expect("a rule"), "deny ingress".parse().expect("a rule")];
    let open = Policy { egress_default: allow, ingress_default: allow, rules };
    assert_eq!(ask(&published(&[open]), &ethernet([0x88, 0xcc], &[0; 46])), Ok(()));
}

#[test]
fn neighbour_discovery_passes_from_the_link_alone() {
    let message = |kind: u8, hop_limit: u8| {
        let mut packet = vec![0x60, 0, 0, 0, 0, 24, 58, hop_limit];
        packet.extend([0xfe; 32]);
        packet.push(kind);
        packet.resize(64, 0);
        ethernet([0x86, 0xdd], &packet)
    };
    let denied = Err(DropReason::PolicyIngress);
    for (kind, hop_limit, outcome) in [
        (135, 255, Ok(())),
        (136, 255, Ok(())),
        (135, 254, denied),
        (136, 64, denied),
        (133, 255, denied),
        (134, 255, denied),
        (137, 255, denied),
        (128, 255, denied),
    ] {
        assert_eq!(ask(&denies_all(), &message(kind, hop_limit)), outcome, "{kind} {hop_limit}");
    }
}

#[test]
fn headers_that_can_not_be_judged_are_dropped_under_any_policy() {
    let allow = PolicyAction::Allow;
    let open = Policy { egress_default: allow, ingress_default: allow, rules: Vec::new() };
    let mut deep = vec![0x60, 0, 0, 0, 0, 100, 60, 64];
    deep.resize(40, 0);
    deep.extend([17, 9, 0, 0]);
    deep.resize(140, 0);
    let broken =
        [ethernet([8, 0], &[0x41; 40]), ethernet([8, 0], &[0x45]), ethernet([0x86, 0xdd], &deep)];
    for frame in broken {
        assert_eq!(
            ask(&published(std::slice::from_ref(&open)), &frame),
            Err(DropReason::Malformed)
        );
    }
}

#[test]
fn an_epoch_lasts_as_long_as_all_rules_are_the_same_ones() {
    let [a, b] = [1, 2].map(|_| Some(Arc::new(Rules::new(&Policy::default()))));
    let none = Policies::default();
    assert_eq!(none.next(Vec::new()).epoch(), 0);
    assert_eq!(none.next(vec![None, None]).epoch(), 0);
    let first = none.next(vec![None, a.clone()]);
    assert_eq!(first.epoch(), 1);
    assert_eq!(first.next(vec![None, a.clone(), None]).epoch(), 1);
    // Equal words are other rules; moved rules are another port's; gone rules are gone.
    for changed in [vec![None, b.clone()], vec![a.clone()], vec![a, b], Vec::new()] {
        assert_eq!(first.next(changed).epoch(), 2);
    }
    assert!(first.of(PortId(0)).is_none() && first.of(PortId(9)).is_none());
}

#[test]
fn what_decided_is_told_by_its_number() {
    let rules = ["allow ingress", "allow egress protocol udp ports 4", "deny egress protocol udp"];
    let rules = rules.iter().map(|text| text.parse().expect("a rule")).collect();
    let policies = published(&[Policy { rules, ..Policy::default() }]);
    let guard = policies.of(PortId(0)).expect("has rules");
    let of = |protocol, port| {
        let [src, dst] = [1, 2].map(|n| IpAddr::from([10, 0, 0, n]));
        let datagram =
            Datagram { src, dst, protocol, ports: (1, port), piece: None, has_options: false };
        let bytes = datagram.bytes();
        guard.explain(Direction::Egress, &bytes, bytes.len() as u32)
    };
    assert_eq!(of(17, 4), (Ok(()), "rule 2: allow egress protocol udp ports 4".to_owned()));
    let denied = Err(DropReason::PolicyEgress);
    assert_eq!(of(17, 5), (denied, "rule 3: deny egress protocol udp".to_owned()));
    assert_eq!(of(6, 5).1, "no rule matches: the default action");
}
