//! No message to a PMD thread is left lying while it sleeps, however close the two come.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dataplane::clock;
use dataplane::pmd::mailbox::Mailbox;
use dataplane::port::{PortId, Vport, VportRules};
use dataplane::testing::Rng;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout};

const MESSAGES: u64 = 50_000;
/// How long a sleeper waits for a wake-up that was lost, in milliseconds.
const LOST_MS: u16 = 40_000;

fn vport() -> Arc<Vport> {
    let rules = VportRules {
        segment: 0,
        mac: None,
        anti_spoof: false,
        bound: None,
        learning: false,
        mac_quota: 1,
        max_frame_bytes: 1514,
    };
    Arc::new(Vport::new(PortId(0), "port".into(), rules, 1))
}

/// Up to a microsecond.
fn pause(rng: &mut Rng) {
    let until = clock::ticks() + rng.below(clock::ticks_per_us());
    while clock::ticks() < until {
        std::hint::spin_loop();
    }
}

/// Takes messages as a PMD does that polls nothing, until it is stopped; returns how often it slept.
fn take_until_stopped(mailbox: &Mailbox, epoll: &Epoll, taken: &AtomicU64) -> u64 {
    let (mut sleeps, mut rng) = (0, Rng::seeded(6));
    while !mailbox.stopping() {
        while mailbox.take().is_some() {
            taken.fetch_add(1, Ordering::Release);
        }
        // What else a PMD does between its last look and its sleep.
        pause(&mut rng);
        if mailbox.fall_asleep() {
            sleeps += 1;
            let events = epoll.wait(&mut [EpollEvent::empty()], EpollTimeout::from(LOST_MS));
            mailbox.woke();
            assert_ne!(events, Ok(0), "a wake-up was lost, or the test ended without a stop");
        }
    }
    sleeps
}

/// Ends the taker, also when the giver fails.
struct StopOnDrop<'a>(&'a Mailbox);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

#[test]
fn a_message_that_comes_just_as_the_thread_falls_asleep_wakes_it() {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    let mailbox = Mailbox::new(&epoll).unwrap();
    let (taken, vport) = (AtomicU64::new(0), vport());
    let mut rng = Rng::seeded(5);
    let sleeps = std::thread::scope(|scope| {
        let taker = scope.spawn(|| take_until_stopped(&mailbox, &epoll, &taken));
        let stop = StopOnDrop(&mailbox);
        for sent in 0..MESSAGES {
            // The taker took the last one just now and is about to fall asleep.
            pause(&mut rng);
            mailbox.visit(Arc::clone(&vport), 0);
            let mut looks = 0;
            while taken.load(Ordering::Acquire) == sent && !taker.is_finished() {
                looks += 1;
                // A yield is longer than the race. But with one core for both, spinning is idle.
                if looks < 10_000 { std::hint::spin_loop() } else { std::thread::yield_now() }
            }
        }
        drop(stop);
        taker.join().unwrap()
    });
    assert_eq!(taken.load(Ordering::Relaxed), MESSAGES);
    assert!(sleeps > 0);
    println!("{sleeps} sleeps");
}
