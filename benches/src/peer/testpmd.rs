//! DPDK's testpmd as a switch: what comes in at one port goes out at its neighbour.
//!
//! Its Debian package needs some two hundred others, a newer systemd among them, so it is not
//! installed but unpacked, with the libraries that it is linked with, to a folder of its own.

use std::ffi::OsString;
use std::io::{PipeWriter, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use dataplane::clock;
use dataplane::testing::{Guest, GuestConfig};

use super::program::{Service, find};
use super::{Listener, Peer, Place, Setup, Work, socket};

const PROGRAM: &str = "usr/bin/dpdk-testpmd";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
/// RTE_MAX_ETHPORTS of Debian's build.
pub const MOST_PORTS: usize = 32;
/// What it prints when it takes commands.
pub const READY: &str = "testpmd>";
/// The head of what it counts for all ports together.
const ALL_PORTS: &str = "Accumulated forward statistics for all ports";
/// What precedes its count of cycles.
const CYCLES: &str = "(total cycles=";
/// Ends the last line of the statistics.
const END: &str = "MHz Clock";

/// Whether `folder` holds one.
pub fn is_in(folder: &Path) -> bool {
    folder.join(PROGRAM).exists()
}

/// What a testpmd is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It forwards on the switch's core; everything else of it is on the generator's.
    Switch,
    /// All of it is on the generator's core.
    Guest,
}

/// Starts a testpmd. It ends at the end of its standard input, which is returned.
pub fn launch(mode: Mode, args: Vec<String>, place: &Place) -> Result<(Service, PipeWriter)> {
    let folder = place.programs.testpmd.as_deref();
    let folder = folder.context("There is no testpmd; name its folder with --testpmd")?;
    let (stdin, writer) = std::io::pipe()?;
    // Line by line, or its word that it is ready would stay in its buffer.
    let program = find("stdbuf").context("stdbuf, of coreutils, is not there")?;
    let words: [OsString; 2] = ["-oL".into(), folder.join(PROGRAM).into()];
    let args = words.into_iter().chain(args.into_iter().map(Into::into)).collect();
    let env = [("LD_LIBRARY_PATH", &*folder.join(LIBRARIES))];
    let (name, cores) = match mode {
        Mode::Switch => ("testpmd", vec![place.generator, place.core]),
        Mode::Guest => ("testpmd as the guest", vec![place.generator]),
    };
    let service = Service::start(name, &program, args, &env, &cores, Some(stdin.into()))?;
    Ok((service, writer))
}

/// Has a testpmd that takes commands do one.
///
/// # Errors
/// It has ended; with its last words.
pub fn say(service: &Service, commands: &mut PipeWriter, command: &str) -> Result<()> {
    let written = commands.write_all(format!("{command}\n").as_bytes());
    written.with_context(|| format!("testpmd takes no command; it says:\n{}", service.tail()))
}

/// A testpmd with its ports.
pub struct Testpmd {
    service: Service,
    dir: PathBuf,
    commands: PipeWriter,
    /// When it began to poll, in ticks.
    begin: u64,
}

impl Testpmd {
    /// Starts it, and makes the ports: an even number, as it forwards between neighbours.
    pub fn start(setup: &Setup, place: &Place) -> Result<Self> {
        let Place { generator, core, .. } = place;
        let mut args = vec![
            format!("-l{generator},{core}"),
            format!("--main-lcore={generator}"),
            "--no-pci".into(),
            "--in-memory".into(),
        ];
        for port in 0..setup.ports.next_multiple_of(2) {
            let path = socket(&place.dir, port);
            let tso = if setup.tso { ",tso=1" } else { "" };
            args.push(format!("--vdev=net_vhost{port},iface={}{tso}", path.display()));
        }
        args.push("--".into());
        // Guests come later, so there is no link to wait for at first.
        args.extend(["--interactive", "--auto-start", "--forward-mode=io"].map(Into::into));
        let rest = ["--nb-cores=1", "--disable-link-check", "--record-core-cycles"];
        args.extend(rest.map(Into::into));
        let (service, commands) = launch(Mode::Switch, args, place)?;
        service.wait_until(|| service.has_printed(READY))?;
        Ok(Self { service, dir: place.dir.clone(), commands, begin: clock::ticks() })
    }
}

impl Peer for Testpmd {
    fn guest(&mut self, port: usize, config: GuestConfig) -> Result<Guest> {
        Ok(Guest::connect(&socket(&self.dir, port), config)?)
    }

    fn socket(&self, port: usize) -> (PathBuf, Listener) {
        (socket(&self.dir, port), Listener::Switch)
    }

    fn work(&mut self) -> Result<Work> {
        let begin = self.service.printed_bytes();
        say(&self.service, &mut self.commands, "show fwd stats all")?;
        let mut counted = None;
        let service = &self.service;
        service.wait_until(|| {
            counted = parse(&service.printed_after(begin));
            counted.is_some()
        })?;
        let (busy_ticks, frames) = counted.context("testpmd shows no cycles")?;
        // It polls all the time: what did not go into frames went into looks.
        let idle_ticks = (clock::ticks() - self.begin).saturating_sub(busy_ticks);
        Ok(Work { busy_ticks, idle_ticks, frames })
    }

    fn pid(&self) -> u32 {
        self.service.pid()
    }

    fn stop(self: Box<Self>) -> Result<()> {
        self.service.stop()
    }
}

/// Cycles that went into frames, and those frames, in what testpmd `printed`. It counts them from the call
/// that receives a burst to the end of the one that sends it, where there was one. Before its first
/// frame it shows no count.
fn parse(printed: &str) -> Option<(u64, u64)> {
    let (_, all) = printed.rsplit_once(ALL_PORTS)?;
    let (_, received) = all.split_once("RX-total:")?;
    let (received, rest) = received.split_once('\n')?;
    if received.trim() == "0" {
        // The line below the totals is the last one then.
        return rest.contains("++++").then_some((0, 0));
    }
    let (line, _) = rest.split_once(END)?;
    let (_, cycles) = line.split_once(CYCLES)?;
    let (cycles, frames) = cycles.split_once(" / ")?;
    let (_, frames) = frames.split_once("packets=")?;
    let (frames, _) = frames.split_once(')')?;
    Some((cycles.parse().ok()?, frames.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: &str = "
  ---------------------- Forward statistics for port 0  ----------------------
  RX-packets: 7              RX-dropped: 0             RX-total: 7
  TX-packets: 0              TX-dropped: 0             TX-total: 0
  ----------------------------------------------------------------------------

  +++++++++++++++ Accumulated forward statistics for all ports+++++++++++++++
  RX-packets: 0              RX-dropped: 0             RX-total: 0
  TX-packets: 0              TX-dropped: 0             TX-total: 0
  ++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++
";

    fn some() -> String {
        let totals = NONE.replace("RX-total: 0", "RX-total: 2000");
        let cycles = "CPU cycles/packet=250.50 (total cycles=501000 / total RX packets=2000)";
        format!("{totals}\n  {cycles} at 2596 MHz Clock\ntestpmd> ")
    }

    #[test]
    fn cycles_and_frames_of_all_ports_are_read() {
        assert_eq!(parse(&some()), Some((501_000, 2000)));
        assert_eq!(parse(NONE), Some((0, 0)));
        let twice = some().replace("501000", "400000") + &some();
        assert_eq!(parse(&twice), Some((501_000, 2000)), "the last ones count");
    }

    #[test]
    fn what_is_not_printed_to_its_end_does_not_count() {
        let text = some();
        for cut in ["MHz Clock", "packets=2000", "total cycles", "RX-total: 2000"] {
            assert_eq!(parse(&text[..text.rfind(cut).unwrap()]), None, "{cut}");
        }
        let last_line = NONE.rfind("  ++++").unwrap();
        assert_eq!(parse(&NONE[..last_line]), None);
        assert_eq!(parse(""), None);
    }
}
