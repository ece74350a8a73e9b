//! Ours: every port with its guest's one address, so that the whole pipeline is on.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use dataplane::testing::{Guest, GuestConfig};
use slipway_api::client::Client;
use slipway_api::{LinkState, PortSpec};

use super::program::{LIMIT, Service};
use super::{Listener, Peer, Place, Setup, Work, number, socket};
use crate::rig::mac;

/// A slipwayd with its ports.
pub struct Slipwayd {
    service: Service,
    client: Client,
    dir: PathBuf,
}

impl Slipwayd {
    /// Starts it, and makes the ports.
    pub fn start(setup: &Setup, place: &Place) -> Result<Self> {
        let args = vec![
            // As it comes, whatever this machine's own is set to.
            "--config".into(),
            "/dev/null".into(),
            "--cores".into(),
            place.core.to_string().into(),
            "--run-dir".into(),
            place.dir.clone().into(),
        ];
        // It pins its PMD thread and keeps the others off that core.
        let cores = [place.generator, place.core];
        let program = &place.programs.slipwayd;
        let service = Service::start("slipwayd", program, args, &[], &cores, None)?;
        let client = Client::new(place.dir.join("slipwayd.sock")).with_timeout(LIMIT);
        service.wait_until(|| service.runtime().block_on(client.health()).is_ok())?;
        for port in 0..setup.ports {
            let mut spec = PortSpec::named(name(port));
            spec.mac = Some(mac(number(port)));
            spec.socket = Some(socket(&place.dir, port));
            let made = service.runtime().block_on(client.create_port(&spec));
            made.with_context(|| format!("slipwayd refused port {}", spec.name))?;
        }
        Ok(Self { service, client, dir: place.dir.clone() })
    }
}

fn name(port: usize) -> String {
    format!("g{port}")
}

impl Peer for Slipwayd {
    fn guest(&mut self, port: usize, config: GuestConfig) -> Result<Guest> {
        let path: &Path = &socket(&self.dir, port);
        let guest = Guest::connect(path, config)?;
        let state = self.service.runtime().block_on(self.client.get_port(&name(port)))?;
        ensure!(state.link == LinkState::Up, "Port {} is {}", state.spec.name, state.link);
        Ok(guest)
    }

    fn socket(&self, port: usize) -> (PathBuf, Listener) {
        (socket(&self.dir, port), Listener::Switch)
    }

    fn sleeps(&self) -> bool {
        true
    }

    fn work(&mut self) -> Result<Work> {
        let list = self.service.runtime().block_on(self.client.pmds())?;
        let pmd = list.pmds.first().context("slipwayd has no PMD thread")?;
        Ok(Work { busy_ticks: pmd.busy_cycles, idle_ticks: pmd.idle_cycles, frames: pmd.frames })
    }

    fn pid(&self) -> u32 {
        self.service.pid()
    }

    fn stop(self: Box<Self>) -> Result<()> {
        self.service.stop()
    }
}
