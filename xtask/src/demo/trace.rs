//! Counts the rtnetlink messages that processes send, by their system calls.
//!
//! Each process runs under strace with a filter in the kernel (`--seccomp-bpf`), so that only calls
//! that make a socket or send a message stop it. strace is the process's detached descendant
//! (`-D`): the process stays our direct child.
//!
//! A process can send to rtnetlink only by a socket of that family, and inherits none from us, so
//! what is counted here is all there is. When tracing is not allowed the count is unknown, never zero.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::command;

const STRACE: &str = "strace";
const OPTIONS: [&str; 5] =
    ["-f", "--seccomp-bpf", "-e", "trace=socket,sendto,sendmsg,sendmmsg", "-yy"];

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
        if let Some(reason) = self.refusal {
            return Netlink::NotMeasured(reason);
        }
        let (mut sockets, mut messages) = (0, 0);
        for path in self.files {
            match fs::File::open(&path).map(BufReader::new).and_then(count) {
                // Each of them has at least one UNIX socket.
                Ok(Counts { calls: 0, .. }) => {
                    return Netlink::NotMeasured(format!("{} is empty", path.display()));
                }
                Ok(counts) => {
                    sockets += counts.sockets;
                    messages += counts.messages;
                }
                Err(error) => {
                    return Netlink::NotMeasured(format!("{}: {error}", path.display()));
                }
            }
        }
        Netlink::Counted { sockets, messages }
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    calls: u64,
    sockets: u64,
    messages: u64,
}

/// Reads a trace. A call that was interrupted by another thread's has a second line that begins with
/// `<...` and does not count.
fn count(trace: impl BufRead) -> io::Result<Counts> {
    let mut counts = Counts::default();
    for line in trace.split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        // Each line begins with the thread's number.
        let call = line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
        if call.starts_with("socket(") {
            counts.calls += 1;
            let is_route = call.contains("AF_NETLINK") && call.contains("NETLINK_ROUTE");
            counts.sockets += u64::from(is_route);
        } else if call.starts_with("send") {
            counts.calls += 1;
            // The descriptor comes first, with what it is: `sendto(3<NETLINK:[ROUTE:7]>, ...`.
            let (descriptor, _) = call.split_once(',').unwrap_or((call, ""));
            counts.messages += u64::from(descriptor.contains("<NETLINK:[ROUTE"));
        }
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_and_messages_of_rtnetlink_are_counted_and_no_others() {
        let trace = "\
            12 socket(AF_UNIX, SOCK_STREAM|SOCK_CLOEXEC, 0) = 4<UNIX-STREAM:[99]>\n\
            12 socket(AF_NETLINK, SOCK_RAW|SOCK_CLOEXEC, NETLINK_ROUTE) = 5<NETLINK:[ROUTE:12]>\n\
            12 socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE <unfinished ...>\n\
            13 sendto(4<UNIX-STREAM:[99]>, \"<NETLINK:[ROUTE:1]>\", 19, 0, NULL, 0) = 19\n\
            12 <... socket resumed>) = 6<NETLINK:[ROUTE:-1]>\n\
            12 socket(AF_NETLINK, SOCK_DGRAM, NETLINK_KOBJECT_UEVENT) = 7<NETLINK:[KOBJECT_UEVENT:1]>\n\
            12 sendto(5<NETLINK:[ROUTE:12]>, [{nlmsg_len=20, ...}], 20, 0, NULL, 0) = 20\n\
            12 sendmsg(6<NETLINK:[ROUTE:-1]>, {msg_name=NULL}, 0) = 20\n\
            12 sendmsg(7<NETLINK:[KOBJECT_UEVENT:1]>, {msg_name=NULL}, 0) = 20\n\
            12 +++ exited with 0 +++\n";
        let counts = count(trace.as_bytes()).unwrap();
        assert_eq!(counts, Counts { calls: 8, sockets: 2, messages: 2 });
    }

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
