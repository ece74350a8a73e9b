//! The host's end of the control channel: calls to the agent of one guest.
//!
//! The VMM offers the channel as a UNIX socket. A task of its own keeps the connection: it sends
//! the calls, hands each reply to the caller who waits for its id, and connects again when the
//! VMM was restarted. A call made before the guest has booted waits in the socket until the agent
//! reads it. A reboot shows as a new [`Ready`] line: the calls in flight die with
//! the old kernel, and their callers are told so at once instead of after their time-outs.
//!
//! # Bounds
//! The guest is not trusted: lines are bounded by [`MAX_LINE`](crate::protocol::MAX_LINE), those
//! that are no protocol are dropped, and every wait has a time-out.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::lines::Lines;
use crate::protocol::{
    Answer, Call, Claim, Datagrams, Info, Line, Outcome, Ping, PingReport, Ready, Receive, Refusal,
    Reply, Request, TcpSend, Ticket, Transfer, UdpReceive, UdpSend, to_line,
};

/// Pause between two tries to connect while the VMM does not listen.
const RETRY: Duration = Duration::from_millis(5);
/// How much longer than the guest the host waits, for the way there and back.
const GRACE: Duration = Duration::from_secs(10);

/// Why a call gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The guest's agent said no.
    #[error("The guest refused {call}")]
    Refused {
        /// The verb.
        call: &'static str,
        /// What it said.
        source: Refusal,
    },
    /// No reply came in time.
    #[error("The guest behind {path} did not answer {call} within {waited:?}; see its console")]
    TimedOut {
        /// The verb.
        call: &'static str,
        /// The channel's socket.
        path: PathBuf,
        /// The time-out.
        waited: Duration,
    },
    /// The guest rebooted before it replied.
    #[error("The guest rebooted before it answered {call}")]
    Rebooted {
        /// The verb.
        call: &'static str,
    },
    /// The VMM closed the channel before the reply.
    #[error("The VMM closed {path} before the guest answered {call}")]
    Disconnected {
        /// The verb.
        call: &'static str,
        /// The channel's socket.
        path: PathBuf,
    },
    /// The reply is one to another question.
    #[error("The guest answered {call} with {answer:?}")]
    WrongAnswer {
        /// The verb.
        call: &'static str,
        /// What came.
        answer: Box<Answer>,
    },
}

/// How a call in flight ended without a reply.
#[derive(Debug, Clone, Copy)]
enum Lost {
    Rebooted,
    Disconnected,
}

type Waiter = oneshot::Sender<Result<Outcome, Lost>>;

/// The calls that wait for a reply, by id.
#[derive(Debug, Default)]
struct Pending {
    next_id: u64,
    waiters: HashMap<u64, Waiter>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    pending: Mutex<Pending>,
    ready: watch::Sender<Option<Ready>>,
}

impl Shared {
    /// No code panics while it holds the lock.
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lose_all(&self, lost: Lost) {
        for (_, waiter) in self.pending().waiters.drain() {
            // A caller that no longer waits is none to tell.
            drop(waiter.send(Err(lost)));
        }
    }

    fn hear(&self, line: Line) {
        match line {
            Line::Ready(ready) => {
                let before = self.ready.send_replace(Some(ready.clone()));
                // The first word of a boot is no reboot: calls made before it are in the socket.
                if before.is_some_and(|before| before.boot_id != ready.boot_id) {
                    self.lose_all(Lost::Rebooted);
                }
            }
            Line::Reply(Reply { id, outcome }) => {
                // A client that came after the boot learns from a reply which boot this is, so
                // that it can tell the next one from it.
                if let Outcome::Ok(Answer::Info(info)) = &outcome {
                    self.ready.send_if_modified(|ready| {
                        let is_news = ready.is_none();
                        if is_news {
                            let boot_id = info.boot_id.clone();
                            *ready = Some(Ready { boot_id, ready_ms: info.ready_ms });
                        }
                        is_news
                    });
                }
                let waiter = id.and_then(|id| self.pending().waiters.remove(&id));
                if let Some(waiter) = waiter {
                    drop(waiter.send(Ok(outcome)));
                }
            }
        }
    }
}

/// The agent of one guest. Dropping it closes the channel.
#[derive(Debug)]
pub struct Agent {
    shared: Arc<Shared>,
    requests: mpsc::UnboundedSender<Vec<u8>>,
    connection: JoinHandle<()>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Agent {
    /// The agent behind the channel's UNIX socket at `path`. It returns at once; the socket may
    /// come into being later. Needs a tokio runtime.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let shared = Arc::new(Shared {
            path: path.into(),
            pending: Mutex::default(),
            ready: watch::Sender::new(None),
        });
        let (requests, received) = mpsc::unbounded_channel();
        let connection = tokio::spawn(keep_connected(Arc::clone(&shared), received));
        Self { shared, requests, connection }
    }

    /// The channel's socket.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Makes a call and waits for its answer.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn call(&self, call: Call, within: Duration) -> Result<Answer, ClientError> {
        let name = name_of(&call);
        let (waiter, reply) = oneshot::channel();
        let id = {
            let mut pending = self.shared.pending();
            pending.next_id += 1;
            let id = pending.next_id;
            pending.waiters.insert(id, waiter);
            id
        };
        let _forget = Forget { shared: &self.shared, id };
        // The receiver lives in the task, which ends only when `self` is dropped.
        drop(self.requests.send(to_line(&Request { id, call })));
        let path = || self.shared.path.clone();
        match timeout(within, reply).await {
            Ok(Ok(Ok(Outcome::Ok(answer)))) => Ok(answer),
            Ok(Ok(Ok(Outcome::Error(source)))) => Err(ClientError::Refused { call: name, source }),
            Ok(Ok(Err(Lost::Rebooted))) => Err(ClientError::Rebooted { call: name }),
            Ok(Ok(Err(Lost::Disconnected)) | Err(_)) => {
                Err(ClientError::Disconnected { call: name, path: path() })
            }
            Err(_) => Err(ClientError::TimedOut { call: name, path: path(), waited: within }),
        }
    }

    /// Waits until the guest has booted, whether it is still booting or did so long ago.
    ///
    /// # Errors
    /// [`ClientError::TimedOut`], or what else [`Agent::call`] fails with, but neither a reboot
    /// nor a restart of the VMM meanwhile.
    pub async fn wait_ready(&self, within: Duration) -> Result<Info, ClientError> {
        let ask = async {
            loop {
                match self.info(within).await {
                    Err(ClientError::Rebooted { .. } | ClientError::Disconnected { .. }) => {}
                    other => return other,
                }
            }
        };
        timeout(within, ask).await.unwrap_or_else(|_| Err(self.timed_out("info", within)))
    }

    /// Asks for kernel, NIC and boot time.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn info(&self, within: Duration) -> Result<Info, ClientError> {
        match self.call(Call::Info, within).await? {
            Answer::Info(info) => Ok(info),
            answer => Err(wrong("info", answer)),
        }
    }

    /// Has the guest ping another.
    ///
    /// # Errors
    /// See [`ClientError`]. Lost echoes are none, they are counted in the report.
    pub async fn ping(&self, ping: Ping) -> Result<PingReport, ClientError> {
        let each = u64::from(ping.timeout_ms) + u64::from(ping.interval_ms);
        let within = Duration::from_millis(each.saturating_mul(ping.count.into())) + GRACE;
        match self.call(Call::Ping(ping), within).await? {
            Answer::Ping(report) => Ok(report),
            answer => Err(wrong("ping", answer)),
        }
    }

    /// Has the guest listen for one TCP stream; it listens once this returns.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn tcp_recv(&self, receive: Receive) -> Result<Ticket, ClientError> {
        match self.call(Call::TcpRecv(receive), GRACE).await? {
            Answer::Ticket(ticket) => Ok(ticket),
            answer => Err(wrong("tcp_recv", answer)),
        }
    }

    /// Has the guest send a TCP stream, and waits until the peer has it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn tcp_send(&self, send: TcpSend, within: Duration) -> Result<Transfer, ClientError> {
        match self.call(Call::TcpSend(send), within).await? {
            Answer::Transfer(transfer) => Ok(transfer),
            answer => Err(wrong("tcp_send", answer)),
        }
    }

    /// Waits for the end of a TCP receiver.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn tcp_result(&self, claim: Claim) -> Result<Transfer, ClientError> {
        match self.result(claim).await? {
            Answer::Transfer(transfer) => Ok(transfer),
            answer => Err(wrong("result", answer)),
        }
    }

    /// Has the guest listen for UDP datagrams; it listens once this returns.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn udp_recv(&self, receive: UdpReceive) -> Result<Ticket, ClientError> {
        match self.call(Call::UdpRecv(receive), GRACE).await? {
            Answer::Ticket(ticket) => Ok(ticket),
            answer => Err(wrong("udp_recv", answer)),
        }
    }

    /// Has the guest send UDP datagrams.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn udp_send(
        &self,
        send: UdpSend,
        within: Duration,
    ) -> Result<Datagrams, ClientError> {
        match self.call(Call::UdpSend(send), within).await? {
            Answer::Datagrams(datagrams) => Ok(datagrams),
            answer => Err(wrong("udp_send", answer)),
        }
    }

    /// Waits for the end of a UDP receiver.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn udp_result(&self, claim: Claim) -> Result<Datagrams, ClientError> {
        match self.result(claim).await? {
            Answer::Datagrams(datagrams) => Ok(datagrams),
            answer => Err(wrong("result", answer)),
        }
    }

    async fn result(&self, claim: Claim) -> Result<Answer, ClientError> {
        let within = Duration::from_millis(claim.timeout_ms.into()) + GRACE;
        self.call(Call::Result(claim), within).await
    }

    /// Reboots the guest and waits until it has booted again.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn reboot(&self, within: Duration) -> Result<Ready, ClientError> {
        // This boot must be known to tell the next one from it, and its word may have been said
        // to another client.
        let before = self.info(within).await?.boot_id;
        let mut ready = self.shared.ready.subscribe();
        match self.call(Call::Reboot, within).await {
            // A guest may be gone before its answer is out.
            Ok(Answer::Done) | Err(ClientError::Rebooted { .. }) => {}
            Ok(answer) => return Err(wrong("reboot", answer)),
            Err(error) => return Err(error),
        }
        let is_new =
            |ready: &Option<Ready>| ready.as_ref().is_some_and(|ready| ready.boot_id != before);
        let next = timeout(within, ready.wait_for(is_new)).await;
        let next = next.ok().and_then(Result::ok).and_then(|ready| ready.clone());
        next.ok_or_else(|| self.timed_out("reboot", within))
    }

    /// Powers the guest off. The VMM's process may stay, see the decision on the guest image.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn poweroff(&self, within: Duration) -> Result<(), ClientError> {
        match self.call(Call::Poweroff, within).await {
            // A VMM that ends with its guest closes the channel.
            Ok(Answer::Done) | Err(ClientError::Disconnected { .. }) => Ok(()),
            Ok(answer) => Err(wrong("poweroff", answer)),
            Err(error) => Err(error),
        }
    }

    fn timed_out(&self, call: &'static str, waited: Duration) -> ClientError {
        ClientError::TimedOut { call, path: self.shared.path.clone(), waited }
    }
}

fn wrong(call: &'static str, answer: Answer) -> ClientError {
    ClientError::WrongAnswer { call, answer: Box::new(answer) }
}

const fn name_of(call: &Call) -> &'static str {
    match call {
        Call::Info => "info",
        Call::Ping(_) => "ping",
        Call::TcpRecv(_) => "tcp_recv",
        Call::TcpSend(_) => "tcp_send",
        Call::UdpRecv(_) => "udp_recv",
        Call::UdpSend(_) => "udp_send",
        Call::Result(_) => "result",
        Call::Run(_) => "run",
        Call::Reboot => "reboot",
        Call::Poweroff => "poweroff",
    }
}

/// Forgets a call whose caller stopped waiting, by time-out or by being dropped.
struct Forget<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.shared.pending().waiters.remove(&self.id);
    }
}

/// Connects, talks until the connection ends, and begins again; ends with the [`Agent`].
async fn keep_connected(shared: Arc<Shared>, mut requests: mpsc::UnboundedReceiver<Vec<u8>>) {
    loop {
        let Ok(stream) = UnixStream::connect(&shared.path).await else {
            sleep(RETRY).await;
            continue;
        };
        // The reason does not matter to the callers, only that their replies will not come.
        drop(talk(&shared, stream, &mut requests).await);
        shared.lose_all(Lost::Disconnected);
        sleep(RETRY).await;
    }
}

async fn talk(
    shared: &Shared,
    stream: UnixStream,
    requests: &mut mpsc::UnboundedReceiver<Vec<u8>>,
) -> io::Result<()> {
    let (mut from_guest, mut to_guest) = stream.into_split();
    let read = async {
        let (mut lines, mut buffer) = (Lines::default(), vec![0; 4096]);
        loop {
            match from_guest.read(&mut buffer).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                length => lines.push(&buffer[..length], |line| {
                    let line = line.ok().and_then(|line| serde_json::from_slice(line).ok());
                    if let Some(line) = line {
                        shared.hear(line);
                    }
                }),
            }
        }
    };
    let write = async {
        while let Some(request) = requests.recv().await {
            to_guest.write_all(&request).await?;
        }
        Ok(())
    };
    tokio::try_join!(read, write).map(|((), ())| ())
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
