//! Reads strace's output: what each program of a tree of processes said to rtnetlink.
//!
//! A line is a thread's: `<number> <call>(...) = <result>`. A thread is of its maker's program until it
//! becomes another by execve. A call that another thread's line cut in two has a second half,
//! `<number> <... <call> resumed>...`, which holds the result.
//!
//! # Bounds
//! Threads that begin in a process number namespace of their own have another number there, which is
//! all that their maker is told: until they become another program they count as [`UNKNOWN`], as do
//! those that speak before their maker knows their number.

use std::collections::BTreeMap;
use std::io::{self, BufRead};

/// The program of threads whose maker is not known.
pub const UNKNOWN: &str = "(unknown)";

/// What a program did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Calls that make a socket or send.
    pub calls: u64,
    /// Sockets of the family NETLINK_ROUTE.
    pub sockets: u64,
    /// Messages sent by them, and by netlink sockets of which the family is not told.
    pub messages: u64,
}

impl Counts {
    /// Adds those of another.
    pub fn add(&mut self, other: Self) {
        self.calls += other.calls;
        self.sockets += other.sockets;
        self.messages += other.messages;
    }
}

/// Who is who, as far as the trace was read.
#[derive(Debug, Default)]
struct Threads {
    program: BTreeMap<u32, String>,
    /// Programs that threads are about to become.
    wanted: BTreeMap<u32, String>,
}

/// Counts by program.
///
/// # Errors
/// The trace cannot be read.
pub fn count(trace: impl BufRead) -> io::Result<BTreeMap<String, Counts>> {
    let mut threads = Threads::default();
    let mut programs = BTreeMap::<String, Counts>::new();
    for line in trace.split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        let Some((number, call)) = line.trim_start().split_once(' ') else { continue };
        let (Ok(number), call) = (number.parse(), call.trim_start()) else { continue };
        threads.see(number, call);
        let counts = judge(call);
        if counts.calls > 0 {
            let program = threads.program.get(&number).map_or(UNKNOWN, String::as_str);
            programs.entry(program.to_owned()).or_default().add(counts);
        }
    }
    Ok(programs)
}

impl Threads {
    /// Follows births and changes.
    fn see(&mut self, number: u32, call: &str) {
        let result = call.rsplit_once(" = ").map(|(_, result)| result);
        if let Some(arguments) = call.strip_prefix("execve(") {
            let path = arguments.split('"').nth(1).unwrap_or(UNKNOWN);
            let name = path.rsplit('/').next().unwrap_or(path);
            self.wanted.insert(number, name.to_owned());
        }
        if is_of(call, &["execve"]) && !call.ends_with("<unfinished ...>") {
            let wanted = self.wanted.remove(&number);
            if let (Some("0"), Some(name)) = (result, wanted) {
                self.program.insert(number, name);
            }
        }
        if is_of(call, &["clone", "clone3", "fork", "vfork"])
            && let Some(child) = result.and_then(first_number)
            && let Some(program) = self.program.get(&number).cloned()
        {
            // It may have become another program already.
            self.program.entry(child).or_insert(program);
        }
    }
}

/// Whether it is the whole or the second half of one of these calls, or its beginning.
fn is_of(call: &str, names: &[&str]) -> bool {
    let call = call.strip_prefix("<... ").unwrap_or(call);
    names.iter().any(|name| {
        call.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with('(') || rest.starts_with(" resumed>"))
    })
}

/// `124` of `124` and of `124<program>`: with `-yy` a number may be explained.
fn first_number(text: &str) -> Option<u32> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

/// What one line says. The second half of a call does not count.
fn judge(call: &str) -> Counts {
    if call.starts_with("socket(") {
        let is_route = call.contains("AF_NETLINK") && call.contains("NETLINK_ROUTE");
        return Counts { calls: 1, sockets: u64::from(is_route), messages: 0 };
    }
    if call.starts_with("send") {
        // The descriptor comes first, with what it is: `sendto(3<NETLINK:[ROUTE:7]>, ...`. Of a socket in
        // another network namespace strace does not know the family: `3<NETLINK:[1427741]>`.
        let (descriptor, _) = call.split_once(',').unwrap_or((call, ""));
        let family = descriptor.split_once("<NETLINK:[").map(|(_, family)| family);
        let is_route = family.is_some_and(|family| {
            family.starts_with("ROUTE") || family.starts_with(|c: char| c.is_ascii_digit())
        });
        return Counts { calls: 1, sockets: 0, messages: u64::from(is_route) };
    }
    Counts::default()
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
            12 sendmsg(8<NETLINK:[1427741]>, {msg_name=NULL}, 0) = 20\n\
            12 +++ exited with 0 +++\n";
        let counted = count(trace.as_bytes()).unwrap();
        let expected = Counts { calls: 9, sockets: 2, messages: 3 };
        assert_eq!(counted, BTreeMap::from([(UNKNOWN.to_owned(), expected)]));
    }

    #[test]
    fn a_message_is_its_program_s_also_of_threads_and_after_a_change() {
        let trace = "\
            10 execve(\"/usr/bin/engine\", [\"engine\"], 0x7ffd /* 20 vars */) = 0\n\
            10 clone3({flags=CLONE_VM|CLONE_THREAD, ...} => {parent_tid=[11]}, 88) = 11\n\
            11 sendto(5<NETLINK:[ROUTE:12]>, ..., 20, 0, NULL, 0) = 20\n\
            11 vfork( <unfinished ...>\n\
            12 execve(\"/nowhere/plugin\", [\"plugin\"], 0x7ffd /* 20 vars */) = -1 ENOENT\n\
            12 execve(\"/opt/plugin\", [\"plugin\"], 0x7ffd /* 20 vars */ <unfinished ...>\n\
            11 <... vfork resumed>) = 12\n\
            12 <... execve resumed>) = 0\n\
            12 sendmsg(3<NETLINK:[ROUTE:1]>, {msg_name=NULL}, 0) = 20\n\
            12 sendmsg(3<NETLINK:[ROUTE:1]>, {msg_name=NULL}, 0) = 20\n";
        let counted = count(trace.as_bytes()).unwrap();
        let messages = |count| Counts { calls: count, sockets: 0, messages: count };
        let expected = BTreeMap::from([
            ("engine".to_owned(), messages(1)),
            ("plugin".to_owned(), messages(2)),
        ]);
        assert_eq!(counted, expected);
    }
}
