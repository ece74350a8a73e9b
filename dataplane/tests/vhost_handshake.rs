//! What a front end may ask for: negotiation, rings, memory, restart.

mod vhost_support;

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};

use dataplane::testing::raw::{Answer, NEED_REPLY, RawMessage, VERSION};
use dataplane::testing::{Guest, GuestConfig, GuestListener, GuestMemory, features, memory};
use dataplane::vhost::device::LinkEvent;
use dataplane::vhost::socket::{SocketMode, VhostConfig, VhostThread};
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::FrontendReq;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use vhost_support::*;

fn guest(rig: &Rig, config: GuestConfig) -> Guest {
    Guest::connect(&rig.path(), config).unwrap()
}

fn up() -> LinkEvent {
    LinkEvent::Up { features: features::PLAIN, protocol: 0x8009 }
}

fn start(index: u16, base: u32, regions: usize) -> Note {
    Note::Start { index, base, enabled: true, features: features::PLAIN, regions }
}

#[test]
fn a_front_end_brings_its_rings_up_and_the_link_with_them() {
    let rig = Rig::new();
    let mut guest = guest(&rig, GuestConfig::default().first_index(7));
    assert_eq!(guest.offered(), features::PLAIN);
    assert_eq!(guest.session().unwrap().get_queue_num().unwrap(), 2);
    assert!(guest.session().unwrap().get_max_mem_slots().unwrap() >= 32);
    assert_eq!(rig.book.running(), [0, 1]);
    let notes = rig.book.take();
    let links: Vec<_> = notes.iter().filter(|note| matches!(note, Note::Link(_))).collect();
    assert_eq!(links, [&Note::Link(LinkEvent::Negotiating), &Note::Link(up())]);
    for index in [0, 1] {
        let Some(Note::Start { base, regions, .. }) =
            notes.iter().find(|note| matches!(note, Note::Start { index: i, .. } if *i == index))
        else {
            panic!("ring {index} was not started");
        };
        assert_eq!((*base, *regions), (7, 1));
        assert!(notes.contains(&Note::Enable { index, on: true }));
        assert!(notes.contains(&Note::Call { index, given: true }));
    }
    drop(guest);
    rig.book.wait_for_link(&LinkEvent::Waiting);
    assert!(rig.book.running().is_empty());
    rig.book.assert_clean();
}

#[test]
fn a_front_end_that_listens_is_found_and_found_again_after_its_restart() {
    let thread = VhostThread::spawn(VhostConfig::default()).unwrap();
    let (dir, book) = (tempfile::tempdir().unwrap(), Book::default());
    let path = dir.path().join("vmm");
    thread.add_port(3, &path, SocketMode::Connect, book.device()).unwrap();
    for _ in 0..3 {
        let listener = GuestListener::bind(&path).unwrap();
        let guest = listener.accept(GuestConfig::default(), LONG).unwrap();
        assert_eq!(book.running(), [0, 1]);
        std::fs::remove_file(&path).unwrap();
        drop((guest, listener));
        book.wait_for_link(&LinkEvent::Waiting);
        assert!(matches!(book.take()[..], [Note::Link(LinkEvent::Negotiating), ..]));
    }
    assert_eq!(thread.port_status(3).unwrap().connections, 3);
    book.assert_clean();
}

#[test]
fn a_front_end_may_reconnect_at_once_and_goes_on_where_it_was() {
    let rig = Rig::new();
    let mut guest = guest(&rig, GuestConfig::default());
    for _ in 0..20 {
        guest.reconnect(&rig.path()).unwrap();
        assert_eq!(rig.book.running(), [0, 1]);
    }
    assert_eq!(rig.thread.port_status(0).unwrap().connections_refused, 0);
    rig.book.assert_clean();
}

#[test]
fn all_rings_of_several_queue_pairs_are_started_once() {
    let rig = Rig::with(VhostConfig::default(), 4);
    let guest = guest(&rig, GuestConfig::default().queue_pairs(4));
    assert_eq!(rig.book.running(), [0, 1, 2, 3, 4, 5, 6, 7]);
    let starts = rig.book.take().iter().filter(|n| matches!(n, Note::Start { .. })).count();
    assert_eq!(starts, 8);
    drop(guest);
    rig.book.wait_for_link(&LinkEvent::Waiting);
    rig.book.assert_clean();
}

#[test]
fn a_stopped_ring_says_where_it_stands_and_starts_from_where_it_is_told() {
    let rig = Rig::new();
    let mut guest = guest(&rig, GuestConfig::default());
    let bases = guest.stop().unwrap();
    assert_eq!(bases, [ADVANCE as u16; 2]);
    assert!(rig.book.running().is_empty());
    rig.book.take();
    let again = guest.session().unwrap().get_vring_base(1).unwrap();
    assert_eq!(again, ADVANCE, "a ring that stands still still says where");
    guest.resume(&bases).unwrap();
    assert_eq!(rig.book.running(), [0, 1]);
    guest.reboot(features::PLAIN).unwrap();
    assert_eq!(rig.book.running(), [0, 1]);
    rig.book.assert_clean();
}

#[test]
fn a_guest_without_protocol_features_has_its_rings_enabled_from_the_start() {
    let rig = Rig::new();
    let config = GuestConfig::default().without(features::PROTOCOL).reply_ack(false);
    let _guest = guest(&rig, config);
    let chosen = features::PLAIN & !features::PROTOCOL;
    for index in [0, 1] {
        rig.book.wait_for("enabled ring", |note| {
            matches!(note, Note::Start { index: i, enabled: true, features, .. }
                if *i == index && *features == chosen)
        });
    }
    rig.book.assert_clean();
}

#[test]
fn memory_added_or_removed_moves_every_running_ring_to_the_new_map() {
    let rig = Rig::new();
    let mut guest = guest(&rig, GuestConfig::default());
    rig.book.take();
    let spec = memory::RegionSpec { gpa: 1 << 40, len: 1 << 20 };
    let added = guest.hot_add(spec).unwrap();
    let (one, two) = (ADVANCE, 2 * ADVANCE);
    let moved = |base, regions| {
        let stops = [Note::Stop { index: 0 }, Note::Stop { index: 1 }];
        [&stops[..], &[start(0, base, regions), start(1, base, regions)]].concat()
    };
    assert_eq!(rig.book.take(), moved(one, 2));
    assert!(rig.book.map_of(0).slice(1 << 40, 1 << 20).is_some());
    guest.hot_remove(added).unwrap();
    assert_eq!(rig.book.take(), moved(two, 1));
    assert!(rig.book.map_of(0).slice(1 << 40, 1).is_none());
    rig.book.assert_clean();
}

#[test]
fn rings_whose_memory_is_gone_wait_for_it_and_go_on() {
    let rig = Rig::new();
    let mut guest = guest(&rig, GuestConfig::default());
    let info = dataplane::testing::frontend::info(&guest.memory().regions()[0]);
    let session = guest.session().unwrap();
    session.remove_mem_region(&info).unwrap();
    assert!(rig.book.running().is_empty());
    rig.book.take();
    session.add_mem_region(&info).unwrap();
    assert_eq!(rig.book.take()[..], [start(0, ADVANCE, 1), Note::Link(up()), start(1, ADVANCE, 1)]);
    rig.book.assert_clean();
}

#[test]
fn memory_that_cannot_be_mapped_is_refused_and_the_rings_run_on() {
    let rig = Rig::new();
    let mut guest = guest(&rig, GuestConfig::default());
    rig.book.take();
    let mut info = dataplane::testing::frontend::info(&guest.memory().regions()[0]);
    let session = guest.session().unwrap();
    info.userspace_addr += 4096;
    assert!(session.add_mem_region(&info).is_err(), "it overlaps what is there");
    info.guest_phys_addr = 1 << 40;
    info.memory_size += 4096;
    assert!(session.set_mem_table(&[info]).is_err(), "it goes beyond its file");
    info.userspace_addr += 1 << 40;
    assert!(session.remove_mem_region(&info).is_err(), "it was never added");
    assert_eq!(rig.book.take(), []);
    assert_eq!(rig.book.running(), [0, 1]);
    let status = rig.thread.port_status(0).unwrap();
    assert_eq!(status.messages_refused, 3);
    assert!(status.last_refusal.unwrap().contains("No memory region"));
    assert!(status.connected);
}

#[test]
fn memory_told_once_for_each_queue_pair_is_taken_once() {
    let rig = Rig::with(VhostConfig::default(), 2);
    let mut guest = guest(&rig, GuestConfig::default().queue_pairs(2));
    let info = dataplane::testing::frontend::info(&guest.memory().regions()[0]);
    rig.book.take();
    let session = guest.session().unwrap();
    session.add_mem_region(&info).unwrap();
    assert_eq!(rig.book.take(), [], "no ring was disturbed");
    let spec = memory::RegionSpec { gpa: 0, len: info.memory_size as usize };
    let other = GuestMemory::new(&[spec], memory::Backing::default()).unwrap();
    let file = other.regions()[0].file().as_raw_fd();
    let impostor = VhostUserMemoryRegionInfo { mmap_handle: file, ..info };
    assert!(session.add_mem_region(&impostor).is_err(), "the same addresses, but another file");
    session.remove_mem_region(&info).unwrap();
    assert!(rig.book.running().is_empty());
    session.remove_mem_region(&info).unwrap();
    session.add_mem_region(&info).unwrap();
    session.add_mem_region(&info).unwrap();
    assert_eq!(rig.book.running(), [0, 1, 2, 3]);
    assert_eq!(rig.thread.port_status(0).unwrap().messages_refused, 1);
    rig.book.assert_clean();
}

#[test]
fn features_chosen_again_disturb_nothing_and_others_restart_the_rings() {
    let rig = Rig::new();
    let mut guest = guest(&rig, GuestConfig::default());
    rig.book.take();
    let session = guest.session().unwrap();
    session.set_features(features::PLAIN).unwrap();
    assert_eq!(rig.book.take(), []);
    assert!(session.set_features(features::PLAIN | 1 << 63).is_err(), "not offered");
    assert!(session.set_features(features::PROTOCOL).is_err(), "no VERSION_1");
    assert_eq!(rig.book.take(), []);
    let refusal = rig.thread.port_status(0).unwrap().last_refusal.unwrap();
    assert!(refusal.contains("VIRTIO_F_VERSION_1"), "{refusal}");
    let fewer = features::PLAIN & !features::EVENT_IDX;
    session.set_features(fewer).unwrap();
    let notes = rig.book.take();
    assert!(notes.contains(&Note::Stop { index: 0 }));
    assert!(notes.iter().any(|note| matches!(note, Note::Start { index: 1, base: ADVANCE,
        features, .. } if *features == fewer)));
    assert_eq!(rig.book.running(), [0, 1]);
    rig.book.assert_clean();
}

#[test]
fn a_ring_that_the_device_refuses_breaks_the_link_until_it_is_mended() {
    let rig = Rig::new();
    let mut guest = guest(&rig, GuestConfig::default());
    let bases = guest.stop().unwrap();
    rig.book.refuse_rings(Some("not today"));
    rig.book.take();
    assert!(guest.resume(&bases).is_err());
    let reason = "ring 0: not today".to_string();
    assert_eq!(rig.book.take(), [Note::Link(LinkEvent::Broken { reason })]);
    rig.book.refuse_rings(None);
    guest.stop().unwrap();
    guest.resume(&bases).unwrap();
    rig.book.wait_for_link(&up());
    assert_eq!(rig.book.running(), [0, 1]);
    rig.book.assert_clean();
}

#[test]
fn reset_owner_disables_the_rings_and_nothing_else() {
    let rig = Rig::new();
    let mut guest = guest(&rig, GuestConfig::default());
    rig.book.take();
    guest.session().unwrap().reset_owner().unwrap();
    let off = |index| Note::Enable { index, on: false };
    assert_eq!(rig.book.take(), [off(0), off(1)]);
    guest.set_enabled(0, true).unwrap();
    let on = |index| Note::Enable { index, on: true };
    assert_eq!(rig.book.take(), [on(0), on(1)]);
}

/// As QEMU does when the guest's driver chooses its features, before it tells the back end.
#[test]
fn a_ring_may_be_enabled_before_features_are_chosen() {
    let rig = Rig::new();
    let mut peer = rig.peer();
    let protocol = RawMessage::new(FrontendReq::SET_PROTOCOL_FEATURES).u64(0x8009);
    assert!(is_granted(&mut peer, protocol));
    let enable = RawMessage::vring_state(FrontendReq::SET_VRING_ENABLE, 0, 1);
    assert!(is_granted(&mut peer, enable));
}

#[test]
fn rings_that_do_not_exist_are_refused_without_harm() {
    let rig = Rig::new();
    let mut peer = rig.peer();
    negotiate(&mut peer);
    for request in
        [FrontendReq::SET_VRING_NUM, FrontendReq::SET_VRING_BASE, FrontendReq::SET_VRING_ENABLE]
    {
        for index in [2, 255, 65536, u32::MAX] {
            assert!(!is_granted(&mut peer, RawMessage::vring_state(request, index, 1)));
        }
    }
    assert!(!is_granted(&mut peer, RawMessage::vring_addr(2, 0, 0, 0)));
    for request in
        [FrontendReq::SET_VRING_KICK, FrontendReq::SET_VRING_CALL, FrontendReq::SET_VRING_ERR]
    {
        assert!(!is_granted(&mut peer, RawMessage::new(request).u64(0x102)));
    }
    let ask = RawMessage::vring_state(FrontendReq::GET_VRING_BASE, 77, 0);
    let Answer::Message(reply) = peer.ask(&ask, LONG).unwrap() else { panic!("no answer") };
    assert_eq!(reply.body, [77u32.to_ne_bytes(), [0; 4]].concat());
    assert!(is_answered(&mut peer));
    assert_eq!(rig.thread.port_status(0).unwrap().messages_refused, 17);
}

#[test]
fn a_kick_that_is_no_eventfd_is_refused_and_the_connection_stays() {
    let rig = Rig::new();
    let mut peer = rig.peer();
    negotiate(&mut peer);
    let null = File::open("/dev/null").unwrap();
    let kick = RawMessage::new(FrontendReq::SET_VRING_KICK).u64(0).flags(VERSION | NEED_REPLY);
    peer.send(&kick, &[null.as_fd()]).unwrap();
    let Answer::Message(reply) = peer.recv(LONG).unwrap() else { panic!("no answer") };
    assert_eq!(reply.as_u64(), Some(1));
    let refusal = rig.thread.port_status(0).unwrap().last_refusal.unwrap();
    assert!(refusal.contains("/dev/null"), "{refusal}");
    assert!(is_answered(&mut peer));
}

#[test]
fn what_was_not_offered_is_refused_by_acknowledgement_or_else_ends_the_connection() {
    let rig = Rig::new();
    let mut peer = rig.peer();
    negotiate(&mut peer);
    for code in [19, 20, 24, 31, 39, 40, 999] {
        let message = RawMessage { request: code, ..RawMessage::new(FrontendReq::GET_FEATURES) };
        assert!(!is_granted(&mut peer, message.u64(0)));
    }
    assert!(is_answered(&mut peer));
    peer.send(&RawMessage::new(FrontendReq::GET_STATUS), &[]).unwrap();
    assert_eq!(peer.recv(LONG).unwrap(), Answer::Closed);
    let end = rig.thread.port_status(0).unwrap().last_end.unwrap();
    assert_eq!(end, "GET_STATUS is not offered, and there is no way to say so");
}

#[test]
fn a_malformed_message_ends_the_connection_and_the_next_front_end_is_served() {
    let rig = Rig::new();
    let get = || RawMessage::new(FrontendReq::GET_FEATURES);
    let malformed = [
        get().flags(0),
        get().flags(VERSION | 4),
        get().flags(0x8000_0001),
        get().claiming(4097),
        get().claiming(u32::MAX),
        get().u32(0),
        RawMessage::new(FrontendReq::SET_FEATURES).u32(0),
        RawMessage::new(FrontendReq::SET_VRING_KICK).u64(0),
        RawMessage::vring_state(FrontendReq::SET_VRING_ENABLE, 0, 2),
        RawMessage::mem_table(&[[0; 4]]),
    ];
    for message in malformed {
        let mut peer = rig.peer();
        assert!(is_answered(&mut peer));
        peer.send(&message, &[]).unwrap();
        assert_eq!(peer.recv(LONG).unwrap(), Answer::Closed, "{message:?}");
    }
    assert!(is_answered(&mut rig.peer()));
}

#[test]
fn a_ring_starts_with_its_last_missing_message_whatever_the_order() {
    let rig = Rig::new();
    let spec = memory::RegionSpec { gpa: 0, len: 1 << 20 };
    let memory = GuestMemory::new(&[spec], memory::Backing::default()).unwrap();
    let region = &memory.regions()[0];
    let at = region.user_addr();
    let set_up = [
        RawMessage::new(FrontendReq::SET_FEATURES).u64(features::PLAIN),
        RawMessage::mem_table(&[RawMessage::words_of(region)]),
        RawMessage::vring_state(FrontendReq::SET_VRING_NUM, 0, 64),
        RawMessage::vring_state(FrontendReq::SET_VRING_BASE, 0, 3),
        RawMessage::vring_addr(0, at, at + 0x2000, at + 0x1000),
        RawMessage::new(FrontendReq::SET_VRING_KICK).u64(0x100),
    ];
    for first in 0..set_up.len() {
        let mut peer = rig.peer();
        for (sent, step) in (first..first + set_up.len()).enumerate() {
            let message = &set_up[step % set_up.len()];
            let is_table = message.request == FrontendReq::SET_MEM_TABLE as u32;
            let fds = [region.file().as_fd()];
            peer.send(message, if is_table { &fds } else { &[] }).unwrap();
            assert!(is_answered(&mut peer));
            let expected: &[u16] = if sent + 1 == set_up.len() { &[0] } else { &[] };
            assert_eq!(rig.book.running(), expected);
        }
        drop(peer);
        rig.book.wait_for_link(&LinkEvent::Waiting);
        rig.book.take();
    }
    rig.book.assert_clean();
}
