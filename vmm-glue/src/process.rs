//! Processes, VMMs first of all: started, watched, ended, and never left behind.
//!
//! One thread, the reaper, starts every child and is the only one that signals or reaps it:
//!
//! ```text
//!  caller              reaper thread (own tokio runtime)           child
//!  Child::spawn ----->  fork, exec ------------------------------> setpriv: die with the reaper
//!     <---- pid, console, standard error                            sh: is the parent still ours?
//!                                                                   sh: enter the cgroups
//!  wait  <--- status -- waits on the pidfd, then reaps              exec wrapper... VMM
//!  terminate --------->  SIGTERM
//!  kill, drop -------->  SIGKILL to its process group, reaps
//! ```
//!
//! # A child never outlives us
//! * Dropping the handle kills it and returns when it is reaped.
//! * If we die, even by SIGKILL, the kernel kills it: PR_SET_PDEATHSIG (prctl(2)). That setting
//!   belongs to the parent *thread* that forked, and threads of an async runtime come and go; the
//!   reaper thread lives as long as the process. It is set by util-linux `setpriv` after the fork,
//!   as doing it in the forked child of our own would take `unsafe`; it outlives `exec`.
//! * If we die between the fork and that call, nobody would signal any more. Hence the shell: it
//!   goes on only if its parent is still this process, and the signal is armed by then.
//!
//! `exec` all along the way keeps one pid: setpriv, shell, wrapper and VMM are the same, direct
//! child. It leads a process group of its own, so Ctrl-C at a terminal reaches us alone and the
//! VM is stopped in order; and what a child forks (virtiofsd does) is killed with it.
//!
//! # Bounds
//! One thread for all children. After an exit the pipes are read for 500 ms at most: a helper of
//! the wrapper may hold them open.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::mpsc as std_mpsc;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::net::unix::pipe;
use tokio::process::Command;
use tokio::sync::{mpsc, oneshot, watch};

use crate::console::{Console, Feed};
use crate::exit::{ExitCause, ExitReport};

/// `$1` is our pid, what follows up to `--` are files of cgroups, the rest is the command. 125 is the
/// code by which wrapping commands report a failure of their own.
const FIRST_STEPS: &str = r#"[ "$PPID" = "$1" ] || exit 125; shift
while [ "$1" != -- ]; do
    echo $$ > "$1" || { echo "the process cannot be put into the cgroup of $1" >&2; exit 125; }
    shift
done
shift; exec "$@""#;
const DRAIN_LIMIT: Duration = Duration::from_millis(500);
/// A killed process ends in milliseconds unless the kernel itself is stuck.
const REAP_LIMIT: Duration = Duration::from_secs(10);
const REPORTED_LINES: usize = 20;

/// What to run.
#[derive(Debug, Default)]
pub struct Launch {
    /// What people call it: the VM's name, for a VMM.
    pub name: String,
    /// The program, looked up in PATH if it has no slash.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// See [`VmSpec::wrapper`](crate::VmSpec::wrapper).
    pub wrapper: Vec<String>,
    /// Receives standard output, a VMM's serial console.
    pub console_file: Option<PathBuf>,
    /// Standard input; `None`: `/dev/null`. A listening socket may be handed over here.
    pub stdin: Option<OwnedFd>,
    /// Files to which the process writes its pid before it becomes the program, `cgroup.procs` of the
    /// cgroups that it is to be in. So nothing that it does or allocates is outside of them.
    pub cgroup_procs: Vec<PathBuf>,
}

/// Why a child could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// No thread, pipe or runtime to be had.
    #[error("Failed to prepare the process of '{name}'")]
    Prepare {
        /// Of the VM, or what else was to run.
        name: String,
        /// The cause.
        source: io::Error,
    },
    /// `setpriv` could not be run.
    #[error("Failed to run 'setpriv' for '{name}'; it is part of util-linux, and must be in PATH")]
    Spawn {
        /// Of the VM, or what else was to run.
        name: String,
        /// The cause.
        source: io::Error,
    },
    /// The console file could not be made.
    #[error("Failed to create the console file {path} of '{name}'")]
    ConsoleFile {
        /// Of the VM, or what else was to run.
        name: String,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// A killed process that does not end.
#[derive(Debug, thiserror::Error)]
#[error("'{name}' (pid {pid}) was killed, but does not end; look at /proc/{pid}/stack")]
pub struct Stuck {
    /// Of the VM, or what else was run.
    pub name: String,
    /// The process.
    pub pid: u32,
}

/// A running process. Dropping it kills the process and waits until it is gone.
#[derive(Debug)]
pub struct Child {
    name: String,
    pid: u32,
    console: Console,
    stderr: Console,
    exit: watch::Receiver<Option<ExitStatus>>,
    signals: mpsc::UnboundedSender<Signal>,
    /// Closed by the reaper once the process is reaped; for `drop`, which cannot await.
    reaped: Mutex<std_mpsc::Receiver<()>>,
}

impl Child {
    /// Starts `launch`.
    ///
    /// # Errors
    /// See [`ProcessError`]. A program that does not exist is no error here: the child ends with
    /// code 127 and says so on its standard error.
    pub async fn spawn(launch: Launch) -> Result<Self, ProcessError> {
        let name = launch.name.clone();
        let prepare = |source| ProcessError::Prepare { name: name.clone(), source };
        let file = launch.console_file.as_ref().map(|path| {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            options.open(path).map_err(|source| ProcessError::ConsoleFile {
                name: name.clone(),
                path: path.clone(),
                source,
            })
        });
        let file = file.transpose()?;
        let (console_pipe, stdout) = io::pipe().map_err(prepare)?;
        let (stderr_pipe, stderr) = io::pipe().map_err(prepare)?;

        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--", "/bin/sh", "-c", FIRST_STEPS, "vmm-glue"])
            .arg(std::process::id().to_string())
            .args(&launch.cgroup_procs)
            .arg("--")
            .args(&launch.wrapper)
            .arg(&launch.program)
            .args(&launch.args)
            .stdin(launch.stdin.map_or_else(Stdio::null, Stdio::from))
            .stdout(stdout)
            .stderr(stderr)
            .process_group(0)
            .kill_on_drop(true);

        let (console, console_feed) = Console::new();
        let (stderr, stderr_feed) = Console::new();
        let (exit_sender, exit) = watch::channel(None);
        let (signals, signals_receiver) = mpsc::unbounded_channel();
        let (reaped_sender, reaped) = std_mpsc::channel();
        let (reply, pid) = oneshot::channel();
        let job = Job {
            command,
            pumps: [
                Pump { pipe: console_pipe.into(), feed: console_feed, file },
                Pump { pipe: stderr_pipe.into(), feed: stderr_feed, file: None },
            ],
            signals: signals_receiver,
            exit: exit_sender,
            reaped: reaped_sender,
            reply,
        };
        let gone = |_| prepare(io::Error::other("the reaper thread is gone"));
        reaper().map_err(prepare)?.send(job).map_err(|_| gone(()))?;
        let pid = pid.await.map_err(|_| gone(()))?;
        let pid = pid.map_err(|source| ProcessError::Spawn { name: name.clone(), source })?;
        Ok(Self { name, pid, console, stderr, exit, signals, reaped: Mutex::new(reaped) })
    }

    /// Of the process; the same from the start to the end, whatever runs in it.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its standard output, a VMM's serial console.
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// Its standard error.
    pub fn stderr(&self) -> &Console {
        &self.stderr
    }

    /// The last lines of its standard error, fit for a terminal.
    pub fn stderr_tail(&self) -> String {
        self.stderr.tail(REPORTED_LINES)
    }

    /// Returns when the process is gone. Any number of waiters, cancel safe.
    pub async fn wait(&self) -> ExitReport {
        let mut exit = self.exit.clone();
        // The sender is dropped without a value only if the reaper thread died.
        let status = exit.wait_for(Option::is_some).await.ok().and_then(|status| *status);
        ExitReport {
            name: self.name.clone(),
            pid: self.pid,
            cause: status.map_or(ExitCause::Code(-1), ExitCause::from_status),
            console_tail: self.console.tail(REPORTED_LINES),
            stderr_tail: self.stderr_tail(),
        }
    }

    /// Whether the process is gone, even if its last output is still being read.
    pub fn has_ended(&self) -> bool {
        let reaped = self.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        reaped.try_recv() == Err(std_mpsc::TryRecvError::Disconnected)
    }

    /// Kills the process and returns when it is gone.
    ///
    /// # Errors
    /// It is stuck in the kernel; that is an error of the host.
    pub async fn end(&self) -> Result<ExitReport, Stuck> {
        self.kill();
        let ended = tokio::time::timeout(REAP_LIMIT, self.wait()).await;
        ended.map_err(|_| Stuck { name: self.name.clone(), pid: self.pid })
    }

    /// SIGKILL. Harmless when the process is gone: only the reaper signals, and only what it has
    /// not reaped.
    pub fn kill(&self) {
        self.signal(Signal::SIGKILL);
    }

    /// SIGTERM, as harmless as [`Child::kill`].
    pub fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    fn signal(&self, signal: Signal) {
        // A closed channel means that there is nobody left to signal.
        let _ = self.signals.send(signal);
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
        let reaped = self.reaped.get_mut().unwrap_or_else(PoisonError::into_inner);
        if reaped.recv_timeout(REAP_LIMIT) == Err(std_mpsc::RecvTimeoutError::Timeout) {
            tracing::error!(vm = self.name, pid = self.pid, "The killed VMM process does not end");
        }
    }
}

struct Pump {
    pipe: OwnedFd,
    feed: Feed,
    file: Option<File>,
}

struct Job {
    command: Command,
    pumps: [Pump; 2],
    signals: mpsc::UnboundedReceiver<Signal>,
    exit: watch::Sender<Option<ExitStatus>>,
    reaped: std_mpsc::Sender<()>,
    reply: oneshot::Sender<io::Result<u32>>,
}

static REAPER: Mutex<Option<mpsc::UnboundedSender<Job>>> = Mutex::new(None);

/// The reaper's inbox. The thread starts with the first child and never ends: the static sender
/// keeps its inbox open.
fn reaper() -> io::Result<mpsc::UnboundedSender<Job>> {
    let mut inbox = REAPER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(sender) = &*inbox {
        return Ok(sender.clone());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (sender, mut jobs) = mpsc::unbounded_channel::<Job>();
    std::thread::Builder::new().name("vmm-reaper".into()).spawn(move || {
        runtime.block_on(async move {
            while let Some(job) = jobs.recv().await {
                start(job);
            }
        });
    })?;
    *inbox = Some(sender.clone());
    Ok(sender)
}

/// On the reaper thread.
fn start(job: Job) {
    let Job { mut command, pumps, mut signals, exit, reaped, reply } = job;
    let spawned = command.spawn();
    // The command holds our copies of the pipes' writing ends; the pumps wait for the last one.
    drop(command);
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            // The caller may have been cancelled; then nobody is interested.
            let _ = reply.send(Err(error));
            return;
        }
    };
    let pumps = pumps.map(|Pump { pipe, feed, file }| {
        tokio::spawn(async move {
            match pipe::Receiver::from_owned_fd(pipe) {
                Ok(pipe) => feed.pump(pipe, file).await,
                Err(error) => tracing::warn!(%error, "A child's output cannot be read"),
            }
        })
    });
    // A cancelled caller drops its sender of signals, which ends the child below.
    let _ = reply.send(Ok(child.id().unwrap_or_default()));
    tokio::spawn(async move {
        // tokio waits on a pidfd here (Linux 5.3), and reaps in this task only: until `wait` has
        // returned, the pid is the child's.
        let status = loop {
            tokio::select! {
                status = child.wait() => break status,
                signal = signals.recv() => match (signal, child.id()) {
                    (Some(signal), Some(pid)) if signal != Signal::SIGKILL => {
                        // Fails only if the child has ended already.
                        let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
                    }
                    (_, pid) => {
                        // While the leader is not reaped, nobody else's group has its number.
                        if let Some(pid) = pid {
                            let _ = killpg(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
                        }
                        let _ = child.start_kill();
                        break child.wait().await;
                    }
                },
            }
        };
        drop(reaped);
        let drained = async {
            for pump in pumps {
                // A pump that panicked has nothing more to show.
                let _ = pump.await;
            }
        };
        // Not drained in time: what was read so far is reported.
        let _ = tokio::time::timeout(DRAIN_LIMIT, drained).await;
        match status {
            Ok(status) => drop(exit.send_replace(Some(status))),
            Err(error) => tracing::error!(%error, "Waiting for a VMM process failed"),
        }
    });
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::task::Poll;

    use nix::sys::wait::{Id, WaitPidFlag, waitid};

    use super::*;

    fn launch(script: &str) -> Launch {
        Launch {
            name: "a".into(),
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            ..Launch::default()
        }
    }

    fn exists(pid: u32) -> bool {
        PathBuf::from(format!("/proc/{pid}")).exists()
    }

    #[tokio::test]
    async fn an_exit_is_reported_with_code_and_last_words() {
        let child = Child::spawn(launch("echo boot; echo bad >&2; exit 3")).await.unwrap();
        let report = child.wait().await;
        assert_eq!(report.cause, ExitCause::Code(3));
        assert_eq!((report.console_tail.as_str(), report.stderr_tail.as_str()), ("boot", "bad"));
        assert_eq!(report.pid, child.pid());
        assert_eq!(child.wait().await, report, "a second waiter is told the same");
    }

    #[tokio::test]
    async fn a_dropped_child_is_gone_when_drop_returns() {
        let child = Child::spawn(launch("echo up; exec cat /dev/zero >/dev/null")).await.unwrap();
        child.console().wait_for("up").await.unwrap();
        let pid = child.pid();
        assert!(exists(pid));
        drop(child);
        assert!(!exists(pid), "pid {pid} outlived its handle");
    }

    #[tokio::test]
    async fn a_killed_child_reports_the_signal() {
        let child = Child::spawn(launch("echo up; exec sleep 1000")).await.unwrap();
        child.console().wait_for("up").await.unwrap();
        child.kill();
        child.kill();
        assert_eq!(child.wait().await.cause, ExitCause::Signal(9));
        child.kill();
    }

    #[tokio::test]
    async fn a_child_that_is_asked_to_end_may_do_so_in_order() {
        let script = "trap 'kill $!; echo tidy; exit 7' TERM; sleep 1000 & echo up; wait";
        let child = Child::spawn(launch(script)).await.unwrap();
        child.console().wait_for("up").await.unwrap();
        child.terminate();
        let report = child.wait().await;
        assert_eq!(report.cause, ExitCause::Code(7));
        assert_eq!(report.console_tail, "up\ntidy");
        child.terminate();
    }

    #[tokio::test]
    async fn wrapper_and_program_share_the_pid_that_we_watch() {
        let mut launch = launch("echo $$ $0 $WRAPPED; exec sleep 1000");
        launch.wrapper = vec!["env".into(), "WRAPPED=yes".into()];
        let child = Child::spawn(launch).await.unwrap();
        child.console().wait_for("yes\n").await.unwrap();
        assert_eq!(child.console().tail(1), format!("{} /bin/sh yes", child.pid()));
    }

    #[tokio::test]
    async fn a_missing_program_is_named_in_the_report() {
        let mut launch = launch("");
        launch.program = "/nowhere/vmm".into();
        let report = Child::spawn(launch).await.unwrap().wait().await;
        assert_eq!(report.cause, ExitCause::Code(127));
        assert!(report.stderr_tail.contains("/nowhere/vmm"), "{report}");
    }

    #[tokio::test]
    async fn a_child_is_in_its_cgroups_before_it_becomes_the_program() {
        let dir = tempfile::tempdir().unwrap();
        let files = ["one", "two"].map(|name| dir.path().join(name));
        let mut launch = launch(r#"cat "$0" "$1""#);
        launch.args.extend(files.iter().map(OsString::from));
        launch.cgroup_procs = files.to_vec();
        let child = Child::spawn(launch).await.unwrap();
        let pid = child.pid();
        assert_eq!(child.wait().await.console_tail, format!("{pid}\n{pid}"));
    }

    #[tokio::test]
    async fn a_cgroup_that_is_not_there_ends_the_child_with_its_name() {
        let mut launch = launch("echo started");
        launch.cgroup_procs = vec!["/nowhere/cgroup.procs".into()];
        let report = Child::spawn(launch).await.unwrap().wait().await;
        assert_eq!((&report.cause, report.console_tail.as_str()), (&ExitCause::Code(125), ""));
        assert!(report.stderr_tail.contains("cgroup of /nowhere/cgroup.procs"), "{report:?}");
    }

    #[tokio::test]
    async fn what_a_killed_child_forked_is_killed_too() {
        let child = Child::spawn(launch("sleep 1000 & echo $!; wait")).await.unwrap();
        child.console().wait_for("\n").await.unwrap();
        let forked: u32 = child.console().tail(1).parse().unwrap();
        assert!(exists(forked));
        child.kill();
        child.wait().await;
        let is_gone = || {
            let stat = std::fs::read_to_string(format!("/proc/{forked}/stat")).unwrap_or_default();
            // A zombie is left to whoever reaps orphans.
            stat.is_empty() || stat.contains(") Z ")
        };
        let gone = async {
            while !is_gone() {
                tokio::task::yield_now().await;
            }
        };
        let gone = tokio::time::timeout(REAP_LIMIT, gone).await;
        assert!(gone.is_ok(), "pid {forked} outlived the child that forked it");
    }

    #[tokio::test]
    async fn a_child_reads_what_it_was_given_as_input() {
        let (reading, mut writing) = io::pipe().unwrap();
        let mut launch = launch("exec cat");
        launch.stdin = Some(reading.into());
        let child = Child::spawn(launch).await.unwrap();
        io::Write::write_all(&mut writing, b"given").unwrap();
        drop(writing);
        assert_eq!(child.wait().await.console_tail, "given");
    }

    /// Our children whose command line holds `mark`.
    fn children_with(mark: &str) -> Vec<Pid> {
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let is_marked = |pid: &i32| {
            let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&cmdline).contains(mark)
        };
        pids.filter(is_marked).map(Pid::from_raw).collect()
    }

    #[tokio::test]
    async fn a_cancelled_start_leaves_no_process() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().display().to_string();
        let mut starting = Box::pin(Child::spawn(launch(&format!("exec sleep 1000 # {mark}"))));
        // Polled once, so the job is with the reaper, then dropped.
        let polled = std::future::poll_fn(|cx| Poll::Ready(starting.as_mut().poll(cx))).await;
        assert!(polled.is_pending());
        drop(starting);
        // The reaper takes one job after the other: now the first was started, and its end asked for.
        Child::spawn(launch("exit 0")).await.unwrap().wait().await;
        for pid in children_with(&mark) {
            let ended = tokio::task::spawn_blocking(move || {
                waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)
            });
            let ended = tokio::time::timeout(REAP_LIMIT, ended).await;
            assert!(ended.is_ok(), "pid {pid} outlived its cancelled start");
        }
        assert_eq!(children_with(&mark), []);
    }
}
