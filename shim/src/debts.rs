//! Attachments that a pod made itself and could not give back, because slipwayd was away when it ended.
//!
//! ```text
//! a pod's end --slipwayd is away--> BASE/ID.json --the next pod, or `delete`--> detached, file removed
//!                                        `--a pod of the same name--> its record: it gives them back
//! ```
//! A pod's end does not fail for this, as nobody would ask for it again: containerd calls `delete` only
//! for a shim that died. What stays meanwhile is an address and a port that nobody uses, and
//! `slipwayctl attachments` shows them.
//!
//! # Races
//! A debt is paid or taken over under the folder's lock, and its file goes last. So where there is no file
//! nobody is about to detach anything, and a new pod of that name may attach.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use slipway_api::client::Client;

use crate::bundle;
use crate::network;
use crate::persist::Record;

/// Where debts are written down.
pub const BASE: &str = "/run/slipway/debts";

/// What one pod left attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Debt {
    owner: String,
    interfaces: Vec<String>,
    switch: PathBuf,
}

/// The debts of all pods of a host.
#[derive(Clone, Debug)]
pub struct Debts(PathBuf);

impl Debts {
    /// Those in `folder`, which need not be there.
    pub fn of(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    fn file(&self, owner: &str) -> PathBuf {
        self.0.join(format!("{owner}.json"))
    }

    /// Writes down what the pod of `record` has still attached at `switch`.
    ///
    /// # Errors
    /// The file system's.
    pub fn add(&self, record: &Record, switch: &Path) -> Result<()> {
        let debt = Debt {
            owner: record.id.clone(),
            interfaces: record.own_interfaces.clone(),
            switch: switch.to_owned(),
        };
        let file = self.file(&debt.owner);
        let text = serde_json::to_vec(&debt).context("Failed to encode what stays attached")?;
        fs::create_dir_all(&self.0)
            .and_then(|()| bundle::write_whole(&file, &text))
            .with_context(|| format!("Failed to write {}", file.display()))
    }

    /// Lets a new pod `owner` see to what an earlier one of its name left attached: `record` writes the
    /// interfaces down with what is the new pod's own.
    ///
    /// # Errors
    /// The file system's, or that of `record`; the debt stays.
    pub async fn hand_over(
        &self,
        owner: &str,
        record: impl AsyncFnOnce(Vec<String>) -> Result<()>,
    ) -> Result<()> {
        let file = self.file(owner);
        if !file.exists() {
            return Ok(());
        }
        let folder = self.open()?;
        let lock = tokio::task::spawn_blocking(move || folder.lock().map(|()| folder));
        let _lock = lock.await?.context("Failed to lock the folder of debts")?;
        let Some(debt) = read(&file)? else { return Ok(()) };
        record(debt.interfaces).await?;
        fs::remove_file(&file).with_context(|| format!("Failed to remove {}", file.display()))
    }

    /// Gives back whatever pods left attached, unless somebody is at it. Returns how many pods' it was.
    ///
    /// # Errors
    /// The first that slipwayd does not take back; it and those after it are tried again by the next
    /// pod.
    pub async fn pay(&self) -> Result<usize> {
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(error).context("Failed to list what pods left attached"),
        };
        let is_debt =
            |file: &PathBuf| file.extension().is_some_and(|extension| extension == "json");
        let files: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(is_debt).collect();
        if files.is_empty() {
            return Ok(0);
        }
        let lock = self.open()?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(0),
            Err(TryLockError::Error(error)) => {
                return Err(error).context("Failed to lock the folder of debts");
            }
        }
        let mut paid = 0;
        for file in files {
            let debt = match read(&file) {
                Ok(Some(debt)) => debt,
                Ok(None) => continue,
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "remove this file");
                    continue;
                }
            };
            let switch = Client::new(&debt.switch);
            for interface in &debt.interfaces {
                network::detach(&switch, &debt.owner, interface).await?;
            }
            fs::remove_file(&file)
                .with_context(|| format!("Failed to remove {}", file.display()))?;
            tracing::info!(pod = debt.owner, "what it left attached was given back");
            paid += 1;
        }
        Ok(paid)
    }

    fn open(&self) -> Result<File> {
        File::open(&self.0).with_context(|| format!("Failed to open {}", self.0.display()))
    }
}

/// `None` if another one was quicker.
fn read(file: &Path) -> Result<Option<Debt>> {
    match fs::read(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("Failed to read {}", file.display())),
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .with_context(|| format!("{} does not say what is attached", file.display())),
    }
}
