//! The plan: which PMD polls which running transmit ring, how much of a core each takes, and how a
//! ring moves from one PMD to another.
//!
//! ```text
//! planner                       old PMD                          new PMD
//! lock of the cell  <- waits -- ends the burst in hand:
//!   kick: to the new epoll        every frame of it is delivered
//!   owner = new
//! unlock            ----------> owner is another: lets go
//! visit old, visit new  ------> forgets the ring                 polls it, as if kicked
//! ```
//!
//! All frames of a flow of one ring so are delivered before the next PMD takes more: no frame is
//! lost, doubled or overtaken. A kick during the move is not lost either: an event descriptor that
//! was signalled is readable, and the new epoll says so at once.
//!
//! # Load
//! PMDs add up the clock ticks that they spend on each ring ([`crate::stats::Ingress::busy_ticks`]).
//! [`Plan::mark`] is called once per interval; a load is what a ring took since the mark before the
//! last, so it covers one to two intervals, whenever it is asked for.
//!
//! # Threads
//! Behind one lock ([`super::Pmds`]), which is taken before that of a cell, never the other way round.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::port::{PortId, Vport};

use super::assign::{self, RingLoad};

/// A ring that a PMD polls, for those who ask.
#[derive(Debug, Clone)]
pub struct Placed {
    /// Its vport.
    pub vport: Arc<Vport>,
    /// Which of the vport's transmit rings.
    pub queue: u16,
    /// The PMD that polls it.
    pub pmd: u32,
    /// The share of a core's time that it took of late, in thousandths.
    pub load_permille: u32,
    /// It stays where it is.
    pub is_pinned: bool,
}

/// A ring that was moved.
#[derive(Debug, Clone)]
pub struct Moved {
    /// Its vport.
    pub vport: Arc<Vport>,
    /// Which of the vport's transmit rings.
    pub queue: u16,
    /// The PMD that polled it.
    pub from: u32,
    /// The PMD that polls it now.
    pub to: u32,
}

#[derive(Debug)]
struct Ring {
    vport: Arc<Vport>,
    pmd: u32,
    is_pinned: bool,
    /// Its busy ticks at the mark before the last, and at the last.
    marks: [u64; 2],
}

impl Ring {
    fn busy_ticks(&self, queue: u16) -> u64 {
        self.vport.tx[usize::from(queue)].counters.busy_ticks.get()
    }
}

/// All running transmit rings.
#[derive(Debug)]
pub(super) struct Plan {
    pmds: usize,
    rings: BTreeMap<(PortId, u16), Ring>,
    /// The clock at the mark before the last, and at the last.
    marks: [u64; 2],
}

impl Plan {
    /// No ring on any of `pmds` PMDs, of which there is at least one.
    pub fn new(pmds: usize, now: u64) -> Self {
        Self { pmds: pmds.max(1), rings: BTreeMap::new(), marks: [now; 2] }
    }

    /// Plans one more ring; returns its PMD.
    pub fn add(&mut self, vport: &Arc<Vport>, queue: u16, now: u64) -> u32 {
        let pin = vport.pin_of(queue).filter(|&pmd| (pmd as usize) < self.pmds);
        let pmd = pin.unwrap_or_else(|| assign::place(self.pmds, &self.loads(now)));
        let mut ring =
            Ring { vport: Arc::clone(vport), pmd, is_pinned: pin.is_some(), marks: [0; 2] };
        // What the ring's place took before is not this guest's.
        ring.marks = [ring.busy_ticks(queue); 2];
        self.rings.insert((vport.id, queue), ring);
        pmd
    }

    /// Takes a ring off the plan.
    pub fn remove(&mut self, vport: &Vport, queue: u16) {
        self.rings.remove(&(vport.id, queue));
    }

    /// An interval is over.
    pub fn mark(&mut self, now: u64) {
        self.marks = [self.marks[1], now];
        for (&(_, queue), ring) in &mut self.rings {
            ring.marks = [ring.marks[1], ring.busy_ticks(queue)];
        }
    }

    /// What each ring took of late, by port and queue.
    fn loads(&self, now: u64) -> Vec<RingLoad> {
        let elapsed = now.saturating_sub(self.marks[0]).max(1);
        let of_ring = |(&(_, queue), ring): (&(PortId, u16), &Ring)| {
            let busy = ring.busy_ticks(queue).saturating_sub(ring.marks[0]);
            let load = u128::from(busy) * 1000 / u128::from(elapsed);
            RingLoad {
                pmd: ring.pmd,
                load_permille: load.min(1000) as u32,
                is_pinned: ring.is_pinned,
            }
        };
        self.rings.iter().map(of_ring).collect()
    }

    /// The rings, by port and queue.
    pub fn placed(&self, now: u64) -> Vec<Placed> {
        let with_load = self.rings.iter().zip(self.loads(now));
        let placed = with_load.map(|((&(_, queue), ring), load)| Placed {
            vport: Arc::clone(&ring.vport),
            queue,
            pmd: ring.pmd,
            load_permille: load.load_permille,
            is_pinned: ring.is_pinned,
        });
        placed.collect()
    }

    /// Where rings should be instead, if it takes `gain_permille` of a core's time off the PMD with
    /// most load.
    pub fn rebalance(&self, gain_permille: u32, now: u64) -> Vec<(PortId, u16, u32)> {
        let moves = assign::rebalance(self.pmds, &self.loads(now), gain_permille);
        let keys: Vec<_> = self.rings.keys().copied().collect();
        moves.into_iter().map(|one| (keys[one.ring].0, keys[one.ring].1, one.to)).collect()
    }

    /// Hands a running ring to PMD `to`, with `epoll` to watch its kicks; the PMDs are not told yet.
    /// `None`: there is nothing to move, or its kick cannot be watched there, and it stays.
    pub fn hand_over(
        &mut self,
        port: PortId,
        queue: u16,
        to: u32,
        epoll: &Arc<nix::sys::epoll::Epoll>,
    ) -> Option<Moved> {
        let ring = self.rings.get_mut(&(port, queue)).filter(|ring| ring.pmd != to)?;
        let tx = &ring.vport.tx[usize::from(queue)];
        tx.cell.with(|slot| {
            let live = slot.live()?;
            if let Some(watch) = &mut live.watch
                && let Err(error) = watch.follow(epoll)
            {
                tracing::warn!(port = %ring.vport.name, queue, to, %error, "vring was not moved");
                return None;
            }
            tx.owner.store(to, Ordering::Relaxed);
            Some(())
        })?;
        let from = std::mem::replace(&mut ring.pmd, to);
        Some(Moved { vport: Arc::clone(&ring.vport), queue, from, to })
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout};

    use super::*;
    use crate::port::VportRules;
    use crate::port::cell::Slot;
    use crate::port::ring_tag;
    use crate::port::watch::{Wake, Watch};
    use crate::testing::{GuestConfig, LocalGuest};
    use crate::vhost::eventfd::EventFd;

    fn vport(n: u32, pairs: u16, pins: &[u32]) -> Arc<Vport> {
        let rules = VportRules {
            segment: 0,
            mac: None,
            anti_spoof: false,
            bound: None,
            learning: false,
            mac_quota: 1,
            max_frame_bytes: 1514,
        };
        Arc::new(Vport::new(PortId(n), format!("port{n}"), rules, pairs).pinned_to(pins))
    }

    fn work(vport: &Vport, queue: usize, ticks: u64) {
        vport.tx[queue].counters.busy_ticks.add(ticks);
    }

    fn loads(plan: &Plan, now: u64) -> Vec<u32> {
        plan.placed(now).iter().map(|ring| ring.load_permille).collect()
    }

    #[test]
    fn pinned_rings_go_where_they_are_pinned_and_the_others_spread() {
        let mut plan = Plan::new(3, 0);
        let pinned = vport(0, 4, &[2, 1]);
        let on = [0, 1, 2, 3].map(|queue| plan.add(&pinned, queue, 0));
        assert_eq!(on, [2, 1, 2, 1]);
        let free = vport(1, 3, &[]);
        let on = [0, 1, 2].map(|queue| plan.add(&free, queue, 0));
        assert_eq!(on, [0, 0, 0], "the others have two rings each");
        assert!(plan.placed(1).iter().all(|ring| ring.is_pinned == (ring.vport.id == pinned.id)));
    }

    #[test]
    fn a_load_covers_one_to_two_intervals_and_nothing_of_a_guest_before() {
        let vport = vport(0, 1, &[]);
        work(&vport, 0, 1_000_000);
        let mut plan = Plan::new(1, 0);
        plan.add(&vport, 0, 0);
        assert_eq!(loads(&plan, 1000), [0]);
        work(&vport, 0, 500);
        assert_eq!(loads(&plan, 1000), [500]);
        plan.mark(1000);
        assert_eq!(loads(&plan, 1000), [500], "a look right after a mark is no look at nothing");
        plan.mark(2000);
        assert_eq!(loads(&plan, 2000), [0], "what was before the mark before the last is past");
    }

    #[test]
    fn rings_move_by_load_with_their_kicks() {
        let epolls = [0, 1]
            .map(|_| Arc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("a descriptor")));
        let events = |pmd: usize| {
            let mut events = [EpollEvent::empty(); 4];
            let n = epolls[pmd].wait(&mut events, EpollTimeout::ZERO).expect("an epoll");
            events[..n].iter().map(EpollEvent::data).collect::<Vec<_>>()
        };
        let mut plan = Plan::new(2, 0);
        let mut guests =
            [0, 1, 2].map(|_| LocalGuest::new(GuestConfig::default()).expect("memory"));
        let kick = EventFd::new().expect("a descriptor");
        let vports = [0, 1, 2].map(|n| vport(n, 1, &[]));
        for (vport, guest) in vports.iter().zip(&mut guests) {
            let owner = plan.add(vport, 0, 0);
            let mut live = guest.start(1, None).expect("a sound ring");
            let tag = ring_tag(vport.id, 0);
            if vport.id.0 == 2 {
                let watch = Watch::new(&epolls[owner as usize], Wake::Kick(kick.clone()), tag);
                live.watch = Some(watch.expect("can be watched"));
            }
            vport.tx[0].owner.store(owner, Ordering::Relaxed);
            vport.tx[0].cell.with(|slot| *slot = Slot::Live(Box::new(live)));
        }
        let pmds = |plan: &Plan| plan.placed(1).iter().map(|ring| ring.pmd).collect::<Vec<_>>();
        assert_eq!(pmds(&plan), [0, 1, 0]);
        work(&vports[0], 0, 500);
        work(&vports[2], 0, 450);
        kick.signal();
        assert_eq!(events(0), [ring_tag(PortId(2), 0)]);

        let moves = plan.rebalance(100, 1000);
        assert_eq!(moves, [(PortId(0), 0, 1)], "the one that levels best");
        let moved = plan.hand_over(PortId(2), 0, 1, &epolls[1]).expect("it runs");
        assert_eq!((moved.from, moved.to), (0, 1));
        assert_eq!(vports[2].tx[0].owner.load(Ordering::Relaxed), 1);
        assert_eq!(pmds(&plan), [0, 1, 1]);
        assert_eq!(events(1), [ring_tag(PortId(2), 0)], "a kick of before is not lost");
        kick.signal();
        assert_eq!((events(0).len(), events(1).len()), (0, 1));
        assert!(plan.rebalance(100, 1000).is_empty(), "it would not pay again");

        assert!(plan.hand_over(PortId(2), 0, 1, &epolls[1]).is_none(), "it is there");
        vports[2].tx[0].cell.take();
        assert!(plan.hand_over(PortId(2), 0, 0, &epolls[0]).is_none(), "it was stopped");
        plan.remove(&vports[2], 0);
        assert!(plan.hand_over(PortId(2), 0, 0, &epolls[0]).is_none(), "nobody knows it");
    }
}
