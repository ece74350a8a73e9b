//! slipwayd keeps its own promise: none of its threads can open a netlink socket.

mod daemon;

use std::fs;

use daemon::Daemon;

#[test]
fn every_thread_of_slipwayd_is_confined() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("slipwayd.toml"), "").unwrap();
    let daemon = Daemon::start(folder.path());
    let mut names = Vec::new();
    for thread in fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap() {
        let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        let value = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.unwrap_or_else(|| panic!("{key} is not in {status}")).trim().to_owned()
        };
        // SECCOMP_MODE_FILTER
        assert_eq!(value("Seccomp:"), "2", "{status}");
        assert_eq!(value("NoNewPrivs:"), "1", "{status}");
        names.push(value("Name:"));
    }
    for expected in ["slipwayd", "slipway-vhost", "slipway-api", "slipway-pmd0"] {
        assert!(names.iter().any(|name| name == expected), "{expected} is not in {names:?}");
    }
}
