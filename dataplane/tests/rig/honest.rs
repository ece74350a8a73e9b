//! Two stations that talk all the time, while others do what they like.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use dataplane::testing::frames::{Ledger, payload_range};
use dataplane::testing::{Deadline, GuestConfig, Rng};

use super::{Rig, Station, TIMEOUT, eventually, stamped};

/// Frames under way in each direction at most: fewer than the receive ring holds, so that none may
/// be lost.
const WINDOW: usize = 32;

/// The flow of their frames: no station has this number.
const FLOW: u32 = 2000;

/// Traffic in both directions between two ports, on a thread of its own. Every frame is received
/// once, in order and whole, or [`Self::finish`] panics. Ends when dropped.
#[derive(Debug)]
pub struct Honest {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: Option<JoinHandle<u64>>,
}

impl Honest {
    /// Adds stations 251 and 252 to segment `vni` and has them talk.
    pub fn start(rig: &Rig, vni: u32) -> Self {
        let left = rig.station(251, vni, GuestConfig::default());
        let right = rig.station(252, vni, GuestConfig::default());
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stop_too, rounds_too) = (Arc::clone(&stop), Arc::clone(&rounds));
        let thread = std::thread::spawn(move || talk(left, right, &stop_too, &rounds_too));
        let honest = Self { stop, rounds, thread: Some(thread) };
        honest.goes_on();
        honest
    }

    /// Traffic flows now: more of it than was under way is received.
    pub fn goes_on(&self) {
        let before = self.rounds.load(Ordering::Relaxed);
        eventually("honest traffic", || {
            let has_ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            has_ended || self.rounds.load(Ordering::Relaxed) >= before + 2
        });
    }

    /// Ends it; returns how many frames were received.
    pub fn finish(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let outcome = self.thread.take().expect("it was not finished before").join();
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Honest {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Only when the test fails otherwise: what it says of that is what matters.
            let _ = thread.join();
        }
    }
}

fn talk(mut left: Station, mut right: Station, stop: &AtomicBool, rounds: &AtomicU64) -> u64 {
    let mut rng = Rng::seeded(251);
    let mut ledgers = [Ledger::default(), Ledger::default()];
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        let burst = rng.range(1..WINDOW + 1);
        send(&mut left, &right, sent, burst, &mut rng);
        send(&mut right, &left, sent, burst, &mut rng);
        sent += burst as u64;
        receive(&mut left, &mut ledgers[0], burst);
        receive(&mut right, &mut ledgers[1], burst);
        rounds.fetch_add(1, Ordering::Relaxed);
        if rng.chance(1, 4) {
            // Long enough for PMDs to fall asleep, now and then.
            std::thread::sleep(std::time::Duration::from_micros(rng.below(300)));
        }
    }
    for station in [&mut left, &mut right] {
        station.drain();
        station.expect_nothing();
    }
    assert!(ledgers.iter().all(|ledger| ledger.is_perfect(sent)), "{sent} sent: {ledgers:#?}");
    2 * sent
}

fn send(from: &mut Station, to: &Station, first: u64, burst: usize, rng: &mut Rng) {
    let mut sequence = first;
    let (source, to) = (from.mac, to.mac);
    let deadline = Deadline::after(TIMEOUT);
    let mut left = burst;
    while left > 0 {
        left -= from
            .guest
            .tx()
            .tx_burst(left, |slot| {
                slot.write(&stamped(source, to, FLOW, sequence, rng.range(16..1400)));
                sequence += 1;
            })
            .unwrap();
        assert!(!deadline.passed(), "{}: no room to send", from.port);
    }
}

fn receive(to: &mut Station, ledger: &mut Ledger, burst: usize) {
    let deadline = Deadline::after(TIMEOUT);
    let mut left = burst;
    while left > 0 {
        left -= to
            .guest
            .rx()
            .rx_burst(left, |frame| {
                let frame = frame.to_vec();
                let payload = payload_range(&frame).expect("a stamped frame");
                ledger.enter(&frame[payload]).unwrap();
            })
            .unwrap();
        if left > 0 {
            let came = to.guest.rx().ring().wait(deadline).unwrap();
            assert!(came, "{}: {left} of {burst} frames did not come", to.port);
        }
    }
}
