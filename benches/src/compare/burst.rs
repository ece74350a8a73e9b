//! Pods set up all at once, as a kubelet does after a node was drained or restarted, and taken down.
//!
//! ```text
//!  all at once   [0 .. n]   taken one after the other by `parallel` threads, each:
//!    NetNS      a network namespace with a name
//!    AddCNI     the interface in it               Arm::add
//!    AttachIf   a VM's end of it                  Arm::attach
//!  ready         when the last is ready, on the clock that began with the first
//! ```
//! A thread has the name of the stage that it is in, so that tracers know what a call was for.

use std::ffi::CString;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex, PoisonError};
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use dataplane::clock;
use nix::sys::prctl;
use nix::sys::resource::{Usage, UsageWho, getrusage};
use serde::{Deserialize, Serialize};

use super::apart::Apart;
use super::arms::{Arm, Held};
use super::meminfo::Memory;
use super::pod::{self, Pod};
use crate::host::{Process, stolen_ms};
use crate::{interrupt, rig};

/// The stages, in their order, as the literature names them. Cgroup and StartVM belong to whole pods.
pub const STAGES: [&str; 3] = ["NetNS", "AddCNI", "AttachIf"];
/// A burst that takes longer is given up: the pods that are left are failures.
const LIMIT_US: u64 = 60_000_000;

/// What one pod took, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// From the begin of all to the begin of this one: it waited for a thread.
    pub waited_us: u64,
    /// Each of [`STAGES`].
    pub stages_us: [u64; 3],
}

impl Times {
    /// From the begin of all until it was ready.
    pub fn ready_us(&self) -> u64 {
        self.waited_us + self.stages_us.iter().sum::<u64>()
    }
}

/// What a burst took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Burst {
    /// Pods that were asked for.
    pub pods: usize,
    /// Those that became ready.
    pub times: Vec<Times>,
    /// Why others did not, at set-up or at teardown.
    pub failures: Vec<String>,
    /// Until the last pod was ready, or given up.
    pub ready_s: f64,
    /// From the begin of the teardown until the kernel had taken back all namespaces.
    pub teardown_s: f64,
    /// CPU time of the set-up: ours with its worker threads and stub VMMs, our children's that ended
    /// (plugins, ovs-vsctl), and the daemons'.
    pub cpu_s: f64,
    /// What the kernel's slab grew by.
    pub slab_kib: i64,
    /// What memory in use grew by, page cache and guests' shared memory left out.
    pub memory_kib: i64,
    /// What the hypervisor took of all cores during the set-up.
    pub stolen_ms: u64,
}

/// A pod that was begun, and what is held of it.
struct Begun {
    pod: Pod,
    held: Held,
}

/// Sets `pods` pods up by `parallel` threads, runs `while_up`, and takes them down.
///
/// # Errors
/// The kernel does not tell what is measured, namespaces do not go, or someone wants us to end. What
/// a single pod says is part of the outcome.
pub fn run(
    host: &Apart,
    arm: &dyn Arm,
    pods: usize,
    parallel: usize,
    while_up: impl FnOnce() -> Result<()>,
) -> Result<Burst> {
    let (first, last) = rig::cores()?;
    let cores: Vec<_> = (first..=last).collect();
    let before = (Memory::now()?, cpu_us(arm)?, stolen_ms(&cores)?);
    let up = each(pods, parallel, |index, waited_us| {
        if waited_us > LIMIT_US {
            return Outcome { begun: None, result: Err(anyhow!("given up after a minute")) };
        }
        begin(host, arm, index, waited_us)
    });
    let after = (Memory::now()?, cpu_us(arm)?, stolen_ms(&cores)?);
    let mut begun = Vec::new();
    let mut burst = Burst {
        pods,
        times: Vec::new(),
        failures: Vec::new(),
        ready_s: up.seconds,
        teardown_s: 0.0,
        cpu_s: (after.1 - before.1) as f64 / 1e6,
        slab_kib: after.0.slab_kib - before.0.slab_kib,
        memory_kib: after.0.used_kib - before.0.used_kib,
        stolen_ms: after.2 - before.2,
    };
    for (index, outcome) in up.outcomes.into_iter().enumerate() {
        begun.extend(outcome.begun);
        match outcome.result {
            Ok(times) => burst.times.push(times),
            Err(error) => burst.failures.push(format!("pod {index}: {error:#}")),
        }
    }
    let checked = arm.check(burst.times.len()).and_then(|()| while_up());
    if let Err(error) = checked {
        burst.failures.push(format!("{error:#}"));
    }
    let begun: Vec<_> = begun.into_iter().map(|begun| Mutex::new(Some(begun))).collect();
    let clock = clock::ticks();
    let down = each(begun.len(), parallel, |at, _| {
        let begun = begun[at].lock().unwrap_or_else(PoisonError::into_inner).take();
        begun.map_or(Ok(()), |begun| end(arm, begun))
    });
    for outcome in down.outcomes {
        if let Err(error) = outcome {
            burst.failures.push(format!("teardown: {error:#}"));
        }
    }
    pod::wait_until_all_are_gone(host)?;
    burst.teardown_s = seconds_since(clock);
    interrupt::check()?;
    Ok(burst)
}

struct Outcome {
    begun: Option<Begun>,
    result: Result<Times>,
}

fn begin(host: &Apart, arm: &dyn Arm, index: usize, waited_us: u64) -> Outcome {
    if let Err(error) = interrupt::check() {
        return Outcome { begun: None, result: Err(error) };
    }
    let mut stages_us = [0; 3];
    let created = stage(0, &mut stages_us, || Pod::create(host, index));
    let pod = match created {
        Ok(pod) => pod,
        Err(error) => return Outcome { begun: None, result: Err(error) },
    };
    let added = stage(1, &mut stages_us, || arm.add(&pod));
    let attached = added.and_then(|socket| stage(2, &mut stages_us, || arm.attach(&pod, socket)));
    let (held, result) = match attached {
        Ok(held) => (held, Ok(Times { waited_us, stages_us })),
        Err(error) => (Held::Nothing, Err(error)),
    };
    Outcome { begun: Some(Begun { pod, held }), result }
}

/// Does what stage `at` is, under its name, and notes how long it took.
fn stage<T>(at: usize, stages_us: &mut [u64; 3], act: impl FnOnce() -> Result<T>) -> Result<T> {
    // As long as the names are shorter than 16 bytes it does not fail.
    let _ = prctl::set_name(&CString::new(STAGES[at])?);
    let begin = clock::ticks();
    let outcome = act().context(STAGES[at]);
    stages_us[at] = (clock::ticks() - begin) / clock::ticks_per_us();
    outcome
}

/// A plugin that failed may have left something; its DEL is to remove it, as engines call it then.
fn end(arm: &dyn Arm, begun: Begun) -> Result<()> {
    let Begun { pod, held } = begun;
    // The VM ends first.
    drop(held);
    let removed = arm.remove(&pod);
    pod.give_up().and(removed)
}

/// What all calls gave, by index, and how long it took until the last was done.
struct All<T> {
    outcomes: Vec<T>,
    seconds: f64,
}

/// Calls `act` with every index below `count` and with the microseconds since the begin, on `parallel`
/// threads that are there before the clock starts.
fn each<T: Send>(count: usize, parallel: usize, act: impl Fn(usize, u64) -> T + Sync) -> All<T> {
    let workers = parallel.clamp(1, count.max(1));
    let (next, start) = (AtomicUsize::new(0), Barrier::new(workers + 1));
    let begin = Mutex::new(0);
    let outcomes = Mutex::new(Vec::with_capacity(count));
    thread::scope(|scope| {
        let work = || {
            start.wait();
            // Set before the second time that all meet.
            start.wait();
            let begin = *begin.lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    break;
                }
                let passed_us = (clock::ticks() - begin) / clock::ticks_per_us();
                let outcome = act(index, passed_us);
                outcomes.lock().unwrap_or_else(PoisonError::into_inner).push((index, outcome));
            }
        };
        for _ in 0..workers {
            scope.spawn(work);
        }
        start.wait();
        *begin.lock().unwrap_or_else(PoisonError::into_inner) = clock::ticks();
        start.wait();
    });
    let seconds = seconds_since(*begin.lock().unwrap_or_else(PoisonError::into_inner));
    let mut outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcomes.sort_by_key(|(index, _)| *index);
    All { outcomes: outcomes.into_iter().map(|(_, outcome)| outcome).collect(), seconds }
}

fn seconds_since(ticks: u64) -> f64 {
    (clock::ticks() - ticks) as f64 / clock::ticks_per_us() as f64 / 1e6
}

/// Of us, of our children that ended, and of the daemons.
fn cpu_us(arm: &dyn Arm) -> Result<u64> {
    let of = |usage: Usage| {
        [usage.user_time(), usage.system_time()]
            .iter()
            .map(|time| (time.tv_sec() * 1_000_000 + time.tv_usec()).unsigned_abs())
            .sum::<u64>()
    };
    let ours = of(getrusage(UsageWho::RUSAGE_SELF)?) + of(getrusage(UsageWho::RUSAGE_CHILDREN)?);
    let daemons = arm.daemons().into_iter().map(|pid| Ok(Process::cpu_ns(pid)? / 1000));
    Ok(ours + daemons.sum::<Result<u64>>()?)
}
