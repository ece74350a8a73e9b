//! The namespaces that all containers of a sandbox share.
//!
//! A thread of its own makes them, as a thread and not the whole agent moves into a new UTS or
//! IPC namespace; bound to a file each, they outlive it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::sethostname;

use super::paths;

/// What is shared, by the namespaces' types as OCI names them and as `/proc` does.
const SHARED: [&str; 2] = ["uts", "ipc"];
/// The most Linux takes.
const MAX_HOSTNAME: usize = 64;

/// The shared namespaces' files; they are gone when this is dropped.
#[derive(Debug)]
pub struct Shared {
    folder: PathBuf,
}

impl Shared {
    /// Makes the namespaces and sets the host name in them.
    pub fn create(hostname: &str) -> Result<Self> {
        let shared = Self { folder: Path::new(paths::OWN).join("namespaces") };
        fs::create_dir_all(&shared.folder)
            .with_context(|| format!("Failed to make {}", shared.folder.display()))?;
        let files = SHARED.map(|kind| (kind, shared.path(kind)));
        let hostname: String = hostname.chars().take(MAX_HOSTNAME).collect();
        let make = move || -> Result<()> {
            unshare(CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC)
                .context("Failed to make UTS and IPC namespaces")?;
            if !hostname.is_empty() {
                sethostname(&hostname)
                    .with_context(|| format!("Failed to set the host name {hostname}"))?;
            }
            for (kind, file) in files {
                File::create(&file)
                    .with_context(|| format!("Failed to make {}", file.display()))?;
                let source = format!("/proc/thread-self/ns/{kind}");
                let none = None::<&str>;
                mount(Some(source.as_str()), &file, none, MsFlags::MS_BIND, none)
                    .with_context(|| format!("Failed to keep the {kind} namespace"))?;
            }
            Ok(())
        };
        let made = thread::spawn(make).join();
        made.map_err(|_| anyhow!("The thread that makes namespaces panicked"))??;
        Ok(shared)
    }

    /// The file of a namespace, if that type is shared.
    pub fn of(&self, kind: &str) -> Option<PathBuf> {
        SHARED.contains(&kind).then(|| self.path(kind))
    }

    fn path(&self, kind: &str) -> PathBuf {
        self.folder.join(kind)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for kind in SHARED {
            // One that was never bound cannot be unmounted; the folder goes all the same.
            let _never_bound = umount2(&self.path(kind), MntFlags::MNT_DETACH);
        }
        drop(fs::remove_dir_all(&self.folder));
    }
}
