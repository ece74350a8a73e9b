//! DPDK's testpmd as the guest: two virtio-user ports, between which it passes on whatever comes.
//!
//! ```text
//!  testpmd on the generator's core                      the switch
//!  port 0 (address 1)  -- to address 2, from 1 -->  port of address 1
//!     ^ io                                              | forwards by address
//!  port 1 (address 2)  <-----------------------------  port of address 2
//! ```
//!
//! The first burst gives each frame the addresses of its way: `--eth-peer` names the other port's. The
//! io engine leaves them as they are, and what came in at port 1 goes out at port 0: so each frame
//! goes the same way for ever, and a switch that learns sees each address at one port only.
//!
//! What a switch loses is missing once all that was under way has arrived. (Engines that send frames of their own do
//! not do: flowgen's have a source address of its own choice, and with txonly nobody in that process receives.)
//!
//! Nothing of this is ours, neither the driver of the rings nor the counting: a cross-check of our own
//! generator.

use std::io::PipeWriter;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::program::{LIMIT, Service};
use super::testpmd::{self, Mode};
use super::{Listener, Peer, Place, Setup, number};
use crate::host::ensure_threads_on;
use crate::interrupt;
use crate::rig::mac;

/// Bursts of 32 frames that start the circle in each direction: half a ring, so that there are frames
/// at any time, and room for them.
const FIRST_BURSTS: u32 = 16;
const RING: u32 = 1024;
/// Buffers of both ports: their rings, and what is under way.
const BUFFERS: u32 = 16_384;
/// Hugepages that it takes at its start, in MiB.
const MEMORY_MIB: u32 = 192;
/// The same in hugepages of 2 MiB.
pub const HUGEPAGES: u64 = MEMORY_MIB as u64 / 2;
/// Between two looks whether frames circle.
const LOOK: Duration = Duration::from_millis(100);
/// It has ended its forwarding threads.
const STOPPED: &str = "Accumulated forward statistics";

/// A running guest. Dropping it ends it.
#[derive(Debug)]
pub struct DpdkGuest {
    service: Service,
    commands: PipeWriter,
}

/// What testpmd shows of its two ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    /// Frames received so far, at each port.
    pub frames: [u64; 2],
    /// Frames sent so far, at both.
    pub sent: u64,
    /// Bytes of them, without FCS.
    pub bytes: u64,
    /// Frames received per second since it showed them the last time, by its own clock.
    pub frames_per_s: u64,
}

impl Shown {
    fn has_more_at_both(&self, before: &Self) -> bool {
        self.frames.iter().zip(before.frames).all(|(now, before)| *now > before)
    }
}

impl DpdkGuest {
    /// Connects to the first two ports of `peer`.
    ///
    /// # Errors
    /// It does not start, or is not served; with its last words.
    pub fn start(peer: &dyn Peer, setup: &Setup, place: &Place) -> Result<Self> {
        let core = place.generator;
        let mut args: Vec<String> = vec![
            // Two threads, one for commands and one that forwards, both on the generator's core.
            format!("--lcores=0@{core},1@{core}"),
            "--main-lcore=0".into(),
            "--no-pci".into(),
            "--in-memory".into(),
            // vhost-user passes eight regions at most. All of it at the start: with OVS at the other end,
            // asking for more later failed.
            "--single-file-segments".into(),
            format!("-m{MEMORY_MIB}"),
        ];
        for port in 0..2 {
            let (path, listener) = peer.socket(port);
            let server = if listener == Listener::Guest { ",server=1" } else { "" };
            let packed = u8::from(setup.packed);
            args.push("--vdev".into());
            args.push(format!(
                "net_virtio_user{port},path={},mac={},queue_size={RING},packed_vq={packed}{server}",
                path.display(),
                mac(number(port))
            ));
        }
        args.extend(["--", "--interactive", "--forward-mode=io", "--nb-cores=1"].map(Into::into));
        args.extend([
            "--disable-link-check".into(),
            format!("--rxd={RING}"),
            format!("--txd={RING}"),
            format!("--total-num-mbufs={BUFFERS}"),
            format!("--eth-peer=0,{}", mac(number(1))),
            format!("--eth-peer=1,{}", mac(number(0))),
        ]);
        let (service, commands) = testpmd::launch(Mode::Guest, args, place)?;
        let guest = Self { service, commands };
        guest.service.wait_until(|| guest.service.has_printed(testpmd::READY))?;
        // Else it would take time from the switch.
        ensure_threads_on(place.core, guest.service.pid(), 0)?;
        Ok(guest)
    }

    /// Has frames of `len` bytes without FCS circle, in both directions.
    ///
    /// # Errors
    /// They do not, or it has ended; with its last words.
    pub fn begin(&mut self, len: usize) -> Result<()> {
        self.say("set fwd io")?;
        self.say(&format!("set txpkts {len}"))?;
        // A switch that connects to us takes its time until both ports are up, and drops what comes
        // before. Once one burst circles all is up, and nothing is lost of those that count.
        let looks = LIMIT.as_millis() / LOOK.as_millis();
        for _ in 0..looks {
            interrupt::check()?;
            self.say("start tx_first")?;
            let before = self.show()?;
            std::thread::sleep(LOOK);
            let circles = self.show()?.has_more_at_both(&before);
            self.pause()?;
            if circles {
                return self.say(&format!("start tx_first {FIRST_BURSTS}"));
            }
        }
        bail!("Frames do not circle between testpmd's ports; it says:\n{}", self.service.tail())
    }

    /// Receives until nothing more comes. It must not be at work.
    ///
    /// # Errors
    /// There is no end of it, or it has ended; with its last words.
    pub fn drain(&mut self) -> Result<Shown> {
        self.say("set fwd rxonly")?;
        self.say("start")?;
        let mut before = self.show()?;
        for _ in 0..LIMIT.as_millis() / LOOK.as_millis() {
            interrupt::check()?;
            std::thread::sleep(LOOK);
            let shown = self.show()?;
            if shown.frames == before.frames {
                self.pause()?;
                return Ok(shown);
            }
            before = shown;
        }
        bail!("Frames come although testpmd sends none: {before:?}")
    }

    /// Has it show its counters.
    ///
    /// # Errors
    /// It has ended; with its last words.
    pub fn show(&mut self) -> Result<Shown> {
        let begin = self.service.printed_bytes();
        self.say("show port stats all")?;
        let mut shown = None;
        let service = &self.service;
        service.wait_until(|| {
            shown = parse(&service.printed_after(begin));
            shown.is_some()
        })?;
        shown.context("testpmd shows no counters")
    }

    /// Stops forwarding; the frames that are under way are dropped at the next start.
    ///
    /// # Errors
    /// It has ended; with its last words.
    pub fn pause(&mut self) -> Result<()> {
        let begin = self.service.printed_bytes();
        self.say("stop")?;
        self.service.wait_until(|| self.service.printed_after(begin).contains(STOPPED))
    }

    /// Ends it.
    ///
    /// # Errors
    /// It did not end in time, and was killed.
    pub fn stop(self) -> Result<()> {
        self.service.stop()
    }

    fn say(&mut self, command: &str) -> Result<()> {
        testpmd::say(&self.service, &mut self.commands, command)
    }
}

/// The last complete counters of both ports in what testpmd `printed`.
fn parse(printed: &str) -> Option<Shown> {
    let of_port = |text: &str| {
        let number = |name: &str| -> Option<u64> {
            let (_, rest) = text.split_once(name)?;
            // A line that is not complete may lack digits.
            rest.lines().next().filter(|_| rest.contains('\n'))?;
            rest.split_whitespace().next()?.parse().ok()
        };
        let sent = number("TX-packets:")?;
        Some((number("RX-packets:")?, number("RX-bytes:")?, number("Rx-pps:")?, sent))
    };
    let (before, second) = printed.rsplit_once("NIC statistics for port 1")?;
    let (_, first) = before.rsplit_once("NIC statistics for port 0")?;
    let (first, second) = (of_port(first)?, of_port(second)?);
    Some(Shown {
        frames: [first.0, second.0],
        bytes: first.1 + second.1,
        frames_per_s: first.2 + second.2,
        sent: first.3 + second.3,
    })
}

/// Frames by which two counters may differ that are read while another thread counts: some bursts of
/// both ports, at both shows.
const TORN_FRAMES: u64 = 256;

/// Sees to it that what came between two shows were frames of `len` bytes, and nothing else.
///
/// # Errors
/// None came at one port, or others came: what was measured is not what was meant.
pub fn ensure_size(before: Shown, after: Shown, len: usize) -> Result<()> {
    ensure!(after.has_more_at_both(&before), "Frames do not circle any more: {after:?}");
    let frames = after.frames.iter().sum::<u64>() - before.frames.iter().sum::<u64>();
    let bytes = after.bytes - before.bytes;
    let len = len as u64;
    ensure!(
        bytes.abs_diff(frames * len) <= TORN_FRAMES * len,
        "testpmd received {bytes} bytes in {frames} frames, which should have {len} each"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: &str = "
  ######################## NIC statistics for port 0  ########################
  RX-packets: 49280      RX-missed: 0          RX-bytes:  2956800
  RX-errors: 0
  RX-nombuf:  0         
  TX-packets: 49760      TX-errors: 0          TX-bytes:  2985600

  Throughput (since last show)
  Rx-pps:        29282          Rx-bps:     14055360
  Tx-pps:        29282          Tx-bps:     14055360
  ############################################################################
";

    fn both(second: &str) -> String {
        let second = PORT.replace("port 0", "port 1").replace("49280", second);
        format!("testpmd> show port stats all\n{PORT}{second}")
    }

    #[test]
    fn the_last_counters_of_both_ports_count() {
        let printed = both("10") + &both("20");
        let shown = parse(&printed).unwrap();
        assert_eq!((shown.frames, shown.frames_per_s), ([49_280, 20], 2 * 29_282));
        assert_eq!((shown.bytes, shown.sent), (2 * 2_956_800, 2 * 49_760));
    }

    #[test]
    fn counters_that_are_not_printed_to_their_end_do_not_count() {
        let printed = both("20");
        let cut = printed.rfind("Rx-pps:").unwrap() + "Rx-pps:        29".len();
        assert_eq!(parse(&printed[..cut]), None);
        assert_eq!(parse(&printed[..printed.find("port 1").unwrap()]), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn frames_of_another_size_are_an_error() {
        let shown = |frames, bytes| Shown {
            frames: [frames, 1 + frames / 9],
            sent: 0,
            bytes,
            frames_per_s: 0,
        };
        // 2000 at one port, 222 at the other.
        let before = shown(1, 99);
        assert!(ensure_size(before, shown(2001, 99 + 60 * 2222), 60).is_ok());
        // A burst that is in one counter only.
        assert!(ensure_size(before, shown(2001, 99 + 60 * (2222 + 32)), 60).is_ok());
        let error = ensure_size(before, shown(2001, 99 + 80 * 2222), 60).unwrap_err();
        assert!(error.to_string().contains("177760 bytes in 2222 frames"), "{error}");
        let error = ensure_size(before, before, 60).unwrap_err();
        assert!(error.to_string().contains("do not circle"), "{error}");
    }
}
