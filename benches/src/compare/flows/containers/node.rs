//! An arm with its pods, and how each figure is measured on it.

use std::cell::Cell;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::net::if_::if_nametoindex;
use nix::unistd::Pid;

use super::Containers;
use super::completion::{self, Flow};
use super::overlay;
use super::place::{Pair, Place, pin_thread};
use super::streams::{self, Protocol, Streams};
use super::tools;
use crate::compare::apart::Apart;
use crate::compare::arms::kernel::host_end;
use crate::compare::arms::{Arm, ArmKind};
use crate::compare::flows::congestion;
use crate::compare::flows::experiment::{Experiment, Point};
use crate::compare::flows::measurement::Reading;
use crate::compare::flows::run::Node;
use crate::compare::pod::{self, INTERFACE, Pod};
use crate::compare::route::Route;
use crate::interrupt;
use crate::rig;

const MB: u64 = 1_000_000;
const MICE: u64 = 5 * MB;
const ELEPHANTS: u64 = 50 * MB;
/// One client of so many has elephants.
const ELEPHANT_OF: usize = 5;
/// Bytes of a write of streams whose size is not what is varied.
const WRITE: usize = 64 * 1024;

/// How long things take.
#[derive(Debug, Clone, Copy)]
pub struct Windows {
    warm_up: Duration,
    /// With no pairs.
    window: Duration,
    /// More of it for each pair: threads of many take turns on few cores, and each is to have some.
    each: Duration,
    /// Flows of each client whose completion is measured.
    flows: usize,
    /// For all of them, in microseconds.
    limit_us: u64,
}

/// Those of `--quick`.
pub const QUICK: Windows = Windows {
    warm_up: Duration::from_millis(100),
    window: Duration::from_millis(300),
    each: Duration::from_millis(20),
    flows: 2,
    limit_us: 20_000_000,
};
/// Those of a full run.
pub const FULL: Windows = Windows {
    warm_up: Duration::from_millis(300),
    window: Duration::from_secs(1),
    each: Duration::from_millis(20),
    flows: 3,
    limit_us: 60_000_000,
};

/// Pairs of pods: the even ones are clients, each with the server after it.
pub struct Pairs<'a> {
    host: &'a Apart,
    kind: ArmKind,
    arm: Box<dyn Arm + 'a>,
    /// What is the same for each arm.
    same: &'a Containers,
    pods: Vec<Pod>,
    /// Number of the next pod on a second host.
    next: Cell<usize>,
    /// Why there can be no more.
    full: Option<String>,
}

impl<'a> Pairs<'a> {
    /// None yet.
    pub fn new(
        host: &'a Apart,
        kind: ArmKind,
        arm: Box<dyn Arm + 'a>,
        same: &'a Containers,
    ) -> Self {
        let next = Cell::new(overlay::FIRST);
        Self { host, kind, arm, same, pods: Vec::new(), next, full: None }
    }

    fn grow(&mut self, pairs: usize) -> Result<()> {
        if let Some(reason) = &self.full {
            bail!("No more pods: {reason}");
        }
        while self.pods.len() < 2 * pairs {
            interrupt::check()?;
            if let Err(error) = self.add() {
                self.full = Some(format!("{error:#}"));
                return Err(error);
            }
        }
        Ok(())
    }

    fn add(&mut self) -> Result<()> {
        let pod = Pod::create(self.host, self.pods.len())?;
        let chosen = pod.within(self.host, || congestion::choose(&self.same.congestion_control));
        let added = chosen.and_then(|()| self.arm.add(&pod));
        // Its namespace is given up with the others', whatever became of its interface.
        self.pods.push(pod);
        added?;
        let pod = &self.pods[self.pods.len() - 1];
        if self.kind == ArmKind::Ovs {
            tools::fill_checksums(pod)?;
        }
        let [.., client, server] = self.pods.as_slice() else { return Ok(()) };
        if self.kind == ArmKind::TcRouting && server.index % 2 == 1 {
            // Its filters know addresses of IPv4 alone, so nobody would hear who asks for one.
            let macs = [mac_of(self.host, client)?, mac_of(self.host, server)?];
            neighbour(self.host, client, server, macs[1])?;
            neighbour(self.host, server, client, macs[0])?;
        }
        Ok(())
    }

    /// The first `pairs`, clients and servers on the cores given.
    fn pairs<'p>(
        &'p self,
        pairs: usize,
        client: &'p [usize],
        server: &'p [usize],
    ) -> Vec<Pair<'p>> {
        let pair = |pods: &'p [Pod]| Pair {
            client: Place { pod: &pods[0], cores: client },
            server: Place { pod: &pods[1], cores: server },
        };
        self.pods.chunks_exact(2).take(pairs).map(pair).collect()
    }

    /// The same with their servers on a second host, which is there for so long.
    fn on_two_nodes<T>(
        &self,
        pairs: usize,
        cores: &[usize],
        act: impl FnOnce(&[Pair<'_>]) -> Result<T>,
    ) -> Result<T> {
        let clients: Vec<_> = self.pods.iter().step_by(2).take(pairs).collect();
        let number = self.next.get();
        // The host itself has one, too.
        self.next.set(number + 1 + pairs);
        let (host, arm, clients) = (self.host, &*self.arm, clients.as_slice());
        overlay::with(host, self.kind, &self.same.programs, arm, (number, clients), |servers| {
            let pair = |(client, server)| Pair {
                client: Place { pod: client, cores },
                server: Place { pod: server, cores },
            };
            let pairs: Vec<_> = clients.iter().copied().zip(servers).map(pair).collect();
            act(&pairs)
        })
    }

    fn streams(&self, protocol: Protocol, bytes: usize, pairs: usize) -> Streams {
        let Windows { warm_up, window, each, .. } = self.same.windows;
        let window = window + each * pairs as u32;
        Streams { protocol, bytes, each: 1, warm_up, window }
    }

    /// Lets all threads of the arm's daemons run on `cores` alone.
    fn confine(&self, cores: &[usize]) -> Result<()> {
        for thread in self.threads()? {
            pin_thread(thread, cores)?;
        }
        Ok(())
    }

    fn threads(&self) -> Result<Vec<Pid>> {
        let mut threads = Vec::new();
        for daemon in self.arm.daemons() {
            let path = format!("/proc/{daemon}/task");
            for entry in fs::read_dir(&path).with_context(|| format!("Failed to read {path}"))? {
                let name = entry?.file_name();
                threads.push(Pid::from_raw(name.to_string_lossy().parse()?));
            }
        }
        Ok(threads)
    }

    /// All on one core, the arm's own threads included; afterwards these are where they were.
    fn on_one_core(&self, core: usize, pairs: usize) -> Result<Reading> {
        let before = self
            .threads()?
            .into_iter()
            .map(|thread| Ok((thread, nix::sched::sched_getaffinity(thread)?)));
        let before: Vec<_> = before.collect::<Result<_>>()?;
        self.confine(&[core])?;
        let cores = [core];
        let pairs = self.pairs(pairs, &cores, &cores);
        let measured = self.streams(Protocol::Tcp, WRITE, pairs.len());
        let measured = streams::run(&measured, &pairs, &*self.arm);
        let flows = vec![Flow { bytes: MICE, counts: true, first: false }; pairs.len()];
        let completed = completion::run(&pairs, &flows, 1, self.same.windows.limit_us);
        for (thread, set) in before {
            // It may have ended.
            let _ = nix::sched::sched_setaffinity(thread, &set);
        }
        let (mut reading, completed) = (measured?, completed?);
        reading.values.extend(completed.values);
        reading.distributions.extend(completed.distributions);
        reading.failures.extend(completed.failures);
        Ok(reading)
    }

    /// The same with all offloads of the pair's interfaces off.
    fn plain(&self, act: impl FnOnce() -> Result<Reading>) -> Result<Reading> {
        let pods = &self.pods[..2];
        pods.iter().try_for_each(|pod| tools::set_offloads(pod, false))?;
        let reading = act();
        if self.kind != ArmKind::Ovs {
            pods.iter().try_for_each(|pod| tools::set_offloads(pod, true))?;
        }
        reading
    }
}

impl Node for Pairs<'_> {
    fn measure(&mut self, experiment: &Experiment, point: &Point) -> Result<Reading> {
        self.grow(point.pairs)?;
        let (first, last) = rig::cores()?;
        let all: Vec<_> = (first..=last).collect();
        let own = self.arm.own_core();
        let pods_cores: Vec<_> = all.iter().copied().filter(|core| Some(*core) != own).collect();
        let (first, last) = ([first], [last]);
        let pairs = self.pairs(point.pairs, &pods_cores, &pods_cores);
        let size = || point.x.parse::<usize>().context("The point is no size");
        let tcp = |pairs: &[Pair<'_>]| {
            let streams = self.streams(Protocol::Tcp, WRITE, pairs.len());
            streams::run(&streams, pairs, &*self.arm)
        };
        let sized =
            |protocol| streams::run(&self.streams(protocol, size()?, 1), &pairs, &*self.arm);
        let mouse = Flow { bytes: MICE, counts: true, first: false };
        match experiment.id {
            "throughput" => tcp(&pairs),
            "completion" => {
                let flows = vec![mouse; pairs.len()];
                completion::run(&pairs, &flows, self.same.windows.flows, self.same.windows.limit_us)
            }
            "mice" => {
                let all = pairs.iter().zip(mix(pairs.len(), point.x));
                let (pairs, flows): (Vec<_>, Vec<_>) =
                    all.filter_map(|(pair, flow)| Some((*pair, flow?))).unzip();
                completion::run(&pairs, &flows, self.same.windows.flows, self.same.windows.limit_us)
            }
            "round-trips" => {
                let (client, server) = (&self.pods[0], &self.pods[1]);
                tools::round_trips(client, server, point.x == "TCP", &pods_cores)
            }
            "inter-node" if overlay::is_on_two(point) => {
                self.on_two_nodes(point.pairs, &pods_cores, |pairs| tcp(pairs))
            }
            "inter-node" => tcp(&pairs),
            "inter-node-round-trips" if overlay::is_on_two(point) => {
                self.on_two_nodes(1, &pods_cores, |pairs| {
                    let pair = pairs[0];
                    tools::round_trips(pair.client.pod, pair.server.pod, true, &pods_cores)
                })
            }
            "inter-node-round-trips" => {
                tools::round_trips(&self.pods[0], &self.pods[1], true, &pods_cores)
            }
            "messages-tcp" => sized(Protocol::Tcp),
            "messages-udp" => sized(Protocol::Udp),
            "messages-tcp-plain" => self.plain(|| sized(Protocol::Tcp)),
            "messages-udp-plain" => self.plain(|| sized(Protocol::Udp)),
            "pinning" => match point.x {
                "both on the first" => tcp(&self.pairs(1, &first, &first)),
                "first and last" => tcp(&self.pairs(1, &first, &last)),
                "both on the last" => tcp(&self.pairs(1, &last, &last)),
                _ => tcp(&self.pairs(1, &all, &all)),
            },
            "ratio" => self.on_one_core(first[0], point.pairs),
            "flows" => {
                let streams = Streams { each: size()?, ..self.streams(Protocol::Tcp, WRITE, 1) };
                streams::run(&streams, &pairs, &*self.arm)
            }
            "iperf3" => {
                let pods: Vec<_> =
                    pairs.iter().map(|pair| (pair.client.pod, pair.server.pod)).collect();
                tools::iperf3(&pods, &pods_cores)
            }
            id => bail!("{id} is no figure of containers"),
        }
    }

    fn stop(self: Box<Self>) -> Result<()> {
        let Self { host, arm, pods, .. } = *self;
        // Interfaces go with their namespaces, ports with the daemon: pods are not removed one by one.
        let ends: Vec<_> = pods.iter().map(host_end).collect();
        let given_up = pods.into_iter().map(Pod::give_up).fold(Ok(()), Result::and);
        let gone = pod::wait_until_all_are_gone(host);
        let stopped = arm.stop();
        let route = Route::open()?;
        for end in ends.iter().filter(|end| if_nametoindex(end.as_str()).is_ok()) {
            // Somebody keeps the namespace; its interface goes nevertheless.
            route.delete(end).with_context(|| format!("Failed to remove {end}"))?;
        }
        stopped.and(gone).and(given_up)
    }
}

/// Each client's flows: elephants at one of five, mice at the others.
fn mix(clients: usize, beside: &str) -> Vec<Option<Flow>> {
    let first = beside.ends_with("priority");
    let flow = |client| {
        if client % ELEPHANT_OF != 0 {
            return Some(Flow { bytes: MICE, counts: true, first });
        }
        beside.starts_with("elephants").then_some(Flow {
            bytes: ELEPHANTS,
            counts: false,
            first: false,
        })
    };
    (0..clients).map(flow).collect()
}

fn mac_of(host: &Apart, pod: &Pod) -> Result<[u8; 6]> {
    pod.within(host, || {
        let mut all = nix::ifaddrs::getifaddrs().context("Failed to list interfaces")?;
        let mac = all.find_map(|interface| {
            (interface.interface_name == INTERFACE)
                .then(|| interface.address?.as_link_addr()?.addr())
                .flatten()
        });
        mac.with_context(|| format!("{INTERFACE} of {} has no address", pod.name))
    })
}

fn neighbour(host: &Apart, pod: &Pod, other: &Pod, mac: [u8; 6]) -> Result<()> {
    pod.within(host, || {
        let index = if_nametoindex(INTERFACE)?;
        let made = Route::open()?.neighbour(index, other.address(), mac);
        made.with_context(|| format!("Failed to make {} known to {}", other.name, pod.name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_of_five_has_elephants_or_nothing() {
        let count = |beside, of: fn(&Option<Flow>) -> bool| {
            mix(50, beside).iter().filter(|f| of(f)).count()
        };
        assert_eq!(count("nothing", Option::is_none), 10);
        let is_elephant =
            |flow: &Option<Flow>| flow.is_some_and(|f| f.bytes == ELEPHANTS && !f.counts);
        assert_eq!(count("elephants", is_elephant), 10);
        assert_eq!(count("elephants", |flow| flow.is_some_and(|f| f.first)), 0);
        let is_first = |flow: &Option<Flow>| flow.is_some_and(|f| f.first && f.bytes == MICE);
        assert_eq!(count("elephants, mice with priority", is_first), 40);
    }
}
