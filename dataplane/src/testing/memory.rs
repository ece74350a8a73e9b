//! Guest memory: regions of a memfd, mapped by the guest and handed to the switch by descriptor.
//!
//! A [`GuestMemory`] is a list of regions, each a range of guest-physical addresses (GPA) backed by
//! a memfd (its own, or one shared by the regions made together, so that file offsets other than
//! zero occur). A bump allocator hands out [`Span`]s: checked windows into one region, through
//! which the driver reads and writes.
//!
//! # Bounds
//! A span checks every access against its own length and panics beyond it: the guest is test code,
//! and an access out of its own buffers is a bug in the test.
//!
//! # Threads
//! The switch reads and writes the same bytes through its own mapping at any time, as another
//! process would. So no reference into guest memory exists: bytes are copied in and out, ring
//! fields are atomics, and a reader may see bytes a racing writer has half written.
#![expect(unsafe_code, reason = "guest memory is mapped raw and shared with the device under test")]

mod span;

pub use span::Span;

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Granularity of regions and of their file offsets, in bytes.
pub const PAGE_BYTES: usize = 4096;

/// Granularity of regions on huge pages, in bytes.
pub const HUGE_PAGE_BYTES: usize = 2 << 20;

/// What went wrong with guest memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A system call failed.
    #[error("{what} of {len} bytes of guest memory failed; huge pages need vm.nr_hugepages")]
    System {
        /// The call.
        what: &'static str,
        /// Bytes asked for.
        len: usize,
        /// The cause.
        source: io::Error,
    },
    /// The range is empty, unaligned, wraps, or lies upon an existing region.
    #[error("region of {len} bytes at {gpa:#x} is empty, unaligned, wraps, or overlaps another")]
    Region {
        /// First guest-physical address.
        gpa: u64,
        /// Bytes asked for.
        len: usize,
    },
    /// The region cannot hold the allocation.
    #[error("region {region} has no room for {len} bytes; ask for more memory in GuestConfig")]
    Full {
        /// Index of the region.
        region: usize,
        /// Bytes asked for.
        len: usize,
    },
    /// The range is not inside guest memory.
    #[error("guest address {gpa:#x}, {len} bytes, is outside of guest memory")]
    Outside {
        /// First guest-physical address.
        gpa: u64,
        /// Bytes asked for.
        len: usize,
    },
}

/// A region to be made: `len` bytes at guest-physical address `gpa`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionSpec {
    /// First guest-physical address; a multiple of the page size.
    pub gpa: u64,
    /// Length in bytes; a multiple of the page size.
    pub len: usize,
}

/// How the memfds are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backing {
    /// Seal the size of the file (`F_SEAL_SHRINK`, `F_SEAL_GROW`), as QEMU does by default.
    pub sealed: bool,
    /// Use 2 MiB pages of hugetlbfs.
    pub huge: bool,
    /// One file for all regions made together, each at its own file offset.
    pub one_file: bool,
}

impl Default for Backing {
    fn default() -> Self {
        Self { sealed: true, huge: false, one_file: false }
    }
}

/// One mapped region.
#[derive(Debug)]
pub struct Region {
    base: NonNull<u8>,
    gpa: u64,
    len: usize,
    file: File,
    file_offset: u64,
}

// SAFETY: the mapping belongs to no thread, and the pointer is used only by `Span`, whose accesses
// are copies and atomics on memory that another party writes at any time anyway.
unsafe impl Send for Region {}

// SAFETY: as for `Send`: no `&Region` hands out a reference into the mapping.
unsafe impl Sync for Region {}

impl Region {
    fn map(
        spec: RegionSpec,
        huge: bool,
        file: File,
        file_offset: u64,
    ) -> Result<Self, MemoryError> {
        let failed =
            |source: io::Error| MemoryError::System { what: "mmap", len: spec.len, source };
        let len = NonZeroUsize::new(spec.len)
            .ok_or(MemoryError::Region { gpa: spec.gpa, len: spec.len })?;
        let offset = i64::try_from(file_offset).map_err(|e| failed(io::Error::other(e)))?;
        // Huge pages are reserved now: without, running out of them is a SIGBUS at first touch.
        let reserve = if huge { MapFlags::empty() } else { MapFlags::MAP_NORESERVE };
        // SAFETY: a new mapping at an address of the kernel's choice replaces no other.
        let base = unsafe {
            mmap(
                None,
                len,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED | reserve,
                &file,
                offset,
            )
        }
        .map_err(|errno| failed(errno.into()))?;
        Ok(Self { base: base.cast(), gpa: spec.gpa, len: spec.len, file, file_offset })
    }

    /// First guest-physical address.
    pub fn gpa(&self) -> u64 {
        self.gpa
    }

    /// Length in bytes; never zero.
    #[expect(clippy::len_without_is_empty, reason = "a region is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Address of the region in this process: the "user address" of the vhost-user messages.
    pub fn user_addr(&self) -> u64 {
        self.base.as_ptr().expose_provenance() as u64
    }

    /// The memfd. A test that truncates it must not touch the region afterwards.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where in the memfd the region starts, in bytes.
    pub fn file_offset(&self) -> u64 {
        self.file_offset
    }

    fn offset_of(&self, gpa: u64, len: usize) -> Option<usize> {
        let offset = usize::try_from(gpa.checked_sub(self.gpa)?).ok()?;
        (offset <= self.len && len <= self.len - offset).then_some(offset)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: `base` and `len` are the mapping made in `map`; every `Span` into it holds the
        // `Arc` of this region, so none is left.
        let outcome = unsafe { munmap(self.base.cast(), self.len) };
        debug_assert!(outcome.is_ok(), "munmap of an own mapping: {outcome:?}");
    }
}

/// The memory of one guest.
#[derive(Debug)]
pub struct GuestMemory {
    regions: Vec<Arc<Region>>,
    /// Bytes handed out, by region.
    taken: Vec<usize>,
}

impl GuestMemory {
    /// Makes and maps `specs`, in this order.
    ///
    /// # Errors
    /// [`MemoryError::Region`] for a range that is empty, unaligned, wraps or overlaps;
    /// [`MemoryError::System`] when the kernel refuses memory.
    pub fn new(specs: &[RegionSpec], backing: Backing) -> Result<Self, MemoryError> {
        let mut memory = Self { regions: Vec::new(), taken: Vec::new() };
        if backing.one_file {
            let total = specs.iter().map(|spec| spec.len).sum();
            let file = memfd(total, backing)?;
            let mut offset = 0;
            for spec in specs {
                let file = file.try_clone().map_err(|source| MemoryError::System {
                    what: "dup",
                    len: spec.len,
                    source,
                })?;
                memory.insert(*spec, backing, file, offset)?;
                offset += spec.len as u64;
            }
        } else {
            for spec in specs {
                memory.add(*spec, backing)?;
            }
        }
        Ok(memory)
    }

    /// Adds a region (memory hot-add) and returns its index. The switch has to be told apart.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn add(&mut self, spec: RegionSpec, backing: Backing) -> Result<usize, MemoryError> {
        let file = memfd(spec.len, backing)?;
        self.insert(spec, backing, file, 0)
    }

    /// Takes the region at `index` out of the list; it stays mapped while spans point into it.
    ///
    /// # Panics
    /// When there is no such region.
    pub fn remove(&mut self, index: usize) -> Arc<Region> {
        self.taken.remove(index);
        self.regions.remove(index)
    }

    fn insert(
        &mut self,
        spec: RegionSpec,
        backing: Backing,
        file: File,
        file_offset: u64,
    ) -> Result<usize, MemoryError> {
        let refused = MemoryError::Region { gpa: spec.gpa, len: spec.len };
        let page = if backing.huge { HUGE_PAGE_BYTES } else { PAGE_BYTES };
        let aligned = spec.len.is_multiple_of(page) && spec.gpa.is_multiple_of(page as u64);
        let Some(end) = spec.gpa.checked_add(spec.len as u64) else { return Err(refused) };
        let overlaps = |r: &Arc<Region>| spec.gpa < r.gpa + r.len as u64 && r.gpa < end;
        if spec.len == 0 || !aligned || self.regions.iter().any(overlaps) {
            return Err(refused);
        }
        self.regions.push(Arc::new(Region::map(spec, backing.huge, file, file_offset)?));
        self.taken.push(0);
        Ok(self.regions.len() - 1)
    }

    /// The regions, in the order they were made.
    pub fn regions(&self) -> &[Arc<Region>] {
        &self.regions
    }

    /// Takes `len` bytes out of region `region`, aligned to `align` (a power of two).
    ///
    /// # Errors
    /// [`MemoryError::Full`] when the region has no such room or does not exist.
    pub fn alloc(&mut self, region: usize, len: usize, align: usize) -> Result<Span, MemoryError> {
        let full = MemoryError::Full { region, len };
        let (Some(mapped), Some(taken)) = (self.regions.get(region), self.taken.get_mut(region))
        else {
            return Err(full);
        };
        let start = taken.next_multiple_of(align);
        if start > mapped.len || len > mapped.len - start {
            return Err(full);
        }
        *taken = start + len;
        Ok(Span::new(mapped, start, len))
    }

    /// The window of `len` bytes at `gpa`, if one region holds all of it.
    pub fn span(&self, gpa: u64, len: usize) -> Option<Span> {
        let hit = |region: &Arc<Region>| Some(Span::new(region, region.offset_of(gpa, len)?, len));
        self.regions.iter().find_map(hit)
    }

    /// Address in this process of guest-physical address `gpa`.
    pub fn user_addr(&self, gpa: u64) -> Option<u64> {
        let region = self.regions.iter().find(|region| region.offset_of(gpa, 1).is_some())?;
        Some(region.user_addr() + (gpa - region.gpa))
    }

    /// Copies `bytes` to `gpa`; the range may cross regions that adjoin.
    ///
    /// # Errors
    /// [`MemoryError::Outside`] when a byte of the range is not guest memory; bytes before it are
    /// written.
    pub fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        self.pieces(gpa, bytes.len(), |span, range| span.write(0, &bytes[range]))
    }

    /// Copies from `gpa` to `bytes`; the range may cross regions that adjoin.
    ///
    /// # Errors
    /// [`MemoryError::Outside`] when a byte of the range is not guest memory.
    pub fn read(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), MemoryError> {
        self.pieces(gpa, bytes.len(), |span, range| span.read(0, &mut bytes[range]))
    }

    fn pieces(
        &self,
        gpa: u64,
        len: usize,
        mut visit: impl FnMut(Span, std::ops::Range<usize>),
    ) -> Result<(), MemoryError> {
        let mut done = 0;
        while done < len {
            let outside = MemoryError::Outside { gpa, len };
            let Some(at) = gpa.checked_add(done as u64) else { return Err(outside) };
            let hit = self.regions.iter().find_map(|r| Some((r, r.offset_of(at, 1)?)));
            let Some((region, offset)) = hit else { return Err(outside) };
            let piece = (region.len - offset).min(len - done);
            visit(Span::new(region, offset, piece), done..done + piece);
            done += piece;
        }
        Ok(())
    }
}

fn memfd(len: usize, backing: Backing) -> Result<File, MemoryError> {
    let failed = |what| move |source: io::Error| MemoryError::System { what, len, source };
    let huge = if backing.huge {
        MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB
    } else {
        MFdFlags::empty()
    };
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING | huge;
    let fd = memfd_create(c"guest", flags).map_err(|e| failed("memfd_create")(e.into()))?;
    let file = File::from(fd);
    file.set_len(len as u64).map_err(failed("ftruncate"))?;
    if backing.sealed {
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map_err(|e| failed("F_ADD_SEALS")(e.into()))?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPECS: [RegionSpec; 2] = [
        RegionSpec { gpa: 0, len: 2 * PAGE_BYTES },
        RegionSpec { gpa: 2 * PAGE_BYTES as u64, len: PAGE_BYTES },
    ];

    #[test]
    fn bytes_written_across_two_regions_of_one_file_are_read_back() {
        let backing = Backing { one_file: true, ..Backing::default() };
        let memory = GuestMemory::new(&SPECS, backing).unwrap();
        let at = 2 * PAGE_BYTES as u64 - 3;
        memory.write(at, b"across").unwrap();
        let mut read = [0; 6];
        memory.read(at, &mut read).unwrap();
        assert_eq!(&read, b"across");
        assert_eq!(memory.regions()[1].file_offset(), 2 * PAGE_BYTES as u64);
        assert_eq!(memory.span(2 * PAGE_BYTES as u64, 3).unwrap().array(0), *b"oss");
    }

    #[test]
    fn ranges_outside_of_guest_memory_are_refused() {
        let memory = GuestMemory::new(&SPECS, Backing::default()).unwrap();
        let end = 3 * PAGE_BYTES as u64;
        assert!(matches!(memory.write(end - 1, &[0; 2]), Err(MemoryError::Outside { .. })));
        assert!(matches!(memory.read(u64::MAX, &mut [0; 2]), Err(MemoryError::Outside { .. })));
        assert!(memory.span(end - 1, 2).is_none());
        assert_eq!(memory.user_addr(end), None);
    }

    #[test]
    fn overlapping_unaligned_or_wrapping_regions_are_refused() {
        let mut memory = GuestMemory::new(&SPECS, Backing::default()).unwrap();
        for (gpa, len) in [
            (PAGE_BYTES as u64, PAGE_BYTES),
            (1 << 20, 5),
            (1, PAGE_BYTES),
            (u64::MAX - 4095, 4096),
        ] {
            let outcome = memory.add(RegionSpec { gpa, len }, Backing::default());
            assert!(matches!(outcome, Err(MemoryError::Region { .. })), "{gpa:#x}: {outcome:?}");
        }
        assert_eq!(memory.regions().len(), 2);
    }

    #[test]
    fn sealed_memory_cannot_be_shrunk_and_unsealed_memory_can() {
        for sealed in [true, false] {
            let backing = Backing { sealed, ..Backing::default() };
            let memory = GuestMemory::new(&SPECS[..1], backing).unwrap();
            assert_eq!(memory.regions()[0].file().set_len(0).is_err(), sealed);
        }
    }

    #[test]
    fn huge_pages_are_there_or_refused_at_once() {
        let spec = RegionSpec { gpa: 0, len: HUGE_PAGE_BYTES };
        let backing = Backing { huge: true, ..Backing::default() };
        match GuestMemory::new(&[spec], backing) {
            Ok(memory) => {
                memory.write(5, b"huge").unwrap();
                assert_eq!(memory.span(5, 4).unwrap().array(0), *b"huge");
            }
            Err(e) => assert!(matches!(e, MemoryError::System { .. }), "{e}"),
        }
        let odd = RegionSpec { gpa: 0, len: PAGE_BYTES };
        let outcome = GuestMemory::new(&[odd], backing);
        assert!(matches!(outcome, Err(MemoryError::Region { .. } | MemoryError::System { .. })));
    }

    #[test]
    fn allocations_are_aligned_disjoint_and_end_with_the_region() {
        let mut memory = GuestMemory::new(&SPECS, Backing::default()).unwrap();
        let first = memory.alloc(0, 10, 16).unwrap();
        let second = memory.alloc(0, 4096, 4096).unwrap();
        assert_eq!((first.gpa(), second.gpa()), (0, 4096));
        assert!(matches!(memory.alloc(0, 1, 1), Err(MemoryError::Full { region: 0, len: 1 })));
        assert!(memory.alloc(1, PAGE_BYTES, 1).is_ok());
    }

    #[test]
    #[should_panic(expected = "access leaves its span")]
    fn access_beyond_a_span_panics() {
        let mut memory = GuestMemory::new(&SPECS, Backing::default()).unwrap();
        memory.alloc(0, 8, 8).unwrap().write(7, &[0; 2]);
    }
}
