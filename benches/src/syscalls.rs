//! System calls of slipwayd's polling thread in the steady state, which strace counts.
//!
//! strace stops the thread at each call, so this is a pass of its own, and its rate no figure. What it
//! shows is which calls there are, and that their number follows the clock and not the frames: every
//! `kick_check_us` the thread asks whether a sleeping port was kicked, and that is all.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use dataplane::clock;
use dataplane::pmd::PmdConfig;
use dataplane::testing::Guest;
use serde::Serialize;

use crate::belongings::Belongings;
use crate::measure;
use crate::peer::program::{self, Service};
use crate::peer::{self, PeerKind, Place, Programs, number};
use crate::rig::{cores, pin};
use crate::runner::HUGE_PAGES;
use crate::scenario::{self, Scenario};
use crate::traffic::{self, Pattern};

/// Which traffic.
pub const SCENARIO: &str = "64";
/// The calls that look for kicks; which of them it is, is the C library's choice.
const KICK_CHECKS: &[&str] = &["epoll_wait", "epoll_pwait"];
/// Length of a turn of the generator in milliseconds.
const TURN_MS: u64 = 5;
const STRACE: &str = "strace";

/// What was counted.
#[derive(Debug, Clone, Serialize)]
pub struct SystemCalls {
    /// Calls by name.
    pub calls: BTreeMap<String, u64>,
    /// Frames that were forwarded meanwhile.
    pub frames: u64,
    /// How long strace was there, at most, in microseconds.
    pub traced_us: u64,
    /// How often the thread may look for kicks, in microseconds.
    pub kick_check_us: u32,
}

impl SystemCalls {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.calls.values().sum()
    }

    /// Of a million frames, at the rate to which strace slows.
    pub fn per_million_frames(&self) -> f64 {
        self.total() as f64 * 1e6 / self.frames.max(1) as f64
    }

    /// Of a million frames at most, at `mpps` million frames a second: so long they take.
    pub fn most_per_million_frames(&self, mpps: f64) -> f64 {
        1e6 / mpps / f64::from(self.kick_check_us)
    }

    /// # Errors
    /// There are calls besides those that look for kicks, or more of these than the clock allows.
    pub fn check(&self) -> Result<()> {
        let others: Vec<_> =
            self.calls.keys().filter(|name| !KICK_CHECKS.contains(&name.as_str())).collect();
        ensure!(others.is_empty(), "The polling thread calls {others:?} in the steady state");
        let most = self.traced_us / u64::from(self.kick_check_us.max(1)) + 1;
        let total = self.total();
        ensure!(
            total <= most,
            "The polling thread made {total} system calls in {} us; one every {} us are {most}",
            self.traced_us,
            self.kick_check_us
        );
        ensure!(self.frames > 0, "No frame was forwarded while system calls were counted");
        Ok(())
    }
}

/// Whether it can be done here.
pub fn is_possible() -> bool {
    program::find(STRACE).is_some()
}

/// Counts for `ms` milliseconds.
///
/// # Errors
/// The switch did not start or forward; strace may not trace it.
pub fn count(programs: &Programs, ms: u64) -> Result<SystemCalls> {
    let (generator, core) = cores()?;
    pin(generator)?;
    let belongings = Belongings::take(HUGE_PAGES)?;
    let scenario = scenario::named(&[SCENARIO.to_owned()])?.remove(0);
    let dir = belongings.dir().to_owned();
    let place = Place { dir, generator, core, is_exclusive: true, programs: programs.clone() };
    let mut peer = peer::start(PeerKind::Slipwayd, &scenario.setup, &place)?;
    let connect = |port| peer.guest(port, scenario::guest(&scenario.setup, true));
    let mut guests = (0..scenario.setup.ports).map(connect).collect::<Result<Vec<_>>>()?;
    measure::settle(&mut guests)?;
    let (pid, thread) = polling_thread(peer.pid())?;

    let steady = AtomicBool::new(false);
    let (frames, traced) = thread::scope(|scope| {
        let trace = scope.spawn(|| trace((pid, thread), &place, ms, &steady));
        let mut frames = 0;
        while !trace.is_finished() {
            let counts = steady.load(Ordering::Acquire);
            let forwarded = forward(&scenario, &mut guests)?;
            frames += if counts { forwarded } else { 0 };
        }
        let traced = trace.join().map_err(|_| anyhow!("the thread that traces panicked"))??;
        anyhow::Ok((frames, traced))
    })?;
    let (calls, traced_us) = traced;
    drop(guests);
    peer.stop()?;
    // slipwayd was started without a configuration.
    let kick_check_us = PmdConfig::default().kick_check_us;
    Ok(SystemCalls { calls, frames, traced_us, kick_check_us })
}

fn forward(scenario: &Scenario, guests: &mut [Guest]) -> Result<u64> {
    let (senders, receivers) = guests.split_at_mut(1);
    let pattern = Pattern::udp(number(0), &[number(1)], scenario.frame_bytes(), scenario.flows);
    let window =
        traffic::window(&mut [(senders[0].tx(), pattern)], &mut [receivers[0].rx()], TURN_MS);
    Ok(window?.frames)
}

/// Process and thread.
type Thread = (u32, u32);

/// The thread of the process `pid` that polls.
fn polling_thread(pid: u32) -> Result<Thread> {
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = thread?.path();
        if fs::read_to_string(path.join("comm"))?.starts_with("slipway-pmd") {
            let name = path.file_name().and_then(|name| name.to_str());
            let thread = name.and_then(|name| name.parse().ok());
            return Ok((pid, thread.context("A thread has no number")?));
        }
    }
    Err(anyhow!("slipwayd has no PMD thread"))
}

/// Traces for `ms` milliseconds; returns what strace counted, and for how long, in microseconds.
/// `steady` is set meanwhile.
fn trace(
    (pid, thread): Thread,
    place: &Place,
    ms: u64,
    steady: &AtomicBool,
) -> Result<(BTreeMap<String, u64>, u64)> {
    let begin = clock::ticks();
    let strace = program::find(STRACE).context("strace is not installed")?;
    let summary = place.dir.join("strace");
    let mut args: Vec<_> =
        ["-c", "-U", "calls,name", "-p", &thread.to_string(), "-o"].map(Into::into).into();
    args.push(summary.clone().into());
    let service = Service::start(STRACE, &strace, args, &[], &[place.generator], None)?;
    service.wait_until(|| is_traced(pid, thread))?;
    steady.store(true, Ordering::Release);
    thread::sleep(Duration::from_millis(ms));
    steady.store(false, Ordering::Release);
    // It writes its summary at the end.
    service.stop()?;
    let us = (clock::ticks() - begin) / clock::ticks_per_us();
    Ok((read_summary(&summary)?, us))
}

fn is_traced(pid: u32, thread: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/task/{thread}/status"));
    let status = status.unwrap_or_default();
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
    tracer.is_some_and(|pid| pid.trim() != "0")
}

fn read_summary(path: &Path) -> Result<BTreeMap<String, u64>> {
    let text = fs::read_to_string(path).context("strace left no summary")?;
    let calls = parse_summary(&text);
    ensure!(!calls.is_empty(), "strace counted nothing: {text:?}");
    Ok(calls)
}

/// Lines of a number and a name, between rules; the last one is the total.
fn parse_summary(text: &str) -> BTreeMap<String, u64> {
    let line = |line: &str| {
        let (calls, name) = line.trim().split_once(char::is_whitespace)?;
        Some((name.trim().to_owned(), calls.parse().ok()?)).filter(|(name, _)| name != "total")
    };
    text.lines().filter_map(line).collect()
}

impl std::fmt::Display for SystemCalls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.traced_us as f64 / 1e6;
        write!(f, "System calls of slipwayd's polling thread at {SCENARIO} B, by strace: ")?;
        for (name, calls) in &self.calls {
            write!(f, "{name} {calls}, ")?;
        }
        write!(
            f,
            "in {seconds:.2} s, with {} frames: {:.0} per million frames at the pace of strace",
            self.frames,
            self.per_million_frames()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(calls: &[(&str, u64)]) -> SystemCalls {
        let calls = calls.iter().map(|&(name, calls)| (name.to_owned(), calls)).collect();
        SystemCalls { calls, frames: 2_000_000, traced_us: 100_000, kick_check_us: 25 }
    }

    #[test]
    fn the_summary_of_strace_is_read_without_its_total() {
        let text = "    calls syscall\n--------- ----------------\n    19021 epoll_wait\n        \
                    2 read\n--------- ----------------\n    19023 total\n";
        let calls = parse_summary(text);
        let expected = [("epoll_wait".to_owned(), 19_021), ("read".to_owned(), 2)];
        assert_eq!(calls, BTreeMap::from(expected));
    }

    #[test]
    fn only_looking_for_kicks_is_allowed_and_only_as_often_as_the_clock_says() {
        assert!(counted(&[("epoll_wait", 4000)]).check().is_ok());
        let error = counted(&[("epoll_wait", 4002)]).check().unwrap_err();
        assert!(error.to_string().contains("4001"), "{error}");
        let error = counted(&[("epoll_wait", 10), ("write", 1)]).check().unwrap_err();
        assert!(error.to_string().contains("write"), "{error}");
        assert!(SystemCalls { frames: 0, ..counted(&[("epoll_wait", 1)]) }.check().is_err());
    }

    #[test]
    fn calls_are_told_for_a_million_frames() {
        let calls = counted(&[("epoll_wait", 4000)]);
        assert_eq!(calls.per_million_frames(), 2000.0);
        // A million frames take 125 ms.
        assert_eq!(calls.most_per_million_frames(8.0), 5000.0);
    }
}
