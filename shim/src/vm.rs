//! From a configuration to the VM's specification. Pure but for looking whether files are there.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use kata_config::{CacheMode, HypervisorKind, KataConfig, LogLevel, MachineType};
use vmm_glue::accel::Accel;
use vmm_glue::agent::AgentAddress;
use vmm_glue::vsock::{FIRST_CID, VmmKind, VsockDevice, VsockDeviceSpec, pick_channel};
use vmm_glue::{AgentChannel, DiskSpec, HOTPLUG_UNIT, Machine, Mib, VmSpec, sharefs};

/// What to do about a configuration without a kernel.
pub const NO_KERNEL: &str = "The configuration names no guest kernel: set `kernel` and `initrd` \
     or `image` under [hypervisor.qemu] in configuration.toml";
/// What a VM can have (see [`VmSpec::vcpus`]).
const MAX_VCPUS: u32 = 254;
/// As much of an id as people read.
const NAME_CHARS: usize = 12;
/// For every guest. `net.ifnames=0`: interfaces have the names we give them.
const KERNEL_PARAMS: &str = "reboot=k panic=1 net.ifnames=0 systemd.unit=kata-containers.target \
     systemd.mask=systemd-networkd.service systemd.mask=systemd-networkd.socket \
     systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all";

/// The VM that `config` describes, without NICs and shares.
///
/// # Errors
/// A file that is not there, with the key that names it.
pub fn spec(id: &str, dir: &Path, config: &KataConfig, accel: Accel) -> Result<VmSpec> {
    let hypervisor = &config.hypervisor;
    // Sockets are named after the VM, and their paths are short; the folder tells pods apart.
    let name: String = id.chars().take(NAME_CHARS).collect();
    let mut spec = VmSpec::new(name, dir);
    spec.vcpus = vcpus(hypervisor.default_vcpus);
    spec.memory = Mib::new(hypervisor.default_memory_mib);
    spec.machine = machine(hypervisor.machine_type);
    spec.accel = accel;
    spec.boot_timeout = config.agent.dial_timeout;
    let kernel = hypervisor.kernel.clone().context(NO_KERNEL)?;
    spec.kernel = Some(present("kernel", kernel)?);
    let mut parameters = vec![KERNEL_PARAMS.to_owned()];
    if grows(config) {
        spec.vcpus_max = most_vcpus(hypervisor.default_maxvcpus).filter(|max| *max > spec.vcpus);
        spec.memory_max =
            most_memory(hypervisor.default_maxmemory_mib).filter(|max| *max > spec.memory);
        // Memory that appears is in use without the agent's help, which looks for it once.
        parameters.push("memhp_default_state=online".to_owned());
    }
    if !hypervisor.enable_debug {
        parameters.push("quiet".to_owned());
    }
    match (&hypervisor.initrd, &hypervisor.image) {
        (Some(_), Some(_)) => {
            bail!("The configuration names both `initrd` and `image`: leave one of them out")
        }
        (Some(initrd), None) => spec.initrd = Some(present("initrd", initrd.clone())?),
        (None, Some(image)) => {
            spec.disks.push(DiskSpec::readonly("image", present("image", image.clone())?));
            let kind = hypervisor.rootfs_type.name();
            let flags = if kind == "ext4" { "data=ordered,errors=remount-ro ro" } else { "ro" };
            parameters.push(format!("root=/dev/vda1 rootfstype={kind} rootflags={flags}"));
        }
        (None, None) => bail!(
            "The configuration names neither `initrd` nor `image`: the guest has no root file system"
        ),
    }
    let level = if config.agent.enable_debug { LogLevel::Debug } else { config.agent.log_level };
    if level != LogLevel::default() {
        parameters.push(format!("agent.log={}", level.name()));
    }
    if config.agent.debug_console {
        let port = kata_agent_protocol::DEBUG_CONSOLE_PORT;
        parameters.push(format!("agent.debug_console agent.debug_console_vport={port}"));
    }
    if config.agent.container_pipe_size > 0 {
        let size = config.agent.container_pipe_size;
        parameters.push(format!("agent.container_pipe_size={size}"));
    }
    // The last word wins, and it is the user's.
    parameters.push(hypervisor.kernel_params.clone());
    spec.cmdline = parameters.join(" ").trim_end().to_owned();
    Ok(spec)
}

/// Whether the VM is to grow with its containers, and can. A microvm cannot: its containers' limits hold
/// in it all the same.
fn grows(config: &KataConfig) -> bool {
    if config.runtime.static_sandbox_resource_mgmt {
        return false;
    }
    let can = config.hypervisor.machine_type == MachineType::Q35;
    if !can {
        tracing::warn!(
            "static_sandbox_resource_mgmt is false, but the machine \"microvm\" cannot grow"
        );
    }
    can
}

fn most_vcpus(count: u32) -> Option<u16> {
    u16::try_from(count.min(MAX_VCPUS)).ok()
}

/// Down to a whole number of what can be plugged.
pub(crate) fn most_memory(mib: u64) -> Option<Mib> {
    let unit = u64::from(HOTPLUG_UNIT.get());
    u32::try_from(mib / unit * unit).ok().map(Mib::new)
}

/// A whole number of virtual CPUs.
fn vcpus(wanted: f32) -> u16 {
    // The configuration's range is checked where it is read; the cast saturates.
    wanted.ceil().max(1.0) as u16
}

fn present(key: &str, path: PathBuf) -> Result<PathBuf> {
    match path.is_file() {
        true => Ok(path),
        false => bail!(
            "The guest's {key}, {}, is not there: install it, or correct `{key}` in \
             configuration.toml",
            path.display()
        ),
    }
}

/// The VMM's program that the configuration names; what has no slash is looked up in PATH when it runs.
///
/// # Errors
/// It is not there.
pub fn program(path: PathBuf) -> Result<PathBuf> {
    if path.components().count() > 1 && !path.is_file() {
        bail!(
            "The hypervisor, {}, is not there: install it, or correct `path` in configuration.toml",
            path.display()
        );
    }
    Ok(path)
}

/// The configuration's word for a machine, as the VMM's.
pub fn machine(kind: MachineType) -> Machine {
    match kind {
        MachineType::Q35 => Machine::Q35,
        MachineType::Microvm => Machine::Microvm,
    }
}

/// The configuration's word for caching, as virtiofsd's.
pub fn cache_mode(mode: CacheMode) -> sharefs::CacheMode {
    match mode {
        CacheMode::Never => sharefs::CacheMode::Never,
        CacheMode::Metadata => sharefs::CacheMode::Metadata,
        CacheMode::Auto => sharefs::CacheMode::Auto,
        CacheMode::Always => sharefs::CacheMode::Always,
    }
}

/// How the agent is reached: what the configuration says, else the best that the host has.
///
/// # Errors
/// A choice that this host or VMM does not have.
pub fn channel(dir: &Path, config: &KataConfig) -> Result<AgentChannel> {
    let kind = match config.hypervisor.kind {
        HypervisorKind::Qemu => VmmKind::Qemu,
        HypervisorKind::CloudHypervisor => VmmKind::CloudHypervisor,
    };
    let wanted = config.slipway.agent_channel;
    if kind == VmmKind::CloudHypervisor || wanted == kata_config::AgentChannel::Auto {
        return Ok(pick_channel(dir, kind));
    }
    Ok(match wanted {
        kata_config::AgentChannel::VhostVsock => match pick_channel(dir, kind) {
            channel @ AgentChannel::VhostVsock { .. } => channel,
            _ => bail!(
                "`agent_channel` is \"vhost-vsock\", but /dev/vhost-vsock cannot be opened: load \
                 the module vhost_vsock, or choose \"auto\""
            ),
        },
        kata_config::AgentChannel::VhostUserVsock => {
            AgentChannel::VhostUserVsock { socket: dir.join("vsock.sock") }
        }
        _ => AgentChannel::Serial { socket: dir.join("agent.sock") },
    })
}

/// The process behind [`AgentChannel::VhostUserVsock`].
///
/// # Errors
/// It is not installed, or does not start.
pub async fn vsock_device(
    id: &str,
    dir: &Path,
    socket: &Path,
    config: &KataConfig,
) -> Result<VsockDevice> {
    let program = match &config.slipway.vsock_daemon {
        Some(program) => program.clone(),
        None => VsockDevice::find()?,
    };
    let spec = VsockDeviceSpec {
        name: format!("vhost-device-vsock of {id}"),
        program,
        socket: socket.to_owned(),
        uds_path: dir.join("guest.sock"),
        guest_cid: FIRST_CID,
        cgroup_procs: Vec::new(),
    };
    Ok(VsockDevice::spawn(spec).await?)
}

/// Where the agent is behind a channel.
///
/// # Errors
/// There is no channel, or its device does not run.
pub fn agent_address(
    spec: &VmSpec,
    device: Option<&VsockDevice>,
    port: u32,
) -> Result<AgentAddress> {
    let channel = spec.agent.as_ref().context("The VM has no channel to its agent")?;
    if let AgentChannel::VhostUserVsock { .. } = channel {
        let device = device.context("The vsock device of the VM does not run")?;
        return Ok(device.address(port));
    }
    Ok(match channel.address().context("The VM's channel to its agent has no address")? {
        AgentAddress::Vsock { cid, .. } => AgentAddress::Vsock { cid, port },
        AgentAddress::Hybrid { socket, .. } => AgentAddress::Hybrid { socket, port },
        unix @ AgentAddress::Unix(_) => unix,
    })
}
