//! What a port may be, and when two are the same.

use super::*;

fn defaults() -> PortDefaults {
    PortDefaults { socket_dir: "/run/slipway/ports".into(), mac_quota: 64, max_queue_pairs: 16 }
}

fn with_mac() -> PortSpec {
    PortSpec { mac: Some(Mac([0x52, 0x54, 0, 0, 0, 1])), ..PortSpec::named("vm1") }
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().expect("an address")).collect()
}

#[test]
fn a_name_alone_makes_a_learning_port_with_a_socket_of_its_own() {
    let applied = PortSpec::named("vm1").apply(&defaults()).expect("applies");
    assert!(applied.learning && !applied.anti_spoof);
    assert_eq!(applied.socket, Path::new("/run/slipway/ports/vm1.sock"));
    assert_eq!((applied.queue_pairs, applied.mac_quota, applied.vni), (1, 64, 0));
}

#[test]
fn a_mac_makes_a_port_that_checks_it_and_learns_nothing() {
    let applied = with_mac().apply(&defaults()).expect("applies");
    assert!(!applied.learning && applied.anti_spoof);
}

#[test]
fn a_mac_on_a_learning_port_is_not_checked() {
    let spec = PortSpec { learning: Some(true), ..with_mac() };
    let applied = spec.apply(&defaults()).expect("applies");
    assert!(applied.learning && !applied.anti_spoof);
}

#[test]
fn every_value_out_of_range_is_refused_by_the_name_of_its_field() {
    let base = || PortSpec::named("vm1");
    let too_deep = format!("/{}", "d".repeat(MAX_SOCKET_PATH_BYTES));
    let cases = [
        ("name", PortSpec::named("")),
        ("name", PortSpec::named("a/b")),
        ("name", PortSpec::named("..")),
        ("name", PortSpec::named("x".repeat(65))),
        ("vni", PortSpec { vni: 1 << 24, ..base() }),
        ("mac", PortSpec { mac: Some(Mac::BROADCAST), ..base() }),
        ("mac", PortSpec { mac: Some(Mac([0; 6])), ..base() }),
        ("socket", PortSpec { socket: Some("vm1.sock".into()), ..base() }),
        ("socket", PortSpec { socket: Some("/run/../etc/x".into()), ..base() }),
        ("socket", PortSpec { socket: Some("/run/\0".into()), ..base() }),
        ("socket", PortSpec { socket: Some("/run/".into()), ..base() }),
        ("socket", PortSpec { socket: Some(too_deep.into()), ..base() }),
        ("queue_pairs", PortSpec { queue_pairs: 0, ..base() }),
        ("queue_pairs", PortSpec { queue_pairs: 17, ..base() }),
        ("queue_pairs", PortSpec { queue_pairs: 129, ..base() }),
        ("mac_quota", PortSpec { mac_quota: Some(0), ..base() }),
        ("mac_quota", PortSpec { mac_quota: Some(65_537), ..base() }),
        ("mtu", PortSpec { mtu: Some(67), ..base() }),
        ("mode", PortSpec { mode: PortMode::Tap, ..base() }),
        ("addresses", PortSpec { addresses: ips(&["10.0.0.1"]), ..base() }),
        ("addresses", PortSpec { addresses: ips(&["0.0.0.0"]), ..with_mac() }),
        ("addresses", PortSpec { addresses: ips(&["255.255.255.255"]), ..with_mac() }),
        ("addresses", PortSpec { addresses: ips(&["fd00::1", "ff02::1"]), ..with_mac() }),
        ("addresses", PortSpec { addresses: ips(&["::1"]), ..with_mac() }),
        ("addresses", PortSpec { addresses: ips(&["fd00::1", "fd00::1"]), ..with_mac() }),
        ("addresses", PortSpec { addresses: ips(&["10.0.0.1"; 9]), ..with_mac() }),
        ("anti_spoof", PortSpec { anti_spoof: Some(true), ..base() }),
        ("anti_spoof", PortSpec { anti_spoof: Some(true), learning: Some(true), ..with_mac() }),
    ];
    for (field, spec) in cases {
        let error = spec.clone().apply(&defaults()).expect_err(field);
        assert_eq!(error.code, ErrorCode::InvalidValue, "{spec:?}");
        assert_eq!(error.field.as_deref(), Some(field), "{spec:?}");
    }
}

#[test]
fn a_default_socket_that_would_not_fit_is_refused() {
    let deep = PortDefaults { socket_dir: "/d".repeat(40).into(), ..defaults() };
    let error = PortSpec::named("x".repeat(64)).apply(&deep).expect_err("too long");
    assert_eq!(error.field.as_deref(), Some("socket"));
}

fn in_namespace(change: impl FnOnce(&mut NetnsSpec)) -> PortSpec {
    let mut netns = NetnsSpec::at("/run/netns/blue");
    netns.addresses = nets(&["10.0.7.3/24", "fd00:7::3/64"]);
    change(&mut netns);
    PortSpec { netns: Some(netns), ..PortSpec::named("c1") }
}

fn nets(texts: &[&str]) -> Vec<ipnet::IpNet> {
    texts.iter().map(|text| text.parse().expect("an address")).collect()
}

#[test]
fn a_namespace_makes_a_port_that_is_bound_to_the_addresses_of_its_interface() {
    let applied = in_namespace(|_| {}).apply(&defaults()).expect("applies");
    assert_eq!((applied.mode, applied.mtu), (PortMode::Netns, Some(DEFAULT_MTU_BYTES)));
    assert_eq!(applied.socket, Path::new(TUN_DEVICE));
    assert_eq!(applied.mac, Some(Mac([0x0a, 0x58, 10, 0, 7, 3])), "as that of a pod");
    assert_eq!(applied.addresses, ips(&["10.0.7.3", "fd00:7::3"]));
    assert!(applied.anti_spoof && !applied.learning);

    let with_mac = PortSpec { mac: with_mac().mac, ..in_namespace(|_| {}) };
    assert_eq!(with_mac.clone().apply(&defaults()).expect("applies").mac, with_mac.mac);
    let bare = in_namespace(|netns| netns.addresses.clear()).apply(&defaults()).expect("applies");
    assert!(bare.mac.is_none() && bare.learning && !bare.anti_spoof);
    let other = in_namespace(|netns| netns.interface = "eth1".into());
    let other = other.apply(&defaults()).expect("applies");
    assert_eq!(applied.first_difference(&other).map(|d| d.field), Some("netns"));
}

#[test]
fn what_no_interface_in_a_namespace_can_be_is_refused_by_the_name_of_its_field() {
    let with = |texts: &[&str]| in_namespace(|netns| netns.addresses = nets(texts));
    let base = || in_namespace(|_| {});
    let named = |name: &str| in_namespace(|netns| netns.interface = name.to_owned());
    let many = ["fd00::1/64"; 9];
    let cases = [
        ("netns.path", in_namespace(|netns| netns.path = "run/netns/blue".into())),
        ("netns.path", in_namespace(|netns| netns.path = "/run/\0".into())),
        ("netns.path", in_namespace(|netns| netns.path = format!("/{}", "d".repeat(4095)).into())),
        ("netns.interface", named("")),
        ("netns.interface", named("sixteen-is-too-l")),
        ("netns.interface", named("a/b")),
        ("netns.interface", named("tap%d")),
        ("netns.interface", named("..")),
        ("netns.addresses", with(&["10.0.7.0/24"])),
        ("netns.addresses", with(&["10.0.7.255/24"])),
        ("netns.addresses", with(&["127.0.0.1/8"])),
        ("netns.addresses", with(&["ff02::1/64"])),
        ("netns.addresses", with(&["10.0.7.1/24", "10.0.8.1/24"])),
        ("netns.addresses", with(&["fd00::1/64", "fd00::1/128"])),
        ("netns.addresses", with(&many)),
        ("netns.addresses", PortSpec { mtu: Some(1279), ..base() }),
        ("socket", PortSpec { socket: Some("/run/a.sock".into()), ..base() }),
        ("mode", PortSpec { mode: PortMode::Connect, ..base() }),
        ("mode", PortSpec { mode: PortMode::Tap, ..base() }),
        ("mode", PortSpec { netns: None, mode: PortMode::Netns, ..base() }),
        ("queue_pairs", PortSpec { queue_pairs: 2, ..base() }),
        ("addresses", PortSpec { addresses: ips(&["10.0.7.3"]), ..base() }),
    ];
    for (field, spec) in cases {
        let error = spec.clone().apply(&defaults()).expect_err(field);
        assert_eq!(error.code, ErrorCode::InvalidValue, "{spec:?}");
        assert_eq!(error.field.as_deref(), Some(field), "{spec:?}");
        assert!(!error.remedy.is_empty(), "{spec:?}");
    }
    with(&["10.0.0.0/31"]).check().expect("RFC 3021");
}

#[test]
fn the_same_settings_are_the_same_port_however_they_are_written() {
    let spelt_out = PortSpec {
        socket: Some("/run/slipway/ports/vm1.sock".into()),
        learning: Some(true),
        mac_quota: Some(64),
        ..PortSpec::named("vm1")
    };
    let short = PortSpec::named("vm1").apply(&defaults()).expect("applies");
    let long = spelt_out.apply(&defaults()).expect("applies");
    assert_eq!(short.same_as(&long), Ok(()));
}

#[test]
fn another_setting_is_a_conflict_that_names_the_field_and_both_values() {
    let existing = with_mac().apply(&defaults()).expect("applies");
    let wanted = PortSpec { mtu: Some(9000), ..with_mac() }.apply(&defaults()).expect("applies");
    let error = existing.same_as(&wanted).expect_err("differs");
    assert_eq!(error.code, ErrorCode::Conflict);
    assert_eq!(error.field.as_deref(), Some("mtu"));
    assert_eq!(error.value.as_deref(), Some("9000"));
    assert!(error.message.contains("none"), "{}", error.message);
}

#[test]
fn any_two_settings_that_differ_have_a_first_difference() {
    // `first_difference` lists the fields by hand; a field it forgot would compare equal.
    let json = serde_json::to_value(PortSpec::named("a").apply(&defaults()).expect("applies"))
        .expect("serialises");
    let mut full = json.as_object().expect("object").clone();
    full.insert("mac".into(), "52:54:00:00:00:01".into());
    full.insert("mtu".into(), 1500.into());
    full.insert("addresses".into(), vec!["10.0.0.1"].into());
    let base: AppliedPortSpec = serde_json::from_value(full.clone().into()).expect("reads");
    for (field, value) in &full {
        let other = match value {
            serde_json::Value::Bool(b) => (!b).into(),
            serde_json::Value::Number(n) => (n.as_u64().expect("unsigned") + 1).into(),
            _ if field == "mac" => "52:54:00:00:00:02".into(),
            _ if field == "mode" => "connect".into(),
            _ if field == "addresses" => vec!["10.0.0.1", "10.0.0.2"].into(),
            _ => "/other".into(),
        };
        let mut changed = full.clone();
        changed.insert(field.clone(), other);
        let changed: AppliedPortSpec = serde_json::from_value(changed.into()).expect("reads");
        assert_eq!(base.first_difference(&changed).map(|d| d.field), Some(field.as_str()));
    }
}

#[test]
fn unknown_fields_of_a_request_are_refused() {
    let error = serde_json::from_str::<PortSpec>(r#"{"name":"a","vlan":7}"#).expect_err("vlan");
    assert!(error.to_string().contains("unknown field `vlan`"), "{error}");
}
