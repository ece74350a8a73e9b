//! What the kernel does alone, asked for by one lean process: this one.
//!
//! For each pod the fewest messages that do it: the device in the pod (made there, not moved), up, with
//! an address and a default route; with veth, the host's end up and below the bridge.

use std::fs::OpenOptions;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use dataplane::gateway::interface::Tap;
use nix::net::if_::if_nametoindex;

use super::{Arm, ArmKind, Held, Lay};
use crate::compare::apart::{Apart, tap_file};
use crate::compare::pod::{GATEWAY, INTERFACE, PREFIX, Pod};
use crate::compare::route::{Match, NewLink, Route, Way};

const BRIDGE: &str = "cmp-br";
/// One end of a veth pair.
pub const UPLINK: &str = "cmp-up";
/// The other end of the uplink.
const WIRE: &str = "cmp-wire";
const TAP: &str = "tap0";
/// Device files of taps have the device's number in their name, and /dev is the whole machine's.
const FIRST_INDEX: u32 = 10_000;

/// A bridge, or an uplink.
#[derive(Debug)]
pub struct Kernel<'a> {
    kind: ArmKind,
    host: &'a Apart,
    /// Number of the bridge or of the uplink.
    base: u32,
    /// tc-routing: whether what pods send meets the uplink's filters, and so may be for another pod.
    is_local: bool,
}

impl<'a> Kernel<'a> {
    /// Makes what all pods share.
    pub fn start(kind: ArmKind, host: &'a Apart) -> Result<Self> {
        let route = Route::open()?;
        let base = match kind {
            ArmKind::Netns => 0,
            ArmKind::Veth | ArmKind::Kata => {
                let link = NewLink { kind: "bridge", ..device(BRIDGE) };
                route.add(&link).context("Failed to make a bridge")?;
                route.up(BRIDGE)?;
                let index = if_nametoindex(BRIDGE)?;
                route.address(index, GATEWAY, PREFIX)?;
                index
            }
            _ => {
                make_uplink(&route)?;
                if_nametoindex(UPLINK)?
            }
        };
        if kind == ArmKind::TcRouting {
            route.ingress(base).context("Failed to make the ingress qdisc of the uplink")?;
        }
        Ok(Self { kind, host, base, is_local: false })
    }

    /// tc-routing with pods that reach each other.
    pub fn start_routing_locally(host: &'a Apart) -> Result<Self> {
        Ok(Self { is_local: true, ..Self::start(ArmKind::TcRouting, host)? })
    }

    fn add_on_uplink(&self, pod: &Pod, kind: &str) -> Result<()> {
        let link = NewLink {
            kind,
            name: INTERFACE,
            index: Some(index_of(pod)),
            parent: Some(self.base),
            netns: Some(pod.netns()),
        };
        Route::open()?.add(&link).with_context(|| format!("Failed to make a {kind}"))?;
        configure(self.host, pod)
    }

    fn add_veth(&self, pod: &Pod) -> Result<()> {
        let bridge = (self.kind != ArmKind::TcRouting).then_some(self.base);
        let made = Route::open()?.add_veth(&host_end(pod), bridge, INTERFACE, Some(pod.netns()));
        made.context("Failed to make a veth pair")?;
        configure(self.host, pod)
    }

    /// What the pod sends goes out by the uplink; what comes in there for its address goes to the pod.
    fn route_by_filters(&self, pod: &Pod) -> Result<()> {
        let (route, end) = (Route::open()?, if_nametoindex(host_end(pod).as_str())?);
        route.ingress(end).context("Failed to make an ingress qdisc")?;
        let way = if self.is_local { Way::In } else { Way::Out };
        route.redirect(end, self.base, way, Match::Any).context("Failed to make a filter")?;
        let inwards = route.redirect(self.base, end, Way::Out, Match::To(pod.address()));
        inwards.context("Failed to make a filter on the uplink")
    }

    /// A tap in the pod, each way redirected to and from eth0.
    fn attach_tap(&self, pod: &Pod) -> Result<Held> {
        pod.within(self.host, || {
            let tap = Tap::create(TAP)?;
            let route = Route::open()?;
            route.up(TAP).context("Failed to set the tap up")?;
            let ends = [if_nametoindex(INTERFACE)?, if_nametoindex(TAP)?];
            for (from, to) in [(ends[0], ends[1]), (ends[1], ends[0])] {
                route.ingress(from).context("Failed to make an ingress qdisc")?;
                route
                    .redirect(from, to, Way::Out, Match::Any)
                    .context("Failed to make a filter")?;
            }
            Ok(Held::Tap(tap))
        })
    }
}

impl Arm for Kernel<'_> {
    fn add(&self, pod: &Pod) -> Result<Option<PathBuf>> {
        match self.kind {
            ArmKind::Netns => {}
            ArmKind::Veth | ArmKind::Kata => self.add_veth(pod)?,
            ArmKind::TcRouting => {
                self.add_veth(pod)?;
                self.route_by_filters(pod)?;
            }
            kind => self.add_on_uplink(pod, kind.name())?,
        }
        Ok(None)
    }

    fn attach(&self, pod: &Pod, _socket: Option<PathBuf>) -> Result<Held> {
        match self.kind {
            ArmKind::Kata => self.attach_tap(pod),
            ArmKind::Macvtap | ArmKind::Ipvtap => {
                let path = tap_file(index_of(pod))?;
                let file = OpenOptions::new().read(true).write(true).open(&path);
                Ok(Held::File(file.with_context(|| format!("Failed to open {}", path.display()))?))
            }
            _ => Ok(Held::Nothing),
        }
    }

    fn join(&self, lay: &Lay<'_>) -> Result<()> {
        ensure!(self.kind == ArmKind::Veth, "there is no overlay of {}", self.kind.name());
        let route = Route::open()?;
        let address = route.address(if_nametoindex(lay.device)?, lay.local, lay.prefix);
        address.context("Failed to give the underlay an address")?;
        let made = route.add_vxlan(lay.tunnel, lay.id, lay.remote, self.base);
        made.context("Failed to make a vxlan")
    }

    fn part(&self, lay: &Lay<'_>) -> Result<()> {
        let removed = Route::open()?.delete(lay.tunnel);
        removed.with_context(|| format!("Failed to remove {}", lay.tunnel))
    }

    fn stop(self: Box<Self>) -> Result<()> {
        let name = match self.kind {
            ArmKind::Netns => return Ok(()),
            ArmKind::Veth | ArmKind::Kata => BRIDGE,
            _ => UPLINK,
        };
        Route::open()?.delete(name).with_context(|| format!("Failed to remove {name}"))
    }
}

/// The device in the pod: up, address, route.
pub fn configure(host: &Apart, pod: &Pod) -> Result<()> {
    pod.within(host, || {
        let route = Route::open()?;
        let index = if_nametoindex(INTERFACE).context("There is no eth0 in the pod")?;
        route.up(INTERFACE).context("Failed to set eth0 up")?;
        route.address(index, pod.address(), PREFIX).context("Failed to set the address")?;
        route.default_route(index, GATEWAY).context("Failed to set the route")
    })
}

/// An uplink: one end of a veth pair, both on our host. Kernels without dummy devices have that.
pub fn make_uplink(route: &Route) -> Result<()> {
    route.add_veth(UPLINK, None, WIRE, None).context("Failed to make an uplink")?;
    route.up(WIRE).context("Failed to set the uplink's far end up")
}

const fn device(name: &str) -> NewLink<'_> {
    NewLink { kind: "", name, index: None, parent: None, netns: None }
}

/// The host's end of a pod's veth pair.
pub fn host_end(pod: &Pod) -> String {
    format!("cmp{}", pod.index)
}

fn index_of(pod: &Pod) -> u32 {
    FIRST_INDEX + pod.index as u32
}
