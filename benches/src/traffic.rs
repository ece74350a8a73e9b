//! Load between guests: one thread drives the sender's and the receiver's rings in turn.
//!
//! The sender writes every frame anew (addresses and a word in each cache line), the receiver reads
//! every cache line of what it gets, so that no cost of a real guest is left out.

use anyhow::{Context, Result};
use dataplane::clock;
use dataplane::testing::Guest;

use crate::local::Address;

/// Frames sent and received before the other side's turn.
const BURST: usize = 32;

/// What went through in one window.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// Frames received.
    pub frames: u64,
    /// Length of the window in seconds.
    pub seconds: f64,
    /// Turns in which the sender found no room in its ring: the switch was the bottleneck.
    pub full_turns: u64,
    /// All turns of the sender.
    pub turns: u64,
    /// Sum of what the receiver read, so that it did read it.
    pub seen: u64,
}

impl Window {
    /// Millions of frames per second.
    pub fn mpps(&self) -> f64 {
        self.frames as f64 / self.seconds / 1e6
    }

    /// Whether the generator, not the switch, was the limit.
    pub fn is_generator_bound(&self) -> bool {
        self.full_turns * 2 < self.turns
    }
}

/// A frame from `from` to `to`, `len` bytes without FCS: an Ethernet header with the EtherType for
/// local experiments (IEEE 802), then zeroes.
pub fn frame(to: [u8; 6], from: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame = vec![0; len];
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    frame[12..14].copy_from_slice(&0x88b5_u16.to_be_bytes());
    frame
}

/// A UDP datagram from one guest to the other, as [`frame`].
pub fn ipv4((to, to_ip): Address, (from, from_ip): Address, len: usize) -> Vec<u8> {
    let mut frame = frame(to, from, len);
    frame[12..14].copy_from_slice(&0x0800_u16.to_be_bytes());
    frame[14] = 0x45;
    frame[16..18].copy_from_slice(&(len as u16 - 14).to_be_bytes());
    (frame[22], frame[23]) = (64, 17);
    frame[26..30].copy_from_slice(&from_ip);
    frame[30..34].copy_from_slice(&to_ip);
    frame[38..40].copy_from_slice(&(len as u16 - 34).to_be_bytes());
    frame
}

/// Sends `template` from `sender` to `receiver` as fast as both go, for `ms` milliseconds.
pub fn one_way(
    sender: &mut Guest,
    receiver: &mut Guest,
    template: &[u8],
    ms: u64,
) -> Result<Window> {
    let per_ms = clock::ticks_per_us() * 1000;
    let mut window = Window { frames: 0, seconds: 0.0, full_turns: 0, turns: 0, seen: 0 };
    let mut word = 0_u64;
    let begin = clock::ticks();
    let end = begin + ms * per_ms;
    loop {
        let sent = send(sender, template, &mut word)?;
        window.turns += 1;
        window.full_turns += u64::from(sent < BURST);
        window.frames += receive(receiver, &mut window.seen)?;
        // Not each turn: the clock costs as much as a frame.
        if window.turns.is_multiple_of(16) && clock::ticks() >= end {
            break;
        }
    }
    window.seconds = (clock::ticks() - begin) as f64 / per_ms as f64 / 1e3;
    Ok(window)
}

/// Sends until `frames` frames of `template` were received; stops early only on a fault.
///
/// Frames that found no buffer are sent again, as a transport would.
pub fn exactly(
    sender: &mut Guest,
    receiver: &mut Guest,
    template: &[u8],
    frames: u64,
) -> Result<()> {
    let (mut received, mut word, mut seen) = (0, 0, 0);
    while received < frames {
        send(sender, template, &mut word)?;
        received += receive(receiver, &mut seen)?;
    }
    std::hint::black_box(seen);
    drain(sender, receiver)
}

/// One burst of the sender. Returns how many frames had room.
#[inline]
fn send(sender: &mut Guest, template: &[u8], word: &mut u64) -> Result<usize> {
    let sent = sender.tx().tx_burst(BURST, |slot| {
        *word = word.wrapping_add(1);
        if template.len() <= 128 {
            slot.write(template);
        } else {
            // Buffers are written in full the first time round; then what a guest stack writes
            // anew is stood for by the addresses and a word in each further cache line.
            slot.patch(0, &template[..14]);
            for at in (64..template.len() - 8).step_by(64) {
                slot.patch(at, &word.to_ne_bytes());
            }
            slot.set_len(template.len());
        }
        slot.patch(16, &word.to_ne_bytes());
    });
    sent.context("the switch broke the rules of the transmit ring")
}

#[inline]
fn receive(receiver: &mut Guest, seen: &mut u64) -> Result<u64> {
    let mut sum = 0_u64;
    let got = receiver.rx().rx_burst(2 * BURST, |frame| {
        for at in (0..frame.len() - 7).step_by(64) {
            sum = sum.wrapping_add(u64::from_ne_bytes(frame.array(at)));
        }
    });
    *seen = seen.wrapping_add(sum);
    Ok(got.context("the switch broke the rules of the receive ring")? as u64)
}

/// Takes what is still under way, so that the next window starts with empty rings.
pub fn drain(sender: &mut Guest, receiver: &mut Guest) -> Result<()> {
    let deadline = clock::ticks() + clock::ticks_per_us() * 1_000_000;
    let mut seen = 0;
    while clock::ticks() < deadline {
        sender.tx().tx_reap().context("transmit ring")?;
        let got = receive(receiver, &mut seen)?;
        if got == 0 && sender.tx().in_flight() == 0 {
            return Ok(());
        }
    }
    anyhow::bail!("frames did not come through within a second")
}
