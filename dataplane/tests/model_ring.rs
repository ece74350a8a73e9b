//! The switch's split ring against `virtio-queue`: the same driver, two devices, and after every
//! step the same heads, bytes, used rings and notifications.
//!
//! Two deviations are meant:
//!  * `virtio-queue` ignores NO_INTERRUPT, which the switch obeys (virtio 1.3, section 2.7.7.2);
//!  * the switch announces the first buffers after a start in any case, as it can not know what the
//!    device before it announced.

mod common;

use common::twin::{ARENA, MAX_TABLE, Place, Shape, Twins};
use dataplane::frame::{Batch, Frame, HEAD, Scratch, Tail};
use dataplane::stats::DropReason;
use dataplane::testing::features::{EVENT_IDX, INDIRECT_DESC};
use dataplane::vhost::eventfd::EventFd;
use dataplane::vhost::mem::GuestSlice;
use dataplane::vring::chain::Direction;
use dataplane::vring::ring::Ring;
use dataplane::vring::rx::{Expected, IN_ONE_BUFFER, Refusal};
use dataplane::vring::tx::Limit;
use dataplane::vring::{BURST, MAX_FRAME_BYTES, MAX_SEGMENTS, MAX_SPREAD, VNET_HDR};
use proptest::collection::vec;
use proptest::prelude::*;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestMemoryMmap};

/// One step of driver or device.
#[derive(Debug, Clone)]
enum Step {
    Offer {
        lengths: Vec<u32>,
        shape: Shape,
        seed: u64,
    },
    /// The device takes up to so many frames, or delivers frames of these lengths.
    Take(u16),
    Deliver(Vec<FrameSpec>),
    Reap,
    UsedEvent(u16),
    NoInterrupt(bool),
    Arm,
    Disarm,
}

/// A frame to deliver: its length, and where what follows its head is cut.
#[derive(Debug, Clone)]
struct FrameSpec {
    len: usize,
    cuts: Vec<usize>,
}

/// A device on each of the twins.
struct Devices {
    twins: Twins,
    ring: Ring,
    queue: Queue,
    call: EventFd,
    event_idx: bool,
    has_notified: bool,
}

impl Devices {
    fn new(direction: Direction, size: u16, base: u16, event_idx: bool) -> Self {
        let twins = Twins::new(size, base);
        let call = EventFd::new().unwrap();
        let features = INDIRECT_DESC | if event_idx { EVENT_IDX } else { 0 };
        let setup = twins.setup(features, call.clone());
        let ring = Ring::new(&setup, &twins.map, direction).unwrap();
        let queue = twins.queue(event_idx);
        Self { twins, ring, queue, call, event_idx, has_notified: false }
    }

    /// A step of the driver, or of notifications.
    fn step(&mut self, step: &Step) {
        match *step {
            Step::Reap => self.twins.reap(),
            Step::UsedEvent(ahead) => self.twins.set_used_event(ahead),
            Step::NoInterrupt(on) => self.twins.set_no_interrupt(on),
            Step::Arm => {
                let has_work = self.queue.enable_notification(&self.twins.theirs).unwrap();
                assert_eq!(self.ring.arm(), Ok(has_work));
                if has_work {
                    self.queue.disable_notification(&self.twins.theirs).unwrap();
                }
            }
            Step::Disarm => {
                self.ring.disarm();
                self.queue.disable_notification(&self.twins.theirs).unwrap();
            }
            Step::Offer { .. } | Step::Take(_) | Step::Deliver(_) => unreachable!("{step:?}"),
        }
        self.twins.assert_used_equal();
    }

    /// Both devices published something, or nothing: is a notification due?
    fn compare_notification(&mut self, has_published: bool) {
        let due = has_published
            && if self.event_idx {
                // Asked in any case, as it counts from the time it was asked last.
                let due = self.queue.needs_notification(&self.twins.theirs).unwrap();
                due || !self.has_notified
            } else {
                !self.twins.no_interrupt()
            };
        self.has_notified |= has_published;
        assert_eq!(self.call.drain(), due, "notification");
        assert_eq!(self.ring.base(), u32::from(self.queue.next_avail()));
    }

    fn take(&mut self, max: u16) {
        let map = self.twins.map.clone();
        let theirs = &self.twins.theirs;
        let (mut batch, mut scratch) = (Batch::new(), [Scratch::EMPTY; BURST]);
        self.ring.pop(&map, &mut batch, &mut scratch, Limit::frames(max)).unwrap();

        let waiting = self.twins.avail_idx.wrapping_sub(self.queue.next_avail());
        let n = batch.frames.len();
        assert!(n <= usize::from(max.min(waiting)), "{n} of {waiting} taken, {max} allowed");
        assert!(n > 0 || max.min(waiting) == 0, "none of {waiting} taken");
        let mut heads = Vec::new();
        for (frame, scratch) in batch.frames.iter().zip(&scratch) {
            let chain = self.queue.pop_descriptor_chain(theirs).unwrap();
            assert_eq!(frame.desc_head, chain.head_index());
            heads.push(chain.head_index());
            compare_frame(&batch, frame, scratch, &chain.collect::<Vec<_>>(), theirs);
        }
        self.ring.complete(&batch).unwrap();
        for &head in &heads {
            self.queue.add_used(theirs, head, 0).unwrap();
        }
        self.compare_notification(n > 0);
        self.twins.assert_used_equal();
    }

    fn deliver(&mut self, frames: &[FrameSpec], mergeable: bool) {
        let map = self.twins.map.clone();
        let mut delivered = 0;
        let expected = Expected { frames: frames.len(), frame_bytes: 100 };
        let mut fill = self.ring.fill(&map, expected, mergeable).unwrap();
        for (n, spec) in frames.iter().enumerate() {
            let mut bytes: Vec<u8> =
                (0..VNET_HDR + spec.len).map(|at| (at * 7 + n) as u8).collect();
            // Every other one asks for nothing, as most of them do.
            let is_plain = n % 2 == 1;
            if is_plain {
                bytes[..VNET_HDR].copy_from_slice(&IN_ONE_BUFFER);
            }
            let right = reference_write(&mut self.queue, &self.twins.theirs, &bytes, mergeable);
            let mut head = bytes[..bytes.len().min(VNET_HDR + HEAD)].to_vec();
            let mut rest = bytes[head.len()..].to_vec();
            let parts = cut(&mut rest, &spec.cuts);
            let (&body, more) = parts.split_first().expect("cutting makes a part at least");
            let is_short = is_plain && spec.len <= HEAD;
            let pushed = match is_short && fill.push_short(&head) {
                true => Ok(()),
                false => fill.push(&mut head, Tail { body, more }, spec.len as u32),
            };
            assert_eq!(pushed, right.map_err(Refusal::Drop), "{} bytes", spec.len);
            delivered += usize::from(pushed.is_ok());
        }
        fill.finish().unwrap();
        self.compare_notification(delivered > 0);
        self.twins.assert_equal();
    }
}

/// The bytes cut where `cuts` say, as far as they fit.
fn cut<'b>(bytes: &'b mut [u8], cuts: &[usize]) -> Vec<GuestSlice<'b>> {
    let (mut parts, mut rest) = (Vec::new(), bytes);
    for &len in cuts {
        let (part, more) = rest.split_at_mut(len.min(rest.len()));
        parts.push(GuestSlice::of_private(part));
        rest = more;
    }
    parts.push(GuestSlice::of_private(rest));
    parts
}

fn total_of(chain: &[Descriptor]) -> usize {
    chain.iter().map(|desc| desc.len() as usize).sum()
}

/// The frame is what virtio-queue finds in the chain, and is judged right by its size.
fn compare_frame(
    batch: &Batch<'_>,
    frame: &Frame<'_>,
    scratch: &Scratch,
    chain: &[Descriptor],
    memory: &GuestMemoryMmap,
) {
    let total = total_of(chain);
    let drop = if chain.len() > MAX_SEGMENTS {
        Some(DropReason::TooManySegments)
    } else if total < VNET_HDR + 14 {
        Some(DropReason::Truncated)
    } else if total > VNET_HDR + MAX_FRAME_BYTES as usize {
        Some(DropReason::TooLong)
    } else {
        None
    };
    assert_eq!(frame.drop, drop, "{} descriptors, {total} bytes", chain.len());
    if drop == Some(DropReason::TooManySegments) {
        assert_eq!(frame.len, 0);
        return;
    }
    assert_eq!(frame.len as usize, total.saturating_sub(VNET_HDR));
    let mut found = Vec::new();
    if drop.is_none() {
        assert_eq!(usize::from(frame.head_len), HEAD.min(total - VNET_HDR));
        found.extend_from_slice(&scratch.all()[..VNET_HDR + usize::from(frame.head_len)]);
    }
    for part in batch.tail(frame).parts() {
        let mut bytes = vec![0; part.len() as usize];
        part.read(&mut bytes);
        found.extend(bytes);
    }
    let mut right = Vec::new();
    for desc in chain {
        let mut bytes = vec![0; desc.len() as usize];
        memory.read_slice(&mut bytes, desc.addr()).unwrap();
        right.extend(bytes);
    }
    assert_eq!(found, right);
}

/// Writes one frame, header first, to as many chains as it needs: said as plainly as can be.
fn reference_write(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    bytes: &[u8],
    mergeable: bool,
) -> Result<(), DropReason> {
    let start = queue.next_avail();
    let (mut chains, mut room) = (Vec::new(), 0);
    let refusal = loop {
        let descriptors: usize = chains.iter().map(|(_, c): &(u16, Vec<Descriptor>)| c.len()).sum();
        if room >= bytes.len() {
            break None;
        } else if !chains.is_empty() && !mergeable
            || chains.len() == 64
            || descriptors > MAX_SPREAD - MAX_SEGMENTS
        {
            break Some(DropReason::BufferTooSmall);
        }
        let Some(chain) = queue.pop_descriptor_chain(memory) else {
            break Some(DropReason::RingFull);
        };
        let (head, chain) = (chain.head_index(), chain.collect::<Vec<_>>());
        if chain.len() > MAX_SEGMENTS {
            break Some(DropReason::TooManySegments);
        }
        room += total_of(&chain);
        chains.push((head, chain.into_iter().filter(|desc| desc.len() > 0).collect()));
    };
    if let Some(reason) = refusal {
        queue.set_next_avail(start);
        return Err(reason);
    }
    let mut bytes = bytes.to_vec();
    bytes[10..12].copy_from_slice(&(chains.len() as u16).to_le_bytes());
    let mut rest = &bytes[..];
    for (head, chain) in &chains {
        let mut written = 0;
        for desc in chain {
            let n = rest.len().min(desc.len() as usize);
            memory.write_slice(&rest[..n], desc.addr()).unwrap();
            (written, rest) = (written + n, &rest[n..]);
        }
        queue.add_used(memory, *head, written as u32).unwrap();
    }
    Ok(())
}

/// Lengths around the edges, and any.
fn length(max: u32) -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), Just(1), 10..30u32, 120..160u32, 0..2000u32, 0..=max]
        .prop_map(move |len| len.min(max))
}

fn shape() -> impl Strategy<Value = Shape> {
    prop_oneof![Just(Shape::Direct), Just(Shape::Indirect), Just(Shape::Mixed)]
}

fn notification() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Reap),
        1 => (0..40u16).prop_map(Step::UsedEvent),
        1 => any::<u16>().prop_map(Step::UsedEvent),
        1 => any::<bool>().prop_map(Step::NoInterrupt),
        1 => Just(Step::Arm),
        1 => Just(Step::Disarm),
    ]
}

fn transmit_steps() -> impl Strategy<Value = Vec<Step>> {
    let lengths = prop_oneof![
        8 => vec(length(ARENA as u32), 1..6),
        1 => vec(length(100), 1..MAX_TABLE),
        1 => vec(length(ARENA as u32), 4..12),
    ];
    let offer = (lengths, shape(), any::<u64>()).prop_map(|(lengths, shape, seed)| Step::Offer {
        lengths,
        shape,
        seed,
    });
    vec(prop_oneof![6 => offer, 3 => (0..40u16).prop_map(Step::Take), 3 => notification()], 1..80)
}

fn receive_steps() -> impl Strategy<Value = Vec<Step>> {
    // No chain without a byte: that is a fault, and another test's matter.
    let lengths = prop_oneof![
        6 => vec(length(2000), 0..6),
        1 => vec(length(100), 0..MAX_TABLE - 1),
    ];
    let offer = (1..2000u32, lengths, shape(), any::<prop::sample::Index>()).prop_map(
        |(some, mut lengths, shape, at)| {
            lengths.insert(at.index(lengths.len() + 1), some);
            Step::Offer { lengths, shape, seed: 0 }
        },
    );
    let frame = (prop_oneof![0..200usize, 0..2000usize, 0..20_000usize], vec(0..700usize, 0..4))
        .prop_map(|(len, cuts)| FrameSpec { len, cuts });
    let deliver = vec(frame, 0..BURST).prop_map(Step::Deliver);
    vec(prop_oneof![8 => offer, 2 => deliver, 3 => notification()], 1..80)
}

fn size() -> impl Strategy<Value = u16> {
    (0..7u32).prop_map(|power| 1 << power)
}

/// Indexes wrap in the middle of many runs.
fn base() -> impl Strategy<Value = u16> {
    prop_oneof![any::<u16>(), 65_500..=65_535u16]
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn transmit_ring_takes_what_virtio_queue_takes(
        size in size(), base in base(), event_idx: bool, steps in transmit_steps(),
    ) {
        let mut devices = Devices::new(Direction::Transmit, size, base, event_idx);
        for step in &steps {
            match step {
                Step::Offer { lengths, shape, seed } => {
                    devices.twins.offer(lengths, *shape, Place::Anywhere(*seed), false);
                }
                Step::Take(max) => devices.take(*max),
                other => devices.step(other),
            }
        }
        // All that was made available is taken in the end.
        while devices.queue.next_avail() != devices.twins.avail_idx {
            devices.take(BURST as u16);
        }
        devices.twins.reap();
    }

    #[test]
    fn receive_ring_is_filled_as_a_plain_writer_fills_virtio_queue(
        size in size(), base in base(), event_idx: bool, mergeable: bool, steps in receive_steps(),
    ) {
        let mut devices = Devices::new(Direction::Receive, size, base, event_idx);
        for step in &steps {
            match step {
                Step::Offer { lengths, shape, .. } => {
                    devices.twins.offer(lengths, *shape, Place::Apart, true);
                }
                Step::Deliver(frames) => devices.deliver(frames, mergeable),
                other => devices.step(other),
            }
        }
    }
}
