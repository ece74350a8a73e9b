//! Ours: the plugin that containerd would call, the switch as it comes, and a stub of a VMM.
//!
//! The stub is the guest of our tests: as VMMs do, it listens on the socket that the plugin's answer
//! names; the switch connects, and it negotiates, shares memory, starts its rings, and stays. It is part
//! of this process, so its time is charged to this arm.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use dataplane::testing::{GuestConfig, GuestListener};
use serde_json::{Value, json};
use slipway_api::LinkState;
use slipway_api::client::Client;
use tempfile::TempDir;

use super::cni::call;
use super::{Arm, Held, Programs};
use crate::compare::apart::Apart;
use crate::compare::pod::Pod;
use crate::peer::program::{LIMIT, Service};
use crate::rig::cores;

/// What its API listens on, in its folder.
const SOCKET: &str = "slipwayd.sock";

/// Entries of a stub's ring.
const STUB_RING: u16 = 8;

/// A running switch.
pub struct Slipway<'a> {
    host: &'a Apart,
    service: Service,
    client: Client,
    plugin: PathBuf,
    config: Value,
    /// Held until the switch has ended.
    _folder: TempDir,
}

impl<'a> Slipway<'a> {
    /// Starts it.
    pub fn start(host: &'a Apart, programs: &Programs) -> Result<Self> {
        let (folder, service, client) = switch(host, programs)?;
        let config = json!({
            "cniVersion": "1.1.0", "name": "compare", "type": "slipway-cni",
            "socket": folder.path().join(SOCKET),
        });
        let plugin = programs.slipway_cni.clone();
        Ok(Self { host, service, client, plugin, config, _folder: folder })
    }
}

/// A stub of a VMM, which waits for the switch where QEMU does. It has rings as they are told to the switch, and
/// hardly any buffers in them, as to fill rings is the work of a guest's driver, which boots in no arm.
pub fn stub_vmm() -> GuestConfig {
    GuestConfig::default().ring_size(STUB_RING).acks_as_qemu(true)
}

/// A switch with its preset configuration, polling on the last core, and who asks it.
pub fn switch(host: &Apart, programs: &Programs) -> Result<(TempDir, Service, Client)> {
    let folder = host.folder("slipwayd")?;
    let (first, last) = cores()?;
    let args = vec![
        // As it comes, whatever this machine's own is set to.
        "--config".into(),
        "/dev/null".into(),
        "--cores".into(),
        last.to_string().into(),
        "--run-dir".into(),
        folder.path().into(),
    ];
    let cores: Vec<_> = (first..=last).collect();
    let service = Service::start("slipwayd", &programs.slipwayd, args, &[], &cores, None)?;
    let socket = folder.path().join(SOCKET);
    let client = Client::new(&socket).with_timeout(LIMIT);
    service.wait_until(|| service.runtime().block_on(client.health()).is_ok())?;
    Ok((folder, service, client))
}

impl Arm for Slipway<'_> {
    fn add(&self, pod: &Pod) -> Result<Option<PathBuf>> {
        let answer = call(self.host, &self.plugin, "ADD", pod, &self.config)?;
        let socket = answer["interfaces"][0]["socketPath"].as_str();
        Ok(Some(socket.with_context(|| format!("slipway-cni named no socket: {answer}"))?.into()))
    }

    fn attach(&self, _pod: &Pod, socket: Option<PathBuf>) -> Result<Held> {
        let socket = socket.context("There is no socket to listen on")?;
        let listener = GuestListener::bind(&socket)?;
        let guest = listener.accept(stub_vmm(), LIMIT);
        Ok(Held::Guest(Box::new(guest.context("slipwayd does not connect")?)))
    }

    fn remove(&self, pod: &Pod) -> Result<()> {
        call(self.host, &self.plugin, "DEL", pod, &self.config).map(drop)
    }

    fn check(&self, pods: usize) -> Result<()> {
        let ports = self.service.runtime().block_on(self.client.list_ports())?.ports;
        let up = ports.iter().filter(|port| port.link == LinkState::Up).count();
        ensure!(up >= pods, "slipwayd has {up} ports that are up, not {pods}");
        Ok(())
    }

    fn daemons(&self) -> Vec<u32> {
        vec![self.service.pid()]
    }

    fn stop(self: Box<Self>) -> Result<()> {
        self.service.stop()
    }
}
