//! Installing onto a node and off it again, in a folder.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use tempfile::TempDir;

use super::build::Built;
use super::build::tests::built;
use super::*;

/// A node in a folder, and what is to be installed.
struct Rig {
    root: TempDir,
    layout: Layout,
    built: Built,
    _programs: TempDir,
}

impl Rig {
    fn new(prefix: &str) -> Self {
        let programs = TempDir::new().unwrap();
        Self {
            root: TempDir::new().unwrap(),
            layout: Layout::new(Path::new(prefix), None, None).unwrap(),
            built: built(programs.path()),
            _programs: programs,
        }
    }

    fn node(&self) -> Node {
        Node::open(self.root.path(), &self.layout).unwrap()
    }

    fn install(&self) {
        install(self.node(), &self.layout, &self.built).unwrap();
    }

    fn uninstall(&self) -> Vec<(PathBuf, Removed)> {
        self.node().clear().unwrap()
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    /// Everything below the root, folders too.
    fn all(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.root.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path.clone());
                }
                found.push(path);
            }
        }
        found
    }
}

const CONFIG: &str = "etc/slipway/slipwayd.toml";

#[test]
fn what_is_installed_can_be_run_and_read_by_all_and_goes_without_a_trace() {
    let rig = Rig::new("/usr/local");
    fs::create_dir_all(rig.path("etc")).unwrap();
    rig.install();
    let mode = |path: &str| fs::metadata(rig.path(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("usr/local/bin/containerd-shim-slipway-v2"), 0o755);
    assert_eq!(mode("opt/cni/bin/slipway-cni"), 0o755);
    assert_eq!(mode("usr/local/share/slipway/vmlinux"), 0o644);
    assert_eq!(mode("usr/local/share/slipway"), 0o755);
    assert_eq!(rig.text("usr/local/share/slipway/vmlinux"), "vmlinux");
    assert!(rig.text(CONFIG).contains("[pmd]"));
    let removed = rig.uninstall();
    assert!(removed.iter().all(|(_, outcome)| *outcome == Removed::Gone), "{removed:?}");
    // The folder that was there before stays.
    assert_eq!(rig.all(), [rig.path("etc")]);
}

#[test]
fn what_others_have_in_our_folders_stays() {
    let rig = Rig::new("/usr/local");
    rig.install();
    fs::write(rig.path("etc/slipway/mine"), "mine").unwrap();
    fs::write(rig.path("usr/local/bin/slipwayctl"), "another program").unwrap();
    let removed = rig.uninstall();
    let kept: Vec<_> = removed.iter().filter(|(_, outcome)| *outcome == Removed::Kept).collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(kept[0].0, Path::new("/usr/local/bin/slipwayctl"));
    let mut files = rig.all();
    files.retain(|path| path.is_file());
    files.sort();
    assert_eq!(files, [rig.path("etc/slipway/mine"), rig.path("usr/local/bin/slipwayctl")]);
}

#[test]
fn a_configuration_that_was_changed_is_never_overwritten() {
    let rig = Rig::new("/usr");
    rig.install();
    fs::write(rig.path(CONFIG), "[pmd]\ncores = [3]\n").unwrap();
    // Nothing new: nothing is said about it.
    rig.install();
    assert_eq!(rig.text(CONFIG), "[pmd]\ncores = [3]\n");
    assert!(!rig.path("etc/slipway/slipwayd.toml.new").exists());

    // Something new, as if another had been installed before.
    let manifest = rig.path("usr/share/slipway/manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let sum = value["files"]["/etc/slipway/slipwayd.toml"].as_str().unwrap();
    fs::write(&manifest, text.replace(sum, "0")).unwrap();
    rig.install();
    assert_eq!(rig.text(CONFIG), "[pmd]\ncores = [3]\n");
    assert!(rig.text("etc/slipway/slipwayd.toml.new").contains("burst_frames"));

    // It is looked at when there is time.
    rig.install();
    assert!(rig.path("etc/slipway/slipwayd.toml.new").exists());
    let removed = rig.uninstall();
    let is_kept = |(path, outcome): &(PathBuf, Removed)| {
        (*outcome == Removed::Kept).then(|| path.display().to_string())
    };
    let kept: Vec<_> = removed.iter().filter_map(is_kept).collect();
    assert_eq!(kept, ["/etc/slipway/slipwayd.toml"]);
    assert!(!rig.path("etc/slipway/slipwayd.toml.new").exists());
}

#[test]
fn a_configuration_that_was_not_changed_follows_the_version() {
    let rig = Rig::new("/usr");
    rig.install();
    let older = rig.text(CONFIG).replace("level = \"info\"", "level = \"warn\"");
    let sum = |text: &str| {
        use sha2::{Digest as _, Sha256};
        Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let manifest = rig.path("usr/share/slipway/manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace(&sum(&rig.text(CONFIG)), &sum(&older))).unwrap();
    fs::write(rig.path(CONFIG), &older).unwrap();
    rig.install();
    assert!(rig.text(CONFIG).contains("level = \"info\""));
    assert!(!rig.path("etc/slipway/slipwayd.toml.new").exists());
}

#[test]
fn a_configuration_that_was_there_before_stays() {
    let rig = Rig::new("/usr");
    fs::create_dir_all(rig.path("etc/slipway")).unwrap();
    fs::write(rig.path(CONFIG), "# by hand\n").unwrap();
    rig.install();
    assert_eq!(rig.text(CONFIG), "# by hand\n");
    assert!(rig.path("etc/slipway/slipwayd.toml.new").exists());
}

#[test]
fn a_file_that_moved_is_not_left_at_its_old_place() {
    let mut rig = Rig::new("/usr");
    rig.install();
    assert!(rig.path("usr/lib/cni/slipway-cni").exists());
    rig.layout.cni = "/opt/cni/bin".into();
    rig.install();
    assert!(rig.path("opt/cni/bin/slipway-cni").exists());
    assert!(!rig.path("usr/lib/cni/slipway-cni").exists());
}

#[test]
fn a_program_is_replaced_as_a_whole() {
    let rig = Rig::new("/usr");
    rig.install();
    let program = rig.path("usr/bin/slipwayd");
    let running = fs::File::open(&program).unwrap();
    fs::write(rig.built.programs.join("slipwayd"), "a newer one").unwrap();
    rig.install();
    assert_eq!(rig.text("usr/bin/slipwayd"), "a newer one");
    assert!(std::io::read_to_string(running).unwrap().starts_with("#!/bin/sh"));
}

#[test]
fn what_cannot_be_done_is_said_with_what_to_do() {
    let rig = Rig::new("/usr");
    let nothing = uninstall(rig.node(), &rig.layout).unwrap_err().to_string();
    assert!(nothing.contains("manifest.json names no files: give the --prefix"), "{nothing}");
    fs::remove_file(rig.built.programs.join("slipway-cni")).unwrap();
    let missing = install(rig.node(), &rig.layout, &rig.built).unwrap_err().to_string();
    assert!(missing.contains("slipway-cni; install without --no-build"), "{missing}");
    // What was put before that is known.
    assert!(!rig.node().is_empty());
    fs::write(rig.path("usr/share/slipway/manifest.json"), "{").unwrap();
    let damaged = Node::open(rig.root.path(), &rig.layout).unwrap_err().to_string();
    assert!(damaged.contains("manifest.json is damaged"), "{damaged}");
}

#[test]
fn the_next_steps_name_what_is_installed() {
    let rig = Rig::new("/srv/slipway");
    rig.install();
    let steps = next_steps(&rig.layout);
    assert!(steps.contains("systemctl link /srv/slipway/lib/systemd/system/slipwayd.service"));
    for word in steps.split_whitespace().map(|word| word.trim_end_matches([':', '.'])) {
        if word.starts_with("/srv/") && !word.contains('*') {
            assert!(rig.path(&word[1..]).exists(), "{word}");
        }
    }
}
