//! slipway-cni as a process, as a container engine runs it: against the API server with a fake switch
//! behind it, and against nobody.

mod cni_support;

use std::path::Path;

use cni_support::{Fake, Plugin, VERSIONS};
use dataplane::control::Control;
use serde_json::{Value, json};
use slipway_api::AttachmentSpec;

const ADDED: &str = r#"{
  "cniVersion": "VERSION",
  "interfaces": [{"name": "eth0", "mac": "0a:58:0a:58:00:02", "sandbox": "/var/run/netns/pod"}],
  "ips": [{"address": "10.88.0.2/16", "gateway": "10.88.0.1", "interface": 0}],
  "routes": [{"dst": "0.0.0.0/0", "gw": "10.88.0.1"}],
  "dns": {}
}"#;

/// What an ADD of the first pod answers in `version`.
fn added(version: &str, port: &str) -> Value {
    let mut expected: Value = serde_json::from_str(&ADDED.replace("VERSION", version)).unwrap();
    if version < "1.0.0" {
        expected["ips"][0]["version"] = json!("4");
    }
    if version == "1.1.0" {
        expected["interfaces"][0]["mtu"] = json!(1500);
        let socket = format!("/run/slipway/vm/{port}.sock");
        expected["interfaces"][0]["socketPath"] = json!(socket);
    }
    expected
}

#[test]
fn an_add_answers_in_every_version_and_a_second_one_the_same() {
    for version in VERSIONS {
        let fake = Fake::start();
        let plugin = fake.plugin().version(version);
        let result = plugin.run("ADD").result();
        let attachment = fake.switch.get_attachment("sandbox", "eth0").unwrap();
        assert_eq!(result, added(version, &attachment.port), "{version}");
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert_eq!(plugin.run("ADD").result(), result, "{version}: asking twice is asking once");
        assert_eq!(fake.switch.list_attachments(None).attachments, [attachment]);
        plugin.run("DEL").nothing();
        plugin.run("DEL").nothing();
        assert!(fake.switch.list_attachments(None).attachments.is_empty());
    }
}

#[test]
fn the_pod_is_found_again_by_its_labels() {
    let fake = Fake::start();
    let arguments = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;\
                     K8S_POD_INFRA_CONTAINER_ID=sandbox;K8S_POD_UID=1234";
    fake.plugin().env("CNI_ARGS", arguments).run("ADD").result();
    let labels = fake.switch.get_attachment("sandbox", "eth0").unwrap().labels;
    let label = |key: &str| labels.get(key).map(String::as_str);
    assert_eq!(label("io.kubernetes.pod.namespace"), Some("shop"));
    assert_eq!(label("io.kubernetes.pod.name"), Some("web"));
    assert_eq!(label("io.kubernetes.pod.uid"), Some("1234"));
    assert_eq!(label("io.kubernetes.pod.infra-container-id"), Some("sandbox"));
    assert_eq!(label("cni-network"), Some("slipway"));
    let started: u64 = label("cni-started-ms").unwrap().parse().unwrap();
    let made = fake.switch.get_attachment("sandbox", "eth0").unwrap().created_at_ms;
    assert!(started <= made && made - started < 60_000, "{started} {made}");
}

#[test]
fn addresses_are_asked_for_by_arguments_or_capabilities() {
    let fake = Fake::start();
    let arguments = "IP=10.88.0.7;MAC=02:00:00:00:00:07";
    let result = fake.plugin().env("CNI_ARGS", arguments).run("ADD").result();
    assert_eq!(result["ips"][0]["address"], "10.88.0.7/16");
    assert_eq!(result["interfaces"][0]["mac"], "02:00:00:00:00:07");
    let by_capability = fake
        .plugin()
        .container("second")
        .env("CNI_ARGS", "IP=10.88.0.8")
        .set("runtimeConfig", json!({"ips": ["10.88.0.9/16"], "mac": "02:00:00:00:00:09"}))
        .set("mtu", json!(1400))
        .set("queuePairs", json!(2))
        .set("pmds", json!([0]));
    let result = by_capability.run("ADD").result();
    assert_eq!(result["ips"][0]["address"], "10.88.0.9/16");
    let made = fake.switch.get_attachment("second", "eth0").unwrap();
    assert_eq!((made.mtu, made.queue_pairs, made.pmds), (1400, 2, vec![0]));
    assert_eq!(fake.switch.get_port(&made.port).unwrap().spec.pmds, [0]);
    let taken = fake.plugin().container("third").env("CNI_ARGS", "IP=10.88.0.9").run("ADD");
    taken.error(102, "eth0 of second has this address");
}

#[test]
fn a_check_holds_the_pod_against_what_it_was_given() {
    for version in &VERSIONS[1..] {
        let fake = Fake::start();
        let plugin = fake.plugin().version(version);
        let result = plugin.run("ADD").result();
        let check =
            |previous: &Value| plugin.clone().set("prevResult", previous.clone()).run("CHECK");
        check(&result).nothing();
        let mut other = result.clone();
        other["ips"][0]["address"] = json!("10.88.0.3/16");
        check(&other).error(102, "another address");
        let mut other = result.clone();
        other["interfaces"][0]["mac"] = json!("02:00:00:00:00:01");
        check(&other).error(102, "another MAC address");
        let mut more = result.clone();
        more["interfaces"].as_array_mut().unwrap().insert(0, json!({"name": "eth0"}));
        more["ips"][0]["interface"] = json!(1);
        check(&more).nothing();
        check(&json!({})).error(7, "no interface eth0");
        plugin.run("CHECK").error(7, "prevResult is missing");
        fake.switch.detach("sandbox", "eth0").unwrap();
        check(&result).error(3, "no attachment");
    }
}

#[test]
fn a_gc_detaches_what_this_configuration_made_and_nobody_knows() {
    let fake = Fake::start();
    for container in ["a", "b", "c"] {
        fake.plugin().container(container).run("ADD").result();
    }
    fake.plugin().container("of-another").set("name", json!("other")).run("ADD").result();
    fake.switch.attach("by-the-shim", "eth0", &AttachmentSpec::default()).unwrap();
    let valid =
        json!([{"containerID": "b", "ifname": "eth0"}, {"containerID": "c", "ifname": "net1"}]);
    fake.plugin().set("cni.dev/valid-attachments", valid).run("GC").nothing();
    let owners = fake.switch.list_attachments(None).attachments.into_iter().map(|a| a.owner);
    assert_eq!(owners.collect::<Vec<_>>(), ["b", "of-another", "by-the-shim"]);
    fake.plugin().run("GC").error(7, "cni.dev/valid-attachments is missing");
}

#[test]
fn status_says_whether_a_pod_could_be_added() {
    let fake = Fake::start();
    fake.plugin().run("STATUS").nothing();
    fake.plugin().set("network", json!("none")).run("STATUS").error(50, "no network none");
    fake.switch.ail("PMD 0 made no progress for 10 s");
    fake.plugin().run("STATUS").error(51, "PMD 0 made no progress");
    let full = Fake::with_ranges(&["10.0.0.0/30"]);
    full.plugin().run("STATUS").nothing();
    full.plugin().run("ADD").result();
    full.plugin().run("STATUS").error(50, "no free address");
}

#[test]
fn versions_are_told_to_whoever_asks() {
    let fake = Fake::start();
    let told = fake.plugin().version("0.3.1").run("VERSION").result();
    assert_eq!(told, json!({"cniVersion": "0.3.1", "supportedVersions": VERSIONS}));
    let old = fake.plugin().version("0.2.0").run("VERSION").result();
    assert_eq!(old["supportedVersions"], json!(VERSIONS));
    assert_eq!(fake.plugin().stdin("").run("VERSION").result()["cniVersion"], "1.1.0");
}

#[test]
fn versions_and_commands_that_do_not_go_together_are_refused() {
    let fake = Fake::start();
    for (version, command) in [
        ("0.3.0", "ADD"),
        ("2.0.0", "ADD"),
        ("", "DEL"),
        ("0.3.1", "CHECK"),
        ("1.0.0", "GC"),
        ("1.0.0", "STATUS"),
    ] {
        let error = fake.plugin().version(version).run(command).error(1, "");
        let answered_in = if VERSIONS.contains(&version) { version } else { "1.1.0" };
        assert_eq!(error["cniVersion"], answered_in, "{version} {command}");
    }
    let without = json!({"name": "slipway", "type": "slipway-cni", "socket": fake.socket});
    let without = without.to_string();
    fake.plugin().stdin(&without).run("ADD").error(1, "cniVersion is missing");
}

#[test]
fn an_environment_that_makes_no_sense_is_refused_by_name() {
    let fake = Fake::start();
    let plugin = fake.plugin();
    for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
        plugin.clone().unset(name).run("ADD").error(4, &format!("{name} is not set"));
    }
    plugin.clone().unset("CNI_NETNS").run("DEL").nothing();
    plugin.run("").error(4, "CNI_COMMAND is not set");
    plugin.run("ADDITION").error(4, "CNI_COMMAND");
    for (name, value) in [
        ("CNI_CONTAINERID", "../../etc"),
        ("CNI_IFNAME", "eth0/../x"),
        ("CNI_NETNS", "relative"),
        ("CNI_ARGS", "Colour=red"),
        ("CNI_ARGS", "IP=everywhere"),
    ] {
        plugin.clone().env(name, value).run("ADD").error(4, name);
    }
    assert!(fake.switch.list_attachments(None).attachments.is_empty());
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused_by_its_key() {
    let fake = Fake::start();
    for text in ["", "{", "[]", "null", "\"a\"", "{\"cniVersion\":\"1.0.0\"} x"] {
        fake.plugin().stdin(text).run("ADD").error(6, "no JSON object");
    }
    for (key, value, part) in [
        ("name", json!("../x"), "name = \"../x\""),
        ("name", json!(7), "name cannot be used"),
        ("cniVersion", json!(1), "cniVersion = 1"),
        ("socket", json!("slipwayd.sock"), "no absolute path"),
        ("mtu", json!(70_000), "mtu cannot be used"),
        ("mtu", json!(1501), "68 to 1500"),
        ("queuePairs", json!(0), "1 to 128 queue pairs"),
        ("pmds", json!(0), "pmds cannot be used"),
        ("pmds", json!([0, 0]), "each is on one PMD"),
        ("network", json!("none"), "no network of this name"),
        ("mut", json!(1500), "a key \"mut\""),
        ("ipam", json!({"type": "host-local"}), "no IPAM plugin"),
        ("runtimeConfig", json!({"ips": ["here"]}), "\"here\" is no address"),
        ("runtimeConfig", json!({"ips": ["10.1.0.2"]}), "its ranges are 10.88.0.0/16"),
        ("runtimeConfig", json!({"portMappings": [{}]}), "maps no ports"),
        ("runtimeConfig", json!({"bandwidth": {"ingressRate": 1}}), "limits no bandwidth"),
        ("prevResult", json!({}), "cannot be chained"),
    ] {
        fake.plugin().set(key, value).run("ADD").error(7, part);
    }
    assert!(fake.switch.list_attachments(None).attachments.is_empty());
}

#[test]
fn what_is_too_long_is_refused_and_what_is_not_is_judged() {
    let fake = Fake::start();
    let padded = |length: usize| fake.plugin().set("args", json!("x".repeat(length)));
    padded(1_000_000).run("ADD").result();
    padded(1 << 20).run("ADD").error(7, "more than 1048576 bytes");
    // Many small values, which take more memory than they have letters.
    let small = json!(vec![json!({}); 300_000]);
    fake.plugin().set("cni.dev/valid-attachments", small).run("GC").error(7, "valid-attachments");
    let with_arguments = |length: usize| {
        let arguments = format!("IgnoreUnknown=1;Colour={}", "x".repeat(length));
        fake.plugin().container("other").env("CNI_ARGS", &arguments).run("ADD")
    };
    with_arguments(30_000).result();
    with_arguments(40_000).error(4, "CNI_* has more than");
}

#[test]
fn a_configuration_that_cannot_be_read_is_told() {
    let fake = Fake::start();
    let folder = tempfile::tempdir().unwrap();
    let output = fake.plugin().reading(std::fs::File::open(folder.path()).unwrap(), "ADD");
    output.error(5, "Failed to read the configuration");
}

#[test]
fn what_engines_leave_in_a_configuration_is_no_mistake() {
    let fake = Fake::start();
    let plugin = fake
        .plugin()
        .set("capabilities", json!({"mac": true}))
        .set("args", json!({"cni": {}}))
        .set("disableCheck", json!(true))
        .set("cni.dev/attachments", json!([]))
        .set("runtimeConfig", json!({"bandwidth": {}, "portMappings": []}));
    let previous = plugin.run("ADD").result();
    plugin.set("prevResult", previous).run("DEL").nothing();
}

#[test]
fn a_network_without_addresses_left_is_told_by_name_and_numbers() {
    let fake = Fake::with_ranges(&["10.0.0.0/30"]);
    fake.plugin().run("ADD").result();
    let error = fake.plugin().container("second").run("ADD").error(101, "no free address");
    assert!(error["msg"].as_str().unwrap().contains("1 of the 1 of 10.0.0.0/30"), "{error}");
    assert!(error["details"].as_str().unwrap().contains("[[networks]]"), "{error}");
}

#[test]
fn a_switch_that_is_away_is_worth_another_try() {
    let folder = tempfile::tempdir().unwrap();
    let nobody = Plugin::of(&folder.path().join("none.sock"));
    for command in ["ADD", "DEL", "CHECK", "GC"] {
        let plugin = nobody.clone().set("cni.dev/valid-attachments", json!([]));
        let plugin = if command == "CHECK" { plugin.set("prevResult", json!({})) } else { plugin };
        let error = plugin.run(command).error(11, "is slipwayd running");
        assert!(error["msg"].as_str().unwrap().contains("none.sock"), "{error}");
    }
    nobody.run("STATUS").error(51, "is slipwayd running");
    nobody.run("VERSION").result();
}

#[test]
fn both_families_are_answered_with_their_gateways() {
    let fake = Fake::with_ranges(&["10.0.0.0/24", "fd00::/64"]);
    let result = fake.plugin().version("0.4.0").run("ADD").result();
    assert_eq!(
        result["ips"],
        json!([
            {"version": "4", "address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 0},
            {"version": "6", "address": "fd00::2/64", "gateway": "fd00::1", "interface": 0},
        ])
    );
    assert_eq!(result["routes"][1], json!({"dst": "::/0", "gw": "fd00::1"}));
}

#[test]
fn the_configuration_in_configs_is_one_that_the_plugin_takes() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/10-slipway.conflist");
    let list: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let fake = Fake::start();
    let mut plugin = fake.plugin();
    // As libcni makes one of a list.
    for key in ["cniVersion", "name"] {
        plugin = plugin.set(key, list[key].clone());
    }
    for (key, value) in list["plugins"][0].as_object().unwrap() {
        let is_place = key == "socket";
        let value = if is_place { json!(fake.socket) } else { value.clone() };
        plugin = plugin.set(key, value);
    }
    assert_eq!(plugin.run("ADD").result()["cniVersion"], list["cniVersion"]);
    assert_eq!(list["plugins"][0]["socket"], slipway_api::DEFAULT_SOCKET);
}

#[test]
fn the_plugin_is_confined_before_it_reads_anything() {
    let fake = Fake::start();
    let mut waiting = fake.plugin().start("ADD");
    let status = format!("/proc/{}/status", waiting.id());
    // It waits for its configuration, which does not come: whatever it did, it did before.
    let is_confined = || {
        let status = std::fs::read_to_string(&status).unwrap();
        status.lines().any(|line| line == "Seccomp:\t2")
    };
    for _ in 0..20_000 {
        if is_confined() || waiting.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let confined = is_confined();
    waiting.kill().unwrap();
    waiting.wait().unwrap();
    assert!(confined);
}
