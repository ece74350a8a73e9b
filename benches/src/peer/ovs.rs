//! Open vSwitch with its userspace datapath on DPDK, private: its own database, sockets and logs in
//! one folder, which goes when it does. No service of the system is involved.
//!
//! OVS is the client of its ports' sockets, as its manual recommends, so our guests are the servers.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use dataplane::testing::{Guest, GuestConfig, GuestError, GuestListener};

use super::program::{LIMIT, Service, find, output};
use super::{Listener, Peer, Place, Setup, Work, number, socket};
use crate::interrupt;
use crate::rig::mac;

/// The daemon with DPDK in it; Debian keeps it beside the one without.
const DAEMON: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
/// All that is needed.
pub const PROGRAMS: &[&str] = &[DAEMON, SCHEMA, "ovsdb-tool", "ovsdb-server", "ovs-vsctl"];
/// Hugepages that DPDK takes at its start, in MiB.
const MEMORY_MIB: u32 = 512;
/// How often a handshake that it broke off is begun again.
pub(crate) const RETRIES: usize = 10;
/// What it has before each of them to finish what it is at.
const PAUSE: Duration = Duration::from_millis(300);
/// The bridge.
pub(crate) const BRIDGE: &str = "br0";

/// What tells OVS where a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actions {
    /// It learns.
    Normal,
    /// A flow for each guest's address.
    Explicit,
}

/// Where the network devices of an OVS are: its bridges are some, too.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Network<'a> {
    /// Where we are.
    Ours,
    /// In a namespace of its own, where nobody else sees them, and nobody talks to them.
    Own,
    /// In the namespace of that path.
    At(&'a Path),
}

impl Network<'_> {
    /// The program that starts one there, and its words.
    fn wrapper(self) -> (&'static str, Option<OsString>) {
        match self {
            Self::Ours => ("env", None),
            Self::Own => ("unshare", Some("--net".into())),
            Self::At(path) => {
                let mut word = OsString::from("--net=");
                word.push(path);
                ("nsenter", Some(word))
            }
        }
    }
}

/// An OVS of our own, without ports.
pub(crate) struct Private {
    // Ended in this order.
    daemon: Service,
    database: Service,
    dir: PathBuf,
}

impl Private {
    /// Starts it where we are, or in a network of its own: see [`Self::start_in`].
    pub(crate) fn start(
        dir: &Path,
        cores: &[usize],
        options: &[String],
        shares_network: bool,
    ) -> Result<Self> {
        let network = if shares_network { Network::Ours } else { Network::Own };
        Self::start_in(network, dir, cores, options)
    }

    /// Starts it with `options` of other_config, its things in `dir`, its threads on `cores` until they
    /// pin themselves.
    pub(crate) fn start_in(
        network: Network<'_>,
        dir: &Path,
        cores: &[usize],
        options: &[String],
    ) -> Result<Self> {
        output(command("ovsdb-tool", dir).arg("create").arg(dir.join("conf.db")).arg(SCHEMA))?;
        let env = FOLDERS.map(|name| (name, dir));
        let start = |name, program: &str, args: Vec<OsString>| {
            let (wrapper, word) = network.wrapper();
            let program = find(program).unwrap_or_else(|| program.into());
            let args = word.into_iter().chain([program.into()]).chain(args).collect();
            let wrapper = find(wrapper).with_context(|| format!("{wrapper} is not there"))?;
            Service::start(name, &wrapper, args, &env, cores, None)
        };
        let socket_of_db = dir.join("db.sock");
        let database = start(
            "ovsdb-server",
            "ovsdb-server",
            vec![
                dir.join("conf.db").into(),
                format!("--remote=punix:{}", socket_of_db.display()).into(),
                format!("--unixctl={}", dir.join("db.ctl").display()).into(),
                "--no-chdir".into(),
            ],
        )?;
        database.wait_until(|| socket_of_db.exists())?;
        // Nobody applies it yet.
        vsctl(dir, &["--no-wait", "init"])?;
        if !options.is_empty() {
            let options = options.iter().map(|option| format!("other_config:{option}"));
            let options: Vec<_> = options.collect();
            let mut set = vec!["--no-wait", "set", "Open_vSwitch", "."];
            set.extend(options.iter().map(String::as_str));
            vsctl(dir, &set)?;
        }
        let daemon = start(
            "ovs-vswitchd",
            DAEMON,
            vec![
                format!("unix:{}", socket_of_db.display()).into(),
                format!("--unixctl={}", control(dir).display()).into(),
                "--no-chdir".into(),
            ],
        )?;
        daemon.wait_until(|| control(dir).exists())?;
        Ok(Self { daemon, database, dir: dir.to_owned() })
    }

    /// Its processes.
    pub(crate) fn pids(&self) -> [u32; 2] {
        [self.daemon.pid(), self.database.pid()]
    }

    /// Its folder.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Ends it in order.
    pub(crate) fn stop(self) -> Result<()> {
        self.daemon.stop()?;
        self.database.stop()
    }
}

/// Options for DPDK, polling on `core`, all else on `generator`.
pub(crate) fn dpdk_options(generator: usize, core: usize, has_tso: bool) -> Vec<String> {
    vec![
        "dpdk-init=true".to_owned(),
        format!("dpdk-socket-mem={MEMORY_MIB}"),
        format!("dpdk-lcore-mask={:#x}", 1_u64 << generator),
        format!("pmd-cpu-mask={:#x}", 1_u64 << core),
        format!("userspace-tso-enable={has_tso}"),
        "dpdk-extra=\"--no-pci --in-memory\"".to_owned(),
    ]
}

/// Adds the bridge, of the userspace datapath.
pub(crate) fn add_bridge(dir: &Path) -> Result<()> {
    vsctl(dir, &words_to_add_bridge(BRIDGE)).map(drop)
}

/// What adds a bridge of the userspace datapath.
pub(crate) const fn words_to_add_bridge(name: &str) -> [&str; 7] {
    ["add-br", name, "--", "set", "bridge", name, "datapath_type=netdev"]
}

/// An OVS with its ports.
pub struct Ovs {
    ovs: Private,
    listeners: Vec<GuestListener>,
}

impl Ovs {
    /// Starts it, and makes the ports.
    pub fn start(setup: &Setup, place: &Place, actions: Actions) -> Result<Self> {
        let options = dpdk_options(place.generator, place.core, setup.tso);
        let ovs = Private::start(&place.dir, &[place.generator], &options, false)?;
        let mut ovs = Self { ovs, listeners: Vec::new() };
        ovs.add_ports(setup, actions)
            .with_context(|| format!("OVS says:\n{}", ovs.ovs.daemon.tail()))?;
        Ok(ovs)
    }

    fn add_ports(&mut self, setup: &Setup, actions: Actions) -> Result<()> {
        let dir = self.ovs.dir.clone();
        add_bridge(&dir)?;
        // All in one transaction, which is what OVS is quickest at.
        let mut words = Vec::new();
        for port in 0..setup.ports {
            let path = socket(&dir, port);
            // Another guest listens itself.
            if !setup.dpdk_guest {
                self.listeners.push(GuestListener::bind(&path)?);
            }
            let name = format!("g{port}");
            let add = ["--", "add-port", BRIDGE, &name, "--", "set", "interface", &name];
            words.extend(add.map(String::from));
            words.push("type=dpdkvhostuserclient".to_owned());
            words.push(format!("ofport_request={}", number(port)));
            words.push(format!("options:vhost-server-path={}", path.display()));
        }
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        vsctl(&dir, &words)?;
        if actions == Actions::Explicit {
            let target = format!("unix:{}", dir.join(format!("{BRIDGE}.mgmt")).display());
            output(command("ovs-ofctl", &dir).args(["del-flows", &target]))?;
            for port in 0..setup.active {
                let n = number(port);
                let flow = format!("dl_dst={},actions=output:{n}", mac(n));
                output(command("ovs-ofctl", &dir).args(["add-flow", &target, &flow]))?;
            }
        }
        Ok(())
    }
}

/// Where OVS keeps its things, if it is told.
const FOLDERS: [&str; 4] = ["OVS_RUNDIR", "OVS_DBDIR", "OVS_LOGDIR", "OVS_SYSCONFDIR"];

fn control(dir: &Path) -> PathBuf {
    dir.join("vs.ctl")
}

fn command(program: &str, dir: &Path) -> Command {
    let mut command = Command::new(find(program).unwrap_or_else(|| program.into()));
    command.envs(FOLDERS.map(|name| (name, dir)));
    command
}

/// Runs ovs-vsctl, which returns when OVS has done it.
pub(crate) fn vsctl(dir: &Path, words: &[&str]) -> Result<String> {
    interrupt::check()?;
    output(&mut vsctl_command(dir, words))
}

/// How ovs-vsctl is run.
pub(crate) fn vsctl_command(dir: &Path, words: &[&str]) -> Command {
    let database = format!("--db=unix:{}", dir.join("db.sock").display());
    let timeout = format!("--timeout={}", LIMIT.as_secs());
    let mut vsctl = command("ovs-vsctl", dir);
    vsctl.args([&database, &timeout]).args(words);
    vsctl
}

impl Peer for Ovs {
    fn guest(&mut self, port: usize, config: GuestConfig) -> Result<Guest> {
        let listener = &self.listeners[port];
        let mut guest = listener.accept(config.clone(), LIMIT);
        // While OVS makes room for the frames of another port it has no memory for this one's rings. It
        // breaks the handshake off, and connects anew.
        for _ in 0..RETRIES {
            if matches!(guest, Ok(_) | Err(GuestError::NoPeer { .. })) {
                break;
            }
            interrupt::check()?;
            thread::sleep(PAUSE);
            guest = listener.accept(config.clone(), LIMIT);
        }
        guest.with_context(|| format!("OVS says:\n{}", self.ovs.daemon.tail()))
    }

    fn socket(&self, port: usize) -> (PathBuf, Listener) {
        (socket(&self.ovs.dir, port), Listener::Guest)
    }

    fn work(&mut self) -> Result<Work> {
        let mut command = command("ovs-appctl", &self.ovs.dir);
        command.arg("-t").arg(control(&self.ovs.dir)).arg("dpif-netdev/pmd-stats-show");
        let shown = output(&mut command)?;
        work_of(&shown).with_context(|| format!("OVS shows no work of a PMD thread:\n{shown}"))
    }

    fn pid(&self) -> u32 {
        self.ovs.daemon.pid()
    }

    fn stop(self: Box<Self>) -> Result<()> {
        self.ovs.stop()
    }
}

/// Reads what `pmd-stats-show` prints of the first PMD thread.
fn work_of(shown: &str) -> Option<Work> {
    let (_, of_pmd) = shown.split_once("pmd thread")?;
    let number = |name: &str| -> Option<u64> {
        let line = of_pmd.lines().find_map(|line| line.trim().strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    Some(Work {
        busy_ticks: number("processing cycles:")?,
        idle_ticks: number("idle cycles:")?,
        frames: number("packets received:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_work_of_the_pmd_thread_is_read_not_that_of_the_main_thread() {
        let shown = "main thread:\n  packets received: 7\n\
                     pmd thread numa_id 0 core_id 1:\n  packets received: 1000\n  \
                     packet recirculations: 0\n  idle cycles: 190442255 (100.00%)\n  \
                     processing cycles: 554000 (0.00%)\n  avg cycles per packet: 1.0 (9/1000)\n";
        let work = work_of(shown).unwrap();
        assert_eq!((work.frames, work.busy_ticks, work.idle_ticks), (1000, 554_000, 190_442_255));
        assert!(work_of("main thread:\n  packets received: 7\n").is_none());
    }
}
