//! slipwayd keeps its own promise: none of its threads can open a netlink socket.

mod daemon;
mod rig;

use std::fs;

use daemon::Daemon;
use rig::eventually;

/// `key` of the status of each thread.
fn of_threads(pid: u32, key: &str) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let value = |status: String| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap_or_else(|| panic!("{key} is not in {status}")).trim().to_owned()
    };
    threads.map(|t| value(fs::read_to_string(t.unwrap().path().join("status")).unwrap())).collect()
}

#[test]
fn every_thread_of_slipwayd_is_confined() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("slipwayd.toml"), "").unwrap();
    let daemon = Daemon::start(folder.path());
    // A thread takes its name when it first runs.
    for expected in ["slipwayd", "slipway-vhost", "slipway-api", "slipway-pmd0"] {
        let is_there = || of_threads(daemon.pid(), "Name:").iter().any(|name| name == expected);
        eventually(expected, is_there);
    }
    let modes = of_threads(daemon.pid(), "Seccomp:");
    assert!(modes.iter().all(|mode| mode == "2"), "SECCOMP_MODE_FILTER is 2: {modes:?}");
    let privileges = of_threads(daemon.pid(), "NoNewPrivs:");
    assert!(privileges.iter().all(|set| set == "1"), "{privileges:?}");
}
