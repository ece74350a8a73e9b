//! Flows of a fixed size, one connection each, as netcat sends files.
//!
//! ```text
//!  client   connect, send all, half-close, wait for the server's end     its time is the flow's
//!  server   accept, read to the end, close
//! ```
//! All clients begin together and send flow after flow until each of those that count has done its share: so
//! the last flow of a slow client meets the same load as the first.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Barrier, Mutex, PoisonError};
use std::thread;

use anyhow::{Context as _, Result};
use dataplane::clock;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Priority;

use super::place::{Pair, Shared, TIMEOUT, insist, is_late};
use super::streams::{accept, push, retransmitted};
use crate::compare::flows::measurement::Reading;
use crate::compare::summary::quantile;
use crate::interrupt;

const PORT: u16 = 4000;
const WRITE: usize = 64 * 1024;
/// The priority of interactive traffic (tc-prio(8)).
const INTERACTIVE: i32 = 6;

/// What the flows of one client are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Of each.
    pub bytes: u64,
    /// Whether they are measured; else they are load.
    pub counts: bool,
    /// Whether they have priority.
    pub first: bool,
}

/// Runs `flows[n]` between `pairs[n]` until each that counts was done `times` times, `limit_us` at most.
///
/// # Errors
/// Someone wants us to end. Flows that are not done in time are failures.
pub fn run(pairs: &[Pair<'_>], flows: &[Flow], times: usize, limit_us: u64) -> Result<Reading> {
    let (shared, together) = (Shared::default(), Barrier::new(pairs.len()));
    let (taken_ms, segments) = (Mutex::new(Vec::new()), AtomicU64::new(0));
    let counting = flows.iter().filter(|flow| flow.counts).count();
    let outcome = thread::scope(|scope| {
        for (index, (pair, flow)) in pairs.iter().zip(flows).enumerate() {
            let (shared, together, taken_ms, segments) = (&shared, &together, &taken_ms, &segments);
            scope.spawn(move || shared.run(&format!("server {index}"), || serve(pair, shared)));
            scope.spawn(move || {
                shared.run(&format!("client {index}"), || {
                    let entered = pair.client.enter();
                    // Also after a failure: the others wait.
                    together.wait();
                    entered?;
                    let mut done = 0;
                    while !shared.is_over() {
                        let Some((ms, again)) = send(pair, flow, shared)? else { break };
                        segments.fetch_add(again, Ordering::Relaxed);
                        done += 1;
                        if flow.counts && done <= times {
                            push(taken_ms, ms);
                        }
                        if flow.counts && done == times {
                            shared.is_ready();
                        }
                    }
                    Ok(())
                });
            });
        }
        let outcome = shared.wait_for(counting, limit_us);
        shared.end();
        outcome
    });
    interrupt::check()?;
    let mut reading = Reading { failures: shared.failures(), ..Reading::default() };
    let taken_ms = taken_ms.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Err(error) = outcome {
        let (done, all) = (taken_ms.len(), counting * times);
        reading.failures.push(format!("{done} of {all} flows were done: {error:#}"));
        // The slow ones are missing: no quantile of what is there is that of all.
        return Ok(reading);
    }
    for (key, share) in [("p50_ms", 0.5), ("p90_ms", 0.9), ("p99_ms", 0.99)] {
        reading.value(key, quantile(taken_ms.clone(), share));
    }
    reading.value("retransmitted_segments", segments.into_inner() as f64);
    reading.distribution("completion_ms", taken_ms);
    Ok(reading)
}

fn serve(pair: &Pair<'_>, shared: &Shared) -> Result<()> {
    pair.server.enter()?;
    let listener = TcpListener::bind(pair.server.address(PORT)).context("Failed to listen")?;
    let mut buffer = vec![0; WRITE];
    while let Some(mut stream) = accept(&listener, shared)? {
        stream.set_read_timeout(Some(TIMEOUT))?;
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(_) => {}
                Err(_) if shared.is_over() => return Ok(()),
                Err(error) if is_late(&error) => {}
                Err(error) => return Err(error).context("Failed to receive"),
            }
        }
    }
    Ok(())
}

/// One flow: how long it took in milliseconds, and segments that it sent again. `None`: all is over before it
/// was done.
fn send(pair: &Pair<'_>, flow: &Flow, shared: &Shared) -> Result<Option<(f64, u64)>> {
    let (data, mut left) = ([0x5a; WRITE], flow.bytes);
    let begin = clock::ticks();
    let connect = || TcpStream::connect(pair.server.address(PORT));
    let Some(mut stream) = insist(shared, connect)? else { return Ok(None) };
    if flow.first {
        setsockopt(&stream, Priority, &INTERACTIVE).context("Failed to set the priority")?;
    }
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    while left > 0 {
        match stream.write(&data[..left.min(WRITE as u64) as usize]) {
            Ok(length) => left -= length as u64,
            Err(_) if shared.is_over() => return Ok(None),
            Err(error) if is_late(&error) => {}
            Err(error) => return Err(error).context("Failed to send"),
        }
        // What nobody waits for any more may be large.
        if shared.is_over() {
            return Ok(None);
        }
    }
    stream.shutdown(Shutdown::Write).context("Failed to end a flow")?;
    loop {
        match stream.read(&mut [0]) {
            Ok(_) => break,
            Err(_) if shared.is_over() => return Ok(None),
            Err(error) if is_late(&error) => {}
            Err(error) => return Err(error).context("The server broke a flow off"),
        }
    }
    let ms = (clock::ticks() - begin) as f64 / clock::ticks_per_us() as f64 / 1000.0;
    Ok(Some((ms, retransmitted(&stream)?)))
}
