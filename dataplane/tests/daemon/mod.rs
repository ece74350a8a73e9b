//! slipwayd as a process.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

/// A slipwayd that is killed, not ended.
#[derive(Debug)]
pub struct Daemon(Child);

impl Daemon {
    /// Starts one with the configuration `slipwayd.toml` in `folder`, and `run` there to work in.
    /// Returns once it serves its API.
    pub fn start(folder: &Path) -> Self {
        Self::start_by(&[], folder)
    }

    /// As [`Self::start`], by a program with arguments, such as setpriv(1), which becomes slipwayd.
    pub fn start_by(wrapper: &[&str], folder: &Path) -> Self {
        let core = core_affinity::get_core_ids().unwrap().last().unwrap().id;
        let words = [wrapper, &[env!("CARGO_BIN_EXE_slipwayd")]].concat();
        let mut child = Command::new(words[0])
            .args(&words[1..])
            .arg("--config")
            .arg(folder.join("slipwayd.toml"))
            .args(["--cores", &core.to_string(), "--run-dir"])
            .arg(folder.join("run"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let ready =
            log.by_ref().map(Result::unwrap).find(|line| line.contains("slipwayd is ready"));
        assert!(ready.is_some(), "it ended: {:?}", child.wait());
        // Its log is read to the end, so that it never waits for a reader.
        thread::spawn(move || log.for_each(drop));
        Self(child)
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}
