//! The standard streams of one process, read and written as the host asks.
//!
//! ```text
//! process --- pipe ---> Output --- ReadStdout/ReadStderr ---> host     without a terminal
//!         <-- pipe ---- Input  <-- WriteStdin --------------- host
//! process <-- pty ----> Terminal <-- both ------------------> host     with one
//! ```
//!
//! Nothing is buffered here: a host that does not read leaves the pipe full and the process
//! waiting, and a process that does not read leaves `WriteStdin` waiting.
//!
//! # End of output
//! A stream ends when all who could write to it have closed it. A process may leave children
//! behind that keep it open: once the process has ended, the stream also ends when it is empty
//! and nothing came for [`LINGER`].

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{read, write};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::reaper::Exit;
use super::sys;

/// How long an ended process's stream may stay silent before it counts as ended (as in Kata).
const LINGER: Duration = Duration::from_millis(500);

/// A file descriptor the runtime polls.
pub type Stream = AsyncFd<OwnedFd>;

/// Makes `fd` non-blocking and registers it.
pub fn stream(fd: OwnedFd, interest: Interest) -> Result<Stream> {
    let flags = fcntl(fd.as_fd(), FcntlArg::F_GETFL)?;
    let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags))?;
    sys::poll(fd, interest).context("Failed to poll a stream")
}

/// The agent's ends of a process's streams.
#[derive(Debug)]
pub enum Stdio {
    /// Three pipes.
    Pipes {
        /// Gone once it is closed.
        stdin: Mutex<Option<Stream>>,
        /// Held while one caller reads; gone once its end is told.
        stdout: Mutex<Option<Stream>>,
        /// As `stdout`.
        stderr: Mutex<Option<Stream>>,
    },
    /// A pseudo terminal.
    Terminal {
        /// The master's side.
        master: Stream,
        /// Held while one caller reads.
        reading: Mutex<()>,
        /// Held while one caller writes.
        writing: Mutex<()>,
    },
}

impl Stdio {
    /// Reads at most `length` bytes of standard output; empty at its end.
    pub async fn read_stdout(&self, length: usize, exit: &Exit) -> Result<Vec<u8>> {
        match self {
            Self::Pipes { stdout, .. } => read_pipe(stdout, length, exit).await,
            Self::Terminal { master, reading, .. } => {
                let _turn = reading.lock().await;
                read_some(master, length, exit).await
            }
        }
    }

    /// Reads at most `length` bytes of standard error; empty at its end.
    pub async fn read_stderr(&self, length: usize, exit: &Exit) -> Result<Vec<u8>> {
        match self {
            Self::Pipes { stderr, .. } => read_pipe(stderr, length, exit).await,
            Self::Terminal { .. } => {
                bail!("The process has a terminal, so no standard error; read standard output")
            }
        }
    }

    /// Writes all of `data` to standard input; empty `data` closes it.
    pub async fn write_stdin(&self, data: &[u8]) -> Result<()> {
        match self {
            _ if data.is_empty() => {
                self.close_stdin().await;
                Ok(())
            }
            Self::Pipes { stdin, .. } => match &*stdin.lock().await {
                Some(stdin) => write_all(stdin, data).await,
                None => bail!("Standard input is closed"),
            },
            Self::Terminal { master, writing, .. } => {
                let _turn = writing.lock().await;
                write_all(master, data).await
            }
        }
    }

    /// Closes standard input. A terminal has one file for both directions and stays open; who
    /// wants its reader to see an end writes the terminal's end-of-file character.
    pub async fn close_stdin(&self) {
        if let Self::Pipes { stdin, .. } = self {
            stdin.lock().await.take();
        }
    }

    /// The terminal, if there is one.
    pub fn terminal(&self) -> Option<&Stream> {
        match self {
            Self::Pipes { .. } => None,
            Self::Terminal { master, .. } => Some(master),
        }
    }
}

async fn read_pipe(pipe: &Mutex<Option<Stream>>, length: usize, exit: &Exit) -> Result<Vec<u8>> {
    let mut pipe = pipe.lock().await;
    let Some(stream) = &*pipe else { return Ok(Vec::new()) };
    let data = read_some(stream, length, exit).await?;
    if data.is_empty() {
        *pipe = None;
    }
    Ok(data)
}

async fn read_some(stream: &Stream, length: usize, exit: &Exit) -> Result<Vec<u8>> {
    let mut buffer = vec![0; length];
    let outcome = {
        let mut read = pin!(read_ready(stream, &mut buffer));
        tokio::select! {
            // What is there is read first, also after the process has ended.
            biased;
            outcome = &mut read => outcome,
            _ = exit.wait() => timeout(LINGER, read).await.unwrap_or(Ok(0)),
        }
    };
    buffer.truncate(outcome.context("Failed to read a stream")?);
    Ok(buffer)
}

async fn read_ready(stream: &Stream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut ready = stream.readable().await?;
        let attempt = ready.try_io(|stream| Ok(read(stream.get_ref(), buffer)?));
        match attempt {
            // A terminal whose other side is closed.
            Ok(Err(error)) if error.raw_os_error() == Some(Errno::EIO as i32) => return Ok(0),
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(outcome) => return outcome,
            Err(_would_block) => {}
        }
    }
}

async fn write_all(stream: &Stream, mut data: &[u8]) -> Result<()> {
    while !data.is_empty() {
        let mut ready = stream.writable().await?;
        match ready.try_io(|stream| Ok(write(stream.get_ref(), data)?)) {
            Ok(Ok(written)) => data = &data[written..],
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(error)) => return Err(error).context("Failed to write to standard input"),
            Err(_would_block) => {}
        }
    }
    Ok(())
}
