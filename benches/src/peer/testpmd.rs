//! DPDK's testpmd as a switch: what comes in at one port goes out at its neighbour.
//!
//! Its Debian package needs some two hundred others, a newer systemd among them, so it is not
//! installed but unpacked, with the libraries that it is linked with, to a folder of its own.

use std::ffi::OsString;
use std::io::PipeWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use dataplane::testing::{Guest, GuestConfig};

use super::program::{Service, find};
use super::{Listener, Peer, Place, Setup, Work, socket};

const PROGRAM: &str = "usr/bin/dpdk-testpmd";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
/// RTE_MAX_ETHPORTS of Debian's build.
pub const MOST_PORTS: usize = 32;
/// Last of what it prints at its start.
const READY: &str = "Press enter to exit";

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

/// A testpmd with its ports.
pub struct Testpmd {
    service: Service,
    dir: PathBuf,
    _stdin: PipeWriter,
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
        let mode = ["--forward-mode=io", "--nb-cores=1", "--auto-start", "--disable-link-check"];
        args.extend(mode.map(Into::into));
        let (service, stdin) = launch(Mode::Switch, args, place)?;
        service.wait_until(|| service.has_printed(READY))?;
        Ok(Self { service, dir: place.dir.clone(), _stdin: stdin })
    }
}

impl Peer for Testpmd {
    fn guest(&mut self, port: usize, config: GuestConfig) -> Result<Guest> {
        Ok(Guest::connect(&socket(&self.dir, port), config)?)
    }

    fn socket(&self, port: usize) -> (PathBuf, Listener) {
        (socket(&self.dir, port), Listener::Switch)
    }

    fn work(&mut self) -> Result<Option<Work>> {
        Ok(None)
    }

    fn pid(&self) -> u32 {
        self.service.pid()
    }

    fn stop(self: Box<Self>) -> Result<()> {
        self.service.stop()
    }
}
