//! PMD threads: pinned threads that poll transmit rings and run each burst to completion.
//!
//! ```text
//!            visit                 frames or kick
//! (plan) ----------> polled <----------------------- armed
//!                      |   no frame for idle_before_sleep   ^
//!                      '------------------------------------'
//! ```
//!
//! A polled ring costs one look at its available index per round. A ring without traffic is armed:
//! the guest is asked to kick, the ring is looked at once more, and it leaves the rounds. So 400
//! idle ports cost the busy ones nothing. While there are polled rings the thread asks its epoll
//! for kicks now and then; when there are none it sleeps in it, and uses no CPU at all.
//!
//! [`plan`] says which PMD polls which ring, by load or as pinned ([`assign`]), [`mailbox`] tells it, [`run`] is the loop, and [`fair`]
//! keeps its rings from taking each other's share.

pub mod assign;
pub mod doze;
pub mod fair;
pub mod mailbox;
pub mod plan;
pub mod run;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use crossbeam::queue::{ArrayQueue, SegQueue};
use nix::sys::epoll::{Epoll, EpollCreateFlags};

use crate::clock;
use crate::fdb::Fdb;
use crate::flow::HashSeed;
use crate::port::{PortId, Vport};
use crate::stats::PmdCounters;
use crate::tables::Published;
use crate::vhost::socket::Waker;
use crate::vhost::unblock;
use crate::vring::RingFault;

use mailbox::Mailbox;
use plan::{Moved, Placed, Plan};

/// How a PMD thread behaves; the same for all.
#[derive(Debug, Clone, Copy)]
pub struct PmdConfig {
    /// Frames taken from one ring before the next one's turn; at most [`crate::vring::BURST`].
    pub burst_frames: u16,
    /// Bytes that each of several rings with frames takes before the others had as much, too; at
    /// least 1.
    pub quantum_bytes: u32,
    /// How long a ring is polled without a frame before it is armed, in microseconds;
    /// 0: it is always polled.
    pub idle_before_sleep_us: u32,
    /// How often a busy PMD looks for kicks of armed rings, in microseconds.
    pub kick_check_us: u32,
    /// How often rings are moved to where it pays, in seconds; 0: only when asked.
    pub rebalance_interval_s: u32,
    /// What it must take off the PMD with most load, in hundredths of a core's time.
    pub rebalance_gain_percent: u32,
}

impl Default for PmdConfig {
    fn default() -> Self {
        Self {
            burst_frames: 32,
            quantum_bytes: 32 * 1518,
            idle_before_sleep_us: 200,
            kick_check_us: 25,
            rebalance_interval_s: 5,
            rebalance_gain_percent: 10,
        }
    }
}

/// What a PMD has to tell the control thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// A source address that the FDB does not have at this port.
    Sighted {
        /// Segment of the port.
        segment: u16,
        /// The address as a number.
        mac: u64,
        /// The port.
        port: PortId,
    },
    /// A ring broke and was taken out of use.
    Broken {
        /// Its port.
        port: PortId,
        /// Its index as vhost-user counts: 2 q receives, 2 q + 1 transmits.
        vring: u16,
        /// Why.
        fault: RingFault,
    },
}

/// From PMD threads to the control thread.
///
/// Sightings are bounded, so that a guest that invents addresses makes no one else wait; what does
/// not fit is counted. A broken ring is always told: each was set up by the control thread, so there
/// are never more of these reports than rings.
#[derive(Debug)]
pub struct Reports {
    sighted: ArrayQueue<Report>,
    broken: SegQueue<Report>,
    reader: OnceLock<Waker>,
}

impl Reports {
    /// Room for `capacity` sightings.
    pub fn new(capacity: usize) -> Self {
        Self {
            sighted: ArrayQueue::new(capacity),
            broken: SegQueue::new(),
            reader: OnceLock::new(),
        }
    }

    /// Says who reads the reports; only the first to say so is woken.
    pub fn read_by(&self, reader: Waker) {
        self.reader.get_or_init(|| reader).wake();
    }

    /// Hands over a report; `false`: there was no room.
    pub fn send(&self, report: Report) -> bool {
        let is_taken = match report {
            Report::Sighted { .. } => self.sighted.push(report).is_ok(),
            Report::Broken { .. } => {
                self.broken.push(report);
                true
            }
        };
        self.wake_reader();
        is_taken
    }

    /// Has the reader look again.
    pub fn wake_reader(&self) {
        if let Some(reader) = self.reader.get() {
            reader.wake();
        }
    }

    /// How many reports wait.
    pub fn len(&self) -> usize {
        self.broken.len() + self.sighted.len()
    }

    /// Whether no report waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next report, broken rings first.
    pub fn take(&self) -> Option<Report> {
        self.broken.pop().or_else(|| self.sighted.pop())
    }
}

/// What PMD threads share with each other and the control thread.
#[derive(Debug, Clone)]
pub struct Shared {
    /// The published tables.
    pub tables: Published,
    /// The forwarding database.
    pub fdb: Arc<Fdb>,
    /// To the control thread.
    pub reports: Arc<Reports>,
    /// Spreads flows over receive rings; the same for all PMDs.
    pub hash_seed: HashSeed,
}

/// The control side of one PMD thread. Dropping it ends the thread.
#[derive(Debug)]
pub struct Pmd {
    /// Its number, by the order of the configured cores.
    pub index: u32,
    /// The core it is pinned to.
    pub core: usize,
    /// How rings are handed to it.
    pub mailbox: Arc<Mailbox>,
    /// The epoll that watches kicks of its rings.
    pub epoll: Arc<Epoll>,
    /// What it did so far.
    pub counters: Arc<PmdCounters>,
    thread: Option<JoinHandle<()>>,
}

impl Pmd {
    /// Starts a PMD thread on `core`.
    ///
    /// # Errors
    /// The core does not exist or may not be used by this process; or no descriptor or thread.
    pub fn spawn(index: u32, core: usize, config: PmdConfig, shared: Shared) -> io::Result<Self> {
        let core_id = core_affinity::get_core_ids()
            .unwrap_or_default()
            .into_iter()
            .find(|id| id.id == core)
            .ok_or_else(|| {
                let what = format!(
                    "PMD core {core} does not exist or is outside this process's CPU set; \
                     set pmd.cores to cores from `taskset -pc $$`"
                );
                io::Error::new(io::ErrorKind::InvalidInput, what)
            })?;
        let epoll = Arc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?);
        let mailbox = Arc::new(Mailbox::new(&epoll)?);
        let counters = Arc::new(PmdCounters::default());
        let looper = run::Loop::new(
            index,
            config,
            shared,
            Arc::clone(&mailbox),
            Arc::clone(&epoll),
            Arc::clone(&counters),
        );
        let thread =
            std::thread::Builder::new().name(format!("slipway-pmd{index}")).spawn(move || {
                if !core_affinity::set_for_current(core_id) {
                    tracing::warn!(core, "PMD thread could not be pinned");
                }
                if let Err(error) = unblock::watch_this_thread() {
                    tracing::warn!(%error, "PMD thread is not watched: a VMM may block it");
                }
                looper.run();
            })?;
        Ok(Self { index, core, mailbox, epoll, counters, thread: Some(thread) })
    }

    /// Whether the thread is gone, which it should not be.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

/// All PMD threads and the plan of which ring is whose.
#[derive(Debug)]
pub struct Pmds {
    threads: Vec<Pmd>,
    plan: Mutex<Plan>,
    rebalance_gain_permille: u32,
}

impl Pmds {
    /// Starts one PMD thread per core.
    ///
    /// # Errors
    /// As [`Pmd::spawn`]; then none is left running.
    pub fn spawn(cores: &[usize], config: PmdConfig, shared: &Shared) -> io::Result<Self> {
        let spawn = |(index, &core)| Pmd::spawn(index as u32, core, config, shared.clone());
        let threads = cores.iter().enumerate().map(spawn).collect::<io::Result<Vec<_>>>()?;
        let plan = Mutex::new(Plan::new(threads.len(), clock::ticks()));
        let rebalance_gain_permille = config.rebalance_gain_percent.saturating_mul(10);
        Ok(Self { threads, plan, rebalance_gain_permille })
    }

    /// The threads, by number.
    pub fn threads(&self) -> &[Pmd] {
        &self.threads
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        // Every change of the plan is one assignment, or is made before anything can panic.
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Plans one more ring; returns its PMD.
    pub fn assign(&self, vport: &Arc<Vport>, queue: u16) -> u32 {
        self.plan().add(vport, queue, clock::ticks())
    }

    /// Takes a ring off the plan.
    pub fn unassign(&self, vport: &Vport, queue: u16) {
        self.plan().remove(vport, queue);
    }

    /// The rings that are polled, and their loads.
    pub fn placed(&self) -> Vec<Placed> {
        self.plan().placed(clock::ticks())
    }

    /// An interval of the measurement of loads is over.
    pub fn mark(&self) {
        self.plan().mark(clock::ticks());
    }

    /// Moves rings that are not pinned to other PMDs, if it takes enough off the one with most load;
    /// returns what was moved.
    pub fn rebalance(&self) -> Vec<Moved> {
        let mut plan = self.plan();
        let moves = plan.rebalance(self.rebalance_gain_permille, clock::ticks());
        let hand_over = |(port, queue, to)| self.hand_over(&mut plan, port, queue, to);
        moves.into_iter().filter_map(hand_over).collect()
    }

    /// Moves a running transmit ring to PMD `to`; `None`: it is there, or it does not run.
    pub fn move_ring(&self, port: PortId, queue: u16, to: u32) -> Option<Moved> {
        self.hand_over(&mut self.plan(), port, queue, to)
    }

    fn hand_over(&self, plan: &mut Plan, port: PortId, queue: u16, to: u32) -> Option<Moved> {
        let epoll = &self.threads.get(to as usize)?.epoll;
        let moved = plan.hand_over(port, queue, to, epoll)?;
        self.visit(moved.to, &moved.vport, queue);
        // So that it lets go of the vport.
        self.visit(moved.from, &moved.vport, queue);
        Some(moved)
    }

    /// The epoll that watches kicks for `pmd`.
    pub fn epoll(&self, pmd: u32) -> &Arc<Epoll> {
        &self.threads[pmd as usize].epoll
    }

    /// Has `pmd` poll a transmit ring from now on.
    pub fn visit(&self, pmd: u32, vport: &Arc<Vport>, queue: u16) {
        self.threads[pmd as usize].mailbox.visit(Arc::clone(vport), queue);
    }
}

impl Drop for Pmd {
    fn drop(&mut self) {
        self.mailbox.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(pmd = self.index, "PMD thread panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sighted(mac: u64) -> Report {
        Report::Sighted { segment: 0, mac, port: PortId(0) }
    }

    #[test]
    fn a_broken_ring_is_told_though_sightings_fill_their_queue() {
        let reports = Reports::new(1);
        assert!(reports.send(sighted(1)));
        assert!(!reports.send(sighted(2)));
        let broken = Report::Broken { port: PortId(7), vring: 1, fault: RingFault::EmptyBuffer };
        assert!(reports.send(broken));
        assert_eq!(reports.take(), Some(broken));
        assert_eq!(reports.take(), Some(sighted(1)));
        assert_eq!(reports.take(), None);
    }
}
