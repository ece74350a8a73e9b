//! A process's streams: FIFOs of containerd on this side, calls to the agent on the other.
//!
//! ```text
//! FIFO stdin  --read--> WriteStdin ... at the end CloseStdin
//! FIFO stdout <-write-- ReadStdout, until it answers with nothing
//! FIFO stderr <-write-- ReadStderr
//! ```
//! FIFOs are held open from both ends: a reader that goes away (containerd restarts, `ctr` is
//! killed) breaks nothing, and a writer that comes and goes ends nothing. Input ends when containerd
//! says so (CloseIO) and what was written before that is delivered.

use std::fs::OpenOptions as FileOptions;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kata_agent_protocol::agent::{CloseStdinRequest, ReadStreamRequest, WriteStreamRequest};
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;
use vmm_glue::agent::{Agent, AgentError};

/// How much is asked of the agent, or given to it, at once.
const CHUNK_BYTES: u32 = 64 << 10;
/// After the process has ended: for how long nothing may move before its output counts as complete.
/// A grandchild may hold the stream open for good, a reader may never come back.
const STALL_LIMIT: Duration = Duration::from_secs(2);

/// Where the streams of a process are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paths {
    /// FIFO to read input from; empty: none.
    pub stdin: String,
    /// FIFO or `file://` to write output to; empty: it is dropped.
    pub stdout: String,
    /// The same for errors; none with a terminal.
    pub stderr: String,
    /// One terminal instead of three streams.
    pub terminal: bool,
}

/// The process in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The container.
    pub container: String,
    /// The process as the agent knows it.
    pub exec: String,
}

/// Streams that are being copied.
#[derive(Debug)]
pub struct Stdio {
    /// The end of the FIFO that keeps input from ending.
    keeper: Mutex<Option<pipe::Sender>>,
    input: Option<JoinHandle<()>>,
    outputs: tokio::sync::Mutex<Vec<JoinHandle<()>>>,
    moved: Arc<AtomicU64>,
}

/// An opened sink for output.
enum Sink {
    Fifo(pipe::Sender),
    File(tokio::fs::File),
}

/// Streams that are open and not copied yet: opened before the process starts, so that a path that
/// cannot be opened is an error and not a lost stream.
pub struct Opened {
    stdin: Option<(pipe::Receiver, Option<pipe::Sender>)>,
    stdout: Option<Sink>,
    stderr: Option<Sink>,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened").finish_non_exhaustive()
    }
}

impl Paths {
    /// Opens what is named.
    ///
    /// # Errors
    /// The path and why not; a scheme that is not served.
    pub fn open(&self) -> Result<Opened> {
        let stdin = (!self.stdin.is_empty()).then(|| input(&self.stdin)).transpose()?;
        let stdin = stdin.map(|(receiver, keeper)| (receiver, Some(keeper)));
        let stdout = (!self.stdout.is_empty()).then(|| sink(&self.stdout)).transpose()?;
        let has_stderr = !self.stderr.is_empty() && !self.terminal;
        let stderr = has_stderr.then(|| sink(&self.stderr)).transpose()?;
        Ok(Opened { stdin, stdout, stderr })
    }
}

fn input(path: &str) -> Result<(pipe::Receiver, pipe::Sender)> {
    let open = || -> io::Result<_> {
        // A reader that does not wait for a writer, then a writer that finds a reader.
        let receiver = pipe::OpenOptions::new().open_receiver(path)?;
        Ok((receiver, pipe::OpenOptions::new().open_sender(path)?))
    };
    open().with_context(|| format!("Failed to open {path} for standard input"))
}

fn sink(uri: &str) -> Result<Sink> {
    let opened = if let Some(path) = uri.strip_prefix("file://") {
        let path = Path::new(path.split('?').next().unwrap_or(path));
        let file = FileOptions::new().append(true).create(true).open(path);
        file.map(|file| Sink::File(tokio::fs::File::from_std(file)))
    } else if let Some((scheme, _)) = uri.split_once("://") {
        bail!("Output to {scheme}:// is not served; use FIFOs (containerd's default) or file://");
    } else {
        // Both ends, so that it opens without a reader and outlives one.
        pipe::OpenOptions::new().read_write(true).open_sender(uri).map(Sink::Fifo)
    };
    opened.with_context(|| format!("Failed to open {uri} for output"))
}

impl Opened {
    /// Lets input end with what is in the FIFO.
    pub fn close_stdin(&mut self) {
        if let Some((_, keeper)) = &mut self.stdin {
            *keeper = None;
        }
    }

    /// Copies from now on.
    pub fn start(self, agent: &Agent, target: &Target, terminal: bool) -> Stdio {
        let moved = Arc::new(AtomicU64::new(0));
        let (receiver, keeper) = self.stdin.unzip();
        let input = receiver.map(|receiver| {
            tokio::spawn(copy_in(receiver, agent.clone(), target.clone(), terminal))
        });
        let mut outputs = Vec::new();
        // Read even if nobody listens: a full pipe would stop the process.
        for (sink, stream) in [(self.stdout, Stream::Out), (self.stderr, Stream::Err)] {
            if stream == Stream::Err && terminal {
                continue;
            }
            let (agent, target, moved) = (agent.clone(), target.clone(), Arc::clone(&moved));
            outputs.push(tokio::spawn(async move {
                match sink {
                    Some(Sink::Fifo(to)) => copy_out(to, agent, target, stream, moved).await,
                    Some(Sink::File(to)) => copy_out(to, agent, target, stream, moved).await,
                    None => copy_out(tokio::io::sink(), agent, target, stream, moved).await,
                }
            }));
        }
        let outputs = tokio::sync::Mutex::new(outputs);
        Stdio { keeper: Mutex::new(keeper.flatten()), input, outputs, moved }
    }
}

impl Stdio {
    /// Lets input end once what is in the FIFO is delivered.
    pub fn close_stdin(&self) {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// After the process has ended: waits for its last output.
    pub async fn drain(&self) {
        if let Some(input) = &self.input {
            input.abort();
        }
        let moved = Arc::clone(&self.moved);
        for output in self.outputs.lock().await.iter_mut() {
            let mut seen = moved.load(Ordering::Relaxed);
            while tokio::time::timeout(STALL_LIMIT, &mut *output).await.is_err() {
                let now = moved.load(Ordering::Relaxed);
                if now == seen {
                    tracing::warn!("output is not read, or held open, and is given up");
                    output.abort();
                    break;
                }
                seen = now;
            }
        }
    }
}

impl Drop for Stdio {
    fn drop(&mut self) {
        self.input.iter().for_each(JoinHandle::abort);
        self.outputs.get_mut().iter().for_each(JoinHandle::abort);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    Out,
    Err,
}

async fn copy_out(
    mut to: impl AsyncWrite + Unpin,
    agent: Agent,
    target: Target,
    stream: Stream,
    moved: Arc<AtomicU64>,
) {
    let mut request = ReadStreamRequest::new();
    request.container_id = target.container.clone();
    request.exec_id = target.exec.clone();
    request.len = CHUNK_BYTES;
    loop {
        let answer = match stream {
            Stream::Out => agent.read_stdout(&request).await,
            Stream::Err => agent.read_stderr(&request).await,
        };
        match answer {
            Ok(answer) if answer.data.is_empty() => break,
            Ok(answer) => {
                if let Err(error) = write_counted(&mut to, &answer.data, &moved).await {
                    tracing::warn!(?target, ?stream, %error, "output is lost");
                    break;
                }
            }
            Err(error) => {
                // The agent forgets a process that ended; there is nothing more to read.
                tracing::debug!(?target, ?stream, %error, "output ends");
                break;
            }
        }
    }
    drop(to.flush().await);
}

async fn write_counted(
    to: &mut (impl AsyncWrite + Unpin),
    mut data: &[u8],
    moved: &AtomicU64,
) -> io::Result<()> {
    while !data.is_empty() {
        let n = to.write(data).await?;
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        moved.fetch_add(n as u64, Ordering::Relaxed);
        data = &data[n..];
    }
    Ok(())
}

async fn copy_in(mut from: pipe::Receiver, agent: Agent, target: Target, terminal: bool) {
    let mut buffer = vec![0; CHUNK_BYTES as usize];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) => break,
            Ok(n) => {
                if let Err(error) = deliver(&agent, &target, &buffer[..n]).await {
                    tracing::debug!(?target, %error, "the process takes no more input");
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(?target, %error, "input cannot be read");
                break;
            }
        }
    }
    // The input of a terminal ends by a character, not by closing it.
    if !terminal {
        let mut request = CloseStdinRequest::new();
        request.container_id = target.container;
        request.exec_id = target.exec;
        if let Err(error) = agent.close_stdin(&request).await {
            tracing::debug!(%error, "input was closed already");
        }
    }
}

async fn deliver(agent: &Agent, target: &Target, mut data: &[u8]) -> Result<(), AgentError> {
    while !data.is_empty() {
        let mut request = WriteStreamRequest::new();
        request.container_id = target.container.clone();
        request.exec_id = target.exec.clone();
        request.data = data.to_vec();
        let taken = agent.write_stdin(&request).await?.len as usize;
        data = &data[taken.min(data.len())..];
        if taken == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    Ok(())
}
