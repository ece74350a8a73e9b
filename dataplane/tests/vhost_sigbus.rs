//! Guest memory cut short under us costs its port, not the process.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::Barrier;

use dataplane::vhost::mem::{GuestMap, RegionSpec};
use dataplane::vhost::sigbus;
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

const PAGE: u64 = 4096;
const HUGE_PAGE: u64 = 2 << 20;

fn memfd(len: u64, flags: MFdFlags) -> File {
    let file = File::from(memfd_create(c"sigbus-test", flags).unwrap());
    file.set_len(len).unwrap();
    file
}

fn map(len: u64, file: &File) -> GuestMap {
    let spec = RegionSpec { gpa: 0, size: len, vmm_addr: 0, file_offset: 0 };
    GuestMap::map(vec![(spec, file.try_clone().unwrap())]).unwrap()
}

fn read_byte(map: &GuestMap, at: u64) -> u8 {
    let mut byte = [0xee];
    map.slice(at, 1).unwrap().read(&mut byte);
    byte[0]
}

fn fill(map: &GuestMap, len: u64) {
    map.slice(0, len as u32).unwrap().write(&vec![7; len as usize]);
}

#[test]
fn memory_cut_short_reads_as_zeroes_and_is_told_dead_while_others_live() {
    let len = 16 * PAGE;
    let (file, other_file) = (memfd(len, MFdFlags::empty()), memfd(len, MFdFlags::empty()));
    let (map, other) = (map(len, &file), map(len, &other_file));
    fill(&map, len);
    fill(&other, len);
    file.set_len(PAGE).unwrap();
    assert_eq!(read_byte(&map, 0), 7, "what is left of the file is still there");
    assert!(!map.is_dead());
    let hits = sigbus::hits();
    assert_eq!(read_byte(&map, len - 1), 0);
    assert!(map.is_dead());
    assert!(sigbus::hits() > hits);
    assert_eq!(read_byte(&map, 0), 0, "all of the region was replaced");
    map.slice(0, 4).unwrap().write(b"okay");
    assert_eq!(read_byte(&other, 0), 7);
    assert!(!other.is_dead());
}

#[test]
fn many_threads_that_fault_in_one_region_at_once_all_go_on() {
    let len = 64 * PAGE;
    for _ in 0..50 {
        let file = memfd(len, MFdFlags::empty());
        let map = map(len, &file);
        fill(&map, len);
        let start = Barrier::new(8);
        file.set_len(0).unwrap();
        std::thread::scope(|scope| {
            for n in 0..8 {
                let (map, start) = (&map, &start);
                scope.spawn(move || {
                    start.wait();
                    assert_eq!(read_byte(map, n * 8 * PAGE), 0);
                });
            }
        });
        assert!(map.is_dead());
    }
}

/// Slots are freed and taken again while other threads fault.
#[test]
fn maps_that_come_and_go_meet_faults_of_others_unharmed() {
    let len = 4 * PAGE;
    std::thread::scope(|scope| {
        for n in 0..8u8 {
            scope.spawn(move || {
                for round in 0..300u32 {
                    let file = memfd(len, MFdFlags::empty());
                    let map = map(len, &file);
                    map.slice(0, 1).unwrap().write(&[n + 1]);
                    if round % 2 == 0 {
                        file.set_len(0).unwrap();
                        assert_eq!(read_byte(&map, 0), 0);
                        assert!(map.is_dead());
                    } else {
                        assert_eq!(read_byte(&map, 0), n + 1);
                        assert!(!map.is_dead());
                    }
                }
            });
        }
    });
}

#[test]
fn huge_pages_cut_short_are_survived_as_well() {
    let file = memfd(HUGE_PAGE, MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB);
    // Mapped without reservation: whether there is a page shows at the first touch.
    let free = std::fs::read_to_string("/proc/meminfo").unwrap();
    let free = free.lines().find_map(|line| line.strip_prefix("HugePages_Free:")).unwrap().trim();
    let map = map(HUGE_PAGE, &file);
    if free == "0" {
        // None at all: the touch faults, and that is survived too.
        assert_eq!(read_byte(&map, 5), 0);
        assert!(map.is_dead());
        return;
    }
    map.slice(5, 1).unwrap().write(&[7]);
    assert_eq!(read_byte(&map, 5), 7);
    file.set_len(0).unwrap();
    assert_eq!(read_byte(&map, 5), 0);
    assert!(map.is_dead());
}

/// Runs this very test again in a child, which then does what kills it.
fn in_a_child(test: &str, deed: impl FnOnce()) -> Option<std::process::ExitStatus> {
    const MARK: &str = "SIGBUS_TEST_CHILD";
    if std::env::var_os(MARK).is_some() {
        deed();
        return None;
    }
    let program = std::env::current_exe().unwrap();
    let output = Command::new(program).args(["--exact", test]).env(MARK, "1").output().unwrap();
    Some(output.status)
}

#[test]
fn a_fault_outside_guest_memory_still_kills() {
    let status = in_a_child("a_fault_outside_guest_memory_still_kills", || {
        let guarded = memfd(PAGE, MFdFlags::empty());
        let _map = map(PAGE, &guarded);
        let file = memfd(PAGE, MFdFlags::empty());
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        let unguarded = MmapRegion::<()>::from_file(offset, PAGE as usize).unwrap();
        file.set_len(0).unwrap();
        let slice = unguarded.get_slice(0, 1).unwrap();
        let byte: u8 = slice.read_obj(0).unwrap();
        println!("survived, and read {byte}");
    });
    if let Some(status) = status {
        assert_eq!(status.signal(), Some(libc::SIGBUS));
    }
}

#[test]
fn a_sigbus_that_somebody_sends_still_kills() {
    let status = in_a_child("a_sigbus_that_somebody_sends_still_kills", || {
        let file = memfd(PAGE, MFdFlags::empty());
        let _map = map(PAGE, &file);
        nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGBUS).unwrap();
        std::thread::sleep(std::time::Duration::from_secs(20));
    });
    if let Some(status) = status {
        assert_eq!(status.signal(), Some(libc::SIGBUS));
    }
}
