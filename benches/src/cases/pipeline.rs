//! All of [`dataplane::pipeline::Worker::run`]: from one guest's ring to the rings of others.

use anyhow::{Context as _, Result, ensure};
use dataplane::testing::GuestConfig;
use slipway_api::Policy;

use super::{BURST, Case, FCS, FRAMES};
use crate::local::Net;
use crate::traffic;

struct Pipeline {
    net: Net,
    /// One for each receiver, sent in turn.
    frames: Vec<Vec<u8>>,
    /// What went through so far.
    forwarded: usize,
}

/// Frames of `bytes` from one guest to `receivers` in turn.
pub fn one_way(
    packed: bool,
    is_bound: bool,
    bytes: usize,
    receivers: usize,
) -> Result<Box<dyn Case>> {
    let config = GuestConfig::default().ring_size(FRAMES as u16).packed(packed);
    let mut net = Net::new();
    for _ in 0..=receivers {
        net.add(is_bound, config.clone())?;
    }
    sending(net, bytes, receivers)
}

/// Short frames between ports with `rules` rules each way, of which the last allows them: the others name
/// ports that no frame goes to.
pub fn with_policy(rules: u16) -> Result<Box<dyn Case>> {
    let mut net = Net::new();
    for _ in 0..2 {
        net.add(false, GuestConfig::default().ring_size(FRAMES as u16))?;
    }
    let mut texts = Vec::new();
    for direction in ["egress", "ingress"] {
        let others = (1..rules).map(|n| format!("deny {direction} protocol tcp ports {n}"));
        texts.extend(others.chain([format!("allow {direction}")]));
    }
    let rules = texts.iter().map(|text| text.parse().context("a rule"));
    net.set_policy(&Policy { rules: rules.collect::<Result<_>>()?, ..Policy::default() });
    sending(net, 64, 1)
}

fn sending(net: Net, bytes: usize, receivers: usize) -> Result<Box<dyn Case>> {
    let frame = |to| traffic::ipv4(net.address(to), net.address(0), bytes - FCS);
    let frames = (1..=receivers).map(frame).collect();
    Ok(Box::new(Pipeline { net, frames, forwarded: 0 }))
}

impl Case for Pipeline {
    fn prepare(&mut self) -> Result<()> {
        let mut received = 0;
        for guest in &mut self.net.guests[1..] {
            received += guest.rx().rx_burst(FRAMES, |_| {}).context("receiving")?;
        }
        let forwarded = self.forwarded;
        ensure!(received == forwarded, "{received} of {forwarded} frames came through");
        let mut frames = self.frames.iter().cycle();
        let sent = self.net.guests[0].tx().tx_burst(FRAMES, |slot| {
            if let Some(frame) = frames.next() {
                slot.write(frame);
            }
        });
        ensure!(sent.context("sending")? == FRAMES, "the ring has no room for all frames");
        Ok(())
    }

    fn run(&mut self) -> Result<u64> {
        self.forwarded = 0;
        for _ in 0..FRAMES / BURST {
            self.forwarded += self.net.run(0)? as usize;
        }
        ensure!(self.forwarded == FRAMES, "{} of {FRAMES} frames were taken", self.forwarded);
        Ok(FRAMES as u64)
    }
}
