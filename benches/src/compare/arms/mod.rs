//! The ways to connect a pod that are compared, each a line of one table and an implementation of [`Arm`].
//!
//! ```text
//!  netns        a network namespace, nothing in it
//!  veth         eth0 of the pod --- veth --- bridge
//!  kata         the same, and in the pod  tap === eth0  by u32 filters that redirect (Kata's tcfilter)
//!  tc-routing   eth0 of the pod --- veth === uplink  by u32 filters that redirect, no bridge
//!  macvlan, macvtap, ipvlan, ipvtap   a device of that kind on the uplink; a *tap is opened as a VMM does
//!  cni-bridge, cni-macvlan            Debian's plugin binaries, with host-local
//!  ovs          veth --- Open vSwitch's userspace datapath, one ovs-vsctl for each pod
//!  ovs-dpdk     vhost-user port of OVS-DPDK, one ovs-vsctl for each pod, and a stub VMM
//!  slipway      slipway-cni, slipwayd, and a stub VMM
//! ```
//! The uplink is one end of a veth pair on our own host. `lo` of a pod stays down in every arm:
//! container engines set it up for each pod of any network, at the same cost.
//!
//! # Threads
//! An arm is driven by many threads at once, each with a pod of its own. They are on our host when a
//! method is called, and when it returns.

mod cni;
pub(super) mod kernel;
pub(super) mod ovs;
pub(super) mod slipway;

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::ValueEnum;
use dataplane::gateway::interface::Tap;
use dataplane::testing::Guest;
use serde::{Deserialize, Serialize};

use super::apart::Apart;
use super::pod::Pod;
use super::route;
use crate::peer::program;

/// Where Debian's package has the plugins.
pub const PLUGINS: &str = "/usr/lib/cni";
/// The device of vhost-net.
const VHOST_NET: &str = "/dev/vhost-net";

/// A way to connect a pod.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum ArmKind {
    /// slipway-cni, slipwayd, and a stub VMM
    Slipway,
    /// A network namespace alone: what every other arm pays as well
    Netns,
    /// veth and a bridge
    Veth,
    /// veth, a bridge, a tap in the pod and filters that redirect: Kata's tcfilter
    Kata,
    /// veth and filters that redirect to the uplink
    TcRouting,
    /// A tap below a bridge: for microVMs only
    TapBridge,
    /// The same, its rings served by the kernel's vhost-net: for microVMs only
    VhostNet,
    /// macvlan on the uplink
    Macvlan,
    /// macvtap on the uplink, opened
    Macvtap,
    /// ipvlan on the uplink
    Ipvlan,
    /// ipvtap on the uplink, opened
    Ipvtap,
    /// Debian's plugin bridge
    CniBridge,
    /// Debian's plugin macvlan
    CniMacvlan,
    /// Open vSwitch in user space, veth
    Ovs,
    /// OVS-DPDK, vhost-user, and a stub VMM
    OvsDpdk,
}

/// Where programs are that are no part of the system.
#[derive(Debug, Clone)]
pub struct Programs {
    /// Ours.
    pub slipwayd: PathBuf,
    /// Its plugin.
    pub slipway_cni: PathBuf,
}

impl ArmKind {
    /// As the command line and the tables say it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Slipway => "slipway",
            Self::Netns => "netns",
            Self::Veth => "veth",
            Self::Kata => "kata",
            Self::TcRouting => "tc-routing",
            Self::TapBridge => "tap-bridge",
            Self::VhostNet => "vhost-net",
            Self::Macvlan => "macvlan",
            Self::Macvtap => "macvtap",
            Self::Ipvlan => "ipvlan",
            Self::Ipvtap => "ipvtap",
            Self::CniBridge => "cni-bridge",
            Self::CniMacvlan => "cni-macvlan",
            Self::Ovs => "ovs",
            Self::OvsDpdk => "ovs-dpdk",
        }
    }

    /// The kind of device that the kernel must have.
    const fn device(self) -> Option<&'static str> {
        match self {
            Self::Veth | Self::Kata | Self::TapBridge | Self::VhostNet | Self::CniBridge => {
                Some("bridge")
            }
            Self::TcRouting | Self::Ovs => Some("veth"),
            Self::Macvlan | Self::CniMacvlan => Some("macvlan"),
            Self::Macvtap => Some("macvtap"),
            Self::Ipvlan => Some("ipvlan"),
            Self::Ipvtap => Some("ipvtap"),
            Self::Slipway | Self::Netns | Self::OvsDpdk => None,
        }
    }

    /// The programs that must be there, as paths or as names to look for.
    const fn programs(self) -> &'static [&'static str] {
        match self {
            Self::CniBridge => &["/usr/lib/cni/bridge", "/usr/lib/cni/host-local"],
            Self::CniMacvlan => &["/usr/lib/cni/macvlan", "/usr/lib/cni/host-local"],
            Self::Ovs | Self::OvsDpdk => ovs::PROGRAMS,
            _ => &[],
        }
    }

    /// Hugepages of 2 MiB that it takes.
    pub const fn hugepages(self) -> u64 {
        match self {
            Self::OvsDpdk => ovs::HUGEPAGES,
            _ => 0,
        }
    }

    /// Why pods cannot be set up so here, if they cannot. The caller is on our host.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn absence(self) -> Result<Option<String>> {
        match self {
            Self::TapBridge | Self::VhostNet => Ok(Some("for microVM endpoints only".to_owned())),
            _ => self.lack(),
        }
    }

    /// What it needs and this machine has not. The caller is on our host.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn lack(self) -> Result<Option<String>> {
        if let Some(kind) = self.device()
            && !route::has_kind(kind)?
        {
            return Ok(Some(format!("not on this kernel: {kind}")));
        }
        if self == Self::VhostNet && !Path::new(VHOST_NET).exists() {
            return Ok(Some(format!("not on this kernel: no {VHOST_NET}")));
        }
        let mut programs = self.programs().iter();
        let missing = programs.find(|name| program::find(name).is_none());
        Ok(missing.map(|name| format!("not installed: {name}")))
    }

    /// Prepares the host: bridge, uplink, daemon.
    ///
    /// # Errors
    /// In the words of whoever refuses.
    pub fn start<'a>(self, host: &'a Apart, programs: &Programs) -> Result<Box<dyn Arm + 'a>> {
        Ok(match self {
            Self::CniBridge | Self::CniMacvlan => Box::new(cni::Plugin::start(self, host)?),
            Self::Ovs | Self::OvsDpdk => Box::new(ovs::Ovs::start(self, host)?),
            Self::Slipway => Box::new(slipway::Slipway::start(host, programs)?),
            _ => Box::new(kernel::Kernel::start(self, host)?),
        })
    }
}

/// What a VMM would hold of a pod's network while the pod runs.
#[derive(Debug)]
pub enum Held {
    /// Nothing.
    Nothing,
    /// A tap's queue.
    Tap(Tap),
    /// A macvtap's.
    File(File),
    /// The far end of a vhost-user socket.
    Guest(Box<Guest>),
}

/// What polling threads did so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Polled {
    /// Ticks in rounds that found frames.
    pub busy_ticks: u64,
    /// Frames that they forwarded; one may have many segments.
    pub frames: u64,
}

/// What joins two hosts, as one of them sees it.
#[derive(Debug, Clone, Copy)]
pub struct Lay<'a> {
    /// The device that goes to the other one, up, with room for the tunnel's headers beside 1500 bytes.
    pub device: &'a str,
    /// This host's address there.
    pub local: [u8; 4],
    /// The other's.
    pub remote: [u8; 4],
    /// Length of the prefix of both.
    pub prefix: u8,
    /// What the tunnel's end is to be called.
    pub tunnel: &'a str,
    /// The number of the network in it (VNI).
    pub id: u32,
}

/// A prepared host.
pub trait Arm: Sync {
    /// Gives `pod` its interface: what a CNI plugin does. Returns the vhost-user socket, if it has one.
    ///
    /// # Errors
    /// In the words of whoever refuses.
    fn add(&self, pod: &Pod) -> Result<Option<PathBuf>>;

    /// Attaches a VM to it: what a runtime and its VMM do.
    ///
    /// # Errors
    /// In the words of whoever refuses.
    fn attach(&self, pod: &Pod, socket: Option<PathBuf>) -> Result<Held> {
        match socket {
            None => Ok(Held::Nothing),
            Some(path) => bail!("{} of {} was not asked for", path.display(), pod.name),
        }
    }

    /// Takes back what does not go with the pod's namespace.
    ///
    /// # Errors
    /// In the words of whoever refuses.
    fn remove(&self, _pod: &Pod) -> Result<()> {
        Ok(())
    }

    /// Looks whether `pods` pods are connected.
    ///
    /// # Errors
    /// They are not.
    fn check(&self, _pods: usize) -> Result<()> {
        Ok(())
    }

    /// Processes whose time is charged to this arm, besides ours and our children's.
    fn daemons(&self) -> Vec<u32> {
        Vec::new()
    }

    /// The core that a polling thread of its has; pods run on the others, as on a node that is set up
    /// for it.
    fn own_core(&self) -> Option<usize> {
        None
    }

    /// What its polling threads did so far; `None`: it has none that tell.
    ///
    /// # Errors
    /// They do not answer.
    fn polled(&self) -> Result<Option<Polled>> {
        Ok(None)
    }

    /// Joins the pods' network with that of another host, by VXLAN.
    ///
    /// # Errors
    /// It has no overlay, or whoever makes it refuses.
    fn join(&self, _lay: &Lay<'_>) -> Result<()> {
        bail!("there is no overlay")
    }

    /// Takes back what [`Self::join`] made.
    ///
    /// # Errors
    /// In the words of whoever refuses.
    fn part(&self, _lay: &Lay<'_>) -> Result<()> {
        Ok(())
    }

    /// Takes everything back.
    ///
    /// # Errors
    /// Something does not end.
    fn stop(self: Box<Self>) -> Result<()>;
}
