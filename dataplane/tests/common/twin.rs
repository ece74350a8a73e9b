//! One driver, two guests with identical memory: one mapped by the switch, one by vm-memory.
//!
//! Whatever the driver writes, it writes to both. So after any number of steps of two devices, one
//! on each, both memories must be the same, bit by bit.

use std::sync::Arc;

use dataplane::testing::driver::Desc;
use dataplane::testing::local;
use dataplane::testing::memory::{Backing, GuestMemory, RegionSpec};
use dataplane::testing::schedule::splitmix64;
use dataplane::vhost::device::RingSetup;
use dataplane::vhost::eventfd::EventFd;
use dataplane::vhost::mem::GuestMap;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Largest ring, in entries.
pub const MAX_SIZE: u16 = 64;
/// Most descriptors of an indirect table.
pub const MAX_TABLE: usize = 80;

const RINGS: u64 = 0x1_0000;
const AVAIL: u64 = RINGS + 0x1000;
const USED: u64 = RINGS + 0x2000;
const TABLES: u64 = RINGS + 0x4000;
const RINGS_BYTES: usize = 0x4000 + MAX_SIZE as usize * MAX_TABLE * 16;
/// Buffers of even and of odd heads, in regions of their own.
const BUFFERS: [u64; 2] = [0x40_0000, 0x80_0000];
/// Bytes of the buffers of one head.
pub const ARENA: usize = 16 << 10;
const BUFFERS_BYTES: usize = MAX_SIZE as usize / 2 * ARENA;

/// Where the descriptors of a chain are.
#[derive(Debug, Clone, Copy)]
pub enum Shape {
    /// All in the ring.
    Direct,
    /// All in an indirect table.
    Indirect,
    /// The first in the ring, the others in an indirect table (virtio 1.3, section 2.7.5.3.2).
    Mixed,
}

/// How the buffers of a chain lie in the memory of its head.
#[derive(Debug, Clone, Copy)]
pub enum Place {
    /// Anywhere, one upon the other.
    Anywhere(u64),
    /// Back to front, apart.
    Apart,
}

pub struct Twins {
    ours: GuestMemory,
    pub map: Arc<GuestMap>,
    pub theirs: GuestMemoryMmap,
    size: u16,
    /// Descriptors in no chain.
    free: Vec<u16>,
    /// Descriptors of each chain outstanding, by head.
    chains: Vec<Vec<u16>>,
    pub avail_idx: u16,
    reaped: u16,
}

impl Twins {
    /// Two guests with a ring of `size` entries whose indexes start at `base`.
    pub fn new(size: u16, base: u16) -> Self {
        let rings = RegionSpec { gpa: RINGS, len: RINGS_BYTES.next_multiple_of(4096) };
        let buffers = BUFFERS.map(|gpa| RegionSpec { gpa, len: BUFFERS_BYTES });
        let specs = [rings, buffers[0], buffers[1]];
        let ours = GuestMemory::new(&specs, Backing::default()).unwrap();
        let ranges = specs.map(|spec| (GuestAddress(spec.gpa), spec.len));
        let twins = Self {
            map: local::map(&ours).unwrap(),
            ours,
            theirs: GuestMemoryMmap::from_ranges(&ranges).unwrap(),
            size,
            free: (0..size).rev().collect(),
            chains: vec![Vec::new(); usize::from(size)],
            avail_idx: base,
            reaped: base,
        };
        twins.write_u16(AVAIL + 2, base);
        twins.write_u16(USED + 2, base);
        let mut state = u64::from(base);
        let noise: Vec<u8> =
            (0..BUFFERS_BYTES / 8).flat_map(|_| splitmix64(&mut state).to_le_bytes()).collect();
        BUFFERS.iter().for_each(|&gpa| twins.write(gpa, &noise));
        twins
    }

    fn write(&self, gpa: u64, bytes: &[u8]) {
        self.ours.write(gpa, bytes).unwrap();
        self.theirs.write_slice(bytes, GuestAddress(gpa)).unwrap();
    }

    fn write_u16(&self, gpa: u64, value: u16) {
        self.write(gpa, &value.to_le_bytes());
    }

    /// What the switch is told of the ring.
    pub fn setup(&self, features: u64, call: EventFd) -> RingSetup {
        let at = |gpa| self.ours.user_addr(gpa).unwrap();
        RingSetup {
            index: 0,
            size: self.size,
            desc: at(RINGS),
            avail: at(AVAIL),
            used: at(USED),
            base: self.avail_idx.into(),
            kick: None,
            call: Some(call),
            err: None,
            features,
            enabled: true,
        }
    }

    /// virtio-queue on the other memory.
    pub fn queue(&self, event_idx: bool) -> Queue {
        let mut queue = Queue::new(self.size).unwrap();
        queue.set_desc_table_address(Some(RINGS as u32), None);
        queue.set_avail_ring_address(Some(AVAIL as u32), None);
        queue.set_used_ring_address(Some(USED as u32), None);
        queue.set_event_idx(event_idx);
        queue.set_next_avail(self.avail_idx);
        queue.set_next_used(self.avail_idx);
        queue.set_ready(true);
        assert!(queue.is_valid(&self.theirs));
        queue.disable_notification(&self.theirs).unwrap();
        queue
    }

    /// Makes a chain of buffers of these lengths available; `false`: there is no room in the ring.
    pub fn offer(&mut self, lengths: &[u32], shape: Shape, place: Place, writable: bool) -> bool {
        let (in_ring, in_table) = match shape {
            Shape::Direct => (lengths.len(), 0),
            Shape::Indirect => (0, lengths.len()),
            Shape::Mixed => (1, lengths.len() - 1),
        };
        let need = in_ring + usize::from(in_table > 0);
        if need > self.free.len() {
            return false;
        }
        let descs = self.free.split_off(self.free.len() - need);
        let head = descs[0];
        let flag = if writable { Desc::WRITE } else { 0 };
        let parts: Vec<Desc> = self
            .addresses(head, lengths, place)
            .zip(lengths)
            .map(|(addr, &len)| Desc { addr, len, flags: flag, next: 0 })
            .collect();
        let (direct, indirect) = parts.split_at(in_ring);
        for (n, &part) in direct.iter().enumerate() {
            self.write_desc(descs[n], part, descs.get(n + 1).copied());
        }
        if in_table > 0 {
            let table = TABLES + u64::from(head) * MAX_TABLE as u64 * 16;
            for (n, &part) in indirect.iter().enumerate() {
                let more = n + 1 < in_table;
                let flags = part.flags | if more { Desc::NEXT } else { 0 };
                let desc = Desc { flags, next: n as u16 + 1, ..part };
                self.write(table + 16 * n as u64, &desc.to_bytes());
            }
            let len = 16 * in_table as u32;
            let desc = Desc { addr: table, len, flags: Desc::INDIRECT, next: 0 };
            self.write_desc(descs[in_ring], desc, None);
        }
        self.write_u16(AVAIL + 4 + 2 * u64::from(self.avail_idx % self.size), head);
        self.avail_idx = self.avail_idx.wrapping_add(1);
        self.write_u16(AVAIL + 2, self.avail_idx);
        self.chains[usize::from(head)] = descs;
        true
    }

    fn write_desc(&self, index: u16, desc: Desc, next: Option<u16>) {
        let flags = desc.flags | if next.is_some() { Desc::NEXT } else { 0 };
        let desc = Desc { flags, next: next.unwrap_or(0xdead), ..desc };
        self.write(RINGS + 16 * u64::from(index), &desc.to_bytes());
    }

    fn addresses(&self, head: u16, lengths: &[u32], place: Place) -> impl Iterator<Item = u64> {
        let arena = BUFFERS[usize::from(head % 2)] + u64::from(head / 2) * ARENA as u64;
        let mut end = ARENA as u64;
        let (mut state, is_apart) = match place {
            Place::Anywhere(seed) => (seed, false),
            Place::Apart => (0, true),
        };
        lengths.iter().map(move |&len| {
            if is_apart {
                end -= u64::from(len);
                arena + end
            } else {
                arena + splitmix64(&mut state) % (ARENA as u64 + 1 - u64::from(len))
            }
        })
    }

    /// Where the driver wants to be told of used buffers, relative to what it reaped.
    pub fn set_used_event(&self, ahead: u16) {
        let at = AVAIL + 4 + 2 * u64::from(self.size);
        self.write_u16(at, self.reaped.wrapping_add(ahead));
    }

    /// The driver wants no interrupts, or does.
    pub fn set_no_interrupt(&self, on: bool) {
        self.write_u16(AVAIL, u16::from(on));
    }

    /// Whether the driver wants no interrupts.
    pub fn no_interrupt(&self) -> bool {
        self.theirs.read_obj::<u16>(GuestAddress(AVAIL)).unwrap() & 1 != 0
    }

    /// The driver takes back what was used.
    pub fn reap(&mut self) {
        let used: u16 = self.theirs.read_obj(GuestAddress(USED + 2)).unwrap();
        while self.reaped != used {
            let at = USED + 4 + 8 * u64::from(self.reaped % self.size);
            let head: u32 = self.theirs.read_obj(GuestAddress(at)).unwrap();
            let descs = std::mem::take(&mut self.chains[head as usize]);
            assert!(!descs.is_empty(), "chain {head} is used, but not outstanding");
            self.free.extend(descs);
            self.reaped = self.reaped.wrapping_add(1);
        }
    }

    /// Both memories hold the same.
    #[track_caller]
    pub fn assert_equal(&self) {
        let used = 6 + 8 * usize::from(self.size);
        let ranges = [(USED, used), (BUFFERS[0], BUFFERS_BYTES), (BUFFERS[1], BUFFERS_BYTES)];
        for (gpa, len) in ranges {
            let (mut ours, mut theirs) = (vec![0; len], vec![0; len]);
            self.ours.read(gpa, &mut ours).unwrap();
            self.theirs.read_slice(&mut theirs, GuestAddress(gpa)).unwrap();
            if ours != theirs {
                let at = ours.iter().zip(&theirs).position(|(a, b)| a != b).unwrap_or(0);
                panic!("at {gpa:#x}+{at:#x}: {:#x}, not {:#x}", ours[at], theirs[at]);
            }
        }
    }

    /// The used ring alone; cheaper than [`Self::assert_equal`].
    #[track_caller]
    pub fn assert_used_equal(&self) {
        let len = 6 + 8 * usize::from(self.size);
        let (mut ours, mut theirs) = (vec![0; len], vec![0; len]);
        self.ours.read(USED, &mut ours).unwrap();
        self.theirs.read_slice(&mut theirs, GuestAddress(USED)).unwrap();
        assert_eq!(ours, theirs, "used ring");
    }
}
