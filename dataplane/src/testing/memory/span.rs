//! Checked windows into guest memory.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use super::Region;

/// A checked window into one region. Cheap to clone; keeps the region mapped.
///
/// Every accessor panics when the access leaves the window, and the ring accessors also when it is
/// not aligned.
#[derive(Debug, Clone)]
pub struct Span {
    base: NonNull<u8>,
    len: usize,
    gpa: u64,
    region: Arc<Region>,
}

// SAFETY: as for `Region`, which the span keeps alive.
unsafe impl Send for Span {}

impl Span {
    pub(super) fn new(region: &Arc<Region>, offset: usize, len: usize) -> Self {
        assert!(offset <= region.len && len <= region.len - offset, "span leaves its region");
        // SAFETY: `offset` is within the mapping, or one past its end, as just checked.
        let base = unsafe { region.base.add(offset) };
        Self { base, len, gpa: region.gpa + offset as u64, region: Arc::clone(region) }
    }

    /// Guest-physical address of the first byte.
    #[inline]
    pub fn gpa(&self) -> u64 {
        self.gpa
    }

    /// Length in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the window holds no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address of the first byte in this process, as SET_VRING_ADDR wants it.
    pub fn user_addr(&self) -> u64 {
        self.region.user_addr() + (self.gpa - self.region.gpa)
    }

    /// Address of `len` bytes at `offset`, checked.
    #[inline(always)]
    fn at(&self, offset: usize, len: usize) -> NonNull<u8> {
        assert!(offset <= self.len && len <= self.len - offset, "access leaves its span");
        // SAFETY: `offset <= self.len`, and `base..base + len` lies in one live mapping.
        unsafe { self.base.add(offset) }
    }

    /// Copies `bytes` to `offset`.
    #[inline(always)]
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let to = self.at(offset, bytes.len()).as_ptr();
        // SAFETY: `to` has room for `bytes.len()` bytes, checked by `at`; no Rust object lies in
        // the mapping, so `bytes` does not overlap it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    /// Copies from `offset` to `bytes`.
    #[inline(always)]
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        let from = self.at(offset, bytes.len()).as_ptr();
        // SAFETY: `bytes.len()` bytes are readable at `from`, checked by `at`; no Rust object lies
        // in the mapping, so `bytes` does not overlap it.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
    }

    /// Copies `len` bytes from `offset` to `other_offset` of `other`.
    #[inline(always)]
    pub fn copy_to(&self, offset: usize, other: &Self, other_offset: usize, len: usize) {
        let from = self.at(offset, len).as_ptr();
        let to = other.at(other_offset, len).as_ptr();
        // SAFETY: `len` bytes are readable at `from` and writable at `to`, checked by `at`; the two
        // may overlap, which `copy` allows.
        unsafe { std::ptr::copy(from, to, len) };
    }

    /// The `N` bytes at `offset`.
    #[inline(always)]
    pub fn array<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        self.read(offset, &mut bytes);
        bytes
    }

    /// Fills the window with `byte`.
    pub fn fill(&self, byte: u8) {
        let to = self.at(0, self.len).as_ptr();
        // SAFETY: `self.len` bytes are writable at the base of the window.
        unsafe { std::ptr::write_bytes(to, byte, self.len) };
    }

    #[inline(always)]
    fn cell(&self, offset: usize) -> &AtomicU16 {
        let at = self.at(offset, 2).cast::<u16>();
        assert!(at.is_aligned(), "ring field at an odd address");
        // SAFETY: two readable and writable bytes, checked by `at`, aligned, mapped while `self`
        // lives; both sides of the ring touch its indexes only as whole 16-bit words.
        unsafe { AtomicU16::from_ptr(at.as_ptr()) }
    }

    /// Loads the little-endian `u16` at `offset`, e.g. `used.idx`.
    #[inline(always)]
    pub fn load_u16(&self, offset: usize, order: Ordering) -> u16 {
        u16::from_le(self.cell(offset).load(order))
    }

    /// Stores the little-endian `u16` at `offset`, e.g. `avail.idx`.
    #[inline(always)]
    pub fn store_u16(&self, offset: usize, value: u16, order: Ordering) {
        self.cell(offset).store(value.to_le(), order);
    }

    #[inline(always)]
    fn word(&self, offset: usize) -> &AtomicU64 {
        let at = self.at(offset, 8).cast::<u64>();
        assert!(at.is_aligned(), "descriptor at an odd address");
        // SAFETY: eight readable and writable bytes, checked by `at`, aligned, mapped while `self`
        // lives; the device touches this half of a descriptor only as a whole word.
        unsafe { AtomicU64::from_ptr(at.as_ptr()) }
    }

    /// Loads the little-endian `u64` at `offset`: half a packed-ring descriptor.
    #[inline(always)]
    pub fn load_u64(&self, offset: usize, order: Ordering) -> u64 {
        u64::from_le(self.word(offset).load(order))
    }

    /// Stores the little-endian `u64` at `offset`: half a packed-ring descriptor.
    #[inline(always)]
    pub fn store_u64(&self, offset: usize, value: u64, order: Ordering) {
        self.word(offset).store(value.to_le(), order);
    }

    /// Asks the processor to fetch the line at `offset` for reading. A hint, nothing more.
    #[inline(always)]
    pub fn prefetch(&self, offset: usize) {
        let at = self.at(offset, 1).as_ptr();
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: a prefetch reads nothing and never faults; SSE is part of x86-64.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = at;
    }
}
