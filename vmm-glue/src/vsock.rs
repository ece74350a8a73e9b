//! The vsock that leads to a guest's agent, where the host's kernel has none: vhost-device-vsock as a
//! child process. And the choice between all ways to the agent.
//!
//! ```text
//!  we --- CONNECT 1024 ---> uds_path  [vhost-device-vsock]  socket <--- vhost-user --- QEMU, guest
//!  uds_path_PORT <--------- the guest connects to port PORT of the host
//! ```
//!
//! The program binds both sockets itself and tells nobody, so the kernel's list of sockets is asked
//! with growing pauses. Connecting for a test would be taken for a VMM.

use std::collections::hash_map::RandomState;
use std::fs::{self, OpenOptions};
use std::hash::{BuildHasher, Hasher};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::agent::AgentAddress;
use crate::devices::AgentChannel;
use crate::exit::ExitReport;
use crate::helper::{self, HelperError, Sockets};
use crate::process::{Child, Launch, Stuck};
use crate::rundir::make_way;

/// The program's name, looked up in PATH.
pub const PROGRAM: &str = "vhost-device-vsock";
const INSTALL: &str = "build it: cargo install --locked vhost-device-vsock";
/// The host's kernel carries the vsocks of its guests.
const VHOST_VSOCK: &str = "/dev/vhost-vsock";
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
/// With hybrid vsocks each VM has an address space of its own, so all guests may be the first.
pub const FIRST_CID: u32 = 3;

/// One vsock device.
#[derive(Clone, Debug)]
pub struct VsockDeviceSpec {
    /// What people call it; shown in errors.
    pub name: String,
    /// The program; see [`VsockDevice::find`].
    pub program: PathBuf,
    /// The vhost-user socket: that of [`AgentChannel::VhostUserVsock`].
    pub socket: PathBuf,
    /// The UNIX socket that leads to the guest's ports.
    pub uds_path: PathBuf,
    /// The guest's address as the guest sees it, mostly [`FIRST_CID`].
    pub guest_cid: u32,
    /// See [`Launch::cgroup_procs`].
    pub cgroup_procs: Vec<PathBuf>,
}

/// A running vhost-device-vsock. Dropping it kills it and removes its sockets.
#[derive(Debug)]
pub struct VsockDevice {
    child: Child,
    sockets: Sockets,
    uds_path: PathBuf,
}

impl VsockDevice {
    /// The program in PATH.
    ///
    /// # Errors
    /// [`HelperError::NotFound`] says how to get it.
    pub fn find() -> Result<PathBuf, HelperError> {
        helper::find(PROGRAM, &[]).ok_or_else(|| HelperError::NotFound {
            program: PROGRAM,
            places: "PATH".to_owned(),
            remedy: INSTALL,
        })
    }

    /// Starts it, and returns when both its sockets listen.
    ///
    /// # Errors
    /// See [`HelperError`]; one that died carries the last lines of its standard error. Nothing is
    /// left behind.
    pub async fn spawn(spec: VsockDeviceSpec) -> Result<Self, HelperError> {
        let paths = [spec.socket.clone(), spec.uds_path.clone()];
        for path in &paths {
            make_way(path, || spec.name.clone())?;
        }
        let sockets = Sockets(paths.to_vec());
        let child = Child::spawn(Launch {
            name: spec.name.clone(),
            program: spec.program.clone(),
            args: vec![
                "--guest-cid".into(),
                spec.guest_cid.to_string().into(),
                "--socket".into(),
                spec.socket.clone().into(),
                "--uds-path".into(),
                spec.uds_path.clone().into(),
            ],
            cgroup_procs: spec.cgroup_procs.clone(),
            ..Launch::default()
        })
        .await?;
        let ready = async {
            let mut pause = FIRST_PAUSE;
            while !paths.iter().all(|path| is_listening(path)) {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        };
        helper::await_ready(&spec.name, &child, &spec.socket, ready).await?;
        tracing::info!(name = spec.name, pid = child.pid(), "vhost-device-vsock serves");
        Ok(Self { child, sockets, uds_path: spec.uds_path })
    }

    /// Where port `port` of the guest is reached.
    pub fn address(&self, port: u32) -> AgentAddress {
        AgentAddress::Hybrid { socket: self.uds_path.clone(), port }
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Returns when it has ended; it outlives its VMM. Any number of waiters; cancel safe.
    pub async fn wait(&self) -> ExitReport {
        self.child.wait().await
    }

    /// Kills it, and returns when it is gone with its sockets.
    ///
    /// # Errors
    /// It is stuck in the kernel.
    pub async fn stop(&self) -> Result<ExitReport, Stuck> {
        let report = self.child.end().await?;
        self.sockets.remove();
        Ok(report)
    }
}

/// Whether a process of our network namespace listens on the UNIX socket `path`.
fn is_listening(path: &Path) -> bool {
    fs::read_to_string("/proc/self/net/unix").is_ok_and(|list| lists_listener(&list, path))
}

/// Lines of `Num: RefCount Protocol Flags Type St Inode Path`; a listener's flags are __SO_ACCEPTCON.
fn lists_listener(list: &str, path: &Path) -> bool {
    let Some(path) = path.to_str() else { return false };
    list.lines().any(|line| {
        let is_path = line.strip_suffix(path).is_some_and(|rest| rest.ends_with(' '));
        is_path && line.split_whitespace().nth(3) == Some("00010000")
    })
}

/// Which program runs a VM, as far as its ways to the agent go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VmmKind {
    /// [`Qemu`](crate::qemu::Qemu)
    Qemu,
    /// [`CloudHypervisor`](crate::cloud_hypervisor::CloudHypervisor)
    CloudHypervisor,
}

/// The best way to the agent that this host has, with its sockets in `dir`.
///
/// For QEMU the host's own vsock, else a [`VsockDevice`], which the caller starts on the channel's
/// socket, else a serial port, which every host has. The address on the host's vsock is drawn at
/// random, as there is no list: QEMU refuses one that is taken, and a new draw will do.
pub fn pick_channel(dir: &Path, vmm: VmmKind) -> AgentChannel {
    let has_vhost = || OpenOptions::new().read(true).write(true).open(VHOST_VSOCK).is_ok();
    let has_device = || VsockDevice::find().is_ok();
    choose(dir, vmm, has_vhost, has_device)
}

fn choose(
    dir: &Path,
    vmm: VmmKind,
    has_vhost: impl FnOnce() -> bool,
    has_device: impl FnOnce() -> bool,
) -> AgentChannel {
    match vmm {
        VmmKind::CloudHypervisor => {
            AgentChannel::Hybrid { socket: dir.join("agent.sock"), cid: FIRST_CID }
        }
        VmmKind::Qemu if has_vhost() => AgentChannel::VhostVsock { cid: random_cid() },
        VmmKind::Qemu if has_device() => {
            AgentChannel::VhostUserVsock { socket: dir.join("vsock.sock") }
        }
        VmmKind::Qemu => AgentChannel::Serial { socket: dir.join("agent.sock") },
    }
}

/// One of 2^30 addresses above the small ones that people type.
fn random_cid() -> u32 {
    // The keys of a hash table come from the kernel's random numbers.
    let random = RandomState::new().build_hasher().finish();
    let low = u32::try_from(random & 0x3fff_ffff).unwrap_or_default();
    0x4000_0000 | low
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_host_without_vsock_falls_back_step_by_step() {
        let pick = |vmm, vhost, device| choose(Path::new("/run/a"), vmm, || vhost, || device);
        let best = pick(VmmKind::Qemu, true, true);
        let AgentChannel::VhostVsock { cid } = best else { panic!("{best:?}") };
        assert!((3..u32::MAX).contains(&cid), "{cid}");
        assert_ne!(pick(VmmKind::Qemu, true, true), best, "each VM draws its own address");
        let socket = PathBuf::from("/run/a/vsock.sock");
        let second = pick(VmmKind::Qemu, false, true);
        assert_eq!(second, AgentChannel::VhostUserVsock { socket });
        let socket = PathBuf::from("/run/a/agent.sock");
        let serial = AgentChannel::Serial { socket: socket.clone() };
        assert_eq!(pick(VmmKind::Qemu, false, false), serial);
        let hybrid = AgentChannel::Hybrid { socket, cid: 3 };
        assert_eq!(pick(VmmKind::CloudHypervisor, true, true), hybrid);
    }

    #[test]
    fn a_listener_is_seen_without_a_connection_and_gone_when_closed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a b.sock");
        assert!(!is_listening(&path));
        let listener = UnixListener::bind(&path).unwrap();
        assert!(is_listening(&path));
        assert!(!is_listening(&dir.path().join("b.sock")), "only the whole path counts");
        drop(listener);
        assert!(!is_listening(&path), "the file alone is no listener");
    }
}
