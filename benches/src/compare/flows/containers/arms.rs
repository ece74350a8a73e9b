//! The arms that containers can be connected by. Most are those of the start-up figures, with nothing
//! changed; two are other ones:
//!
//! * slipway's pods have ports in their namespaces, in place of vhost-user sockets;
//! * tc-routing redirects what a pod sends to the *ingress* of the uplink, whose filters know the pods: so pods
//!   of one node reach each other, by one list of filters as before.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use slipway_api::client::Client;
use slipway_api::{LinkState, NetnsSpec, PortSpec};
use tempfile::TempDir;

use super::overlay;
use crate::compare::apart::Apart;
use crate::compare::arms::kernel::Kernel;
use crate::compare::arms::slipway::switch;
use crate::compare::arms::{Arm, ArmKind, Polled, Programs};
use crate::compare::flows::experiment::{Experiment, Point};
use crate::compare::pod::{INTERFACE, PREFIX, Pod};
use crate::peer::program::Service;
use crate::rig::cores;

/// Why an arm is not among them, if it is not.
pub fn absence(arm: ArmKind) -> Result<Option<String>> {
    let reason = match arm {
        ArmKind::Netns => "it has no network",
        ArmKind::Kata => "its tap is a VM's; its pods' own way out is that of veth",
        ArmKind::CniBridge => "pods are connected as by veth",
        ArmKind::CniMacvlan => "pods are connected as by macvlan",
        ArmKind::Macvtap | ArmKind::Ipvtap | ArmKind::OvsDpdk => "microVM endpoints only",
        _ => return arm.absence(),
    };
    Ok(Some(reason.to_owned()))
}

/// Why an arm cannot be measured at a point, if it cannot.
pub fn lack(arm: ArmKind, experiment: &Experiment, point: &Point) -> Option<&'static str> {
    if experiment.id.ends_with("-plain") {
        let is_stacked = matches!(arm, ArmKind::Macvlan | ArmKind::Ipvlan);
        return is_stacked.then_some("always on: segmentation of such devices");
    }
    if !overlay::is_between_nodes(experiment) {
        return None;
    }
    match arm {
        ArmKind::Veth | ArmKind::Ovs => None,
        ArmKind::Slipway => overlay::is_on_two(point).then_some("not yet: no overlay so far"),
        _ => Some("no overlay: an uplink, no tunnel"),
    }
}

/// Prepares the host.
pub fn start<'a>(arm: ArmKind, host: &'a Apart, programs: &Programs) -> Result<Box<dyn Arm + 'a>> {
    Ok(match arm {
        ArmKind::Slipway => Box::new(NamespacePorts::start(host, programs)?),
        ArmKind::TcRouting => Box::new(Kernel::start_routing_locally(host)?),
        arm => arm.start(host, programs)?,
    })
}

/// slipwayd, with ports in the pods' namespaces.
struct NamespacePorts {
    service: Service,
    client: Client,
    /// The one that it polls on.
    core: usize,
    /// Held until the switch has ended.
    _folder: TempDir,
}

impl NamespacePorts {
    fn start(host: &Apart, programs: &Programs) -> Result<Self> {
        let (folder, service, client) = switch(host, programs)?;
        Ok(Self { service, client, core: cores()?.1, _folder: folder })
    }
}

impl Arm for NamespacePorts {
    fn add(&self, pod: &Pod) -> Result<Option<PathBuf>> {
        let [a, b, c, d] = pod.address();
        let address = format!("{a}.{b}.{c}.{d}/{PREFIX}").parse();
        let netns = NetnsSpec {
            interface: INTERFACE.to_owned(),
            addresses: vec![address.context("A pod's address is none")?],
            ..NetnsSpec::at(pod.path())
        };
        let spec = PortSpec { netns: Some(netns), ..PortSpec::named(&pod.name) };
        let (port, _) = self.service.runtime().block_on(self.client.create_port(&spec))?;
        ensure!(port.link == LinkState::Up, "The port of {} is {:?}", pod.name, port.link);
        Ok(None)
    }

    fn remove(&self, pod: &Pod) -> Result<()> {
        Ok(self.service.runtime().block_on(self.client.delete_port(&pod.name))?)
    }

    fn daemons(&self) -> Vec<u32> {
        vec![self.service.pid()]
    }

    fn own_core(&self) -> Option<usize> {
        Some(self.core)
    }

    fn polled(&self) -> Result<Option<Polled>> {
        let pmds = self.service.runtime().block_on(self.client.pmds())?.pmds;
        Ok(Some(Polled {
            busy_ticks: pmds.iter().map(|pmd| pmd.busy_cycles).sum(),
            frames: pmds.iter().map(|pmd| pmd.frames).sum(),
        }))
    }

    fn stop(self: Box<Self>) -> Result<()> {
        self.service.stop()
    }
}
