//! `[runtime]`, `[slipway]`, and annotations that have no table.

use std::time::Duration;

use super::{Deed::*, Key, ListRule, Scope, Set::*};
use crate::model::{Acceleration, AgentChannel, InternetworkingModel, LogLevel};

const fn key(name: &'static str, deed: super::Deed, note: &'static str) -> Key {
    Key::new(Scope::Runtime, name, deed, note)
}

pub(super) static KEYS: &[Key] = &[
    key("name", Refused(&["virt_container"]), "there is one kind of pod: leave it virt_container")
        .rs()
        .annotated(),
    key(
        "hypervisor_name",
        Honoured(Text(|c| &mut c.runtime.hypervisor_name)),
        "which [hypervisor.*] table holds: qemu, clh or cloud-hypervisor. Without it the only one there is, else qemu",
    )
    .rs(),
    key("agent_name", Refused(&["kata"]), "the agent is Kata's or speaks its protocol")
        .rs()
        .annotated(),
    Key::only_annotation(
        Scope::Runtime,
        "hypervisor_name",
        Refused(&[]),
        "a pod cannot choose its VMM: make a RuntimeClass with another ConfigPath",
    )
    .rs(),
    key(
        "enable_debug",
        Honoured(Flag(|c| &mut c.runtime.enable_debug)),
        "the shim logs at level debug",
    ),
    key(
        "log_level",
        Honoured(Choice(LogLevel::NAMES, |c, name| {
            LogLevel::from_name(name).map(|level| c.runtime.log_level = level)
        })),
        "level of the shim's log",
    )
    .rs(),
    key(
        "internetworking_model",
        Honoured(Choice(InternetworkingModel::NAMES, |c, name| {
            InternetworkingModel::from_name(name).map(|m| c.runtime.internetworking_model = m)
        })),
        "whichever it is, a pod's NIC is a port of slipwayd and no tap is made; only `none` differs: no interface of the pod's namespace is asked for",
    )
    .annotated(),
    key(
        "disable_new_netns",
        Honoured(Flag(|c| &mut c.runtime.disable_new_netns)),
        "only with internetworking_model = \"none\"; shim and VMM are in the host's network namespace either way",
    )
    .annotated(),
    key(
        "disable_guest_seccomp",
        Honoured(Flag(|c| &mut c.runtime.disable_guest_seccomp)),
        "default true: a container's seccomp profile is not given to the guest",
    )
    .annotated(),
    key(
        "sandbox_cgroup_only",
        Honoured(Flag(|c| &mut c.runtime.sandbox_cgroup_only)),
        "default true; false puts shim, VMM and helpers into /kata_overhead/ID instead of the pod's cgroup",
    )
    .annotated(),
    key(
        "static_sandbox_resource_mgmt",
        Honoured(Flag(|c| &mut c.runtime.static_sandbox_resource_mgmt)),
        "default true: the VM has its final size from the start; false: it starts with the defaults and grows with its containers' limits, which a microvm cannot. It never shrinks",
    ),
    key(
        "static_sandbox_default_workload_mem",
        Refused(&[]),
        "a pod without limits gets default_memory: raise that instead",
    )
    .go(),
    key(
        "static_sandbox_default_workload_vcpus",
        Refused(&[]),
        "a pod without limits gets default_vcpus: raise that instead",
    )
    .go(),
    key(
        "dan_conf",
        Honoured(Path(|c, path| {
            c.runtime.dan_conf =
                path.unwrap_or_else(|| crate::RuntimeConfig::default().dan_conf);
        })),
        "folder of DAN files; default /run/kata-containers/dans",
    ),
    key(
        "sandbox_bind_mounts",
        Honoured(List(ListRule::Paths, |c| &mut c.runtime.sandbox_bind_mounts)),
        "host paths shared read-only with the guest, in sandbox-mounts of the shared folder; with `:rw` writable",
    ),
    key(
        "create_container_timeout",
        Honoured(Whole(1, 86_400, |c, s| {
            c.agent.create_container_timeout = Duration::from_secs(s.into());
        })),
        "seconds; the Rust runtime has it in [agent.kata]",
    )
    .go()
    .annotated(),
    key(
        "keep_abnormal",
        Ignored,
        "what a failed pod leaves is taken away; the message of the failure has the console's end",
    )
    .rs(),
    key(
        "disable_guest_empty_dir",
        Honoured(Flag(|c| &mut c.runtime.disable_guest_empty_dir)),
        "memory-backed emptyDir volumes stay on the host",
    ),
    key(
        "emptydir_mode",
        Refused(&["shared-fs"]),
        "emptyDir volumes of the node's disk are shared from the host: leave it shared-fs",
    ),
    key(
        "enable_vcpus_pinning",
        Refused(&[]),
        "vCPU threads are not pinned: use the kubelet's CPU manager, whose cpuset holds for the VMM",
    ),
    key("vfio_mode", Ignored, "there are no VFIO devices").annotated(),
    key(
        "experimental",
        Refused(&[]),
        "none of Kata's experimental features is there: take it out",
    )
    .annotated(),
    key(
        "experimental_force_guest_pull",
        Refused(&[]),
        "images are pulled on the host: set it false",
    )
    .go(),
    key(
        "guest_selinux_label",
        Refused(&[]),
        "no SELinux policy is loaded in the guest: leave it empty",
    )
    .go(),
    key("shared_mounts", Refused(&[]), "containers of a pod share volumes only: take it out")
        .rs()
        .annotated(),
    key("enable_tracing", Ignored, "the shim writes spans of its own into its log"),
    key("jaeger_endpoint", Ignored, "no traces are sent"),
    key("jaeger_user", Ignored, "no traces are sent"),
    key("jaeger_password", Ignored, "no traces are sent"),
    key("enable_pprof", Ignored, "the shim is no Go program").annotated(),
    key("kubelet_root_dir", Ignored, "only for devices of VFIO"),
    key("pod_resource_api_sock", Ignored, "only for devices of VFIO"),
    key("use_passfd_io", Ignored, "streams go through the agent's protocol").rs(),
];

const fn slipway(name: &'static str, deed: super::Deed, note: &'static str) -> Key {
    Key::new(Scope::Slipway, name, deed, note).slipway()
}

pub(super) static SLIPWAY: &[Key] = &[
    slipway(
        "socket",
        Honoured(Path(|c, path| {
            c.slipway.socket = path.unwrap_or_else(|| crate::SlipwayConfig::default().socket);
        })),
        "slipwayd's API socket; default /run/slipway/slipwayd.sock",
    ),
    slipway(
        "network",
        Honoured(Name(|c, name| c.slipway.network = name)),
        "network of pods that no CNI plugin has joined to one",
    )
    .annotated()
    .guarded("valid_networks", |c| &c.slipway.valid_networks),
    slipway(
        "valid_networks",
        Honoured(List(ListRule::Globs, |c| &mut c.slipway.valid_networks)),
        "globs: the networks that a pod may choose; default none",
    ),
    slipway(
        "agent_channel",
        Honoured(Choice(AgentChannel::NAMES, |c, name| {
            AgentChannel::from_name(name).map(|channel| c.slipway.agent_channel = channel)
        })),
        "how the agent is reached; auto takes the first that the host has",
    ),
    slipway(
        "vsock_daemon",
        Honoured(Path(|c, path| c.slipway.vsock_daemon = path)),
        "vhost-device-vsock; default: from PATH",
    ),
    slipway(
        "acceleration",
        Honoured(Choice(Acceleration::NAMES, |c, name| {
            Acceleration::from_name(name).map(|choice| c.slipway.acceleration = choice)
        })),
        "auto tries KVM and falls back to TCG",
    ),
    slipway(
        "disk_slots",
        Honoured(Whole(0, 20, |c, count| c.slipway.disk_slots = Some(count))),
        "disks a running pod may have at a time; default: 8 if the pod's first container has its root on a block device, else 0",
    ),
];

const fn other(name: &'static str, deed: super::Deed, note: &'static str) -> Key {
    Key::only_annotation(Scope::None, name, deed, note)
}

pub(super) static OTHER_ANNOTATIONS: &[Key] = &[
    other(
        "io.katacontainers.config_path",
        Refused(&[]),
        "a pod cannot choose its configuration: make a RuntimeClass with a ConfigPath",
    ),
    other(
        "io.katacontainers.container.resource.swappiness",
        Ignored,
        "there is no swap in the guest",
    ),
    other(
        "io.katacontainers.container.resource.swap_in_bytes",
        Ignored,
        "there is no swap in the guest",
    ),
    other("io.katacontainers.pkg.oci.bundle_path", Ignored, "set by the runtime itself"),
    other("io.katacontainers.pkg.oci.container_type", Ignored, "set by the runtime itself"),
];
