//! The table against the parser, and the document against the table.

use std::{collections::BTreeMap, fs, path::Path};

use kata_config::{
    Dialect, Entry, Host, KataConfig, Standing, apply_annotations_on, markdown, parse, table,
};

const HOST: Host = Host { cpus: 8, memory_mib: 16_384 };

fn file_text(entry: &Entry, table: &str, value: &str) -> String {
    let title = table.replace('*', "qemu");
    // A contradiction is another test's.
    let beside =
        if entry.name == "disable_new_netns" { "internetworking_model = \"none\"\n" } else { "" };
    format!("[{title}]\n{beside}{} = {value}\n", entry.name)
}

/// Values of every type, of which a key takes at least one that is not its default.
const VALUES: &[&str] = &[
    "true",
    "false",
    "3",
    "512",
    "0.25",
    "\"/x/y\"",
    "\"some words\"",
    "[\"x\"]",
    "[\"/x\"]",
    "\"debug\"",
    "\"none\"",
    "\"xfs\"",
    "\"microvm\"",
    "\"auto\"",
    "\"virtio-scsi\"",
    "\"serial\"",
    "\"tcg\"",
    "\"clh\"",
    "\"qemu\"",
];

fn read(text: &str) -> Result<kata_config::Loaded, kata_config::ConfigError> {
    parse(text, Path::new("x.toml"), HOST)
}

#[test]
fn every_key_does_what_the_table_says() {
    for entry in table() {
        let Some(place) = entry.table else { continue };
        let texts = || VALUES.iter().map(|value| file_text(&entry, place, value));
        match entry.standing {
            Standing::Honoured if entry.name == "hypervisor_name" => {
                let text =
                    "[hypervisor.clh]\n[hypervisor.qemu]\n[runtime]\nhypervisor_name = \"clh\"";
                assert_ne!(read(text).expect(text).config, read("").expect("nothing").config);
            }
            Standing::Honoured => {
                let plain =
                    read(&file_text(&entry, place, "").replace(&format!("{} = ", entry.name), ""))
                        .expect("without the key")
                        .config;
                let changes = texts().any(|text| {
                    read(&text).is_ok_and(|loaded| {
                        assert_eq!((loaded.ignored, loaded.warnings), (vec![], vec![]), "{text}");
                        loaded.config != plain
                    })
                });
                assert!(changes, "{entry:?} has no value that changes anything");
                assert!(texts().any(|text| read(&text).is_err()), "{entry:?} takes everything");
            }
            Standing::Ignored => {
                let plain = read(&format!("[{}]\n", place.replace('*', "qemu"))).expect("empty");
                for text in texts() {
                    let loaded = read(&text).expect(&text);
                    assert_eq!(loaded.config, plain.config, "{text}");
                    assert_eq!((loaded.ignored.len(), loaded.warnings.len()), (1, 0), "{text}");
                }
            }
            Standing::Refused => {
                let told = read(&file_text(&entry, place, "\"something\"")).expect_err(&entry.name);
                let told = told.to_string();
                assert!(told.starts_with("x.toml:2: "), "{told}");
                assert!(told.contains(&entry.name) && told.contains(&entry.note), "{told}");
                for fine in &entry.fine {
                    let accepts = |value: &str| read(&file_text(&entry, place, value)).is_ok();
                    assert!(accepts(fine) || accepts(&format!("{fine:?}")), "{entry:?}");
                }
                if entry.name != "disable_guest_selinux" {
                    for off in ["false", "0", "\"\"", "[]"] {
                        let text = file_text(&entry, place, off);
                        assert!(read(&text).is_ok(), "{text}");
                    }
                }
            }
        }
    }
}

/// Everything is enabled and allowed, so that only the annotation's own standing is seen.
fn lenient() -> KataConfig {
    let text = "[hypervisor.qemu]\nenable_annotations = [\".*\"]\nvalid_hypervisor_paths = [\"/x/*\"]\n\
                valid_virtio_fs_daemon_paths = [\"/x/*\"]\n[slipway]\nvalid_networks = [\"*\"]\n";
    read(text).expect(text).config
}

#[test]
fn every_annotation_does_what_the_table_says() {
    let apply = |entry: &Entry, value: &str| {
        let mut config = lenient();
        let mut annotations = BTreeMap::from([(entry.name.clone(), value.to_owned())]);
        if entry.name.ends_with(".disable_new_netns") {
            let name = "io.katacontainers.config.runtime.internetworking_model";
            annotations.insert(name.into(), "none".into());
            config.runtime.internetworking_model = kata_config::InternetworkingModel::None;
        }
        let before = config.clone();
        let outcome = apply_annotations_on(&mut config, &annotations, HOST);
        if outcome.is_err() {
            assert_eq!(config, before, "{entry:?}: an error changed something");
        }
        outcome.map(|warnings| (config != before, warnings))
    };
    let values = || VALUES.iter().map(|value| value.trim_matches('"'));
    let mut count = 0;
    for entry in table().iter().filter(|entry| entry.table.is_none()) {
        count += 1;
        match entry.standing {
            Standing::Honoured => {
                let changes = values().any(|value| apply(entry, value).is_ok_and(|done| done.0));
                assert!(changes, "{entry:?} has no value that changes anything");
            }
            Standing::Ignored => {
                for value in values() {
                    let (changed, warnings) = apply(entry, value).expect(value);
                    assert!(!changed && warnings.is_empty(), "{entry:?} {value}");
                }
            }
            Standing::Refused => {
                let told = apply(entry, "something").expect_err(&entry.name).to_string();
                assert!(told.contains(&entry.name) && told.contains("\"something\""), "{told}");
                assert!(apply(entry, "").is_ok(), "{entry:?}");
                assert!(entry.fine.iter().all(|fine| apply(entry, fine).is_ok()), "{entry:?}");
            }
        }
    }
    assert!(count > 50, "{count} annotations");
}

#[test]
fn names_are_unique_and_in_their_dialect() {
    let mut seen = BTreeMap::new();
    for entry in table() {
        let earlier = seen.insert((entry.table, entry.name.clone()), entry.clone());
        assert_eq!(earlier, None, "twice");
        assert!(!entry.note.is_empty(), "{entry:?}");
        let is_ours = entry.table == Some("slipway") || entry.name.starts_with("io.slipway.");
        assert_eq!(is_ours, entry.dialect == Dialect::Slipway, "{entry:?}");
    }
}

#[test]
fn the_document_is_what_the_table_says() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/kata-compat.md");
    let now = markdown();
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&file, &now).expect("writes the document");
    }
    let written = fs::read_to_string(&file).unwrap_or_default();
    // Not `assert_eq`, which would print both.
    let at = written.lines().zip(now.lines()).position(|(written, now)| written != now);
    assert!(
        written == now,
        "docs/kata-compat.md differs from the table (line {:?}): run this test with UPDATE=1",
        at.map(|at| at + 1)
    );
}
