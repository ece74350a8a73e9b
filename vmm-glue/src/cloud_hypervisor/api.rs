//! The part of Cloud Hypervisor's REST types that we send and read, by their JSON names.
//!
//! What is left out has a default there; what it answers beyond this is ignored.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Body of `vm.create`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct VmConfig {
    pub cpus: CpusConfig,
    pub memory: MemoryConfig,
    pub payload: PayloadConfig,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskConfig>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub net: Vec<NetConfig>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fs: Vec<FsConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockConfig>,
    pub serial: ConsoleConfig,
    pub console: ConsoleConfig,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CpusConfig {
    pub boot_vcpus: u16,
    pub max_vcpus: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct MemoryConfig {
    /// Bytes.
    pub size: u64,
    /// vhost-user is refused without.
    pub shared: bool,
    pub hotplug_method: HotplugMethod,
    /// Bytes beyond `size`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hotplug_size: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum HotplugMethod {
    Acpi,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct PayloadConfig {
    pub kernel: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<PathBuf>,
    pub cmdline: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct NetConfig {
    pub id: String,
    pub mac: String,
    /// Virtqueues: two per queue pair.
    pub num_queues: u16,
    pub queue_size: u16,
    pub vhost_user: bool,
    pub vhost_socket: PathBuf,
    pub vhost_mode: VhostMode,
}

/// A disk of [`VmConfig`], and body of `vm.add-disk`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct DiskConfig {
    pub id: String,
    pub path: PathBuf,
    pub readonly: bool,
    pub direct: bool,
    /// Not guessed from what the guest wrote into the first block.
    pub image_type: ImageType,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum ImageType {
    Raw,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct FsConfig {
    pub id: String,
    pub tag: String,
    pub socket: PathBuf,
    pub num_queues: u16,
    pub queue_size: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct VsockConfig {
    pub cid: u32,
    pub socket: PathBuf,
}

/// Answer to `vm.add-disk`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct PciDevice {
    /// `0000:00:05.0`
    pub bdf: String,
}

/// Body of `vm.remove-device`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Removal {
    pub id: String,
}

/// Whether the VMM connects or binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum VhostMode {
    Client,
    Server,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct ConsoleConfig {
    pub mode: ConsoleMode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum ConsoleMode {
    Off,
    /// Standard output, also if that is no terminal.
    Tty,
}

/// Body of `vm.resize`: what is left out stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Resize {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desired_vcpus: Option<u16>,
    /// Bytes, the boot memory included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desired_ram: Option<u64>,
}

/// Answer to `vm.info`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Info {
    pub config: InfoConfig,
    /// `Created`, `Running`, `Shutdown`, `Paused`, `BreakPoint`.
    pub state: String,
    /// Bytes.
    pub memory_actual_size: u64,
}

/// What we read of the configuration in [`Info`].
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct InfoConfig {
    pub cpus: CpusConfig,
}
