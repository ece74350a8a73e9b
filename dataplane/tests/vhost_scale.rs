//! What grows with the number of ports: file descriptors by a few each, threads not at all.
//!
//! Alone in its file, as it counts what belongs to the whole process.

mod vhost_support;

use std::fs::File;
use std::os::fd::AsRawFd;

use dataplane::testing::raw::RawPeer;
use dataplane::testing::{Guest, GuestConfig};
use dataplane::vhost::device::LinkEvent;
use dataplane::vhost::socket::{VhostConfig, VhostThread};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use vhost_support::*;

const PORTS: u32 = 400;

#[test]
fn four_hundred_ports_need_one_thread_and_seven_descriptors_each() {
    let threads_before = status_of_process("Threads");
    let thread = VhostThread::spawn(VhostConfig::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let books: Vec<_> = (0..PORTS).map(|_| Book::default()).collect();
    let before = open_files();
    for (id, book) in (0..).zip(&books) {
        thread.add_port(id, &path_of(dir.path(), id), LISTEN, book.device()).unwrap();
    }
    assert_eq!(open_files() - before, PORTS as usize);
    // The control thread, and the watcher of those that may block.
    assert_eq!(status_of_process("Threads"), threads_before + 2);

    let config = GuestConfig::default().ring_size(16);
    let connect = |id| Guest::connect(&path_of(dir.path(), id), config.clone()).unwrap();
    let first = connect(0);
    let with_one = open_files();
    let second = connect(1);
    let theirs_and_ours = open_files() - with_one;
    // The guest's own, in the same process: its socket, its memory, a kick and a call a ring.
    assert!(theirs_and_ours - 6 <= 6, "{theirs_and_ours} descriptors for a connection");
    let others: Vec<_> = (2..PORTS).map(connect).collect();
    assert!(books.iter().all(|book| book.running() == [0, 1]));
    assert_eq!(open_files() - with_one, (PORTS as usize - 1) * theirs_and_ours);
    // The control thread, and the watcher of those that may block.
    assert_eq!(status_of_process("Threads"), threads_before + 2);

    drop((first, second, others));
    books.iter().for_each(|book| book.wait_for_link(&LinkEvent::Waiting));
    for id in 0..PORTS {
        assert!(thread.remove_port(id));
    }
    assert_eq!(open_files(), before);
    books.iter().for_each(Book::assert_clean);

    without_descriptors_left_connections_wait_and_are_served_later(&thread, &books[0], dir.path());
}

/// In the same test, as it starves the whole process.
fn without_descriptors_left_connections_wait_and_are_served_later(
    thread: &VhostThread,
    book: &Book,
    dir: &std::path::Path,
) {
    thread.add_port(0, &path_of(dir, 0), LISTEN, book.device()).unwrap();
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let lowest_free = File::open("/dev/null").unwrap().as_raw_fd() as u64;
    // Room for the near end of a connection, not for the far one.
    setrlimit(Resource::RLIMIT_NOFILE, lowest_free + 1, hard).unwrap();
    let waiting = RawPeer::connect(&path_of(dir, 0));
    // The first call may be answered before the thread has seen the connection, the second not.
    let seen = [(); 2].map(|()| thread.port_status(0).unwrap().connections);
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    assert_eq!(seen, [0, 0]);
    assert!(is_answered(&mut waiting.unwrap()));
}
