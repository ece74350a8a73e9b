//! A vring of either layout, split or packed, or the tap in place of one: what is the same to whoever
//! uses it.

use std::sync::Arc;

use virtio_bindings::virtio_config::VIRTIO_F_RING_PACKED;

use crate::vhost::device::RingSetup;
use crate::vhost::eventfd::EventFd;
use crate::vhost::mem::{GuestMap, GuestSlice, PinnedSlice};

use super::RingFault;
use super::chain::{Direction, TooMany, walk};
use super::packed::PackedRing;
use super::split::{SetupError, SplitRing};
use super::tap::TapRing;

/// A ring in use.
#[derive(Debug)]
pub enum Ring {
    /// Virtio 1.3, section 2.7.
    Split(SplitRing),
    /// Virtio 1.3, section 2.8.
    Packed(PackedRing),
    /// The kernel's queue of a tap. It has no chains and needs no answer.
    Tap(TapRing),
}

/// One chain, walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chain {
    /// What it is given back by.
    pub id: u16,
    /// Ring entries that it takes.
    pub slots: u16,
    /// Bytes of its buffers, unless it has more buffers than are worth it.
    pub bytes: Result<u32, TooMany>,
}

impl Ring {
    /// Checks and adopts what the front end set up, in the layout that was negotiated.
    ///
    /// # Errors
    /// [`SetupError`].
    pub fn new(
        setup: &RingSetup,
        map: &Arc<GuestMap>,
        direction: Direction,
    ) -> Result<Self, SetupError> {
        match setup.features & (1 << VIRTIO_F_RING_PACKED) {
            0 => SplitRing::new(setup, map, direction).map(Self::Split),
            _ => PackedRing::new(setup, map, direction).map(Self::Packed),
        }
    }

    /// Where the ring stands: what GET_VRING_BASE answers.
    pub fn base(&self) -> u32 {
        match self {
            Self::Split(ring) => ring.next_avail().into(),
            Self::Packed(ring) => ring.base(),
            Self::Tap(_) => 0,
        }
    }

    /// Replaces the event that tells the guest of used buffers; `None`: the guest polls.
    pub fn set_call(&mut self, call: Option<EventFd>) {
        match self {
            Self::Split(ring) => ring.set_call(call),
            Self::Packed(ring) => ring.set_call(call),
            Self::Tap(_) => {}
        }
    }

    /// Asks the guest to kick, then looks once more. `Ok(true)`: there is work already, the ring
    /// was not armed.
    ///
    /// # Errors
    /// The ring is broken.
    pub fn arm(&mut self) -> Result<bool, RingFault> {
        match self {
            Self::Split(ring) => ring.arm(),
            Self::Packed(ring) => Ok(ring.arm()),
            Self::Tap(tap) => Ok(tap.arm()),
        }
    }

    /// Polled again: no more kicks.
    pub fn disarm(&self) {
        match self {
            Self::Split(ring) => ring.disarm(),
            Self::Packed(ring) => ring.disarm(),
            Self::Tap(_) => {}
        }
    }

    /// Walks the chain that lies `ahead` entries after the next one to take; `None` if the guest
    /// offers none there.
    pub(super) fn chain<'m>(
        &mut self,
        map: &'m GuestMap,
        ahead: u16,
        visit: impl FnMut(GuestSlice<'m>),
    ) -> Result<Option<Chain>, RingFault> {
        match self {
            Self::Split(ring) => {
                if ring.available(ahead + 1)? <= ahead {
                    return Ok(None);
                }
                let id = ring.head(ahead)?;
                let mut lookup = map.lookup(ring.hint);
                let walked = walk(&mut lookup, ring.desc().get(), id, ring.rules(), visit);
                ring.hint = lookup.hint();
                Ok(Some(Chain { id, slots: 1, bytes: walked? }))
            }
            Self::Packed(ring) => {
                let mut lookup = map.lookup(ring.hint);
                let found = ring.chain(&mut lookup, ahead, visit);
                ring.hint = lookup.hint();
                found
            }
            Self::Tap(_) => Ok(None),
        }
    }

    /// Takes `slots` entries.
    #[inline]
    pub(super) fn take(&mut self, slots: u16) {
        match self {
            Self::Split(ring) => ring.take(slots),
            Self::Packed(ring) => ring.take(slots),
            Self::Tap(_) => {}
        }
    }

    /// Gives one chain back; the guest does not see it yet.
    #[inline]
    pub(super) fn push_used(&mut self, id: u16, slots: u16, written: u32) {
        match self {
            Self::Split(ring) => ring.push_used(id, written),
            Self::Packed(ring) => ring.push_used(id, slots, written),
            Self::Tap(_) => {}
        }
    }

    /// Shows the guest all that was given back, and notifies it if it asked.
    ///
    /// # Errors
    /// The guest could not be notified.
    #[inline]
    pub(super) fn publish(&mut self) -> Result<(), RingFault> {
        match self {
            Self::Split(ring) => ring.publish(),
            Self::Packed(ring) => ring.publish(),
            Self::Tap(_) => Ok(()),
        }
    }
}

/// One area of a ring: in one region of memory, and aligned.
pub(super) fn area(
    map: &Arc<GuestMap>,
    area: &'static str,
    addr: u64,
    len: u32,
    align: usize,
) -> Result<PinnedSlice, SetupError> {
    let slice = map.pin(addr, len).ok_or(SetupError::Unmapped { area, addr, len })?;
    if !slice.get().addr().is_multiple_of(align) {
        return Err(SetupError::Misaligned { area, addr, align });
    }
    Ok(slice)
}
