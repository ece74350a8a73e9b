//! Taking frames from a transmit ring, and writing frames to a receive ring.

use anyhow::{Context as _, Result, ensure};
use dataplane::frame::{Batch, HEAD, Scratch, Tail};
use dataplane::port::cell::LiveRing;
use dataplane::testing::{GuestConfig, LocalGuest};
use dataplane::vhost::mem::GuestSlice;
use dataplane::vring::rx::{Expected, IN_ONE_BUFFER, Refusal};
use dataplane::vring::tx::Limit;
use dataplane::vring::{BURST as MOST, VNET_HDR};

use super::{BURST, Case, FCS, FRAMES};
use crate::rig::mac;
use crate::traffic;

/// The switch's end of a guest's ring, with the guest.
struct Ring {
    guest: LocalGuest,
    live: LiveRing,
}

impl Ring {
    fn new(index: u16, packed: bool) -> Result<Self> {
        let config = GuestConfig::default().ring_size(FRAMES as u16).packed(packed);
        let mut guest = LocalGuest::new(config)?;
        let live = guest.start(index, None)?;
        Ok(Self { guest, live })
    }
}

struct Pop {
    ring: Ring,
    scratch: Box<[Scratch; MOST]>,
    frame: Vec<u8>,
}

/// Takes frames of `bytes`, and gives their chains back.
pub fn pop(packed: bool, bytes: usize) -> Result<Box<dyn Case>> {
    let frame = traffic::frame(mac(2).0, mac(1).0, bytes - FCS);
    Ok(Box::new(Pop {
        ring: Ring::new(1, packed)?,
        scratch: Box::new([Scratch::EMPTY; MOST]),
        frame,
    }))
}

impl Case for Pop {
    fn prepare(&mut self) -> Result<()> {
        let sent = self.ring.guest.tx().tx_burst(FRAMES, |slot| slot.write(&self.frame));
        ensure!(sent.context("sending")? == FRAMES, "the ring has no room for all frames");
        Ok(())
    }

    fn run(&mut self) -> Result<u64> {
        let LiveRing { map, ring, .. } = &mut self.ring.live;
        let (mut frames, mut seen) = (0, 0);
        for _ in 0..FRAMES / BURST {
            let mut batch = Batch::new();
            ring.pop(map, &mut batch, &mut self.scratch, Limit::frames(BURST as u16))?;
            frames += batch.frames.len();
            seen += batch.frames.iter().map(|frame| u64::from(frame.len)).sum::<u64>();
            ring.complete(&batch)?;
        }
        ensure!(frames == FRAMES, "{frames} of {FRAMES} frames were taken");
        Ok(seen)
    }
}

struct Push {
    ring: Ring,
    head: [u8; VNET_HDR + HEAD],
    bytes: usize,
    /// Where in the guest's memory the rest of each frame is read.
    from_gpa: u64,
}

/// Writes frames of `bytes`: the first ones from a copy, the others from a guest's memory.
pub fn push(packed: bool, bytes: usize) -> Result<Box<dyn Case>> {
    let mut ring = Ring::new(0, packed)?;
    let mut head = [0; VNET_HDR + HEAD];
    head[..VNET_HDR].copy_from_slice(&IN_ONE_BUFFER);
    head[VNET_HDR..][..60].copy_from_slice(&traffic::frame(mac(2).0, mac(1).0, 60));
    let from_gpa = ring.guest.memory().regions()[0].gpa();
    Ok(Box::new(Push { ring, head, bytes: bytes - FCS, from_gpa }))
}

impl Case for Push {
    fn prepare(&mut self) -> Result<()> {
        // What was used goes back to the ring as it is read.
        self.ring.guest.rx().rx_burst(FRAMES, |_| {}).context("receiving")?;
        Ok(())
    }

    fn run(&mut self) -> Result<u64> {
        let LiveRing { map, ring, mergeable, .. } = &mut self.ring.live;
        let in_head = self.bytes.min(HEAD);
        let body = match (self.bytes - in_head) as u32 {
            0 => GuestSlice::empty(),
            rest => map.slice(self.from_gpa, rest).context("reading a guest's memory")?,
        };
        let head = &mut self.head[..VNET_HDR + in_head];
        let mut written = 0;
        for _ in 0..FRAMES / BURST {
            let expected = Expected { frames: BURST, frame_bytes: self.bytes as u32 };
            let mut fill = ring.fill(map, expected, *mergeable)?;
            for _ in 0..BURST {
                if body.is_empty() && fill.push_short(head) {
                    written += 1;
                    continue;
                }
                match fill.push(head, Tail { body, more: &[] }, self.bytes as u32) {
                    Ok(()) => written += 1,
                    Err(Refusal::Drop(_)) => {}
                    Err(Refusal::Fault(fault)) => return Err(fault.into()),
                }
            }
            fill.finish()?;
        }
        ensure!(written == FRAMES as u64, "{written} of {FRAMES} frames were written");
        Ok(written)
    }
}
