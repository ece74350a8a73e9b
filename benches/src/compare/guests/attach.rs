//! The ways in which guests are attached, an implementation for each kind of arm.
//!
//! ```text
//!  slipway, ovs-dpdk    vhost-user socket --- switch
//!  tap-bridge           VMM --- tap --- bridge
//!  vhost-net            the kernel's vhost-net --- tap --- bridge
//!  macvtap              VMM --- macvtap in bridge mode on an uplink
//!  kata                 VMM --- tap in a pod === eth0 --- veth --- bridge
//!  ovs                  VMM --- tap --- Open vSwitch's userspace datapath (its main thread, which sleeps)
//! ```

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use dataplane::clock;
use dataplane::gateway::interface::Tap;
use dataplane::testing::GuestConfig;
use nix::libc::O_NONBLOCK;
use nix::net::if_::if_nametoindex;
use tempfile::TempDir;

use super::fleet::Fleet;
use super::stack::{Machine, Role, Stack};
use super::vhost_net::VhostNet;
use super::vmm::Vmm;
use crate::compare::apart::{Apart, tap_file};
use crate::compare::arms::kernel::{Kernel, UPLINK, make_uplink};
use crate::compare::arms::{Arm as _, ArmKind, Held};
use crate::compare::pod::{Pod, wait_until_all_are_gone};
use crate::compare::route::{NewLink, Route};
use crate::host::Process;
use crate::peer::ovs::{BRIDGE as OVS_BRIDGE, Private, add_bridge, vsctl};
use crate::peer::{self, Peer, PeerKind, Place, Setup, Work, number};
use crate::rig::{cores, mac};

pub(in crate::compare) const BRIDGE: &str = "cmp-br";
/// Device files of taps have the device's number in their name, and /dev is the whole machine's. Pods have
/// lower ones.
const FIRST_INDEX: u32 = 20_000;

/// Guests that are attached, and what they are attached to.
#[derive(Debug)]
pub struct Attached<'a> {
    /// The guests.
    pub fleet: Fleet,
    switch: Switch<'a>,
}

enum Switch<'a> {
    /// Behind sockets; the folder goes last.
    VhostUser(Box<dyn Peer>, TempDir),
    /// Behind taps.
    Taps(Box<Taps<'a>>),
}

impl std::fmt::Debug for Switch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::VhostUser(..) => "VhostUser",
            Self::Taps(_) => "Taps",
        })
    }
}

/// Ended in this order, when it is dropped at the latest: taps go with the VMM.
struct Taps<'a> {
    host: &'a Apart,
    vmm: Option<Vmm>,
    vhost_net: Option<VhostNet>,
    ovs: Option<(Private, TempDir)>,
    pods: Vec<Pod>,
    kata: Option<Box<Kernel<'a>>>,
    /// Removed at the end.
    device: Option<&'static str>,
}

impl<'a> Attached<'a> {
    /// Makes `pairs` pairs of guests and attaches them. `checks_all`: see [`Fleet::new`].
    ///
    /// # Errors
    /// In the words of whoever refuses.
    pub fn start(
        kind: ArmKind,
        host: &'a Apart,
        slipwayd: &Path,
        pairs: usize,
        checks_all: bool,
    ) -> Result<Self> {
        let count = 2 * pairs;
        let (machines, switch) = match kind {
            ArmKind::Slipway => behind_sockets(PeerKind::Slipwayd, host, slipwayd, count)?,
            ArmKind::OvsDpdk => behind_sockets(PeerKind::Ovs, host, slipwayd, count)?,
            ArmKind::TapBridge
            | ArmKind::VhostNet
            | ArmKind::Macvtap
            | ArmKind::Kata
            | ArmKind::Ovs => behind_taps(kind, host, count)?,
            _ => bail!("{} has no guests", kind.name()),
        };
        let role = |n: usize| if n.is_multiple_of(2) { Role::Sender } else { Role::Receiver };
        let stack = |(n, machine)| Stack::new(number(n), role(n), machine);
        let stacks = machines.into_iter().enumerate().map(stack).collect();
        let mut fleet = Fleet::new(stacks, checks_all);
        fleet.introduce()?;
        Ok(Self { fleet, switch })
    }

    /// What the switch's core did so far: a polling thread's own account, or the VMM's with the kernel's
    /// work in it.
    ///
    /// # Errors
    /// It does not say.
    pub fn work(&mut self) -> Result<Work> {
        match &mut self.switch {
            Switch::VhostUser(peer, _) => peer.work(),
            Switch::Taps(taps) => taps.work(),
        }
    }

    /// Takes everything back.
    ///
    /// # Errors
    /// Something does not end.
    pub fn stop(self) -> Result<()> {
        drop(self.fleet);
        match self.switch {
            Switch::VhostUser(peer, folder) => {
                peer.stop()?;
                folder.close().context("Failed to remove a switch's folder")
            }
            Switch::Taps(mut taps) => taps.end(),
        }
    }
}

impl Taps<'_> {
    fn work(&self) -> Result<Work> {
        if let Some(vhost_net) = &self.vhost_net {
            return vhost_net.work();
        }
        let mut work = self.vmm.as_ref().context("There is no VMM")?.work()?;
        if let Some((ovs, _)) = &self.ovs {
            // Its time on that core looked idle to the VMM, which had yielded.
            let [daemon, _] = ovs.pids();
            let ticks = Process::cpu_ns(daemon)? * clock::ticks_per_us() / 1000;
            work.busy_ticks += ticks;
            work.idle_ticks = work.idle_ticks.saturating_sub(ticks);
        }
        Ok(work)
    }

    fn end(&mut self) -> Result<()> {
        self.vmm.take().map_or(Ok(()), Vmm::stop)?;
        // Which lets go of the taps.
        drop(self.vhost_net.take());
        if let Some((ovs, folder)) = self.ovs.take() {
            // Its devices are persistent taps, which a daemon that ends leaves behind.
            let deleted = vsctl(ovs.dir(), &["del-br", OVS_BRIDGE]);
            ovs.stop().and(deleted.map(drop))?;
            folder.close().context("Failed to remove OVS's folder")?;
        }
        if let Some(kata) = self.kata.take() {
            self.pods.drain(..).try_for_each(Pod::give_up)?;
            wait_until_all_are_gone(self.host)?;
            kata.stop()?;
        }
        let Some(name) = self.device.take() else { return Ok(()) };
        Route::open()?.delete(name).with_context(|| format!("Failed to remove {name}"))
    }

    /// A tap in a new pod, as Kata makes it.
    fn tap_in_pod(&mut self, n: usize) -> Result<Tap> {
        let kata = self.kata.as_ref().context("There is no bridge")?;
        let pod = Pod::create(self.host, n)?;
        kata.add(&pod)?;
        let held = kata.attach(&pod, None)?;
        self.pods.push(pod);
        match held {
            Held::Tap(tap) => Ok(tap),
            other => bail!("There is no tap in pod {n}, but {other:?}"),
        }
    }
}

impl Drop for Taps<'_> {
    fn drop(&mut self) {
        // Who wants to know why it failed has called `end`.
        let _ = self.end();
    }
}

fn behind_sockets(
    kind: PeerKind,
    host: &Apart,
    slipwayd: &Path,
    count: usize,
) -> Result<(Vec<Machine>, Switch<'static>)> {
    let folder = host.folder(kind.name())?;
    let (generator, core) = cores()?;
    let setup = Setup {
        ports: count,
        active: count,
        packed: false,
        tso: false,
        cold: false,
        dpdk_guest: false,
    };
    let programs = peer::Programs { slipwayd: slipwayd.to_owned(), testpmd: None };
    let dir = folder.path().to_owned();
    let place = Place { dir, generator, core, is_exclusive: true, programs };
    let mut peer = peer::start(kind, &setup, &place)?;
    let mut machines = Vec::new();
    for n in 0..count {
        let guest = peer.guest(n, GuestConfig::default());
        let guest = guest.with_context(|| format!("Failed to attach guest {n}"))?;
        machines.push(Machine::VhostUser(Box::new(guest)));
    }
    Ok((machines, Switch::VhostUser(peer, folder)))
}

fn behind_taps(kind: ArmKind, host: &Apart, count: usize) -> Result<(Vec<Machine>, Switch<'_>)> {
    let (_, core) = cores()?;
    let route = Route::open()?;
    let (vmm, vhost_net, ovs, kata, device) = (None, None, None, None, None);
    let mut all = Box::new(Taps { host, vmm, vhost_net, ovs, pods: Vec::new(), kata, device });
    let taps: Vec<_> = match kind {
        ArmKind::TapBridge | ArmKind::VhostNet => {
            route
                .add(&NewLink { kind: "bridge", ..named(BRIDGE) })
                .context("Failed to make a bridge")?;
            all.device = Some(BRIDGE);
            let index = begin_bridge(&route)?;
            (0..count).map(|n| tap(&route, n, Some(index))).collect::<Result<_>>()?
        }
        ArmKind::Macvtap => {
            make_uplink(&route)?;
            all.device = Some(UPLINK);
            route.up(UPLINK)?;
            (0..count).map(|n| macvtap(&route, n)).collect::<Result<_>>()?
        }
        ArmKind::Kata => {
            all.kata = Some(Box::new(Kernel::start(kind, host)?));
            (0..count).map(|n| all.tap_in_pod(n)).collect::<Result<_>>()?
        }
        _ => {
            let folder = host.folder("ovs")?;
            let ovs = Private::start(folder.path(), &[core], &[], true)?;
            let (ovs, _) = all.ovs.insert((ovs, folder));
            add_bridge(ovs.dir())?;
            let taps = (0..count).map(|n| tap(&route, n, None)).collect::<Result<_>>()?;
            let names: Vec<_> = (0..count).map(name_of).collect();
            let add = |name| ["--", "add-port", OVS_BRIDGE, name];
            let words: Vec<_> = names.iter().flat_map(|name| add(name.as_str())).collect();
            vsctl(ovs.dir(), &words)?;
            taps
        }
    };
    let guests = if kind == ArmKind::VhostNet {
        let (vhost_net, guests) = VhostNet::start(core, taps)?;
        all.vhost_net = Some(vhost_net);
        guests
    } else {
        let (vmm, guests) = Vmm::start(core, taps, all.ovs.is_some())?;
        all.vmm = Some(vmm);
        guests
    };
    let machines = guests.into_iter().map(|guest| Machine::Local(Box::new(guest))).collect();
    Ok((machines, Switch::Taps(all)))
}

/// Sets the bridge up, and returns its index.
pub(in crate::compare) fn begin_bridge(route: &Route) -> Result<u32> {
    quiet(BRIDGE)?;
    route.up(BRIDGE)?;
    Ok(if_nametoindex(BRIDGE)?)
}

pub(in crate::compare) const fn named(name: &str) -> NewLink<'_> {
    NewLink { kind: "", name, index: None, parent: None, netns: None }
}

pub(in crate::compare) fn name_of(n: usize) -> String {
    format!("cmp{n}")
}

/// A tap below `bridge`.
fn tap(route: &Route, n: usize, bridge: Option<u32>) -> Result<Tap> {
    let name = name_of(n);
    let tap = Tap::create(&name)?;
    begin_tap(route, &name, bridge)?;
    Ok(tap)
}

/// Sets a tap up, below `bridge`.
pub(in crate::compare) fn begin_tap(route: &Route, name: &str, bridge: Option<u32>) -> Result<()> {
    quiet(name)?;
    if let Some(bridge) = bridge {
        route.enslave(name, bridge).with_context(|| format!("{name} below {BRIDGE}"))?;
    }
    route.up(name).with_context(|| format!("Failed to set {name} up"))
}

/// A macvtap with the guest's address, opened as a VMM does.
fn macvtap(route: &Route, n: usize) -> Result<Tap> {
    let path = make_macvtap(route, n)?;
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).custom_flags(O_NONBLOCK).open(&path);
    let file = file.with_context(|| format!("Failed to open {}", path.display()))?;
    Ok(Tap::over(file, name_of(n))?)
}

/// A macvtap with the guest's address, and the file that it is reached by.
pub(in crate::compare) fn make_macvtap(route: &Route, n: usize) -> Result<PathBuf> {
    let (name, index) = (name_of(n), FIRST_INDEX + n as u32);
    let parent = Some(if_nametoindex(UPLINK)?);
    let link = NewLink { kind: "macvtap", name: &name, index: Some(index), parent, netns: None };
    route.add(&link).context("Failed to make a macvtap")?;
    quiet(&name)?;
    route.set_mac(&name, mac(number(n)).0).context("Failed to give a macvtap its address")?;
    route.up(&name).with_context(|| format!("Failed to set {name} up"))?;
    tap_file(index)
}

/// The host has nothing to say on this device: frames of its own would be in the figures.
fn quiet(name: &str) -> Result<()> {
    let path = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
    match std::fs::write(&path, "1") {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("Failed to write 1 to {path}"))
        }
        _ => Ok(()),
    }
}
