//! The transmit queue: fast bursts of whole buffers, and single frames cut up at will.

use std::time::Duration;

use super::buffers::Buffers;
use super::{AnyVring, Deadline, Desc, DeviceFault, DriverRing as _, Layout, VirtioNetHdr, Vring};
use crate::testing::memory::{GuestMemory, MemoryError, Span};

const HDR: usize = VirtioNetHdr::BYTES;
const DESC_BYTES: usize = 16;

/// Descriptors an indirect table of this driver can hold.
pub const INDIRECT_TABLE_ENTRIES: usize = 128;

/// Why a frame could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum TxError {
    /// The ring has no room; reap, or wait.
    #[error("the transmit ring has {free} free descriptors, the frame needs {need}")]
    Full {
        /// Free descriptors.
        free: u16,
        /// Descriptors needed.
        need: usize,
    },
    /// The buffer is too small.
    #[error("a frame of {len} bytes; GuestConfig::tx_capacity allows {capacity}")]
    TooLong {
        /// Bytes of the frame.
        len: usize,
        /// Bytes of a buffer, without the virtio-net header.
        capacity: usize,
    },
    /// The chain is longer than the ring or an indirect table.
    #[error("a chain of {need} descriptors; at most {max} fit")]
    TooManyPieces {
        /// Descriptors needed.
        need: usize,
        /// Most there can be.
        max: usize,
    },
    /// INDIRECT_DESC was not negotiated.
    #[error("indirect layout, but INDIRECT_DESC was not negotiated")]
    NoIndirect,
    /// The device misbehaved.
    #[error(transparent)]
    Device(#[from] DeviceFault),
}

/// How bursts lay out their frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TxOptions {
    /// Bytes a frame may have, without the virtio-net header.
    pub capacity: usize,
    /// Longest descriptor in bytes; longer frames become chains.
    pub segment: usize,
    /// The virtio-net header has a descriptor of its own.
    pub header_apart: bool,
    /// Chains go into indirect tables.
    pub indirect: bool,
    /// Buffers of each descriptor, used in turn.
    pub turns: u16,
}

/// The transmit queue of one queue pair.
#[derive(Debug)]
pub struct TxQueue {
    ring: AnyVring,
    buffers: Buffers,
    tables: Buffers,
    options: TxOptions,
    /// INDIRECT_DESC was negotiated.
    indirect: bool,
    parts: Vec<Desc>,
    scratch: Vec<u8>,
}

impl TxQueue {
    pub(in crate::testing) fn new(
        memory: &mut GuestMemory,
        regions: &[usize],
        size: u16,
        is_packed: bool,
        options: TxOptions,
    ) -> Result<Self, MemoryError> {
        let ring = AnyVring::new(memory, regions[0], size, is_packed)?;
        let tables =
            Buffers::new(memory, &regions[..1], size, INDIRECT_TABLE_ENTRIES * DESC_BYTES, 1)?;
        let buffers = Buffers::new(memory, regions, size, HDR + options.capacity, options.turns)?;
        let (parts, scratch) = (Vec::new(), Vec::new());
        Ok(Self { ring, buffers, tables, options, indirect: false, parts, scratch })
    }

    /// Starts anew with what was negotiated, all indexes at `start`.
    pub(in crate::testing) fn reset(&mut self, event_idx: bool, indirect: bool, start: u16) {
        self.ring.restart(event_idx, start);
        self.indirect = indirect;
    }

    /// The split ring beneath, for raw descriptors and notification control.
    ///
    /// # Panics
    /// When the ring is packed.
    pub fn ring(&mut self) -> &mut Vring {
        self.ring.split()
    }

    /// The ring beneath, split or packed.
    pub fn any_ring(&mut self) -> &mut AnyVring {
        &mut self.ring
    }

    /// Bytes a frame may have.
    pub fn capacity(&self) -> usize {
        self.options.capacity
    }

    /// Frames the device has not taken yet (or we have not reaped).
    pub fn in_flight(&self) -> u16 {
        self.ring.outstanding()
    }

    /// Sends up to `max` frames, as many as have room, and returns how many. `fill` writes each
    /// frame into its slot. The device sees them together, and is kicked at most once.
    ///
    /// # Errors
    /// [`DeviceFault`] when the device's used ring makes no sense; nothing is sent then.
    #[inline]
    pub fn tx_burst(
        &mut self,
        max: usize,
        mut fill: impl FnMut(&mut TxSlot<'_>),
    ) -> Result<usize, DeviceFault> {
        let per_frame = self.descs_per_frame();
        if usize::from(self.ring.free()) < max * per_frame {
            self.tx_reap()?;
        }
        let mut sent = 0;
        while sent < max && usize::from(self.ring.free()) >= per_frame {
            self.place(per_frame, &mut fill);
            sent += 1;
        }
        if sent > 0 {
            self.ring.publish();
            self.ring.kick_if_asked();
        }
        Ok(sent)
    }

    /// Puts one frame into the ring; the device sees it by [`Self::show`] or the next burst. `false`:
    /// there is no room.
    ///
    /// # Errors
    /// [`DeviceFault`] when the device's used ring makes no sense.
    #[inline]
    pub fn put(&mut self, mut fill: impl FnMut(&mut TxSlot<'_>)) -> Result<bool, DeviceFault> {
        let has_room = self.room()? > 0;
        if has_room {
            self.place(self.descs_per_frame(), &mut fill);
        }
        Ok(has_room)
    }

    /// Shows the device what was put into the ring, and kicks it if it asks for that.
    #[inline]
    pub fn show(&mut self) {
        self.ring.publish();
        self.ring.kick_if_asked();
    }

    /// Frames that have room. The device is asked only if there seems to be little.
    ///
    /// # Errors
    /// As [`Self::put`].
    #[inline]
    pub fn room(&mut self) -> Result<usize, DeviceFault> {
        if self.ring.free() < self.ring.size() / 2 {
            self.tx_reap()?;
        }
        Ok(usize::from(self.ring.free()) / self.descs_per_frame())
    }

    /// Writes one frame, for which there is room, to the next buffer.
    #[inline(always)]
    fn place(&mut self, per_frame: usize, fill: &mut impl FnMut(&mut TxSlot<'_>)) {
        self.buffers.take_turn(self.ring.next_head());
        let (span, start) = self.buffers.of(self.ring.next_head());
        let mut slot = TxSlot {
            span,
            start,
            capacity: self.options.capacity,
            len: 0,
            buffer: self.ring.next_head(),
            header: VirtioNetHdr::default(),
        };
        fill(&mut slot);
        let bytes = HDR + slot.len;
        let header = slot.header.to_bytes();
        span.write(start, &header);
        let addr = span.gpa() + start as u64;
        if per_frame == 1 && !self.burst_indirect() {
            self.ring.push(&[Desc::readable(addr, bytes as u32)]);
        } else {
            self.push_segments(addr, bytes);
        }
    }

    /// Takes back what the device has used, and returns how many frames that were.
    ///
    /// # Errors
    /// [`DeviceFault`] when the used ring makes no sense.
    #[inline]
    pub fn tx_reap(&mut self) -> Result<usize, DeviceFault> {
        let waiting = self.ring.used_waiting()?;
        for _ in 0..waiting {
            let (head, len) = self.ring.take_used()?;
            if len != 0 {
                // Nothing of a transmit chain is writable (virtio 1.3, section 2.7.8.2).
                return Err(DeviceFault::UsedLength { head, len, min: 0, max: 0 });
            }
            self.ring.release(head);
        }
        self.ring.rearm();
        Ok(usize::from(waiting))
    }

    /// Reaps until nothing is in flight, or `timeout`; says whether all is done.
    ///
    /// # Errors
    /// [`DeviceFault`] when the used ring makes no sense.
    pub fn drain(&mut self, timeout: Duration) -> Result<bool, DeviceFault> {
        let deadline = Deadline::after(timeout);
        loop {
            self.tx_reap()?;
            if self.in_flight() == 0 {
                return Ok(true);
            }
            if !self.ring.wait(deadline)? {
                return Ok(false);
            }
        }
    }

    /// Sends one frame with a plain header, laid out as bursts are.
    ///
    /// # Errors
    /// [`TxError`]: no room, too long, or a misbehaving device.
    pub fn send(&mut self, frame: &[u8]) -> Result<(), TxError> {
        self.fits(frame)?;
        match self.tx_burst(1, |slot| slot.write(frame))? {
            1 => Ok(()),
            _ => Err(TxError::Full { free: self.ring.free(), need: self.descs_per_frame() }),
        }
    }

    /// Sends one frame with any header and layout.
    ///
    /// # Errors
    /// [`TxError`]: no room, too long, too many pieces, or a misbehaving device.
    pub fn send_with_header(
        &mut self,
        header: VirtioNetHdr,
        frame: &[u8],
        layout: &Layout,
    ) -> Result<(), TxError> {
        self.push_with_header(header, frame, layout)?;
        self.ring.publish();
        self.ring.kick_if_asked();
        Ok(())
    }

    /// As [`Self::send_with_header`], but the device is not shown the frame before the next burst
    /// or [`Vring::publish`].
    ///
    /// # Errors
    /// As [`Self::send_with_header`].
    pub fn push_with_header(
        &mut self,
        header: VirtioNetHdr,
        frame: &[u8],
        layout: &Layout,
    ) -> Result<(), TxError> {
        self.fits(frame)?;
        self.tx_reap()?;
        self.scratch.clear();
        self.scratch.extend_from_slice(&header.to_bytes());
        self.scratch.extend_from_slice(frame);

        let need = layout.pieces(self.scratch.len()).count();
        let indirect = layout.is_indirect();
        let max = if indirect { INDIRECT_TABLE_ENTRIES } else { usize::from(self.ring.size()) };
        if indirect && !self.indirect {
            return Err(TxError::NoIndirect);
        }
        if need > max {
            return Err(TxError::TooManyPieces { need, max });
        }
        let need_in_ring = if indirect { 1 } else { need };
        if usize::from(self.ring.free()) < need_in_ring {
            return Err(TxError::Full { free: self.ring.free(), need: need_in_ring });
        }

        let (span, start) = self.buffers.of(self.ring.next_head());
        self.parts.clear();
        let mut at = start + self.scratch.len();
        for piece in layout.pieces(self.scratch.len()) {
            at -= piece.len();
            self.parts.push(Desc::readable(span.gpa() + at as u64, piece.len() as u32));
            span.write(at, &self.scratch[piece]);
        }
        self.push_parts(indirect);
        Ok(())
    }

    fn fits(&self, frame: &[u8]) -> Result<(), TxError> {
        let capacity = self.options.capacity;
        if frame.len() > capacity {
            return Err(TxError::TooLong { len: frame.len(), capacity });
        }
        Ok(())
    }

    /// Whether chains of bursts go into indirect tables: if wanted and negotiated.
    #[inline(always)]
    fn burst_indirect(&self) -> bool {
        self.options.indirect && self.indirect
    }

    /// Most ring descriptors a frame of a burst takes.
    fn descs_per_frame(&self) -> usize {
        if self.burst_indirect() {
            return 1;
        }
        let options = &self.options;
        let body = if options.header_apart { options.capacity } else { HDR + options.capacity };
        body.div_ceil(options.segment).max(1) + usize::from(options.header_apart)
    }

    #[cold]
    fn push_segments(&mut self, addr: u64, bytes: usize) {
        self.parts.clear();
        let mut at = 0;
        while at < bytes {
            let first_is_header = at == 0 && self.options.header_apart;
            let len = if first_is_header { HDR } else { self.options.segment.min(bytes - at) };
            self.parts.push(Desc::readable(addr + at as u64, len as u32));
            at += len;
        }
        self.push_parts(self.burst_indirect());
    }

    /// Pushes `self.parts` as a chain, in the ring or in the indirect table of the next head.
    fn push_parts(&mut self, indirect: bool) {
        if !indirect {
            self.ring.push(&self.parts);
            return;
        }
        let (table, start) = self.tables.of(self.ring.next_head());
        let last = self.parts.len() - 1;
        for (index, part) in self.parts.iter().enumerate() {
            let next = (index < last).then_some(index as u16 + 1);
            let entry = self.ring.table_entry(*part, next);
            table.write(start + DESC_BYTES * index, &entry);
        }
        let bytes = (DESC_BYTES * self.parts.len()) as u32;
        let addr = table.gpa() + start as u64;
        self.ring.push(&[Desc { addr, len: bytes, flags: Desc::INDIRECT, next: 0 }]);
    }
}

/// The buffer of one frame about to be sent. It still holds what was sent from it last.
#[derive(Debug)]
pub struct TxSlot<'a> {
    span: &'a Span,
    start: usize,
    capacity: usize,
    len: usize,
    buffer: u16,
    header: VirtioNetHdr,
}

impl TxSlot<'_> {
    /// Which of the ring's buffers this is: below the ring size, and the same buffer each time,
    /// unless descriptors have several.
    #[inline(always)]
    pub fn buffer(&self) -> u16 {
        self.buffer
    }

    /// Bytes the frame may have.
    #[inline(always)]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Writes the whole frame, and sets its length.
    ///
    /// # Panics
    /// When it is longer than [`Self::capacity`].
    #[inline(always)]
    pub fn write(&mut self, frame: &[u8]) {
        self.patch(0, frame);
        self.len = frame.len();
    }

    /// Overwrites bytes at `offset` of the frame; the length stays.
    ///
    /// # Panics
    /// When they lie beyond [`Self::capacity`].
    #[inline(always)]
    pub fn patch(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.capacity, "frame longer than its buffer");
        self.span.write(self.start + HDR + offset, bytes);
    }

    /// Sets the length of the frame; zero unless set or written.
    ///
    /// # Panics
    /// When it is longer than [`Self::capacity`].
    #[inline(always)]
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity, "frame longer than its buffer");
        self.len = len;
    }

    /// Sets the virtio-net header; all zero unless set.
    #[inline(always)]
    pub fn set_header(&mut self, header: VirtioNetHdr) {
        self.header = header;
    }
}
