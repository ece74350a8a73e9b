//! What ports cost, connected or idle: threads, descriptors, memory, and processor time.
//!
//! All of it is read from /proc/self, so these tests run one after the other, and nothing else in
//! this process.

mod rig;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dataplane::control::Control;
use dataplane::testing::GuestConfig;
use dataplane::testing::frames::{Ledger, payload_range};
use rig::{Rig, Station, TIMEOUT, eventually, mac, open_fds, stamped};
use slipway_api::{LinkState, Pmd, PortSpec};

const PORTS: u32 = 400;
/// Listener, connection, memory region, and for each of two rings kick and call.
const FDS_PER_PORT: usize = 7;
/// The thread of the first PMD.
const PMD: &str = "slipway-pmd0";
const BYTES_PER_PORT: usize = 64 << 10;

/// The tests here judge the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A guest of little memory, whose receive ring still holds a frame of some others.
fn small() -> GuestConfig {
    GuestConfig::default().ring_size(16).spare_bytes(0)
}

/// Names of this process's threads that the switch started.
fn switch_threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let name = |task: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(task.ok()?.path().join("comm")).ok()
    };
    let mut names: Vec<_> = tasks.filter_map(name).map(|name| name.trim().to_owned()).collect();
    names.retain(|name| name.starts_with("slipway-"));
    names.sort();
    names
}

/// Private memory of this process in bytes: resident without what is shared.
///
/// The guests of these tests live in this process, too. Their memory is shared (memfd), so it is
/// not in this number, wherever it is touched; their bookkeeping is private and small, and counts
/// against the switch: what is measured is more than what is meant, never less.
fn private_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: Vec<usize> = statm.split(' ').filter_map(|field| field.parse().ok()).collect();
    (pages[1] - pages[2]) * 4096
}

/// The state of the thread of that name (`S`: it sleeps), and the processor time it has used, in
/// clock ticks of the kernel (proc(5)).
fn state_of(thread: &str) -> (String, u64) {
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap().path();
        if std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == thread) {
            let stat = std::fs::read_to_string(task.join("stat")).unwrap();
            // Behind the name, which may hold anything: state is field 3, utime 14, stime 15.
            let (_, fields) = stat.rsplit_once(") ").unwrap();
            let fields: Vec<_> = fields.split(' ').collect();
            let ticks = |at: usize| fields[at].parse::<u64>().unwrap();
            return (fields[0].to_owned(), ticks(11) + ticks(12));
        }
    }
    panic!("no thread {thread}")
}

/// Every station sends a frame to the one `stride` further on, which receives it.
fn all_send(stations: &mut [Station], stride: usize, ledgers: &mut [Ledger]) {
    let count = stations.len();
    for from in 0..count {
        let to = stations[(from + stride) % count].mac;
        let station = &mut stations[from];
        let frame = stamped(station.mac, to, from as u32, stride as u64 - 1, 16 + stride);
        station.guest.send(&frame).unwrap();
    }
    for at in 0..count {
        let received = stations[at].guest.recv(TIMEOUT).unwrap();
        let (_, frame) = received.expect("a frame for each");
        let stamp = ledgers[at].enter(&frame[payload_range(&frame).unwrap()]).unwrap();
        let from = (at + count - stride) % count;
        assert_eq!((stamp.flow, stamp.sequence), (from as u32, stride as u64 - 1));
        stations[at].expect_nothing();
    }
}

#[test]
fn four_hundred_ports_reach_each_other_with_the_threads_of_one_and_leave_nothing_behind() {
    let _alone = alone();
    let rig = Rig::with_pmds(2);
    // Whatever is made at the first use is there before anything is measured.
    let mut first = [PORTS + 1, PORTS + 2].map(|n| rig.station(n, 1, small()));
    let [a, b] = &mut first;
    a.talk(b);
    let threads = switch_threads();
    assert_eq!(threads, ["slipway-pmd0", "slipway-pmd1", "slipway-vhost", "slipway-watch"]);
    let (fds, bytes) = (open_fds(), private_bytes());

    let mut stations: Vec<_> = (1..=PORTS).map(|n| rig.station(n, 1, small())).collect();
    let grown = private_bytes().saturating_sub(bytes) / PORTS as usize;
    println!("{grown} bytes of private memory a port, its guest's bookkeeping included");
    assert!(grown <= BYTES_PER_PORT, "{grown} bytes a port");
    assert_eq!(switch_threads(), threads);

    let mut ledgers: Vec<_> = (0..PORTS).map(|_| Ledger::default()).collect();
    for stride in 1..PORTS as usize {
        all_send(&mut stations, stride, &mut ledgers);
    }
    assert!(ledgers.iter().all(|ledger| ledger.total().received == u64::from(PORTS) - 1));
    assert_eq!(switch_threads(), threads);
    rig.assert_conserved_unicast();
    let rings: Vec<_> = rig.switch.pmds().pmds.iter().map(|pmd| pmd.rings.len()).collect();
    assert_eq!(rings, [201, 201], "spread evenly");

    // What the deletion closes is the switch's; what is left are the guests'.
    let used = open_fds();
    for station in &stations {
        rig.switch.delete_port(&station.port).unwrap();
    }
    let closed = used - open_fds();
    println!("{} descriptors a port", closed as f64 / f64::from(PORTS));
    assert!(closed <= FDS_PER_PORT * PORTS as usize, "{closed} descriptors of the switch");
    drop(stations);
    eventually("as many descriptors as before", || open_fds() == fds);
    let [a, b] = &mut first;
    a.talk(b);
}

#[test]
fn ports_that_nobody_connects_to_cost_a_socket_and_little_memory() {
    let _alone = alone();
    let rig = Rig::start();
    rig.port(PortSpec::named("first"));
    let (fds, bytes) = (open_fds(), private_bytes());
    for n in 0..PORTS {
        let spec = PortSpec { queue_pairs: 8, vni: n % 7, ..PortSpec::named(format!("p{n}")) };
        rig.port(PortSpec { mac: Some(slipway_api::Mac(mac(n))), ..spec });
    }
    let grown = private_bytes().saturating_sub(bytes) / PORTS as usize;
    println!("{grown} bytes of private memory a port of 8 queue pairs");
    assert!(grown <= BYTES_PER_PORT, "{grown} bytes a port");
    assert_eq!(open_fds() - fds, PORTS as usize, "the listener");
    assert!(rig.switch.list_ports().ports.iter().all(|port| port.link == LinkState::Waiting));
    for n in 0..PORTS {
        rig.switch.delete_port(&format!("p{n}")).unwrap();
    }
    assert_eq!(open_fds(), fds);
}

/// Waits until the PMD sleeps and has done nothing for a while; returns what it had done.
fn asleep(rig: &Rig) -> Pmd {
    let mut before = rig.pmd();
    eventually("the PMD sleeps", || {
        // A nap between two looks at its rings is shorter than this.
        let was_asleep = state_of(PMD).0 == "S";
        std::thread::sleep(Duration::from_millis(20));
        let now = rig.pmd();
        let did_nothing = std::mem::replace(&mut before, now.clone()) == now;
        was_asleep && did_nothing && state_of(PMD).0 == "S"
    });
    before
}

#[test]
fn a_pmd_whose_ports_are_idle_sleeps_and_uses_no_processor_time() {
    let _alone = alone();
    let rig = Rig::start();
    let mut stations: Vec<_> = (1..=50).map(|n| rig.station(n, 1, small())).collect();
    for round in 0..5 {
        let before = asleep(&rig);
        assert!(before.sleeps > 0);
        let ticks = state_of(PMD).1;
        // Not to wait for something, but to give it the time to do what it must not.
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(rig.pmd(), before, "it polled, woke or slept while nothing happened");
        assert_eq!(state_of(PMD).1, ticks);

        let [a, b] = stations.get_disjoint_mut([round, round + 7]).unwrap();
        a.talk(b);
        let after = asleep(&rig);
        assert!(after.sleeps > before.sleeps && after.wakeups > before.wakeups);
        assert_eq!(after.frames, before.frames + 2);
    }
    rig.assert_conserved_unicast();
}
