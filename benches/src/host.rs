//! What the machine and a process on it were like while something was measured.

use std::thread;

use anyhow::{Context as _, Result, ensure};
use dataplane::clock;
use serde::Serialize;

use crate::distance::core_round_trip_ns;
use crate::rig::pin;
use crate::stats::Rounds;

/// Steps of one pass of the fixed loop: a quarter of a millisecond or so.
const STEPS: u32 = 100_000;
/// Passes of it.
const PASSES: usize = 21;

/// Ticks of the time-stamp counter that a step of a fixed loop takes on the calling thread's core: the
/// median of some passes. It touches no memory, so it changes with the core's clock alone.
pub fn fixed_loop_ticks() -> f64 {
    let pass = |_| {
        let begin = clock::ticks();
        // Each step needs the one before it.
        let last = (0..STEPS).fold(1_u64, |x, _| {
            std::hint::black_box(x.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(7))
        });
        std::hint::black_box(last);
        (clock::ticks() - begin) as f64 / f64::from(STEPS)
    };
    Rounds::of((0..PASSES).map(pass).collect()).median
}

/// How fast the machine is just now, by what does not depend on what is compared.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Calibration {
    /// Nanoseconds that a cache line takes from the generator's core to the switch's and back.
    pub core_round_trip_ns: f64,
    /// See [`fixed_loop_ticks`], on the generator's core.
    pub generator_loop_ticks: f64,
    /// And on the switch's.
    pub switch_loop_ticks: f64,
}

impl Calibration {
    /// Now, from the generator's core, which is the caller's; the switch's is idle.
    pub fn now(switch_core: usize) -> Self {
        let switch_loop_ticks = thread::scope(|scope| {
            let on_core = scope.spawn(|| {
                let _ = pin(switch_core);
                fixed_loop_ticks()
            });
            // The thread does not panic; NaN is stored as null.
            on_core.join().unwrap_or(f64::NAN)
        });
        Self {
            core_round_trip_ns: core_round_trip_ns(switch_core),
            generator_loop_ticks: fixed_loop_ticks(),
            switch_loop_ticks,
        }
    }
}

/// Milliseconds for which the hypervisor let `cores` wait so far, in steps of 10 ms.
///
/// # Errors
/// /proc/stat is not as proc(5) has it.
pub fn stolen_ms(cores: &[usize]) -> Result<u64> {
    let path = "/proc/stat";
    let text = std::fs::read_to_string(path).with_context(|| format!("Failed to read {path}"))?;
    let of = |core: &usize| {
        stolen_ticks(&text, *core).with_context(|| format!("{path} has no steal time of cpu{core}"))
    };
    Ok(cores.iter().map(of).sum::<Result<u64>>()? * 10)
}

/// The eighth number of a CPU's line, in ticks of 10 ms.
fn stolen_ticks(stat: &str, core: usize) -> Option<u64> {
    let name = format!("cpu{core} ");
    let line = stat.lines().find_map(|line| line.strip_prefix(&name))?;
    line.split_whitespace().nth(7)?.parse().ok()
}

/// Names of the threads of the process `pid` that may run on `core`.
///
/// # Errors
/// There is no such process.
pub fn threads_allowed_on(pid: u32, core: usize) -> Result<Vec<String>> {
    let path = format!("/proc/{pid}/task");
    let mut names = Vec::new();
    for thread in std::fs::read_dir(&path).with_context(|| format!("Failed to read {path}"))? {
        // A thread may end meanwhile.
        let Ok(status) = std::fs::read_to_string(thread?.path().join("status")) else { continue };
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.map(|line| line.trim().to_owned()).unwrap_or_default()
        };
        if contains(&field("Cpus_allowed_list:"), core) {
            names.push(field("Name:"));
        }
    }
    Ok(names)
}

/// Sees to it that `most` threads of the process `pid` may run on `core`: whatever else ran there
/// would take time from the polling thread.
///
/// # Errors
/// More may, or fewer do.
pub fn ensure_threads_on(core: usize, pid: u32, most: usize) -> Result<()> {
    let names = threads_allowed_on(pid, core)?;
    let list = names.join(", ");
    ensure!(names.len() == most, "{most} threads of {pid} should run on core {core}: {list}");
    Ok(())
}

/// Whether a list of CPUs, e.g. `0-2,5`, has `core`.
fn contains(list: &str, core: usize) -> bool {
    list.split(',').any(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<usize>(), last.parse::<usize>());
        matches!((first, last), (Ok(first), Ok(last)) if (first..=last).contains(&core))
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steal_time_is_the_eighth_number_of_the_cpu_that_is_named() {
        let stat =
            "cpu  1 2 3 4 5 6 7 99 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\ncpu10 0 0 0 0 0 0 0 5 0 0\n";
        assert_eq!((stolen_ticks(stat, 0), stolen_ticks(stat, 10)), (Some(8), Some(5)));
        assert_eq!(stolen_ticks(stat, 1), None);
    }

    #[test]
    fn lists_of_cpus_are_read_as_the_kernel_writes_them() {
        assert!(contains("0-2,5", 1) && contains("0-2,5", 5) && contains("3", 3));
        assert!(!contains("0-2,5", 3) && !contains("", 0) && !contains("10", 1));
    }

    #[test]
    fn a_thread_that_is_pinned_elsewhere_is_not_counted() {
        let Ok((first, last)) = crate::rig::cores() else { return };
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (end, over) = std::sync::mpsc::channel::<()>();
        let thread = thread::Builder::new().name("elsewhere".into());
        let thread = thread.spawn(move || {
            ready.send(pin(first).is_ok()).unwrap();
            let _ = over.recv();
        });
        assert!(is_ready.recv().unwrap());
        let named = |core| {
            let names = threads_allowed_on(std::process::id(), core).unwrap();
            names.iter().filter(|name| *name == "elsewhere").count()
        };
        assert_eq!((named(first), named(last)), (1, 0));
        assert!(ensure_threads_on(last, std::process::id(), 100_000).is_err());
        drop(end);
        thread.unwrap().join().unwrap();
    }
}
