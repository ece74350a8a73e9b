//! A switch that only takes notes: what the vhost-user tests put behind their sockets.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use dataplane::testing::features;
use dataplane::testing::raw::{Answer, NEED_REPLY, RawMessage, RawPeer, VERSION};
use dataplane::vhost::device::{Device, LinkEvent, RingError, RingSetup};
use dataplane::vhost::eventfd::EventFd;
use dataplane::vhost::mem::GuestMap;
use dataplane::vhost::socket::{SocketMode, VhostConfig, VhostThread};
use vhost::vhost_user::message::FrontendReq;

/// How long anything may take before a test fails.
pub const LONG: Duration = Duration::from_secs(20);

/// How far the fake device gets with a ring between start and stop.
pub const ADVANCE: u32 = 5;

pub const LISTEN: SocketMode = SocketMode::Listen { permissions: 0o600, group: None };

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    Start { index: u16, base: u32, enabled: bool, features: u64, regions: usize },
    Stop { index: u16 },
    Enable { index: u16, on: bool },
    Call { index: u16, given: bool },
    Link(LinkEvent),
}

#[derive(Debug, Default)]
struct Notes {
    notes: Vec<Note>,
    /// Rings that run now: index, base, and the map, which must stay mapped until the stop.
    running: Vec<(u16, u32, Arc<GuestMap>)>,
    /// What no control thread may do.
    violations: Vec<String>,
    refuse: Option<String>,
}

/// What the fake device wrote down; the test's end of it.
#[derive(Debug, Clone, Default)]
pub struct Book(Arc<(Mutex<Notes>, Condvar)>);

impl Book {
    pub fn device(&self) -> Box<dyn Device> {
        self.device_with_pairs(1)
    }

    pub fn device_with_pairs(&self, pairs: u16) -> Box<dyn Device> {
        Box::new(FakeDevice { book: self.clone(), pairs })
    }

    /// From now on `start_ring` fails with this reason, if any.
    pub fn refuse_rings(&self, reason: Option<&str>) {
        self.change(|notes| notes.refuse = reason.map(str::to_owned));
    }

    /// What was noted since the last call.
    pub fn take(&self) -> Vec<Note> {
        self.change(|notes| std::mem::take(&mut notes.notes))
    }

    /// Indexes of the rings that run.
    pub fn running(&self) -> Vec<u16> {
        let mut running: Vec<_> =
            self.change(|notes| notes.running.iter().map(|ring| ring.0).collect());
        running.sort_unstable();
        running
    }

    pub fn map_of(&self, index: u16) -> Arc<GuestMap> {
        let find = |notes: &mut Notes| {
            notes.running.iter().find(|ring| ring.0 == index).map(|ring| Arc::clone(&ring.2))
        };
        self.change(find).expect("the ring runs")
    }

    /// Fails if the control thread did what it must not.
    pub fn assert_clean(&self) {
        assert_eq!(self.change(|notes| notes.violations.clone()), Vec::<String>::new());
    }

    /// Waits for a note.
    pub fn wait_for(&self, what: &str, mut found: impl FnMut(&Note) -> bool) {
        let (notes, changed) = &*self.0;
        let guard = notes.lock().unwrap();
        let missing = |notes: &mut Notes| !notes.notes.iter().any(&mut found);
        let (guard, outcome) = changed.wait_timeout_while(guard, LONG, missing).unwrap();
        assert!(!outcome.timed_out(), "no {what} among {:?}", guard.notes);
    }

    pub fn wait_for_link(&self, link: &LinkEvent) {
        self.wait_for("link event", |note| matches!(note, Note::Link(event) if event == link));
    }

    fn change<R>(&self, f: impl FnOnce(&mut Notes) -> R) -> R {
        let (notes, changed) = &*self.0;
        let outcome = f(&mut notes.lock().unwrap());
        changed.notify_all();
        outcome
    }
}

struct FakeDevice {
    book: Book,
    pairs: u16,
}

impl Device for FakeDevice {
    fn features(&self) -> u64 {
        features::PLAIN
    }

    fn queue_pairs(&self) -> u16 {
        self.pairs
    }

    fn start_ring(&mut self, setup: RingSetup, map: Arc<GuestMap>) -> Result<(), RingError> {
        let RingSetup { index, base, enabled, features, size, .. } = setup;
        self.book.change(|notes| {
            if notes.running.iter().any(|ring| ring.0 == index) {
                notes.violations.push(format!("ring {index} was started twice"));
            }
            if features & features::VERSION_1 == 0 || !size.is_power_of_two() {
                notes.violations.push(format!("ring {index} was started incomplete"));
            }
            let parts = [
                (setup.desc, 16 * u32::from(size)),
                (setup.avail, 6 + 2 * u32::from(size)),
                (setup.used, 6 + 8 * u32::from(size)),
            ];
            if parts.iter().any(|&(addr, len)| map.slice_by_vmm_addr(addr, len).is_none()) {
                notes.violations.push(format!("ring {index} was started outside memory"));
            }
            if let Some(reason) = &notes.refuse {
                return Err(RingError(reason.clone()));
            }
            let regions = map.region_count();
            notes.notes.push(Note::Start { index, base, enabled, features, regions });
            notes.running.push((index, base, map));
            Ok(())
        })
    }

    fn stop_ring(&mut self, index: u16) -> Option<u32> {
        self.book.change(|notes| {
            let at = notes.running.iter().position(|ring| ring.0 == index);
            let Some(at) = at else {
                notes.violations.push(format!("ring {index} was stopped but did not run"));
                return None;
            };
            let (_, base, map) = notes.running.remove(at);
            // Still mapped, still readable: as a PMD would find it before it lets go.
            if let Some(byte) = map.slice(0, 1) {
                byte.read(&mut [0]);
            }
            notes.notes.push(Note::Stop { index });
            Some(base.wrapping_add(ADVANCE))
        })
    }

    fn set_ring_enabled(&mut self, index: u16, on: bool) {
        self.book.change(|notes| notes.notes.push(Note::Enable { index, on }));
    }

    fn set_call(&mut self, index: u16, call: Option<EventFd>) {
        let given = call.is_some();
        self.book.change(|notes| notes.notes.push(Note::Call { index, given }));
    }

    fn link(&mut self, event: LinkEvent) {
        self.book.change(|notes| notes.notes.push(Note::Link(event)));
    }
}

impl Drop for FakeDevice {
    fn drop(&mut self) {
        self.book.change(|notes| {
            if !notes.running.is_empty() {
                notes.violations.push("the device was dropped while rings ran".into());
            }
        });
    }
}

/// One control thread, one listening port with a fake device, in a directory of its own.
pub struct Rig {
    pub thread: VhostThread,
    pub book: Book,
    pub dir: tempfile::TempDir,
}

impl Rig {
    pub fn new() -> Self {
        Self::with(VhostConfig { message_deadline: LONG, ..VhostConfig::default() }, 1)
    }

    pub fn with(config: VhostConfig, pairs: u16) -> Self {
        let rig = Self {
            thread: VhostThread::spawn(config).unwrap(),
            book: Book::default(),
            dir: tempfile::tempdir().unwrap(),
        };
        let device = rig.book.device_with_pairs(pairs);
        rig.thread.add_port(0, &rig.path(), LISTEN, device).unwrap();
        rig
    }

    pub fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("port0")
    }

    pub fn peer(&self) -> RawPeer {
        RawPeer::connect(&self.path()).unwrap()
    }
}

/// A question every connected back end answers.
pub fn is_answered(peer: &mut RawPeer) -> bool {
    let answer = peer.ask(&RawMessage::new(FrontendReq::GET_FEATURES), LONG);
    matches!(answer, Ok(Answer::Message(reply)) if reply.as_u64() == Some(features::PLAIN))
}

/// Sends a request that wants an acknowledgement; whether it was granted.
pub fn is_granted(peer: &mut RawPeer, message: RawMessage) -> bool {
    match peer.ask(&message.flags(VERSION | NEED_REPLY), LONG).unwrap() {
        Answer::Message(reply) => reply.as_u64() == Some(0),
        other => panic!("no acknowledgement but {other:?}"),
    }
}

/// Features and protocol features, so that requests are acknowledged from here on.
pub fn negotiate(peer: &mut RawPeer) {
    let protocol = RawMessage::new(FrontendReq::SET_PROTOCOL_FEATURES).u64(0x8009);
    assert!(is_granted(peer, protocol));
    assert!(is_granted(peer, RawMessage::new(FrontendReq::SET_FEATURES).u64(features::PLAIN)));
}

/// A line of /proc/self/status that counts, such as "Threads" or "VmRSS" (KiB).
pub fn status_of_process(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// File descriptors that this process has open.
pub fn open_files() -> usize {
    // One of them is the directory being read.
    std::fs::read_dir("/proc/self/fd").unwrap().count() - 1
}

/// Waits until `done`, which something else brings about.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..20_000 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("{what} did not come about");
}

/// The path of port `n` in `dir`.
pub fn path_of(dir: &Path, n: u32) -> std::path::PathBuf {
    dir.join(format!("port{n}"))
}
