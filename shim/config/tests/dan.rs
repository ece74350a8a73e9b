//! DAN files as plugins write them.

use std::{fs, path::Path};

use kata_config::dan::{self, DanMode};

fn refusal(text: &str) -> String {
    dan::parse(text, Path::new("/d/s.json")).expect_err(text).to_string()
}

/// A file with one device, where `change` replaces text.
fn changed(from: &str, to: &str) -> String {
    let text = r#"{"devices": [{"name": "eth0", "guest_mac": "02:00:00:00:00:07",
        "device": {"type": "vhost-user", "path": "/run/p.sock", "queue_num": 0, "queue_size": 0},
        "network_info": {"interface": {"ip_addresses": ["10.0.0.7/24"], "mtu": 1500},
            "routes": [{"dest": "10.1.0.0/16", "gateway": "10.0.0.1"}],
            "neighbors": [{"ip_address": "10.0.0.1", "hardware_addr": "02:00:00:00:00:01"}]}}]}"#;
    assert!(text.contains(from), "{from}");
    text.replace(from, to)
}

#[test]
fn a_file_of_katas_is_read_as_it_is() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/dan-kata.json");
    let dan = dan::load(&file).unwrap_or_else(|error| panic!("{error}")).expect("is there");
    assert_eq!(dan.netns.as_deref(), Some(Path::new("/var/run/netns/cni-1")));
    let [first, second] = &dan.devices[..] else { panic!("{dan:?}") };
    assert_eq!((first.name.as_str(), first.mtu), ("eth0", 1450));
    assert_eq!(first.guest_mac, Some([2, 0x42, 10, 0, 0, 7]));
    assert_eq!(first.socket, Path::new("/run/vswitch/p7.sock"));
    assert_eq!(first.mode, DanMode::Server);
    assert_eq!((first.queue_pairs, first.queue_size), (Some(2), Some(512)));
    let addresses: Vec<_> = first.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.0.0.7/24", "fd00::7/64"]);
    assert_eq!(first.routes[0].destination.to_string(), "172.18.0.0/16");
    assert_eq!(first.routes[0].source, "172.18.0.1".parse().ok());
    assert_eq!(first.routes[1].destination.to_string(), "0.0.0.0/0");
    assert_eq!(first.routes[1].gateway, "10.0.0.1".parse().ok());
    assert_eq!(first.routes[1].mtu, Some(1400));
    assert_eq!(first.neighbours[0].mac, [2, 0, 0, 0, 0, 1]);
    assert_eq!(first.neighbours[0].state, 128);
    assert_eq!((second.guest_mac, second.mode, second.mtu), (None, DanMode::Client, 1500));
    assert_eq!((second.queue_pairs, second.queue_size), (None, None));
    assert_eq!(second.addresses[0].to_string(), "192.168.0.2/32");
}

#[test]
fn no_file_is_no_network_of_this_kind() {
    let folder = tempfile::tempdir().expect("tempdir");
    assert_eq!(dan::load(&folder.path().join("none.json")).expect("no error"), None);
    let long = folder.path().join("long.json");
    fs::write(&long, " ".repeat((1 << 20) + 1)).expect("writes");
    assert!(dan::load(&long).expect_err("long").to_string().contains("long.json"));
}

#[test]
fn kinds_that_are_not_served_are_refused_by_name_with_remedy() {
    for kind in ["host-tap", "vfio"] {
        let told = refusal(&changed("vhost-user", kind));
        assert!(told.starts_with("/d/s.json: `devices[0].device.type`"), "{told}");
        assert!(told.contains(kind) && told.contains("slipway-cni"), "{told}");
    }
    assert!(refusal(&changed("vhost-user", "magic")).contains("it is vhost-user"));
}

#[test]
fn every_field_is_judged_and_named() {
    for (from, to, key) in [
        ("\"eth0\"", "\"\"", "devices[0].name"),
        ("\"eth0\"", "\"a/b\"", "devices[0].name"),
        ("\"eth0\"", "\"sixteen-letters-\"", "devices[0].name"),
        ("/run/p.sock", "p.sock", "devices[0].device.path"),
        ("02:00:00:00:00:07", "02:00", "devices[0].guest_mac"),
        ("02:00:00:00:00:07", "01:00:00:00:00:07", "devices[0].guest_mac"),
        ("\"queue_num\": 0", "\"queue_num\": 65", "devices[0].device.queue_num"),
        ("\"queue_size\": 0", "\"queue_size\": 300", "devices[0].device.queue_size"),
        ("10.0.0.7/24", "10.0.0.7/33", "devices[0].network_info.interface.ip_addresses[0]"),
        ("\"mtu\": 1500", "\"mtu\": 60", "devices[0].network_info.interface.mtu"),
        ("\"mtu\": 1500", "\"mtu\": 65536", "devices[0].network_info.interface.mtu"),
        ("10.1.0.0/16", "somewhere", "devices[0].network_info.routes[0].dest"),
        (
            "\"gateway\": \"10.0.0.1\"",
            "\"gateway\": \"::1\"",
            "devices[0].network_info.routes[0].gateway",
        ),
        (
            "\"gateway\": \"10.0.0.1\"",
            "\"gateway\": \"x\"",
            "devices[0].network_info.routes[0].gateway",
        ),
        (
            "\"10.1.0.0/16\", \"gateway\": \"10.0.0.1\"",
            "\"\"",
            "devices[0].network_info.routes[0].dest",
        ),
        ("\"ip_address\": \"10.0.0.1\", ", "", "devices[0].network_info.neighbors[0].ip_address"),
        ("02:00:00:00:00:01", "", "devices[0].network_info.neighbors[0].hardware_addr"),
    ] {
        let told = refusal(&changed(from, to));
        assert!(told.starts_with(&format!("/d/s.json: `{key}` = ")), "{key}: {told}");
    }
}

#[test]
fn names_and_sockets_are_given_once() {
    let device = |name: &str, socket: &str| {
        format!(r#"{{"name": "{name}", "device": {{"type": "vhost-user", "path": "{socket}"}}}}"#)
    };
    let file = |a: String, b: String| format!(r#"{{"devices": [{a}, {b}]}}"#);
    let told = refusal(&file(device("a", "/1"), device("a", "/2")));
    assert!(told.contains("devices[1].name"), "{told}");
    let told = refusal(&file(device("a", "/1"), device("b", "/1")));
    assert!(told.contains("devices[1].device.path"), "{told}");
    let many = vec![device("a", "/1"); 29].join(",");
    assert!(refusal(&format!(r#"{{"devices": [{many}]}}"#)).contains("at most 28"));
}

#[test]
fn what_is_no_dan_file_is_refused_with_its_line() {
    let told = refusal("{\n\"devices\": 7\n}");
    assert!(told.starts_with("/d/s.json:2: this is not a DAN file in JSON"), "{told}");
    assert!(refusal("{}").contains("devices"));
    assert!(
        refusal(&changed("\"queue_num\"", "\"mode\": \"both\", \"queue_num\"")).contains("both")
    );
}

#[test]
fn fields_of_others_are_left_alone() {
    let text = changed("\"queue_num\"", "\"colour\": \"red\", \"queue_num\"");
    assert_eq!(dan::parse(&text, Path::new("x")).expect("reads").devices.len(), 1);
}
