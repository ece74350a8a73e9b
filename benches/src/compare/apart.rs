//! The host of a comparison: mounts and network apart from the machine's, gone when we are.
//!
//! ```text
//!  us (main thread and whatever it starts)       the machine
//!   mounts: /run is empty, ours                    /run as it was
//!     /run/netns/<pod>    the pods' namespaces
//!     /run/compare        sockets, logs, leases of addresses
//!   network: lo, bridges, parents, taps            its devices as they were
//! ```
//! Nothing of it has a name outside. So however we end, by ourselves, by Ctrl-C, by a crash or by
//! SIGKILL, the kernel takes all of it back when the last of our processes is gone; daemons die
//! with us ([`vmm_glue::process`]), plugins end by themselves. There is nothing for a second run to
//! sweep.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tempfile::TempDir;

use super::launch::Launchers;
use super::route::Route;

const FOLDER: &str = "/run/compare";
/// Where names of network namespaces are, as ip-netns(8) has them.
pub const NAMES: &str = "/run/netns";
/// Where bpftrace looks for tracepoints.
const TRACING: &str = "/sys/kernel/tracing";

/// Our host. There is one in a process, and it is left only for others beside it.
#[derive(Debug)]
pub struct Apart {
    netns: File,
    /// Where its network has a name, if it is not that which we began with.
    path: Option<PathBuf>,
    /// Who starts the arms' programs.
    pub launchers: Launchers,
}

impl Apart {
    /// Moves the calling thread there; threads and processes that it starts from now on are there, too.
    /// There are launchers for `parallel` workers.
    ///
    /// # Errors
    /// We are not root.
    pub fn enter(parallel: usize) -> Result<Self> {
        let flags = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET;
        unshare(flags).context("Failed to make a host of our own; this needs root")?;
        let none = None::<&str>;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(none, "/", none, private, none).context("Failed to keep our mounts to ourselves")?;
        mount(Some("run"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
            .context("Failed to mount an empty /run of our own")?;
        for folder in [FOLDER, NAMES] {
            fs::create_dir(folder).with_context(|| format!("Failed to make {folder}"))?;
        }
        if Path::new(TRACING).is_dir() && !Path::new(TRACING).join("events").exists() {
            // Without it RTNL is not counted, which the results say.
            let _ = mount(Some("tracefs"), TRACING, Some("tracefs"), MsFlags::empty(), none);
        }
        // Each stub VMM has a dozen descriptors.
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
        let netns = current_netns()?;
        Route::open()?.up("lo").context("Failed to set lo of our host up")?;
        Ok(Self { netns, path: None, launchers: Launchers::start(parallel)? })
    }

    /// Another host beside it: the network namespace `netns`, which is named `path`; all else is shared. The
    /// caller is on this one, and stays.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn beside(&self, netns: BorrowedFd<'_>, path: PathBuf) -> Result<Self> {
        let netns = File::from(netns.try_clone_to_owned()?);
        // Who starts programs starts those that talk to daemons by sockets, wherever it is.
        let other = Self { netns, path: Some(path), launchers: Launchers::start(1)? };
        self.on(&other, || Route::open()?.up("lo").context("Failed to set lo of a host up"))?;
        Ok(other)
    }

    /// Runs `act` with the calling thread on `other`.
    ///
    /// # Errors
    /// Those of `act`; the kernel refuses.
    pub fn on<T>(&self, other: &Self, act: impl FnOnce() -> Result<T>) -> Result<T> {
        other.return_here()?;
        let outcome = act();
        self.return_here()?;
        outcome
    }

    /// Where its network has a name, if it is not that which we began with.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Its network.
    pub fn netns(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }

    /// A new, empty folder for `name`. It goes when its handle is dropped.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn folder(&self, name: &str) -> Result<TempDir> {
        let folder = tempfile::Builder::new().prefix(name).tempdir_in(FOLDER);
        folder.with_context(|| format!("Failed to make a folder for {name} in {FOLDER}"))
    }

    /// Moves the calling thread to our host's network.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn return_here(&self) -> Result<()> {
        setns(&self.netns, CloneFlags::CLONE_NEWNET).context("Failed to return to our host")
    }

    /// Names of its network devices. The caller is on it.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn devices(&self) -> Result<BTreeSet<String>> {
        let path = "/proc/thread-self/net/dev";
        let text = fs::read_to_string(path).with_context(|| format!("Failed to read {path}"))?;
        let names = text.lines().skip(2).filter_map(|line| line.split_once(':'));
        Ok(names.map(|(name, _)| name.trim().to_owned()).collect())
    }

    /// What bpftrace knows our processes by: the number of our mount namespace.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn mount_namespace(&self) -> Result<u64> {
        let link = fs::read_link("/proc/thread-self/ns/mnt")?;
        let text = link.to_string_lossy();
        let number = text.strip_prefix("mnt:[").and_then(|rest| rest.strip_suffix(']'));
        number.and_then(|n| n.parse().ok()).with_context(|| format!("{text} names no namespace"))
    }
}

/// The network namespace of the calling thread.
///
/// # Errors
/// There is no descriptor to be had.
pub fn current_netns() -> Result<File> {
    File::open("/proc/thread-self/ns/net").context("Failed to open our network namespace")
}

/// The device file of the tap numbered `index`, once the kernel has made it.
///
/// # Errors
/// There is none.
pub fn tap_file(index: u32) -> Result<PathBuf> {
    let path = PathBuf::from(format!("/dev/tap{index}"));
    let is_there = fs::metadata(&path).is_ok_and(|data| data.file_type().is_char_device());
    ensure!(is_there, "There is no {}; /dev must be a devtmpfs", path.display());
    Ok(path)
}
