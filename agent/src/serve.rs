//! Works on the calls of the control channel.
//!
//! # Threads
//! The caller's thread reads and parses. Questions are answered there and then; what takes time
//! runs on a thread of its own, and each thread writes its own reply, whole, under one lock. At
//! most [`MAX_JOBS`] calls and [`MAX_TICKETS`] receivers exist at a time; the next is refused.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use slipway_agent::lines::Overlong;
use slipway_agent::protocol::{
    Answer, Call, Claim, Line, MAX_JOBS, MAX_TICKETS, Outcome, Ready, Receive, Refusal,
    RefusalCode, Refused, Reply, Ticket, UdpReceive, overlong, parse_request, to_line,
};

use crate::{ping, program, system, tcp, udp};

/// Stack of a worker in bytes. The buffers are on the heap.
const STACK: usize = 128 * 1024;

/// What ends the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// Start again.
    Reboot,
    /// Stay off.
    Off,
}

/// The agent's side of the control channel.
pub struct Server {
    ready: Ready,
    ip: Option<(Ipv4Addr, u8)>,
    power: fn(Power),
    writer: Mutex<Box<dyn Write + Send>>,
    jobs: AtomicUsize,
    receivers: Mutex<Receivers>,
}

#[derive(Default)]
struct Receivers {
    next: u64,
    running_or_unclaimed: BTreeMap<u64, Arc<Receiver>>,
}

#[derive(Default)]
struct Receiver {
    outcome: Mutex<Option<Outcome>>,
    ended: Condvar,
}

/// No code panics while it holds one of the locks, and a panic ends the guest anyway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    /// A server that writes its replies to `writer` and ends the guest by `power`.
    pub fn new(
        ready: Ready,
        ip: Option<(Ipv4Addr, u8)>,
        writer: Box<dyn Write + Send>,
        power: fn(Power),
    ) -> Arc<Self> {
        Arc::new(Self {
            ready,
            ip,
            power,
            writer: Mutex::new(writer),
            jobs: AtomicUsize::new(0),
            receivers: Mutex::default(),
        })
    }

    /// Says that the guest is ready.
    pub fn announce(&self) {
        self.write(&Line::Ready(self.ready.clone()));
    }

    /// Works on one line of the host.
    pub fn take(self: &Arc<Self>, line: Result<&[u8], Overlong>) {
        let request = match line.map(parse_request) {
            Ok(Ok(request)) => request,
            Ok(Err(Refused { id, refusal })) => return self.reply(id, Err(refusal)),
            Err(Overlong) => return self.reply(None, Err(overlong())),
        };
        let id = Some(request.id);
        match request.call {
            Call::Info => self.reply(id, system::info(&self.ready, self.ip).map(Answer::Info)),
            Call::Reboot => self.end(id, Power::Reboot),
            Call::Poweroff => self.end(id, Power::Off),
            Call::TcpRecv(receive) => self.reply(id, self.receive_tcp(&receive)),
            Call::UdpRecv(receive) => self.reply(id, self.receive_udp(&receive)),
            Call::Ping(ping) => self.spawn(id, move |_| ping::run(&ping)),
            Call::TcpSend(send) => self.spawn(id, move |_| tcp::send(&send)),
            Call::UdpSend(send) => self.spawn(id, move |_| udp::send(&send)),
            Call::Run(run) => self.spawn(id, move |_| program::run(&run)),
            Call::Result(claim) => self.spawn(id, move |server| server.claim(&claim)),
        }
    }

    fn end(&self, id: Option<u64>, power: Power) {
        self.reply(id, Ok(Answer::Done));
        (self.power)(power);
    }

    /// Runs `work` on a thread and replies with its outcome.
    fn spawn(
        self: &Arc<Self>,
        id: Option<u64>,
        work: impl FnOnce(&Self) -> Result<Answer, Refusal> + Send + 'static,
    ) {
        // ORDERING: a count alone; what the jobs share is behind locks.
        if self.jobs.fetch_add(1, Ordering::Relaxed) >= MAX_JOBS {
            self.jobs.fetch_sub(1, Ordering::Relaxed);
            let message = format!("{MAX_JOBS} calls are being worked on; wait for one to end");
            return self.reply(id, Err(Refusal::new(RefusalCode::Busy, message)));
        }
        let server = Arc::clone(self);
        let spawned = spawn(move || {
            let outcome = work(&server);
            server.jobs.fetch_sub(1, Ordering::Relaxed);
            server.reply(id, outcome);
        });
        if let Err(refusal) = spawned {
            self.jobs.fetch_sub(1, Ordering::Relaxed);
            self.reply(id, Err(refusal));
        }
    }

    fn receive_tcp(&self, receive: &Receive) -> Result<Answer, Refusal> {
        self.receive(|| {
            let receiver = tcp::Receiver::listen(receive)?;
            Ok((receiver.port()?, || receiver.run()))
        })
    }

    fn receive_udp(&self, receive: &UdpReceive) -> Result<Answer, Refusal> {
        self.receive(|| {
            let receiver = udp::Receiver::listen(receive)?;
            Ok((receiver.port()?, || receiver.run()))
        })
    }

    /// Starts a receiver under a new ticket.
    fn receive<R>(
        &self,
        listen: impl FnOnce() -> Result<(u16, R), Refusal>,
    ) -> Result<Answer, Refusal>
    where
        R: FnOnce() -> Result<Answer, Refusal> + Send + 'static,
    {
        let mut receivers = lock(&self.receivers);
        if receivers.running_or_unclaimed.len() >= MAX_TICKETS {
            let message = format!("There are {MAX_TICKETS} receivers; ask for the result of one");
            return Err(Refusal::new(RefusalCode::Busy, message));
        }
        let (port, run) = listen()?;
        let receiver = Arc::<Receiver>::default();
        let at_end = Arc::clone(&receiver);
        spawn(move || {
            *lock(&at_end.outcome) = Some(to_outcome(run()));
            at_end.ended.notify_all();
        })?;
        receivers.next += 1;
        let ticket = receivers.next;
        receivers.running_or_unclaimed.insert(ticket, receiver);
        Ok(Answer::Ticket(Ticket { ticket, port }))
    }

    /// Waits for a receiver's end and forgets it.
    fn claim(&self, claim: &Claim) -> Result<Answer, Refusal> {
        let ticket = claim.ticket;
        let receiver = lock(&self.receivers).running_or_unclaimed.get(&ticket).cloned();
        let receiver = receiver.ok_or_else(|| {
            let message =
                format!("There is no receiver with ticket {ticket}, or its result is told");
            Refusal::new(RefusalCode::UnknownTicket, message)
        })?;
        let timeout = Duration::from_millis(claim.timeout_ms.into());
        let (outcome, _) = receiver
            .ended
            .wait_timeout_while(lock(&receiver.outcome), timeout, |outcome| outcome.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        let Some(outcome) = outcome.clone() else {
            let message = format!("Receiver {ticket} has not ended; ask again");
            return Err(Refusal::new(RefusalCode::TimedOut, message));
        };
        lock(&self.receivers).running_or_unclaimed.remove(&ticket);
        match outcome {
            Outcome::Ok(answer) => Ok(answer),
            Outcome::Error(refusal) => Err(refusal),
        }
    }

    fn reply(&self, id: Option<u64>, outcome: Result<Answer, Refusal>) {
        self.write(&Line::Reply(Reply { id, outcome: to_outcome(outcome) }));
    }

    fn write(&self, line: &Line) {
        // A host that went away loses its replies; the next one begins with its own calls.
        if let Err(error) = lock(&self.writer).write_all(&to_line(line)) {
            eprintln!("slipway: Failed to write to the control channel: {error}");
        }
    }
}

fn to_outcome(result: Result<Answer, Refusal>) -> Outcome {
    match result {
        Ok(answer) => Outcome::Ok(answer),
        Err(refusal) => Outcome::Error(refusal),
    }
}

fn spawn(work: impl FnOnce() + Send + 'static) -> Result<(), Refusal> {
    let spawned = thread::Builder::new().stack_size(STACK).spawn(work);
    spawned.map(drop).map_err(|error| {
        Refusal::new(RefusalCode::Failed, format!("Failed to start a thread: {error}"))
    })
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
