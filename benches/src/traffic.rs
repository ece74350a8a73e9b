//! Load between guests: one thread drives senders and receivers in turn.
//!
//! The sender writes every frame anew (its headers and a word in each further cache line), the
//! receiver reads every cache line of what it gets, so that no cost of a real guest is left out. Of
//! super-frames both touch a word in each page: a guest's stack sends pages of files as they are, and
//! a generator that wrote them would be what is measured.

use std::net::Ipv4Addr;

use anyhow::{Result, bail};
use dataplane::clock;
use dataplane::testing::frames::FrameBuilder;
use dataplane::testing::{Guest, VirtioNetHdr};

use crate::ends::{Frame, Sink, Slot, Source};
use crate::interrupt;
use crate::limit;
use crate::local::Address;

/// Frames sent and received before the other side's turn.
const BURST: usize = 32;
/// Bytes of Ethernet, IPv4 and UDP headers.
const UDP_HEADERS: usize = 42;
/// Bytes of Ethernet, IPv4 and TCP headers.
const TCP_HEADERS: usize = 54;
/// Where a frame's UDP source port is, which tells its flow.
const SOURCE_PORT: usize = 34;
/// Frames up to this size are written whole.
const SMALL: usize = 128;
/// Frames beyond this size are super-frames.
const LARGE: usize = 16_384;
/// Payload of a segment that a super-frame is to be cut into.
const SEGMENT: u16 = 1448;
/// Segments of a super-frame: as many as an IPv4 packet has room for.
const SEGMENTS: usize = 45;

/// What went through in one window.
#[derive(Debug, Clone, Copy, Default)]
pub struct Window {
    /// Frames received.
    pub frames: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Length of the window in seconds.
    pub seconds: f64,
    /// Seconds in which no ring had room and nothing had arrived: the switch was the bottleneck.
    pub waited: f64,
    /// Sum of what the receivers read, so that they did read it.
    pub seen: u64,
}

impl Window {
    /// Millions of frames per second.
    pub fn mpps(&self) -> f64 {
        self.frames as f64 / self.seconds / 1e6
    }

    /// Billions of bits per second.
    pub fn gbps(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.seconds / 1e9
    }

    /// For which share of its time the generator waited for the switch.
    pub fn waited_share(&self) -> f64 {
        self.waited / self.seconds
    }

    /// Whether the generator, not the switch, was the limit.
    pub fn is_generator_bound(&self) -> bool {
        limit::has_waited_little(self.waited_share())
    }
}

/// What a sender sends: frames that differ in where they go, and in their flow.
#[derive(Debug, Clone)]
pub struct Pattern {
    /// A frame for each receiver; they get them in turn.
    frames: Vec<Vec<u8>>,
    /// Bytes in front of each that are written anew in every frame.
    headers: usize,
    virtio: VirtioNetHdr,
    flows: u32,
    sent: u64,
}

impl Pattern {
    /// `frame`, over and over.
    pub fn plain(frame: &[u8]) -> Self {
        Self::new(vec![frame.to_vec()], 14, VirtioNetHdr::default())
    }

    fn new(frames: Vec<Vec<u8>>, headers: usize, virtio: VirtioNetHdr) -> Self {
        Self { frames, headers, virtio, flows: 1, sent: 0 }
    }

    /// UDP in IPv4 from `from` to each of `to` in turn, `len` bytes without FCS; of `flows` flows.
    pub fn udp(from: u32, to: &[u32], len: usize, flows: u32) -> Self {
        assert!((1..=40_000).contains(&flows), "a flow for each of some source ports");
        let frame = |&to: &u32| {
            let builder = headers(from, to).udp(FIRST_PORT, DISCARD);
            let mut frame = builder.filled_to(len, 0).build();
            // No checksum (RFC 768): it would have to differ from flow to flow.
            frame[40..42].fill(0);
            frame
        };
        let frames = to.iter().map(frame).collect();
        Self { flows, ..Self::new(frames, UDP_HEADERS, VirtioNetHdr::default()) }
    }

    /// Frames that say where `from` is, to tell from what is measured: switches that learn may
    /// deliver them late.
    pub fn hello(from: u32, to: u32) -> Self {
        let mut pattern = Self::udp(from, &[to], 60, 1);
        pattern.frames[0][DESTINATION_PORT..][..2].copy_from_slice(&HELLO.to_be_bytes());
        pattern
    }

    /// TCP super-frames in IPv4 from `from` to `to`, as long as they can be.
    pub fn tso(from: u32, to: u32) -> Self {
        let payload = vec![0; usize::from(SEGMENT) * SEGMENTS];
        let builder = headers(from, to).tcp(FIRST_PORT, DISCARD, 1).payload(&payload);
        let (virtio, frame) = builder.build_gso(SEGMENT);
        Self::new(vec![frame], TCP_HEADERS, virtio)
    }

    /// Bytes of a frame without FCS.
    pub fn len(&self) -> usize {
        self.frames[0].len()
    }

    /// Whether frames have no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The virtio-net header of each frame.
    pub fn virtio(&self) -> VirtioNetHdr {
        self.virtio
    }

    /// Bytes of headers in front of the payload.
    pub fn headers(&self) -> usize {
        self.headers
    }

    /// Headers of the frames to the `n`th receiver, then zeroes.
    pub fn frame(&self, n: usize) -> &[u8] {
        &self.frames[n]
    }

    /// Frames sent before the other side's turn.
    fn burst(&self) -> usize {
        if self.len() > LARGE { BURST / 8 } else { BURST }
    }

    /// Writes the next frame.
    #[inline(always)]
    pub fn fill(&mut self, slot: &mut impl Slot) {
        self.sent = self.sent.wrapping_add(1);
        let word = self.sent.to_ne_bytes();
        let frame = match self.frames.as_slice() {
            [one] => one,
            several => &several[self.sent as usize % several.len()],
        };
        if frame.len() <= SMALL {
            slot.patch(0, frame);
        } else {
            // What a guest stack writes anew is stood for by the headers and a word in each further
            // cache line.
            slot.patch(0, &frame[..self.headers]);
            for at in (64..frame.len() - 8).step_by(touched(frame.len())) {
                slot.patch(at, &word);
            }
        }
        slot.patch(48.max(self.headers).min(frame.len() - 8), &word);
        if self.flows > 1 {
            let port = FIRST_PORT + (self.sent % u64::from(self.flows)) as u16;
            slot.patch(SOURCE_PORT, &port.to_be_bytes());
        }
        slot.set_len(frame.len());
        slot.set_header(self.virtio);
    }
}

/// Where a frame's UDP destination port is, and which one says that somebody is there: echo.
const DESTINATION_PORT: usize = 36;
const HELLO: u16 = 7;
/// Where the others go: discard.
const DISCARD: u16 = 9;
/// The source port of the first flow.
const FIRST_PORT: u16 = 10_000;

/// Bytes from one word that is written or read to the next, in a frame of `len` bytes.
#[inline(always)]
const fn touched(len: usize) -> usize {
    if len > LARGE { 4096 } else { 64 }
}

/// Whether `frame` is of [`Pattern::hello`].
pub fn is_hello(frame: &[u8]) -> bool {
    frame.get(DESTINATION_PORT..DESTINATION_PORT + 2) == Some(&HELLO.to_be_bytes())
}

fn headers(from: u32, to: u32) -> FrameBuilder {
    let ip = |n: u32| Ipv4Addr::from(0x0a00_0000 | n);
    let mac = |n| crate::rig::mac(n).0;
    FrameBuilder::new(mac(from), mac(to)).ipv4(ip(from), ip(to))
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
    window(&mut [(sender.tx(), Pattern::plain(template))], &mut [receiver.rx()], ms)
}

/// Sends from all senders to all receivers as fast as they go, for `ms` milliseconds.
///
/// # Errors
/// The switch broke the rules of a ring.
pub fn window<S: Source, R: Sink>(
    senders: &mut [(&mut S, Pattern)],
    receivers: &mut [&mut R],
    ms: u64,
) -> Result<Window> {
    let per_ms = clock::ticks_per_us() * 1000;
    let mut window = Window::default();
    let (mut waited, mut in_vain_since) = (0, None);
    let begin = clock::ticks();
    let end = begin + ms * per_ms;
    for turn in 0_u64.. {
        let before = window.frames;
        let mut sent = 0;
        for (sender, pattern) in &mut *senders {
            sent += sender.send_burst(pattern.burst(), |slot| pattern.fill(slot))?;
        }
        for receiver in &mut *receivers {
            receive(*receiver, &mut window)?;
        }
        // The clock costs as much as a frame: it is looked at where waiting begins and ends.
        match (sent > 0 || window.frames > before, in_vain_since) {
            (false, None) => in_vain_since = Some(clock::ticks()),
            (true, Some(since)) => {
                waited += clock::ticks() - since;
                in_vain_since = None;
            }
            _ => {}
        }
        if turn.is_multiple_of(16) && (clock::ticks() >= end || interrupt::is_requested()) {
            break;
        }
    }
    let now = clock::ticks();
    waited += in_vain_since.map_or(0, |since| now - since);
    let seconds = |ticks| ticks as f64 / per_ms as f64 / 1e3;
    (window.waited, window.seconds) = (seconds(waited), seconds(now - begin));
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
    let (mut pattern, mut window) = (Pattern::plain(template), Window::default());
    while window.frames < frames {
        sender.tx().send_burst(BURST, |slot| pattern.fill(slot))?;
        receive(receiver.rx(), &mut window)?;
    }
    std::hint::black_box(window.seen);
    drain(sender, receiver)
}

#[inline]
fn receive(receiver: &mut impl Sink, window: &mut Window) -> Result<()> {
    let (mut sum, mut bytes) = (0_u64, 0);
    let frames = receiver.receive_burst(2 * BURST, |frame| {
        let len = frame.len();
        let mut word = [0; 8];
        for at in (0..len - 7).step_by(touched(len)) {
            frame.read(at, &mut word);
            sum = sum.wrapping_add(u64::from_ne_bytes(word));
        }
        bytes += len as u64;
    });
    window.frames += frames? as u64;
    window.bytes += bytes;
    window.seen = window.seen.wrapping_add(sum);
    Ok(())
}

/// Takes what is still under way, so that the next window starts with empty rings.
pub fn drain(sender: &mut Guest, receiver: &mut Guest) -> Result<()> {
    drain_all(&mut [sender.tx()], &mut [receiver.rx()])
}

/// As [`drain`], of many.
///
/// # Errors
/// The switch broke the rules of a ring, or does not take what was sent.
pub fn drain_all<S: Source, R: Sink>(
    senders: &mut [&mut S],
    receivers: &mut [&mut R],
) -> Result<()> {
    let deadline = clock::ticks() + clock::ticks_per_us() * 1_000_000;
    let mut window = Window::default();
    while clock::ticks() < deadline {
        let before = window.frames;
        let mut in_flight = 0;
        for sender in &mut *senders {
            in_flight += sender.outstanding()?;
        }
        for receiver in &mut *receivers {
            receive(*receiver, &mut window)?;
        }
        if window.frames == before && in_flight == 0 {
            return Ok(());
        }
    }
    bail!("frames did not come through within a second")
}
