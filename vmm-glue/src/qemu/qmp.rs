//! A small client of QEMU's monitor protocol (QMP): one JSON object per line over a UNIX socket.
//!
//! QEMU greets, we ask for no capabilities, and from then on each command gets one answer with the
//! same `id`, while events come at any time.
//!
//! # Bounds
//! A guest may have taken over its QEMU, so the peer is not trusted: a line has at most 1 MiB, a
//! command has a time limit, only events that are asked for are kept (the newest 64), and anything
//! that is no QMP ends the connection.
//!
//! # Threads
//! Two tasks, reader and writer. A cancelled command never leaves half a line: whole lines are
//! handed to the writer.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

const MAX_LINE_BYTES: usize = 1 << 20;
const KEPT_EVENTS: usize = 64;
const QUEUED_COMMANDS: usize = 16;

/// Why a command got no good answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QmpError {
    /// QEMU refused.
    #[error("QEMU refused '{command}': {description} ({class})")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's error class, mostly `GenericError`.
        class: String,
        /// QEMU's words.
        description: String,
    },
    /// No answer in time. The command may still take effect.
    #[error("QEMU did not answer '{command}' within {limit:?}; it may be blocked or overloaded")]
    Timeout {
        /// The command.
        command: String,
        /// The limit.
        limit: Duration,
    },
    /// The connection ended before the answer.
    #[error("QEMU closed its monitor before it answered '{command}'")]
    Closed {
        /// The command.
        command: String,
    },
    /// The answer is not of the shape that QEMU documents.
    #[error("QEMU's answer to '{command}' makes no sense: {answer}")]
    Answer {
        /// The command.
        command: String,
        /// The answer, cut to 200 characters.
        answer: String,
    },
}

/// Something that QEMU tells unasked: `RESET`, `SHUTDOWN`, `STOP`, ...
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QmpEvent {
    /// The event's name.
    pub name: String,
    /// Its data, or null.
    pub data: Value,
}

/// One connection to a monitor.
#[derive(Debug)]
pub struct Qmp {
    lines: mpsc::Sender<Vec<u8>>,
    shared: Arc<Shared>,
    next_id: AtomicU64,
    closed: watch::Receiver<bool>,
    tasks: [JoinHandle<()>; 2],
}

type Answer = Result<Value, Refusal>;

#[derive(Debug)]
struct Shared {
    /// Who waits for which id; `None` once the connection is closed.
    pending: Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>,
    events: broadcast::Sender<QmpEvent>,
    shutdown_reason: Mutex<Option<String>>,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    class: String,
    desc: String,
}

/// Any line from QEMU. Unknown keys (`timestamp`) are of no interest.
#[derive(Debug, Deserialize)]
struct Line {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    event: Option<String>,
    data: Option<Value>,
    id: Option<u64>,
    #[serde(rename = "return")]
    result: Option<Value>,
    error: Option<Refusal>,
}

impl Qmp {
    /// Waits for QEMU's greeting on `stream` and ends the negotiation. There is no time limit for
    /// the greeting: QEMU sends it when its devices are built, which may wait for the switch.
    ///
    /// # Errors
    /// The connection ended, or capabilities were refused.
    pub async fn negotiate(stream: UnixStream) -> Result<Self, QmpError> {
        let (reading, writing) = stream.into_split();
        let (events, _) = broadcast::channel(KEPT_EVENTS);
        let shared = Arc::new(Shared {
            pending: Mutex::new(Some(HashMap::new())),
            events,
            shutdown_reason: Mutex::new(None),
        });
        let (greeting_sender, greeting) = oneshot::channel();
        let (closed_sender, closed) = watch::channel(false);
        let (lines, queue) = mpsc::channel(QUEUED_COMMANDS);
        let reader = read_lines(reading, Arc::clone(&shared), greeting_sender, closed_sender);
        let tasks = [tokio::spawn(reader), tokio::spawn(write_lines(writing, queue))];
        let this = Self { lines, shared, next_id: AtomicU64::new(1), closed, tasks };
        let ended = |_| QmpError::Closed { command: "greeting".to_owned() };
        greeting.await.map_err(ended)?;
        this.execute("qmp_capabilities", Value::Null, Duration::from_secs(10)).await?;
        Ok(this)
    }

    /// Runs `command` with `arguments` (an object, or null for none) and returns QEMU's answer.
    ///
    /// # Errors
    /// See [`QmpError`]. After a timeout the late answer is dropped.
    pub async fn execute(
        &self,
        command: &str,
        arguments: Value,
        limit: Duration,
    ) -> Result<Value, QmpError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut request = json!({ "execute": command, "id": id });
        if !arguments.is_null() {
            request["arguments"] = arguments;
        }
        let mut line = request.to_string().into_bytes();
        line.push(b'\n');

        let closed = || QmpError::Closed { command: command.to_owned() };
        let (sender, answer) = oneshot::channel();
        self.shared.pending().as_mut().ok_or_else(closed)?.insert(id, sender);
        // Whatever ends this future, nobody waits for the id any more.
        let _forget = Forget { shared: &self.shared, id };
        let exchange = async {
            self.lines.send(line).await.map_err(|_| closed())?;
            answer.await.map_err(|_| closed())
        };
        let answer = tokio::time::timeout(limit, exchange).await;
        let answer =
            answer.map_err(|_| QmpError::Timeout { command: command.to_owned(), limit })?;
        answer?.map_err(|Refusal { class, desc }| QmpError::Refused {
            command: command.to_owned(),
            class,
            description: desc,
        })
    }

    /// Events from now on; a slow receiver loses the oldest.
    pub fn events(&self) -> broadcast::Receiver<QmpEvent> {
        self.shared.events.subscribe()
    }

    /// The reason of the last `SHUTDOWN` event: `guest-shutdown`, `host-qmp-quit`, ...
    pub fn shutdown_reason(&self) -> Option<String> {
        self.shared.shutdown_reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns once the connection has ended and everything before its end was read.
    pub async fn closed(&self) {
        // An error means that the reader is gone, which is what we wait for.
        let _ = self.closed.clone().wait_for(|closed| *closed).await;
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

struct Forget<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.shared.pending().as_mut().map(|pending| pending.remove(&self.id));
    }
}

impl Shared {
    fn pending(&self) -> std::sync::MutexGuard<'_, Option<HashMap<u64, oneshot::Sender<Answer>>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, id: u64, answer: Answer) {
        let waiting = self.pending().as_mut().and_then(|pending| pending.remove(&id));
        // Nobody waits after a timeout or a cancellation.
        let _ = waiting.map(|sender| sender.send(answer));
    }

    fn tell(&self, name: String, data: Value) {
        if name == "SHUTDOWN" {
            let reason = data["reason"].as_str().map(str::to_owned);
            *self.shutdown_reason.lock().unwrap_or_else(PoisonError::into_inner) = reason;
        }
        // Without receivers events are of no interest.
        let _ = self.events.send(QmpEvent { name, data });
    }
}

async fn write_lines(mut socket: OwnedWriteHalf, mut queue: mpsc::Receiver<Vec<u8>>) {
    while let Some(line) = queue.recv().await {
        if socket.write_all(&line).await.is_err() {
            // The reader sees the end too and tells everybody.
            return;
        }
    }
}

async fn read_lines(
    socket: OwnedReadHalf,
    shared: Arc<Shared>,
    greeting: oneshot::Sender<()>,
    closed: watch::Sender<bool>,
) {
    let mut socket = BufReader::new(socket);
    let mut greeting = Some(greeting);
    loop {
        let line = match next_line(&mut socket).await {
            Ok(Some(line)) => line,
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(%error, "QEMU's monitor connection failed");
                break;
            }
        };
        let line: Line = match serde_json::from_slice(&line) {
            Ok(line) => line,
            Err(error) => {
                tracing::warn!(%error, "QEMU's monitor speaks no QMP; the connection is closed");
                break;
            }
        };
        match line {
            Line { greeting: Some(_), .. } => drop(greeting.take().map(|sender| sender.send(()))),
            Line { event: Some(name), data, .. } => shared.tell(name, data.unwrap_or_default()),
            Line { id: Some(id), error: Some(refusal), .. } => shared.answer(id, Err(refusal)),
            Line { id: Some(id), result, .. } => shared.answer(id, Ok(result.unwrap_or_default())),
            // An error without an id answers a line that we did not send.
            line => tracing::warn!(?line, "QEMU's monitor answered to nothing"),
        }
    }
    // Dropping the senders tells whoever waits.
    *shared.pending() = None;
    closed.send_replace(true);
}

/// The next line without its end, or `None` at the end of the stream.
async fn next_line(socket: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    loop {
        let chunk = socket.fill_buf().await?;
        if chunk.is_empty() {
            return Ok(None);
        }
        let end = chunk.iter().position(|&b| b == b'\n');
        let taken = end.unwrap_or(chunk.len());
        if line.len() + taken > MAX_LINE_BYTES {
            let message = format!("a line of more than {MAX_LINE_BYTES} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        line.extend_from_slice(&chunk[..taken]);
        socket.consume(taken + usize::from(end.is_some()));
        if end.is_some() {
            return Ok(Some(line));
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    const GREETING: &str = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n";
    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(10);

    /// A monitor that greets, grants the capabilities, and then sends what `reply` makes of each
    /// line.
    async fn connected(reply: fn(&str) -> String) -> Qmp {
        let (ours, theirs) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            let (reading, mut writing) = theirs.into_split();
            let mut reading = BufReader::new(reading);
            writing.write_all(GREETING.as_bytes()).await.unwrap();
            while let Ok(Some(line)) = next_line(&mut reading).await {
                let line = String::from_utf8(line).unwrap();
                let answer = match line.contains("qmp_capabilities") {
                    true => "{\"return\": {}, \"id\": 1}\r\n".to_owned(),
                    false => reply(&line),
                };
                if writing.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
        Qmp::negotiate(ours).await.unwrap()
    }

    #[tokio::test]
    async fn an_answer_is_found_among_events() {
        let qmp = connected(|_| {
            "{\"event\": \"RESET\", \"data\": {\"guest\": false}}\n\
             {\"return\": {\"status\": \"running\"}, \"id\": 2}\n"
                .to_owned()
        })
        .await;
        let mut events = qmp.events();
        let answer = qmp.execute("query-status", Value::Null, LONG).await.unwrap();
        assert_eq!(answer["status"], "running");
        assert_eq!(events.recv().await.unwrap().name, "RESET");
    }

    #[tokio::test]
    async fn a_refusal_carries_the_words_of_qemu() {
        let qmp = connected(|_| {
            "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no room\"}, \"id\": 2}\n".into()
        })
        .await;
        let error = qmp.execute("device_add", json!({"driver": "x"}), LONG).await.unwrap_err();
        assert_eq!(error.to_string(), "QEMU refused 'device_add': no room (GenericError)");
    }

    #[tokio::test]
    async fn a_silent_monitor_costs_a_time_limit_and_its_late_answer_is_dropped() {
        let qmp = connected(|line| match line.contains("first") {
            true => String::new(),
            false => "{\"return\": 1, \"id\": 2}\n{\"return\": 2, \"id\": 3}\n".into(),
        })
        .await;
        let error = qmp.execute("first", Value::Null, SHORT).await.unwrap_err();
        assert_eq!(error, QmpError::Timeout { command: "first".into(), limit: SHORT });
        assert_eq!(qmp.execute("second", Value::Null, LONG).await, Ok(json!(2)));
    }

    #[tokio::test]
    async fn nonsense_and_endless_lines_end_the_connection() {
        let replies: [fn(&str) -> String; 3] =
            [|_| "nonsense\n".into(), |_| "[]\n".into(), |_| "x".repeat(MAX_LINE_BYTES + 1)];
        for reply in replies {
            let qmp = connected(reply).await;
            let error = qmp.execute("query-status", Value::Null, LONG).await.unwrap_err();
            assert_eq!(error, QmpError::Closed { command: "query-status".into() });
            qmp.closed().await;
            let error = qmp.execute("cont", Value::Null, LONG).await.unwrap_err();
            assert_eq!(error, QmpError::Closed { command: "cont".into() });
        }
    }

    #[tokio::test]
    async fn the_reason_of_a_shutdown_is_known_once_the_monitor_has_closed() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let peer = tokio::spawn(async move {
            theirs.write_all(GREETING.as_bytes()).await.unwrap();
            let mut buffer = [0; 128];
            assert!(theirs.read(&mut buffer).await.unwrap() > 0);
            let lines = "{\"return\": {}, \"id\": 1}\n\
                         {\"event\": \"SHUTDOWN\", \"data\": {\"reason\": \"guest-shutdown\"}}\n";
            theirs.write_all(lines.as_bytes()).await.unwrap();
        });
        let qmp = Qmp::negotiate(ours).await.unwrap();
        peer.await.unwrap();
        qmp.closed().await;
        assert_eq!(qmp.shutdown_reason().as_deref(), Some("guest-shutdown"));
    }

    #[tokio::test]
    async fn a_monitor_that_never_greets_is_an_error_when_it_closes() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let error = Qmp::negotiate(ours).await.unwrap_err();
        assert_eq!(error, QmpError::Closed { command: "greeting".into() });
    }
}
