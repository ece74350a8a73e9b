//! Attachments on disk: one file for each, complete or absent.
//!
//! ```text
//! save:    write .new-NAME, rename it to NAME.json     then the caller is answered
//! load:    NAME.json -> record; what is no record is renamed to NAME.json.bad and reported,
//!          what is of another boot is removed
//! ```
//! A file takes its name in one step, so whenever the process is killed, each attachment is there as
//! a whole or not at all. No lock is needed: one daemon serves a run directory, as the lock beside
//! its API socket says.
//!
//! # Bounds
//! The files live in the run directory, which is a tmpfs on all distributions: a reboot takes them
//! with the pods they tell of. Where it is not, each record names the boot that it is of, and one of
//! another boot is removed. So nothing needs to be synced to a disk: no failure of the machine leaves
//! a pod behind that could miss its record.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use slipway_api::Attachment;

/// The longest file that is read, in bytes; an attachment with all its labels has some 20 000.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// The format of the files.
const VERSION: u32 = 1;
/// Where the kernel tells one boot from another (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const SUFFIX: &str = ".json";
const UNFINISHED: &str = ".new-";

/// What is kept of an attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// See [`VERSION`].
    version: u32,
    /// The boot that the pod is of.
    boot: String,
    /// Its place in the order of creation.
    pub sequence: u64,
    /// The attachment; its link is that of the moment it was made.
    pub attachment: Attachment,
}

impl Record {
    /// The record of an attachment, yet to be saved.
    pub fn new(sequence: u64, attachment: Attachment) -> Self {
        Self { version: VERSION, boot: String::new(), sequence, attachment }
    }
}

/// A folder of records.
#[derive(Debug)]
pub(super) struct Store {
    folder: PathBuf,
    boot: String,
}

/// Why a record cannot be kept or found.
#[derive(Debug, thiserror::Error)]
#[error("Failed to {step} {}: {source}", .path.display())]
pub struct StoreError {
    step: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn failed<'a>(step: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> StoreError + 'a {
    move |source| StoreError { step, path: path.to_owned(), source }
}

impl Store {
    /// The store in `folder`, which is made if it is missing.
    pub fn open(folder: PathBuf) -> Result<Self, StoreError> {
        make_private_folder(&folder)?;
        let boot = fs::read_to_string(BOOT_ID).map_err(failed("read", Path::new(BOOT_ID)))?;
        Ok(Self { folder, boot: boot.trim().to_owned() })
    }

    /// Keeps a record under its port's name, in place of an older one.
    pub fn save(&self, record: &Record) -> Result<(), StoreError> {
        let name = &record.attachment.port;
        let path = self.path_of(name);
        let unfinished = self.folder.join(format!("{UNFINISHED}{name}"));
        // Paths in UTF-8 are checked before: serialising plain data cannot fail otherwise.
        let record = Record { boot: self.boot.clone(), ..record.clone() };
        let text = serde_json::to_vec(&record).map_err(io::Error::from);
        let text = text.map_err(failed("describe", &path))?;
        let written = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&unfinished)
            .and_then(|mut file| file.write_all(&text));
        let kept = written
            .map_err(failed("write", &unfinished))
            .and_then(|()| fs::rename(&unfinished, &path).map_err(failed("rename to", &path)));
        if kept.is_err() {
            // What stays is removed by the next start.
            let _ = fs::remove_file(&unfinished);
        }
        kept
    }

    /// Forgets a record; one that is not there is forgotten.
    pub fn remove(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path_of(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// All records in the order of creation. What is none by `judge` or by its form is set aside.
    pub fn load(
        &self,
        mut judge: impl FnMut(&Record) -> Result<(), String>,
    ) -> Result<Vec<Record>, StoreError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(failed("list", &self.folder))? {
            let path = entry.map_err(failed("list", &self.folder))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with(UNFINISHED) {
                // Killed in the middle of it: nobody was told that the attachment exists.
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            } else if let Some(name) = name.strip_suffix(SUFFIX) {
                match read(&path, name) {
                    Ok(record) if record.boot != self.boot => {
                        tracing::info!(file = %path.display(), "Its pod ended with the last boot");
                        fs::remove_file(&path).map_err(failed("remove", &path))?;
                    }
                    Ok(record) => found.push(record),
                    Err(why) => set_aside(&path, &why)?,
                }
            }
        }
        found.sort_by_key(|record| record.sequence);
        let mut records = Vec::with_capacity(found.len());
        for record in found {
            match judge(&record) {
                Ok(()) => records.push(record),
                Err(why) => set_aside(&self.path_of(&record.attachment.port), &why)?,
            }
        }
        Ok(records)
    }

    fn path_of(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}{SUFFIX}"))
    }
}

/// Makes a folder that is ours alone, with its parents, unless it is there.
pub(super) fn make_private_folder(folder: &Path) -> Result<(), StoreError> {
    let parent = folder.parent().unwrap_or(Path::new("/"));
    let made = DirBuilder::new().recursive(true).mode(0o750).create(parent);
    made.map_err(failed("make the folder", parent))?;
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(failed("make the folder", folder))
}

fn read(path: &Path, name: &str) -> Result<Record, String> {
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut text))
        .map_err(|error| error.to_string())?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("it is longer than {MAX_FILE_BYTES} bytes"));
    }
    let record: Record = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    if record.version != VERSION {
        return Err(format!("it is of version {}, this slipwayd reads {VERSION}", record.version));
    }
    if record.attachment.port != name {
        return Err(format!("it tells of port {}", record.attachment.port));
    }
    Ok(record)
}

fn set_aside(path: &Path, why: &str) -> Result<(), StoreError> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".bad");
    let aside = PathBuf::from(aside);
    tracing::error!(
        file = %path.display(), why, renamed_to = %aside.display(),
        "An attachment cannot be restored: its pod must be created again"
    );
    fs::rename(path, &aside).map_err(failed("rename to", &aside))
}
