//! One hostile guest, two honest ones that talk on: what it breaks is its own port, by name, and
//! only until it sets its device up anew.

mod rig;

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use dataplane::control::Control;
use dataplane::testing::frames::Mac;
use dataplane::testing::memory::Backing;
use dataplane::testing::raw::{Answer, NEED_REPLY, RawMessage, VERSION};
use dataplane::testing::{Desc, Guest, GuestConfig, Vring, features};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::eventfd::EfdFlags;
use rig::{Honest, QUOTA, Rig, Station, TIMEOUT, eventually, mac};
use slipway_api::{LinkState, RingState};
use vhost::VhostBackend;
use vhost::vhost_user::message::FrontendReq;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const BROADCAST: Mac = [0xff; 6];
const RX: u16 = 0;
const TX: u16 = 1;
/// Addresses that a guest invents.
const LIES: u32 = 20_000;
/// An address where no guest of these tests has memory.
const NOWHERE: u64 = 1 << 45;

fn plain() -> GuestConfig {
    GuestConfig::default()
}

/// What a hostile driver does to a ring of its guest.
struct Attack {
    fault: &'static str,
    ring: u16,
    /// Features that it does without.
    without: u64,
    /// Writes the ring, for which it has some memory at the address.
    act: fn(&mut Vring, u64),
}

/// Chain 0 of the ring is these descriptors, whatever they say.
fn raw_chain(ring: &mut Vring, descs: &[Desc]) {
    for (at, desc) in (0..).zip(descs) {
        ring.raw_desc(at, *desc);
    }
    ring.raw_push(0);
    ring.publish();
}

/// As [`raw_chain`], in an indirect table at `at`.
fn raw_indirect(ring: &mut Vring, at: u64, len: u32, flags: u16) {
    raw_chain(ring, &[Desc { addr: at, len, flags: Desc::INDIRECT | flags, next: 1 }]);
}

fn attacks() -> Vec<Attack> {
    let tx = |fault, act| Attack { fault, ring: TX, without: 0, act };
    let rx = |fault, act| Attack { fault, ring: RX, without: 0, act };
    vec![
        tx("avail_jump", |ring, _| ring.raw_avail_idx(ring.avail_next().wrapping_add(257))),
        tx("avail_jump", |ring, _| ring.raw_avail_idx(ring.avail_next().wrapping_sub(1))),
        tx("head_out_of_range", |ring, _| {
            ring.raw_push(ring.size());
            ring.publish();
        }),
        tx("next_out_of_range", |ring, at| {
            raw_chain(ring, &[Desc { addr: at, len: 64, flags: Desc::NEXT, next: 256 }]);
        }),
        tx("loop", |ring, at| {
            // Of one empty buffer each, so that it is no chain of too many.
            raw_indirect(ring, at, 32, 0);
        }),
        tx("bad_address", |ring, _| raw_chain(ring, &[Desc::readable(NOWHERE, 64)])),
        tx("bad_address", |ring, _| raw_chain(ring, &[Desc::readable(u64::MAX - 8, 64)])),
        tx("bad_address", |ring, at| raw_chain(ring, &[Desc::readable(at, u32::MAX)])),
        tx("bad_address", |ring, _| raw_indirect(ring, NOWHERE, 32, 0)),
        tx("indirect_length", |ring, at| raw_indirect(ring, at, 15, 0)),
        tx("indirect_length", |ring, at| raw_indirect(ring, at, 0, 0)),
        tx("nested_indirect", |ring, at| raw_indirect(ring, at + 32, 16, 0)),
        tx("indirect_linked", |ring, at| raw_indirect(ring, at, 16, Desc::NEXT)),
        Attack {
            without: features::INDIRECT_DESC,
            ..tx("indirect_not_negotiated", |ring, at| raw_indirect(ring, at, 16, 0))
        },
        tx("wrong_direction", |ring, at| raw_chain(ring, &[Desc::writable(at, 64)])),
        rx("wrong_direction", |ring, at| raw_chain(ring, &[Desc::readable(at, 2048)])),
        rx("empty_buffer", |ring, at| raw_chain(ring, &[Desc::writable(at, 0)])),
        rx("bad_address", |ring, _| raw_chain(ring, &[Desc::writable(NOWHERE, 2048)])),
        rx("head_out_of_range", |ring, _| {
            ring.raw_push(u16::MAX);
            ring.publish();
        }),
        rx("avail_jump", |ring, _| ring.raw_avail_idx(300)),
        rx("loop", |ring, at| raw_indirect(ring, at + 64, 32, 0)),
    ]
}

/// Memory for attacks: at 0 an indirect table of two empty buffers, readable, that link in a loop;
/// at 32 one that holds an indirect descriptor; at 64 the loop again, writable.
fn lay_traps(guest: &mut Guest) -> u64 {
    let at = guest.memory().alloc(0, 4096, 4096).unwrap().gpa();
    let link = |flags, next| Desc { addr: at, len: 0, flags: Desc::NEXT | flags, next };
    let nested = Desc { addr: at, len: 16, flags: Desc::INDIRECT, next: 0 };
    let unused = Desc::default();
    let write = Desc::WRITE;
    let table = [link(0, 1), link(0, 0), nested, unused, link(write, 1), link(write, 0)];
    guest.memory().write(at, &table.map(Desc::to_bytes).concat()).unwrap();
    at
}

/// The port is broken, for a reason that the text tells, and only that ring of it.
fn assert_broken(rig: &Rig, port: &str, ring: u16, reason: &str) {
    rig.await_link(port, LinkState::Broken);
    let port = rig.show(port);
    let said = port.reason.unwrap();
    assert!(said.contains(reason), "{said:?} does not say {reason:?}");
    assert!(said.starts_with(&format!("vring {ring}: ")), "{said}");
    for shown in &port.rings {
        let is_broken = shown.state == RingState::Broken;
        assert_eq!(is_broken, shown.index == ring, "{:?}", port.rings);
    }
}

/// What the reason says of a fault.
fn text_of(fault: &str) -> &'static str {
    match fault {
        "avail_jump" => "available index jumped",
        "head_out_of_range" => "in a ring of 256",
        "next_out_of_range" => "links to 256",
        "loop" => "loops",
        "bad_address" => "not in the guest's memory",
        "indirect_length" => "indirect descriptor table of",
        "nested_indirect" => "within an indirect table",
        "indirect_linked" => "that is linked on",
        "indirect_not_negotiated" => "did not negotiate",
        "wrong_direction" => "buffer in the",
        "empty_buffer" => "an empty receive buffer",
        "call_blocked" => "call descriptor blocks",
        "memory_lost" => "memory went away",
        other => panic!("no such fault: {other}"),
    }
}

#[test]
fn each_way_to_break_a_ring_breaks_that_port_alone_and_until_its_guest_reboots() {
    let rig = Rig::start();
    let honest = Honest::start(&rig, 1);
    let mut prober = rig.station(1, 1, plain());
    for (n, attack) in (10..).zip(attacks()) {
        println!("{} in ring {}", attack.fault, attack.ring);
        // The receive ring starts empty, so that the first buffer is the attack's.
        let config = plain().without(attack.without).rx_repost(attack.ring != RX);
        let mut hostile = rig.station(n, 1, config);
        let err = EventFd::new(EFD_NONBLOCK).unwrap();
        let ring = usize::from(attack.ring);
        hostile.guest.session().unwrap().set_vring_err(ring, &err).unwrap();
        hostile.guest.sync().unwrap();
        let at = lay_traps(&mut hostile.guest);
        if attack.ring == TX {
            prober.talk(&mut hostile);
        }

        let pair = hostile.guest.pair(0);
        let ring = if attack.ring == RX { pair.rx.ring() } else { pair.tx.ring() };
        (attack.act)(ring, at);
        ring.kick();
        if attack.ring == RX {
            prober.send(hostile.mac);
            prober.drain();
        }
        assert_broken(&rig, &hostile.port, attack.ring, text_of(attack.fault));
        eventually("the error descriptor is signalled", || err.read().is_ok());
        assert_eq!(rig.switch.health().ports_broken, 1);
        let counted = rig.stats(&hostile.port).ring_faults;
        assert_eq!(counted, [(attack.fault.to_owned(), 1)].into());

        // Frames for it go nowhere, and are counted; so are those of the honest.
        let before = rig.dropped(&prober.port, "link_down");
        if attack.ring == RX {
            prober.send(hostile.mac);
            prober.drain();
            assert_eq!(rig.dropped(&prober.port, "link_down"), before + 1);
        }
        honest.goes_on();

        hostile.guest.rx().set_repost(true);
        hostile.guest.reboot(features::PLAIN).unwrap();
        assert_eq!(rig.show(&hostile.port).link, LinkState::Up);
        assert_eq!(rig.show(&hostile.port).reason, None);
        prober.talk(&mut hostile);
        assert!(err.read().is_err(), "told again, of nothing");
    }
    assert_eq!(rig.switch.health().ports_broken, 0);
    honest.finish();
    rig.assert_conserved_unicast();
}

#[test]
fn the_broken_ring_alone_may_be_set_up_anew() {
    let rig = Rig::start();
    let honest = Honest::start(&rig, 1);
    let mut prober = rig.station(1, 1, plain());
    let mut hostile = rig.station(2, 1, plain());
    prober.talk(&mut hostile);
    let ring = hostile.guest.tx().ring();
    let next = ring.avail_next();
    ring.raw_avail_idx(next.wrapping_add(1000));
    ring.kick();
    assert_broken(&rig, &hostile.port, TX, text_of("avail_jump"));
    // The other ring works all along.
    let sent = prober.send(hostile.mac);
    hostile.expect(sent);

    let ring = hostile.guest.tx().ring();
    ring.raw_avail_idx(next);
    let config = vhost::VringConfigData {
        queue_max_size: ring.size(),
        queue_size: ring.size(),
        flags: 0,
        desc_table_addr: ring.desc_table().user_addr(),
        used_ring_addr: ring.used().user_addr(),
        avail_ring_addr: ring.avail().user_addr(),
        log_addr: None,
    };
    let kick = ring.kick_fd().try_clone().unwrap();
    let session = hostile.guest.session().unwrap();
    let base = session.get_vring_base(usize::from(TX)).unwrap();
    assert_eq!(base, u32::from(next));
    session.set_vring_num(usize::from(TX), config.queue_size).unwrap();
    session.set_vring_base(usize::from(TX), base as u16).unwrap();
    session.set_vring_addr(usize::from(TX), &config).unwrap();
    session.set_vring_kick(usize::from(TX), &kick).unwrap();
    hostile.guest.sync().unwrap();
    rig.await_link(&hostile.port, LinkState::Up);
    assert_eq!(rig.show(&hostile.port).reason, None);
    prober.talk(&mut hostile);
    honest.finish();
    rig.assert_conserved_unicast();
}

#[test]
fn memory_cut_short_under_running_rings_costs_that_port_alone() {
    let rig = Rig::start();
    let honest = Honest::start(&rig, 1);
    let mut prober = rig.station(1, 1, plain());
    let unsealed = || plain().backing(Backing { sealed: false, ..Backing::default() });
    let mut spec: Option<(String, PathBuf)> = None;
    for round in 0..20 {
        let mut hostile = match spec.clone() {
            None => rig.station(2, 1, unsealed()),
            Some((port, socket)) => {
                let guest = Guest::connect(&socket, unsealed()).unwrap();
                Station::new(port, 2, socket, guest)
            }
        };
        spec = Some((hostile.port.clone(), hostile.socket.clone()));
        prober.talk(&mut hostile);
        // Half of the time the switch still works at what came before.
        if round % 4 < 2 {
            hostile.drain();
        }
        // From here on the guest's memory must not be touched by the test, either.
        hostile.guest.memory().regions()[0].file().set_len(0).unwrap();
        if round % 2 == 0 {
            hostile.guest.tx().ring().kick();
        } else {
            prober.send(hostile.mac);
            prober.drain();
        }
        // Whichever ring was looked at first; soon the other one is, too.
        rig.await_link(&hostile.port, LinkState::Broken);
        let reason = rig.show(&hostile.port).reason.unwrap();
        assert!(reason.contains(text_of("memory_lost")), "{reason}");
        honest.goes_on();
        hostile.guest.disconnect();
        rig.await_link(&hostile.port, LinkState::Waiting);
    }
    honest.finish();
    rig.assert_conserved_unicast();
}

#[test]
fn a_call_that_is_no_eventfd_is_refused_and_one_that_is_full_holds_nobody_up() {
    let rig = Rig::start();
    let honest = Honest::start(&rig, 1);
    let mut prober = rig.station(1, 1, plain());
    let (mut hostile, mut raw) = rig.station_and_session(2, 1, plain());
    let dir = tempfile::tempdir().unwrap();
    let file = File::create(dir.path().join("garbage")).unwrap();
    let null = File::open("/dev/null").unwrap();
    let (pipe, _reader) = std::io::pipe().map(|(reader, writer)| (writer, reader)).unwrap();
    let (socket, _far) = UnixStream::pair().unwrap();
    let garbage: [BorrowedFd<'_>; 4] = [file.as_fd(), null.as_fd(), pipe.as_fd(), socket.as_fd()];
    for fd in garbage {
        for request in [FrontendReq::SET_VRING_CALL, FrontendReq::SET_VRING_KICK] {
            for ring in [RX, TX] {
                let message = RawMessage::new(request).flags(VERSION | NEED_REPLY);
                raw.send(&message.u64(ring.into()), &[fd]).unwrap();
                let Answer::Message(answer) = raw.recv(TIMEOUT).unwrap() else { panic!("closed") };
                assert_eq!(answer.as_u64(), Some(1), "refused");
            }
        }
        prober.talk(&mut hostile);
    }
    assert_eq!(file.metadata().unwrap().len(), 0, "nothing was written to it");

    // An eventfd whose counter is full, and blocking: a write would wait for a reader for ever.
    let full = EventFd::new(0).unwrap();
    full.write(u64::MAX - 1).unwrap();
    for ring in [RX, TX] {
        hostile.guest.session().unwrap().set_vring_call(ring.into(), &full).unwrap();
    }
    hostile.guest.pair(0).rx.ring().set_interrupts(true);
    hostile.guest.pair(0).tx.ring().set_interrupts(true);
    for _ in 0..100 {
        let sent = prober.send(hostile.mac);
        let back = hostile.send(prober.mac);
        prober.expect(back);
        eventually("the frame, by polling", || {
            hostile.guest.rx().ring().used_waiting().unwrap() > 0
        });
        hostile.expect(sent);
    }
    honest.finish();
    rig.assert_conserved_unicast();
}

#[test]
fn a_call_descriptor_that_was_made_to_block_breaks_its_ring_and_frees_the_pmd() {
    let rig = Rig::start();
    let honest = Honest::start(&rig, 1);
    let mut prober = rig.station(1, 1, plain());
    let (mut hostile, mut raw) = rig.station_and_session(2, 1, plain().interrupts(true));
    prober.talk(&mut hostile);
    // Full, and made to block once the switch has it: the flag belongs to the open file, which both
    // sides share.
    let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
    let call = nix::sys::eventfd::EventFd::from_flags(flags).unwrap();
    call.write(u64::MAX - 1).unwrap();
    let message = RawMessage::new(FrontendReq::SET_VRING_CALL).flags(VERSION | NEED_REPLY);
    raw.send(&message.u64(RX.into()), &[call.as_fd()]).unwrap();
    let Answer::Message(answer) = raw.recv(TIMEOUT).unwrap() else { panic!("closed") };
    assert_eq!(answer.as_u64(), Some(0), "taken");
    fcntl(&call, FcntlArg::F_SETFL(OFlag::empty())).unwrap();

    prober.send(hostile.mac);
    assert_broken(&rig, &hostile.port, RX, text_of("call_blocked"));
    let counted = rig.stats(&hostile.port).ring_faults;
    assert_eq!(counted, [("call_blocked".to_owned(), 1)].into());
    prober.drain();
    honest.goes_on();
    honest.finish();
    rig.assert_conserved_unicast();
}

#[test]
fn a_guest_that_gives_no_buffers_back_misses_its_own_frames_only() {
    let rig = Rig::start();
    let honest = Honest::start(&rig, 1);
    let mut prober = rig.station(1, 1, plain());
    let mut greedy = rig.station(2, 1, plain().rx_repost(false));
    greedy.guest.rx().post(8);
    let sent: Vec<_> = (0..50).map(|_| prober.send(greedy.mac)).collect();
    prober.drain();
    rig.assert_conserved_of(&[&prober.port, &greedy.port]);
    assert_eq!(rig.dropped(&prober.port, "ring_full"), 42);
    let egress = rig.stats(&greedy.port).egress;
    assert_eq!((egress.offered_frames, egress.delivered_frames), (50, 8));
    assert_eq!(egress.drops["ring_full"], 42);
    for &stamp in &sent[..8] {
        greedy.expect(stamp);
    }
    greedy.expect_nothing();
    // With buffers again, frames come again.
    greedy.guest.rx().post(8);
    prober.talk(&mut greedy);
    honest.finish();
    rig.assert_conserved_unicast();
}

#[test]
fn a_flood_of_broadcasts_stays_in_its_segment_and_is_accounted_for() {
    let rig = Rig::start();
    let honest = Honest::start(&rig, 1);
    let mut loud = rig.station(1, 2, plain());
    let mut patient = rig.station(2, 2, plain());
    let mut deaf = rig.station(3, 2, plain().rx_repost(false));
    let mut received = 0;
    for _ in 0..20_000 {
        loud.send(BROADCAST);
        received += patient.guest.rx().rx_burst(256, |_| ()).unwrap() as u64;
    }
    loud.drain();
    received += patient.guest.rx().rx_burst(256, |_| ()).unwrap() as u64;
    honest.goes_on();
    rig.assert_conserved_of(&[&loud.port, &patient.port, &deaf.port]);
    let sent = rig.stats(&loud.port).ingress;
    assert_eq!(sent.received_frames, 20_000);
    let patient_stats = rig.stats(&patient.port).egress;
    assert_eq!(patient_stats.offered_frames, 20_000);
    assert_eq!(patient_stats.delivered_frames, received);
    assert_eq!(rig.stats(&deaf.port).egress.drops["ring_full"], 20_000);
    deaf.expect_nothing();
    honest.finish();
    rig.assert_conserved();
}

#[test]
fn a_guest_that_invents_addresses_fills_its_quota_and_no_more() {
    let rig = Rig::start();
    let honest = Honest::start(&rig, 1);
    let mut liar = rig.learner(1, 2, plain());
    let mut neighbour = rig.learner(2, 2, plain());
    let mine = neighbour.send(liar.mac);
    liar.expect(mine);
    eventually("the neighbour is known", || rig.fdb(&neighbour.port).len() == 1);
    for n in 0..LIES {
        // Never seen before; to an address that is known, so that only the source is new.
        liar.send_from(mac(1 << 16 | n), neighbour.mac);
        if n % 64 == 63 {
            liar.drain();
            while neighbour.guest.rx().rx_burst(256, |_| ()).unwrap() > 0 {}
        }
    }
    honest.goes_on();
    // Sightings that found no room in the queue were not reported; the next one is.
    let latest = mac(1 << 16 | LIES);
    eventually("the latest address is known", || {
        liar.send_from(latest, neighbour.mac);
        neighbour.next();
        rig.fdb(&liar.port).iter().any(|entry| entry.mac.0 == latest)
    });
    assert_eq!(rig.fdb(&liar.port).len(), QUOTA as usize);
    assert_eq!(rig.fdb(&neighbour.port).len(), 1);
    let back = neighbour.send(latest);
    liar.expect(back);
    honest.finish();
    rig.assert_conserved();
}
