//! A hundred thousand messages that no VMM would send: nothing grows, nobody else notices.
//!
//! Alone in its file, as it counts what belongs to the whole process.

mod vhost_support;

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use dataplane::testing::raw::{NEED_REPLY, RawMessage, RawPeer, VERSION};
use dataplane::testing::{Guest, GuestConfig, GuestMemory, Rng, features, memory};
use dataplane::vhost::device::LinkEvent;
use dataplane::vhost::eventfd::EventFd;
use dataplane::vhost::socket::{VhostConfig, VhostThread};
use vhost::vhost_user::message::FrontendReq;
use vhost_support::*;

const MESSAGES: u32 = 100_000;
const PORTS: u32 = 4;

/// What a hostile front end has at hand to pass.
struct Arsenal {
    memory: GuestMemory,
    files: Vec<OwnedFd>,
}

impl Arsenal {
    fn new() -> Self {
        let spec = memory::RegionSpec { gpa: 0, len: 1 << 16 };
        let memory = GuestMemory::new(&[spec], memory::Backing::default()).unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let event = EventFd::new().unwrap().as_fd().try_clone_to_owned().unwrap();
        let null = File::open("/dev/null").unwrap().into();
        let memfd = memory.regions()[0].file().try_clone().unwrap().into();
        Self { memory, files: vec![event, memfd, null, reader.into(), writer.into()] }
    }

    fn some_files(&self, rng: &mut Rng, count: usize) -> Vec<BorrowedFd<'_>> {
        (0..count).map(|_| rng.pick(&self.files).as_fd()).collect()
    }

    /// A message of a known kind, with values that make sense now and then. A wild one need not
    /// even be a message.
    fn message<'a>(&'a self, rng: &mut Rng, wild: bool) -> (RawMessage, Vec<BorrowedFd<'a>>) {
        let region = &self.memory.regions()[0];
        let words = RawMessage::words_of(region);
        let index = *rng.pick(if wild { &[0, 1, 255, 256, u32::MAX] } else { &[0, 1, 0, 1, 2] });
        let value = *rng.pick(&[0, 1, 64, 64, 64, 3, 32768, 65536, u32::MAX]);
        let at = region.user_addr() + rng.below(if wild { 20 } else { 12 }) * 4096;
        let state = |request| RawMessage::vring_state(request, index, value);
        let (event, memfd) = (self.files[0].as_fd(), self.files[1].as_fd());
        let file_of = |request| RawMessage::new(request).u64(u64::from(index & 0x1ff));
        use FrontendReq as Q;
        // What takes a ring down comes seldom, or none would ever run.
        let kind = match rng.below(20) {
            10 | 18 if rng.chance(7, 8) => 8,
            kind => kind,
        };
        let (message, mut files) = match kind {
            0 => (RawMessage::new(Q::SET_FEATURES).u64(features::PLAIN), vec![]),
            1 => (RawMessage::new(Q::SET_FEATURES).u64(rng.next_u64()), vec![]),
            2 => (RawMessage::new(Q::SET_PROTOCOL_FEATURES).u64(0x8009), vec![]),
            3 => (RawMessage::mem_table(&[words]), vec![memfd]),
            4 => (RawMessage::mem_region(Q::ADD_MEM_REG, words), vec![memfd]),
            5 => (RawMessage::mem_region(Q::REM_MEM_REG, words), vec![]),
            6 => (RawMessage::mem_table(&[[rng.next_u64(); 4], words]), vec![memfd, event]),
            7 => (state(Q::SET_VRING_NUM), vec![]),
            8 => (state(Q::SET_VRING_BASE), vec![]),
            9 if wild => (state(Q::SET_VRING_ENABLE), vec![]),
            9 => (RawMessage::vring_state(Q::SET_VRING_ENABLE, index, value & 1), vec![]),
            10 => (state(Q::GET_VRING_BASE), vec![]),
            11 | 12 => (RawMessage::vring_addr(index, at, at + 0x2000, at + 0x1000), vec![]),
            13 | 14 => (file_of(Q::SET_VRING_KICK), vec![event]),
            15 => (file_of(Q::SET_VRING_CALL), vec![event]),
            16 => (file_of(Q::SET_VRING_ERR), self.some_files(rng, 1)),
            17 => (RawMessage::new(Q::RESET_OWNER), vec![]),
            18 => (RawMessage::new(Q::RESET_DEVICE), vec![]),
            _ if !wild => (RawMessage::vring_state(Q::SET_VRING_NUM, index, 64), vec![]),
            _ => {
                let request = rng.below(50) as u32;
                let mut body = vec![0; rng.range(0..100)];
                rng.fill(&mut body);
                (RawMessage { request, ..RawMessage::new(Q::GET_FEATURES) }.bytes(&body), vec![])
            }
        };
        let mut message =
            if rng.chance(1, 3) { message.flags(VERSION | NEED_REPLY) } else { message };
        if wild && rng.chance(1, 10) {
            let count = rng.range(0..41);
            files = self.some_files(rng, count);
        }
        if wild && rng.chance(1, 20) {
            message = message.flags(rng.next_u64() as u32);
        }
        if wild && rng.chance(1, 20) {
            let size = *rng.pick(&[0, 1, 7, 8, 40, 4096, 4097, u32::MAX]);
            message = message.claiming(size);
        }
        (message, files)
    }
}

#[test]
fn a_hundred_thousand_hostile_messages_leave_nothing_behind_and_reach_nobody_else() {
    let open_before = open_files();
    let config = VhostConfig { message_deadline: LONG, ..VhostConfig::default() };
    let thread = VhostThread::spawn(config).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let books: Vec<_> = (0..PORTS).map(|_| Book::default()).collect();
    for (id, book) in (0..).zip(&books) {
        thread.add_port(id, &path_of(dir.path(), id), LISTEN, book.device()).unwrap();
    }
    let arsenal = Arsenal::new();
    let mut rng = Rng::seeded(2);
    // Not one of the hostile ports: it runs through it all.
    let bystander_book = Book::default();
    let bystander_path = path_of(dir.path(), 99);
    thread.add_port(99, &bystander_path, LISTEN, bystander_book.device()).unwrap();
    let mut bystander = Guest::connect(&bystander_path, GuestConfig::default()).unwrap();
    bystander_book.take();

    let mut before = None;
    let mut sent = 0;
    let mut starts = 0;
    while sent < MESSAGES {
        let path = path_of(dir.path(), rng.below(u64::from(PORTS)) as u32);
        let mut peer = RawPeer::connect(&path).unwrap();
        let wild = rng.chance(1, 2);
        for _ in 0..rng.range(1..if wild { 40 } else { 400 }) {
            let (message, files) = arsenal.message(&mut rng, wild);
            let bytes = message.to_bytes();
            let cut = if rng.chance(1, 200) { rng.range(0..bytes.len()) } else { bytes.len() };
            // The back end may have hung up: that is its right.
            if peer.send_bytes(&bytes[..cut], &files).is_err() {
                break;
            }
            sent += 1;
            // Some replies are read, so that not every connection ends for want of room.
            if sent % 50 == 0 {
                let _ = peer.recv(std::time::Duration::from_millis(1));
            }
        }
        drop(peer);
        bystander.sync().unwrap();
        for book in &books {
            starts += book.take().iter().filter(|n| matches!(n, Note::Start { .. })).count();
        }
        // The first tenth fills what is kept for reuse.
        if sent > MESSAGES / 10 && before.is_none() {
            before = Some((status_of_process("VmRSS"), status_of_process("Threads")));
        }
    }
    let (rss, threads) = before.unwrap();
    let idle = |id| thread.port_status(id).is_some_and(|status| !status.connected);
    wait_until("the end of all", || (0..PORTS).all(idle));
    books.iter().for_each(Book::assert_clean);
    assert!(starts > 100, "only {starts} rings were started: too tame to mean much");
    assert_eq!(status_of_process("Threads"), threads);
    let grown = status_of_process("VmRSS").saturating_sub(rss);
    assert!(grown < 4096, "memory has grown by {grown} KiB");

    assert_eq!(bystander_book.take(), []);
    assert_eq!(bystander_book.running(), [0, 1]);
    drop(bystander);
    bystander_book.wait_for_link(&LinkEvent::Waiting);
    for (id, book) in (0..).zip(&books) {
        let guest = Guest::connect(&path_of(dir.path(), id), GuestConfig::default()).unwrap();
        assert_eq!(book.running(), [0, 1]);
        drop(guest);
        wait_until("its end", || idle(id));
    }
    drop((thread, arsenal));
    assert_eq!(open_files(), open_before);
}
