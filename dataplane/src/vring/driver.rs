//! The driver's side of a split ring whose device is this switch itself (virtio 1.3, section 2.7).
//!
//! A vport that has no guest, such as the host's tap, brings its own: memory of ours that is mapped
//! as a guest's is, and a thread that plays the driver. So the polling threads know one kind of
//! vport only.
//!
//! ```text
//! driver                                       PMD (vring::tx, vring::rx)
//! offer: descriptor, available entry
//! publish: available index      ------------>  takes the buffer
//!          kick if it asked
//! take_used                     <------------  used entry, used index; call if we asked
//! arm: ask, then look once more
//! ```
//!
//! A ring has as many buffers as entries, and buffer `n` belongs to descriptor `n` for good: no
//! chains, and no list of free descriptors but the caller's.
//!
//! # Bounds
//! All of a [`DriverMemory`] is mapped when it is made and touched as it is used. The other side is
//! this very process, so what it writes is believed; an index is masked where it is used as one.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use nix::sys::memfd::{MFdFlags, memfd_create};
use virtio_bindings::virtio_ring::VRING_DESC_F_WRITE;

use crate::vhost::device::RingSetup;
use crate::vhost::eventfd::EventFd;
use crate::vhost::mem::{GuestMap, GuestSlice, MemError, PinnedSlice, RegionSpec};

use super::chain::Direction;

/// Where the memory lies in its own address space; any address but zero would do.
const BASE: u64 = 0x10_0000;
/// Rings and buffers start on pages of their own.
const PAGE_BYTES: u32 = 4096;
/// The used ring starts on a cache line of its own: the other side writes it.
const LINE_BYTES: u32 = 64;

/// Why there is no driver.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The kernel gave no memory or no event descriptor.
    #[error("Failed to make a vring of our own")]
    System(#[from] io::Error),
    /// The memory could not be mapped.
    #[error(transparent)]
    Map(#[from] MemError),
}

/// Where the parts of one ring lie, as offsets in bytes from the ring's start.
#[derive(Debug, Clone, Copy)]
struct Layout {
    avail: u32,
    used: u32,
    buffers: u32,
    /// From one buffer to the next.
    stride: u32,
    end: u32,
}

impl Layout {
    fn new(size: u16, buffer_bytes: u32) -> Self {
        let n = u32::from(size);
        let avail = 16 * n;
        let used = (avail + 6 + 2 * n).next_multiple_of(LINE_BYTES);
        let buffers = (used + 6 + 8 * n).next_multiple_of(PAGE_BYTES);
        let stride = buffer_bytes.next_multiple_of(PAGE_BYTES);
        Self { avail, used, buffers, stride, end: buffers + n * stride }
    }
}

/// Memory for one ring and its buffers, mapped as the switch maps a guest's.
#[derive(Debug)]
pub struct DriverMemory {
    map: Arc<GuestMap>,
    layout: Layout,
    size: u16,
    buffer_bytes: u32,
}

impl DriverMemory {
    /// Memory for a ring of `size` entries, a power of two, with buffers of `buffer_bytes`.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn new(size: u16, buffer_bytes: u32) -> Result<Self, DriverError> {
        let layout = Layout::new(size, buffer_bytes);
        let file = memfd_create(c"slipway-driver", MFdFlags::MFD_CLOEXEC).map_err(io::Error::from);
        let file = File::from(file?);
        file.set_len(u64::from(layout.end))?;
        let bytes = u64::from(layout.end);
        let spec = RegionSpec { gpa: BASE, size: bytes, vmm_addr: BASE, file_offset: 0 };
        let map = Arc::new(GuestMap::map(vec![(spec, file)])?);
        Ok(Self { map, layout, size, buffer_bytes })
    }

    /// The mapping, for the device's side.
    pub fn map(&self) -> &Arc<GuestMap> {
        &self.map
    }

    fn pin(&self, offset: u32, len: u32) -> PinnedSlice {
        let slice = self.map.pin(BASE + u64::from(offset), len);
        slice.expect("the layout lies in the region it was made for")
    }
}

/// The driver's side of one ring.
#[derive(Debug)]
pub struct DriverRing {
    memory: DriverMemory,
    direction: Direction,
    desc: PinnedSlice,
    avail: PinnedSlice,
    used: PinnedSlice,
    buffers: PinnedSlice,
    /// The next entry of the available ring to write.
    next_avail: u16,
    /// The available index when it was published last.
    published: u16,
    /// The next entry of the used ring to take.
    next_used: u16,
    kick: EventFd,
    call: EventFd,
}

impl DriverRing {
    /// A ring with nothing in it, in `memory`.
    ///
    /// # Errors
    /// No event descriptor.
    pub fn new(memory: DriverMemory, direction: Direction) -> Result<Self, DriverError> {
        let (layout, n) = (memory.layout, u32::from(memory.size));
        Ok(Self {
            direction,
            desc: memory.pin(0, 16 * n),
            avail: memory.pin(layout.avail, 6 + 2 * n),
            used: memory.pin(layout.used, 6 + 8 * n),
            buffers: memory.pin(layout.buffers, n * layout.stride),
            memory,
            next_avail: 0,
            published: 0,
            next_used: 0,
            kick: EventFd::new()?,
            call: EventFd::new()?,
        })
    }

    /// What the device has to know of the ring, as vring `index`, when `features` were agreed on,
    /// VIRTIO_RING_F_EVENT_IDX among them.
    pub fn setup(&self, index: u16, features: u64) -> RingSetup {
        let layout = self.memory.layout;
        RingSetup {
            index,
            size: self.memory.size,
            desc: BASE,
            avail: BASE + u64::from(layout.avail),
            used: BASE + u64::from(layout.used),
            base: 0,
            kick: Some(self.kick.clone()),
            call: Some(self.call.clone()),
            err: None,
            features,
            enabled: true,
        }
    }

    /// The mapping, for the device's side.
    pub fn map(&self) -> &Arc<GuestMap> {
        self.memory.map()
    }

    /// Signalled by the device, if it was asked to.
    pub fn call(&self) -> &EventFd {
        &self.call
    }

    /// Entries, and buffers.
    pub fn size(&self) -> u16 {
        self.memory.size
    }

    /// All of buffer `id`.
    pub fn buffer(&self, id: u16) -> GuestSlice<'_> {
        let offset = u32::from(self.slot(id)) * self.memory.layout.stride;
        self.buffers.get().skip(offset).take(self.memory.buffer_bytes)
    }

    /// Offers the first `len` bytes of buffer `id`, which the device does not have. It sees them
    /// when they are published.
    pub fn offer(&mut self, id: u16, len: u32) {
        let id = self.slot(id);
        let layout = self.memory.layout;
        let addr = BASE + u64::from(layout.buffers) + u64::from(id) * u64::from(layout.stride);
        let flags = match self.direction {
            Direction::Transmit => 0,
            Direction::Receive => VRING_DESC_F_WRITE,
        };
        let mut desc = [0; 16];
        desc[..8].copy_from_slice(&addr.to_le_bytes());
        desc[8..12].copy_from_slice(&len.min(self.memory.buffer_bytes).to_le_bytes());
        desc[12..].copy_from_slice(&flags.to_le_bytes());
        self.desc.get().skip(16 * u32::from(id)).write(&desc);
        let at = 4 + 2 * u32::from(self.slot(self.next_avail));
        store_u16(&self.avail, at, id, Ordering::Relaxed);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Offers all of buffer `id`.
    pub fn offer_all(&mut self, id: u16) {
        self.offer(id, self.memory.buffer_bytes);
    }

    /// Shows the device what was offered, and kicks it if it asked for that.
    pub fn publish(&mut self) {
        let (old, new) = (self.published, self.next_avail);
        if old == new {
            return;
        }
        // ORDERING: release, so that descriptors and buffers are seen before the index.
        store_u16(&self.avail, 2, new, Ordering::Release);
        self.published = new;
        // ORDERING: our index must be visible before we look whether the device sleeps; it does the
        // mirror image (`SplitRing::arm`). A store followed by a load needs a full fence.
        fence(Ordering::SeqCst);
        let avail_event = self.used.get().load_u16(4 + 8 * u32::from(self.memory.size));
        if new.wrapping_sub(avail_event).wrapping_sub(1) < new.wrapping_sub(old) {
            self.kick.signal();
        }
    }

    /// Takes the next buffer that the device has used: its number, and how many bytes were written.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        if !self.has_used() {
            return None;
        }
        let mut entry = [0; 8];
        let at = 4 + 8 * u32::from(self.slot(self.next_used));
        self.used.get().skip(at).read(&mut entry);
        self.next_used = self.next_used.wrapping_add(1);
        let [id, len] = [0, 4]
            .map(|at| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]));
        Some((self.slot(id as u16), len))
    }

    /// Asks the device to call for the next used buffer, then looks once more. `true`: there is one
    /// already.
    pub fn arm(&mut self) -> bool {
        let used_event = 4 + 2 * u32::from(self.memory.size);
        store_u16(&self.avail, used_event, self.next_used, Ordering::Relaxed);
        // ORDERING: the device must see the request before we look at its index; see
        // `SplitRing::publish` for the other half.
        fence(Ordering::SeqCst);
        self.has_used()
    }

    fn has_used(&self) -> bool {
        // ORDERING: acquire, so that entries and buffers behind the index are seen.
        let index = self.used.get().u16_at(2);
        let index = index.map_or(self.next_used, |cell| u16::from_le(cell.load(Ordering::Acquire)));
        index != self.next_used
    }

    fn slot(&self, index: u16) -> u16 {
        index & (self.memory.size - 1)
    }
}

fn store_u16(area: &PinnedSlice, offset: u32, value: u16, order: Ordering) {
    if let Some(cell) = area.get().u16_at(offset) {
        cell.store(value.to_le(), order);
    }
}

#[cfg(test)]
mod tests {
    use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

    use super::*;
    use crate::frame::{Batch, Scratch};
    use crate::vring::ring::Ring;
    use crate::vring::tx::Limit;
    use crate::vring::{BURST, VNET_HDR};

    const SIZE: u16 = 8;

    /// Both sides of a transmit ring.
    fn pair() -> (DriverRing, Ring) {
        let memory = DriverMemory::new(SIZE, 2000).expect("memory");
        let driver = DriverRing::new(memory, Direction::Transmit).expect("a ring");
        let setup = driver.setup(1, 1 << VIRTIO_RING_F_EVENT_IDX);
        let device = Ring::new(&setup, driver.map(), Direction::Transmit).expect("sound");
        (driver, device)
    }

    /// The device takes what there is and gives it back; returns the first byte of each frame.
    fn run(device: &mut Ring, map: &GuestMap) -> Vec<u8> {
        let mut scratch = [Scratch::EMPTY; BURST];
        let mut batch = Batch::new();
        device
            .pop(map, &mut batch, &mut scratch, Limit::frames(BURST as u16))
            .expect("a sound ring");
        device.complete(&batch).expect("our own eventfd");
        (0..batch.frames.len()).map(|at| scratch[at].head()[0]).collect()
    }

    fn frame(tag: u8) -> Vec<u8> {
        let mut bytes = vec![0; VNET_HDR + 60];
        bytes[VNET_HDR] = tag;
        bytes
    }

    #[test]
    fn buffers_go_round_in_any_order_and_come_back_in_the_order_they_were_used() {
        let (mut driver, mut device) = pair();
        let map = Arc::clone(driver.map());
        let mut free: Vec<u16> = (0..SIZE).collect();
        // Far enough for the 16-bit indexes to wrap.
        for round in 0..20_000u32 {
            let n = 1 + round as usize % usize::from(SIZE);
            let ids: Vec<u16> = free.drain(..n).collect();
            for (at, &id) in ids.iter().enumerate() {
                let bytes = frame(at as u8 + 1);
                driver.buffer(id).write(&bytes);
                driver.offer(id, bytes.len() as u32);
            }
            assert_eq!(run(&mut device, &map), [0u8; 0], "not published yet");
            driver.publish();
            assert_eq!(run(&mut device, &map), (1..=n as u8).collect::<Vec<_>>());
            let used: Vec<_> = std::iter::from_fn(|| driver.take_used()).collect();
            assert_eq!(used, ids.iter().map(|&id| (id, 0)).collect::<Vec<_>>());
            free.extend(ids.iter().rev());
        }
    }

    #[test]
    fn either_side_is_woken_if_and_only_if_it_asked() {
        let (mut driver, mut device) = pair();
        let map = Arc::clone(driver.map());
        let offer = |driver: &mut DriverRing, id| {
            driver.buffer(id).write(&frame(1));
            driver.offer(id, VNET_HDR as u32 + 60);
            driver.publish();
        };
        // The very first call is made unasked: the device can not know what was asked before.
        offer(&mut driver, 0);
        run(&mut device, &map);
        driver.call().drain();
        driver.kick.drain();

        offer(&mut driver, 1);
        assert!(!driver.kick.drain(), "a polled ring is not kicked");
        assert!(device.arm().expect("a sound ring"), "there is work, so it stays polled");
        run(&mut device, &map);
        assert!(!driver.call().drain(), "nobody asked to be called");
        assert!(driver.arm(), "used already");
        assert_eq!(std::iter::from_fn(|| driver.take_used()).count(), 2);
        assert!(!driver.arm());

        assert!(!device.arm().expect("a sound ring"));
        offer(&mut driver, 2);
        assert!(driver.kick.drain(), "an armed ring is kicked");
        run(&mut device, &map);
        assert!(driver.call().drain(), "an armed driver is called");
        assert_eq!(driver.take_used(), Some((2, 0)));
    }
}
