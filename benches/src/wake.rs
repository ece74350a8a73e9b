//! The first frame of a port that fell asleep, and what of its latency is whose.
//!
//! ```text
//!  generator's core (spins all the time)          polling thread's core
//!  1 to 5 ms of silence                            asleep in epoll_wait
//!  frame, kick (eventfd) -----------------------> woken by the kernel       first
//!  polls its ring <------------------------------- forwards                 frame
//!  frame at once, nobody sleeps <----------------> forwards                 polled
//!
//!  1 to 5 ms of silence                            a thread of ours asleep in epoll_wait
//!  eventfd -------------------------------------> woken by the kernel       floor
//!  polls a word <--------------------------------- writes it
//! ```
//!
//! The three take turns, so the machine is the same for all. What a first frame takes beyond a polled
//! one is the price of sleeping; the floor is the part of it that any thread would pay on this
//! machine to be woken on that core: on a virtual one mostly the way through the hypervisor.
//!
//! The generator never sleeps, and notes when it was off its core while it waited: how long the frame
//! took is not known then, so that sample is dropped and counted.
//!
//! With another port busy the polling thread is awake, and looks for kicks now and then
//! (`kick_check_us`). There is no floor to that: nobody is woken.

use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, ensure};
use dataplane::clock;
use dataplane::testing::{Guest, RxQueue, TxQueue};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::ends::{Sink as _, Source as _};
use crate::interrupt;
use crate::measure::{self, Conditions, LOST, Sample};
use crate::peer::number;
use crate::rig::pin;
use crate::scenario::{Figure, Traffic};
use crate::traffic::Pattern;

/// Samples at least.
const LEAST: usize = 300;
/// Silences before a frame: the shortest, and what they are spread over.
const SHORTEST_US: u64 = 1000;
const SPREAD_US: u64 = 4000;
/// From one silence to the next: coprime to the spread, so that all of it is covered.
const STEP_US: u64 = 613;
/// A generator that does not look at its ring for so long was off its core.
const GAP_US: u64 = 20;
/// Between two frames of the port that keeps the polling thread awake.
const TRICKLE_US: u64 = 10;

/// Sends now and then from one port to another, so that the polling thread stays awake.
struct Trickle<'a> {
    source: &'a mut TxQueue,
    sink: &'a mut RxQueue,
    pattern: Pattern,
    due: u64,
}

impl Trickle<'_> {
    fn turn(&mut self, now: u64) -> Result<()> {
        if now >= self.due {
            self.due = now + TRICKLE_US * clock::ticks_per_us();
            self.source.send_burst(1, |slot| self.pattern.fill(slot))?;
        }
        self.sink.receive_burst(64, |_| ())?;
        Ok(())
    }
}

/// The generator's side.
struct Waker<'a> {
    source: &'a mut TxQueue,
    sink: &'a mut RxQueue,
    pattern: Pattern,
    trickle: Option<Trickle<'a>>,
    /// Samples dropped because the generator was off its core.
    disturbed: u64,
}

/// Measures among `guests`, of which the first `active` have traffic in other scenarios.
///
/// # Errors
/// A frame was lost, or the switch broke the rules of a ring; someone wants us to end.
pub fn measure(
    (traffic, len): (Traffic, usize),
    guests: &mut [Guest],
    sleeps: bool,
    conditions: &Conditions,
) -> Result<Sample> {
    let is_other_busy = traffic == Traffic::WakeUpBusy;
    // The port that sleeps is another than the busy one, which is the first.
    let from = if is_other_busy { 2 } else { 0 };
    let to = from + 1;
    ensure!(guests.len() > to, "Too few ports");
    let (mut sinks, mut sources) = measure::rings(guests);
    for (a, b) in [(from, to), (to, from)] {
        measure::introduce(sources[a], sinks[b], (a, b))?;
    }
    // A switch that asks another thread of its own where to send them may still have some.
    thread::sleep(measure::SILENCE);
    for sink in &mut sinks {
        while sink.receive_burst(64, |_| ())? > 0 {}
    }
    let pattern = Pattern::udp(number(from), &[number(to)], len, 1);
    let mut sinks = sinks.into_iter();
    let mut sources = sources.into_iter();
    let trickle = if is_other_busy {
        let source = sources.next().context("Too few ports")?;
        let sink = sinks.nth(1).context("Too few ports")?;
        // The second guest's transmit ring is not needed.
        sources.next();
        let pattern = Pattern::udp(number(0), &[number(1)], len, 1);
        Some(Trickle { source, sink, pattern, due: 0 })
    } else {
        None
    };
    let source = sources.next().context("Too few ports")?;
    let sink = sinks.nth(1).context("Too few ports")?;
    let mut waker = Waker { source, sink, pattern, trickle, disturbed: 0 };
    // A floor makes sense only where the core is left to it.
    let floor = (sleeps && !is_other_busy).then(|| Floor::start(conditions.core)).transpose()?;
    waker.run(floor.as_ref(), conditions.window_ms)
}

impl Waker<'_> {
    fn run(&mut self, floor: Option<&Floor>, ms: u64) -> Result<Sample> {
        let per_us = clock::ticks_per_us();
        let begin = clock::ticks();
        let end = begin + ms * 1000 * per_us;
        let (mut first, mut polled, mut floors) = (Vec::new(), Vec::new(), Vec::new());
        let mut silence = 0;
        while clock::ticks() < end || first.len() < LEAST {
            interrupt::check()?;
            silence = (silence + STEP_US) % SPREAD_US;
            self.wait(SHORTEST_US + silence)?;
            let taken = self.frame()?;
            first.extend(taken);
            polled.extend(self.frame()?);
            if let Some(floor) = floor {
                self.wait(SHORTEST_US + silence)?;
                floors.extend(self.note(floor.wake()?));
            }
            ensure!(
                self.disturbed < 100 + 10 * first.len() as u64,
                "The generator was off its core in {} of {} samples; leave the machine alone",
                self.disturbed,
                self.disturbed + first.len() as u64
            );
        }
        let length_ms = (clock::ticks() - begin) as f64 / per_us as f64 / 1e3;
        let us = |ticks: u64| ticks as f64 / per_us as f64;
        let (first, polled) = (Quantiles::of(first), Quantiles::of(polled));
        let (first, polled) = (first.context("No sample")?, polled.context("No sample")?);
        let extra = us(first.p99) - us(polled.p50);
        let mut figures = vec![
            (Figure::P50Us, us(first.p50)),
            (Figure::P99Us, us(first.p99)),
            (Figure::PolledUs, us(polled.p50)),
            (Figure::ExtraP99Us, extra),
        ];
        if let Some(floor) = Quantiles::of(floors) {
            figures.push((Figure::FloorP50Us, us(floor.p50)));
            figures.push((Figure::FloorP99Us, us(floor.p99)));
            figures.push((Figure::BeyondFloorUs, extra - us(floor.p99)));
        }
        let figures = figures.into_iter().collect();
        Ok(Sample { figures, disturbed: self.disturbed, length_ms, ..Sample::default() })
    }

    /// Silence, spun away.
    fn wait(&mut self, us: u64) -> Result<()> {
        let end = clock::ticks() + us * clock::ticks_per_us();
        loop {
            let now = clock::ticks();
            if now >= end {
                return Ok(());
            }
            if let Some(trickle) = &mut self.trickle {
                trickle.turn(now)?;
            }
            std::hint::spin_loop();
        }
    }

    /// Ticks from sending one frame to finding it, if that is known.
    fn frame(&mut self) -> Result<Option<u64>> {
        let begin = clock::ticks();
        let pattern = &mut self.pattern;
        let sent = self.source.send_burst(1, |slot| pattern.fill(slot))?;
        ensure!(sent == 1, "The switch took none of a whole ring of frames");
        let (sink, trickle) = (&mut *self.sink, &mut self.trickle);
        let taken = watch(begin, |now| {
            if let Some(trickle) = trickle {
                trickle.turn(now)?;
            }
            Ok(sink.receive_burst(1, |_| ())? > 0)
        })?;
        Ok(self.note(taken))
    }

    fn note(&mut self, taken: Option<u64>) -> Option<u64> {
        self.disturbed += u64::from(taken.is_none());
        taken
    }
}

/// Ticks from `begin` until `is_there`, which is asked without a pause; `None` if we were off our core
/// meanwhile.
fn watch(begin: u64, mut is_there: impl FnMut(u64) -> Result<bool>) -> Result<Option<u64>> {
    let per_us = clock::ticks_per_us();
    let deadline = begin + LOST.as_micros() as u64 * per_us;
    let mut last = clock::ticks();
    let mut was_off = false;
    loop {
        let came = is_there(last)?;
        let now = clock::ticks();
        was_off |= now - last > GAP_US * per_us;
        if came {
            return Ok((!was_off).then_some(now - begin));
        }
        ensure!(now < deadline, "A lone frame did not arrive within {LOST:?}");
        last = now;
    }
}

/// What a thread costs that sleeps in epoll_wait until an eventfd is written: the kernel's part, and
/// the hypervisor's, of any wake-up on its core.
struct Floor {
    event: EventFd,
    shared: Arc<FloorShared>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Default)]
struct FloorShared {
    /// How often it was woken.
    answered: AtomicU64,
    is_over: AtomicU64,
}

impl Floor {
    fn start(core: usize) -> Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK).context("Failed to make an eventfd")?;
        let (theirs, shared) = (event.try_clone()?, Arc::new(FloorShared::default()));
        let of_thread = Arc::clone(&shared);
        let thread = thread::Builder::new().name("floor".into()).spawn(move || {
            pin(core)?;
            answer(&theirs, &of_thread)
        })?;
        Ok(Self { event, shared, thread: Some(thread) })
    }

    /// Ticks from waking it to its answer.
    fn wake(&self) -> Result<Option<u64>> {
        let before = self.shared.answered.load(Ordering::Acquire);
        let begin = clock::ticks();
        self.event.write(1).context("Failed to write to an eventfd")?;
        watch(begin, |_| Ok(self.shared.answered.load(Ordering::Acquire) != before))
    }
}

fn answer(event: &EventFd, shared: &FloorShared) -> Result<()> {
    let epoll = Epoll::new()?;
    epoll.ctl(ControlOperation::Add, event.as_raw_fd(), EpollEvent::new(EventSet::IN, 0))?;
    let mut events = [EpollEvent::default()];
    while shared.is_over.load(Ordering::Acquire) == 0 {
        if epoll.wait(-1, &mut events)? > 0 {
            // Before the answer: what is written after it must wake us again.
            event.read()?;
            shared.answered.fetch_add(1, Ordering::Release);
        }
    }
    Ok(())
}

impl Drop for Floor {
    fn drop(&mut self) {
        self.shared.is_over.store(1, Ordering::Release);
        // Its counter is far from full, so this cannot fail.
        let _ = self.event.write(1);
        if let Some(thread) = self.thread.take() {
            // What went wrong was noticed as an answer that did not come.
            let _ = thread.join();
        }
    }
}

/// Two of a list's quantiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantiles {
    /// Half are at most this.
    pub p50: u64,
    /// Of a hundred one exceeds this.
    pub p99: u64,
}

impl Quantiles {
    /// Of `values`, if there are any.
    pub fn of(mut values: Vec<u64>) -> Option<Self> {
        values.sort_unstable();
        let last = values.len().checked_sub(1)?;
        let at = |percent: usize| values[(values.len() * percent / 100).min(last)];
        Some(Self { p50: at(50), p99: at(99) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silences_cover_the_whole_spread() {
        let steps = (SPREAD_US / 4) as usize;
        let of = |n: usize| (n as u64 * STEP_US) % SPREAD_US;
        let mut silences: Vec<_> = (0..LEAST).map(of).collect();
        silences.sort_unstable();
        let widest = silences.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
        assert!(widest < steps as u64 / 10, "{widest}");
    }

    #[test]
    fn a_wait_in_which_the_watcher_was_away_has_no_length() {
        let gap = GAP_US * clock::ticks_per_us();
        let mut looks = 0;
        let taken = watch(clock::ticks(), |now| {
            looks += 1;
            while looks == 2 && clock::ticks() - now <= gap {}
            Ok(looks == 3)
        });
        assert_eq!(taken.unwrap(), None);
    }

    #[test]
    fn the_floor_answers_each_time_it_is_woken_and_ends() {
        let Ok((_, core)) = crate::rig::cores() else { return };
        let floor = Floor::start(core).unwrap();
        for _ in 0..3 {
            floor.wake().unwrap();
        }
        assert_eq!(floor.shared.answered.load(Ordering::Acquire), 3);
        let shared = Arc::clone(&floor.shared);
        drop(floor);
        assert_eq!(Arc::strong_count(&shared), 1, "its thread has ended");
    }

    #[test]
    fn quantiles_are_values_that_were_measured() {
        assert_eq!(Quantiles::of(vec![]), None);
        assert_eq!(Quantiles::of(vec![7]), Some(Quantiles { p50: 7, p99: 7 }));
        let all = Quantiles::of((0..200).rev().collect());
        assert_eq!(all, Some(Quantiles { p50: 100, p99: 198 }));
    }
}
