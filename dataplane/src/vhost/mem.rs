//! Guest memory as the switch sees it: regions mapped from the VMM's file descriptors, and the
//! only way to a guest's bytes, [`GuestSlice`].
//!
//! # How it works
//! A vhost-user front end sends its RAM as (file, offset, size) with two addresses per region: the
//! guest-physical one, which descriptors use, and the VMM's own, which `SET_VRING_ADDR` uses
//! (vhost-user specification, "Memory region description"). A [`GuestMap`] is an immutable set of
//! such regions. A change of memory builds a new map that shares the regions that stay; a ring
//! holds an `Arc` of the map that it was checked against, so nothing is unmapped under a poller.
//!
//! # Bounds
//! Every [`GuestSlice`] lies in one region, checked as `off < size && len <= size - off` (the
//! second after the first, so nothing can wrap). A region must lie inside its file when it is
//! received; a file that is cut short later raises SIGBUS, which [`super::sigbus`] survives.
//!
//! # Threads
//! A map is shared read-only between the control thread and PMD threads. The bytes behind it are
//! written by the guest at any time, so no Rust reference to them ever exists: bytes are copied
//! in or out, and ring indexes are touched as atomics.
#![expect(unsafe_code, reason = "guest memory is mapped raw; no reference may point into it")]

mod fd;

use std::fs::File;
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use nix::sys::stat::{FileStat, fstat};
use nix::sys::statfs::{HUGETLBFS_MAGIC, TMPFS_MAGIC, fstatfs};
use vm_memory::{FileOffset, MmapRegion};

use super::sigbus;

/// Regions one map may hold: what CONFIGURE_MEM_SLOTS may ask for. The mappings of a process are
/// limited (vm.max_map_count, 65530 by default) and shared by all ports: so 1000 ports can not
/// take each other's.
pub const MAX_REGIONS: usize = 64;

/// Bytes one map may hold. A VMM can make a file of any length without any memory behind it; 128
/// TiB of address space are shared by all ports.
pub const MAX_BYTES: u64 = 1 << 40;

/// One region as a front end describes it (vhost-user specification, "Memory region description").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionSpec {
    /// Guest-physical address of the first byte.
    pub gpa: u64,
    /// Size in bytes.
    pub size: u64,
    /// Address of the first byte in the VMM's own address space.
    pub vmm_addr: u64,
    /// Where the region starts in its file, in bytes.
    pub file_offset: u64,
}

/// Why a region or a map was refused.
#[derive(Debug, thiserror::Error)]
pub enum MemError {
    /// A region of no bytes.
    #[error("Memory region at guest address {gpa:#x} is empty")]
    Empty {
        /// Guest-physical address of the region.
        gpa: u64,
    },
    /// Address plus size goes past 2^64.
    #[error("Memory region at {addr:#x} of {size:#x} bytes wraps around the address space")]
    Wraps {
        /// The address, guest-physical or the VMM's.
        addr: u64,
        /// Size of the region in bytes.
        size: u64,
    },
    /// Two regions share guest-physical addresses.
    #[error("Memory region at guest address {gpa:#x} overlaps another region")]
    Overlap {
        /// Guest-physical address of the later region.
        gpa: u64,
    },
    /// More regions than [`MAX_REGIONS`].
    #[error("More than {MAX_REGIONS} memory regions")]
    TooMany,
    /// More bytes than [`MAX_BYTES`].
    #[error("Memory regions of {total:#x} bytes; at most {MAX_BYTES:#x} are mapped for one port")]
    TooLarge {
        /// Size of all regions in bytes.
        total: u64,
    },
    /// The file is not memory.
    #[error(
        "Memory region at guest address {gpa:#x} is not in memory but on a file system of type \
         {kind:#x}; share guest memory as a memfd, or from tmpfs or hugetlbfs"
    )]
    NotMemory {
        /// Guest-physical address of the region.
        gpa: u64,
        /// Magic number of the file system (statfs(2)).
        kind: i64,
    },
    /// The region does not lie inside the file that came with it.
    #[error(
        "Memory region at guest address {gpa:#x} ends at byte {end:#x} of a file of {file_len:#x} \
         bytes; the VMM must size the file before it shares it"
    )]
    BeyondFile {
        /// Guest-physical address of the region.
        gpa: u64,
        /// File offset of the first byte after the region.
        end: u64,
        /// Length of the file in bytes.
        file_len: u64,
    },
    /// The kernel refused to map the file.
    #[error("Failed to map the memory region at guest address {gpa:#x}: {reason}")]
    Map {
        /// Guest-physical address of the region.
        gpa: u64,
        /// What the kernel or the mapping library said.
        reason: String,
    },
    /// The table of regions guarded against SIGBUS is full.
    #[error("No room to guard another memory region against SIGBUS; use fewer regions or ports")]
    NoGuard,
    /// No region has this guest address and size.
    #[error("No memory region at guest address {gpa:#x} of {size:#x} bytes")]
    Unknown {
        /// Guest-physical address asked for.
        gpa: u64,
        /// Size asked for in bytes.
        size: u64,
    },
}

/// Which file a descriptor refers to (inode(7)): device and inode number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileId(u64, u64);

impl FileId {
    fn of(stat: &FileStat) -> Self {
        Self(stat.st_dev, stat.st_ino)
    }
}

/// One mapped region; unmapped when the last map that holds it goes.
#[derive(Debug)]
struct Region {
    spec: RegionSpec,
    file: FileId,
    /// First byte of the region (not of the mapping, which may start earlier: see [`Region::map`]).
    host: NonNull<u8>,
    guard: sigbus::Guard,
    // Unmaps on drop. After `guard`, so that the handler forgets the range before it is unmapped.
    _mapping: MmapRegion<()>,
}

// SAFETY: `host` points into `_mapping`, which lives as long as the region and is shared memory
// that any thread may touch; all accesses go through `GuestSlice`, which never makes references.
unsafe impl Send for Region {}
// SAFETY: as for Send.
unsafe impl Sync for Region {}

impl Region {
    fn map(spec: RegionSpec, file: File) -> Result<Self, MemError> {
        let RegionSpec { gpa, size, vmm_addr, file_offset } = spec;
        if size == 0 {
            return Err(MemError::Empty { gpa });
        }
        for addr in [gpa, vmm_addr, file_offset] {
            if addr.checked_add(size).is_none() {
                return Err(MemError::Wraps { addr, size });
            }
        }
        let failed = |call, errno| MemError::Map { gpa, reason: format!("{call}: {errno}") };
        // A page of any other file is brought in by a disk, a network, or (FUSE) a program of the
        // peer's, at its leisure, while the PMD that touched it and all its ports wait.
        let kind = fstatfs(file.as_fd()).map_err(|errno| failed("fstatfs", errno))?;
        let kind = kind.filesystem_type();
        if kind != TMPFS_MAGIC && kind != HUGETLBFS_MAGIC {
            return Err(MemError::NotMemory { gpa, kind: kind.0 });
        }
        let stat = fstat(file.as_fd()).map_err(|errno| failed("fstat", errno))?;
        let id = FileId::of(&stat);
        let file_len = u64::try_from(stat.st_size).unwrap_or(0);
        let end = file_offset + size;
        if end > file_len {
            return Err(MemError::BeyondFile { gpa, end, file_len });
        }
        // Huge-page files can only be mapped at multiples of the huge page size, which is what
        // fstat reports as block size there; RAM below 1 MiB makes QEMU send smaller offsets.
        let block = u64::try_from(stat.st_blksize).unwrap_or(4096).max(4096);
        let lead = file_offset % block;
        let mapped_len = (lead + size).next_multiple_of(block);
        let too_large = |_| MemError::Map { gpa, reason: format!("{mapped_len:#x} bytes") };
        let mapped_len = usize::try_from(mapped_len).map_err(too_large)?;
        let lead_len = usize::try_from(lead).map_err(too_large)?;
        // `from_file` maps MAP_SHARED | MAP_NORESERVE, readable and writable.
        let mapping =
            MmapRegion::<()>::from_file(FileOffset::new(file, file_offset - lead), mapped_len)
                .map_err(|err| MemError::Map { gpa, reason: err.to_string() })?;
        // SAFETY: `lead_len < mapped_len`, so the result points into the mapping.
        let host = unsafe { mapping.as_ptr().add(lead_len) };
        let host =
            NonNull::new(host).ok_or(MemError::Map { gpa, reason: "mapped at zero".into() })?;
        let guard =
            sigbus::Guard::new(mapping.as_ptr() as usize, mapped_len).ok_or(MemError::NoGuard)?;
        Ok(Self { spec, file: id, host, guard, _mapping: mapping })
    }
}

/// What translation needs of a region, dense.
#[derive(Debug, Clone, Copy)]
struct Span {
    gpa: u64,
    size: u64,
    host: NonNull<u8>,
}

/// An immutable set of guest memory regions.
#[derive(Debug, Default)]
pub struct GuestMap {
    spans: Vec<Span>,
    regions: Vec<Arc<Region>>,
}

// SAFETY: the pointers in `spans` point into `regions`, which are Send and live as long.
unsafe impl Send for GuestMap {}
// SAFETY: as for Send; the map itself is never changed.
unsafe impl Sync for GuestMap {}

impl GuestMap {
    /// Maps a whole table (SET_MEM_TABLE). On an error nothing stays mapped.
    pub fn map(table: Vec<(RegionSpec, File)>) -> Result<Self, MemError> {
        let mut regions = Vec::with_capacity(table.len().min(MAX_REGIONS));
        for (spec, file) in table {
            Self::check_room(&regions, spec)?;
            regions.push(Arc::new(Region::map(spec, file)?));
        }
        Ok(Self::of(regions))
    }

    /// Whether this very region of this very file is in the map.
    pub fn holds(&self, spec: RegionSpec, file: &File) -> bool {
        // A descriptor that cannot be looked at is judged, and named, when it is mapped.
        let is_same = |r: &Arc<Region>| {
            r.spec == spec && fstat(file.as_fd()).is_ok_and(|stat| FileId::of(&stat) == r.file)
        };
        self.regions.iter().any(is_same)
    }

    /// This map and one region more (ADD_MEM_REG); the regions in it stay where they are.
    pub fn with_added(&self, spec: RegionSpec, file: File) -> Result<Self, MemError> {
        Self::check_room(&self.regions, spec)?;
        let mut regions = self.regions.clone();
        regions.push(Arc::new(Region::map(spec, file)?));
        Ok(Self::of(regions))
    }

    /// This map without one region (REM_MEM_REG), found by guest address, VMM address and size; its
    /// place in a file does not matter.
    pub fn with_removed(&self, spec: RegionSpec) -> Result<Self, MemError> {
        let RegionSpec { gpa, size, vmm_addr, .. } = spec;
        let wanted = |r: &Arc<Region>| {
            r.spec.gpa == gpa && r.spec.vmm_addr == vmm_addr && r.spec.size == size
        };
        let at = self.regions.iter().position(wanted).ok_or(MemError::Unknown { gpa, size })?;
        let mut regions = self.regions.clone();
        regions.remove(at);
        Ok(Self::of(regions))
    }

    fn check_room(regions: &[Arc<Region>], new: RegionSpec) -> Result<(), MemError> {
        if regions.len() >= MAX_REGIONS {
            return Err(MemError::TooMany);
        }
        // Ends may wrap for a hostile region: `Region::map` says so by name; here it only must
        // not panic.
        let overlaps = |r: &Arc<Region>| {
            new.gpa < r.spec.gpa + r.spec.size && r.spec.gpa < new.gpa.saturating_add(new.size)
        };
        if regions.iter().any(overlaps) {
            return Err(MemError::Overlap { gpa: new.gpa });
        }
        let sizes = regions.iter().map(|r| r.spec.size);
        let total = sizes.fold(new.size, u64::saturating_add);
        if total > MAX_BYTES {
            return Err(MemError::TooLarge { total });
        }
        Ok(())
    }

    fn of(mut regions: Vec<Arc<Region>>) -> Self {
        // Largest first: nearly every buffer lies in the guest's largest region.
        regions.sort_by_key(|r| std::cmp::Reverse(r.spec.size));
        let span = |r: &Arc<Region>| Span { gpa: r.spec.gpa, size: r.spec.size, host: r.host };
        Self { spans: regions.iter().map(span).collect(), regions }
    }

    /// How many regions there are.
    pub fn region_count(&self) -> usize {
        self.regions.len()
    }

    /// Guest address and size in bytes of each region, by address.
    pub fn regions(&self) -> Vec<(u64, u64)> {
        let mut regions: Vec<_> = self.regions.iter().map(|r| (r.spec.gpa, r.spec.size)).collect();
        regions.sort_unstable();
        regions
    }

    /// Total size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.regions.iter().map(|r| r.spec.size).sum()
    }

    /// Whether a file behind this map was cut short and a region replaced by zero pages.
    #[inline]
    pub fn is_dead(&self) -> bool {
        sigbus::hits() != 0 && self.regions.iter().any(|r| r.guard.is_dead())
    }

    /// The `len` bytes at guest-physical address `gpa`, if they lie in one region. `hint` is the
    /// region where the last look-up of this ring succeeded; it is only a place to look first.
    #[inline]
    pub fn slice(&self, gpa: u64, len: u32, hint: &mut usize) -> Option<GuestSlice<'_>> {
        if let Some(span) = self.spans.get(*hint)
            && let Some(slice) = within(span, gpa, len)
        {
            return Some(slice);
        }
        self.slice_anywhere(gpa, len, hint)
    }

    #[cold]
    fn slice_anywhere(&self, gpa: u64, len: u32, hint: &mut usize) -> Option<GuestSlice<'_>> {
        self.spans.iter().enumerate().find_map(|(at, span)| {
            let slice = within(span, gpa, len)?;
            *hint = at;
            Some(slice)
        })
    }

    /// Like [`GuestMap::slice_by_vmm_addr`], and keeps the map alive: what a ring holds on to.
    pub fn pin(self: &Arc<Self>, addr: u64, len: u32) -> Option<PinnedSlice> {
        let GuestSlice { ptr, len, .. } = self.slice_by_vmm_addr(addr, len)?;
        Some(PinnedSlice { ptr, len, _map: Arc::clone(self) })
    }

    /// The `len` bytes at address `addr` of the VMM's address space, as SET_VRING_ADDR gives it.
    pub fn slice_by_vmm_addr(&self, addr: u64, len: u32) -> Option<GuestSlice<'_>> {
        self.regions.iter().find_map(|r| {
            let span = Span { gpa: r.spec.vmm_addr, size: r.spec.size, host: r.host };
            within(&span, addr, len)
        })
    }
}

#[inline]
fn within<'m>(span: &Span, gpa: u64, len: u32) -> Option<GuestSlice<'m>> {
    let off = gpa.wrapping_sub(span.gpa);
    if off < span.size && u64::from(len) <= span.size - off {
        // SAFETY: `off < size`, and `size` bytes are mapped from `host` on.
        let ptr = unsafe { span.host.add(off as usize) };
        return Some(GuestSlice { ptr, len, map: PhantomData });
    }
    None
}

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
        unsafe { std::ptr::copy_nonoverlapping(self.ptr.as_ptr(), into.as_mut_ptr(), n) };
        n
    }

    /// Copies to the start of the slice; returns the bytes copied, the shorter of the two.
    #[inline]
    pub fn write(&self, from: &[u8]) -> usize {
        let n = from.len().min(self.len as usize);
        // SAFETY: both sides hold `n` bytes; private memory and guest memory never overlap.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.ptr.as_ptr(), n) };
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
        let at = self.skip(offset);
        if at.len >= 8 {
            // SAFETY: 8 bytes are mapped there; a byte copy has no alignment.
            unsafe { std::ptr::copy_nonoverlapping(value.as_ptr(), at.ptr.as_ptr(), 8) };
        }
    }

    /// Loads a `u16` at `offset` (relaxed); 0 if outside or misaligned.
    #[inline]
    pub fn load_u16(&self, offset: u32) -> u16 {
        self.u16_at(offset).map_or(0, |cell| u16::from_le(cell.load(Ordering::Relaxed)))
    }
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

/// Hints that the cache line at `at` will be written. Any address is allowed.
#[inline]
pub fn prefetch_write(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults and changes no memory.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_ET0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};

    fn file(len: u64) -> File {
        let file = File::from(memfd_create(c"mem-test", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(len).unwrap();
        file
    }

    fn spec(gpa: u64, size: u64, file_offset: u64) -> RegionSpec {
        RegionSpec { gpa, size, vmm_addr: gpa.wrapping_add(0x7000_0000_0000), file_offset }
    }

    #[test]
    fn a_slice_must_lie_in_one_region() {
        let table =
            vec![(spec(0x1000, 0x1000, 0), file(0x1000)), (spec(0x2000, 0x1000, 0), file(0x1000))];
        let map = GuestMap::map(table).unwrap();
        let mut hint = 0;
        assert_eq!(map.slice(0x1ff0, 16, &mut hint).unwrap().len(), 16);
        assert!(map.slice(0x1ff0, 17, &mut hint).is_none(), "crosses two regions");
        assert!(map.slice(0x3000, 0, &mut hint).is_none(), "just past the end");
        assert!(map.slice(0xfff, 1, &mut hint).is_none());
        assert!(map.slice(u64::MAX, u32::MAX, &mut hint).is_none());
        assert!(map.slice(0x1000, u32::MAX, &mut hint).is_none());
    }

    #[test]
    fn bytes_written_through_one_address_are_read_through_the_other() {
        let map = GuestMap::map(vec![(spec(0x10_0000, 0x2000, 0x1000), file(0x3000))]).unwrap();
        let mut hint = 7;
        assert_eq!(map.slice(0x10_0123, 5, &mut hint).unwrap().write(b"hello"), 5);
        let mut back = [0; 5];
        map.slice_by_vmm_addr(0x7000_0010_0123, 5).unwrap().read(&mut back);
        assert_eq!(&back, b"hello");
    }

    #[test]
    fn bad_regions_are_refused_by_name() {
        let map = |s: RegionSpec, f| GuestMap::map(vec![(s, f)]);
        assert!(matches!(map(spec(0, 0, 0), file(0x1000)), Err(MemError::Empty { .. })));
        assert!(matches!(
            map(spec(0, 0x1001, 0), file(0x1000)),
            Err(MemError::BeyondFile { end: 0x1001, .. })
        ));
        assert!(matches!(
            map(spec(u64::MAX - 10, 0x1000, 0), file(0x1000)),
            Err(MemError::Wraps { .. })
        ));
        assert!(matches!(
            map(spec(0, 0x1000, u64::MAX - 10), file(0x1000)),
            Err(MemError::Wraps { .. })
        ));
        let half = MAX_BYTES / 2;
        let large = vec![
            (spec(0, half, 0), file(half)),
            (spec(half, half, 0), file(half)),
            (spec(MAX_BYTES, 0x1000, 0), file(0x1000)),
        ];
        assert!(matches!(GuestMap::map(large), Err(MemError::TooLarge { .. })));
        assert!(matches!(
            map(spec(0, 0x1000, 0), File::open("/proc/self/exe").unwrap()),
            Err(MemError::NotMemory { .. })
        ));
        let twice =
            vec![(spec(0, 0x2000, 0), file(0x2000)), (spec(0x1000, 0x1000, 0), file(0x1000))];
        assert!(matches!(GuestMap::map(twice), Err(MemError::Overlap { gpa: 0x1000 })));
    }

    #[test]
    fn a_region_added_or_removed_leaves_the_others_in_place() {
        let one = GuestMap::map(vec![(spec(0, 0x1000, 0), file(0x1000))]).unwrap();
        one.slice(0, 4, &mut 0).unwrap().write(b"kept");
        let two = one.with_added(spec(0x8000, 0x1000, 0), file(0x1000)).unwrap();
        drop(one);
        let mut back = [0; 4];
        two.slice(0, 4, &mut 0).unwrap().read(&mut back);
        assert_eq!(&back, b"kept");
        assert!(two.slice(0x8000, 1, &mut 0).is_some());
        let again = two.with_removed(spec(0x8000, 0x1000, 7)).unwrap();
        assert!(again.slice(0x8000, 1, &mut 0).is_none());
        let unknown = again.with_removed(spec(0x8000, 1, 0));
        assert!(matches!(unknown, Err(MemError::Unknown { .. })));
    }

    #[test]
    fn a_map_knows_a_region_by_its_addresses_and_its_file() {
        let (one, other) = (file(0x2000), file(0x2000));
        let map = GuestMap::map(vec![(spec(0, 0x1000, 0), one.try_clone().unwrap())]).unwrap();
        assert!(map.holds(spec(0, 0x1000, 0), &one));
        assert!(!map.holds(spec(0, 0x1000, 0), &other));
        assert!(!map.holds(spec(0, 0x1000, 0x1000), &one));
    }

    #[test]
    fn atomics_are_refused_where_misaligned_or_outside() {
        let map = GuestMap::map(vec![(spec(0, 0x1000, 0), file(0x1000))]).unwrap();
        let slice = map.slice(0, 8, &mut 0).unwrap();
        assert!(slice.u16_at(6).is_some());
        assert!(slice.u16_at(7).is_none());
        assert!(slice.u16_at(8).is_none());
        assert!(slice.u16_at(u32::MAX).is_none());
        assert!(slice.fetch_16(0).is_none());
    }
}
