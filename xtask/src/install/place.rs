//! Puts files into place, and takes away what was put.
//!
//! The manifest beside the guest image has each file that is installed with its checksum, and each
//! folder that was made for it. It is written after each file, so it tells what to take away even if
//! an installation did not come to its end.
//!
//! A file of the administrator's is treated as dpkg does:
//!
//! ```text
//!  there is none, or it is as it was installed      it is written
//!  it was changed, and what is new to it is not     it stays
//!  it was changed, and there is something new       it stays; the new one goes to NAME.new
//! ```
//!
//! # Bounds
//! An installation that is killed leaves one file at most that the manifest does not name;
//! installing again names it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::files::{Item, Kind, Layout};

/// What became of a file that was to be installed.
#[derive(Debug, PartialEq, Eq)]
pub enum Placed {
    /// It is there now.
    Written,
    /// It was there already.
    Same,
    /// The administrator's stays; there is nothing new for it.
    Kept,
    /// The administrator's stays; this is the new one.
    Beside(PathBuf),
}

/// What became of a file that was to go.
#[derive(Debug, PartialEq, Eq)]
pub enum Removed {
    /// It is gone.
    Gone,
    /// It is not as it was installed, so it is somebody else's now.
    Kept,
}

/// What is installed; paths are those on the node, whatever the DESTDIR.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    /// SHA-256 of each file as it was installed, of the administrator's as they came last.
    files: BTreeMap<PathBuf, String>,
    /// Folders that were made.
    folders: BTreeSet<PathBuf>,
}

/// A node's file system, or what is to become one.
#[derive(Debug)]
pub struct Node {
    destdir: PathBuf,
    path: PathBuf,
    manifest: Manifest,
}

impl Node {
    /// Reads what is installed below `destdir`, which is `/` for this machine.
    ///
    /// # Errors
    /// The manifest cannot be read or is damaged.
    pub fn open(destdir: &Path, layout: &Layout) -> Result<Self> {
        let path = layout.share().join("manifest.json");
        let file = below(destdir, &path);
        let manifest = match fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text).with_context(|| {
                format!("{} is damaged: take files away by hand, and then it", file.display())
            })?,
            Err(error) if error.kind() == ErrorKind::NotFound => Manifest::default(),
            Err(error) => {
                return Err(error).with_context(|| format!("Failed to read {}", file.display()));
            }
        };
        Ok(Self { destdir: destdir.to_owned(), path, manifest })
    }

    /// Whether anything is installed.
    pub fn is_empty(&self) -> bool {
        self.manifest.files.is_empty()
    }

    /// Where a file of the node is for us.
    pub fn at(&self, path: &Path) -> PathBuf {
        below(&self.destdir, path)
    }

    /// Installs one file.
    ///
    /// # Errors
    /// It was not built, or cannot be written.
    pub fn put(&mut self, item: &Item) -> Result<Placed> {
        let bytes = item.bytes()?;
        let new = sha256(&bytes);
        let file = self.at(&item.path);
        let present = match fs::read(&file) {
            Ok(present) => Some(sha256(&present)),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => {
                return Err(error).with_context(|| format!("Failed to read {}", file.display()));
            }
        };
        let installed = self.manifest.files.get(&item.path);
        let is_changed =
            item.kind == Kind::Config && present.is_some() && present.as_ref() != installed;
        let placed = if present.as_ref() == Some(&new) {
            if item.kind != Kind::Config {
                set_mode(&file, item.kind.mode())?;
            }
            Placed::Same
        } else if !is_changed {
            self.write(&item.path, &bytes, item.kind.mode())?;
            Placed::Written
        } else if installed == Some(&new) {
            Placed::Kept
        } else {
            let mut beside = item.path.clone().into_os_string();
            beside.push(".new");
            let beside = PathBuf::from(beside);
            self.write(&beside, &bytes, item.kind.mode())?;
            self.manifest.files.insert(beside.clone(), new.clone());
            Placed::Beside(beside)
        };
        self.manifest.files.insert(item.path.clone(), new);
        self.save()?;
        Ok(placed)
    }

    /// Takes away what is installed and not among `items`: files of another version or place.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn prune(&mut self, items: &[Item]) -> Result<Vec<(PathBuf, Removed)>> {
        let is_stale = |path: &PathBuf| {
            // The administrator looks at NAME.new when there is time.
            let wanted = |item: &Item| {
                let beside =
                    item.kind == Kind::Config && path.extension().is_some_and(|e| e == "new");
                item.path == *path || (beside && item.path == path.with_extension(""))
            };
            !items.iter().any(wanted)
        };
        let stale: Vec<_> =
            self.manifest.files.keys().filter(|path| is_stale(path)).cloned().collect();
        self.remove(stale)
    }

    /// Takes away all that is installed, and the folders that were made for it as far as nothing else is
    /// in them.
    ///
    /// # Errors
    /// A file cannot be removed; the manifest then has what is left.
    pub fn clear(mut self) -> Result<Vec<(PathBuf, Removed)>> {
        let removed = self.remove(self.manifest.files.keys().cloned().collect())?;
        let manifest = self.at(&self.path);
        fs::remove_file(&manifest)
            .with_context(|| format!("Failed to remove {}", manifest.display()))?;
        // Those within others first.
        for folder in self.manifest.folders.iter().rev() {
            let folder = self.at(folder);
            match fs::remove_dir(&folder) {
                Err(error)
                    if !matches!(
                        error.kind(),
                        ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty
                    ) =>
                {
                    let failed = || format!("Failed to remove {}", folder.display());
                    return Err(error).with_context(failed);
                }
                _ => {}
            }
        }
        Ok(removed)
    }

    fn remove(&mut self, paths: Vec<PathBuf>) -> Result<Vec<(PathBuf, Removed)>> {
        let mut outcomes = Vec::new();
        for path in paths {
            let file = self.at(&path);
            let is_ours = match fs::read(&file) {
                Ok(bytes) => self.manifest.files.get(&path) == Some(&sha256(&bytes)),
                // Somebody was quicker.
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    self.manifest.files.remove(&path);
                    self.save()?;
                    continue;
                }
                Err(error) => {
                    let failed = || format!("Failed to read {}", file.display());
                    return Err(error).with_context(failed);
                }
            };
            let outcome = if is_ours {
                fs::remove_file(&file)
                    .with_context(|| format!("Failed to remove {}", file.display()))?;
                Removed::Gone
            } else {
                Removed::Kept
            };
            self.manifest.files.remove(&path);
            self.save()?;
            outcomes.push((path, outcome));
        }
        Ok(outcomes)
    }

    fn write(&mut self, path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
        let folder = path.parent().context("A file without a folder")?;
        let made = make_folders(&self.destdir, folder)?;
        self.manifest.folders.extend(made);
        replace(&self.at(path), bytes, mode)
    }

    fn save(&mut self) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(&self.manifest)?;
        text.push(b'\n');
        let path = self.path.clone();
        self.write(&path, &text, 0o644)
    }
}

/// Puts a file into the tree below `root`, of which nobody else knows yet.
///
/// # Errors
/// It was not built, or cannot be written.
pub fn stage(root: &Path, item: &Item) -> Result<u64> {
    let bytes = item.bytes()?;
    let folder = item.path.parent().context("A file without a folder")?;
    make_folders(root, folder)?;
    replace(&below(root, &item.path), &bytes, item.kind.mode())?;
    Ok(bytes.len() as u64)
}

/// An absolute path below another root.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Makes what is missing of a folder, whatever the umask. Returns what it made, as the node names it.
fn make_folders(root: &Path, folder: &Path) -> Result<Vec<PathBuf>> {
    let mut made = Vec::new();
    let mut ancestors: Vec<_> = folder.ancestors().collect();
    ancestors.reverse();
    for ancestor in ancestors {
        let place = below(root, ancestor);
        match fs::create_dir(&place) {
            Ok(()) => {
                set_mode(&place, 0o755)?;
                made.push(ancestor.to_owned());
            }
            Err(_) if place.is_dir() => {}
            Err(error) if error.kind() == ErrorKind::PermissionDenied => bail!(
                "You may not make {}: install as root, or with another --prefix",
                place.display()
            ),
            Err(error) => {
                return Err(error).with_context(|| format!("Failed to make {}", place.display()));
            }
        }
    }
    Ok(made)
}

/// Replaces a file as a whole, so that a program that runs goes on with the one it was started from.
fn replace(file: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let folder = file.parent().context("A file without a folder")?;
    ensure!(!file.is_dir(), "{} is a folder, where a file is to be", file.display());
    let mut fresh = tempfile::NamedTempFile::new_in(folder)
        .with_context(|| format!("Failed to write to {}", folder.display()))?;
    fresh.write_all(bytes).with_context(|| format!("Failed to write {}", file.display()))?;
    set_mode(fresh.path(), mode)?;
    fresh.persist(file).with_context(|| format!("Failed to replace {}", file.display()))?;
    Ok(())
}

fn set_mode(file: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(file, fs::Permissions::from_mode(mode))
        .with_context(|| format!("Failed to set the mode of {}", file.display()))
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
