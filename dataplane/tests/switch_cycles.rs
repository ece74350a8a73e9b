//! What a PMD tells of its time: every stage is measured, and no more than the time there was.

mod rig;

use dataplane::testing::GuestConfig;
use rig::{Rig, eventually};
use slipway_api::Pmd;

fn stages(pmd: &Pmd) -> [u64; 4] {
    let of = &pmd.samples;
    [of.take_cycles, of.judge_cycles, of.deliver_cycles, of.settle_cycles]
}

/// Counters that only grow.
fn counters(pmd: &Pmd) -> Vec<u64> {
    let of = &pmd.samples;
    let times = [pmd.busy_cycles, pmd.idle_cycles, pmd.kick_check_cycles, pmd.sleep_cycles];
    let counts = [pmd.polls, pmd.bursts, pmd.frames, pmd.sleeps, pmd.wakeups];
    let samples = [of.bursts, of.frames, of.empty_looks, of.empty_cycles];
    [&times[..], &counts, &samples, &stages(pmd)].concat()
}

#[test]
fn every_stage_takes_time_and_all_of_them_no_more_than_the_pmd_was_busy() {
    let rig = Rig::start();
    let mut a = rig.station(1, 1, GuestConfig::default());
    let mut b = rig.station(2, 1, GuestConfig::default());
    let mut last = counters(&rig.pmd());
    // A look in 16 is measured: that many frames are a hundred samples.
    for _ in 0..16 {
        for _ in 0..50 {
            a.talk(&mut b);
        }
        let now = counters(&rig.pmd());
        assert!(last.iter().zip(&now).all(|(before, after)| before <= after), "{last:?} {now:?}");
        last = now;
    }
    eventually("both rings are armed, and the PMD sleeps", || rig.pmd().armed_rings == 2);
    let pmd = rig.pmd();
    assert_eq!(pmd.polled_rings, 0, "{pmd:?}");
    assert!(pmd.frames >= 1600 && pmd.samples.frames > 0, "{pmd:?}");
    assert!(pmd.samples.bursts <= pmd.samples.frames, "{pmd:?}");
    assert!(pmd.samples.frames <= pmd.frames, "{pmd:?}");
    assert!(stages(&pmd).iter().all(|&cycles| cycles > 0), "{pmd:?}");
    assert!(stages(&pmd).iter().sum::<u64>() <= pmd.busy_cycles, "{pmd:?}");
    assert!(pmd.samples.empty_looks > 0 && pmd.samples.empty_cycles > 0, "{pmd:?}");
    // It went to sleep between frames, and is asleep now: that sleep counts when it ends.
    a.talk(&mut b);
    eventually("a sleep has ended", || rig.pmd().sleep_cycles > 0);
}
