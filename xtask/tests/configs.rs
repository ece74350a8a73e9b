//! The files in `configs/` that belong to other programs: each is as that program reads it.
//!
//! What slipway's own programs read is tested beside them. containerd and systemd are asked
//! themselves where they are installed: `cargo xtask test` sees to it for containerd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Map, Value};
use toml::Table;

/// The plugin that serves Kubernetes, as containerd calls it in version 2 and in version 3 of its
/// configuration.
const CRI_2: &str = "io.containerd.grpc.v1.cri";
const CRI_3: &str = "io.containerd.cri.v1.runtime";

/// What Debian's containerd brings as /etc/containerd/config.toml, in short.
const DEBIAN: &str = r#"version = 2
[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
      conf_dir = "/etc/cni/net.d"
"#;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs").join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(file(name)).unwrap()
}

fn runtimes(config: &Table, plugin: &str) -> Table {
    config["plugins"][plugin]["containerd"]["runtimes"].as_table().unwrap().clone()
}

/// `containerd config dump` of a configuration: what would hold with it.
fn dump(config: &str) -> Table {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    fs::write(&path, config).unwrap();
    let output =
        Command::new("containerd").arg("--config").arg(&path).args(["config", "dump"]).output();
    let output = output.expect("containerd is installed: cargo xtask deps pods");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).unwrap().parse().unwrap()
}

#[test]
fn every_version_of_containerd_is_told_the_same() {
    let of = |name: &str, plugin| runtimes(&read(name).parse().unwrap(), plugin)["slipway"].clone();
    let slipway = of("containerd-1.6.toml", CRI_2);
    assert_eq!(of("containerd-1.7.toml", CRI_2), slipway);
    assert_eq!(of("containerd-2.toml", CRI_3), slipway);
    assert_eq!(slipway["runtime_type"].as_str(), Some("io.containerd.slipway.v2"));
    assert_eq!(slipway["privileged_without_host_devices"].as_bool(), Some(true));
    for key in ["pod_annotations", "container_annotations"] {
        let globs: Vec<_> =
            slipway[key].as_array().unwrap().iter().map(|glob| glob.as_str().unwrap()).collect();
        assert_eq!(globs, ["io.katacontainers.*", "io.slipway.*"], "{key}");
    }
}

#[test]
fn only_a_drop_in_has_a_version_of_its_own() {
    let drop_in: Table = read("containerd-2.toml").parse().unwrap();
    assert_eq!(drop_in["version"].as_integer(), Some(3));
    assert!(!runtimes(&drop_in, CRI_3).contains_key("runc"), "containerd 2.x keeps its own");
    for name in ["containerd-1.6.toml", "containerd-1.7.toml"] {
        // After other tables a key would belong to the last of them.
        let keys: Vec<_> = read(name).parse::<Table>().unwrap().keys().cloned().collect();
        assert_eq!(keys, ["plugins"], "{name}");
    }
}

#[test]
fn the_sandbox_api_of_containerd_2_is_one_comment_away() {
    let text = read("containerd-2.toml").replace("#sandboxer = ", "sandboxer = ");
    let slipway = runtimes(&text.parse().unwrap(), CRI_3)["slipway"].clone();
    assert_eq!(slipway["sandboxer"].as_str(), Some("shim"));
}

#[test]
fn debian_s_containerd_takes_it_and_keeps_what_it_has() {
    for name in ["containerd-1.6.toml", "containerd-1.7.toml"] {
        let before = dump(DEBIAN);
        // 1.7 has keys that 1.6 does not know, but they are comments.
        let after = dump(&(DEBIAN.to_owned() + &read(name)));
        let wanted = runtimes(&read(name).parse().unwrap(), CRI_2);
        let runtimes = runtimes(&after, CRI_2);
        for (key, value) in wanted["slipway"].as_table().unwrap() {
            assert_eq!(runtimes["slipway"].get(key), Some(value), "{name}: {key}");
        }
        // All else is as it was.
        let without = |config: &Table| {
            let mut config = config.clone();
            let cri = &mut config["plugins"][CRI_2];
            let runtimes = cri["containerd"]["runtimes"].as_table_mut().unwrap();
            runtimes.remove("slipway");
            // By default all options of runc are spelt out, and each of them says nothing.
            for (_, value) in std::mem::take(runtimes["runc"]["options"].as_table_mut().unwrap()) {
                assert!(["false", "0", "\"\""].contains(&value.to_string().as_str()), "{value}");
            }
            // containerd says where it read the configuration.
            config.remove("imports");
            config
        };
        assert_eq!(without(&after), without(&before), "{name}");
    }
}

#[test]
fn without_its_runc_the_default_runtime_would_be_gone() {
    // If this ever fails, the files need no runc any more.
    let text = read("containerd-1.6.toml");
    let slipway = text.find("# What RuntimeClasses name").unwrap();
    let runtimes = runtimes(&dump(&(DEBIAN.to_owned() + &text[slipway..])), CRI_2);
    assert_eq!(runtimes.keys().collect::<Vec<_>>(), ["slipway"]);
}

#[test]
fn as_an_import_of_containerd_1_6_it_would_undo_other_settings() {
    // If this ever fails, the files can be drop-ins.
    let import = format!("imports = [\"{}\"]\n", file("containerd-1.6.toml").display());
    let config = dump(&(import + DEBIAN));
    let bin_dir = config["plugins"][CRI_2]["cni"]["bin_dir"].as_str().unwrap();
    assert_ne!(bin_dir, "/usr/lib/cni");
}

#[test]
fn the_runtime_class_leads_to_the_runtime_of_containerd() {
    let class = yaml(&read("runtimeclass.yaml"));
    assert_eq!(class["apiVersion"], "node.k8s.io/v1");
    assert_eq!(class["kind"], "RuntimeClass");
    let handler = class["handler"].as_str().unwrap();
    assert!(runtimes(&read("containerd-2.toml").parse().unwrap(), CRI_3).contains_key(handler));

    // The guest's own needs are in it.
    let config: Table = read("configuration.toml").parse().unwrap();
    let overhead_mib = config["hypervisor"]["qemu"]["overhead_memory"].as_integer().unwrap();
    let fixed = &class["overhead"]["podFixed"];
    let memory = fixed["memory"].as_str().unwrap().strip_suffix("Mi").unwrap();
    assert!(memory.parse::<i64>().unwrap() > overhead_mib, "{memory} MiB");
    let overhead_vcpus = config["hypervisor"]["qemu"]["overhead_vcpus"].as_float().unwrap();
    let cpu = fixed["cpu"].as_str().unwrap().strip_suffix('m').unwrap();
    assert!(cpu.parse::<f64>().unwrap() / 1000.0 >= overhead_vcpus, "{cpu} m");

    let pod = yaml(&read("pod.yaml"));
    assert_eq!(pod["kind"], "Pod");
    assert_eq!(pod["spec"]["runtimeClassName"], class["metadata"]["name"]);
    assert!(pod["spec"]["containers"][0]["image"].is_string(), "{pod}");
    for key in pod["metadata"]["annotations"].as_object().unwrap().keys() {
        let name = key.strip_prefix("io.katacontainers.config.hypervisor.").expect(key);
        let allowed = config["hypervisor"]["qemu"]["enable_annotations"].as_array().unwrap();
        assert!(allowed.contains(&format!("^{name}$").into()), "{key}");
    }
}

#[test]
fn systemd_takes_the_unit_alone_and_with_the_gateway_s_drop_in() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        println!("not tested: there is no systemd-analyze");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // systemd looks at whether the program is there; ours may not be installed.
    let unit = read("slipwayd.service").replace("/usr/bin/slipwayd", "/bin/true");
    let said_of = |unit: &str| {
        let path = folder.path().join("slipwayd.service");
        fs::write(&path, unit).unwrap();
        let output = Command::new("systemd-analyze")
            .args(["verify", "--man=no"])
            .arg(&path)
            .env("SYSTEMD_UNIT_PATH", format!("{}:", folder.path().display()))
            .output()
            .unwrap();
        // A key that it does not know is a warning to it.
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert_eq!(said_of(&unit), "");
    let drop_ins = folder.path().join("slipwayd.service.d");
    fs::create_dir(&drop_ins).unwrap();
    for (name, example) in
        [("gateway.conf", "slipwayd-gateway.conf"), ("netns.conf", "slipwayd-netns.conf")]
    {
        fs::write(drop_ins.join(name), read(example)).unwrap();
        assert_eq!(said_of(&unit), "");
    }
    // It would have said so.
    let wrong = said_of(&unit.replace("ProtectHome=", "ProtectHouse="));
    assert!(wrong.contains("ProtectHouse"), "{wrong}");
}

/// Reads the part of YAML that our files use: maps, lists of maps, and words, plain, quoted or a list
/// in brackets. Anything else panics with its line.
fn yaml(text: &str) -> Value {
    assert!(!text.contains('\t'), "YAML has no tabs");
    let mut lines = Vec::new();
    for line in text.lines() {
        let words = line.trim_start();
        let depth = line.len() - words.len();
        match words.strip_prefix("- ") {
            _ if words.is_empty() || words.starts_with('#') => {}
            // The first pair of an item stands behind its dash.
            Some(pair) => lines.extend([(depth, "-"), (depth + 2, pair)]),
            None => lines.push((depth, words)),
        }
    }
    let mut at = 0;
    let value = block(&lines, &mut at);
    assert_eq!(at, lines.len(), "{:?} is indented as nothing before it", lines.get(at));
    value
}

fn block(lines: &[(usize, &str)], at: &mut usize) -> Value {
    let (indent, first) = lines[*at];
    if first == "-" {
        let mut list = Vec::new();
        while lines.get(*at) == Some(&(indent, "-")) {
            *at += 1;
            list.push(block(lines, at));
        }
        return list.into();
    }
    let mut map = Map::new();
    while let Some(&(_, line)) = lines.get(*at).filter(|line| line.0 == indent && line.1 != "-") {
        *at += 1;
        let (key, value) = match (line.split_once(": "), line.strip_suffix(':')) {
            (Some((key, value)), _) => (key, words(value)),
            (None, Some(key)) => {
                let next = lines.get(*at).filter(|next| next.0 > indent || *next == &(indent, "-"));
                assert!(next.is_some(), "nothing below '{line}'");
                (key, block(lines, at))
            }
            (None, None) => panic!("'{line}' is no pair"),
        };
        assert!(map.insert(key.to_owned(), value).is_none(), "{key} stands twice");
    }
    map.into()
}

fn words(text: &str) -> Value {
    if let Some(list) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return list.split(", ").map(words).collect();
    }
    text.trim_matches('"').into()
}

#[test]
fn our_reader_of_yaml_sees_what_is_wrong() {
    for bad in ["a: 1\n  b: 2\n", "a:\nb: 1\n", "a 1\n", "a: 1\na: 2\n", "a:\n\t- b: 1\n"] {
        assert!(std::panic::catch_unwind(|| yaml(bad)).is_err(), "{bad}");
    }
    let read = yaml("# c\na:\n- b: [x, \"y z\"]\n  c: 1\n- b: 2\nd:\n  e: f\n");
    let expected =
        serde_json::json!({"a": [{"b": ["x", "y z"], "c": "1"}, {"b": "2"}], "d": {"e": "f"}});
    assert_eq!(read, expected);
}
