//! Packet rates: DPDK's testpmd as the guest of two vhost-user ports.
//!
//! Nothing of the guest is ours here, neither the driver nor the counting. One thread of it on the generator's core has
//! frames circle between both ports, fewer than a ring holds; see [`crate::peer::dpdk_guest`].

use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use super::measure::enter_busy;
use crate::compare::apart::Apart;
use crate::compare::arms::ArmKind;
use crate::compare::flows::experiment::Point;
use crate::compare::flows::measurement::Reading;
use crate::peer::dpdk_guest::{DpdkGuest, ensure_size};
use crate::peer::{self, Peer, PeerKind, Place, Programs, Setup};
use crate::rig::cores;

/// Frames are named by their length with FCS, of which no virtio ring knows.
const FCS_BYTES: usize = 4;
const PORTS: usize = 2;
const SETUP: Setup =
    Setup { ports: PORTS, active: PORTS, packed: false, tso: false, cold: false, dpdk_guest: true };

const fn kind(arm: ArmKind) -> Option<PeerKind> {
    match arm {
        ArmKind::Slipway => Some(PeerKind::Slipwayd),
        ArmKind::OvsDpdk => Some(PeerKind::Ovs),
        _ => None,
    }
}

/// Why an arm has no packet rates, if it has none.
pub fn refusal(arm: ArmKind, programs: &Programs) -> Option<&'static str> {
    if kind(arm).is_none() {
        return Some("no vhost-user port, which DPDK's guest needs");
    }
    let missing = "not installed: dpdk-testpmd; name its folder with --testpmd";
    (!programs.have_testpmd()).then_some(missing)
}

/// A switch, and the guest at its ports.
pub struct Packets {
    guest: DpdkGuest,
    peer: Box<dyn Peer>,
    folder: TempDir,
}

impl Packets {
    /// Starts both.
    ///
    /// # Errors
    /// In the words of whoever refuses.
    pub fn start(arm: ArmKind, host: &Apart, programs: Programs) -> Result<Self> {
        let kind = kind(arm).with_context(|| format!("{} has no vhost-user port", arm.name()))?;
        let folder = host.folder(kind.name())?;
        let (generator, core) = cores()?;
        let dir = folder.path().to_owned();
        let place = Place { dir, generator, core, is_exclusive: true, programs };
        let peer = peer::start(kind, &SETUP, &place)?;
        let guest = DpdkGuest::start(&*peer, &SETUP, &place)?;
        Ok(Self { guest, peer, folder })
    }

    /// Measures frames of one length.
    ///
    /// # Errors
    /// They do not arrive, or others do; the switch does not say what it did.
    pub fn measure(&mut self, point: &Point, quick: bool) -> Result<Reading> {
        let bytes: usize = point.x.parse().context("A frame has a length")?;
        let len = bytes - FCS_BYTES;
        let (warm_up_ms, window_ms) = if quick { (150, 500) } else { (500, 2000) };
        let (guest, peer) = (&mut self.guest, &mut self.peer);
        // It waits until both ports are served: what is sent before is not lost, nobody was there.
        guest.begin(len)?;
        guest.pause()?;
        let counted = guest.drain()?;
        guest.begin(len)?;
        thread::sleep(Duration::from_millis(warm_up_ms));
        let (work, shown) = (peer.work()?, guest.show()?);
        thread::sleep(Duration::from_millis(window_ms));
        let (later, after) = (guest.show()?, peer.work()?);
        ensure_size(shown, later, len)?;
        guest.pause()?;
        let all = guest.drain()?;
        let sent = all.sent - counted.sent;
        let received = all.frames.iter().sum::<u64>() - counted.frames.iter().sum::<u64>();
        ensure!(received <= sent, "testpmd received {received} frames of {sent} that it sent");
        let mut reading = Reading::default();
        reading.value("mpps", later.frames_per_s as f64 / 1e6);
        reading.value("lost_percent", 100.0 * (sent - received) as f64 / sent as f64);
        if let Some(ticks) = after.ticks_per_frame_since(&work) {
            reading.value("switch_cycles_per_frame", ticks);
        }
        enter_busy(&mut reading, &work, &after);
        Ok(reading)
    }

    /// Ends both.
    ///
    /// # Errors
    /// One of them does not end.
    pub fn stop(self) -> Result<()> {
        let stopped = self.guest.stop();
        self.peer.stop().and(stopped)?;
        self.folder.close().context("Failed to remove a switch's folder")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packet_rates_are_of_vhost_user_ports_and_need_testpmd() {
        let programs = Programs { slipwayd: "/slipwayd".into(), testpmd: None };
        let reason = refusal(ArmKind::TapBridge, &programs).unwrap();
        assert!(reason.contains("no vhost-user port"), "{reason}");
        let reason = refusal(ArmKind::Slipway, &programs).unwrap();
        assert!(reason.contains("--testpmd"), "{reason}");
        let folder = tempfile::tempdir().unwrap();
        let bin = folder.path().join("usr/bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::write(bin.join("dpdk-testpmd"), "").unwrap();
        let testpmd = Some(folder.path().to_owned());
        let programs = Programs { testpmd, ..programs };
        for arm in [ArmKind::Slipway, ArmKind::OvsDpdk] {
            assert_eq!(refusal(arm, &programs), None, "{}", arm.name());
        }
    }
}
