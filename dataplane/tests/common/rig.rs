//! One ring of a hostile driver, and what the switch makes of it.

use std::sync::Arc;

use dataplane::frame::{Batch, HEAD, Scratch, Tail};
use dataplane::stats::DropReason;
use dataplane::testing::driver::{Desc, Vring};
use dataplane::testing::features::INDIRECT_DESC;
use dataplane::testing::local;
use dataplane::testing::memory::{Backing, GuestMemory, RegionSpec};
use dataplane::vhost::mem::{GuestMap, GuestSlice};
use dataplane::vring::chain::Direction;
use dataplane::vring::ring::Ring;
use dataplane::vring::rx::{Expected, Refusal};
use dataplane::vring::tx::Limit;
use dataplane::vring::{BURST, RingFault, VNET_HDR};

/// Regions: the rings; buffers, adjoining; a hole; tables.
pub const RINGS: RegionSpec = RegionSpec { gpa: 0x1_0000, len: 0x4000 };
pub const BUFFERS: RegionSpec = RegionSpec { gpa: 0x1_4000, len: 0x4000 };
pub const TABLES: RegionSpec = RegionSpec { gpa: 0x10_0000, len: 0x4000 };
pub const BUFFERS_END: u64 = BUFFERS.gpa + BUFFERS.len as u64;
pub const TABLES_END: u64 = TABLES.gpa + TABLES.len as u64;

/// A frame taken, virtio-net header and all, or why it was dropped.
pub type Taken = Result<Vec<u8>, DropReason>;

/// One ring of a hostile driver.
pub struct Rig {
    pub memory: GuestMemory,
    pub map: Arc<GuestMap>,
    pub driver: Vring,
    pub ring: Ring,
    pub direction: Direction,
    pub features: u64,
}

impl Rig {
    pub fn new(direction: Direction, size: u16, features: u64) -> Self {
        let rings = RegionSpec { len: RINGS.len.max(usize::from(size) * 32), ..RINGS };
        // A large ring's region would reach into the buffers': then those move behind it.
        let shift = (rings.len - RINGS.len) as u64;
        let buffers = RegionSpec { gpa: BUFFERS.gpa + shift, ..BUFFERS };
        let specs = [rings, buffers, RegionSpec { gpa: TABLES.gpa + shift, ..TABLES }];
        let mut memory = GuestMemory::new(&specs, Backing::default()).unwrap();
        let driver = Vring::new(&mut memory, 0, size).unwrap();
        let map = local::map(&memory).unwrap();
        let setup = local::ring_setup(&driver, 0, 0, features);
        let ring = Ring::new(&setup, &map, direction).unwrap();
        Self { memory, map, driver, ring, direction, features }
    }

    pub fn transmit(size: u16) -> Self {
        Self::new(Direction::Transmit, size, INDIRECT_DESC)
    }

    /// A ring that starts anew, at `base`.
    pub fn restart(&mut self, base: u32) {
        let setup = local::ring_setup(&self.driver, 0, base, self.features);
        self.ring = Ring::new(&setup, &self.map, self.direction).unwrap();
    }

    /// Writes the descriptors into the ring's table, from 0 on, and makes 0 available.
    pub fn offer(&mut self, descs: &[Desc]) {
        for (index, desc) in (0..).zip(descs) {
            self.driver.raw_desc(index, *desc);
        }
        self.offer_head(0);
    }

    pub fn offer_head(&mut self, head: u16) {
        self.driver.raw_push(head);
        self.driver.publish();
    }

    /// Writes an indirect table; returns the descriptor for it.
    pub fn table(&mut self, gpa: u64, descs: &[Desc]) -> Desc {
        let bytes: Vec<u8> = descs.iter().flat_map(|desc| desc.to_bytes()).collect();
        self.memory.write(gpa, &bytes).unwrap();
        Desc { addr: gpa, len: bytes.len() as u32, flags: Desc::INDIRECT, next: 0 }
    }

    /// One burst taken.
    pub fn pop(&mut self) -> (Vec<Taken>, Result<(), RingFault>) {
        let (mut batch, mut scratch) = (Batch::new(), [Scratch::EMPTY; BURST]);
        let outcome =
            self.ring.pop(&self.map, &mut batch, &mut scratch, Limit::frames(BURST as u16));
        let frames = batch.frames.iter().zip(&scratch).map(|(frame, scratch)| {
            if let Some(reason) = frame.drop {
                return Err(reason);
            }
            let mut bytes = scratch.all()[..VNET_HDR + usize::from(frame.head_len)].to_vec();
            for part in batch.tail(frame).parts() {
                let mut piece = vec![0; part.len() as usize];
                part.read(&mut piece);
                bytes.extend(piece);
            }
            assert_eq!(bytes.len(), VNET_HDR + frame.len as usize);
            Ok(bytes)
        });
        let frames = frames.collect();
        self.ring.complete(&batch).unwrap();
        (frames, outcome)
    }

    /// Frames of these lengths delivered, as far as the ring goes.
    pub fn fill(&mut self, lengths: &[usize], mergeable: bool) -> Vec<Result<(), Refusal>> {
        let expected = Expected { frames: lengths.len(), frame_bytes: 1000 };
        let mut fill = match self.ring.fill(&self.map, expected, mergeable) {
            Ok(fill) => fill,
            Err(fault) => return vec![Err(Refusal::Fault(fault))],
        };
        let mut outcomes = Vec::new();
        for len in lengths {
            let mut head = vec![0x11; VNET_HDR + HEAD.min(*len)];
            let mut rest = vec![0x22; len.saturating_sub(HEAD)];
            let tail = Tail { body: GuestSlice::of_private(&mut rest), more: &[] };
            let outcome = fill.push(&mut head, tail, *len as u32);
            outcomes.push(outcome);
            if matches!(outcome, Err(Refusal::Fault(_))) {
                break;
            }
        }
        fill.finish().unwrap();
        outcomes
    }

    /// The fault that the ring meets, whichever way it goes.
    #[track_caller]
    pub fn fault(&mut self) -> RingFault {
        match self.direction {
            Direction::Transmit => {
                let (frames, outcome) = self.pop();
                assert_eq!(frames, [], "frames before the fault");
                outcome.expect_err("a fault")
            }
            Direction::Receive => match self.fill(&[100], true)[..] {
                [Err(Refusal::Fault(fault))] => fault,
                ref other => panic!("{other:?}"),
            },
        }
    }
}

pub fn readable(addr: u64, len: u32) -> Desc {
    Desc::readable(addr, len)
}

pub fn link(desc: Desc, next: u16) -> Desc {
    Desc { flags: desc.flags | Desc::NEXT, next, ..desc }
}

/// A chain of `descs` in a row, from index 0 on.
pub fn chain(descs: &[Desc]) -> Vec<Desc> {
    let last = descs.len() - 1;
    let linked = |(n, &desc)| if n < last { link(desc, n as u16 + 1) } else { desc };
    descs.iter().enumerate().map(linked).collect()
}
