//! Policies of ports of a running switch: set, changed and taken off while frames flow.

mod rig;

use dataplane::control::Control;
use dataplane::testing::GuestConfig;
use dataplane::testing::frames::FrameBuilder;
use rig::{Rig, Station};
use slipway_api::{Created, Decision, LinkState, Policy, PolicyAction, PortSpec};

fn policy(rules: &[&str]) -> Policy {
    let rules = rules.iter().map(|text| text.parse().expect("a rule")).collect();
    Policy { rules, egress_default: PolicyAction::Allow, ingress_default: PolicyAction::Allow }
}

/// Stations `n` of segment 1: what they send is UDP to port 9, from 10.0.0.n to 10.n.0.1.
fn stations<const N: usize>(rig: &Rig) -> [Station; N] {
    std::array::from_fn(|n| rig.station(n as u32 + 1, 1, GuestConfig::default()))
}

/// Frames for the guest of `port` that its policy or another reason kept from it.
fn kept_from(rig: &Rig, port: &str, reason: &str) -> u64 {
    rig.stats(port).egress.drops.get(reason).copied().unwrap_or(0)
}

/// `from` sends `count` frames that come nowhere.
fn denied(from: &mut Station, to: &mut Station, count: u64) {
    for _ in 0..count {
        from.send(to.mac);
    }
    from.drain();
    to.expect_nothing();
}

#[test]
fn a_rule_denies_from_the_moment_it_is_set_to_the_moment_it_is_gone() {
    let rig = Rig::start();
    let [mut a, mut b] = stations(&rig);
    let set = |port: &str, rules: &[&str]| rig.switch.put_policy(port, policy(rules)).unwrap().1;
    a.talk(&mut b);
    assert_eq!(set(&a.port, &["deny egress protocol udp ports 9"]), Created::New);
    denied(&mut a, &mut b, 100);
    assert_eq!(rig.dropped(&a.port, "policy_egress"), 100);
    // The other way is another direction.
    let back = b.send(a.mac);
    a.expect(back);

    // The same flow under other rules: nothing that was found before counts.
    assert_eq!(set(&a.port, &["deny egress protocol udp ports 10"]), Created::Existing);
    a.talk(&mut b);
    assert_eq!(set(&a.port, &["deny ingress protocol udp"]), Created::Existing);
    denied(&mut b, &mut a, 50);
    assert_eq!(kept_from(&rig, &a.port, "policy_ingress"), 50);
    assert_eq!(rig.dropped(&b.port, "policy_ingress"), 50);
    let there = a.send(b.mac);
    b.expect(there);

    rig.switch.delete_policy(&a.port).unwrap();
    a.talk(&mut b);
    assert_eq!(rig.dropped(&a.port, "policy_egress"), 100);
    let show = rig.show(&a.port);
    assert_eq!((show.link, show.spec.policy), (LinkState::Up, None));
    rig.assert_conserved_unicast();
}

#[test]
fn rules_that_change_under_traffic_lose_no_frame_and_judge_each_by_one_of_them() {
    let rig = Rig::start();
    let [mut a, mut b] = stations(&rig);
    // Both let the frames pass, by different rules: a verdict that went missing would be seen.
    let both = [policy(&["allow egress protocol udp"]), policy(&["deny egress protocol tcp"])];
    for turn in 0..400 {
        rig.switch.put_policy(&a.port, both[turn % 2].clone()).unwrap();
        a.talk(&mut b);
    }
    for turn in 0..400 {
        let rules = if turn % 2 == 0 { policy(&["deny egress"]) } else { policy(&[]) };
        rig.switch.put_policy(&a.port, rules).unwrap();
        if turn % 2 == 0 {
            denied(&mut a, &mut b, 1);
        } else {
            a.talk(&mut b);
        }
    }
    assert_eq!(rig.dropped(&a.port, "policy_egress"), 200);
    rig.assert_conserved_unicast();
}

#[test]
fn a_flood_reaches_those_whose_rules_let_it_in() {
    let rig = Rig::start();
    let [mut a, mut b, mut c] = stations(&rig);
    rig.switch.put_policy(&b.port, policy(&["deny ingress remote 10.0.0.1"])).unwrap();
    let stamp = a.send([0xff; 6]);
    a.drain();
    c.expect(stamp);
    b.expect_nothing();
    assert_eq!(kept_from(&rig, &b.port, "policy_ingress"), 1);
    assert_eq!(rig.stats(&a.port).ingress.forwarded_frames, 1, "someone got it");
    // From another address it comes through, to both.
    let stamp = c.send([0xff; 6]);
    c.drain();
    a.expect(stamp);
    b.expect(stamp);
    rig.assert_conserved();
}

#[test]
fn a_port_is_born_with_its_policy_and_the_next_one_of_its_number_without() {
    let rig = Rig::start();
    let [mut a] = stations(&rig);
    let spec = |name: &str, n: u32, policy| PortSpec {
        vni: 1,
        mac: Some(slipway_api::Mac(rig::mac(n))),
        policy,
        ..PortSpec::named(name)
    };
    let closed = spec("closed", 7, Some(Policy::default()));
    let mut b = rig.station_of(7, closed.clone(), GuestConfig::default());
    denied(&mut b, &mut a, 3);
    denied(&mut a, &mut b, 3);
    // ARP passes under any rules.
    let question =
        FrameBuilder::new(b.mac, [0xff; 6]).arp_request([10, 0, 0, 7].into(), [10, 0, 0, 1].into());
    b.guest.send(&question.build()).unwrap();
    let (_, came) = a.guest.recv(rig::TIMEOUT).unwrap().expect("an ARP request");
    assert_eq!(came[12..14], [8, 6]);
    let differs = rig.switch.create_port(spec("closed", 7, None)).unwrap_err();
    assert_eq!(differs.field.as_deref(), Some("policy"));
    assert_eq!(rig.switch.create_port(closed).unwrap().1, Created::Existing);

    rig.assert_conserved();
    let id = rig.show("closed").id;
    rig.switch.delete_port("closed").unwrap();
    let mut c = rig.station_of(7, spec("open", 7, None), GuestConfig::default());
    assert_eq!(rig.show("open").id, id, "the number is used again");
    a.talk(&mut c);
}

#[test]
fn what_a_policy_would_do_is_explained() {
    let rig = Rig::start();
    let [a, b] = stations(&rig);
    let frame = rig::stamped(a.mac, b.mac, 0, 0, 64);
    let explain = || rig.switch.explain(&a.port, &frame).unwrap();
    let stage = |name: &str| {
        let stage = explain().stages.into_iter().find(|stage| stage.stage == name);
        stage.map(|stage| (stage.answer, stage.detail.unwrap_or_default()))
    };
    assert_eq!((stage("policy_egress"), stage("policy_ingress")), (None, None));
    rig.switch.put_policy(&a.port, policy(&["allow egress protocol udp"])).unwrap();
    rig.switch
        .put_policy(&b.port, policy(&["allow egress", "deny ingress ports 9 protocol udp"]))
        .unwrap();
    let passed = ("pass".to_owned(), "rule 1: allow egress protocol udp".to_owned());
    assert_eq!(stage("policy_egress"), Some(passed));
    let (answer, why) = stage("policy_ingress").expect("asked");
    assert_eq!(answer, format!("drop: policy_ingress of {}", b.port));
    assert_eq!(why, "rule 2: deny ingress protocol udp ports 9");
    assert_eq!(explain().decision, Decision::Drop { reason: "policy_ingress".into() });
    rig.switch.put_policy(&a.port, Policy::default()).unwrap();
    assert_eq!(explain().decision, Decision::Drop { reason: "policy_egress".into() });
    assert_eq!(rig.dropped(&a.port, "policy_egress"), 0, "nothing is counted");
}
