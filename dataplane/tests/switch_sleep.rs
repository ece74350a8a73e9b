//! Ports that fall asleep and wake: no frame waits for a kick that never comes.
//!
//! A ring without traffic is armed, a PMD without polled rings sleeps. What can go wrong happens in
//! the instant between the last look and the sleep, so the tests come as close to it as they can,
//! thousands of times. Each frame is awaited before the next is sent: a lost wake-up is not covered
//! up by the next one, and ends the test at its deadline.

mod rig;

use dataplane::testing::raw::{Answer, NEED_REPLY, RawMessage, VERSION};
use dataplane::testing::{Deadline, GuestConfig, Rng, features};
use rig::{Honest, IDLE_US, Rig, Station, TIMEOUT, eventually, stamped};
use vhost::vhost_user::message::FrontendReq;

fn plain() -> GuestConfig {
    GuestConfig::default()
}

/// One frame each way, after the PMD fell asleep, `cycles` times.
fn sleep_and_wake(rig: &Rig, a: &mut Station, b: &mut Station, cycles: u64) {
    let first = rig.pmd();
    let mut slept = 0;
    for _ in 0..cycles {
        eventually("the PMD sleeps", || rig.pmd().sleeps > slept);
        slept = rig.pmd().sleeps;
        a.talk(b);
    }
    let last = rig.pmd();
    assert!(last.sleeps >= first.sleeps + cycles / 2, "{first:?} {last:?}");
    assert!(last.wakeups > first.wakeups, "{first:?} {last:?}");
}

#[test]
fn no_wake_up_is_lost_in_hundreds_of_sleeps() {
    for left_out in [0, features::EVENT_IDX] {
        let rig = Rig::start();
        let mut a = rig.station(1, 1, plain().without(left_out));
        let mut b = rig.station(2, 1, plain().without(left_out));
        sleep_and_wake(&rig, &mut a, &mut b, 1000);
        rig.assert_conserved_unicast();
    }
}

/// Waits without sleeping, for what comes at once: a wake-up would take longer than the race.
fn spin(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Deadline::after(TIMEOUT);
    while !holds() {
        assert!(!deadline.passed(), "never came about: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn no_wake_up_is_lost_when_frames_come_just_as_the_pmd_falls_asleep() {
    let mut rng = Rng::seeded(11);
    for left_out in [0, features::EVENT_IDX] {
        let rig = Rig::start();
        let mut a = rig.station(1, 1, plain().without(left_out));
        let mut b = rig.station(2, 1, plain());
        let frame = stamped(a.mac, b.mac, 1, 0, 64);
        let step = dataplane::clock::ticks_per_us();
        let mut pause = u64::from(IDLE_US) * dataplane::clock::ticks_per_us();
        let (mut awake, mut asleep) = (0, 0);
        for _ in 0..20_000 {
            // The guest is asked to kick once its ring is armed. So whether it had to tells if the
            // frame came before or after that, and the next one comes a little closer to it.
            let until = dataplane::clock::ticks() + pause;
            while dataplane::clock::ticks() < until {
                std::hint::spin_loop();
            }
            let kicks = a.guest.tx().ring().kicks();
            a.guest.tx().send(&frame).unwrap();
            let nudge = rng.below(step);
            if a.guest.tx().ring().kicks() == kicks {
                awake += 1;
                pause += nudge;
            } else {
                asleep += 1;
                pause = pause.saturating_sub(nudge);
            }
            spin("the frame comes", || b.guest.rx().rx_burst(2, |_| ()).unwrap() == 1);
            spin("its buffer is back", || {
                a.guest.tx().tx_reap().unwrap();
                a.guest.tx().in_flight() == 0
            });
        }
        println!("{awake} frames to a polled ring, {asleep} to an armed one");
        assert!(awake > 0 && asleep > 0, "the pause missed the moment on one side");
        b.expect_nothing();
        rig.assert_conserved_unicast();
        assert_eq!(rig.stats(&b.port).egress.delivered_frames, 20_000);
    }
}

#[test]
fn one_idle_port_is_armed_while_others_keep_the_pmd_busy_and_its_kick_is_seen() {
    let rig = Rig::start();
    let honest = Honest::start(&rig, 1);
    let mut a = rig.station(1, 1, plain());
    let mut b = rig.station(2, 1, plain().without(features::EVENT_IDX));
    for _ in 0..200 {
        // The other two leave the PMD no sleep; these rings are armed in the meantime.
        honest.goes_on();
        a.talk(&mut b);
    }
    honest.finish();
    rig.assert_conserved_unicast();
}

#[test]
fn a_guest_that_never_kicks_is_polled_and_keeps_no_other_from_being_woken() {
    let rig = Rig::start();
    let (mut silent, mut raw) = rig.station_and_session(1, 1, plain());
    let mut a = rig.station(2, 1, plain());
    let mut b = rig.station(3, 1, plain().without(features::EVENT_IDX));
    // Bit 8: there is no descriptor, the ring is to be polled (vhost-user, SET_VRING_KICK).
    let no_kick = RawMessage::new(FrontendReq::SET_VRING_KICK).flags(VERSION | NEED_REPLY);
    let Answer::Message(answer) = raw.ask(&no_kick.u64(1 | 1 << 8), TIMEOUT).unwrap() else {
        panic!("the session ended")
    };
    assert_eq!(answer.as_u64(), Some(0), "accepted");
    for _ in 0..200 {
        a.talk(&mut b);
        silent.talk(&mut a);
    }
    rig.assert_conserved_unicast();
}
