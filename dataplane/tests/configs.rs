//! Every file in `configs/` that this package reads: it loads, and it tells the truth.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use dataplane::config::Config;
use serde_json::Value;

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs").join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(example(name)).expect("the example exists")
}

fn check_config(file: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_slipwayd"))
        .arg("--check-config")
        .arg(file)
        .output()
        .expect("slipwayd runs")
}

#[test]
fn the_example_is_the_defaults() {
    let config = Config::load(&example("slipwayd.toml")).expect("loads");
    assert_eq!(config, Config::default());
}

/// (section, key, commented out, line above) of the example.
fn keys_of(text: &str) -> Vec<(String, String, bool, String)> {
    let mut section = String::new();
    let mut keys = Vec::new();
    let mut above = "";
    for line in text.lines() {
        let bare = line.trim_start_matches("# ");
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_matches(['[', ']']).to_owned();
        } else if let Some((key, _)) = bare.split_once(" = ")
            && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
        {
            keys.push((section.clone(), key.to_owned(), line.starts_with('#'), above.to_owned()));
        }
        above = line;
    }
    keys
}

#[test]
fn every_key_stands_in_the_example_with_a_comment_and_no_other_does() {
    let found = keys_of(&read("slipwayd.toml"));
    let mut expected = Vec::new();
    let defaults = serde_json::to_value(Config::default()).expect("serialises");
    for (section, keys) in defaults.as_object().expect("sections") {
        // A section that may be repeated stands there once.
        let keys = keys.as_array().map_or(keys, |sections| &sections[0]);
        for (key, default) in keys.as_object().expect("keys") {
            expected.push((section.clone(), key.clone(), *default == Value::Null));
        }
    }
    let mut named: Vec<_> =
        found.iter().map(|(section, key, off, _)| (section.clone(), key.clone(), *off)).collect();
    named.sort();
    expected.sort();
    assert_eq!(named, expected, "a key without default is commented out, all others are set");
    for (section, key, _, above) in found {
        assert!(above.starts_with("# "), "{section}.{key} is not explained");
    }
}

#[test]
fn a_key_that_is_commented_out_can_be_used_as_it_stands() {
    let text = read("slipwayd.toml");
    for (section, key, _, _) in keys_of(&text).into_iter().filter(|(_, _, is_off, _)| *is_off) {
        let on = text.replace(&format!("\n# {key} = "), &format!("\n{key} = "));
        assert_ne!(on, text);
        let config = Config::parse(&on, Path::new("example")).expect("loads");
        assert_ne!(config, Config::default(), "{section}.{key} does nothing");
    }
}

#[test]
fn check_config_says_good_or_which_line_is_wrong() {
    let good = check_config(&example("slipwayd.toml"));
    assert!(good.status.success(), "{good:?}");
    let folder = tempfile::tempdir().expect("tempdir");
    let file = folder.path().join("bad.toml");
    fs::write(&file, "[pmd]\ncore = [1]\n").expect("writes");
    let bad = check_config(&file);
    assert_eq!(bad.status.code(), Some(1));
    let told = String::from_utf8(bad.stderr).expect("text");
    assert!(
        told.contains("bad.toml:2: there is no key `pmd.core`; did you mean `cores`?"),
        "{told}"
    );
}

#[test]
fn the_drop_ins_open_what_the_unit_closes() {
    opens("slipwayd-gateway.conf", &[]);
    opens("slipwayd-netns.conf", &["RestrictNamespaces"]);
}

/// The drop-in opens what a tap takes, and `more`.
fn opens(drop_in: &str, more: &[&str]) {
    let unit = read("slipwayd.service");
    let is_set = |key: &str| unit.lines().any(|line| line.starts_with(&format!("{key}=")));
    let drop_in = read(drop_in);
    let settings: Vec<_> = drop_in.lines().filter_map(|line| line.split_once('=')).collect();
    let settings: Vec<_> = settings.into_iter().filter(|(key, _)| !key.starts_with('#')).collect();
    let of_taps = [
        "CapabilityBoundingSet",
        "RestrictAddressFamilies",
        "PrivateDevices",
        "ProtectKernelTunables",
    ];
    for key in of_taps.iter().chain(more) {
        assert!(is_set(key), "{key} is not closed any more: the drop-in need not open it");
        assert!(settings.iter().any(|(set, _)| set == key), "{key} stays closed");
    }
    let device = settings.iter().find(|(key, _)| *key == "DeviceAllow").expect("one device");
    assert_eq!(device.1, format!("{} rw", slipway_api::TUN_DEVICE));
}

#[test]
fn the_systemd_unit_gives_slipwayd_options_that_it_takes() {
    let help = Command::new(env!("CARGO_BIN_EXE_slipwayd")).arg("--help").output().expect("runs");
    let help = String::from_utf8(help.stdout).expect("text");
    let unit = read("slipwayd.service");
    let starts: Vec<_> = unit.lines().filter(|line| line.starts_with("ExecStart")).collect();
    assert_eq!(starts.len(), 2);
    for line in starts {
        let (_, command) = line.split_once('=').expect("has a value");
        let mut words = command.split(' ');
        assert_eq!(words.next(), Some("/usr/bin/slipwayd"));
        for option in words.filter(|word| word.starts_with('-')) {
            assert!(help.contains(&format!("{option} <")), "slipwayd takes no {option}");
        }
    }
    let run_dir = Config::default().ports.run_dir;
    assert!(
        unit.contains(&format!(
            "RuntimeDirectory={}",
            run_dir.file_name().expect("named").display()
        ))
    );
}
