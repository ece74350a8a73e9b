//! Kernel modules of the guest image.
//!
//! ```text
//! /modules/NN-name.ko         every guest needs it: loaded at boot, in the order of the names
//! /modules/lazy/name.list     some guests need it: the files to load, in this order
//! /modules/lazy/name.ko
//! ```
//!
//! The order was worked out when the image was made. Under emulation each module costs boot
//! time, so what only some pods use (block devices, ext4, overlays, vsock) waits until it is
//! asked for.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

/// Where the image keeps its modules.
pub const FOLDER: &str = "/modules";

/// Loads every module that all guests need.
pub fn load_all() -> Result<()> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(FOLDER).with_context(|| format!("Failed to list {FOLDER}"))? {
        paths.push(entry?.path());
    }
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "ko"));
    paths.sort();
    paths.iter().try_for_each(|path| load_file(path))
}

/// Loads a module and what it needs, if the image carries it. Without an image, or for a module
/// it does not carry, this is `false`: the kernel has it built in, or not at all.
pub fn load(name: &str) -> Result<bool> {
    // One at a time, so that nobody goes on before what another began to load is there.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = Path::new(FOLDER).join("lazy");
    // A name comes from the host and is to stay in the folder.
    if name.contains('/') {
        return Ok(false);
    }
    let list = match fs::read_to_string(folder.join(format!("{name}.list"))) {
        Ok(list) => list,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).with_context(|| format!("Failed to look up {name}")),
    };
    list.lines().try_for_each(|file| load_file(&folder.join(file)))?;
    Ok(true)
}

fn load_file(path: &Path) -> Result<()> {
    let failed = || format!("Failed to load {}", path.display());
    let file = File::open(path).with_context(failed)?;
    match finit_module(&file, c"", ModuleInitFlags::empty()) {
        // Loaded before.
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error).with_context(failed),
    }
}
