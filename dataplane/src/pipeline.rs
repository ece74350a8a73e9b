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

use arrayvec::ArrayVec;

use crate::fdb::{Fdb, Seen};
use crate::flow::{self, HashSeed, L2};
use crate::frame::{Batch, Frame, Scratch};
use crate::neighbour::{self, Answer};
use crate::offload::{self, Abilities, Action, Offload, OffloadError};
use crate::pmd::{Report, Reports};
use crate::policy::cache::VerdictCache;
use crate::policy::{Direction, Guard};
use crate::port::cell::LiveRing;
use crate::port::{PortId, Vport};
use crate::software::Software;
use crate::spoof;
use crate::stats::stages::{Sampler, Stage};
use crate::stats::{DropReason, Egress, Ingress, PmdCounters};
use crate::tables::{Tables, UnknownUnicast};
use crate::vhost::mem::GuestSlice;
use crate::vring::rx::{Fill, Refusal};
use crate::vring::{BURST, RingFault, VNET_HDR};
use crate::wire::VirtioNetHdr;

/// A frame with nothing left to do.
const PLAIN: Offload = Offload::Done { is_checked: false };

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

/// All that a burst is judged by; borrowed for one burst.
#[derive(Debug)]
pub struct Burst<'a> {
    /// The vport the frames come from.
    pub vport: &'a Vport,
    /// Its ingress counters of the vring the frames come from.
    pub counters: &'a Ingress,
    /// The published tables.
    pub tables: &'a Tables,
    /// The forwarding database.
    pub fdb: &'a Fdb,
    /// To the control thread.
    pub reports: &'a Reports,
    /// Counters of the PMD at work.
    pub pmd: &'a PmdCounters,
}

/// What one PMD needs to run bursts: scratch memory, made once.
#[derive(Debug)]
pub struct Worker {
    scratch: [Scratch; BURST],
    decisions: [Decision; BURST],
    /// What is left to do to frames that are not in `plain`.
    offloads: [Offload; BURST],
    /// Frames with nothing left to do, a bit each.
    plain: u32,
    /// Why a frame was not forwarded, or nothing: at least one copy of it was.
    fates: [Option<DropReason>; BURST],
    software: Software,
    verdicts: VerdictCache,
    sampler: Sampler,
    hash_seed: HashSeed,
    burst_frames: u16,
    now_s: u32,
}

/// Frames of a burst for one egress vring, in order.
#[derive(Debug)]
struct Bin {
    port: PortId,
    queue: u16,
    frames: ArrayVec<u8, BURST>,
}

impl Worker {
    /// A worker that takes up to `burst_frames` frames at once. All PMDs share one `hash_seed`, so
    /// that a flow stays on its receive ring whoever delivers it.
    pub fn new(burst_frames: u16, hash_seed: HashSeed) -> Self {
        Self {
            scratch: [Scratch::EMPTY; BURST],
            decisions: [Decision::Flood; BURST],
            offloads: [PLAIN; BURST],
            plain: 0,
            fates: [None; BURST],
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

    /// Runs one burst to completion. Returns how many frames the guest had.
    ///
    /// # Errors
    /// The guest's ring is broken. The frames taken before the fault were dealt with.
    pub fn run(&mut self, burst: &Burst<'_>, live: &mut LiveRing) -> Result<u32, RingFault> {
        if live.map.is_dead() {
            return Err(RingFault::MemoryLost);
        }
        let mut batch = Batch::new();
        let sender = live.abilities;
        let mut watch = self.sampler.begin();
        let taken = live.ring.pop(&live.map, &mut batch, &mut self.scratch, self.burst_frames);
        watch.lap(Stage::Take);
        let n = batch.frames.len();
        if n == 0 {
            watch.end(0, &burst.pmd.stages);
            return taken.map(|()| 0);
        }
        burst.counters.received_frames.add(n as u64);
        burst.counters.in_hand.set(n as u64);

        self.judge(burst, &mut batch, sender);
        watch.lap(Stage::Judge);
        self.forward(burst, &batch);
        watch.lap(Stage::Deliver);
        self.account(burst, &batch);

        let given_back = live.ring.complete(&batch);
        burst.counters.in_hand.set(0);
        watch.lap(Stage::Settle);
        watch.end(n, &burst.pmd.stages);
        taken.and(given_back).map(|()| n as u32)
    }

    /// Step 2: what becomes of each frame.
    fn judge(&mut self, burst: &Burst<'_>, batch: &mut Batch<'_>, sender: Abilities) {
        let mut bytes = 0;
        let mut memo = Memo::default();
        let guard = burst.tables.policies.of(burst.vport.id);
        self.plain = !0;
        for (at, frame) in batch.frames.iter_mut().enumerate() {
            bytes += u64::from(frame.len);
            let judged = match frame.drop {
                Some(reason) => Err(reason),
                None => {
                    let guard = guard.map(|guard| (guard, &mut self.verdicts));
                    judge(burst, &self.scratch[at], frame, guard, sender, self.now_s, &mut memo)
                }
            };
            let decision = match judged {
                Ok((PLAIN, decision)) => decision,
                Ok((offload, decision)) => {
                    self.offloads[at] = offload;
                    self.plain &= !(1 << at);
                    decision
                }
                Err(reason) => Decision::Drop(reason),
            };
            self.decisions[at] = decision;
            if let Decision::Answer(answer) = decision {
                self.answer(answer, at, frame);
            }
            // Until a copy is delivered; a flood may find no other vport.
            self.fates[at] = Some(match decision {
                Decision::Drop(reason) => reason,
                Decision::Output(_) | Decision::Flood | Decision::Answer(_) => {
                    DropReason::NoReceiver
                }
            });
        }
        burst.counters.received_bytes.add(bytes);
    }

    /// The question goes no further, so the answer takes its place: all of it is in the head.
    #[cold]
    fn answer(&mut self, answer: Answer, at: usize, frame: &mut Frame<'_>) {
        answer.write(self.scratch[at].head_mut());
        let (head_len, len) = (answer.len() as u16, answer.len() as u32);
        *frame = Frame { head_len, len, body: GuestSlice::empty(), more: (0, 0), ..*frame };
        self.plain |= 1 << at;
    }

    /// Step 3: groups the frames by egress vring, and fills one vring after the other.
    fn forward(&mut self, burst: &Burst<'_>, batch: &Batch<'_>) {
        let mut bins = ArrayVec::<Bin, BURST>::new();
        let mut floods = ArrayVec::<u8, BURST>::new();
        let mut answers = ArrayVec::<u8, BURST>::new();
        for at in 0..batch.frames.len() {
            match self.decisions[at] {
                Decision::Drop(_) => {}
                Decision::Flood => floods.push(at as u8),
                Decision::Answer(_) => answers.push(at as u8),
                Decision::Output(port) => {
                    let queue = self.queue_of(burst.tables, port, batch, at);
                    // Mostly a burst has one destination, and it is the last bin's.
                    let known = bins.iter_mut().rev().find(|b| b.port == port && b.queue == queue);
                    match known {
                        Some(bin) => bin.frames.push(at as u8),
                        None => {
                            let mut frames = ArrayVec::new();
                            frames.push(at as u8);
                            bins.push(Bin { port, queue, frames });
                        }
                    }
                }
            }
        }
        for bin in &bins {
            if let Some(vport) = burst.tables.port(bin.port) {
                self.deliver(burst, batch, vport, bin.queue, &bin.frames);
            }
        }
        if !answers.is_empty() {
            self.deliver(burst, batch, burst.vport, 0, &answers);
        }
        if !floods.is_empty()
            && let Some(segment) = burst.tables.segment(burst.vport.rules.segment)
        {
            for &member in segment.members.iter().filter(|&&member| member != burst.vport.id) {
                if let Some(vport) = burst.tables.port(member) {
                    self.deliver(burst, batch, vport, 0, &floods);
                }
            }
        }
    }

    /// The receive ring of `port` for a frame: flows spread over its queue pairs.
    #[inline]
    fn queue_of(&self, tables: &Tables, port: PortId, batch: &Batch<'_>, at: usize) -> u16 {
        let rings = tables.port(port).map_or(0, |vport| vport.rx_enabled());
        if rings <= 1 {
            return 0;
        }
        let frame = &batch.frames[at];
        let head = &self.scratch[at].head()[..usize::from(frame.head_len)];
        let hash = flow::parse(head, frame.len).map_or(0, |parsed| parsed.hash(&self.hash_seed));
        // Multiply and shift instead of a division: the high bits choose the ring.
        (((hash >> 32) * u64::from(rings)) >> 32) as u16
    }

    /// Writes `frames` to one receive ring of `vport`: one lock, one publication.
    fn deliver(
        &mut self,
        burst: &Burst<'_>,
        batch: &Batch<'_>,
        vport: &Vport,
        queue: u16,
        frames: &[u8],
    ) {
        let slot = vport.rx.get(usize::from(queue)).and_then(|rx| Some((rx, rx.cell.enter()?)));
        let Some((rx, mut slot)) = slot else {
            // The control thread is changing the ring. Nothing was offered to it.
            self.refuse(frames, DropReason::LinkDown);
            return;
        };
        burst.counters.copies.add(frames.len() as u64);
        rx.counters.offered_frames.add(frames.len() as u64);
        let admitted;
        let frames = match burst.tables.policies.of(vport.id) {
            None => frames,
            Some(guard) => {
                admitted = self.admit(guard, batch, frames, &rx.counters);
                &admitted
            }
        };
        if frames.is_empty() {
            return;
        }
        let (tried, fault) = match slot.live().filter(|live| live.enabled) {
            None => (0, None),
            Some(live) if live.map.is_dead() => (0, Some(RingFault::MemoryLost)),
            Some(live) => self.fill(batch, live, frames, &rx.counters),
        };
        // What no buffer was tried for met a ring that is down, or broke just now.
        let down = &frames[tried..];
        rx.counters.drops.add(DropReason::LinkDown, down.len() as u64);
        self.refuse(down, DropReason::LinkDown);
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
        frames: &[u8],
        counters: &Egress,
    ) -> ArrayVec<u8, BURST> {
        let mut admitted = ArrayVec::new();
        for &at in frames {
            let frame = &batch.frames[usize::from(at)];
            let head = &self.scratch[usize::from(at)].head()[..usize::from(frame.head_len)];
            match guard.check(Direction::Ingress, head, frame.len, &mut self.verdicts) {
                Ok(()) => admitted.push(at),
                Err(reason) => {
                    counters.drops.add(reason, 1);
                    self.refuse(&[at], reason);
                }
            }
        }
        admitted
    }

    /// Fills the ring with `frames`; returns how many of them are dealt with, delivered or dropped,
    /// and why the ring broke before the others, if it did.
    fn fill(
        &mut self,
        batch: &Batch<'_>,
        live: &mut LiveRing,
        frames: &[u8],
        counters: &Egress,
    ) -> (usize, Option<RingFault>) {
        let receiver = live.abilities;
        let mut fill = match live.ring.fill(&live.map, frames.len(), live.mergeable) {
            Ok(fill) => fill,
            Err(fault) => return (0, Some(fault)),
        };
        let (mut delivered, mut bytes, mut fault) = (0, 0, None);
        let mut tried = frames.len();
        for (n, &at) in frames.iter().enumerate() {
            let at = usize::from(at);
            if let Some(&next) = frames.get(n + 1) {
                batch.frames[usize::from(next)].body.prefetch_all();
            }
            let frame = &batch.frames[at];
            match self.push(batch, at, receiver, &mut fill) {
                Ok(()) => {
                    delivered += 1;
                    bytes += u64::from(frame.len);
                    self.fates[at] = None;
                }
                Err(Refusal::Drop(reason)) => {
                    counters.drops.add(reason, 1);
                    self.refuse(&[at as u8], reason);
                }
                Err(Refusal::Fault(broken)) => {
                    fault = Some(broken);
                    tried = n;
                    break;
                }
            }
        }
        // What was written is published all the same.
        let told = fill.finish();
        counters.delivered_frames.add(delivered);
        counters.delivered_bytes.add(bytes);
        (tried, fault.or(told.err()))
    }

    /// Writes one frame, as the receiver can take it.
    #[inline]
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
            *scratch.vnet_mut() = [0; VNET_HDR];
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

    /// Notes why frames were not delivered; a frame that someone got stays forwarded.
    fn refuse(&mut self, frames: &[u8], reason: DropReason) {
        for &at in frames {
            let fate = &mut self.fates[usize::from(at)];
            if *fate == Some(DropReason::NoReceiver) {
                *fate = Some(reason);
            }
        }
    }

    /// Step 4: every frame received is forwarded, answered, or dropped for one reason.
    fn account(&self, burst: &Burst<'_>, batch: &Batch<'_>) {
        let (mut forwarded, mut answered) = (0, 0);
        for (fate, decision) in self.fates.iter().zip(&self.decisions).take(batch.frames.len()) {
            match fate {
                None if matches!(decision, Decision::Answer(_)) => answered += 1,
                None => forwarded += 1,
                Some(reason) => burst.counters.drops.add(*reason, 1),
            }
        }
        burst.counters.forwarded_frames.add(forwarded);
        burst.counters.answered_frames.add(answered);
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
) -> Result<(Offload, Decision), DropReason> {
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
        memo.dst = l2.dst;
    }
    Ok((offload, memo.route))
}

/// What the frame before was found to be, for one burst: most have one sender and one destination.
/// A change of the tables shows with the next burst.
struct Memo {
    src: u64,
    dst: u64,
    route: Decision,
}

impl Default for Memo {
    fn default() -> Self {
        // Keys have 48 bits: these are no one's.
        Self { src: !0, dst: !0, route: Decision::Flood }
    }
}

/// What is left to do to a frame, if it asks only for what it may and fits the vport's MTU.
///
/// # Errors
/// Why the frame goes nowhere.
#[inline]
pub fn check_offload(
    vport: &Vport,
    asked: &[u8; VNET_HDR],
    head: &[u8],
    frame_len: u32,
    sender: Abilities,
) -> Result<Offload, DropReason> {
    // Neither flags nor a GSO type: nothing is asked for.
    if u16::from_le_bytes([asked[0], asked[1]]) == 0 {
        let fits = frame_len <= vport.rules.max_frame_bytes;
        return if fits { Ok(PLAIN) } else { Err(DropReason::TooLong) };
    }
    check_asked(vport, &VirtioNetHdr::parse(asked), head, frame_len, sender)
}

fn check_asked(
    vport: &Vport,
    asked: &VirtioNetHdr,
    head: &[u8],
    frame_len: u32,
    sender: Abilities,
) -> Result<Offload, DropReason> {
    let offload = offload::check(asked, head, frame_len, sender).map_err(|error| match error {
        OffloadError::ChecksumNotNegotiated | OffloadError::SegmentationNotNegotiated { .. } => {
            DropReason::OffloadNotNegotiated
        }
        _ => DropReason::BadOffload,
    })?;
    let longest = match &offload {
        Offload::Segment(work) => work.max_segment_len() as u32,
        Offload::Done { .. } | Offload::Checksum(_) => frame_len,
    };
    if longest > vport.rules.max_frame_bytes { Err(DropReason::TooLong) } else { Ok(offload) }
}

/// Whether the vport may use the source addresses in the frame.
///
/// # Errors
/// Why the frame goes nowhere.
#[inline]
pub fn anti_spoof(vport: &Vport, l2: &L2, head: &[u8], frame_len: u32) -> Result<(), DropReason> {
    spoof::ethernet(&vport.rules, l2)?;
    match &vport.rules.bound {
        None => Ok(()),
        Some(bound) => bound.check(l2, head, frame_len),
    }
}

/// Tells the FDB that the source was seen, and the control thread if that is news.
#[inline]
fn learn(burst: &Burst<'_>, l2: &L2, now_s: u32) {
    let rules = &burst.vport.rules;
    if !rules.learning || rules.mac == Some(l2.src) {
        return;
    }
    let port = burst.vport.id;
    match burst.fdb.seen(rules.segment, l2.src, port, now_s) {
        // A static entry elsewhere wins; replies go there, and the operator sees both.
        Seen::Fresh | Seen::Refreshed | Seen::Held { .. } => {}
        Seen::Unknown | Seen::Moved { .. } => {
            let sighted = Report::Sighted { segment: rules.segment, mac: l2.src, port };
            if !burst.reports.send(sighted) {
                burst.pmd.learn_overflow.add(1);
            }
        }
    }
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
