//! What `delete` must know after a crash, written before each step that needs undoing.
//!
//! Everything of a sandbox lies at places that follow from its id, so the record holds only what
//! does not: the cgroup, processes, and attachments that we made ourselves.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::bundle;
use crate::cgroup::CgroupPath;

/// Where sandboxes keep sockets and their record.
pub const BASE: &str = "/run/slipway/pods";
const FILE: &str = "sandbox.json";

/// What must be undone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The sandbox.
    pub id: String,
    /// Whose it is, see [`Host::engine`](crate::host::Host::engine).
    #[serde(default)]
    pub engine: Option<String>,
    /// The shim that serves it.
    pub shim: Option<Process>,
    /// The VMM and its helpers.
    pub processes: Vec<Process>,
    /// The cgroup we made.
    pub cgroup: Option<CgroupPath>,
    /// The switch that knows the sandbox.
    pub switch: Option<PathBuf>,
    /// Interfaces that we attached, because no CNI plugin did.
    pub own_interfaces: Vec<String>,
}

/// A process that cannot be mistaken for a later one of the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it started, in ticks since the host's boot (proc_pid_stat(5)).
    pub started: u64,
}

impl Process {
    /// The process `pid` as it is now.
    pub fn now(pid: u32) -> Option<Self> {
        Some(Self { pid, started: start_time(pid)? })
    }

    /// Whether it is still that process.
    pub fn is_alive(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }
}

/// Field 22 of `/proc/PID/stat`, counted behind the name, which may hold anything. A zombie has
/// ended.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// The folder of one sandbox.
#[derive(Clone, Debug)]
pub struct PodDir(PathBuf);

impl PodDir {
    /// That of sandbox `id` below `base`; nothing is made yet.
    pub fn of(base: &Path, id: &str) -> Self {
        Self(base.join(id))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Makes the folder, for root alone.
    ///
    /// # Errors
    /// The file system's.
    pub fn create(&self) -> Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0)
            .with_context(|| format!("Failed to make the folder {}", self.0.display()))
    }

    /// Writes the record as a whole.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, record: &Record) -> Result<()> {
        let path = self.0.join(FILE);
        let text = serde_json::to_vec(record).context("Failed to encode the sandbox's record")?;
        bundle::write_whole(&path, &text)
            .with_context(|| format!("Failed to write {}", path.display()))
    }

    /// Reads the record; `None` if there is none.
    ///
    /// # Errors
    /// One that cannot be read, or is none.
    pub fn read(&self) -> Result<Option<Record>> {
        let path = self.0.join(FILE);
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("Failed to read {}", path.display())),
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .with_context(|| format!("{} is no record of a sandbox", path.display())),
        }
    }

    /// Removes the folder with all that is in it. May be called again.
    ///
    /// # Errors
    /// The file system's.
    pub fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("Failed to remove {}", self.0.display()))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let dir = PodDir::of(folder.path(), "s");
        assert_eq!(dir.read().unwrap(), None);
        dir.create().unwrap();
        let record = Record {
            id: "s".into(),
            processes: vec![Process { pid: 7, started: 8 }],
            cgroup: Some(CgroupPath::of(None, "s")),
            own_interfaces: vec!["eth0".into()],
            ..Record::default()
        };
        dir.write(&record).unwrap();
        assert_eq!(dir.read().unwrap(), Some(record));
        dir.remove().unwrap();
        dir.remove().unwrap();
        assert!(!dir.path().exists());
    }

    #[test]
    fn a_process_is_known_by_its_start_too() {
        let own = Process::now(std::process::id()).unwrap();
        assert!(own.is_alive());
        assert!(!Process { started: own.started + 1, ..own }.is_alive());
        assert_eq!(Process::now(u32::MAX), None);
    }

    #[test]
    fn a_damaged_record_is_an_error_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let dir = PodDir::of(folder.path(), "s");
        dir.create().unwrap();
        fs::write(dir.path().join(FILE), "{").unwrap();
        assert!(format!("{:#}", dir.read().unwrap_err()).contains("sandbox.json"));
    }
}
