//! What a measurement takes from the machine: hugepages of 2 MiB, without which DPDK does not run,
//! and a folder for sockets and logs.
//!
//! Both are given back when the measurement ends, and by a panic as well; only a SIGKILL leaves
//! them. The kernel takes pages back that a dying process still holds as soon as it lets go.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::{fs, io, panic, process};

use anyhow::{Context as _, Result, bail};

const PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// What is to be given back, for the panic hook: a release build does not unwind.
static TAKEN: Mutex<Taken> = Mutex::new(Taken { pages_before: None, dir: None });

struct Taken {
    pages_before: Option<u64>,
    dir: Option<PathBuf>,
}

/// Ours while this lives. There is one at a time.
#[derive(Debug)]
pub struct Belongings {
    dir: PathBuf,
}

impl Belongings {
    /// Makes the folder, and sees to it that `pages` hugepages are free.
    ///
    /// # Errors
    /// There is no folder to be had; the kernel has no hugepages, or not so many: then all is as
    /// before.
    pub fn take(pages: u64) -> Result<Self> {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            previous(info);
            give_back();
        }));
        let dir = std::env::temp_dir().join(format!("slipway-bench-{}", process::id()));
        fs::create_dir(&dir).with_context(|| format!("Failed to make {}", dir.display()))?;
        let ours = Self { dir: dir.clone() };
        taken(|taken| taken.dir = Some(dir));
        if pages == 0 {
            return Ok(ours);
        }
        let total = read("nr_hugepages").context("Not on this kernel: hugepages of 2 MiB")?;
        let wanted = total + pages.saturating_sub(read("free_hugepages")?);
        taken(|taken| taken.pages_before = Some(total));
        write(wanted).context("Failed to ask for hugepages; this needs root")?;
        let got = read("free_hugepages")?;
        if got < pages {
            bail!(
                "The kernel gives {got} hugepages of 2 MiB of the {pages} that are needed; free \
                 memory, or boot with hugepages={pages}"
            );
        }
        Ok(ours)
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Belongings {
    fn drop(&mut self) {
        give_back();
    }
}

fn taken(change: impl FnOnce(&mut Taken)) {
    change(&mut TAKEN.lock().unwrap_or_else(PoisonError::into_inner));
}

fn give_back() {
    // Whoever panics may hold it: better something left than a hang.
    let Ok(mut taken) = TAKEN.try_lock() else { return };
    if let Some(total) = taken.pages_before.take()
        && let Err(error) = write(total)
    {
        eprintln!("Failed to give hugepages back: {error}; write {total} to {PAGES}/nr_hugepages");
    }
    if let Some(dir) = taken.dir.take()
        && let Err(error) = fs::remove_dir_all(&dir)
    {
        eprintln!("Failed to remove {}: {error}", dir.display());
    }
}

fn read(name: &str) -> Result<u64> {
    let path = format!("{PAGES}/{name}");
    let text = fs::read_to_string(&path).with_context(|| format!("Failed to read {path}"))?;
    text.trim().parse().with_context(|| format!("{path} holds {text:?}"))
}

fn write(total: u64) -> io::Result<()> {
    fs::write(format!("{PAGES}/nr_hugepages"), total.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_goes_at_the_end_and_by_a_panic() {
        let ours = Belongings::take(0).unwrap();
        let dir = ours.dir().to_owned();
        fs::write(dir.join("log"), "").unwrap();
        drop(ours);
        assert!(!dir.exists());

        let ours = Belongings::take(0).unwrap();
        assert!(dir.exists());
        // The hook, not the unwinding: a release build has none.
        let left = panic::catch_unwind(panic::AssertUnwindSafe(|| {
            let _ours = std::mem::ManuallyDrop::new(ours);
            panic!("as a measurement might");
        }));
        assert!(left.is_err() && !dir.exists());
    }
}
