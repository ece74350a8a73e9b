//! One process of a container, and how it comes to be.

use std::fs;
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio as Inherit};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use tokio::io::{AsyncBufReadExt as _, BufReader, Interest};
use tokio::time::timeout;
use vmm_sys_util::sock_ctrl_msg::ScmSocket as _;

use super::error::Refusal;
use super::paths;
use super::reaper::{Exit, Reaper};
use super::stdio::{Stdio, Stream, stream};
use super::sys;
use crate::runtime::{self, Order, Outcome, Task};

/// How long the runtime may take. It mounts and forks, which is done in milliseconds, but an
/// emulated guest on a busy host has taken seconds.
const RUNTIME_TIMEOUT: Duration = Duration::from_secs(60);
/// Bit of SIGTERM in the masks of `/proc/PID/status`.
const TERM_BIT: u64 = 1 << (nix::libc::SIGTERM - 1);

/// A process of a container.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    /// Its end.
    pub exit: Exit,
    /// Its streams.
    pub stdio: Stdio,
    /// Whether somebody was told its status.
    was_waited_for: AtomicBool,
}

/// Lines and columns of a terminal; 0 if they are not known.
#[derive(Debug, Clone, Copy, Default)]
pub struct Size {
    /// Lines.
    pub rows: u32,
    /// Columns.
    pub columns: u32,
}

/// The host's and the container's ends of the streams.
struct Ends {
    /// What the agent keeps, unless it comes over `console`.
    pipes: Option<[OwnedFd; 3]>,
    /// What the runtime hands on as standard input.
    stdin: Option<OwnedFd>,
    console: Option<Console>,
}

/// A socket to which a terminal's master is sent.
struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Process {
    /// Has the runtime make a process for `container`, with a terminal if there is a size.
    pub async fn launch(
        reaper: &Reaper,
        container: &str,
        task: Task,
        terminal: Option<Size>,
    ) -> Result<Self> {
        let (socket, theirs) = UnixStream::pair().context("Failed to make a socket pair")?;
        let mut command = Command::new("/proc/self/exe");
        // While a container is started the agent's own folder may be one that goes away.
        command.arg(runtime::ARGUMENT).env_clear().current_dir("/").stdin(OwnedFd::from(theirs));
        let ends = match terminal {
            Some(_) => Ends::terminal(&mut command)?,
            None => Ends::pipes(&mut command)?,
        };
        let (child, runtime) =
            reaper.spawn(&mut command).context("Failed to start the runtime of containers")?;
        // It holds the other ends, which would keep the streams open for ever.
        drop(command);
        let order = Order {
            container: container.to_owned(),
            state: paths::state(),
            task,
            console: ends.console.as_ref().map(|console| console.path.clone()),
        };
        let asked = ask(&socket, &order, ends.stdin.as_ref());
        drop(ends.stdin);
        let outcome = match asked {
            Ok(()) => timeout(RUNTIME_TIMEOUT, answer(&socket)).await.unwrap_or_else(|_| {
                let seconds = RUNTIME_TIMEOUT.as_secs();
                Err(Refusal::late(format!("The runtime of containers took over {seconds} s")))
            }),
            Err(error) => Err(error),
        };
        let pid = match outcome {
            Ok(Outcome::Pid(pid)) => pid,
            Ok(Outcome::Failed(message)) => bail!(message),
            Err(error) => {
                // It may hang; what it began is cleaned up with the container.
                let killed = reaper.signal(child.id().cast_signed(), nix::libc::SIGKILL);
                killed.context("Failed to kill the runtime of containers")?;
                let status = runtime.wait().await;
                return Err(error.context(format!("The runtime ended with status {status}")));
            }
        };
        let exit = reaper.adopt(pid);
        // The runtime ends when it sees this.
        drop(socket);
        let stdio = match (ends.pipes, ends.console) {
            (Some([stdin, stdout, stderr]), _) => Stdio::Pipes {
                stdin: Some(stream(stdin, Interest::WRITABLE)?).into(),
                stdout: Some(stream(stdout, Interest::READABLE)?).into(),
                stderr: Some(stream(stderr, Interest::READABLE)?).into(),
            },
            (None, Some(console)) => {
                let master = console.master()?;
                let (reading, writing) = Default::default();
                Stdio::Terminal { master, reading, writing }
            }
            (None, None) => bail!("The process has no streams"),
        };
        let process = Self { pid, exit, stdio, was_waited_for: AtomicBool::new(false) };
        if let Some(size @ Size { rows: 1.., columns: 1.. }) = terminal {
            process.resize(size)?;
        }
        Ok(process)
    }

    /// Waits for the end.
    pub async fn wait(&self) -> i32 {
        let status = self.exit.wait().await;
        self.stdio.close_stdin().await;
        // ORDERING: a mark that others look at some time later.
        self.was_waited_for.store(true, Ordering::Relaxed);
        status
    }

    /// Whether it has ended and somebody was told.
    pub fn is_over(&self) -> bool {
        self.exit.status().is_some() && self.was_waited_for.load(Ordering::Relaxed)
    }

    /// Its number in the guest.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Sets the size of its terminal.
    pub fn resize(&self, size: Size) -> Result<()> {
        let Some(terminal) = self.stdio.terminal() else {
            return Err(Refusal::untimely("The process has no terminal whose size could be set"));
        };
        let [rows, columns] = [size.rows, size.columns].map(u16::try_from);
        let (Ok(rows), Ok(columns)) = (rows, columns) else {
            let Size { rows, columns } = size;
            return Err(Refusal::invalid(format!(
                "A terminal has up to 65535 rows and columns, not {rows} and {columns}"
            )));
        };
        sys::set_window_size(terminal.get_ref(), rows, columns)
            .with_context(|| format!("Failed to resize the terminal to {rows} x {columns}"))
    }

    /// Sends a signal. One to a process that has ended is no error.
    ///
    /// Process 1 of a pid namespace gets no signal that it has not prepared for, so it would
    /// survive SIGTERM: it gets SIGKILL instead.
    pub fn signal(&self, reaper: &Reaper, signal: i32) -> Result<()> {
        let signal = match signal {
            nix::libc::SIGTERM if self.ignores_term() => nix::libc::SIGKILL,
            signal => signal,
        };
        reaper
            .signal(self.pid, signal)
            .map(drop)
            .with_context(|| format!("Failed to send signal {signal} to process {}", self.pid))
    }

    fn ignores_term(&self) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid));
        status.is_ok_and(|status| is_init_deaf_to_term(&status))
    }
}

/// Whether `/proc/PID/status` is that of a process 1 that neither catches SIGTERM nor blocks it (to
/// wait for it).
fn is_init_deaf_to_term(status: &str) -> bool {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().trim()
    };
    let mask = |name| u64::from_str_radix(field(name), 16).unwrap_or_default();
    let is_init = field("NSpid").split_ascii_whitespace().next_back() == Some("1");
    is_init && (mask("SigCgt") | mask("SigBlk")) & TERM_BIT == 0
}

impl Ends {
    fn pipes(command: &mut Command) -> Result<Self> {
        let pipe = || pipe2(OFlag::O_CLOEXEC).context("Failed to make a pipe");
        let ((stdin, our_stdin), (our_stdout, stdout), (our_stderr, stderr)) =
            (pipe()?, pipe()?, pipe()?);
        command.stdout(stdout).stderr(stderr);
        let pipes = Some([our_stdin, our_stdout, our_stderr]);
        Ok(Self { pipes, stdin: Some(stdin), console: None })
    }

    fn terminal(command: &mut Command) -> Result<Self> {
        command.stdout(Inherit::null()).stderr(Inherit::null());
        Ok(Self { pipes: None, stdin: None, console: Some(Console::listen()?) })
    }
}

impl Console {
    fn listen() -> Result<Self> {
        /// Distinguishes the sockets.
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        // ORDERING: only uniqueness matters.
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = Path::new(paths::OWN).join(format!("console-{number}.sock"));
        let listener = UnixListener::bind(&path)
            .with_context(|| format!("Failed to listen on {}", path.display()))?;
        Ok(Self { listener, path })
    }

    /// Takes the master, which was sent before the runtime told the process's number.
    fn master(&self) -> Result<Stream> {
        self.listener.set_nonblocking(true)?;
        let (socket, _) = self.listener.accept().context("The container sent no terminal")?;
        let (_, file) =
            socket.recv_with_fd(&mut [0; 64]).context("The container sent no terminal")?;
        let file = file.context("The container sent no terminal")?;
        stream(file.into(), Interest::READABLE | Interest::WRITABLE)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.path));
    }
}

fn ask(mut socket: &UnixStream, order: &Order, stdin: Option<&OwnedFd>) -> Result<()> {
    let mut line = serde_json::to_vec(order)?;
    line.push(b'\n');
    socket.write_all(&line).context("Failed to instruct the runtime of containers")?;
    if let Some(stdin) = stdin {
        let sent = socket.send_with_fd(&[0][..], stdin.as_raw_fd());
        sent.context("Failed to hand over standard input")?;
    }
    Ok(())
}

async fn answer(socket: &UnixStream) -> Result<Outcome> {
    let socket = socket.try_clone()?;
    socket.set_nonblocking(true)?;
    let mut line = String::new();
    let mut reader = BufReader::new(tokio::net::UnixStream::from_std(socket)?);
    reader.read_line(&mut line).await.context("Failed to hear from the runtime of containers")?;
    serde_json::from_str(&line).with_context(|| format!("The runtime of containers said '{line}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INIT: &str = "Name:\tsleep\nNSpid:\t812\t1\nSigBlk:\t0000000000000000\n\
                        SigIgn:\t0000000000000000\nSigCgt:\t0000000000000000\n";

    #[test]
    fn an_init_without_a_handler_is_deaf_to_sigterm() {
        assert!(is_init_deaf_to_term(INIT));
    }

    #[test]
    fn one_that_catches_or_blocks_sigterm_hears_it() {
        for mask in ["SigCgt", "SigBlk"] {
            let none = format!("{mask}:\t0000000000000000");
            let term = format!("{mask}:\t0000000000004000");
            assert!(!is_init_deaf_to_term(&INIT.replace(&none, &term)), "{mask}");
        }
    }

    #[test]
    fn a_process_that_is_no_init_hears_it_by_default() {
        assert!(!is_init_deaf_to_term(&INIT.replace("812\t1", "812\t7")));
    }
}
