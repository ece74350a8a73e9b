//! A second host for what goes from node to node, and the overlay that joins it with ours.
//!
//! ```text
//!  our host                                       the second host, a network namespace
//!   client pods -- bridge or OVS -- cmp-vx         cmp-vx -- bridge or OVS -- server pods
//!                                      |             |
//!                                   cmp-lay ======= cmp-lay          underlay: a veth pair
//! ```
//! Pods of one network are on both. Pods keep an MTU of 1500: the underlay has [`MTU`]. A veth pair takes segments of
//! 64 KiB in a tunnel as they are, as a card does that segments inside VXLAN.
//!
//! The second host's name is on the /run of the comparison alone, like those of pods, so it goes as they
//! go. It is there for one point at a time: other figures have no tunnel on their bridge.

use std::io::ErrorKind::ConnectionRefused;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dataplane::clock;

use super::{arms, tools};
use crate::compare::apart::Apart;
use crate::compare::arms::{Arm, ArmKind, Lay, Programs};
use crate::compare::flows::experiment::{Experiment, Point};
use crate::compare::pod::{self, Pod};
use crate::compare::route::Route;
use crate::interrupt;

/// One end of the underlay, on each host.
const UNDERLAY: &str = "cmp-lay";
/// Of the underlay, in bytes: 1500 and the tunnel's headers, which are 50.
const MTU: u32 = 1600;
const TUNNEL: &str = "cmp-vx";
/// The hosts' addresses there.
const HOSTS: [[u8; 4]; 2] = [[10, 89, 0, 1], [10, 89, 0, 2]];
const PREFIX: u8 = 24;
/// The pods' network in the tunnel.
const VNI: u32 = 88;
/// The second host is numbered as a pod, and its pods from there on. A pod of this number or more is on no host of
/// ours, so all have names and addresses of their own.
pub const FIRST: usize = 1000;
/// A port where nobody listens.
const NOBODY: u16 = 9;
/// For one attempt to reach it.
const ATTEMPT: Duration = Duration::from_millis(100);
/// For all, in microseconds.
const LIMIT_US: u64 = 10_000_000;

/// Whether a figure is of traffic between nodes.
pub fn is_between_nodes(experiment: &Experiment) -> bool {
    experiment.id.starts_with("inter-node")
}

/// Whether a point of such a figure has the second node.
pub fn is_on_two(point: &Point) -> bool {
    point.x.starts_with("two nodes")
}

/// Runs `act` with as many pods on a second host as there are `clients` on ours, numbered from `number` on. All is
/// gone afterwards, but clients remember addresses for a while: the next host takes other numbers.
///
/// # Errors
/// Those of `act`; one cannot be made, or reached.
pub fn with<T>(
    host: &Apart,
    kind: ArmKind,
    programs: &Programs,
    near: &dyn Arm,
    (number, clients): (usize, &[&Pod]),
    act: impl FnOnce(&[Pod]) -> Result<T>,
) -> Result<T> {
    let namespace = Pod::create(host, number)?;
    let outcome = host.beside(namespace.netns(), namespace.path()).and_then(|second| {
        lay(host, &second)?;
        let outcome = joined(host, &second, kind, programs, near, (number + 1, clients), act);
        // Its other end goes with it.
        let removed = Route::open()?.delete(UNDERLAY);
        let value = outcome?;
        removed.with_context(|| format!("Failed to remove {UNDERLAY}"))?;
        Ok(value)
    });
    let given_up = namespace.give_up();
    let value = outcome?;
    given_up?;
    pod::wait_until_all_are_gone(host)?;
    Ok(value)
}

/// Lays the underlay.
fn lay(host: &Apart, second: &Apart) -> Result<()> {
    let set = || {
        let route = Route::open()?;
        route.set_mtu(UNDERLAY, MTU).with_context(|| format!("Failed to set the MTU to {MTU}"))?;
        route.up(UNDERLAY).context("Failed to set the underlay up")
    };
    let made = Route::open()?.add_veth(UNDERLAY, None, UNDERLAY, Some(second.netns()));
    made.context("Failed to make the underlay")?;
    set()?;
    host.on(second, set)
}

/// Prepares the second host and joins both.
fn joined<T>(
    host: &Apart,
    second: &Apart,
    kind: ArmKind,
    programs: &Programs,
    near: &dyn Arm,
    (first, clients): (usize, &[&Pod]),
    act: impl FnOnce(&[Pod]) -> Result<T>,
) -> Result<T> {
    let [ours, theirs] = ends();
    let far = host.on(second, || arms::start(kind, second, programs))?;
    let mut servers = Vec::new();
    let outcome = host
        .on(second, || {
            far.join(&theirs)?;
            for n in 0..clients.len() {
                let pod = Pod::create(second, first + n)?;
                let added = far.add(&pod);
                servers.push(pod);
                added?;
                if kind == ArmKind::Ovs {
                    tools::fill_checksums(&servers[n])?;
                }
            }
            Ok(())
        })
        .and_then(|()| near.join(&ours))
        .and_then(|()| {
            clients
                .iter()
                .zip(&servers)
                .try_for_each(|(client, server)| reach(host, client, server))?;
            act(&servers)
        });
    // Each of these also after a failure of another.
    let parted = near.part(&ours);
    let given_up = servers.into_iter().map(Pod::give_up).fold(Ok(()), Result::and);
    let stopped = host.on(second, || far.part(&theirs).and(far.stop()));
    let value = outcome?;
    parted.and(given_up).and(stopped)?;
    Ok(value)
}

/// What joins the hosts, as ours sees it and as the second one does.
fn ends() -> [Lay<'static>; 2] {
    [(HOSTS[0], HOSTS[1]), (HOSTS[1], HOSTS[0])].map(|(local, remote)| Lay {
        device: UNDERLAY,
        local,
        remote,
        prefix: PREFIX,
        tunnel: TUNNEL,
        id: VNI,
    })
}

/// Waits until a pod is reached: who asks for whose address is told in its own time.
fn reach(host: &Apart, client: &Pod, server: &Pod) -> Result<()> {
    let address = SocketAddr::from((Ipv4Addr::from(server.address()), NOBODY));
    client.within(host, || {
        let begin = clock::ticks();
        loop {
            interrupt::check()?;
            match TcpStream::connect_timeout(&address, ATTEMPT) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == ConnectionRefused => return Ok(()),
                Err(error) => {
                    let passed_us = (clock::ticks() - begin) / clock::ticks_per_us();
                    let (from, to) = (&client.name, &server.name);
                    ensure!(passed_us < LIMIT_US, "{from} does not reach {to}: {error}");
                }
            }
        }
    })
}
