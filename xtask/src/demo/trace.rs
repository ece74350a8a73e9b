//! Counts the rtnetlink messages that processes send, by their system calls.
//!
//! Each process runs under strace with a filter in the kernel (`--seccomp-bpf`), so that only calls
//! that make a socket or send a message stop it. strace is the process's detached descendant
//! (`-D`): the process stays our direct child.
//!
//! A process can send to rtnetlink only by a socket of that family, and inherits none from us, so
//! what is counted here is all there is. When tracing is not allowed the count is unknown, never zero.

use std::collections::BTreeMap;
use std::fs;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::programs::{self, Counts};
use crate::command;

const STRACE: &str = "strace";
/// The calls from execve on tell which program a process is: see [`super::programs`].
const OPTIONS: [&str; 5] = [
    "-f",
    "--seccomp-bpf",
    "-e",
    "trace=socket,sendto,sendmsg,sendmmsg,execve,clone,clone3,fork,vfork",
    "-yy",
];

/// Traces processes, or knows why not.
#[derive(Debug)]
pub struct Tracer {
    files: Vec<PathBuf>,
    refusal: Option<String>,
}

/// What the traced processes did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Netlink {
    /// They were seen.
    Counted {
        /// Sockets of the family NETLINK_ROUTE.
        sockets: u64,
        /// Messages sent by them.
        messages: u64,
    },
    /// They were not seen, for this reason.
    NotMeasured(String),
}

impl Tracer {
    /// Finds out by a trial whether tracing is allowed.
    ///
    /// # Errors
    /// [`crate::interrupt::Interrupted`].
    pub fn new() -> Result<Self> {
        let mut trial = Command::new(STRACE);
        trial.args(OPTIONS).args(["-o", "/dev/null", "true"]);
        let refusal = match command::output(&mut trial) {
            Ok(output) if output.status.success() => None,
            Ok(output) => {
                let words = String::from_utf8_lossy(&output.stderr);
                Some(words.lines().next().unwrap_or("strace fails without a word").to_owned())
            }
            Err(error) if error.is::<crate::interrupt::Interrupted>() => return Err(error),
            Err(error) => Some(format!("{error:#}")),
        };
        Ok(Self { files: Vec::new(), refusal })
    }

    /// What to run the process `name` under, with its trace in `folder`.
    pub fn wrapper(&mut self, folder: &Path, name: &str) -> Vec<String> {
        if self.refusal.is_some() {
            return Vec::new();
        }
        let file = folder.join(format!("{name}.trace"));
        let words = [STRACE, "-D"].into_iter().chain(OPTIONS).chain(["-o"]);
        let words = words.map(str::to_owned).chain([file.display().to_string()]).collect();
        self.files.push(file);
        words
    }

    /// The sum over all processes, which must have ended.
    pub fn count(self) -> Netlink {
        match self.count_by_program() {
            Ok(programs) => Netlink::Counted {
                sockets: programs.values().map(|counts| counts.sockets).sum(),
                messages: programs.values().map(|counts| counts.messages).sum(),
            },
            Err(reason) => Netlink::NotMeasured(reason),
        }
    }

    /// The sum over all processes, which must have ended, for each program by its name.
    ///
    /// # Errors
    /// Why they were not seen.
    pub fn count_by_program(self) -> Result<BTreeMap<String, Counts>, String> {
        if let Some(reason) = self.refusal {
            return Err(reason);
        }
        let mut all = BTreeMap::<String, Counts>::new();
        for path in self.files {
            let counted = fs::File::open(&path).map(BufReader::new).and_then(programs::count);
            let counted = counted.map_err(|error| format!("{}: {error}", path.display()))?;
            // Each of them has at least one UNIX socket.
            if counted.values().all(|counts| counts.calls == 0) {
                return Err(format!("{} is empty", path.display()));
            }
            for (program, counts) in counted {
                all.entry(program).or_default().add(counts);
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where tracing is allowed a real rtnetlink message is counted; elsewhere the reason is told.
    #[test]
    fn a_process_that_speaks_rtnetlink_is_found_out() {
        let folder = tempfile::tempdir().unwrap();
        let mut tracer = Tracer::new().unwrap();
        let wrapper = tracer.wrapper(folder.path(), "getent");
        let Some((program, arguments)) = wrapper.split_first() else {
            assert!(matches!(tracer.count(), Netlink::NotMeasured(reason) if !reason.is_empty()));
            return;
        };
        // glibc asks rtnetlink for the machine's addresses before it resolves a name (RFC 3484).
        let mut command = Command::new(program);
        // Not detached here: so strace has written all when it ends.
        command.args(arguments.iter().filter(|word| *word != "-D"));
        command.args(["getent", "ahosts", "localhost"]);
        assert!(command::output(&mut command).unwrap().status.success());
        let Netlink::Counted { sockets, messages } = tracer.count() else { panic!("allowed") };
        assert!(sockets > 0 && messages > 0, "{sockets} sockets, {messages} messages");
    }

    #[test]
    fn without_a_trace_there_is_no_number() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.trace");
        let tracer = || Tracer { files: vec![path.clone()], refusal: None };
        assert!(matches!(tracer().count(), Netlink::NotMeasured(_)));
        fs::write(&path, "12 +++ exited with 0 +++\n").unwrap();
        assert!(matches!(tracer().count(), Netlink::NotMeasured(_)));
        let refused = Tracer { files: Vec::new(), refusal: Some("not permitted".to_owned()) };
        assert_eq!(refused.count(), Netlink::NotMeasured("not permitted".to_owned()));
    }
}
