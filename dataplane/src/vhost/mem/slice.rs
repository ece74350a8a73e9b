//! A guest's bytes, to be copied in and out, and ring indexes in them, to be touched as atomics.
//!
//! Whoever has a [`GuestSlice`] may touch what it spans: that it lies in one region was checked when the
//! map made it, and no part of it can be larger.

mod fd;

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::GuestMap;

pub use fd::write_pieces;

/// A part of a guest's memory together with the map that keeps it mapped.
#[derive(Debug)]
pub struct PinnedSlice {
    ptr: NonNull<u8>,
    len: u32,
    _map: Arc<GuestMap>,
}

// SAFETY: `ptr` points into the map, which is Send and Sync; bytes are only touched through
// `GuestSlice`, which never makes references.
unsafe impl Send for PinnedSlice {}
// SAFETY: as for Send.
unsafe impl Sync for PinnedSlice {}

impl PinnedSlice {
    /// # Safety
    /// `slice` lies in `map`.
    pub(super) unsafe fn new(slice: &GuestSlice<'_>, map: Arc<GuestMap>) -> Self {
        Self { ptr: slice.ptr, len: slice.len, _map: map }
    }

    /// The slice, for as long as this value is borrowed.
    #[inline]
    pub fn get(&self) -> GuestSlice<'_> {
        GuestSlice { ptr: self.ptr, len: self.len, map: PhantomData }
    }
}

/// Bytes of a guest: within one region, mapped while `'m` lasts, changing at any time.
#[derive(Debug, Clone, Copy)]
pub struct GuestSlice<'m> {
    ptr: NonNull<u8>,
    len: u32,
    map: PhantomData<&'m GuestMap>,
}

impl<'m> GuestSlice<'m> {
    /// # Safety
    /// The `len` bytes from `ptr` on are a guest's, and mapped for `'m`.
    #[inline]
    pub(super) const unsafe fn of_mapped(ptr: NonNull<u8>, len: u32) -> Self {
        Self { ptr, len, map: PhantomData }
    }

    /// A slice of no bytes.
    #[inline]
    pub const fn empty() -> Self {
        Self { ptr: NonNull::dangling(), len: 0, map: PhantomData }
    }

    /// A slice of private memory, so that software-made frames travel as guests' frames do. The
    /// exclusive borrow lasts as long as the slice.
    #[inline]
    pub fn of_private(bytes: &'m mut [u8]) -> Self {
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        Self { ptr: NonNull::from(bytes).cast(), len, map: PhantomData }
    }

    /// Length in bytes.
    #[inline]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there is no byte.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Host address, for alignment checks and prefetching only.
    #[inline]
    pub fn addr(&self) -> usize {
        self.ptr.as_ptr() as usize
    }

    /// The part from `offset` on; empty if there is none.
    #[inline]
    pub fn skip(&self, offset: u32) -> Self {
        let offset = offset.min(self.len);
        // SAFETY: `offset <= len`, so the result is inside or one past the slice.
        let ptr = unsafe { self.ptr.add(offset as usize) };
        Self { ptr, len: self.len - offset, map: PhantomData }
    }

    /// The first `len` bytes, or all of it.
    #[inline]
    pub fn take(&self, len: u32) -> Self {
        Self { len: self.len.min(len), ..*self }
    }

    /// Copies from the start of the slice; returns the bytes copied, the shorter of the two.
    #[inline]
    pub fn read(&self, into: &mut [u8]) -> usize {
        let n = into.len().min(self.len as usize);
        // SAFETY: both sides hold `n` bytes; private memory and guest memory never overlap. The
        // guest may change the bytes meanwhile: we get some mixture and judge only the copy.
        unsafe { copy_short(self.ptr.as_ptr(), into.as_mut_ptr(), n) };
        n
    }

    /// Copies to the start of the slice; returns the bytes copied, the shorter of the two.
    #[inline]
    pub fn write(&self, from: &[u8]) -> usize {
        let n = from.len().min(self.len as usize);
        // SAFETY: both sides hold `n` bytes; private memory and guest memory never overlap.
        unsafe { copy_short(from.as_ptr(), self.ptr.as_ptr(), n) };
        n
    }

    /// Copies guest memory to guest memory; returns the bytes copied, the shorter of the two.
    #[inline]
    pub fn copy_from(&self, from: &GuestSlice<'_>) -> usize {
        let n = from.len.min(self.len) as usize;
        // SAFETY: both sides hold `n` bytes. They may overlap (two ports of one guest, or a guest
        // that shares one buffer twice), so this is a memmove.
        unsafe { std::ptr::copy(from.ptr.as_ptr(), self.ptr.as_ptr(), n) };
        n
    }

    /// Hints that the cache line at `offset` will be read.
    #[inline]
    pub fn prefetch(&self, offset: u32) {
        prefetch(self.ptr.as_ptr().wrapping_add(offset as usize));
    }

    /// Hints that all of a frame's worth of bytes will be read.
    #[inline]
    pub fn prefetch_all(&self) {
        let mut offset = 0;
        while offset < self.len.min(1536) {
            self.prefetch(offset);
            offset += 64;
        }
    }

    /// Hints that the cache line at `offset` will be written.
    #[inline]
    pub fn prefetch_write(&self, offset: u32) {
        prefetch_write(self.ptr.as_ptr().wrapping_add(offset as usize));
    }

    /// A `u16` at `offset` bytes as an atomic, e.g. `avail.idx`; `None` if misaligned or outside.
    #[inline]
    pub fn u16_at(&self, offset: u32) -> Option<&'m AtomicU16> {
        let cell = self.cell(offset, 2)?;
        // SAFETY: in bounds and aligned (`cell` checked both), mapped for 'm; the guest writes
        // here at any time, so it is only touched as an atomic.
        Some(unsafe { AtomicU16::from_ptr(cell.cast().as_ptr()) })
    }

    /// A `u32` at `offset` bytes as an atomic; `None` if misaligned or outside.
    #[inline]
    pub fn u32_at(&self, offset: u32) -> Option<&'m AtomicU32> {
        let cell = self.cell(offset, 4)?;
        // SAFETY: as for `u16_at`.
        Some(unsafe { AtomicU32::from_ptr(cell.cast().as_ptr()) })
    }

    /// A `u64` at `offset` bytes as an atomic: one half of a packed-ring descriptor; `None` if
    /// misaligned or outside.
    #[inline]
    pub fn u64_at(&self, offset: u32) -> Option<&'m AtomicU64> {
        let cell = self.cell(offset, 8)?;
        // SAFETY: as for `u16_at`.
        Some(unsafe { AtomicU64::from_ptr(cell.cast().as_ptr()) })
    }

    /// The 16 bytes at `offset` as two atomics: a packed-ring descriptor; `None` if misaligned or outside.
    #[inline]
    pub fn pair_at(&self, offset: u32) -> Option<[&'m AtomicU64; 2]> {
        if offset.checked_add(16)? > self.len {
            return None;
        }
        // SAFETY: `offset + 16 <= len`, checked above.
        let first = unsafe { self.ptr.add(offset as usize) }.cast::<u64>();
        if !first.is_aligned() {
            return None;
        }
        // SAFETY: as for `first`.
        let second = unsafe { first.add(1) };
        // SAFETY: in bounds and aligned, mapped for 'm; the guest writes here at any time, so it is only
        // touched as an atomic.
        let first = unsafe { AtomicU64::from_ptr(first.as_ptr()) };
        // SAFETY: as for `first`.
        Some([first, unsafe { AtomicU64::from_ptr(second.as_ptr()) }])
    }

    #[inline]
    fn cell(&self, offset: u32, size: u32) -> Option<NonNull<u8>> {
        if offset.checked_add(size)? > self.len {
            return None;
        }
        // SAFETY: `offset < len`, checked above.
        let cell = unsafe { self.ptr.add(offset as usize) };
        (cell.as_ptr() as usize).is_multiple_of(size as usize).then_some(cell)
    }

    /// The 16 bytes at `offset` fetched once, as two little-endian words: one split-ring
    /// descriptor. `None` if outside.
    #[inline]
    pub fn fetch_16(&self, offset: u32) -> Option<[u64; 2]> {
        if offset.checked_add(16)? > self.len {
            return None;
        }
        // SAFETY: `offset + 16 <= len`, checked above.
        let at = unsafe { self.ptr.add(offset as usize) }.cast::<[u64; 2]>();
        // SAFETY: 16 bytes are mapped there; unaligned reads are allowed; volatile, so the
        // compiler can not fetch a second time what the guest may have changed since.
        let words = unsafe { at.as_ptr().cast::<Unaligned>().read_volatile() };
        Some([u64::from_le(words.0), u64::from_le(words.1)])
    }

    /// Stores two `u32` at `offset`: one used-ring element. Nothing happens if outside.
    #[inline]
    pub fn store_8(&self, offset: u32, words: [u32; 2]) {
        let value = (u64::from(words[1]) << 32 | u64::from(words[0])).to_le_bytes();
        if offset.saturating_add(8) <= self.len {
            // SAFETY: `offset + 8 <= len`.
            let at = unsafe { self.ptr.add(offset as usize) };
            // SAFETY: 8 bytes are mapped there; a byte copy has no alignment.
            unsafe { std::ptr::copy_nonoverlapping(value.as_ptr(), at.as_ptr(), 8) };
        }
    }

    /// Fetches little-endian words from the start of the slice on, once; returns how many there were.
    #[inline]
    pub fn read_u16s(&self, into: &mut [u16]) -> usize {
        let n = into.len().min(self.len as usize / 2);
        // SAFETY: both sides hold `2 * n` bytes; private memory and guest memory never overlap. Any bytes
        // are words, whatever the guest does to them meanwhile.
        unsafe { copy_short(self.ptr.as_ptr(), into.as_mut_ptr().cast(), 2 * n) };
        for word in &mut into[..n] {
            *word = u16::from_le(*word);
        }
        n
    }

    /// Loads a `u16` at `offset` (relaxed); 0 if outside or misaligned.
    #[inline]
    pub fn load_u16(&self, offset: u32) -> u16 {
        self.u16_at(offset).map_or(0, |cell| u16::from_le(cell.load(Ordering::Relaxed)))
    }
}

/// Copies `n` bytes, without a call if they are a short frame's head or a long one's: 64 to 192, in
/// pieces of 64 that overlap.
///
/// # Safety
/// Both sides hold `n` bytes and do not overlap.
#[inline(always)]
unsafe fn copy_short(from: *const u8, to: *mut u8, n: usize) {
    const PIECE: usize = 64;
    if !(PIECE..=3 * PIECE).contains(&n) {
        // SAFETY: as the caller says.
        unsafe { std::ptr::copy_nonoverlapping(from, to, n) };
        return;
    }
    let piece = |at: usize| {
        // SAFETY: `at + PIECE <= n`, and both sides hold `n` bytes.
        let from = unsafe { from.add(at) };
        // SAFETY: as for `from`.
        let to = unsafe { to.add(at) };
        // SAFETY: as for `from`; the caller says that the sides do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(from, to, PIECE) };
    };
    piece(0);
    if n > 2 * PIECE {
        piece(PIECE);
    }
    piece(n - PIECE);
}

/// Two words that may lie at any address.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Unaligned(u64, u64);

/// Hints that the cache line at `at` will be read. Any address is allowed.
#[inline]
pub fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults and changes no memory.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Hints that the cache line at `at` will be written: it is fetched for this core alone, so that the
/// store need not ask the other cores again. Any address is allowed.
#[inline]
pub fn prefetch_write(at: *const u8) {
    // Not `_MM_HINT_ET0`: without the target feature `prfchw` that compiles to a fetch for reading.
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults and changes no memory; processors without it take it for a NOP.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
