//! Sees a VMM's socket appear, so that a port that connects does so within the millisecond.
//!
//! One inotify instance watches the directories of all such ports. It is a help, not a need: where
//! it cannot be had (limits of inotify, directories that come later), the growing pause between
//! attempts finds the socket too.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use super::listener::directory;

#[derive(Debug)]
pub(super) struct Watcher {
    inotify: Inotify,
    directories: HashMap<WatchDescriptor, PathBuf>,
    ports: HashMap<PathBuf, HashMap<OsString, u32>>,
}

impl Watcher {
    pub fn new() -> nix::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        Ok(Self { inotify, directories: HashMap::new(), ports: HashMap::new() })
    }

    /// Watches for `path` on behalf of a port.
    pub fn add(&mut self, path: &Path, port: u32) {
        let dir = directory(path);
        if let Some(name) = path.file_name() {
            self.ports.entry(dir.into()).or_default().insert(name.into(), port);
        }
        self.watch(dir);
    }

    /// Watches the directory of `path` if it is not yet: it may have been made since. Whether it is watched now.
    pub fn renew(&mut self, path: &Path) -> bool {
        let dir = directory(path);
        self.directories.values().any(|watched| watched == dir) || self.watch(dir)
    }

    fn watch(&mut self, dir: &Path) -> bool {
        let made = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        match self.inotify.add_watch(dir, made | AddWatchFlags::IN_ONLYDIR) {
            Ok(watch) => drop(self.directories.insert(watch, dir.into())),
            Err(errno) => {
                tracing::debug!("No inotify watch on {}: {errno}", dir.display());
                return false;
            }
        }
        true
    }

    /// Stops watching for `path`, and its directory if no other port is there.
    pub fn remove(&mut self, path: &Path) {
        let dir = directory(path);
        let (Some(ports), Some(name)) = (self.ports.get_mut(dir), path.file_name()) else { return };
        ports.remove(name);
        if ports.is_empty() {
            self.ports.remove(dir);
            let watches = self.directories.iter();
            let watch =
                watches.filter(|(_, watched)| *watched == dir).map(|(watch, _)| *watch).next();
            if let Some(watch) = watch {
                self.directories.remove(&watch);
                // Fails if the directory is gone, and the watch with it.
                let _ = self.inotify.rm_watch(watch);
            }
        }
    }

    /// The ports whose path appeared since the last call.
    pub fn appeared(&mut self) -> Vec<u32> {
        let mut ports = Vec::new();
        while let Ok(events) = self.inotify.read_events() {
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                    self.directories.remove(&event.wd);
                    continue;
                }
                let known = self.directories.get(&event.wd).and_then(|dir| self.ports.get(dir));
                let port = known.zip(event.name).and_then(|(ports, name)| ports.get(&name));
                ports.extend(port);
            }
        }
        ports
    }
}

impl AsFd for Watcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}
