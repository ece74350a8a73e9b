//! A tap in place of a vring: what a port in a network namespace has.
//!
//! ```text
//! kernel  --read(2)-->  buffer  --> judged, delivered as a guest's frames are    TapRing::collect
//! kernel  <--writev(2)--  header and head from scratch, the rest from the sender's memory
//!                                                                                 TapRing::write
//! ```
//! The virtio-net header comes and goes with each frame, so a segment of 64 KiB passes in one piece. One
//! system call a frame and way, and no copy of our own: the kernel copies to where the receiver's ring is
//! filled from, and out of the sender's memory.
//!
//! # When there is nothing
//! A read says so (EAGAIN), and the tap is an event of the PMD's epoll again when there is
//! ([`crate::port::watch`], edge-triggered): so nothing has to be asked for, and a ring that found nothing
//! can leave the rounds. Until it does, the rounds after a read in vain spare it some reads: they would
//! keep rings that have frames waiting.

use std::fs::File;
use std::io;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::frame::{Batch, Tail};
use crate::gateway::interface::Tap;
use crate::stats::DropReason;
use crate::vhost::mem::{GuestMap, RegionSpec};

use super::driver::DriverError;
use super::rx::Refusal;
use super::tx::{Limit, charge, size_verdict, whole};
use super::{BURST, MAX_FRAME_BYTES, RingFault, VNET_HDR};

/// Where the buffers lie in their own address space; any address but zero would do.
const BASE: u64 = 0x10_0000;
/// Any frame with its header. The kernel cuts what is longer, and says nothing: what fills the last byte
/// was too long.
const BUFFER_BYTES: u32 = VNET_HDR as u32 + MAX_FRAME_BYTES + 1;
/// From one buffer to the next: an odd number of cache lines, so that the heads of a burst do not meet in
/// the same sets of the cache.
const STRIDE: u32 = (BUFFER_BYTES.div_ceil(64) | 1) * 64;

/// Looks that are spared after one that found nothing.
const SPARED_LOOKS: u8 = 3;

/// One way of a tap.
#[derive(Debug)]
pub struct TapRing {
    tap: Arc<Tap>,
    /// How many of the next looks are spared.
    spared: u8,
}

impl TapRing {
    /// Frames from or to `tap`.
    pub fn new(tap: Arc<Tap>) -> Self {
        Self { tap, spared: 0 }
    }

    /// Memory for what is read: a burst of frames of any length. It is there as it is touched.
    ///
    /// # Errors
    /// No memory, or it can not be mapped.
    pub fn buffers() -> Result<Arc<GuestMap>, DriverError> {
        let size = u64::from(STRIDE) * BURST as u64;
        let file = memfd_create(c"slipway-tap", MFdFlags::MFD_CLOEXEC).map_err(io::Error::from)?;
        let file = File::from(file);
        file.set_len(size)?;
        let spec = RegionSpec { gpa: BASE, size, vmm_addr: BASE, file_offset: 0 };
        Ok(Arc::new(GuestMap::map(vec![(spec, file)])?))
    }

    /// Reads frames up to `limit` into buffers of `map`, which [`Self::buffers`] made.
    ///
    /// # Errors
    /// The interface is gone.
    pub(super) fn collect<'m>(
        &mut self,
        map: &'m GuestMap,
        batch: &mut Batch<'m>,
        limit: Limit,
    ) -> Result<(), RingFault> {
        if self.spared > 0 {
            self.spared -= 1;
            return Ok(());
        }
        for id in 0..limit.frames.min(BURST as u16) {
            let at = BASE + u64::from(id) * u64::from(STRIDE);
            let Some(buffer) = map.slice(at, BUFFER_BYTES) else { break };
            match buffer.read_from(&self.tap) {
                Ok(n) => {
                    let frame = whole(id, buffer.take(n as u32), 0, size_verdict(n as u32));
                    if batch.add(frame, charge(&frame)) >= limit.bytes {
                        break;
                    }
                }
                Err(Errno::EBADFD) => return Err(RingFault::InterfaceGone),
                // EAGAIN, mostly: there is nothing. Whatever else it is, an event says when to come back.
                Err(_) => {
                    if batch.frames.is_empty() {
                        self.spared = SPARED_LOOKS;
                    }
                    break;
                }
            }
        }
        Ok(())
    }

    /// Whether the ring must be looked at once more before it leaves the rounds: the look just now was
    /// spared, and an event of before may have been taken for one of a polled ring's.
    pub(super) fn arm(&mut self) -> bool {
        let was_spared = self.spared != SPARED_LOOKS;
        self.spared = 0;
        was_spared
    }

    /// Writes one frame, `head` with its virtio-net header.
    pub(super) fn write(&self, head: &[u8], tail: Tail<'_, '_>) -> Result<(), Refusal> {
        match crate::vhost::mem::write_pieces(&self.tap, head, tail.parts()) {
            Ok(_) => Ok(()),
            Err(Errno::EBADFD) => Err(RingFault::InterfaceGone.into()),
            // It was set down.
            Err(Errno::EIO) => Err(Refusal::Drop(DropReason::LinkDown)),
            Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM) => {
                Err(Refusal::Drop(DropReason::TapFull))
            }
            Err(_) => Err(Refusal::Drop(DropReason::TapRefused)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::*;
    use crate::frame::Scratch;
    use crate::vhost::mem::GuestSlice;
    use crate::vring::ring::Ring;

    /// A ring over a tap that the other end plays.
    fn pair() -> (Ring, OwnedFd) {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
            .expect("a pair of sockets");
        (Ring::Tap(TapRing::new(Arc::new(Tap::played_by(ours)))), theirs)
    }

    fn frame(tag: u8, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; VNET_HDR + len];
        bytes[VNET_HDR] = tag;
        bytes
    }

    fn send(theirs: &OwnedFd, tag: u8, len: usize) {
        nix::unistd::write(theirs, &frame(tag, len)).expect("room");
    }

    /// The first byte and the length of each frame taken, and what it is dropped for.
    fn take(ring: &mut Ring, map: &GuestMap, limit: Limit) -> Vec<(u8, u32, Option<DropReason>)> {
        let mut scratch = [Scratch::EMPTY; BURST];
        let mut batch = Batch::new();
        ring.pop(map, &mut batch, &mut scratch, limit).expect("the interface is there");
        ring.complete(&batch).expect("nothing to tell");
        let first = |at: usize| scratch[at].head()[0];
        batch.frames.iter().enumerate().map(|(at, f)| (first(at), f.len, f.drop)).collect()
    }

    const ALL: Limit = Limit::frames(BURST as u16);

    #[test]
    fn frames_are_read_until_there_are_none_or_the_limit_is_reached() {
        let (mut ring, theirs) = pair();
        let map = TapRing::buffers().expect("memory");
        for tag in 1..=40 {
            send(&theirs, tag, 100);
        }
        let burst = take(&mut ring, &map, ALL);
        assert_eq!(burst, (1..=32).map(|tag| (tag, 100, None)).collect::<Vec<_>>());
        assert_eq!(take(&mut ring, &map, Limit { frames: 32, bytes: 201 }).len(), 3);
        assert_eq!(take(&mut ring, &map, Limit::frames(2)).len(), 2);
        assert_eq!(take(&mut ring, &map, ALL).len(), 3, "the rest");
    }

    #[test]
    fn a_frame_of_maximum_length_passes_and_one_byte_more_is_too_long() {
        let (mut ring, theirs) = pair();
        let map = TapRing::buffers().expect("memory");
        let longest = MAX_FRAME_BYTES as usize;
        send(&theirs, 1, longest);
        send(&theirs, 2, longest + 1);
        send(&theirs, 3, longest + 1000);
        send(&theirs, 4, 13);
        let taken: Vec<_> = take(&mut ring, &map, ALL).iter().map(|&(.., drop)| drop).collect();
        let too_long = Some(DropReason::TooLong);
        assert_eq!(taken, [None, too_long, too_long, Some(DropReason::Truncated)]);
    }

    #[test]
    fn a_tap_without_frames_is_looked_at_seldom_and_once_more_before_it_is_left() {
        let (mut ring, theirs) = pair();
        let map = TapRing::buffers().expect("memory");
        assert_eq!(take(&mut ring, &map, ALL).len(), 0);
        send(&theirs, 1, 60);
        for look in 0..SPARED_LOOKS {
            assert_eq!(take(&mut ring, &map, ALL).len(), 0, "look {look} is spared");
        }
        assert_eq!(take(&mut ring, &map, ALL).len(), 1);

        assert_eq!(take(&mut ring, &map, ALL).len(), 0);
        send(&theirs, 2, 60);
        assert_eq!(take(&mut ring, &map, ALL).len(), 0, "spared");
        assert!(ring.arm().expect("sound"), "it was not looked at");
        assert_eq!(take(&mut ring, &map, ALL).len(), 1);
        assert_eq!(take(&mut ring, &map, ALL).len(), 0);
        assert!(!ring.arm().expect("sound"), "there is nothing");
        send(&theirs, 3, 60);
        assert_eq!(take(&mut ring, &map, ALL).len(), 1, "after an event it is looked at at once");
    }

    #[test]
    fn a_frame_is_written_in_one_piece_and_a_full_queue_is_a_drop_of_its_own() {
        let (ring, theirs) = pair();
        let Ring::Tap(ring) = ring else { unreachable!("it was made so") };
        let (mut body, mut more) = ([2u8; 300], [3u8; 500]);
        let more = [GuestSlice::of_private(&mut more)];
        let tail = Tail { body: GuestSlice::of_private(&mut body), more: &more };
        let head = frame(1, 128);
        assert_eq!(ring.write(&head, tail), Ok(()));
        let mut back = vec![0; 2000];
        assert_eq!(nix::unistd::read(&theirs, &mut back), Ok(VNET_HDR + 128 + 800));
        assert_eq!(back[..head.len()], head);
        assert_eq!(back[head.len()..head.len() + 300], [2; 300]);
        assert_eq!(back[head.len() + 300..head.len() + 800], [3; 500]);

        let full = (0..1_000_000).find_map(|_| ring.write(&head, tail).err());
        assert_eq!(full, Some(Refusal::Drop(DropReason::TapFull)));
        drop(theirs);
        let gone = ring.write(&head, tail);
        assert_eq!(gone, Err(Refusal::Drop(DropReason::TapRefused)));
    }
}
