//! Tells the host which containers ran out of memory.
//!
//! The kernel counts kills in a cgroup's `memory.events` and notifies who watches the file
//! (cgroup v2). One inotify descriptor watches those of all containers; an event is kept until
//! the host asks for it.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// The containers that are watched.
#[derive(Debug)]
pub struct OomWatch {
    inotify: Arc<Inotify>,
    watched: Arc<Mutex<HashMap<WatchDescriptor, Watched>>>,
    events: tokio::sync::Mutex<UnboundedReceiver<String>>,
}

#[derive(Debug)]
struct Watched {
    container: String,
    file: PathBuf,
    kills: u64,
}

impl OomWatch {
    /// Begins to watch, on a thread of its own.
    pub fn new() -> Result<Self> {
        let inotify =
            Inotify::init(InitFlags::IN_CLOEXEC).context("Failed to make an inotify descriptor")?;
        let watched = Arc::<Mutex<_>>::default();
        let (sender, events) = unbounded_channel();
        let inotify = Arc::new(inotify);
        let (reader, shared) = (Arc::clone(&inotify), Arc::clone(&watched));
        thread::spawn(move || run(&reader, &shared, &sender));
        Ok(Self { inotify, watched, events: events.into() })
    }

    /// Watches the container's cgroup. Without cgroup v2 there is nothing to watch, and no
    /// event will come.
    pub fn watch(&self, container: &str, cgroup: &Path) {
        let file = cgroup.join("memory.events");
        let mut watched = lock(&self.watched);
        let added = self.inotify.add_watch(&file, AddWatchFlags::IN_MODIFY);
        if let Ok(descriptor) = added {
            let kills = read_kills(&file);
            let container = container.to_owned();
            watched.insert(descriptor, Watched { container, file, kills });
        }
    }

    /// No longer watches the container.
    pub fn forget(&self, container: &str) {
        let mut watched = lock(&self.watched);
        watched.retain(|&descriptor, watched| {
            let is_kept = watched.container != container;
            if !is_kept {
                // The kernel removes the watch itself when the cgroup goes.
                let _gone = self.inotify.rm_watch(descriptor);
            }
            is_kept
        });
    }

    /// Waits for the next container that ran out of memory.
    pub async fn next(&self) -> Result<String> {
        let mut events = self.events.lock().await;
        events.recv().await.context("The watch for lack of memory has ended")
    }
}

fn run(
    inotify: &Inotify,
    watched: &Mutex<HashMap<WatchDescriptor, Watched>>,
    sender: &UnboundedSender<String>,
) {
    loop {
        let events = match inotify.read_events() {
            Ok(events) => events,
            Err(Errno::EINTR) => continue,
            // The descriptor is bad, which nothing here can mend: no more events.
            Err(_) => return,
        };
        let mut watched = lock(watched);
        for event in events {
            let Some(watched) = watched.get_mut(&event.wd) else { continue };
            let kills = read_kills(&watched.file);
            if kills > watched.kills {
                watched.kills = kills;
                if sender.send(watched.container.clone()).is_err() {
                    return;
                }
            }
        }
    }
}

fn read_kills(file: &Path) -> u64 {
    fs::read_to_string(file).map_or(0, |events| parse_kills(&events))
}

/// The line `oom_kill N` of `memory.events`.
fn parse_kills(events: &str) -> u64 {
    let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
    kills.and_then(|kills| kills.trim().parse().ok()).unwrap_or_default()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_counted_and_not_the_times_a_limit_was_met() {
        let events = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n";
        assert_eq!(parse_kills(events), 2);
        assert_eq!(parse_kills("low 0\n"), 0);
    }

    #[tokio::test]
    async fn a_kill_is_told_once_with_the_containers_name() {
        let cgroup = tempfile::tempdir().unwrap();
        let file = cgroup.path().join("memory.events");
        fs::write(&file, "oom_kill 0\n").unwrap();
        let watch = OomWatch::new().unwrap();
        watch.watch("c1", cgroup.path());
        fs::write(&file, "oom_kill 1\n").unwrap();
        assert_eq!(watch.next().await.unwrap(), "c1");
        watch.forget("c1");
        assert!(watch.events.try_lock().unwrap().try_recv().is_err());
    }
}
