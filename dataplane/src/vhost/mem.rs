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

mod slice;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::sys::stat::{FileStat, fstat};
use nix::sys::statfs::{HUGETLBFS_MAGIC, TMPFS_MAGIC, fstatfs};
use vm_memory::{FileOffset, MmapRegion};

use super::sigbus;

pub use slice::{GuestSlice, PinnedSlice, prefetch, prefetch_write, write_pieces};

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

impl Span {
    /// A region that holds nothing.
    const NONE: Self = Self { gpa: 0, size: 0, host: NonNull::dangling() };
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

    /// The `len` bytes at guest-physical address `gpa`, if they lie in one region.
    pub fn slice(&self, gpa: u64, len: u32) -> Option<GuestSlice<'_>> {
        self.lookup(0).slice(gpa, len)
    }

    /// Looks up several slices, most of which lie in one region. `hint` is that of the last one of the
    /// look-up before; it is only a place to look first.
    #[inline]
    pub fn lookup(&self, hint: usize) -> Lookup<'_> {
        let near = self.spans.get(hint).copied().unwrap_or(Span::NONE);
        Lookup { map: self, near, hint }
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
        let slice = self.slice_by_vmm_addr(addr, len)?;
        // SAFETY: the slice lies in this map.
        Some(unsafe { PinnedSlice::new(&slice, Arc::clone(self)) })
    }

    /// The `len` bytes at address `addr` of the VMM's address space, as SET_VRING_ADDR gives it.
    pub fn slice_by_vmm_addr(&self, addr: u64, len: u32) -> Option<GuestSlice<'_>> {
        self.regions.iter().find_map(|r| {
            let span = Span { gpa: r.spec.vmm_addr, size: r.spec.size, host: r.host };
            within(&span, addr, len)
        })
    }
}

/// A look-up that remembers the region of the slice before.
#[derive(Debug)]
pub struct Lookup<'m> {
    map: &'m GuestMap,
    near: Span,
    hint: usize,
}

impl<'m> Lookup<'m> {
    /// As [`GuestMap::slice`].
    #[inline]
    pub fn slice(&mut self, gpa: u64, len: u32) -> Option<GuestSlice<'m>> {
        within(&self.near, gpa, len).or_else(|| self.elsewhere(gpa, len))
    }

    #[cold]
    fn elsewhere(&mut self, gpa: u64, len: u32) -> Option<GuestSlice<'m>> {
        let slice = self.map.slice_anywhere(gpa, len, &mut self.hint)?;
        self.near = self.map.spans.get(self.hint).copied().unwrap_or(Span::NONE);
        Some(slice)
    }

    /// The region of the last slice: where to look first next time.
    #[inline]
    pub fn hint(&self) -> usize {
        self.hint
    }
}

#[inline]
fn within<'m>(span: &Span, gpa: u64, len: u32) -> Option<GuestSlice<'m>> {
    let off = gpa.wrapping_sub(span.gpa);
    if off < span.size && u64::from(len) <= span.size - off {
        // SAFETY: `off < size`, and `size` bytes are mapped from `host` on.
        let ptr = unsafe { span.host.add(off as usize) };
        // SAFETY: `len` bytes follow in the region; the caller keeps its map for as long as it says.
        return Some(unsafe { GuestSlice::of_mapped(ptr, len) });
    }
    None
}
