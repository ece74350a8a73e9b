//! A switch and guests in one process: the PMD on a core of its own, the guests on the caller's.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use dataplane::control::Control;
use dataplane::control::switch::{Switch, SwitchConfig};
use dataplane::pmd::PmdConfig;
use dataplane::testing::{Guest, GuestConfig};
use dataplane::vhost::socket::{SocketMode, VhostConfig, VhostThread};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use slipway_api::{LinkState, Mac, PortDefaults, PortSpec};

/// A switch with one PMD, put together in this process.
#[derive(Debug)]
pub struct Rig {
    /// The switch, for ports and counters.
    pub switch: Switch,
    dir: PathBuf,
}

/// Where the parts run: the generator on the first core, the PMD on the last, of those that the
/// process may use at the first call.
pub fn cores() -> Result<(usize, usize)> {
    static CORES: OnceLock<Vec<usize>> = OnceLock::new();
    let all = || core_affinity::get_core_ids().unwrap_or_default().iter().map(|c| c.id).collect();
    match CORES.get_or_init(all).as_slice() {
        [first, .., last] => Ok((*first, *last)),
        _ => bail!("a benchmark needs two cores, one for the PMD and one for the generator"),
    }
}

/// Pins the calling thread to `core`.
pub fn pin(core: usize) -> Result<()> {
    if core_affinity::set_for_current(core_affinity::CoreId { id: core }) {
        Ok(())
    } else {
        bail!("this thread can not be pinned to core {core}")
    }
}

/// The calling thread on one core, for as long as this lives.
#[derive(Debug)]
pub struct Pinned {
    before: CpuSet,
}

impl Pinned {
    /// Pins it to `core`.
    ///
    /// # Errors
    /// It may not run there.
    pub fn to(core: usize) -> Result<Self> {
        let before = sched_getaffinity(Pid::from_raw(0)).context("Failed to ask for our cores")?;
        pin(core)?;
        Ok(Self { before })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // Where it was allowed before it is allowed again.
        let _ = sched_setaffinity(Pid::from_raw(0), &self.before);
    }
}

/// The address of guest `n`.
pub fn mac(n: u32) -> Mac {
    let [a, b, c, d] = n.to_be_bytes();
    Mac([0x02, 0x5a, a, b, c, d])
}

impl Rig {
    /// Starts a switch whose PMD runs on the last core, and pins the caller to the first.
    pub fn start(pmd: PmdConfig) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (generator, pmd_core) = cores()?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("slipway-{}-{count}", std::process::id()));
        std::fs::create_dir(&dir).context("making a folder for sockets")?;
        let vhost =
            VhostThread::spawn(VhostConfig { cores: vec![generator], ..VhostConfig::default() })?;
        let config = SwitchConfig {
            cores: vec![pmd_core],
            pmd,
            ports: PortDefaults { socket_dir: dir.clone(), mac_quota: 64, max_queue_pairs: 8 },
            listen: SocketMode::Listen { permissions: 0o600, group: None },
            max_ports: 4096,
            fdb_capacity: 1 << 14,
            ageing_s: 300,
        };
        let switch = Switch::start(config, vhost, [1, 2])?;
        pin(generator)?;
        Ok(Self { switch, dir })
    }

    /// Adds port `n` with its address and connects a guest to it.
    pub fn guest(&self, n: u32, config: GuestConfig) -> Result<Guest> {
        let name = format!("g{n}");
        let spec = PortSpec { mac: Some(mac(n)), ..PortSpec::named(&name) };
        let (port, _) = self.switch.create_port(spec)?;
        let guest = Guest::connect(&port.spec.socket, config)
            .with_context(|| format!("connecting guest {n} to its port"))?;
        let link = self.switch.get_port(&name).map(|port| port.link);
        if link != Some(LinkState::Up) {
            bail!("port {name} is {link:?} after its guest connected");
        }
        Ok(guest)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // The sockets go with the ports, the lock files with the folder.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
