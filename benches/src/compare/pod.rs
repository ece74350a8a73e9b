//! A pod as far as its network goes: a number, addresses, and a network namespace.

use std::fs::{self, File};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dataplane::clock;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use super::apart::{Apart, NAMES, current_netns};
use super::route::Route;

/// Length of the prefix of the network that all pods are in.
pub const PREFIX: u8 = 16;
/// Its gateway.
pub const GATEWAY: [u8; 4] = [10, 88, 0, 1];
/// The interface in a pod.
pub const INTERFACE: &str = "eth0";
/// Between two looks at whether the kernel has taken something back.
const LOOK: Duration = Duration::from_millis(1);
/// How long it may take for that, in microseconds.
const LIMIT_US: u64 = 60_000_000;

/// A pod.
#[derive(Debug)]
pub struct Pod {
    /// From 0.
    pub index: usize,
    /// What its namespace and its containers are called.
    pub name: String,
    netns: File,
}

impl Pod {
    /// Makes its network namespace and gives it a name, as container engines do. The calling thread is back on
    /// `host` afterwards.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn create(host: &Apart, index: usize) -> Result<Self> {
        let name = format!("pod{index}");
        let path = path_of(&name);
        File::create_new(&path).with_context(|| format!("Failed to make {}", path.display()))?;
        unshare(CloneFlags::CLONE_NEWNET).context("Failed to make a network namespace")?;
        let none = None::<&str>;
        let bound = mount(Some("/proc/thread-self/ns/net"), &path, none, MsFlags::MS_BIND, none);
        let netns = current_netns();
        host.return_here()?;
        bound.with_context(|| format!("Failed to mount {}", path.display()))?;
        Ok(Self { index, name, netns: netns? })
    }

    /// Its namespace.
    pub fn netns(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }

    /// The path of its namespace.
    pub fn path(&self) -> PathBuf {
        path_of(&self.name)
    }

    /// Its address: the pods' network has the first two bytes.
    pub fn address(&self) -> [u8; 4] {
        let [high, low] = (self.index as u16 + 10).to_be_bytes();
        [10, 88, high, low]
    }

    /// Runs `act` with the calling thread in its namespace.
    ///
    /// # Errors
    /// Those of `act`; the kernel refuses.
    pub fn within<T>(&self, host: &Apart, act: impl FnOnce() -> Result<T>) -> Result<T> {
        setns(&self.netns, CloneFlags::CLONE_NEWNET).context("Failed to enter a pod's network")?;
        let outcome = act();
        host.return_here()?;
        outcome
    }

    /// Gives its namespace up; the kernel takes it back in its own time, see
    /// [`wait_until_all_are_gone`].
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn give_up(self) -> Result<()> {
        let path = self.path();
        umount2(&path, MntFlags::MNT_DETACH)
            .with_context(|| format!("Failed to unmount {}", path.display()))?;
        fs::remove_file(&path).with_context(|| format!("Failed to remove {}", path.display()))
    }
}

fn path_of(name: &str) -> PathBuf {
    Path::new(NAMES).join(name)
}

/// Waits until the kernel has taken back every network namespace that was given up before.
///
/// It takes them back in a thread of its own, in batches, one batch after the other. So two more are
/// made and given up, one after the other, each with one end of a veth pair whose other end is
/// on our host: when the second pair is gone, the batch with the first, and all that came before, is done.
///
/// # Errors
/// It takes more than a minute; the kernel refuses.
pub fn wait_until_all_are_gone(host: &Apart) -> Result<()> {
    for name in ["cmp-last1", "cmp-last2"] {
        unshare(CloneFlags::CLONE_NEWNET).context("Failed to make a network namespace")?;
        let netns = current_netns();
        host.return_here()?;
        let netns = netns?;
        let made = Route::open()?.add_veth(name, None, INTERFACE, Some(netns.as_fd()));
        made.context("Failed to make the veth pair that tells when namespaces are gone")?;
        drop(netns);
        let begin = clock::ticks();
        while nix::net::if_::if_nametoindex(name).is_ok() {
            let passed_us = (clock::ticks() - begin) / clock::ticks_per_us();
            ensure!(passed_us < LIMIT_US, "Network namespaces are not gone after a minute");
            thread::sleep(LOOK);
        }
    }
    Ok(())
}
