//! Regions, slices, and what is refused.

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
    for hint in [0, 1, 7] {
        let mut lookup = map.lookup(hint);
        assert_eq!(lookup.slice(0x1ff0, 16).unwrap().len(), 16);
        assert!(lookup.slice(0x1ff0, 17).is_none(), "crosses two regions");
        assert!(lookup.slice(0x3000, 0).is_none(), "just past the end");
        assert!(lookup.slice(0xfff, 1).is_none());
        assert!(lookup.slice(0, 0).is_none(), "in no region");
        assert!(lookup.slice(u64::MAX, u32::MAX).is_none());
        assert!(lookup.slice(0x1000, u32::MAX).is_none());
        assert_eq!(lookup.hint(), 0, "the last one that was found");
        assert_eq!(lookup.slice(0x2fff, 1).unwrap().len(), 1);
        assert_eq!(lookup.hint(), 1);
    }
}

#[test]
fn bytes_written_through_one_address_are_read_through_the_other() {
    let map = GuestMap::map(vec![(spec(0x10_0000, 0x2000, 0x1000), file(0x3000))]).unwrap();
    assert_eq!(map.slice(0x10_0123, 5).unwrap().write(b"hello"), 5);
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
    let twice = vec![(spec(0, 0x2000, 0), file(0x2000)), (spec(0x1000, 0x1000, 0), file(0x1000))];
    assert!(matches!(GuestMap::map(twice), Err(MemError::Overlap { gpa: 0x1000 })));
}

#[test]
fn a_region_added_or_removed_leaves_the_others_in_place() {
    let one = GuestMap::map(vec![(spec(0, 0x1000, 0), file(0x1000))]).unwrap();
    one.slice(0, 4).unwrap().write(b"kept");
    let two = one.with_added(spec(0x8000, 0x1000, 0), file(0x1000)).unwrap();
    drop(one);
    let mut back = [0; 4];
    two.slice(0, 4).unwrap().read(&mut back);
    assert_eq!(&back, b"kept");
    assert!(two.slice(0x8000, 1).is_some());
    let again = two.with_removed(spec(0x8000, 0x1000, 7)).unwrap();
    assert!(again.slice(0x8000, 1).is_none());
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
    let slice = map.slice(0, 8).unwrap();
    assert!(slice.u16_at(6).is_some());
    assert!(slice.u16_at(7).is_none());
    assert!(slice.u16_at(8).is_none());
    assert!(slice.u16_at(u32::MAX).is_none());
    assert!(slice.fetch_16(0).is_none());
}
