//! An agent without a guest: it speaks the protocol over a UNIX socket, records what it is called, and
//! answers as it is told. Feature `testing`.
//!
//! Framing is written by hand here (10 bytes of length, stream, type and flags, then the message), so
//! that a mistake of the client's library shows. Unless told otherwise it succeeds with an empty
//! answer, is healthy, and lets those calls hang that wait for something to happen.
//!
//! # Threads
//! Tasks of the runtime in which it was started: one that accepts, one per connection, one per call.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kata_agent_protocol::health::{HealthCheckResponse, health_check_response::ServingStatus};
use kata_agent_protocol::protobuf::Message;
use kata_agent_protocol::ttrpc::{Code, Request, Response, get_status};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

const TYPE_REQUEST: u8 = 1;
const TYPE_RESPONSE: u8 = 2;
const MAX_BYTES: usize = 4 << 20;
/// They wait for something to happen, so they hang unless told otherwise.
const WAITING: [&str; 4] = ["WaitProcess", "ReadStdout", "ReadStderr", "GetOOMEvent"];

/// What a method answers: the encoded message, or a code and words.
pub type Answer = Result<Vec<u8>, (Code, String)>;
type Pending = Pin<Box<dyn Future<Output = Answer> + Send>>;
type Handler = Arc<dyn Fn(Vec<u8>) -> Pending + Send + Sync>;

/// A call as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// `CreateContainer`, for instance.
    pub method: String,
    /// The encoded request.
    pub payload: Vec<u8>,
    /// The caller's time limit; zero: none.
    pub timeout_nano: i64,
}

impl Call {
    /// The request.
    ///
    /// # Panics
    /// It is no `M`.
    pub fn request<M: Message>(&self) -> M {
        M::parse_from_bytes(&self.payload)
            .unwrap_or_else(|error| panic!("{} does not decode: {error}", self.method))
    }
}

/// The fake agent. Dropping it closes its socket and all connections; clones do not exist.
pub struct FakeAgent {
    shared: Arc<Shared>,
    path: PathBuf,
    accepting: JoinHandle<()>,
}

struct Shared {
    handlers: Mutex<HashMap<String, Handler>>,
    calls: watch::Sender<Vec<Call>>,
    /// Closing it ends the connections there are.
    connections: Mutex<watch::Sender<()>>,
}

impl fmt::Debug for FakeAgent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeAgent").field("path", &self.path).finish_non_exhaustive()
    }
}

impl FakeAgent {
    /// Serves a plain stream at `path`: [`AgentAddress::Unix`](super::AgentAddress::Unix).
    ///
    /// # Errors
    /// The socket cannot be bound.
    pub fn serve(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::start(path.as_ref(), None)
    }

    /// Serves port `port` behind the hybrid vsock at `path`. Other ports are closed without an answer.
    ///
    /// # Errors
    /// The socket cannot be bound.
    pub fn serve_hybrid(path: impl AsRef<Path>, port: u32) -> io::Result<Self> {
        Self::start(path.as_ref(), Some(port))
    }

    fn start(path: &Path, port: Option<u32>) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        let shared = Arc::new(Shared {
            handlers: Mutex::new(HashMap::new()),
            calls: watch::Sender::new(Vec::new()),
            connections: Mutex::new(watch::Sender::new(())),
        });
        let of_task = Arc::clone(&shared);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut hang_up = lock(&of_task.connections).subscribe();
                let shared = Arc::clone(&of_task);
                tokio::spawn(async move {
                    tokio::select! {
                        // A broken connection is the caller's business.
                        _ = converse(stream, port, shared) => {}
                        _ = hang_up.changed() => {}
                    }
                });
            }
        });
        let fake = Self { shared, path: path.to_owned(), accepting };
        fake.answer(
            "Check",
            &HealthCheckResponse {
                status: ServingStatus::SERVING.into(),
                ..HealthCheckResponse::default()
            },
        );
        WAITING.iter().for_each(|method| fake.hang(method));
        Ok(fake)
    }

    /// From now on `method` answers `answer`.
    pub fn answer(&self, method: &str, answer: &impl Message) {
        let encoded = answer.write_to_bytes().map_err(|e| (Code::INTERNAL, e.to_string()));
        self.handle(method, move |_| std::future::ready(encoded.clone()));
    }

    /// From now on `method` fails.
    pub fn fail(&self, method: &str, code: Code, message: &str) {
        let message = message.to_owned();
        self.handle(method, move |_| std::future::ready(Err((code, message.clone()))));
    }

    /// From now on `method` never answers.
    pub fn hang(&self, method: &str) {
        self.handle(method, |_| std::future::pending());
    }

    /// From now on `method` does what `handler` does with the decoded request.
    pub fn on<Q, A, F>(&self, method: &str, handler: impl Fn(Q) -> F + Send + Sync + 'static)
    where
        Q: Message,
        A: Message,
        F: Future<Output = Result<A, (Code, String)>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        self.handle(method, move |payload| {
            let answering = Q::parse_from_bytes(&payload).map(|request| handler(request));
            async move {
                let answer =
                    answering.map_err(|e| (Code::INVALID_ARGUMENT, e.to_string()))?.await?;
                answer.write_to_bytes().map_err(|e| (Code::INTERNAL, e.to_string()))
            }
        });
    }

    fn handle<F>(&self, method: &str, handler: impl Fn(Vec<u8>) -> F + Send + Sync + 'static)
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |payload| Box::pin(handler(payload)));
        lock(&self.shared.handlers).insert(method.to_owned(), handler);
    }

    /// All calls so far, in the order in which they came.
    pub fn calls(&self) -> Vec<Call> {
        self.shared.calls.borrow().clone()
    }

    /// The methods called so far, health checks left out.
    pub fn methods(&self) -> Vec<String> {
        let calls = self.calls().into_iter().map(|call| call.method);
        calls.filter(|method| method != "Check").collect()
    }

    /// Returns the call of `method` number `count`, from 1, once it has come.
    ///
    /// # Panics
    /// Never: the agent itself keeps the list of calls.
    pub async fn wait_for(&self, method: &str, count: usize) -> Call {
        let mut calls = self.shared.calls.subscribe();
        let nth = |calls: &[Call]| {
            calls.iter().filter(|call| call.method == method).nth(count.saturating_sub(1)).cloned()
        };
        let found = calls.wait_for(|calls| nth(calls).is_some()).await;
        found.ok().and_then(|calls| nth(&calls)).expect("the list lives as long as the agent")
    }

    /// Closes all connections there are, as the end of a VM does; new ones are served.
    pub fn hang_up(&self) {
        *lock(&self.shared.connections) = watch::Sender::new(());
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        self.accepting.abort();
        self.hang_up();
        // A test may have removed it with its directory.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn converse(stream: UnixStream, port: Option<u32>, shared: Arc<Shared>) -> io::Result<()> {
    let (reading, mut writing) = stream.into_split();
    let mut reading = BufReader::new(reading);
    if let Some(port) = port {
        let mut line = String::new();
        reading.read_line(&mut line).await?;
        if line != format!("CONNECT {port}\n") {
            return Ok(());
        }
        writing.write_all(b"OK 1073741824\n").await?;
    }
    let (answers, mut queue) = mpsc::channel::<Vec<u8>>(16);
    // Calls under way end with the connection.
    let mut calls = JoinSet::new();
    calls.spawn(async move {
        while let Some(frame) = queue.recv().await {
            if writing.write_all(&frame).await.is_err() {
                return;
            }
        }
    });
    loop {
        let length = usize::try_from(reading.read_u32().await?).unwrap_or(usize::MAX);
        let (stream, kind, _flags) =
            (reading.read_u32().await?, reading.read_u8().await?, reading.read_u8().await?);
        if length > MAX_BYTES || kind != TYPE_REQUEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut payload = vec![0; length];
        reading.read_exact(&mut payload).await?;
        let request = Request::parse_from_bytes(&payload).map_err(io::Error::other)?;
        let (shared, answers) = (Arc::clone(&shared), answers.clone());
        calls.spawn(async move {
            let answer = shared.answer(request).await;
            let mut frame = Vec::new();
            frame.extend(u32::try_from(answer.len()).unwrap_or_default().to_be_bytes());
            frame.extend(stream.to_be_bytes());
            frame.extend([TYPE_RESPONSE, 0]);
            frame.extend(answer);
            // Nobody reads it if the connection is gone.
            let _ = answers.send(frame).await;
        });
        while calls.try_join_next().is_some() {}
    }
}

impl Shared {
    async fn answer(&self, request: Request) -> Vec<u8> {
        let Request { service, method, payload, timeout_nano, .. } = request;
        let handler = lock(&self.handlers).get(&method).map(Arc::clone);
        let call = Call { method: method.clone(), payload: payload.clone(), timeout_nano };
        self.calls.send_modify(|calls| calls.push(call));
        let is_known = matches!(service.as_str(), "grpc.AgentService" | "grpc.Health");
        let answer = match handler {
            _ if !is_known => Err((Code::UNIMPLEMENTED, format!("no service {service}"))),
            Some(handler) => handler(payload).await,
            None => Ok(Vec::new()),
        };
        let mut response = Response::new();
        match answer {
            // The real agent sends no status with a success.
            Ok(payload) => response.payload = payload,
            Err((code, message)) => response.set_status(get_status(code, message)),
        }
        response.write_to_bytes().unwrap_or_default()
    }
}
