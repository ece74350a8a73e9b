//! One scenario measured once on one switch, and the proof beforehand that it carries frames whole.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use dataplane::clock;
use dataplane::testing::frames::{Ledger, Stamp};
use dataplane::testing::{Guest, QueuePair, RxQueue, TxQueue};

use crate::distance::{Distance, core_round_trip_ns};
use crate::ends::{Frame as _, Sink, Slot as _, Source};
use crate::host::Process;
use crate::interrupt;
use crate::peer::ideal::Ideal;
use crate::peer::{Peer, Work, number};
use crate::scenario::{Figure, Scenario, Traffic};
use crate::traffic::{self, Pattern};
use crate::wake::{self, Quantiles};

/// Frames of the proof, in each direction.
const PROOF_FRAMES: u64 = 20_000;
/// And when they are super-frames.
const PROOF_SUPER_FRAMES: u64 = 500;
/// How long a frame may take before it counts as lost.
pub const LOST: Duration = Duration::from_secs(1);
/// Between two round trips.
const PAUSE_US: u64 = 20;
/// A silence in which what is under way arrives.
pub const SILENCE: Duration = Duration::from_millis(10);
/// Least time over which CPU time is told: less is noise.
const IDLE_MS: u64 = 200;

/// What one window gave.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// The numbers.
    pub figures: BTreeMap<Figure, f64>,
    /// Share of its time that the generator waited for the switch, where it is ours.
    pub waited_share: Option<f64>,
    /// Share of its time that the polling thread looked for frames in vain, where it counts that.
    pub idle_share: Option<f64>,
    /// Single measurements that were dropped because the generator was off its core.
    pub disturbed: u64,
    /// How long it took, in milliseconds.
    pub length_ms: f64,
    /// Nanoseconds of a cache line from core to core and back just before and just after it, where that
    /// matters.
    pub distances_ns: Vec<f64>,
    /// Not at the [usual distance](Distance) throughout: nothing to compare others with.
    pub is_apart: bool,
}

impl Sample {
    /// Whether the cores were where they are to be when it began, and not any more when it ended.
    pub fn has_moved(&self, conditions: &Conditions) -> bool {
        let began_well = conditions
            .distance
            .zip(self.distances_ns.first())
            .is_some_and(|(usual, &ns)| usual.is(ns));
        began_well && self.is_apart
    }

    /// With the looks around it.
    pub fn between(mut self, before_ns: f64, conditions: &Conditions) -> Self {
        self.distances_ns = vec![before_ns, core_round_trip_ns(conditions.core)];
        self.is_apart = conditions
            .distance
            .is_some_and(|usual| !self.distances_ns.iter().all(|&ns| usual.is(ns)));
        self
    }
}

/// How it is measured.
#[derive(Debug, Clone, Copy)]
pub struct Conditions {
    /// Length of a window in milliseconds.
    pub window_ms: u64,
    /// Length of what precedes it, so that it begins in full swing.
    pub warm_up_ms: u64,
    /// The polling thread's core.
    pub core: usize,
    /// How far that is to be from the generator's; `None`: as it comes.
    pub distance: Option<Distance>,
}

impl Conditions {
    /// Has `stir` do what precedes a window, until the cores are as far from each other as they are to
    /// be; returns how far they are.
    ///
    /// # Errors
    /// Those of `stir`.
    pub fn settle(&self, mut stir: impl FnMut() -> Result<()>) -> Result<f64> {
        match self.distance {
            Some(distance) => distance.settle(self.core, stir),
            None => {
                stir()?;
                Ok(core_round_trip_ns(self.core))
            }
        }
    }
}

/// Measures `scenario` between `guests`, one at each port.
///
/// # Errors
/// The switch broke a rule, lost a lone frame, or does not say what it did; someone wants us to end.
pub fn measure(
    scenario: &Scenario,
    guests: &mut [Guest],
    peer: &mut dyn Peer,
    conditions: &Conditions,
) -> Result<Sample> {
    interrupt::check()?;
    let len = scenario.frame_bytes();
    let ms = conditions.window_ms;
    if let traffic @ (Traffic::WakeUp | Traffic::WakeUpBusy) = scenario.traffic {
        return wake::measure((traffic, len), guests, peer.sleeps(), conditions);
    }
    let guests = &mut guests[..scenario.setup.active];
    match scenario.traffic {
        Traffic::Idle => return idle(peer, ms),
        Traffic::RoundTrip => return round_trips(guests, len, conditions),
        Traffic::Circle => bail!("DPDK's guests have their own measurement"),
        _ => {}
    }
    let receivers: Vec<u32> = (1..guests.len()).map(number).collect();
    let pattern = |from, to: &[u32]| match scenario.setup.tso {
        true => Pattern::tso(from, to[0]),
        false => Pattern::udp(from, to, len, scenario.flows),
    };
    let (mut sinks, mut sources) = rings(guests);
    let first = number(0);
    let mut senders = match scenario.traffic {
        Traffic::BothWays => sources
            .drain(..2)
            .zip([pattern(first, &[number(1)]), pattern(number(1), &[first])])
            .collect(),
        Traffic::Fan => vec![(sources.remove(0), pattern(first, &receivers))],
        _ => vec![(sources.remove(0), pattern(first, &receivers[..1]))],
    };
    let both = scenario.traffic == Traffic::BothWays;
    forwarding(&mut senders, &mut sinks[usize::from(!both)..], conditions, || peer.work())
}

/// Measures one way through the ideal loop.
///
/// # Errors
/// As [`measure`].
pub fn measure_ideal(
    scenario: &Scenario,
    ideal: &mut Ideal,
    conditions: &Conditions,
) -> Result<Sample> {
    interrupt::check()?;
    let pattern = Pattern::udp(number(0), &[number(1)], scenario.frame_bytes(), scenario.flows);
    let Ideal { source, sink, shared, .. } = ideal;
    forwarding(&mut [(source, pattern)], &mut [sink], conditions, || Ok(shared.work()))
}

/// The receive rings and the transmit rings of guests.
pub fn rings(guests: &mut [Guest]) -> (Vec<&mut RxQueue>, Vec<&mut TxQueue>) {
    let rings = guests.iter_mut().map(|guest| {
        let QueuePair { rx, tx } = guest.pair(0);
        (rx, tx)
    });
    rings.unzip()
}

fn forwarding<S: Source, R: Sink>(
    senders: &mut [(&mut S, Pattern)],
    receivers: &mut [&mut R],
    conditions: &Conditions,
    mut work: impl FnMut() -> Result<Work>,
) -> Result<Sample> {
    let &Conditions { window_ms: ms, warm_up_ms, .. } = conditions;
    let warm_up = || traffic::window(senders, receivers, warm_up_ms).map(drop);
    let distance_ns = conditions.settle(warm_up)?;
    let before = work()?;
    let window = traffic::window(senders, receivers, ms)?;
    let after = work()?;
    let mut sources: Vec<_> = senders.iter_mut().map(|(source, _)| &mut **source).collect();
    traffic::drain_all(&mut sources, receivers)?;
    ensure!(window.frames > 0, "No frame came through in {ms} ms");
    std::hint::black_box(window.seen);
    let idle_share = after.idle_share_since(&before);
    let cycles = after.ticks_per_frame_since(&before);
    let mut figures =
        BTreeMap::from([(Figure::Mpps, window.mpps()), (Figure::Gbps, window.gbps())]);
    figures.extend(cycles.map(|cycles| (Figure::CyclesPerFrame, cycles)));
    let (waited_share, length_ms) = (Some(window.waited_share()), window.seconds * 1e3);
    let sample = Sample { figures, waited_share, idle_share, length_ms, ..Sample::default() };
    Ok(sample.between(distance_ns, conditions))
}

fn idle(peer: &mut dyn Peer, ms: u64) -> Result<Sample> {
    // Past the polling that follows traffic.
    std::thread::sleep(Duration::from_millis(300));
    let before = Process::cpu_ns(peer.pid())?;
    let begin = clock::ticks();
    std::thread::sleep(Duration::from_millis(ms.max(IDLE_MS)));
    let used = Process::cpu_ns(peer.pid())?.saturating_sub(before) as f64;
    let passed = (clock::ticks() - begin) as f64 * 1e3 / clock::ticks_per_us() as f64;
    let figures = [(Figure::CpuPercent, used / passed * 100.0)].into();
    Ok(Sample { figures, length_ms: passed / 1e6, ..Sample::default() })
}

fn round_trips(guests: &mut [Guest], len: usize, conditions: &Conditions) -> Result<Sample> {
    let mut there = Pattern::udp(number(0), &[number(1)], len, 1);
    let mut back = Pattern::udp(number(1), &[number(0)], len, 1);
    let (mut sinks, mut sources) = rings(guests);
    let per_us = clock::ticks_per_us();
    let mut trips = |ms: u64| -> Result<Vec<u64>> {
        let end = clock::ticks() + ms * 1000 * per_us;
        let mut taken = Vec::new();
        while clock::ticks() < end || taken.is_empty() {
            let begin = clock::ticks();
            pass(sources[0], sinks[1], &mut there)?;
            pass(sources[1], sinks[0], &mut back)?;
            let now = clock::ticks();
            taken.push(now - begin);
            while clock::ticks() < now + PAUSE_US * per_us {
                std::hint::spin_loop();
            }
        }
        Ok(taken)
    };
    let distance_ns = conditions.settle(|| trips(conditions.warm_up_ms).map(drop))?;
    let begin = clock::ticks();
    let taken = trips(conditions.window_ms)?;
    let length_ms = (clock::ticks() - begin) as f64 / per_us as f64 / 1e3;
    let quantiles = Quantiles::of(taken).context("No round trip")?;
    let us = |ticks: u64| ticks as f64 / per_us as f64;
    let figures = [(Figure::P50Us, us(quantiles.p50)), (Figure::P99Us, us(quantiles.p99))];
    let sample = Sample { figures: figures.into(), length_ms, ..Sample::default() };
    Ok(sample.between(distance_ns, conditions))
}

/// One frame, and waiting for it.
fn pass(source: &mut TxQueue, sink: &mut RxQueue, pattern: &mut Pattern) -> Result<()> {
    let deadline = clock::ticks() + LOST.as_micros() as u64 * clock::ticks_per_us();
    while source.send_burst(1, |slot| pattern.fill(slot))? == 0 {
        ensure!(clock::ticks() < deadline, "The switch takes no frame within {LOST:?}");
    }
    while sink.receive_burst(1, |_| ())? == 0 {
        ensure!(clock::ticks() < deadline, "A lone frame did not arrive within {LOST:?}");
        std::hint::spin_loop();
    }
    Ok(())
}

/// Sends from each guest to its neighbour until that arrives: the switch has started its rings and
/// knows where everybody is.
///
/// # Errors
/// Nothing arrives.
pub fn settle(guests: &mut [Guest]) -> Result<()> {
    let (mut sinks, mut sources) = rings(guests);
    for from in (0..sources.len()).chain([0]) {
        let to = if from == 0 { 1 } else { 0 };
        introduce(sources[from], sinks[to], (from, to))?;
    }
    // A switch that asks another thread of its own where to send them may still have some.
    std::thread::sleep(SILENCE);
    traffic::drain_all(&mut sources, &mut sinks)
}

/// Sends from the guest at port `from` to that at port `to` until something arrives there.
///
/// # Errors
/// Nothing does.
pub fn introduce(
    source: &mut TxQueue,
    sink: &mut RxQueue,
    (from, to): (usize, usize),
) -> Result<()> {
    const LIMIT_S: u64 = 20;
    let deadline = clock::ticks() + LIMIT_S * 1_000_000 * clock::ticks_per_us();
    let mut pattern = Pattern::hello(number(from), number(to));
    loop {
        interrupt::check()?;
        source.send_burst(1, |slot| pattern.fill(slot))?;
        source.outstanding()?;
        std::thread::sleep(Duration::from_millis(1));
        if sink.receive_burst(64, |_| ())? > 0 {
            return Ok(());
        }
        if clock::ticks() > deadline {
            bail!("Nothing arrives at guest {to} from guest {from} within {LIMIT_S} s");
        }
    }
}

/// Proves that what `guests` send each other arrives once, in order and byte for byte.
///
/// # Errors
/// It does not: what got lost, doubled, reordered or corrupt.
pub fn prove(guests: &mut [Guest], tso: bool) -> Result<()> {
    let (mut sinks, mut sources) = rings(guests);
    let others = 1..sources.len();
    for (from, to) in others.clone().map(|n| (0, n)).chain(others.map(|n| (n, 0))) {
        let (a, b) = (number(from), number(to));
        let frames = if tso { PROOF_SUPER_FRAMES } else { PROOF_FRAMES };
        prove_one_way(sources[from], sinks[to], &stamped(a, b, tso), frames)
            .with_context(|| format!("Frames from guest {from} to guest {to}"))?;
    }
    Ok(())
}

/// As [`prove`], of the ideal loop.
///
/// # Errors
/// As [`prove`].
pub fn prove_ideal(ideal: &mut Ideal) -> Result<()> {
    let patterns = stamped(number(0), number(1), false);
    prove_one_way(&mut ideal.source, &mut ideal.sink, &patterns, PROOF_FRAMES)
}

/// Frames of several sizes to be stamped.
fn stamped(from: u32, to: u32, tso: bool) -> Vec<Pattern> {
    if tso {
        return vec![Pattern::tso(from, to)];
    }
    [60, 61, 252, 1514].map(|len| Pattern::udp(from, &[to], len, 1)).into()
}

fn prove_one_way<S: Source, R: Sink>(
    source: &mut S,
    sink: &mut R,
    patterns: &[Pattern],
    frames: u64,
) -> Result<()> {
    let headers = patterns[0].headers();
    // So few that the receiver has buffers for all of them, whatever their size.
    let most = if patterns[0].len() > PAGE { 8 } else { 128 };
    let mut ledger = Ledger::default();
    let (mut sent, mut received) = (0, 0);
    let mut bytes = Vec::new();
    let mut deadline = clock::ticks() + LOST.as_micros() as u64 * clock::ticks_per_us();
    while received < frames {
        let burst = (most - (sent - received)).min(frames - sent) as usize;
        let went = source.send_burst(burst, |slot| {
            let pattern = &patterns[sent as usize % patterns.len()];
            bytes.clear();
            bytes.extend_from_slice(pattern.frame(0));
            Stamp { flow: 1, sequence: sent }.fill(&mut bytes[headers..]);
            slot.patch(0, &bytes);
            slot.set_len(bytes.len());
            slot.set_header(pattern.virtio());
            sent += 1;
        })?;
        let mut came = 0;
        sink.receive_burst(64, |frame| {
            bytes.resize(frame.len(), 0);
            frame.read(0, &mut bytes);
            if traffic::is_hello(&bytes) {
                return;
            }
            came += 1;
            let payload = bytes.get(headers..).unwrap_or_default();
            // Counted by the ledger; the verdict comes at the end.
            let _ = ledger.enter(payload);
        })?;
        received += came;
        if went > 0 || came > 0 {
            deadline = clock::ticks() + LOST.as_micros() as u64 * clock::ticks_per_us();
        } else if clock::ticks() > deadline {
            break;
        }
    }
    ensure!(
        ledger.is_perfect(frames),
        "Of {frames} frames {received} arrived, {} of them corrupt; {:?}",
        ledger.corrupt(),
        ledger.total()
    );
    Ok(())
}

/// Frames beyond this take several receive buffers.
const PAGE: usize = 4096;
