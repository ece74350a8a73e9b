//! What the machine and a process on it were like while something was measured.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use anyhow::{Context as _, Result};
use dataplane::clock;

use crate::rig::pin;

/// Round trips of one measurement: a few milliseconds.
const TRIPS: u64 = 20_000;

/// Nanoseconds that one cache line takes from the calling thread's core to `other` and back.
///
/// Whatever two cores share costs this; on a virtual machine it may change from minute to minute, as
/// the host moves its virtual cores.
pub fn core_round_trip_ns(other: usize) -> f64 {
    let ball = AtomicU64::new(0);
    let wait_for = |value| {
        while ball.load(Ordering::Acquire) != value {
            std::hint::spin_loop();
        }
    };
    let ticks = thread::scope(|scope| {
        scope.spawn(|| {
            // Unpinned the figure is of whatever core it runs on, which is the best one can say.
            let _ = pin(other);
            for trip in 0..TRIPS {
                wait_for(2 * trip + 1);
                ball.store(2 * trip + 2, Ordering::Release);
            }
        });
        // The first trip waits for the thread to start.
        let mut begin = 0;
        for trip in 0..TRIPS {
            ball.store(2 * trip + 1, Ordering::Release);
            wait_for(2 * trip + 2);
            if trip == 0 {
                begin = clock::ticks();
            }
        }
        clock::ticks() - begin
    });
    ticks as f64 * 1000.0 / clock::ticks_per_us() as f64 / (TRIPS - 1) as f64
}

/// What /proc says of a process.
#[derive(Debug)]
pub struct Process {
    /// Private memory and page tables.
    pub private_kib: i64,
    /// Threads.
    pub threads: u64,
    /// Open file descriptors.
    pub fds: i64,
    /// CPU time so far, in steps of 10 ms.
    pub cpu_ms: f64,
}

impl Process {
    /// Of the process `pid`.
    ///
    /// # Errors
    /// There is none.
    pub fn of(pid: u32) -> Result<Self> {
        let read = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))
        };
        let status = read("status")?;
        let field = |name: &str| -> Result<i64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number =
                line.and_then(|line| line.trim_start_matches(':').split_whitespace().next());
            number.and_then(|n| n.parse().ok()).with_context(|| format!("{name} in status"))
        };
        // Fields 14 and 15 of proc(5), in ticks of 10 ms; the name before them may hold blanks.
        let stat = read("stat")?;
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let times = after_name.split_whitespace().skip(11).take(2);
        let ticks: f64 = times.filter_map(|time| time.parse::<f64>().ok()).sum();
        Ok(Self {
            private_kib: field("RssAnon")? + field("VmPTE")?,
            threads: field("Threads")?.unsigned_abs(),
            fds: std::fs::read_dir(format!("/proc/{pid}/fd"))?.count() as i64,
            cpu_ms: ticks * 10.0,
        })
    }

    /// Nanoseconds that the threads of the process `pid` ran so far.
    ///
    /// # Errors
    /// There is no such process, or this kernel does not count.
    pub fn cpu_ns(pid: u32) -> Result<u64> {
        let mut sum = 0;
        for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let path = thread?.path().join("schedstat");
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("Failed to read {}", path.display()))?;
            let ran = text.split_whitespace().next().and_then(|ns| ns.parse::<u64>().ok());
            sum += ran.with_context(|| format!("{} holds {text:?}", path.display()))?;
        }
        Ok(sum)
    }
}
