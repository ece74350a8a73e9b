//! The loop of a PMD thread.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arc_swap::ArcSwap;
use arc_swap::cache::Cache;
use nix::sys::epoll::{Epoll, EpollEvent, EpollTimeout};

use crate::clock;
use crate::pipeline::{Origin, Worker};
use crate::port::{Vport, ring_tag};
use crate::stats::PmdCounters;
use crate::tables::Tables;

use super::fair::{Account, Fair};
use super::mailbox::Mailbox;
use super::{PmdConfig, Report, Shared};

/// One transmit ring that this PMD polls or has armed.
#[derive(Debug)]
struct Entry {
    vport: Arc<Vport>,
    queue: u16,
    /// When it last had a frame, or was visited or kicked; in clock ticks.
    last_work: u64,
    /// It is in `Loop::polled`.
    polled: bool,
    /// How it stands beside the others.
    account: Account,
}

/// State of one PMD thread.
#[derive(Debug)]
pub struct Loop {
    index: u32,
    config: PmdConfig,
    shared: Shared,
    tables: Cache<Arc<ArcSwap<Tables>>, Arc<Tables>>,
    mailbox: Arc<Mailbox>,
    epoll: Arc<Epoll>,
    counters: Arc<PmdCounters>,
    worker: Box<Worker>,
    fair: Fair,
    /// Clock ticks without a frame before a ring is armed.
    idle_limit: u64,
    entries: Vec<Option<Entry>>,
    /// Where each ring is in `entries`, by its tag.
    by_tag: HashMap<u64, usize>,
    /// Entries that are polled.
    polled: Vec<usize>,
    /// When the last burst ended; in clock ticks.
    burst_end: u64,
}

/// How long a PMD sleeps at most when all it polls are idle rings whose guests never kick.
const POLL_ONLY_NAP_MS: u8 = 1;

/// What a round found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Round {
    /// Frames.
    Worked,
    /// None, but some ring had frames a moment ago.
    Idle,
    /// None, and only rings are left that can not be armed.
    OnlySilent,
}

/// What became of a ring in a round.
enum Turn {
    /// It had frames.
    Worked,
    /// It had none, or it is in debt.
    Idle,
    /// It had none for long, and its guest can not kick.
    Silent,
    /// It is armed and leaves the rounds.
    Armed,
    /// It is gone, or another PMD's.
    Gone,
}

impl Loop {
    /// A loop that polls nothing yet.
    pub(super) fn new(
        index: u32,
        config: PmdConfig,
        shared: Shared,
        mailbox: Arc<Mailbox>,
        epoll: Arc<Epoll>,
        counters: Arc<PmdCounters>,
    ) -> Self {
        let tables = Cache::new(Arc::clone(&shared.tables));
        let idle_limit = match config.idle_before_sleep_us {
            0 => u64::MAX,
            us => u64::from(us) * clock::ticks_per_us(),
        };
        let worker = Box::new(Worker::new(config.burst_frames, shared.hash_seed));
        Self {
            index,
            config,
            shared,
            tables,
            mailbox,
            epoll,
            counters,
            worker,
            fair: Fair::new(config.quantum_bytes),
            idle_limit,
            entries: Vec::new(),
            by_tag: HashMap::new(),
            polled: Vec::new(),
            burst_end: 0,
        }
    }

    /// Polls until the mailbox says stop.
    pub(super) fn run(mut self) {
        let per_us = clock::ticks_per_us();
        let kick_check = u64::from(self.config.kick_check_us) * per_us;
        let mut last_check = clock::ticks();
        let mut before = last_check;
        self.worker.set_now(clock::seconds());
        while !self.mailbox.stopping() {
            self.take_visits(before);
            if self.polled.is_empty() {
                self.sleep();
                let now = clock::ticks();
                self.counters.sleep_ticks.add(now.wrapping_sub(before));
                before = now;
                last_check = now;
                continue;
            }
            let round = self.round(before);
            let worked = round == Round::Worked;
            // What looks come after the last burst count as the next round's.
            let now = if worked { self.burst_end } else { clock::ticks() };
            let spent = if worked { &self.counters.busy_ticks } else { &self.counters.idle_ticks };
            spent.add(now.wrapping_sub(before));
            before = now;
            if now.wrapping_sub(last_check) >= kick_check {
                last_check = now;
                self.worker.set_now(clock::seconds());
                self.collect_kicks(EpollTimeout::ZERO);
                before = clock::ticks();
                self.counters.kick_check_ticks.add(before.wrapping_sub(now));
            } else if round == Round::OnlySilent && !self.polled.is_empty() {
                self.collect_kicks(POLL_ONLY_NAP_MS.into());
                before = clock::ticks();
                self.counters.sleep_ticks.add(before.wrapping_sub(now));
            }
        }
    }

    /// One turn for every polled ring.
    fn round(&mut self, now: u64) -> Round {
        self.counters.rounds.add(1);
        self.burst_end = now;
        let (mut worked, mut waiting) = (false, false);
        let mut at = 0;
        while at < self.polled.len() {
            match self.turn(self.polled[at], now) {
                Turn::Worked => {
                    worked = true;
                    at += 1;
                }
                Turn::Idle => {
                    waiting = true;
                    at += 1;
                }
                Turn::Silent => at += 1,
                Turn::Armed => self.leave_rounds(at),
                Turn::Gone => {
                    let slot = self.polled[at];
                    self.leave_rounds(at);
                    self.forget(slot);
                }
            }
        }
        self.fair.end_round();
        match (worked, waiting) {
            (true, _) => Round::Worked,
            (false, true) => Round::Idle,
            (false, false) => Round::OnlySilent,
        }
    }

    fn turn(&mut self, slot: usize, now: u64) -> Turn {
        let Some(entry) = self.entries[slot].as_mut() else { return Turn::Gone };
        let Some(max_bytes) = self.fair.turn(&mut entry.account) else { return Turn::Idle };
        let tx = &entry.vport.tx[usize::from(entry.queue)];
        // The control thread wants the ring: it will be empty, or back, at the next turn.
        let Some(mut slot) = tx.cell.enter() else { return Turn::Idle };
        let Some(live) = slot.live() else { return Turn::Gone };
        if tx.owner.load(Ordering::Relaxed) != self.index {
            return Turn::Gone;
        }
        if !live.enabled {
            // Armed as it is: SET_VRING_ENABLE visits the ring again.
            return Turn::Armed;
        }
        let origin = Origin {
            vport: &entry.vport,
            counters: &tx.counters,
            fdb: &self.shared.fdb,
            reports: &self.shared.reports,
            pmd: &self.counters,
        };
        let cache = &mut self.tables;
        let tables = move || {
            let cache = cache;
            &**cache.load()
        };
        let taken = self.worker.run(&origin, tables, live, max_bytes);
        let outcome = taken.and_then(|taken| {
            if taken.frames > 0 {
                entry.last_work = now;
                self.fair.charge(&mut entry.account, taken.charged_bytes);
                let end = clock::ticks();
                tx.counters.busy_ticks.add(end.wrapping_sub(self.burst_end));
                self.burst_end = end;
                self.counters.bursts.add(1);
                self.counters.frames.add(u64::from(taken.frames));
                return Ok(Turn::Worked);
            }
            if now.wrapping_sub(entry.last_work) < self.idle_limit {
                return Ok(Turn::Idle);
            }
            if live.watch.is_none() {
                return Ok(Turn::Silent);
            }
            Ok(if live.ring.arm()? { Turn::Idle } else { Turn::Armed })
        });
        outcome.unwrap_or_else(|fault| {
            let vring = entry.queue * 2 + 1;
            if let Some(fault) = slot.break_with(fault) {
                self.shared.reports.send(Report::Broken { port: entry.vport.id, vring, fault });
            }
            Turn::Gone
        })
    }

    /// Takes over the rings that the control thread handed us.
    fn take_visits(&mut self, now: u64) {
        let mut visited = false;
        while let Some(visit) = self.mailbox.take() {
            visited = true;
            let tag = ring_tag(visit.vport.id, visit.queue);
            let (vport, queue) = (visit.vport, visit.queue);
            let slot = match self.by_tag.get(&tag) {
                Some(&slot) => slot,
                None => {
                    let free = self.entries.iter().position(Option::is_none);
                    free.unwrap_or_else(|| {
                        self.entries.push(None);
                        self.entries.len() - 1
                    })
                }
            };
            self.by_tag.insert(tag, slot);
            let old = self.entries[slot].as_ref();
            let polled = old.is_some_and(|old| old.polled);
            // Debts stay: a guest could have its ring visited at will.
            let account = old.map_or_else(Account::default, |old| old.account);
            self.entries[slot] = Some(Entry { vport, queue, last_work: now, polled, account });
            self.poll_again(slot, now);
        }
        if visited {
            self.count_rings();
        }
    }

    /// Puts an armed ring back into the rounds.
    fn poll_again(&mut self, slot: usize, now: u64) {
        let Some(entry) = self.entries[slot].as_mut() else { return };
        entry.last_work = now;
        if entry.polled {
            return;
        }
        entry.polled = true;
        self.polled.push(slot);
        let tx = &entry.vport.tx[usize::from(entry.queue)];
        if let Some(mut slot) = tx.cell.enter()
            && let Some(live) = slot.live()
            // Another PMD may have armed it, and would wait for a kick that never comes.
            && tx.owner.load(Ordering::Relaxed) == self.index
        {
            live.ring.disarm();
        }
    }

    fn leave_rounds(&mut self, at: usize) {
        let slot = self.polled.swap_remove(at);
        if let Some(entry) = self.entries[slot].as_mut() {
            entry.polled = false;
        }
        self.count_rings();
    }

    /// Lets go of a ring; its vport may end now.
    fn forget(&mut self, slot: usize) {
        if let Some(entry) = self.entries[slot].take() {
            self.by_tag.remove(&ring_tag(entry.vport.id, entry.queue));
        }
        self.count_rings();
    }

    fn count_rings(&self) {
        let polled = self.polled.len() as u64;
        self.counters.polled_rings.set(polled);
        self.counters.armed_rings.set(self.by_tag.len() as u64 - polled);
    }

    /// Looks for kicks, for at most `timeout`; kicked rings are polled again.
    fn collect_kicks(&mut self, timeout: EpollTimeout) {
        let mut events = [EpollEvent::empty(); 64];
        // EINTR and the like: we come back in a moment anyway.
        let n = self.epoll.wait(&mut events, timeout).unwrap_or(0);
        if n == 0 {
            return;
        }
        let now = clock::ticks();
        for event in &events[..n] {
            if let Some(&slot) = self.by_tag.get(&event.data()) {
                self.counters.wakeups.add(1);
                self.poll_again(slot, now);
            }
        }
        self.count_rings();
    }

    /// Nothing is polled: sleeps until a kick or a message.
    fn sleep(&mut self) {
        if self.mailbox.fall_asleep() {
            self.counters.sleeps.add(1);
            self.collect_kicks(EpollTimeout::NONE);
            self.mailbox.woke();
            self.worker.set_now(clock::seconds());
        }
    }
}

#[cfg(test)]
mod tests;
