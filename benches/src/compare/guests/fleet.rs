//! All guests of an arm, in pairs: the first of a pair sends to the second.
//!
//! One thread drives them in turn and never sleeps while there is something to measure.

use anyhow::{Result, ensure};
use dataplane::clock;

use super::nic::Burst;
use super::stack::{Stack, now};
use crate::interrupt;

/// Bytes of what is sent, over and over; a prime, so that no frame or buffer begins where another did.
const PATTERN_BYTES: usize = 8191;
/// Of the first connection; each has another, so that nothing of an old one is taken for the new one's.
const FIRST_PORT: u16 = 10_000;
/// And after so many the first again.
const PORTS: u16 = 50_000;
/// Turns between two looks at whether someone wants us to end.
const LOOK: u32 = 1024;
/// What is sent as a request, and as its answer.
pub const MESSAGE_BYTES: usize = 64;
/// A connection that is not made by then is lost.
const LIMIT_US: u64 = 10_000_000;

/// What a pair does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// Nothing.
    Rest,
    /// Sends as much as it can.
    Endless,
    /// Sends so many bytes.
    Bytes(u64),
    /// Sends a message and waits for the same back, again and again.
    Messages,
}

/// Two guests.
#[derive(Debug)]
pub struct Pair {
    sender: Stack,
    receiver: Stack,
    load: Load,
    sent: u64,
    /// Bytes that the receiver has read so far.
    pub received: u64,
    begin: u64,
    /// Ticks from the first packet of the connection until the last byte was read.
    took: Option<u64>,
    /// Round trips, in ticks.
    round_trips: Vec<u64>,
    asked_at: Option<u64>,
}

/// What the guests of an arm are.
#[derive(Debug)]
pub struct Fleet {
    /// In the order of their numbers.
    pub pairs: Vec<Pair>,
    burst: Burst,
    pattern: Box<[u8]>,
    connections: u16,
    /// Every byte that arrives is compared with what was sent.
    checks_all: bool,
    /// Ticks of turns in which no guest had anything to do.
    pub waited: u64,
}

impl Fleet {
    /// Of guests in the order of their numbers. `checks_all`: look at every byte that arrives, not only at
    /// one in each cache line.
    ///
    /// # Panics
    /// Somebody has no partner.
    pub fn new(stacks: Vec<Stack>, checks_all: bool) -> Self {
        assert!(stacks.len().is_multiple_of(2), "guests come in pairs");
        let mut stacks = stacks.into_iter();
        let mut pairs = Vec::new();
        while let (Some(sender), Some(receiver)) = (stacks.next(), stacks.next()) {
            pairs.push(Pair::new(sender, receiver));
        }
        // The period of what is sent is that of the pattern, twice for slices that go over its end.
        let byte = |n: usize| (n % PATTERN_BYTES * 31 % 251) as u8;
        let pattern = (0..2 * PATTERN_BYTES).map(byte).collect();
        Self { pairs, burst: Burst::default(), pattern, connections: 0, checks_all, waited: 0 }
    }

    /// Gives each pair its load, and connects those that have one; the others rest.
    ///
    /// # Errors
    /// A port or an address is not one.
    pub fn begin(&mut self, mut load: impl FnMut(usize) -> Load) -> Result<()> {
        self.connections = (self.connections + 1) % PORTS;
        let port = FIRST_PORT + self.connections;
        for (n, pair) in self.pairs.iter_mut().enumerate() {
            pair.begin(load(n), port)?;
        }
        Ok(())
    }

    /// Gives one pair its load, as [`Self::begin`] does.
    ///
    /// # Errors
    /// A port or an address is not one.
    pub fn begin_one(&mut self, n: usize, load: Load) -> Result<()> {
        self.connections = (self.connections + 1) % PORTS;
        self.pairs[n].begin(load, FIRST_PORT + self.connections)
    }

    /// One turn of all guests.
    ///
    /// # Errors
    /// The switch broke the rules of a ring, or what arrived is not what was sent.
    pub fn turn(&mut self) -> Result<()> {
        let begin = clock::ticks();
        let now = now();
        let mut work = 0;
        // Who rests takes no time from the others.
        for pair in self.pairs.iter_mut().filter(|pair| pair.load != Load::Rest) {
            work += pair.turn(now, &mut self.burst, &self.pattern, self.checks_all)?;
        }
        if work == 0 {
            self.waited += clock::ticks() - begin;
        }
        Ok(())
    }

    /// Turns until `is_over` says so, or `limit_us` have passed; returns whether it said so.
    ///
    /// # Errors
    /// As [`Self::turn`]; someone wants us to end.
    pub fn run(&mut self, limit_us: u64, mut is_over: impl FnMut(&Self) -> bool) -> Result<bool> {
        let end = clock::ticks() + limit_us * clock::ticks_per_us();
        for n in 1_u32.. {
            self.turn()?;
            if is_over(self) {
                return Ok(true);
            }
            if n.is_multiple_of(LOOK) {
                interrupt::check()?;
            }
            if clock::ticks() >= end {
                break;
            }
        }
        Ok(false)
    }

    /// Has each guest speak to its partner: whoever learns addresses knows them then.
    ///
    /// # Errors
    /// One of them is not heard.
    pub fn introduce(&mut self) -> Result<()> {
        self.begin(|_| Load::Bytes(1))?;
        let are_heard = self.run(LIMIT_US, |fleet| fleet.pairs.iter().all(Pair::is_done))?;
        let silent = self.pairs.iter().filter(|pair| !pair.is_done()).count();
        let all = self.pairs.len();
        ensure!(are_heard, "{silent} of {all} guests do not reach their partners");
        Ok(())
    }
}

impl Pair {
    fn new(sender: Stack, receiver: Stack) -> Self {
        let (sent, received, begin) = (0, 0, 0);
        let (took, asked_at, round_trips) = (None, None, Vec::new());
        let load = Load::Rest;
        Self { sender, receiver, load, sent, received, begin, took, round_trips, asked_at }
    }

    fn begin(&mut self, load: Load, port: u16) -> Result<()> {
        self.load = load;
        (self.sent, self.received, self.took, self.asked_at) = (0, 0, None, None);
        self.round_trips.clear();
        self.begin = clock::ticks();
        if load == Load::Rest {
            self.sender.socket().abort();
            self.receiver.socket().abort();
            return Ok(());
        }
        self.receiver.listen(port)?;
        let is_message = load == Load::Messages;
        for stack in [&mut self.sender, &mut self.receiver] {
            stack.socket().set_nagle_enabled(!is_message);
        }
        self.sender.connect(self.receiver.address, port)
    }

    /// Whether all bytes that were to be sent have arrived.
    pub fn is_done(&self) -> bool {
        self.took.is_some()
    }

    /// Milliseconds from the first packet of the connection until the last byte was read.
    pub fn completion_ms(&self) -> Option<f64> {
        Some(self.took? as f64 / clock::ticks_per_us() as f64 / 1e3)
    }

    /// Round trips so far, in microseconds. They are forgotten.
    pub fn take_round_trips_us(&mut self) -> Vec<f64> {
        let per_us = clock::ticks_per_us() as f64;
        self.round_trips.drain(..).map(|ticks| ticks as f64 / per_us).collect()
    }

    fn turn(
        &mut self,
        now: smoltcp::time::Instant,
        burst: &mut Burst,
        pattern: &[u8],
        checks_all: bool,
    ) -> Result<usize> {
        match self.load {
            Load::Messages => self.ask(),
            _ => self.send(pattern),
        }
        let mut work = self.sender.poll(now, burst)?;
        work += self.receiver.poll(now, burst)?;
        match self.load {
            Load::Messages => self.answer(),
            _ => self.receive(pattern, checks_all)?,
        }
        Ok(work)
    }

    /// Fills the socket's buffer.
    fn send(&mut self, pattern: &[u8]) {
        let most = match self.load {
            Load::Endless => u64::MAX,
            Load::Bytes(bytes) => bytes,
            Load::Rest | Load::Messages => 0,
        };
        while self.sent < most && self.sender.socket().can_send() {
            let at = (self.sent % PATTERN_BYTES as u64) as usize;
            let left = (most - self.sent).min(PATTERN_BYTES as u64) as usize;
            // A socket that can send takes at least a byte.
            let Ok(n) = self.sender.socket().send_slice(&pattern[at..at + left]) else { return };
            if n == 0 {
                return;
            }
            self.sent += n as u64;
        }
    }

    /// Reads what has arrived.
    fn receive(&mut self, pattern: &[u8], checks_all: bool) -> Result<()> {
        while self.receiver.socket().can_recv() {
            let at = (self.received % PATTERN_BYTES as u64) as usize;
            let (n, is_right) = self.receiver.socket().recv(|bytes| {
                let n = bytes.len().min(PATTERN_BYTES);
                let (bytes, expected) = (&bytes[..n], &pattern[at..at + n]);
                let is_right = if checks_all {
                    bytes == expected
                } else {
                    bytes.iter().step_by(64).eq(expected.iter().step_by(64))
                };
                (n, (n, is_right))
            })?;
            ensure!(is_right, "{} received other bytes than sent", self.receiver.address);
            self.received += n as u64;
        }
        if let Load::Bytes(bytes) = self.load
            && self.received >= bytes
            && self.took.is_none()
        {
            self.took = Some(clock::ticks() - self.begin);
        }
        Ok(())
    }

    /// Sends a message if none is under way, or sees whether the answer is whole.
    fn ask(&mut self) {
        let socket = self.sender.socket();
        if let Some(asked_at) = self.asked_at
            && socket.recv_queue() >= MESSAGE_BYTES
        {
            let mut answer = [0; MESSAGE_BYTES];
            // It is all there.
            let _ = socket.recv_slice(&mut answer);
            self.round_trips.push(clock::ticks() - asked_at);
            self.asked_at = None;
        }
        if self.asked_at.is_none() && socket.can_send() {
            self.asked_at = Some(clock::ticks());
            // The buffer is empty: the message before was acknowledged with its answer.
            let _ = socket.send_slice(&[7; MESSAGE_BYTES]);
        }
    }

    /// Sends a whole message back.
    fn answer(&mut self) {
        let socket = self.receiver.socket();
        if socket.recv_queue() >= MESSAGE_BYTES && socket.can_send() {
            let mut message = [0; MESSAGE_BYTES];
            let _ = socket.recv_slice(&mut message);
            let _ = socket.send_slice(&message);
        }
    }
}
