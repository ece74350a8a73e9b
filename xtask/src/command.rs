//! Programs that run for us and end with us.
//!
//! Each runs in a process group of its own, so that Ctrl-C at a terminal reaches us alone, and
//! that its children end with it. An interrupt asks every group to end ([`end_all`]); what does
//! not in time is killed, unless it is a package manager, which leaves a mess when killed. Compilers
//! and unpackers that are ended leave temporary files, so they get a folder for them that goes
//! when they do.
//!
//! # Threads
//! Any thread may run programs. A program stays registered until it has ended but before its pid is
//! free for another, so that nobody else is ever signalled.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;
use std::{fs, io};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use crate::interrupt::{self, Interrupted};

/// How long a program may take to end once it was asked to.
const GRACE: Duration = Duration::from_secs(5);
/// Between two looks at what has no event to wait for.
const LOOK: Duration = Duration::from_millis(10);
/// A program that takes longer hangs: all of slipway compiles in minutes.
const LONGEST: Duration = Duration::from_secs(3600);

/// How a program takes an interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// SIGTERM, and SIGKILL if that does not help. What is left in `TMPDIR` is removed.
    Firm,
    /// SIGINT alone, for package managers: it ends a download at once, but no installation
    /// half-way. They clean up after themselves, and work as users that may not enter our folders.
    Gentle,
}

impl Ending {
    const fn first_signal(self) -> Signal {
        match self {
            Self::Firm => Signal::SIGTERM,
            Self::Gentle => Signal::SIGINT,
        }
    }
}

static RUNNING: Mutex<Vec<(Pid, Ending)>> = Mutex::new(Vec::new());
static CHANGED: Condvar = Condvar::new();

/// No code panics while it holds the lock.
fn running() -> MutexGuard<'static, Vec<(Pid, Ending)>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `command` to its end, with our own standard output and error.
///
/// # Errors
/// It could not be run, or [`Interrupted`].
pub fn status(command: &mut Command, ending: Ending) -> Result<ExitStatus> {
    run(command, ending, |_| Ok(())).map(|(status, ())| status)
}

/// Runs `command` to its end and returns what it printed.
///
/// # Errors
/// It could not be run, or [`Interrupted`].
pub fn output(command: &mut Command) -> Result<Output> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let (status, (stdout, stderr)) = run(command, Ending::Firm, read_both)?;
    Ok(Output { status, stdout, stderr })
}

/// Asks every program to end, and sees to it that it does.
pub fn end_all() {
    let mut groups = running();
    for &(group, ending) in groups.iter() {
        signal(group, ending.first_signal());
    }
    let is_left =
        |groups: &mut Vec<(Pid, Ending)>| groups.iter().any(|&(_, ending)| ending == Ending::Firm);
    let waited = CHANGED.wait_timeout_while(groups, GRACE, is_left);
    groups = waited.unwrap_or_else(PoisonError::into_inner).0;
    for &(group, _) in groups.iter().filter(|&&(_, ending)| ending == Ending::Firm) {
        signal(group, Signal::SIGKILL);
    }
}

fn signal(group: Pid, signal: Signal) {
    // Fails only if the group has ended.
    let _ = killpg(group, signal);
}

/// Runs `command` to its end while `read` follows what it prints.
///
/// # Errors
/// It could not be run or read, or [`Interrupted`].
pub fn run<T>(
    command: &mut Command,
    ending: Ending,
    read: impl FnOnce(&mut Child) -> io::Result<T>,
) -> Result<(ExitStatus, T)> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).process_group(0);
    let scratch = match ending {
        Ending::Firm => {
            let folder = tempfile::Builder::new().prefix("xtask-").tempdir();
            Some(folder.context("Failed to make a temporary folder")?)
        }
        Ending::Gentle => None,
    };
    if let Some(folder) = &scratch {
        command.env("TMPDIR", folder.path());
    }
    let (mut child, group) = {
        // Under the lock: an interrupt comes either before, and nothing is started, or after, and
        // finds the program registered.
        let mut running = running();
        if interrupt::is_requested() {
            return Err(Interrupted.into());
        }
        let child = command.spawn().with_context(|| format!("Failed to run {program}"))?;
        let group = Pid::from_raw(child.id().cast_signed());
        running.push((group, ending));
        (child, group)
    };
    let (printed, ended, is_in_time) = thread::scope(|scope| {
        let (done, watch) = mpsc::channel::<()>();
        let watchdog = scope.spawn(move || {
            let is_in_time = watch.recv_timeout(LONGEST) != Err(RecvTimeoutError::Timeout);
            if !is_in_time {
                signal(group, ending.first_signal());
            }
            is_in_time
        });
        let printed = read(&mut child);
        let ended = wait_without_reaping(group);
        drop(done);
        // The watchdog does not panic.
        (printed, ended, watchdog.join().unwrap_or(true))
    });
    let is_interrupted = {
        let mut running = running();
        running.retain(|&(other, _)| other != group);
        CHANGED.notify_all();
        interrupt::is_requested()
    };
    if (is_interrupted || !is_in_time) && ending == Ending::Firm {
        end_stragglers(group);
    }
    let status = child.wait();
    if is_interrupted {
        return Err(Interrupted.into());
    }
    ensure!(is_in_time, "{program} was ended, as it took longer than {LONGEST:?}");
    let failed = || format!("Failed to wait for {program}");
    ended.with_context(failed)?;
    Ok((status.with_context(failed)?, printed.with_context(failed)?))
}

/// Kills what is left of a group whose leader has ended but is not reaped, which keeps the group's
/// number from being another's, and waits for that: the children of a program are not ours to wait
/// for, so it looks now and then. They may have missed the first signal, being just started.
fn end_stragglers(group: Pid) {
    signal(group, Signal::SIGKILL);
    let looks = GRACE.as_millis() / LOOK.as_millis();
    for _ in 0..looks {
        if !has_members(group) {
            return;
        }
        thread::sleep(LOOK);
    }
}

/// Whether a process of the group runs: zombies, like the leader, do not.
fn has_members(group: Pid) -> bool {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut stats = entries.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    stats.any(|stat| is_running_member(&stat, group))
}

/// Reads a process's `stat` (proc(5)): `pid (name) state parent group ...`.
fn is_running_member(stat: &str, group: Pid) -> bool {
    let Some((_, fields)) = stat.rsplit_once(") ") else { return false };
    let mut fields = fields.split(' ');
    let (state, of) = (fields.next(), fields.nth(1));
    !matches!(state, Some("Z" | "X")) && of == Some(group.to_string().as_str())
}

fn wait_without_reaping(pid: Pid) -> nix::Result<()> {
    loop {
        match waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
            Err(nix::errno::Errno::EINTR) => {}
            other => return other.map(drop),
        }
    }
}

fn read_both(child: &mut Child) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        // Read at the same time: a program blocks when nobody empties one of them.
        let errors = scope.spawn(|| read_all(stderr));
        let printed = read_all(stdout);
        // The thread does not panic; without its word there are no errors to show.
        let errors = errors.join().unwrap_or_else(|_| Ok(Vec::new()));
        Ok((printed?, errors?))
    })
}

fn read_all(pipe: Option<impl io::Read>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        pipe.read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn both_outputs_are_read_however_much_there_is() {
        let mut command = Command::new("sh");
        command.args(["-c", "head -c 300000 /dev/zero >&2; head -c 200000 /dev/zero; exit 3"]);
        let output = output(&mut command).unwrap();
        assert_eq!(output.status.code(), Some(3));
        assert_eq!((output.stdout.len(), output.stderr.len()), (200_000, 300_000));
    }

    #[test]
    fn a_program_runs_in_a_group_of_its_own() {
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo $$; ps -o pgid= -p $$ 2>/dev/null || cut -d' ' -f5 /proc/$$/stat"]);
        let output = output(&mut command).unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mut numbers = text.split_whitespace();
        assert_eq!(numbers.next(), numbers.next(), "{text}");
    }

    #[test]
    fn members_of_a_group_are_told_from_others_and_from_zombies() {
        let group = Pid::from_raw(7);
        assert!(is_running_member("9 (a) b) S 1 7 7 0", group));
        assert!(!is_running_member("9 (a) S 7 1 7 0", group));
        assert!(!is_running_member("7 (a) Z 1 7 7 0", group));
        assert!(!is_running_member("", group));
    }

    #[test]
    fn stragglers_of_a_group_are_gone_afterwards() {
        let mut shell = Command::new("sh");
        shell.args(["-c", "sleep 1000 & echo; exit"]).process_group(0).stdout(Stdio::piped());
        let mut shell = shell.spawn().unwrap();
        shell.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let group = Pid::from_raw(shell.id().cast_signed());
        wait_without_reaping(group).unwrap();
        assert!(has_members(group));
        end_stragglers(group);
        assert!(!has_members(group));
        shell.wait().unwrap();
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = status(&mut Command::new("/nowhere/tool"), Ending::Firm).unwrap_err();
        assert!(format!("{error:#}").contains("/nowhere/tool"), "{error:#}");
    }
}
