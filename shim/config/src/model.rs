//! The effective configuration of a pod, as plain data.
//!
//! Every field has a value: the annotation's, else the last drop-in's, else the file's, else the
//! default. Defaults are those of Kata's Rust runtime, except where a comment says otherwise.

use std::{path::PathBuf, time::Duration};

use serde::{Serialize, Serializer};

/// What a pod is to be.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct KataConfig {
    /// The file it was read from; `None`: there was none, and these are the defaults.
    pub file: Option<PathBuf>,
    /// The machine and its VMM.
    pub hypervisor: Hypervisor,
    /// The agent in the guest, and how it is talked to.
    pub agent: AgentConfig,
    /// The shim.
    pub runtime: RuntimeConfig,
    /// What Kata has no word for.
    pub slipway: SlipwayConfig,
}

/// Which VMM runs the pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HypervisorKind {
    /// `qemu-system-x86_64`.
    #[default]
    Qemu,
    /// `cloud-hypervisor`.
    CloudHypervisor,
}

/// `[hypervisor.qemu]`, `[hypervisor.clh]` or `[hypervisor.cloud-hypervisor]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Hypervisor {
    /// Which VMM.
    pub kind: HypervisorKind,
    /// The VMM's program; `None`: by its usual name from `PATH`.
    pub path: Option<PathBuf>,
    /// The guest's kernel.
    pub kernel: Option<PathBuf>,
    /// The guest's root file system, as an image; never together with `initrd`.
    pub image: Option<PathBuf>,
    /// The guest's root file system, as an initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The file system in `image`.
    pub rootfs_type: RootfsType,
    /// Kernel parameters put after the runtime's own, so that they win.
    pub kernel_params: String,
    /// QEMU's machine; Cloud Hypervisor has but one.
    pub machine_type: MachineType,
    /// vCPUs of a pod that says no limit; more than 0.
    pub default_vcpus: f32,
    /// The most vCPUs a pod may have.
    pub default_maxvcpus: u32,
    /// Memory of a pod that says no limit, in MiB.
    pub default_memory_mib: u32,
    /// The most memory a pod may have, in MiB.
    pub default_maxmemory_mib: u64,
    /// vCPUs added to a pod's limit for the guest's own needs; `None`: `default_vcpus`.
    pub overhead_vcpus: Option<f32>,
    /// Memory added to a pod's limit for the guest's own needs, in MiB; `None`:
    /// `default_memory_mib`.
    pub overhead_memory_mib: Option<u32>,
    /// How the guest sees the container's files.
    pub shared_fs: SharedFs,
    /// The virtio-fs daemon; `None`: `virtiofsd` from `PATH` and the places distributions use.
    pub virtio_fs_daemon: Option<PathBuf>,
    /// Arguments for it besides the runtime's own.
    pub virtio_fs_extra_args: Vec<String>,
    /// What the guest may cache of the shared files.
    pub virtio_fs_cache: CacheMode,
    /// Descriptors of a virtio-fs queue.
    pub virtio_fs_queue_size: u32,
    /// A container's root on a block device is mounted on the host and shared, as all others are.
    pub disable_block_device_use: bool,
    /// Queue pairs of a pod's NIC; never more than the pod has vCPUs is useful.
    pub network_queues: u32,
    /// More from the guest's kernel on its console.
    pub enable_debug: bool,
    /// Folder of OCI hooks in the guest; empty: none.
    pub guest_hook_path: String,
    /// Regular expressions: the `config.hypervisor` annotations that pods may use.
    pub enable_annotations: Vec<String>,
    /// Globs: what the annotation `path` may name.
    pub valid_hypervisor_paths: Vec<String>,
    /// Globs: what the annotation `virtio_fs_daemon` may name.
    pub valid_virtio_fs_daemon_paths: Vec<String>,
}

impl Default for Hypervisor {
    fn default() -> Self {
        Self {
            kind: HypervisorKind::default(),
            path: None,
            kernel: None,
            image: None,
            initrd: None,
            rootfs_type: RootfsType::default(),
            kernel_params: String::new(),
            machine_type: MachineType::default(),
            default_vcpus: 1.0,
            default_maxvcpus: 1,
            default_memory_mib: 2048,
            default_maxmemory_mib: 2048,
            overhead_vcpus: None,
            overhead_memory_mib: None,
            shared_fs: SharedFs::default(),
            virtio_fs_daemon: None,
            virtio_fs_extra_args: Vec::new(),
            virtio_fs_cache: CacheMode::default(),
            virtio_fs_queue_size: 1024,
            disable_block_device_use: false,
            network_queues: 1,
            enable_debug: false,
            guest_hook_path: String::new(),
            enable_annotations: Vec::new(),
            valid_hypervisor_paths: Vec::new(),
            valid_virtio_fs_daemon_paths: Vec::new(),
        }
    }
}

/// `[agent.kata]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AgentConfig {
    /// How long the agent may take from the VMM's start to its first answer. Kata's Rust runtime
    /// allows 300 tries of 10 ms and more each, its Go runtime 45 s; we wait once, for 45 s.
    #[serde(rename = "dial_timeout_ms", serialize_with = "milliseconds")]
    pub dial_timeout: Duration,
    /// How long the agent may take to create a container.
    #[serde(rename = "create_container_timeout_ms", serialize_with = "milliseconds")]
    pub create_container_timeout: Duration,
    /// How long the agent may take to answer a health check.
    #[serde(rename = "health_check_request_timeout_ms", serialize_with = "milliseconds")]
    pub health_check_request_timeout: Duration,
    /// A shell on vsock port 1026 of the guest (`agent.debug_console`).
    pub debug_console: bool,
    /// Modules the guest loads before the first container: name, then parameters.
    pub kernel_modules: Vec<String>,
    /// Size of the pipes of a container's streams in bytes; 0: the kernel's default.
    pub container_pipe_size: u32,
    /// The agent's log at level `debug` (`agent.log=debug`).
    pub enable_debug: bool,
    /// The level of the agent's log; `enable_debug` goes before it.
    pub log_level: LogLevel,
    /// vsock port of the agent.
    pub server_port: u32,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            dial_timeout: Duration::from_secs(45),
            create_container_timeout: Duration::from_secs(60),
            health_check_request_timeout: Duration::from_secs(90),
            debug_console: false,
            kernel_modules: Vec::new(),
            container_pipe_size: 0,
            enable_debug: false,
            log_level: LogLevel::default(),
            server_port: 1024,
        }
    }
}

/// `[runtime]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RuntimeConfig {
    /// The name of the `[hypervisor.*]` table that holds, as the file has it.
    pub hypervisor_name: String,
    /// How Kata would join pod and VM; with us always through a port of the switch.
    pub internetworking_model: InternetworkingModel,
    /// The shim and the VMM stay in the host's network namespace.
    pub disable_new_netns: bool,
    /// All of a pod's processes in the pod's one cgroup.
    pub sandbox_cgroup_only: bool,
    /// The VM has its final size from the start, from the pod's limits.
    pub static_sandbox_resource_mgmt: bool,
    /// No seccomp filters inside the guest.
    pub disable_guest_seccomp: bool,
    /// Memory-backed `emptyDir` volumes stay on the host and are shared.
    pub disable_guest_empty_dir: bool,
    /// Folder of `SANDBOX.json` files, see [`crate::dan`].
    pub dan_conf: PathBuf,
    /// Host paths shared read-only with the guest, though with no container.
    pub sandbox_bind_mounts: Vec<String>,
    /// The shim's log at level `debug`.
    pub enable_debug: bool,
    /// The level of the shim's log; `enable_debug` goes before it.
    pub log_level: LogLevel,
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        Self {
            hypervisor_name: "qemu".into(),
            internetworking_model: InternetworkingModel::default(),
            disable_new_netns: false,
            sandbox_cgroup_only: true,
            static_sandbox_resource_mgmt: true,
            disable_guest_seccomp: true,
            disable_guest_empty_dir: false,
            dan_conf: "/run/kata-containers/dans".into(),
            sandbox_bind_mounts: Vec::new(),
            enable_debug: false,
            log_level: LogLevel::default(),
        }
    }
}

/// `[slipway]`: what Kata has no word for. Kata ignores the table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SlipwayConfig {
    /// slipwayd's API socket.
    pub socket: PathBuf,
    /// The network of pods that no CNI plugin has joined to one; `None`: slipwayd's default.
    pub network: Option<String>,
    /// Globs: the networks that the annotation `io.slipway.network` may name.
    pub valid_networks: Vec<String>,
    /// How the agent is reached.
    pub agent_channel: AgentChannel,
    /// The vhost-user vsock daemon; `None`: `vhost-device-vsock` from `PATH`.
    pub vsock_daemon: Option<PathBuf>,
    /// Who runs the guest's instructions.
    pub acceleration: Acceleration,
    /// Disks a running pod may have at a time; `None`: as many as its snapshotter lets expect.
    pub disk_slots: Option<u32>,
}

impl Default for SlipwayConfig {
    fn default() -> Self {
        Self {
            socket: "/run/slipway/slipwayd.sock".into(),
            network: None,
            valid_networks: Vec::new(),
            agent_channel: AgentChannel::default(),
            vsock_daemon: None,
            acceleration: Acceleration::default(),
            disk_slots: None,
        }
    }
}

fn milliseconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

/// A type with a name for each of its values, and one place that has them.
macro_rules! choices {
    ($(#[$doc:meta])* $name:ident { $($(#[$note:meta])* $variant:ident = $text:literal $(| $alias:literal)*,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
        pub enum $name {
            $($(#[$note])* #[serde(rename = $text)] $variant,)*
        }

        impl $name {
            /// The names that are understood, with their aliases.
            pub(crate) const NAMES: &'static [&'static str] = &[$($text, $($alias,)*)*];

            /// The value of this name.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                match name {
                    $($text $(| $alias)* => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// Its name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

choices! {
    /// The file system in the guest's image.
    RootfsType {
        /// ext4.
        #[default]
        Ext4 = "ext4",
        /// xfs.
        Xfs = "xfs",
        /// erofs.
        Erofs = "erofs",
    }
}

choices! {
    /// QEMU's machine.
    MachineType {
        /// With PCI Express: hot-add, an interrupt per queue.
        #[default]
        Q35 = "q35",
        /// Without PCI: boots faster, and has few slots.
        Microvm = "microvm",
    }
}

choices! {
    /// How the guest sees the container's files.
    SharedFs {
        /// Through virtiofsd.
        #[default]
        VirtioFs = "virtio-fs",
        /// Not: block devices only.
        None = "none",
    }
}

choices! {
    /// What the guest may cache of the shared files.
    CacheMode {
        /// Nothing.
        #[default]
        Never = "never" | "none",
        /// Names and attributes.
        Metadata = "metadata",
        /// Content while a file is open, the rest for a second.
        Auto = "auto",
        /// Everything for ever.
        Always = "always",
    }
}

choices! {
    /// How Kata would join pod and VM.
    InternetworkingModel {
        /// Redirection by traffic control.
        #[default]
        Tcfilter = "tcfilter",
        /// A macvtap over the pod's interface.
        Macvtap = "macvtap",
        /// Nothing in the pod's namespace is looked at.
        None = "none",
        /// Routes and proxy ARP.
        L3Forwarding = "l3forwarding",
    }
}

choices! {
    /// The level of a log.
    LogLevel {
        /// Everything.
        Trace = "trace",
        /// What helps to find an error.
        Debug = "debug",
        /// What an operator wants to see.
        #[default]
        Info = "info",
        /// What may become an error.
        Warn = "warn" | "warning",
        /// What went wrong.
        Error = "error",
        /// What ends the process.
        Critical = "critical" | "fatal" | "panic",
    }
}

choices! {
    /// How the agent is reached.
    AgentChannel {
        /// The first of the following that the host has.
        #[default]
        Auto = "auto",
        /// The host's `/dev/vhost-vsock`.
        VhostVsock = "vhost-vsock",
        /// A vhost-user daemon.
        VhostUserVsock = "vhost-user-vsock",
        /// A virtio-serial port; our own agent only.
        Serial = "serial",
    }
}

choices! {
    /// Who runs the guest's instructions.
    Acceleration {
        /// KVM where it works, else TCG.
        #[default]
        Auto = "auto",
        /// The processor.
        Kvm = "kvm",
        /// QEMU's translator.
        Tcg = "tcg",
    }
}
