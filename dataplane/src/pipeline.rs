//! A packet's way, in one place.
//!
//! [`Worker::run`] takes one burst from one vport and runs it to completion:
//!
//! ```text
//! 1. take     chains from the guest, heads copied to scratch    vring::tx   truncated, too long ...
//! 2. judge    each frame by the copy of its head:
//!             anti-spoof, policy, neighbours, learning, FDB     judge()     spoofed, no route ...
//! 3. deliver  frames grouped by egress vring, each vring
//!             entered once: policy, offload, copy, publish      deliver()   link down, ring full ...
//! 4. account  conservation: received = forwarded + answered + drops
//! 5. give back the chains to the sender, published once         vring::tx
//! ```
//!
//! Some bursts are measured, stage by stage: [`crate::stats::stages`].
//!
//! Nothing here allocates, locks another vring than the one it fills, or makes a system call,
//! besides telling a guest that asked for it that buffers were used.

mod memo;
mod routes;
mod sender;

use crate::fdb::Fdb;
use crate::flow::{self, HashSeed, L2};
use crate::frame::{Batch, Frame, Scratch};
use crate::neighbour::{self, Answer};
use crate::offload::{Abilities, Action, Offload};
use crate::pmd::{Report, Reports};
use crate::policy::cache::VerdictCache;
use crate::policy::{Direction, Guard};
use crate::port::cell::LiveRing;
use crate::port::{PortId, Vport};
use crate::software::Software;
use crate::stats::stages::{Sampler, Stage};
use crate::stats::{DropReason, Egress, Ingress, PmdCounters};
use crate::tables::{Tables, UnknownUnicast};
use crate::vhost::mem::GuestSlice;
use crate::vring::rx::{Expected, Fill, IN_ONE_BUFFER, Refusal};
use crate::vring::tx::Limit;
use crate::vring::{BURST, RingFault, VNET_HDR};

use memo::{Memo, receive_rings};
use routes::{Frames, Routes, places};
use sender::learn;

pub use sender::{anti_spoof, check_offload};

/// Where a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// To one vport.
    Output(PortId),
    /// To every other vport of the segment.
    Flood,
    /// Back to its sender, turned into the answer to itself.
    Answer(Answer),
    /// Nowhere.
    Drop(DropReason),
}

/// What a burst is judged by besides the tables; borrowed for one turn of a ring.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// The vport the frames come from.
    pub vport: &'a Vport,
    /// Its ingress counters of the vring the frames come from.
    pub counters: &'a Ingress,
    /// The forwarding database.
    pub fdb: &'a Fdb,
    /// To the control thread.
    pub reports: &'a Reports,
    /// Counters of the PMD at work.
    pub pmd: &'a PmdCounters,
}

/// All that a burst is judged by.
#[derive(Debug, Clone, Copy)]
struct Burst<'a> {
    vport: &'a Vport,
    counters: &'a Ingress,
    tables: &'a Tables,
    fdb: &'a Fdb,
    reports: &'a Reports,
    pmd: &'a PmdCounters,
}

/// What one PMD needs to run bursts: scratch memory, made once.
#[derive(Debug)]
pub struct Worker {
    scratch: [Scratch; BURST],
    /// What is left to do to frames that are not in `plain`.
    offloads: [Offload; BURST],
    /// Frames with nothing left to do, behind the header [`IN_ONE_BUFFER`].
    plain: Frames,
    /// Frames of which at least one copy was delivered.
    delivered: Frames,
    /// Why a frame was not delivered, unless it is in `delivered`.
    reasons: [DropReason; BURST],
    software: Software,
    verdicts: VerdictCache,
    sampler: Sampler,
    hash_seed: HashSeed,
    burst_frames: u16,
    now_s: u32,
}

/// What a turn took from a transmit ring.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    /// How many frames the guest had.
    pub frames: u32,
    /// What they count for where rings share a PMD ([`Batch::charged_bytes`]).
    pub charged_bytes: u32,
}

impl Worker {
    /// A worker that takes up to `burst_frames` frames at once. All PMDs share one `hash_seed`, so
    /// that a flow stays on its receive ring whoever delivers it.
    pub fn new(burst_frames: u16, hash_seed: HashSeed) -> Self {
        Self {
            scratch: [Scratch::EMPTY; BURST],
            offloads: [Offload::Done { is_checked: false }; BURST],
            plain: 0,
            delivered: 0,
            reasons: [DropReason::NoReceiver; BURST],
            software: Software::new(),
            verdicts: VerdictCache::new(hash_seed),
            sampler: Sampler::default(),
            hash_seed,
            burst_frames: burst_frames.clamp(1, BURST as u16),
            now_s: 0,
        }
    }

    /// Tells the time, in seconds, for ageing of learned addresses.
    pub fn set_now(&mut self, now_s: u32) {
        self.now_s = now_s;
    }

    /// Runs one burst of at most `max_bytes`, the frame that reaches them included, to completion.
    ///
    /// `tables` is asked once frames are taken: what was published before a guest sent a frame holds for
    /// it, however long the PMD was off its core before it looked.
    ///
    /// # Errors
    /// The guest's ring is broken. The frames taken before the fault were dealt with.
    #[inline]
    pub fn run<'t>(
        &mut self,
        origin: &Origin<'_>,
        tables: impl FnOnce() -> &'t Tables,
        live: &mut LiveRing,
        max_bytes: u32,
    ) -> Result<Taken, RingFault> {
        let &Origin { vport, counters, fdb, reports, pmd } = origin;
        if live.map.is_dead() {
            return Err(RingFault::MemoryLost);
        }
        let mut batch = Batch::new();
        let sender = live.abilities;
        let limit = Limit { frames: self.burst_frames, bytes: max_bytes };
        let mut watch = self.sampler.begin();
        let taken = live.ring.pop(&live.map, &mut batch, &mut self.scratch, limit);
        watch.lap(Stage::Take);
        let n = batch.frames.len();
        if n == 0 {
            watch.end(0, &pmd.stages);
            return taken.map(|()| Taken::default());
        }
        counters.received_frames.add(n as u64);
        counters.in_hand.set(n as u64);
        let burst = &Burst { vport, counters, tables: tables(), fdb, reports, pmd };

        let routes = self.judge(burst, &mut batch, sender);
        watch.lap(Stage::Judge);
        self.forward(burst, &batch, &routes);
        watch.lap(Stage::Deliver);
        self.account(burst, n, &routes);

        let given_back = live.ring.complete(&batch);
        counters.in_hand.set(0);
        watch.lap(Stage::Settle);
        watch.end(n, &pmd.stages);
        let charged_bytes = batch.charged_bytes;
        taken.and(given_back).map(|()| Taken { frames: n as u32, charged_bytes })
    }

    /// Step 2: what becomes of each frame.
    fn judge(&mut self, burst: &Burst<'_>, batch: &mut Batch<'_>, sender: Abilities) -> Routes {
        let mut routes = Routes::default();
        let mut memo = Memo::default();
        let mut bytes = 0;
        self.plain = !0;
        self.delivered = 0;
        // Until a copy is delivered; a flood may find no other vport.
        self.reasons = [DropReason::NoReceiver; BURST];
        for (at, frame) in batch.frames.iter_mut().enumerate() {
            bytes += u64::from(frame.len);
            match memo.repeats(burst.vport, &self.scratch[at], frame) {
                Some(bin) => {
                    *self.scratch[at].vnet_mut() = IN_ONE_BUFFER;
                    routes.bins[bin].frames |= 1 << at;
                }
                None => self.judge_one(burst, at, frame, sender, &mut memo, &mut routes),
            }
        }
        burst.counters.received_bytes.add(bytes);
        routes
    }

    /// Step 2 for one frame that is not just like the one before.
    #[inline(never)]
    fn judge_one(
        &mut self,
        burst: &Burst<'_>,
        at: usize,
        frame: &mut Frame<'_>,
        sender: Abilities,
        memo: &mut Memo,
        routes: &mut Routes,
    ) {
        let rules = burst.tables.policies.of(burst.vport.id);
        let guard = rules.map(|guard| (guard, &mut self.verdicts));
        let judged = match frame.drop {
            Some(reason) => Err(reason),
            None => judge(burst, &self.scratch[at], frame, guard, sender, self.now_s, memo),
        };
        let (left, decision) = judged.unwrap_or_else(|why| (None, Decision::Drop(why)));
        match left {
            // Written here and not right before it is copied: the copy would wait for the store.
            None => *self.scratch[at].vnet_mut() = IN_ONE_BUFFER,
            Some(offload) => {
                self.offloads[at] = offload;
                self.plain &= !(1 << at);
            }
        }
        let scratch = &self.scratch[at];
        match decision {
            Decision::Output(port) if memo.rings > 1 => {
                let head = &scratch.head()[..usize::from(frame.head_len)];
                let queue = self.queue_of(memo.rings, head, frame.len);
                routes.add(port, queue, at);
            }
            Decision::Output(port) => {
                let bin = routes.add(port, 0, at);
                // Rules see more than the Ethernet header: frames that have them are judged one by one.
                if rules.is_none() {
                    memo.remember(scratch, bin);
                }
            }
            Decision::Flood => routes.floods |= 1 << at,
            Decision::Answer(answer) => {
                routes.answers |= 1 << at;
                self.answer(answer, at, frame);
            }
            Decision::Drop(reason) => self.reasons[at] = reason,
        }
    }

    /// The question goes no further, so the answer takes its place: all of it is in the head.
    #[cold]
    fn answer(&mut self, answer: Answer, at: usize, frame: &mut Frame<'_>) {
        let scratch = &mut self.scratch[at];
        *scratch.vnet_mut() = IN_ONE_BUFFER;
        answer.write(scratch.head_mut());
        let (head_len, len) = (answer.len() as u16, answer.len() as u32);
        *frame = Frame { head_len, len, body: GuestSlice::empty(), more: (0, 0), ..*frame };
        self.plain |= 1 << at;
    }

    /// The receive ring for a frame, of `rings`: flows spread over the queue pairs of a vport.
    fn queue_of(&self, rings: u16, head: &[u8], frame_len: u32) -> u16 {
        let hash = flow::parse(head, frame_len).map_or(0, |parsed| parsed.hash(&self.hash_seed));
        // Multiply and shift instead of a division: the high bits choose the ring.
        (((hash >> 32) * u64::from(rings)) >> 32) as u16
    }

    /// Step 3: fills one egress vring after the other.
    fn forward(&mut self, burst: &Burst<'_>, batch: &Batch<'_>, routes: &Routes) {
        for bin in &routes.bins {
            if let Some(vport) = burst.tables.port(bin.port) {
                self.deliver(burst, batch, vport, bin.queue, bin.frames);
            }
        }
        if routes.answers != 0 {
            self.deliver(burst, batch, burst.vport, 0, routes.answers);
        }
        if routes.floods != 0
            && let Some(segment) = burst.tables.segment(burst.vport.rules.segment)
        {
            for &member in segment.members.iter().filter(|&&member| member != burst.vport.id) {
                if let Some(vport) = burst.tables.port(member) {
                    self.deliver(burst, batch, vport, 0, routes.floods);
                }
            }
        }
    }

    /// Writes `frames` to one receive ring of `vport`: one lock, one publication.
    fn deliver(
        &mut self,
        burst: &Burst<'_>,
        batch: &Batch<'_>,
        vport: &Vport,
        queue: u16,
        frames: Frames,
    ) {
        let slot = vport.rx.get(usize::from(queue)).and_then(|rx| Some((rx, rx.cell.enter()?)));
        let Some((rx, mut slot)) = slot else {
            // The control thread is changing the ring. Nothing was offered to it.
            self.refuse(frames, DropReason::LinkDown);
            return;
        };
        let offered = u64::from(frames.count_ones());
        burst.counters.copies.add(offered);
        rx.counters.offered_frames.add(offered);
        let frames = match burst.tables.policies.of(vport.id) {
            None => frames,
            Some(guard) => match self.admit(guard, batch, frames, &rx.counters) {
                0 => return,
                admitted => admitted,
            },
        };
        let (down, fault) = match slot.live().filter(|live| live.enabled) {
            None => (frames, None),
            Some(live) if live.map.is_dead() => (frames, Some(RingFault::MemoryLost)),
            Some(live) => self.fill(batch, live, frames, &rx.counters),
        };
        // What no buffer was tried for met a ring that is down, or broke just now.
        if down != 0 {
            rx.counters.drops.add(DropReason::LinkDown, down.count_ones().into());
            self.refuse(down, DropReason::LinkDown);
        }
        if let Some(fault) = fault.and_then(|fault| slot.break_with(fault)) {
            let vring = queue * 2;
            burst.reports.send(Report::Broken { port: vport.id, vring, fault });
        }
    }

    /// Those of `frames` that the policy of the receiver allows.
    fn admit(
        &mut self,
        guard: Guard<'_>,
        batch: &Batch<'_>,
        frames: Frames,
        counters: &Egress,
    ) -> Frames {
        let mut admitted = frames;
        for at in places(frames) {
            let frame = &batch.frames[at];
            let head = &self.scratch[at].head()[..usize::from(frame.head_len)];
            let allowed = guard.check(Direction::Ingress, head, frame.len, &mut self.verdicts);
            if let Err(reason) = allowed {
                counters.drops.add(reason, 1);
                self.refuse(1 << at, reason);
                admitted &= !(1 << at);
            }
        }
        admitted
    }

    /// Fills the ring with `frames`; returns those that were not tried as the ring broke before them,
    /// and why it did.
    fn fill(
        &mut self,
        batch: &Batch<'_>,
        live: &mut LiveRing,
        frames: Frames,
        counters: &Egress,
    ) -> (Frames, Option<RingFault>) {
        let receiver = live.abilities;
        let count = frames.count_ones() as usize;
        let frame_bytes = batch.charged_bytes / batch.frames.len().max(1) as u32;
        let expected = Expected { frames: count, frame_bytes };
        let mut fill = match live.ring.fill(&live.map, expected, live.mergeable) {
            Ok(fill) => fill,
            Err(fault) => return (frames, Some(fault)),
        };
        let (mut delivered, mut bytes) = (0, 0);
        let (mut left, mut fault) = (frames, None);
        while left != 0 {
            let at = left.trailing_zeros() as usize;
            let next = left & (left - 1);
            if next != 0 {
                batch.frames[next.trailing_zeros() as usize].body.prefetch_all();
            }
            let frame = &batch.frames[at];
            let is_short = frame.is_short() && self.plain & 1 << at != 0;
            let all = VNET_HDR + usize::from(frame.head_len);
            let pushed = match is_short && fill.push_short(&self.scratch[at].all()[..all]) {
                true => Ok(()),
                false => self.push(batch, at, receiver, &mut fill),
            };
            match pushed {
                Ok(()) => {
                    delivered |= 1 << at;
                    bytes += u64::from(frame.len);
                }
                Err(Refusal::Drop(reason)) => {
                    counters.drops.add(reason, 1);
                    self.refuse(1 << at, reason);
                }
                Err(Refusal::Fault(broken)) => {
                    fault = Some(broken);
                    break;
                }
            }
            left = next;
        }
        self.delivered |= delivered;
        // What was written is published all the same.
        let told = fill.finish();
        counters.delivered_frames.add(delivered.count_ones().into());
        counters.delivered_bytes.add(bytes);
        (left, fault.or(told.err()))
    }

    /// Writes one frame, as the receiver can take it.
    #[inline(never)]
    fn push(
        &mut self,
        batch: &Batch<'_>,
        at: usize,
        receiver: Abilities,
        fill: &mut Fill<'_>,
    ) -> Result<(), Refusal> {
        let frame = &batch.frames[at];
        let scratch = &mut self.scratch[at];
        let end = VNET_HDR + usize::from(frame.head_len);
        if self.plain & 1 << at != 0 {
            return fill.push(&mut scratch.all_mut()[..end], batch.tail(frame), frame.len);
        }
        match self.offloads[at].for_receiver(receiver) {
            Action::Pass(header) => {
                *scratch.vnet_mut() = header.to_bytes();
                fill.push(&mut scratch.all_mut()[..end], batch.tail(frame), frame.len)
            }
            Action::Checksum(work) => {
                let head = &scratch.all()[VNET_HDR..end];
                self.software.checksum(&work, head, batch.tail(frame), fill)
            }
            Action::Segment(work) => {
                let head = &scratch.all()[VNET_HDR..end];
                self.software.segment(&work, head, batch.tail(frame), fill)
            }
        }
    }

    /// Notes why frames were not delivered; the first reason counts, if no one gets a copy.
    fn refuse(&mut self, frames: Frames, reason: DropReason) {
        for at in places(frames) {
            if self.reasons[at] == DropReason::NoReceiver {
                self.reasons[at] = reason;
            }
        }
    }

    /// Step 4: every frame received is forwarded, answered, or dropped for one reason.
    fn account(&self, burst: &Burst<'_>, n: usize, routes: &Routes) {
        let answered = self.delivered & routes.answers;
        let forwarded = self.delivered & !routes.answers;
        burst.counters.forwarded_frames.add(forwarded.count_ones().into());
        burst.counters.answered_frames.add(answered.count_ones().into());
        let received = Frames::MAX >> (BURST - n);
        for at in places(received & !self.delivered) {
            burst.counters.drops.add(self.reasons[at], 1);
        }
    }
}

/// Step 2 for one frame, of which `scratch` has the copy that is judged: the stages in order, each with
/// its own reasons to drop.
///
/// # Errors
/// Why the frame goes nowhere.
#[inline]
fn judge(
    burst: &Burst<'_>,
    scratch: &Scratch,
    frame: &Frame<'_>,
    guard: Option<(Guard<'_>, &mut VerdictCache)>,
    sender: Abilities,
    now_s: u32,
    memo: &mut Memo,
) -> Result<(Option<Offload>, Decision), DropReason> {
    let (head, frame_len) = (&scratch.head()[..usize::from(frame.head_len)], frame.len);
    let l2 = flow::l2(head, frame_len).map_err(|_| DropReason::Malformed)?;
    let offload = check_offload(burst.vport, scratch.vnet(), head, frame_len, sender)?;
    anti_spoof(burst.vport, &l2, head, frame_len)?;
    if let Some((guard, verdicts)) = guard {
        guard.check(Direction::Egress, head, frame_len, verdicts)?;
    }
    let answer = neighbour::ask(&burst.tables.neighbours, burst.vport.place(), &l2, head)?;
    if memo.src != l2.src {
        learn(burst, &l2, now_s);
        memo.src = l2.src;
    }
    if let Some(answer) = answer {
        return Ok((offload, Decision::Answer(answer)));
    }
    if memo.dst != l2.dst {
        memo.route = route(burst.vport, burst.tables, burst.fdb, &l2);
        memo.rings = receive_rings(memo.route, burst.tables);
        memo.dst = l2.dst;
    }
    memo.l2 = Some(l2);
    Ok((offload, memo.route))
}

/// Where the destination address is.
#[inline]
pub fn route(vport: &Vport, tables: &Tables, fdb: &Fdb, l2: &L2) -> Decision {
    let segment = vport.rules.segment;
    if l2.is_to_group() {
        return Decision::Flood;
    }
    match fdb.lookup(segment, l2.dst) {
        Some(port) if port == vport.id => Decision::Drop(DropReason::Hairpin),
        // The check keeps segments apart even while an entry is being replaced.
        Some(port) if tables.port(port).is_some_and(|out| out.rules.segment == segment) => {
            Decision::Output(port)
        }
        _ => match tables.segment(segment).map(|segment| segment.unknown_unicast) {
            Some(UnknownUnicast::Flood) => Decision::Flood,
            Some(UnknownUnicast::Drop) | None => Decision::Drop(DropReason::NoRoute),
        },
    }
}
