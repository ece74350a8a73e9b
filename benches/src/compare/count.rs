//! What a burst asks of rtnetlink and of the RTNL mutex, counted by the kernel while it runs.
//!
//! In a pass of its own, as counting takes time. bpftrace runs three kinds of probes, each for the
//! processes on our own host alone, known by their mount namespace:
//!
//! * **rtnetlink messages**: entries of sendto, sendmsg and sendmmsg on a socket of NETLINK_ROUTE. A call
//!   counts once. (Those of this program, of the plugins and of ovs-vswitchd carry one message each.)
//! * **contended waits**: `lock:contention_begin` and `_end` of the RTNL mutex. Its address is in no
//!   table that kernels show; it is the one that threads fight for who do nothing but set `lo` up.
//! * **RTNL acquisitions and hold time**: a hardware watchpoint on that mutex. Its first word names the
//!   owner: a write after which it is the writer is an acquisition, the next write of another
//!   owner the release.
//!
//! Before anything is counted a thread asks for a known number of things: where messages or
//! acquisitions are not counted as exactly these, their figures are 'not counted', never zero. What kernel threads
//! do later, on anybody's behalf, is not counted.
//!
//! Counts stand by the name of the thread: stages of a burst ([`super::burst::STAGES`]), plugins and
//! daemons have their own.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::thread;

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tempfile::TempDir;

use super::apart::Apart;
use super::arms::{Arm, ArmKind};
use super::burst::STAGES;
use super::route::Route;
use crate::peer::program::{Service, find};
use crate::rig::cores;

const READY: &str = "READY";
/// What the thread is called that asks for a known number of things.
const TRIAL: &str = "cmp-trial";
/// How often it does.
const TRIALS: u64 = 100;
/// On a busy machine the kernel may lose some of them, or nobody waits for the mutex: so often it is tried.
const ATTEMPTS: usize = 3;
/// Threads that fight for the RTNL mutex, and how often each takes it.
const FIGHTERS: usize = 8;
const ROUNDS: usize = 500;
/// Fights over less say nothing.
const LEAST_FIGHTS: u64 = 20;

/// By name of the thread or program.
pub type ByName = BTreeMap<String, u64>;

/// What the set-up of a burst did; `None`: not counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Who was set up.
    pub arm: ArmKind,
    /// How many pods.
    pub pods: usize,
    /// rtnetlink messages.
    pub messages: Option<ByName>,
    /// Acquisitions of the RTNL mutex.
    pub acquisitions: Option<ByName>,
    /// Nanoseconds that it was held.
    pub hold_ns: Option<ByName>,
    /// Nanoseconds that threads waited for it.
    pub wait_ns: Option<ByName>,
}

/// What network namespaces take by themselves, in every arm, counts under the stage's name.
pub fn without_namespaces(counts: &ByName) -> u64 {
    counts.iter().filter(|(name, _)| *name != STAGES[0]).map(|(_, count)| count).sum()
}

/// How things are counted, or why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Methods {
    /// rtnetlink messages.
    pub messages: String,
    /// Acquisitions and hold time.
    pub acquisitions: String,
    /// Contended waits.
    pub waits: String,
}

/// What works on this kernel.
#[derive(Debug)]
pub struct Tracer<'a> {
    host: &'a Apart,
    has_messages: bool,
    /// The address of the mutex, and whether a watchpoint on it counts.
    mutex: Option<(u64, bool)>,
    /// In words.
    pub methods: Methods,
}

impl<'a> Tracer<'a> {
    /// Finds out what this kernel allows.
    ///
    /// # Errors
    /// Someone wants us to end.
    pub fn new(host: &'a Apart) -> Result<Self> {
        let refused = |why: String| Methods {
            messages: format!("not counted: {why}"),
            acquisitions: format!("not counted: {why}"),
            waits: format!("not counted: {why}"),
        };
        let mut tracer =
            Self { host, has_messages: false, mutex: None, methods: refused("untried".to_owned()) };
        if find("bpftrace").is_none() {
            tracer.methods = refused("bpftrace is not installed".to_owned());
            return Ok(tracer);
        }
        let tried = tracer.try_all();
        crate::interrupt::check()?;
        if let Err(error) = tried {
            (tracer.has_messages, tracer.mutex) = (false, None);
            let why = format!("{error:#}");
            tracer.methods = refused(why.lines().next().unwrap_or_default().to_owned());
        }
        Ok(tracer)
    }

    fn try_all(&mut self) -> Result<()> {
        self.has_messages = true;
        let counted = self.tried("@messages")?;
        self.has_messages = counted == TRIALS;
        self.methods.messages = if self.has_messages {
            "bpftrace: sendto, sendmsg and sendmmsg on sockets of NETLINK_ROUTE".to_owned()
        } else {
            format!("not counted: of {TRIALS} messages sent the kernel showed {counted}")
        };
        match again(|| self.find_mutex(), |_| true) {
            Ok(address) => self.mutex = Some((address, false)),
            Err(error) => {
                crate::interrupt::check()?;
                self.methods.waits = format!("not counted: {error:#}");
                self.methods.acquisitions = self.methods.waits.clone();
                return Ok(());
            }
        }
        self.methods.waits = "bpftrace: lock:contention_begin and _end of the RTNL mutex, whose \
                              address is the one that link-ups fight for"
            .to_owned();
        self.mutex = self.mutex.map(|(address, _)| (address, true));
        let counted = self.tried("@acquisitions");
        let is_exact = matches!(counted, Ok(TRIALS));
        self.mutex = self.mutex.map(|(address, _)| (address, is_exact));
        self.methods.acquisitions = match counted {
            Ok(TRIALS) => {
                "bpftrace: a hardware watchpoint on the owner of the RTNL mutex".to_owned()
            }
            Ok(other) => format!("not counted: of {TRIALS} acquisitions the kernel showed {other}"),
            Err(error) => format!("not counted: {error:#}").lines().next().unwrap_or("").to_owned(),
        };
        Ok(())
    }

    /// Counts while `act` runs, until it calls what it is given.
    ///
    /// # Errors
    /// bpftrace does not run; a daemon is not where it is seen; those of `act`.
    pub fn count(
        &self,
        kind: ArmKind,
        arm: &dyn Arm,
        pods: usize,
        act: impl FnOnce(&mut dyn FnMut() -> Result<()>) -> Result<()>,
    ) -> Result<Count> {
        let ours = fs::read_link("/proc/thread-self/ns/mnt")?;
        for pid in arm.daemons() {
            let theirs = fs::read_link(format!("/proc/{pid}/ns/mnt"))?;
            ensure!(theirs == ours, "Process {pid} left our mounts, so it would not be counted");
        }
        let is_anything_counted = self.has_messages || self.mutex.is_some();
        let mut session = if is_anything_counted { Some(self.start()?) } else { None };
        let mut counts = (!is_anything_counted).then(|| Ok(BTreeMap::new()));
        act(&mut || {
            // What is wrong with it is told below: a burst takes errors for its own.
            counts = session.take().map(Session::finish).or_else(|| counts.take());
            Ok(())
        })?;
        let mut counts = counts.context("The set-up did not come to its end")??;
        let mut take = |name: &str, is_counted: bool| {
            // bpftrace leaves out what has no entry: then it is none.
            is_counted.then(|| counts.remove(name).unwrap_or_default())
        };
        let has_acquisitions = self.mutex.is_some_and(|(_, has)| has);
        Ok(Count {
            arm: kind,
            pods,
            messages: take("@messages", self.has_messages),
            acquisitions: take("@acquisitions", has_acquisitions),
            hold_ns: take("@hold", has_acquisitions),
            wait_ns: take("@wait", self.mutex.is_some()),
        })
    }

    /// Traces what `act` does.
    fn trace<T>(&self, act: impl FnOnce() -> T) -> Result<Result<BTreeMap<String, ByName>>> {
        let session = self.start()?;
        act();
        Ok(session.finish())
    }

    /// What a trial shows in the map `name`, at best.
    fn tried(&self, name: &str) -> Result<u64> {
        let one = || {
            let counts = self.trace(trial)??;
            Ok(counts.get(name).and_then(|by| by.get(TRIAL)).copied().unwrap_or(0))
        };
        again(one, |counted| *counted == TRIALS)
    }

    fn start(&self) -> Result<Session> {
        let folder = self.host.folder("bpftrace")?;
        let (script, out) = (folder.path().join("script.bt"), folder.path().join("out.json"));
        fs::write(&script, self.script()?)?;
        let (first, last) = cores()?;
        let cores: Vec<_> = (first..=last).collect();
        let args = vec!["-f".into(), "json".into(), "-o".into(), (&out).into(), (&script).into()];
        let program = find("bpftrace").context("bpftrace is not there")?;
        let service = Service::start("bpftrace", &program, args, &[], &cores, None)?;
        let session = Session { service, out, _folder: folder };
        let is_ready = || fs::read_to_string(&session.out).is_ok_and(|text| text.contains(READY));
        session.service.wait_until(is_ready)?;
        Ok(session)
    }

    fn script(&self) -> Result<String> {
        let ours = format!("curtask->nsproxy->mnt_ns->ns.inum == {}", self.host.mount_namespace()?);
        let mut text = format!("BEGIN {{ printf(\"{READY}\\n\"); }}\n");
        if self.has_messages {
            // AF_NETLINK is 16, NETLINK_ROUTE 0.
            let _ = write!(
                text,
                "tracepoint:syscalls:sys_enter_sendto, tracepoint:syscalls:sys_enter_sendmsg, \
                 tracepoint:syscalls:sys_enter_sendmmsg /{ours}/ {{\n\
                 $file = *(curtask->files->fdt->fd + args->fd);\n\
                 $socket = (struct socket *)$file->private_data;\n\
                 if ($socket->sk->__sk_common.skc_family == 16 && $socket->sk->sk_protocol == 0) \
                 {{ @messages[comm] = count(); }} }}\n"
            );
        }
        let Some((address, has_watchpoint)) = self.mutex else {
            // A mutex is flag 32 of struct contention_begin.
            let _ = writeln!(
                text,
                "tracepoint:lock:contention_begin /{ours} && ((uint64)args->flags & 32)/ \
                 {{ @fights[args->lock_addr] = count(); }}"
            );
            return Ok(text);
        };
        let _ = write!(
            text,
            "tracepoint:lock:contention_begin /(uint64)args->lock_addr == (uint64){address:#x} && {ours}/ \
             {{ if (@from[tid] == 0) {{ @from[tid] = nsecs; }} }}\n\
             tracepoint:lock:contention_end /(uint64)args->lock_addr == (uint64){address:#x} && @from[tid]/ \
             {{ @wait[comm] = sum(nsecs - @from[tid]); delete(@from[tid]); }}\n"
        );
        if has_watchpoint {
            let _ = write!(
                text,
                "watchpoint:{address:#x}:8:w /{ours}/ {{\n\
                 $owner = *(uint64 *)kptr({address:#x}) & ~(uint64)7;\n\
                 if ($owner == (uint64)curtask) {{ if (@since[tid] == 0) \
                 {{ @since[tid] = nsecs; @acquisitions[comm] = count(); }} }}\n\
                 else if (@since[tid] != 0) \
                 {{ @hold[comm] = sum(nsecs - @since[tid]); delete(@since[tid]); }} }}\n"
            );
        }
        text += "END { clear(@from); clear(@since); }\n";
        Ok(text)
    }

    /// The address that threads fight for who do nothing but take the RTNL mutex.
    fn find_mutex(&self) -> Result<u64> {
        let counts = self.trace(fight)??;
        let fights = counts.get("@fights").cloned().unwrap_or_default();
        let all: u64 = fights.values().sum();
        let (address, most) = fights
            .iter()
            .max_by_key(|(_, count)| **count)
            .context("no thread waited for the RTNL mutex, so its address is not known")?;
        ensure!(
            *most >= LEAST_FIGHTS && *most * 2 > all,
            "threads waited for several mutexes alike, so it is not known which is RTNL's"
        );
        let digits = address.trim_start_matches("0x");
        u64::from_str_radix(digits, 16).with_context(|| format!("{address} is no address"))
    }
}

/// A running bpftrace.
struct Session {
    service: Service,
    out: PathBuf,
    _folder: TempDir,
}

impl Session {
    fn finish(self) -> Result<BTreeMap<String, ByName>> {
        self.service.stop()?;
        Ok(maps(&fs::read_to_string(&self.out)?))
    }
}

/// The maps that bpftrace prints when it ends, a line for each.
fn maps(text: &str) -> BTreeMap<String, ByName> {
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut all = BTreeMap::new();
    for line in lines.filter(|line| line["type"] == "map") {
        for (name, entries) in line["data"].as_object().into_iter().flatten() {
            let entries = entries.as_object().into_iter().flatten();
            let entries = entries.filter_map(|(key, value)| Some((key.clone(), value.as_u64()?)));
            all.insert(name.clone(), entries.collect());
        }
    }
    all
}

/// The first of a few outcomes of `act` that is good, else the last; no more if someone wants us to end.
///
/// # Errors
/// Those of `act`.
pub fn again<T>(mut act: impl FnMut() -> Result<T>, is_good: impl Fn(&T) -> bool) -> Result<T> {
    let mut outcome = act();
    for _ in 1..ATTEMPTS {
        if outcome.as_ref().is_ok_and(&is_good) || crate::interrupt::check().is_err() {
            break;
        }
        outcome = act();
    }
    outcome
}

/// Sets `lo` of a namespace of its own up, again and again, in a thread with a name of its own.
fn trial() {
    thread::scope(|scope| {
        scope.spawn(|| {
            let _ = prctl::set_name(c"cmp-before");
            let Ok(route) = own_namespace() else { return };
            let _ = prctl::set_name(c"cmp-trial");
            for _ in 0..TRIALS {
                let _ = route.up("lo");
            }
            let _ = prctl::set_name(c"cmp-after");
        });
    });
}

fn fight() {
    thread::scope(|scope| {
        for _ in 0..FIGHTERS {
            scope.spawn(|| {
                let Ok(route) = own_namespace() else { return };
                for _ in 0..ROUNDS {
                    let _ = route.up("lo");
                }
            });
        }
    });
}

fn own_namespace() -> Result<Route> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    Route::open()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_tried_again_a_few_times() {
        let mut left = [3, 2, 1].into_iter();
        let mut next = || left.next().context("no more");
        assert_eq!(again(&mut next, |n| *n < 3).unwrap(), 2);
        // The third try finds nothing.
        assert_eq!(again(&mut next, |_| false).unwrap_err().to_string(), "no more");
        let mut calls = 0;
        let mut count = || {
            calls += 1;
            Ok(calls)
        };
        assert_eq!(again(&mut count, |_| false).unwrap(), ATTEMPTS);
    }

    #[test]
    fn maps_are_read_from_among_other_lines() {
        let text = "{\"type\": \"printf\", \"data\": \"READY\\n\"}\n\n\
                    {\"type\": \"map\", \"data\": {\"@messages\": {\"NetNS\": 3, \"bridge\": 40}}}\n\
                    {\"type\": \"map\", \"data\": {\"@hold\": {\"bridge\": 7}}}\n";
        let maps = maps(text);
        assert_eq!(maps["@messages"]["bridge"], 40);
        assert_eq!(without_namespaces(&maps["@messages"]), 40);
        assert_eq!(maps["@hold"].len(), 1);
    }
}
