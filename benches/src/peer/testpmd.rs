//! DPDK's testpmd as a switch: what comes in at one port goes out at its neighbour.
//!
//! Its Debian package needs some two hundred others, a newer systemd among them, so it is not
//! installed but unpacked, with the libraries that it is linked with, to a folder of its own.

use std::io::PipeWriter;
use std::path::Path;

use anyhow::{Context as _, Result};
use dataplane::testing::{Guest, GuestConfig};

use super::program::{Service, find};
use super::{Peer, Place, Setup, Work, socket};

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

/// A testpmd with its ports.
pub struct Testpmd {
    service: Service,
    dir: std::path::PathBuf,
    /// It ends at the end of its standard input.
    _stdin: PipeWriter,
}

impl Testpmd {
    /// Starts it, and makes the ports: an even number, as it forwards between neighbours.
    pub fn start(setup: &Setup, place: &Place) -> Result<Self> {
        let cores = [place.generator, place.core];
        let (main, both) = (cores[0].to_string(), format!("{},{}", cores[0], cores[1]));
        let mut args: Vec<_> =
            ["-l", &both, "--main-lcore", &main, "--no-pci", "--in-memory"].map(Into::into).into();
        for port in 0..setup.ports.next_multiple_of(2) {
            let path = socket(&place.dir, port);
            let tso = if setup.tso { ",tso=1" } else { "" };
            args.push("--vdev".into());
            args.push(format!("net_vhost{port},iface={}{tso}", path.display()).into());
        }
        args.push("--".into());
        // Guests come later, so there is no link to wait for at first.
        let mode = ["--forward-mode=io", "--nb-cores=1", "--auto-start", "--disable-link-check"];
        args.extend(mode.map(Into::into));
        let folder = place.programs.testpmd.as_deref().context("testpmd is not there")?;
        let (stdin, writer) = std::io::pipe()?;
        let stdin = Some(stdin.into());
        // Line by line, or its word that it is ready would stay in its buffer.
        let program = find("stdbuf").context("stdbuf, of coreutils, is not there")?;
        args.splice(0..0, ["-oL".into(), folder.join(PROGRAM).into()]);
        let env = [("LD_LIBRARY_PATH", &*folder.join(LIBRARIES))];
        let service = Service::start("testpmd", &program, args, &env, &cores, stdin)?;
        service.wait_until(|| service.has_printed(READY))?;
        Ok(Self { service, dir: place.dir.clone(), _stdin: writer })
    }
}

impl Peer for Testpmd {
    fn guest(&mut self, port: usize, config: GuestConfig) -> Result<Guest> {
        Ok(Guest::connect(&socket(&self.dir, port), config)?)
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
