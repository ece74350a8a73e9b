//! A virtqueue of either layout, driver side: what the queues above it need.

use vmm_sys_util::eventfd::EventFd;

use super::packed::PackedVring;
use super::{Deadline, Desc, DeviceFault, Vring};
use crate::testing::memory::{GuestMemory, MemoryError, Span};

/// The driver's side of one virtqueue.
#[derive(Debug)]
pub enum AnyVring {
    /// Virtio 1.3, section 2.7.
    Split(Vring),
    /// Virtio 1.3, section 2.8.
    Packed(PackedVring),
}

/// The same call of either.
macro_rules! either {
    ($self:ident, $ring:ident => $call:expr) => {
        match $self {
            Self::Split($ring) => $call,
            Self::Packed($ring) => $call,
        }
    };
}

/// Where a ring lies, for whoever has to tell the device.
pub trait DriverRing {
    /// Entries.
    fn size(&self) -> u16;

    /// Descriptors; available ring or driver event area; used ring or device event area.
    fn areas(&self) -> [&Span; 3];
}

impl DriverRing for Vring {
    fn size(&self) -> u16 {
        self.size()
    }

    fn areas(&self) -> [&Span; 3] {
        [self.desc_table(), self.avail(), self.used()]
    }
}

impl DriverRing for AnyVring {
    fn size(&self) -> u16 {
        either!(self, ring => ring.size())
    }

    fn areas(&self) -> [&Span; 3] {
        match self {
            Self::Split(ring) => ring.areas(),
            Self::Packed(ring) => [ring.desc_table(), ring.driver_area(), ring.device_area()],
        }
    }
}

impl AnyVring {
    /// Lays a ring of `size` entries out in `region`.
    ///
    /// # Errors
    /// [`MemoryError`] when memory or descriptors run out.
    pub fn new(
        memory: &mut GuestMemory,
        region: usize,
        size: u16,
        is_packed: bool,
    ) -> Result<Self, MemoryError> {
        Ok(match is_packed {
            true => Self::Packed(PackedVring::new(memory, region, size)?),
            false => Self::Split(Vring::new(memory, region, size)?),
        })
    }

    /// The split ring, for raw descriptors.
    ///
    /// # Panics
    /// When it is packed.
    pub fn split(&mut self) -> &mut Vring {
        match self {
            Self::Split(ring) => ring,
            Self::Packed(_) => panic!("the ring is packed"),
        }
    }

    /// Forgets everything, as a guest that boots, and starts at `first`.
    pub fn restart(&mut self, event_idx: bool, first: u16) {
        either!(self, ring => {
            ring.reset(event_idx);
            ring.start_at(first);
        });
    }

    /// Where the device has to go on, as the lower half of a base: what it has not used is done again.
    pub fn base(&mut self) -> u16 {
        match self {
            Self::Split(ring) => ring.raw_used_idx(),
            Self::Packed(ring) => ring.base(),
        }
    }

    /// The eventfd the device waits on.
    pub fn kick_fd(&self) -> &EventFd {
        match self {
            Self::Split(ring) => ring.kick_fd(),
            Self::Packed(ring) => ring.events.kick_fd(),
        }
    }

    /// The eventfd the device signals.
    pub fn call_fd(&self) -> &EventFd {
        match self {
            Self::Split(ring) => ring.call_fd(),
            Self::Packed(ring) => ring.events.call_fd(),
        }
    }

    /// Kicks the device, asked or not.
    pub fn kick(&mut self) {
        match self {
            Self::Split(ring) => ring.kick(),
            Self::Packed(ring) => ring.events.kick(),
        }
    }

    /// Kicks sent so far.
    pub fn kicks(&self) -> u64 {
        match self {
            Self::Split(ring) => ring.kicks(),
            Self::Packed(ring) => ring.kicks(),
        }
    }

    /// Descriptors not in a chain.
    #[inline(always)]
    pub fn free(&self) -> u16 {
        either!(self, ring => ring.free())
    }

    /// The name of the next chain, and of its buffer.
    #[inline(always)]
    pub fn next_head(&self) -> u16 {
        either!(self, ring => ring.next_head())
    }

    /// Makes a chain available and returns its name.
    #[inline(always)]
    pub fn push(&mut self, parts: &[Desc]) -> u16 {
        either!(self, ring => ring.push(parts))
    }

    #[inline(always)]
    pub(super) fn push_again(&mut self, head: u16, parts: &[Desc]) {
        either!(self, ring => ring.push_again(head, parts));
    }

    /// An entry of an indirect table; `next` is the one after it, if there is one.
    pub(super) fn table_entry(&self, part: Desc, next: Option<u16>) -> [u8; 16] {
        match (self, next) {
            (Self::Packed(_), _) => PackedVring::table_entry(part),
            (Self::Split(_), None) => part.to_bytes(),
            (Self::Split(_), Some(next)) => {
                Desc { flags: part.flags | Desc::NEXT, next, ..part }.to_bytes()
            }
        }
    }

    /// Shows the device everything pushed so far.
    #[inline(always)]
    pub fn publish(&mut self) {
        either!(self, ring => ring.publish());
    }

    /// Kicks the device if it asks to be kicked for what was published since the last call.
    #[inline(always)]
    pub fn kick_if_asked(&mut self) {
        either!(self, ring => ring.kick_if_asked());
    }

    /// How many used chains wait to be taken.
    ///
    /// # Errors
    /// [`DeviceFault`] when the ring makes no sense.
    #[inline(always)]
    pub fn used_waiting(&mut self) -> Result<u16, DeviceFault> {
        either!(self, ring => ring.used_waiting())
    }

    #[inline(always)]
    pub(super) fn peek_used(&self, ahead: u16) -> (u32, u32) {
        either!(self, ring => ring.peek_used(ahead))
    }

    /// Takes the next used chain, which was seen by [`Self::used_waiting`]: its name, and the bytes
    /// written.
    ///
    /// # Errors
    /// [`DeviceFault::UsedId`] when no such chain is outstanding.
    #[inline(always)]
    pub fn take_used(&mut self) -> Result<(u16, u32), DeviceFault> {
        either!(self, ring => ring.take_used())
    }

    /// Frees the descriptors of a chain.
    #[inline(always)]
    pub fn release(&mut self, head: u16) {
        either!(self, ring => ring.release(head));
    }

    /// Chains made available and not yet taken back as used.
    pub fn outstanding(&self) -> u16 {
        either!(self, ring => ring.outstanding())
    }

    /// Asks for an interrupt with every used chain, or for none. None is the default.
    pub fn set_interrupts(&mut self, on: bool) {
        either!(self, ring => ring.set_interrupts(on));
    }

    #[inline(always)]
    pub(super) fn rearm(&mut self) {
        either!(self, ring => ring.rearm());
    }

    /// Sleeps until the device has used something, or `deadline`; says whether it has.
    ///
    /// # Errors
    /// [`DeviceFault`] when the ring makes no sense, or epoll fails.
    pub fn wait(&mut self, deadline: Deadline) -> Result<bool, DeviceFault> {
        either!(self, ring => ring.wait(deadline))
    }
}
