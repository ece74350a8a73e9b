//! What two guests are attached to: a switch behind sockets, or taps and the kernel.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;
use vmm_glue::{MacAddr, NicSpec, SocketMode};

use crate::compare::apart::Apart;
use crate::compare::arms::ArmKind;
use crate::compare::arms::kernel::{UPLINK, make_uplink};
use crate::compare::guests::attach::{
    BRIDGE, begin_bridge, begin_tap, make_macvtap, name_of, named,
};
use crate::compare::route::{NewLink, Route};
use crate::peer::{self, Listener, Peer, PeerKind, Place, Programs, Setup, number};
use crate::rig::{cores, mac};

/// As [`crate::peer`] has it for guests that are not ours.
const SETUP: Setup =
    Setup { ports: 2, active: 2, packed: false, tso: true, cold: false, dpdk_guest: true };

/// How a guest's VMM gets its NIC.
#[derive(Debug)]
pub enum Nic {
    /// By a vhost-user socket.
    VhostUser(NicSpec),
    /// By arguments of QEMU's behind all others, and a file that is its descriptor 3.
    Tap { arguments: String, file: Option<PathBuf> },
}

/// The network of two guests.
pub struct Segment {
    kind: Kind,
    folder: TempDir,
}

enum Kind {
    Switch(Box<dyn Peer>),
    /// QEMU makes the taps: they go when it does.
    Bridge {
        index: u32,
        is_vhost: bool,
        _device: Device,
    },
    Macvtap {
        _device: Device,
    },
}

/// A network device that is removed in the end.
struct Device(&'static str);

impl Drop for Device {
    fn drop(&mut self) {
        // What is left is seen by whoever looks at our host's devices.
        let _ = Route::open().map(|route| route.delete(self.0));
    }
}

impl Segment {
    /// Starts it, without guests.
    pub fn start(arm: ArmKind, host: &Apart, programs: Programs) -> Result<Self> {
        let folder = host.folder("qemu")?;
        let (generator, core) = cores()?;
        let dir = folder.path().to_owned();
        let place = Place { dir, generator, core, is_exclusive: true, programs };
        let switch =
            |kind| Ok::<_, anyhow::Error>(Kind::Switch(peer::start(kind, &SETUP, &place)?));
        let kind = match arm {
            ArmKind::Slipway => switch(PeerKind::Slipwayd)?,
            ArmKind::OvsDpdk => switch(PeerKind::Ovs)?,
            ArmKind::TapBridge | ArmKind::VhostNet => {
                let route = Route::open()?;
                let bridge = NewLink { kind: "bridge", ..named(BRIDGE) };
                route.add(&bridge).context("Failed to make a bridge")?;
                let device = Device(BRIDGE);
                let index = begin_bridge(&route)?;
                Kind::Bridge { index, is_vhost: arm == ArmKind::VhostNet, _device: device }
            }
            ArmKind::Macvtap => {
                let route = Route::open()?;
                make_uplink(&route)?;
                let device = Device(UPLINK);
                route.up(UPLINK)?;
                Kind::Macvtap { _device: device }
            }
            _ => bail!("{} has no QEMU guests", arm.name()),
        };
        Ok(Self { kind, folder })
    }

    /// For sockets of guest `n`.
    pub fn folder(&self, n: usize) -> PathBuf {
        self.folder.path().join(format!("vm{n}"))
    }

    /// Cores that guests may run on: not a polling thread's.
    pub fn guest_cores(&self) -> Result<String> {
        let (first, last) = cores()?;
        Ok(match self.kind {
            Kind::Switch(_) => format!("{first}-{}", last.saturating_sub(1).max(first)),
            Kind::Bridge { .. } | Kind::Macvtap { .. } => format!("{first}-{last}"),
        })
    }

    /// What guest `n` is attached by.
    pub fn nic(&self, n: usize) -> Result<Nic> {
        let address = MacAddr(mac(number(n)).0);
        let tap = |options: &str, file| {
            let device = "virtio-net-pci,disable-legacy=on,romfile=,netdev=tap0";
            let arguments = format!("-netdev tap,id=tap0,{options} -device {device},mac={address}");
            Nic::Tap { arguments, file }
        };
        Ok(match &self.kind {
            Kind::Switch(peer) => {
                let (socket, listener) = peer.socket(n);
                let mode = match listener {
                    Listener::Switch => SocketMode::SwitchListens,
                    Listener::Guest => SocketMode::VmmListens,
                };
                Nic::VhostUser(NicSpec { mode, ..NicSpec::new(socket, address) })
            }
            Kind::Bridge { is_vhost, .. } => {
                let vhost = if *is_vhost { "on" } else { "off" };
                let name = name_of(n);
                let options = format!("ifname={name},script=no,downscript=no,vhost={vhost}");
                tap(&options, None)
            }
            Kind::Macvtap { .. } => {
                let file = make_macvtap(&Route::open()?, n)?;
                tap("fd=3,vhost=off", Some(file))
            }
        })
    }

    /// Once guest `n`'s VMM has made its tap.
    pub fn connect(&self, n: usize) -> Result<()> {
        let Kind::Bridge { index, .. } = self.kind else { return Ok(()) };
        begin_tap(&Route::open()?, &name_of(n), Some(index))
    }

    /// Takes it back.
    pub fn stop(self) -> Result<()> {
        if let Kind::Switch(peer) = self.kind {
            peer.stop()?;
        }
        let path: &Path = self.folder.path();
        let name = path.display().to_string();
        self.folder.close().with_context(|| format!("Failed to remove {name}"))
    }
}
