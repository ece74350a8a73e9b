//! Starts the plugins and tools of the arms, for all of them alike.
//!
//! ```text
//!  worker of a burst --Command--> launcher thread --fork, exec--> plugin, ovs-vsctl
//!    [netns, taps, stub VMMs]        [few descriptors]
//! ```
//! A program that is started gets a copy of its starter's table of descriptors, and closes them one by one.
//! This process holds those of every pod, thousands: no container engine does, and what that costs
//! would be charged to whoever is last. So each launcher has a table of its own, from before the pods came.
//!
//! # Threads
//! As many launchers as workers, so that nobody waits for one. They end with the value.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::{io, thread};

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, unshare};

struct Job {
    command: Command,
    stdin: Vec<u8>,
    answer: SyncSender<io::Result<Output>>,
}

/// Threads that start programs.
#[derive(Debug)]
pub struct Launchers {
    jobs: Sender<Job>,
}

impl Launchers {
    /// Starts `count` of them. They are where the calling thread is: namespaces, cores.
    ///
    /// # Errors
    /// The kernel gives no thread, or no table of its own.
    pub fn start(count: usize) -> Result<Self> {
        let (jobs, queue) = mpsc::channel();
        let queue = Arc::new(Mutex::new(queue));
        let (told, ready) = mpsc::channel();
        for _ in 0..count {
            let (queue, told) = (Arc::clone(&queue), told.clone());
            let serve = move || {
                let own = unshare(CloneFlags::CLONE_FILES);
                let is_well = own.is_ok();
                // Nobody waits for it any more if an earlier one failed.
                let _ = told.send(own);
                if is_well {
                    serve(&queue);
                }
            };
            let thread = thread::Builder::new().name("launcher".into());
            thread.spawn(serve).context("Failed to start a launcher")?;
        }
        for _ in 0..count {
            ready.recv()?.context("Failed to give a launcher a table of its own")?;
        }
        Ok(Self { jobs })
    }

    /// Runs `command` to its end, with `stdin`, and returns what it printed.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn output(&self, command: Command, stdin: Vec<u8>) -> io::Result<Output> {
        let (answer, answered) = mpsc::sync_channel(1);
        let gone = || io::Error::other("The launchers have ended");
        self.jobs.send(Job { command, stdin, answer }).map_err(|_| gone())?;
        answered.recv().map_err(|_| gone())?
    }
}

fn serve(queue: &Mutex<Receiver<Job>>) {
    loop {
        // One waits for the next job, the others for their turn to wait.
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { command, stdin, answer }) = job else { return };
        // Who asked may have given up.
        let _ = answer.send(run(command, &stdin));
    }
}

fn run(mut command: Command, stdin: &[u8]) -> io::Result<Output> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    if let Some(mut pipe) = child.stdin.take() {
        // A program that ends without reading says why.
        let _ = pipe.write_all(stdin);
    }
    child.wait_with_output()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd as _;

    use super::*;

    #[test]
    fn what_is_started_gets_its_stdin_and_none_of_the_descriptors_that_came_later() {
        let launchers = Launchers::start(2).unwrap();
        let later = File::open("/dev/null").unwrap();
        // The shell would list one that was not closed on exec; of the launcher's own table, it has none.
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &format!("cat; ls -l /proc/$PPID/task/*/fd/{}", later.as_raw_fd())]);
        let output = launchers.output(shell, b"said".to_vec()).unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.starts_with("said"), "{said}");
        let tables = said.lines().filter(|line| line.contains("/dev/null")).count();
        let threads = std::fs::read_dir("/proc/self/task").unwrap().count();
        assert!(tables >= 1 && tables <= threads - 2, "{tables} of {threads} threads: {said}");
    }

    #[test]
    fn a_program_that_is_not_there_and_one_that_fails_are_told() {
        let launchers = Launchers::start(1).unwrap();
        let missing = launchers.output(Command::new("/nowhere/plugin"), Vec::new());
        assert_eq!(missing.unwrap_err().kind(), io::ErrorKind::NotFound);
        let output = launchers.output(Command::new("/bin/false"), Vec::new()).unwrap();
        assert_eq!(output.status.code(), Some(1));
    }
}
