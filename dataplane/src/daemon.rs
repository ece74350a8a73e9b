//! The daemon: a configuration, running.
//!
//! ```text
//! main thread        waits for SIGTERM or SIGINT
//! slipway-vhost      all vhost-user sockets, housekeeping        one
//! slipway-watch      frees the others from descriptors made to block    one
//! slipway-api        the control API                             one
//! slipway-tap        the host's side of the gateway              one, if there is a gateway
//! slipway-pmdN       polls vrings, pinned                        one per configured core
//! ```
//!
//! All but the last keep off the cores of PMDs, if there is another core that they may use: a PMD that
//! has to share its core stands still meanwhile, and so do all of its ports.
//!
//! The number of threads does not depend on the number of ports. The signals are blocked before any
//! other thread starts, so that all of them inherit that and only the main thread takes them.

use std::hash::{BuildHasher, RandomState};
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;
use slipway_api::confine::refuse_netlink;

use crate::attach::Attachments;
use crate::config::Config;
use crate::control::peer::PeerPolicy;
use crate::control::server::ApiServer;
use crate::control::socket::{ApiSocket, find_group};
use crate::control::switch::{Switch, SwitchConfig};
use crate::gateway::Gateway;
use crate::pmd::PmdConfig;
use crate::vhost::socket::{SocketMode, VhostConfig, VhostThread};

/// Runs the switch until SIGTERM or SIGINT, then takes everything down.
///
/// # Errors
/// What could not be started; nothing of it is left running.
pub fn run(config: &Config) -> anyhow::Result<()> {
    let signals = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect::<SigSet>();
    signals.thread_block().context("Failed to block signals")?;

    let group = config.api.group.as_deref().map(find_group).transpose()?;
    let socket = ApiSocket::bind(&config.api.socket, group)?;
    let ports = config.port_defaults();
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(&ports.socket_dir)
        .with_context(|| format!("Failed to make the folder {}", ports.socket_dir.display()))?;

    let gateway = config.gateway().map(Gateway::open).transpose().context("No gateway")?;
    // The host's network is set up before this line, if at all; what comes after it cannot touch it.
    refuse_netlink()?;
    let others = other_cores(&config.pmd.cores)?;
    let vhost = VhostThread::spawn(VhostConfig {
        message_deadline: Duration::from_millis(config.vhost.message_deadline_ms.into()),
        reconnect_max: Duration::from_millis(config.vhost.reconnect_max_ms.into()),
        cores: others.clone(),
    })
    .context("Failed to start the vhost-user thread")?;
    let permissions = if group.is_some() { 0o660 } else { 0o600 };
    let switch = SwitchConfig {
        cores: config.pmd.cores.clone(),
        pmd: PmdConfig {
            burst_frames: config.pmd.burst_frames,
            quantum_bytes: config.pmd.quantum_bytes,
            idle_before_sleep_us: config.pmd.idle_before_sleep_us,
            kick_check_us: config.pmd.kick_check_us,
            rebalance_interval_s: config.pmd.rebalance_interval_s,
            rebalance_gain_percent: config.pmd.rebalance_gain_percent,
        },
        ports,
        listen: SocketMode::Listen { permissions, group: group.map(|group| group.as_raw()) },
        max_ports: config.ports.max_ports as usize,
        fdb_capacity: config.fdb.capacity as usize,
        ageing_s: config.fdb.ageing_s,
    };
    let attachments = Attachments::open(config.attachments())?;
    let switch = Switch::start(switch, vhost, seeds()).context("Failed to start the switch")?;
    // Not earlier: PMD threads may only go where the thread may that starts them. Those that come inherit it.
    keep_to(&others).context("Failed to keep off the cores of PMDs")?;
    // Before the pods' ports, so that none of them has its name or addresses.
    let gateway = gateway.map(|gateway| gateway.connect(&switch)).transpose()?;
    let switch = switch
        .with_attachments(attachments)
        .context("Failed to restore the attachments of pods")?;
    let policy = PeerPolicy::new(group);
    let api = ApiServer::start(socket, policy, Arc::new(switch))
        .context("Failed to start the control API")?;
    let interface = gateway.as_ref().map(|gateway| gateway.port.spec.name.as_str());
    tracing::info!(
        api = %config.api.socket.display(),
        cores = ?config.pmd.cores,
        gateway = interface.unwrap_or("none"),
        "slipwayd is ready"
    );

    let signal = signals.wait().context("Failed to wait for signals")?;
    tracing::info!(%signal, "slipwayd ends");
    // The API first, so that nothing new begins; it holds the last reference to the switch, whose
    // ports, sockets and threads end with it.
    drop(api);
    // Its rules last, as nothing needs them any more.
    drop(gateway);
    Ok(())
}

/// The cores that this thread may use and no PMD does; none: no word on cores.
fn other_cores(of_pmds: &[usize]) -> anyhow::Result<Vec<usize>> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).context("Failed to ask for our cores")?;
    let is_other = |&core: &usize| {
        !of_pmds.contains(&core) && allowed.is_set(core).is_ok_and(|is_allowed| is_allowed)
    };
    Ok((0..CpuSet::count()).filter(is_other).collect())
}

/// Keeps this thread, and those that it starts from now on, to `cores`, if there are some.
fn keep_to(cores: &[usize]) -> nix::Result<()> {
    if cores.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    cores.iter().try_for_each(|&core| set.set(core))?;
    sched_setaffinity(Pid::from_raw(0), &set)
}

/// Numbers that guests can not guess: they choose the addresses that are hashed.
fn seeds() -> [u64; 2] {
    // The standard library seeds its maps from the system's random source.
    [RandomState::new().hash_one(0), RandomState::new().hash_one(1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_threads_keep_off_the_cores_of_pmds_unless_none_is_left() {
        let all = other_cores(&[]).expect("our cores");
        let (&first, rest) = all.split_first().expect("at least one core");
        assert_eq!(other_cores(&[first]).expect("our cores"), rest);
        assert!(other_cores(&all).expect("our cores").is_empty());
        std::thread::spawn(move || {
            let of_thread = || other_cores(&[]).expect("our cores");
            keep_to(&[first]).expect("one of ours");
            assert_eq!(of_thread(), [first]);
            // Nothing is left: it stays where it is.
            keep_to(&[]).expect("no word");
            assert_eq!(of_thread(), [first]);
        })
        .join()
        .expect("no panic");
    }
}
