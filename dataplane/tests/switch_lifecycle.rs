//! Guests that come, go, stop and start, while two others talk on and lose nothing.

mod rig;

use std::sync::atomic::{AtomicU64, Ordering};

use dataplane::control::Control;
use dataplane::control::switch::Switch;
use dataplane::testing::frames::{Ledger, Mac, Stamp, payload_range};
use dataplane::testing::memory::{PAGE_BYTES, RegionSpec};
use dataplane::testing::{Desc, GuestConfig, GuestListener, Rng, VirtioNetHdr, features};
use rig::{Honest, Rig, Station, TIMEOUT, eventually, mac, stamp_of, stamped, start_switch};
use slipway_api::{LinkState, PortMode, PortSpec, RingState};

const BROADCAST: Mac = [0xff; 6];
const ALL: u64 = features::PLAIN | features::TX_OFFLOADS | features::RX_OFFLOADS;

/// The flow of frames made by `post`; a station's own frames are of the flow of its number.
const POSTED: u32 = 1000;

fn plain() -> GuestConfig {
    GuestConfig::default()
}

/// Puts frames `sequence..` in the transmit ring without waiting for any.
fn post(from: &mut Station, to: Mac, first: u64, frames: u64) {
    let mut sequence = first;
    let source = from.mac;
    let posted = from.guest.tx().tx_burst(frames as usize, |slot| {
        slot.write(&stamped(source, to, POSTED, sequence, 16 + (sequence % 1000) as usize));
        sequence += 1;
    });
    assert_eq!(posted.unwrap() as u64, frames);
}

/// Takes `frames` frames off the receive ring.
fn collect(to: &mut Station, ledger: &mut Ledger, frames: u64) {
    for _ in 0..frames {
        let frame = to.guest.recv(TIMEOUT).unwrap();
        let (_, frame) = frame.unwrap_or_else(|| panic!("{}: {ledger:?}", to.port));
        ledger.enter(&frame[payload_range(&frame).unwrap()]).unwrap();
    }
}

#[test]
fn ports_come_and_go_by_the_hundred() {
    let rig = Rig::start();
    let honest = Honest::start(&rig, 1);
    let mut stays = rig.station(1, 1, plain());
    for n in 0..400 {
        let vni = 1 + n % 3;
        let mut guest = (n % 2 == 0).then(|| rig.station(10 + n, vni, plain().ring_size(16)));
        let idle = rig.port(PortSpec { vni, ..PortSpec::named(format!("idle{n}")) });
        assert!(idle.spec.socket.exists());
        if let Some(guest) = guest.as_mut().filter(|_| vni == 1) {
            guest.talk(&mut stays);
        }
        // With its guest connected and frames on their way, or after it.
        if let Some(mut guest) = guest {
            post(&mut guest, stays.mac, 0, 8);
            if n % 4 == 0 {
                drop(guest.guest);
            }
            rig.switch.delete_port(&guest.port).unwrap();
            assert!(!guest.socket.exists());
        }
        rig.switch.delete_port(&idle.spec.name).unwrap();
        assert!(!idle.spec.socket.exists());
        while stays.guest.rx().rx_burst(256, |_| ()).unwrap() > 0 {}
    }
    honest.goes_on();
    assert!(honest.finish() > 0);
    assert_eq!(rig.switch.list_ports().ports.len(), 3);
    assert!(rig.switch.list_vnis().vnis.iter().all(|vni| vni.vni == 1));
}

#[test]
fn a_new_port_inherits_no_address_of_the_one_before() {
    let rig = Rig::start();
    let mut stays = rig.station(1, 1, plain());
    for round in 0..255 {
        let mut talker = rig.learner(2, 1, plain());
        let number = rig.show(&talker.port).id;
        for n in 0..100 {
            talker.send_from(mac(1 << 16 | round << 8 | n), stays.mac);
        }
        // Its addresses are being learned at this moment. The next port gets its number.
        rig.switch.delete_port(&talker.port).unwrap();
        let next = rig.port(PortSpec { vni: 1, ..PortSpec::named("next") });
        assert_eq!(next.id, number);
        let known = rig.fdb("next");
        assert!(known.is_empty(), "{known:?}");
        rig.switch.delete_port("next").unwrap();
        while stays.guest.rx().rx_burst(256, |_| ()).unwrap() > 0 {}
    }
}

#[test]
fn a_guest_reboots_with_other_features_each_time() {
    let rig = Rig::start();
    let honest = Honest::start(&rig, 1);
    let mut c = rig.station(1, 1, plain());
    let mut d = rig.station(2, 1, plain().memory_slots(true));
    let choices = [
        features::PLAIN,
        features::VERSION_1 | features::PROTOCOL,
        ALL & !features::EVENT_IDX,
        ALL & !features::INDIRECT_DESC,
        ALL,
    ];
    for round in 0..50 {
        for station in [&mut c, &mut d] {
            station.guest.reboot(choices[round % choices.len()]).unwrap();
            rig.await_link(&station.port, LinkState::Up);
        }
        let names = rig.show(&c.port).features;
        let has_event_idx = names.iter().any(|name| name == "VIRTIO_F_EVENT_IDX");
        assert_eq!(has_event_idx, c.guest.acked() & features::EVENT_IDX != 0);
        for _ in 0..3 {
            c.talk(&mut d);
        }
    }
    honest.goes_on();
    honest.finish();
    rig.assert_conserved_unicast();
}

#[test]
fn rings_stopped_in_the_middle_go_on_where_they_stood() {
    for is_packed in [false, true] {
        stop_in_the_middle(is_packed);
    }
}

fn stop_in_the_middle(is_packed: bool) {
    let rig = Rig::start();
    let honest = Honest::start(&rig, 1);
    let mut c = rig.station(1, 1, plain().packed(is_packed));
    let mut d = rig.station(2, 1, plain());
    let (mut to_d, mut to_c) = (Ledger::default(), Ledger::default());
    let (mut sent, mut rng) = (0, Rng::seeded(3));
    for _ in 0..150 {
        // Some of these are forwarded before the stop, the others after.
        let frames = rng.below(60) + 1;
        post(&mut c, d.mac, sent, frames);
        post(&mut d, c.mac, sent, frames);
        sent += frames;
        let bases = c.guest.stop().unwrap();
        let port = rig.show(&c.port);
        assert!(port.rings.iter().all(|ring| ring.state == RingState::Stopped));
        // Nothing moves in a stopped ring.
        assert_eq!(c.guest.tx().any_ring().base(), bases[1]);
        assert_eq!(c.guest.rx().any_ring().base(), bases[0]);
        c.guest.resume(&bases).unwrap();
        collect(&mut d, &mut to_d, frames);
        d.drain();
        // What met the stopped ring was dropped, what did not came once and in order.
        c.guest
            .rx()
            .rx_burst(usize::MAX, |frame| {
                let frame = frame.to_vec();
                to_c.enter(&frame[payload_range(&frame).unwrap()]).unwrap();
            })
            .unwrap();
    }
    assert!(to_d.is_perfect(sent), "{sent} sent: {to_d:?}");
    let back = to_c.total();
    assert_eq!((back.reordered, back.duplicated, to_c.corrupt()), (0, 0, 0));
    assert_eq!(back.received, rig.stats(&c.port).egress.delivered_frames);
    assert_eq!(back.received + rig.dropped(&d.port, "link_down"), sent);
    honest.finish();
    rig.assert_conserved_unicast();
}

#[test]
fn frames_in_a_disabled_ring_wait_until_it_is_enabled() {
    let rig = Rig::start();
    let honest = Honest::start(&rig, 1);
    let mut c = rig.station(1, 1, plain());
    let mut d = rig.station(2, 1, plain());
    let (mut ledger, mut sent) = (Ledger::default(), 0);
    for round in 0..100 {
        c.guest.set_enabled(0, false).unwrap();
        assert!(rig.show(&c.port).rings.iter().all(|ring| !ring.enabled));
        post(&mut c, d.mac, sent, 5);
        sent += 5;
        d.send(c.mac);
        d.drain();
        c.expect_nothing();
        d.expect_nothing();
        assert_eq!(rig.dropped(&d.port, "link_down"), round + 1);
        c.guest.set_enabled(0, true).unwrap();
        collect(&mut d, &mut ledger, 5);
    }
    assert!(ledger.is_perfect(sent), "{ledger:?}");
    c.drain();
    c.talk(&mut d);
    honest.finish();
    rig.assert_conserved_unicast();
}

/// Sends one frame from memory at `gpa`, and receives one there.
fn use_memory(c: &mut Station, d: &mut Station, gpa: u64, sequence: u64) {
    let frame = stamped(c.mac, d.mac, 3, sequence, 100);
    let bytes = [&[0; VirtioNetHdr::BYTES][..], &frame].concat();
    c.guest.memory().write(gpa, &bytes).unwrap();
    let ring = c.guest.tx().ring();
    ring.push(&[Desc::readable(gpa, bytes.len() as u32)]);
    ring.publish();
    ring.kick_if_asked();
    d.expect(Stamp { flow: 3, sequence });
    c.drain();

    let at = gpa + 2048;
    let ring = c.guest.rx().ring();
    ring.push(&[Desc::writable(at, 2048)]);
    ring.publish();
    let sent = d.send(c.mac);
    d.drain();
    let ring = c.guest.rx().ring();
    assert_eq!(ring.used_waiting().unwrap(), 1);
    let (head, len) = ring.take_used().unwrap();
    ring.release(head);
    let mut received = vec![0; len as usize];
    c.guest.memory().read(at, &mut received).unwrap();
    assert_eq!(stamp_of(&received[VirtioNetHdr::BYTES..]), sent);
}

#[test]
fn memory_added_and_removed_while_rings_run_is_used_and_left_alone() {
    let rig = Rig::start();
    let honest = Honest::start(&rig, 1);
    let mut c = rig.station(1, 1, plain().rx_repost(false));
    let mut d = rig.station(2, 1, plain());
    let spare = c.guest.memory().alloc(0, 4096, 4096).unwrap().gpa();
    let mut sequence = 0;
    for n in 0..40 {
        let spec = RegionSpec { gpa: (8 + n) << 30, len: 2 * PAGE_BYTES };
        let index = c.guest.hot_add(spec).unwrap();
        let memory = rig.show(&c.port).memory;
        assert!(memory.iter().any(|region| region.guest_address == spec.gpa));
        for gpa in [spec.gpa, spare, spec.gpa] {
            use_memory(&mut c, &mut d, gpa, sequence);
            sequence += 1;
        }
        c.guest.hot_remove(index).unwrap();
        assert_eq!(rig.show(&c.port).memory.len(), memory.len() - 1);
        use_memory(&mut c, &mut d, spare, sequence);
        sequence += 1;
    }
    honest.finish();
    rig.assert_conserved_unicast();
}

#[test]
fn a_front_end_that_hangs_up_and_is_back_at_once_finds_its_port_free() {
    let rig = Rig::start();
    let honest = Honest::start(&rig, 1);
    let mut c = rig.station(1, 1, plain());
    let mut d = rig.station(2, 1, plain());
    let (mut ledger, mut sent) = (Ledger::default(), 0);
    for round in 0..100 {
        post(&mut c, d.mac, sent, 20);
        sent += 20;
        c.guest.disconnect();
        if round % 3 == 0 {
            rig.await_link(&c.port, LinkState::Waiting);
        }
        c.guest.reconnect(&c.socket).unwrap();
        collect(&mut d, &mut ledger, 20);
        assert_eq!(rig.show(&c.port).link, LinkState::Up);
    }
    assert!(ledger.is_perfect(sent), "{ledger:?}");
    c.talk(&mut d);
    honest.finish();
    rig.assert_conserved_unicast();
}

#[test]
fn guests_that_listen_outlive_the_switch_and_go_on_with_the_next() {
    for is_packed in [false, true] {
        outlive_the_switch(is_packed);
    }
}

fn outlive_the_switch(is_packed: bool) {
    let dir = tempfile::tempdir().unwrap();
    let path = |n| dir.path().join(format!("vmm{n}"));
    let start = || -> Switch {
        let switch = start_switch(1, dir.path());
        for n in [1, 2] {
            let spec = PortSpec {
                mode: PortMode::Connect,
                socket: Some(path(n)),
                mac: Some(slipway_api::Mac(mac(n))),
                ..PortSpec::named(format!("c{n}"))
            };
            switch.create_port(spec).unwrap();
        }
        switch
    };
    let mut switch = start();
    let listeners = [1, 2].map(|n| GuestListener::bind(&path(n)).unwrap());
    let [mut c, mut d] = [1, 2].map(|n| {
        let guest = listeners[n as usize - 1].accept(plain().packed(is_packed), TIMEOUT).unwrap();
        Station::new(format!("c{n}"), n, path(n), guest)
    });
    let (mut ledger, mut sent) = (Ledger::default(), 0);
    for round in 0..20 {
        let is_idle = round % 2 == 0;
        post(&mut c, d.mac, sent, 30);
        if is_idle {
            collect(&mut d, &mut ledger, 30);
        }
        drop(switch);
        assert!(c.guest.sync().is_err(), "the switch is gone");
        post(&mut c, d.mac, sent + 30, 30);
        switch = start();
        // The receiver first: nothing is lost to a port that is not there yet.
        for (listener, station) in listeners.iter().zip([&mut c, &mut d]).rev() {
            let stream = listener.accept_stream(TIMEOUT).unwrap();
            station.guest.reconnect_over(stream).unwrap();
        }
        post(&mut c, d.mac, sent + 60, 30);
        sent += 90;
        if is_idle {
            collect(&mut d, &mut ledger, 60);
        } else {
            // The end came in the middle: what met a port that was gone is lost, nothing doubled.
            collect_until_last(&mut c, &mut d, &mut ledger);
        }
        c.talk(&mut d);
    }
    let total = ledger.total();
    assert_eq!((total.duplicated, total.reordered, ledger.corrupt()), (0, 0, 0));
    assert_eq!(total.received + total.missing, sent);
    assert!(total.missing <= 10 * 30, "{total:?}");
}

/// Takes what was posted before, which ends with a frame that is sent now.
fn collect_until_last(from: &mut Station, to: &mut Station, ledger: &mut Ledger) {
    let last = from.send(to.mac);
    loop {
        let (_, frame) = to.guest.recv(TIMEOUT).unwrap().expect("the last frame");
        if stamp_of(&frame) == last {
            return;
        }
        ledger.enter(&frame[payload_range(&frame).unwrap()]).unwrap();
    }
}

#[test]
fn two_pmds_deliver_to_one_port_and_keep_each_flow_in_order() {
    let rig = Rig::with_pmds(2);
    let mut senders = [1, 2, 3, 4].map(|n| rig.station(n, 1, plain()));
    let mut receiver = rig.station(5, 1, plain().ring_size(1024));
    let pmds = rig.switch.pmds().pmds;
    assert_eq!(pmds.len(), 2);
    assert!(pmds.iter().all(|pmd| pmd.rings.len() >= 2), "{pmds:?}");

    let to = receiver.mac;
    let frames = 10_000;
    let received = AtomicU64::new(0);
    let ledger = std::thread::scope(|scope| {
        let receiving = scope.spawn(|| {
            let mut ledger = Ledger::default();
            while received.load(Ordering::Relaxed) < 4 * frames {
                collect(&mut receiver, &mut ledger, 1);
                received.fetch_add(1, Ordering::Relaxed);
            }
            receiver.expect_nothing();
            ledger
        });
        for (flow, sender) in (0..).zip(&mut senders) {
            let received = &received;
            scope.spawn(move || {
                for sequence in 0..frames {
                    // Fewer under way than the receive ring has room for, all senders together.
                    eventually("the receiver keeps up", || {
                        received.load(Ordering::Relaxed) + 800 > 4 * sequence
                    });
                    sender.guest.send(&stamped(sender.mac, to, flow, sequence, 64)).unwrap();
                }
            });
        }
        receiving.join().unwrap()
    });
    let total = ledger.total();
    assert!(ledger.is_perfect(4 * frames), "{total:?}");
    assert!(rig.switch.pmds().pmds.iter().all(|pmd| pmd.frames > 0));
    rig.assert_conserved_unicast();
}

#[test]
fn broadcasts_of_a_guest_that_reboots_reach_the_others_each_time() {
    let rig = Rig::with_pmds(2);
    let honest = Honest::start(&rig, 1);
    let [mut a, mut b, mut c] = [1, 2, 3].map(|n| rig.learner(n, 2, plain()));
    for _ in 0..50 {
        a.guest.reboot(features::PLAIN).unwrap();
        let sent = a.send(BROADCAST);
        b.expect(sent);
        c.expect(sent);
        let back = c.send(BROADCAST);
        a.expect(back);
        b.expect(back);
    }
    honest.finish();
    rig.assert_conserved();
}
