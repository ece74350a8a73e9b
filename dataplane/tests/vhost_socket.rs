//! The control thread: who waits for whom (nobody), sockets come and go, tasks run.

mod vhost_support;

use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dataplane::testing::raw::{Answer, RawMessage, RawPeer};
use dataplane::vhost::device::LinkEvent;
use dataplane::vhost::socket::{PortSocketError, SocketMode, Stopped, VhostConfig, VhostThread};
use vhost::vhost_user::message::FrontendReq;
use vhost_support::*;

fn impatient() -> VhostConfig {
    VhostConfig { message_deadline: Duration::from_millis(50), ..VhostConfig::default() }
}

#[test]
fn half_a_header_a_header_without_body_and_silence_delay_nobody() {
    let rig = Rig::new();
    let whole = RawMessage::new(FrontendReq::SET_FEATURES).u64(0).to_bytes();
    let mut stuck = Vec::new();
    for (id, sent) in [(1, 0), (2, 4), (3, 11), (4, 12), (5, 19)] {
        let path = path_of(rig.dir.path(), id);
        rig.thread.add_port(id, &path, LISTEN, rig.book.device()).unwrap();
        let peer = RawPeer::connect(&path).unwrap();
        peer.send_bytes(&whole[..sent], &[]).unwrap();
        stuck.push(peer);
    }
    let mut other = rig.peer();
    for _ in 0..100 {
        assert!(is_answered(&mut other));
    }
}

#[test]
fn a_message_that_is_not_completed_in_time_ends_its_connection_only() {
    let rig = Rig::with(impatient(), 1);
    let path = path_of(rig.dir.path(), 1);
    rig.thread.add_port(1, &path, LISTEN, rig.book.device()).unwrap();
    let (mut idle, mut slow) = (rig.peer(), RawPeer::connect(&path).unwrap());
    assert!(is_answered(&mut idle) && is_answered(&mut slow));
    slow.send_bytes(&[1, 0, 0, 0], &[]).unwrap();
    assert_eq!(slow.recv(LONG).unwrap(), Answer::Closed);
    let end = rig.thread.port_status(1).unwrap().last_end.unwrap();
    assert!(end.starts_with("A message was not completed"), "{end}");
    assert!(is_answered(&mut idle), "silence between messages is no offence");
    assert!(is_answered(&mut RawPeer::connect(&path).unwrap()));
}

#[test]
fn a_peer_that_never_reads_its_replies_is_cut_off_and_delays_nobody() {
    let rig = Rig::with(impatient(), 1);
    let path = path_of(rig.dir.path(), 1);
    rig.thread.add_port(1, &path, LISTEN, rig.book.device()).unwrap();
    let mut other = rig.peer();
    let mut deaf = UnixStream::connect(&path).unwrap();
    deaf.set_write_timeout(Some(LONG)).unwrap();
    let asks = RawMessage::new(FrontendReq::GET_FEATURES).to_bytes().repeat(1000);
    // Until the connection is cut off: the write fails then.
    while deaf.write_all(&asks).is_ok() {
        assert!(is_answered(&mut other));
    }
    wait_until("the end", || rig.thread.port_status(1).is_some_and(|s| !s.connected));
    let end = rig.thread.port_status(1).unwrap().last_end.unwrap();
    assert!(end.contains("a reply not read"), "{end}");
    assert!(is_answered(&mut other));
}

#[test]
fn a_second_front_end_is_refused_and_the_first_keeps_its_port() {
    let rig = Rig::with(impatient(), 1);
    let mut first = rig.peer();
    assert!(is_answered(&mut first));
    let mut others = [rig.peer(), rig.peer(), rig.peer()];
    for other in &mut others {
        assert_eq!(other.recv(LONG).unwrap(), Answer::Closed);
    }
    assert_eq!(rig.thread.port_status(0).unwrap().connections_refused, 3);
    assert!(is_answered(&mut first));
}

#[test]
fn a_front_end_that_comes_before_its_predecessor_is_gone_is_served_once_it_is() {
    let rig = Rig::new();
    let mut first = rig.peer();
    assert!(is_answered(&mut first));
    let mut second = rig.peer();
    // Its question waits with it.
    second.send(&RawMessage::new(FrontendReq::GET_FEATURES), &[]).unwrap();
    drop(first);
    assert!(matches!(second.recv(LONG).unwrap(), Answer::Message(_)));
    let status = rig.thread.port_status(0).unwrap();
    assert_eq!((status.connections, status.connections_refused), (2, 0));
    assert!(status.connected);
}

#[test]
fn connections_that_come_and_go_by_the_hundred_leave_nothing_behind() {
    let rig = Rig::new();
    assert!(is_answered(&mut rig.peer()));
    for _ in 0..500 {
        drop(rig.peer());
    }
    assert!(is_answered(&mut rig.peer()));
    wait_until("the end", || rig.thread.port_status(0).is_some_and(|s| !s.connected));
    assert_eq!(rig.thread.port_status(0).unwrap().connections_refused, 0);
    rig.book.assert_clean();
}

#[test]
fn a_removed_port_is_gone_when_the_call_returns() {
    let rig = Rig::new();
    let mut peer = rig.peer();
    assert!(is_answered(&mut peer));
    assert!(rig.thread.remove_port(0));
    assert!(!rig.path().exists());
    assert_eq!(peer.recv(LONG).unwrap(), Answer::Closed);
    assert!(rig.book.take().contains(&Note::Link(LinkEvent::Waiting)));
    assert!(!rig.thread.remove_port(0));
    assert_eq!(rig.thread.port_status(0), None);
    rig.thread.add_port(0, &rig.path(), LISTEN, rig.book.device()).unwrap();
    assert!(is_answered(&mut rig.peer()));
}

#[test]
fn a_port_that_cannot_be_added_is_refused_and_changes_nothing() {
    let rig = Rig::new();
    let add = |id, path: &std::path::Path, mode| {
        rig.thread.add_port(id, path, mode, rig.book.device()).unwrap_err()
    };
    let elsewhere = path_of(rig.dir.path(), 1);
    assert!(matches!(add(0, &elsewhere, LISTEN), PortSocketError::IdInUse { id: 0 }));
    assert!(!elsewhere.exists());
    assert!(matches!(add(1, &rig.path(), LISTEN), PortSocketError::InUse { .. }));
    rig.thread.add_port(2, &elsewhere, SocketMode::Connect, rig.book.device()).unwrap();
    let taken = add(3, &elsewhere, SocketMode::Connect);
    assert!(matches!(taken, PortSocketError::PathInUse { id: 2, .. }));
    let nowhere = rig.dir.path().join("no/such/dir");
    assert!(matches!(add(4, &nowhere, LISTEN), PortSocketError::Io { .. }));
    assert!(is_answered(&mut rig.peer()));
}

#[test]
fn a_socket_that_appears_late_in_a_directory_that_appears_late_is_found() {
    let thread = VhostThread::spawn(VhostConfig::default()).unwrap();
    let (dir, book) = (tempfile::tempdir().unwrap(), Book::default());
    let path = dir.path().join("pod/vmm");
    thread.add_port(0, &path, SocketMode::Connect, book.device()).unwrap();
    std::fs::create_dir(path.parent().unwrap()).unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    let (stream, _) = listener.accept().unwrap();
    assert!(is_answered(&mut RawPeer::over(stream).unwrap()));
}

#[test]
fn a_vmm_that_hangs_up_at_once_is_tried_again_with_growing_pauses() {
    let thread = VhostThread::spawn(VhostConfig::default()).unwrap();
    let (dir, book) = (tempfile::tempdir().unwrap(), Book::default());
    let path = dir.path().join("vmm");
    let listener = UnixListener::bind(&path).unwrap();
    thread.add_port(0, &path, SocketMode::Connect, book.device()).unwrap();
    for _ in 0..6 {
        drop(listener.accept().unwrap());
    }
    let (stream, _) = listener.accept().unwrap();
    assert!(is_answered(&mut RawPeer::over(stream).unwrap()));
    book.assert_clean();
}

#[test]
fn periodic_tasks_run_again_and_again_and_woken_tasks_when_woken() {
    let thread = VhostThread::spawn(VhostConfig::default()).unwrap();
    let (periodic, woken) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let count = |counter: &Arc<AtomicU32>| {
        let counter = Arc::clone(counter);
        move || {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    };
    thread.add_task(Duration::from_millis(1), count(&periodic)).unwrap();
    wait_until("five runs", || periodic.load(Ordering::Relaxed) >= 5);
    let waker = thread.add_wake_task(count(&woken)).unwrap();
    for wakes in 1..=50 {
        waker.wake();
        wait_until("a run", || woken.load(Ordering::Relaxed) == wakes);
    }
    assert_eq!(thread.call(|| 6 * 7), Ok(42));
}

/// No wake-up is lost, however they meet the runs.
#[test]
fn a_task_sees_what_was_written_before_it_was_woken() {
    let thread = VhostThread::spawn(VhostConfig::default()).unwrap();
    let (written, seen) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (from, to) = (Arc::clone(&written), Arc::clone(&seen));
    let copy = move || to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
    let waker = thread.add_wake_task(copy).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10_000 {
                    written.fetch_add(1, Ordering::Relaxed);
                    waker.wake();
                }
            });
        }
    });
    wait_until("the last value", || seen.load(Ordering::Relaxed) == 40_000);
}

#[test]
fn the_thread_has_its_name_and_runs_on_the_cores_it_was_given() {
    let cores = VhostConfig { cores: vec![0], ..VhostConfig::default() };
    let thread = VhostThread::spawn(cores).unwrap();
    let status =
        thread.call(|| std::fs::read_to_string("/proc/thread-self/status").unwrap()).unwrap();
    let value = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map(|rest| rest.trim_start_matches(':').trim().to_owned())
    };
    assert_eq!(value("Name").as_deref(), Some("slipway-vhost"));
    assert_eq!(value("Cpus_allowed_list").as_deref(), Some("0"));
    let absent = VhostConfig { cores: vec![100_000], ..VhostConfig::default() };
    assert!(VhostThread::spawn(absent).is_err());
}

#[test]
fn after_shutdown_sockets_are_gone_and_calls_say_so() {
    let rig = Rig::new();
    let mut peer = rig.peer();
    assert!(is_answered(&mut peer));
    rig.thread.shutdown();
    rig.thread.shutdown();
    assert!(!rig.path().exists());
    assert_eq!(peer.recv(LONG).unwrap(), Answer::Closed);
    assert_eq!(rig.thread.call(|| ()), Err(Stopped));
    let late = rig.thread.add_port(9, &rig.path(), LISTEN, rig.book.device());
    assert!(matches!(late, Err(PortSocketError::Stopped)));
    assert!(!rig.path().exists());
}
