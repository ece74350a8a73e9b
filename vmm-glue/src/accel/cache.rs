//! What the last trial of KVM showed, in a JSON file.
//!
//! # Bounds
//! One outcome. A file that is missing, too large, unreadable or made for something else means
//! another trial, never an error. It is written aside and renamed, so two runs at the same time leave
//! one of both outcomes.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{AccelError, Chosen, Probe};
use crate::qemu::Qemu;

const FILE_NAME: &str = "accel-probe.json";
const MAX_FILE_BYTES: u64 = 64 << 10;

/// What an outcome depends on.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Key {
    boot_id: String,
    qemu: String,
    machine: String,
    kernel: Identity,
    initrd: Option<Identity>,
    cmdline: String,
    ready: Option<String>,
    deadline_ms: u128,
}

/// A file, without reading it: another content has another time of change or another inode.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {
    path: PathBuf,
    inode: u64,
    size_bytes: u64,
    modified_s: i64,
    modified_ns: i64,
}

impl Identity {
    fn of(path: &Path) -> Result<Self, AccelError> {
        let metadata = fs::metadata(path)
            .map_err(|source| AccelError::Image { path: path.to_owned(), source })?;
        Ok(Self {
            path: path.to_owned(),
            inode: metadata.ino(),
            size_bytes: metadata.len(),
            modified_s: metadata.mtime(),
            modified_ns: metadata.mtime_nsec(),
        })
    }
}

impl Key {
    pub fn of(qemu: &Qemu, probe: &Probe) -> Result<Self, AccelError> {
        // Without a boot id (no /proc) all boots look the same; the remedy is in the error's text.
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Ok(Self {
            boot_id: boot_id.trim().to_owned(),
            qemu: format!("{} {}", qemu.program().display(), qemu.version()),
            machine: probe.machine.to_string(),
            kernel: Identity::of(&probe.kernel)?,
            initrd: probe.initrd.as_deref().map(Identity::of).transpose()?,
            cmdline: probe.cmdline.clone(),
            ready: probe.ready.clone(),
            deadline_ms: probe.deadline.as_millis(),
        })
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    key: Key,
    chosen: Chosen,
}

#[derive(Debug)]
pub(super) struct Cache(PathBuf);

impl Cache {
    pub fn in_dir(dir: &Path) -> Self {
        Self(dir.join(FILE_NAME))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The outcome for exactly `key`.
    pub fn lookup(&self, key: &Key) -> Option<Chosen> {
        let mut text = Vec::new();
        let file = match File::open(&self.0) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                self.warn(&error);
                return None;
            }
        };
        // A file that is cut here is no JSON.
        if let Err(error) = file.take(MAX_FILE_BYTES).read_to_end(&mut text) {
            self.warn(&error);
            return None;
        }
        match serde_json::from_slice::<Entry>(&text) {
            Ok(entry) => (entry.key == *key).then_some(entry.chosen),
            Err(error) => {
                self.warn(&error);
                None
            }
        }
    }

    /// Remembers an outcome. If that fails, the next run tries again.
    pub fn store(&self, key: Key, chosen: &Chosen) {
        let aside = self.0.with_extension(format!("new-{}", std::process::id()));
        let entry = serde_json::json!({ "key": key, "chosen": chosen });
        let written = fs::write(&aside, format!("{entry:#}\n"));
        if let Err(error) = written.and_then(|()| fs::rename(&aside, &self.0)) {
            self.warn(&error);
            // Only there if the renaming failed.
            let _ = fs::remove_file(&aside);
        }
    }

    fn warn(&self, error: &dyn std::error::Error) {
        tracing::warn!(path = %self.0.display(), %error, "KVM's last trial is not remembered");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accel::Accel;

    fn key(deadline_ms: u128) -> Key {
        Key {
            boot_id: "b".into(),
            qemu: "q".into(),
            machine: "q35".into(),
            kernel: Identity::of(Path::new("/proc/self/exe")).unwrap(),
            initrd: None,
            cmdline: String::new(),
            ready: None,
            deadline_ms,
        }
    }

    #[test]
    fn an_outcome_is_found_again_for_the_same_key_only() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::in_dir(dir.path());
        assert_eq!(cache.lookup(&key(1)), None);
        let chosen = Chosen { accel: Accel::Tcg, reason: "silent".into() };
        cache.store(key(1), &chosen);
        assert_eq!(cache.lookup(&key(1)), Some(chosen));
        assert_eq!(cache.lookup(&key(2)), None);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left aside");
    }

    #[test]
    fn a_damaged_file_means_another_trial() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::in_dir(dir.path());
        for text in ["", "{}", "[1]", "{\"key\": 1, \"chosen\": 2}"] {
            fs::write(cache.path(), text).unwrap();
            assert_eq!(cache.lookup(&key(1)), None, "{text:?}");
        }
    }

    #[test]
    fn a_changed_file_is_another_identity() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernel");
        fs::write(&path, "one").unwrap();
        let before = Identity::of(&path).unwrap();
        fs::write(&path, "longer").unwrap();
        assert_ne!(before, Identity::of(&path).unwrap());
        let error = Identity::of(&dir.path().join("none")).unwrap_err();
        assert!(matches!(error, AccelError::Image { .. }), "{error}");
    }
}
