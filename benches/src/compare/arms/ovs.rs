//! Open vSwitch with its datapath in user space, as a CNI plugin would use it: one ovs-vsctl for each pod.
//!
//! Its namespace is our host's, so that it finds the pods' devices. The daemon is the same program with
//! and without DPDK.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use dataplane::testing::{GuestError, GuestListener};
use nix::net::if_::if_nametoindex;
use tempfile::TempDir;

use super::kernel::{configure, host_end};
use super::slipway::stub_vmm;
use super::{Arm, ArmKind, Held, Lay};
use crate::compare::apart::Apart;
use crate::compare::pod::{INTERFACE, Pod};
use crate::compare::route::Route;
pub use crate::peer::ovs::PROGRAMS;
use crate::peer::ovs::{
    BRIDGE, Network, Private, RETRIES, add_bridge, dpdk_options, vsctl_command, words_to_add_bridge,
};
use crate::peer::program::{LIMIT, succeeded};
use crate::rig::cores;

/// What DPDK takes, and some more: of 2 MiB each.
pub const HUGEPAGES: u64 = 320;
/// The bridge between the underlay and what has this host's address on it.
const UNDERLAY_BRIDGE: &str = "br1";

/// A running OVS.
pub struct Ovs<'a> {
    kind: ArmKind,
    host: &'a Apart,
    ovs: Private,
    /// Held until OVS has ended.
    _folder: TempDir,
    /// By pod: OVS connects to who listens there.
    listeners: Mutex<HashMap<usize, GuestListener>>,
}

impl<'a> Ovs<'a> {
    /// Starts it, with a bridge.
    pub fn start(kind: ArmKind, host: &'a Apart) -> Result<Self> {
        let folder = host.folder("ovs")?;
        let (first, last) = cores()?;
        let options = match kind {
            ArmKind::OvsDpdk => dpdk_options(first, last, false),
            _ => Vec::new(),
        };
        let cores: Vec<_> = (first..=last).collect();
        let network = host.path().map_or(Network::Ours, Network::At);
        let ovs = Private::start_in(network, folder.path(), &cores, &options)?;
        add_bridge(ovs.dir())?;
        Ok(Self { kind, host, ovs, _folder: folder, listeners: Mutex::default() })
    }

    /// One call of the tool, as a plugin makes it.
    fn vsctl(&self, words: &[&str]) -> Result<()> {
        let output = self.host.launchers.output(vsctl_command(self.ovs.dir(), words), Vec::new());
        succeeded("ovs-vsctl", &output.context("Failed to run ovs-vsctl")?)
    }

    /// No code panics while it holds the lock.
    fn listeners(&self) -> MutexGuard<'_, HashMap<usize, GuestListener>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Arm for Ovs<'_> {
    fn add(&self, pod: &Pod) -> Result<Option<PathBuf>> {
        let (dir, name) = (self.ovs.dir(), host_end(pod));
        if self.kind == ArmKind::Ovs {
            let made = Route::open()?.add_veth(&name, None, INTERFACE, Some(pod.netns()));
            made.context("Failed to make a veth pair")?;
            configure(self.host, pod)?;
            self.vsctl(&["add-port", BRIDGE, &name])?;
            return Ok(None);
        }
        let socket = dir.join(&name);
        self.listeners().insert(pod.index, GuestListener::bind(&socket)?);
        let path = format!("options:vhost-server-path={}", socket.display());
        let kind = ["--", "set", "interface", &name, "type=dpdkvhostuserclient", &path];
        self.vsctl(&[["add-port", BRIDGE, &name].as_slice(), &kind].concat())?;
        Ok(Some(socket))
    }

    fn attach(&self, pod: &Pod, socket: Option<PathBuf>) -> Result<Held> {
        if socket.is_none() {
            return Ok(Held::Nothing);
        }
        // Taken out in a statement of its own: others are not to wait for this one's VMM.
        let listener = self.listeners().remove(&pod.index);
        let listener = listener.context("Nobody listens for OVS")?;
        let accept = || listener.accept(stub_vmm(), LIMIT);
        let mut guest = accept();
        // OVS lets go of a port when it is told of others meanwhile, and connects anew; so do VMMs.
        for _ in 0..RETRIES {
            if matches!(guest, Ok(_) | Err(GuestError::NoPeer { .. })) {
                break;
            }
            guest = accept();
        }
        Ok(Held::Guest(Box::new(guest.context("OVS does not connect")?)))
    }

    fn remove(&self, pod: &Pod) -> Result<()> {
        self.vsctl(&["--if-exists", "del-port", BRIDGE, &host_end(pod)]).map(drop)
    }

    /// As its manual has it: what is encapsulated is for an address of a bridge's own interface, and that
    /// bridge has the device that goes to the others.
    fn join(&self, lay: &Lay<'_>) -> Result<()> {
        self.vsctl(&words_to_add_bridge(UNDERLAY_BRIDGE))?;
        self.vsctl(&["add-port", UNDERLAY_BRIDGE, lay.device])?;
        let route = Route::open()?;
        route.up(UNDERLAY_BRIDGE).context("Failed to set a bridge's interface up")?;
        let index = if_nametoindex(UNDERLAY_BRIDGE)?;
        route.address(index, lay.local, lay.prefix).context("Failed to give it an address")?;
        let [a, b, c, d] = lay.remote;
        let (remote, key) =
            (format!("options:remote_ip={a}.{b}.{c}.{d}"), format!("options:key={}", lay.id));
        let kind = ["--", "set", "interface", lay.tunnel, "type=vxlan", &remote, &key];
        self.vsctl(&[["add-port", BRIDGE, lay.tunnel].as_slice(), &kind].concat())
    }

    fn part(&self, lay: &Lay<'_>) -> Result<()> {
        self.vsctl(&["del-port", BRIDGE, lay.tunnel])?;
        self.vsctl(&["del-br", UNDERLAY_BRIDGE])
    }

    fn daemons(&self) -> Vec<u32> {
        self.ovs.pids().into()
    }

    fn stop(self: Box<Self>) -> Result<()> {
        // Its devices are persistent taps, which a daemon that ends leaves behind.
        let deleted = self.vsctl(&["del-br", BRIDGE]);
        self.ovs.stop().and(deleted.map(drop))
    }
}
