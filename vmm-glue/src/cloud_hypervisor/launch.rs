//! Cloud Hypervisor's arguments and VM configuration, pure functions of the specification.

use std::path::Path;

use super::api::{
    ConsoleConfig, ConsoleMode, CpusConfig, DiskConfig, FsConfig, HotplugMethod, ImageType,
    MemoryConfig, NetConfig, PayloadConfig, VhostMode, VmConfig, VsockConfig,
};
use crate::accel::Accel;
use crate::devices::{AgentChannel, DiskSpec};
use crate::error::VmmError;
use crate::spec::{CheckedSpec, Machine, NicSpec, SocketMode};

/// The arguments after the program's name. Everything else goes through the API.
pub(super) fn arguments(api_socket: &Path) -> Vec<String> {
    vec!["--api-socket".to_owned(), format!("path={}", api_socket.display())]
}

/// The VM's configuration.
///
/// # Errors
/// [`VmmError::Unsupported`] names what Cloud Hypervisor does not have.
pub(super) fn config(spec: CheckedSpec<'_>) -> Result<VmConfig, VmmError> {
    let refuse = |what: String, remedy: &str| {
        let (name, backend) = (spec.name.clone(), "Cloud Hypervisor".to_owned());
        Err(VmmError::Unsupported { name, what, backend, remedy: remedy.to_owned() })
    };
    if spec.accel != Accel::Kvm {
        return refuse(format!("acceleration by {}", spec.accel), "use KVM, or QEMU");
    }
    if spec.machine != Machine::Q35 {
        return refuse(format!("the machine {}", spec.machine), "ask for q35, the PCIe machine");
    }
    if spec.control_socket.is_some() {
        return refuse("a virtio-serial control socket".to_owned(), "leave it out, or use QEMU");
    }
    let vsock = match &spec.agent {
        None => None,
        Some(AgentChannel::Hybrid { socket, cid }) => {
            Some(VsockConfig { cid: *cid, socket: socket.clone() })
        }
        Some(other) => {
            return refuse(format!("the agent's channel {other:?}"), "ask for a Hybrid one");
        }
    };
    let Some(kernel) = spec.kernel.clone() else {
        return refuse("a boot without a kernel".to_owned(), "set `kernel`");
    };
    if let Some(nic) = spec.nics.iter().find(|nic| nic.queue_pairs > spec.vcpus) {
        let what = format!("a NIC of {} queue pairs with {} vCPUs", nic.queue_pairs, spec.vcpus);
        return refuse(what, "have at most one queue pair per vCPU");
    }
    if spec.nics.iter().any(|nic| !nic.receives_segments) {
        // Its option takes sending away as well.
        let what = "a NIC that only sends large segments".to_owned();
        return refuse(what, "set `receives_segments`, or use QEMU");
    }
    // The serial console belongs to the machine; the guest's own parameters come last and win.
    let cmdline = format!("console=ttyS0 {}", spec.cmdline).trim_end().to_owned();
    let hotplug_size = spec.memory_max.map(|max| max.bytes() - spec.memory.bytes());
    Ok(VmConfig {
        cpus: CpusConfig {
            boot_vcpus: spec.vcpus,
            max_vcpus: spec.vcpus_max.unwrap_or(spec.vcpus),
        },
        memory: MemoryConfig {
            size: spec.memory.bytes(),
            shared: true,
            hotplug_method: HotplugMethod::Acpi,
            hotplug_size: hotplug_size.filter(|size| *size > 0),
        },
        payload: PayloadConfig { kernel, initramfs: spec.initrd.clone(), cmdline },
        disks: spec.disks.iter().map(disk).collect(),
        net: spec.nics.iter().enumerate().map(|(index, nic)| net(index, nic)).collect(),
        fs: spec
            .shares
            .iter()
            .map(|share| FsConfig {
                id: format!("fs-{}", share.tag),
                tag: share.tag.clone(),
                socket: share.socket.clone(),
                num_queues: 1,
                queue_size: share.queue_size,
            })
            .collect(),
        vsock,
        serial: ConsoleConfig { mode: ConsoleMode::Tty },
        console: ConsoleConfig { mode: ConsoleMode::Off },
    })
}

/// The id of a disk's device; those that Cloud Hypervisor makes up start with an underscore.
pub(super) fn device_id(disk: &str) -> String {
    format!("disk-{disk}")
}

pub(super) fn disk(disk: &DiskSpec) -> DiskConfig {
    DiskConfig {
        id: device_id(&disk.id),
        path: disk.path.clone(),
        readonly: disk.readonly,
        direct: disk.direct,
        image_type: ImageType::Raw,
    }
}

fn net(index: usize, nic: &NicSpec) -> NetConfig {
    NetConfig {
        id: format!("net{index}"),
        mac: nic.mac.to_string(),
        num_queues: nic.queue_pairs * 2,
        queue_size: nic.ring_size,
        vhost_user: true,
        vhost_socket: nic.socket.clone(),
        vhost_mode: match nic.mode {
            SocketMode::VmmListens => VhostMode::Server,
            SocketMode::SwitchListens => VhostMode::Client,
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::devices::ShareSpec;
    use crate::memory::Mib;
    use crate::spec::{MacAddr, VmSpec};

    fn spec() -> VmSpec {
        let mut spec = VmSpec::new("a", "/run/a");
        (spec.accel, spec.vcpus, spec.kernel) = (Accel::Kvm, 2, Some("/boot/k".into()));
        spec.nics.push(NicSpec::new("/run/a/0.sock", MacAddr([2, 0, 0, 0, 0, 1])));
        spec
    }

    #[test]
    fn the_configuration_has_the_json_names_of_the_api_description() {
        let mut spec = spec();
        (spec.nics[0].queue_pairs, spec.cmdline) = (2, "quiet".into());
        (spec.memory_max, spec.vcpus_max) = (Some(Mib::new(256)), Some(4));
        spec.shares.push(ShareSpec::new("kataShared", "/run/a/fs.sock"));
        spec.disks.push(DiskSpec::readonly("image", "/srv/image"));
        spec.agent = Some(AgentChannel::Hybrid { socket: "/run/a/agent".into(), cid: 3 });
        let config = config(spec.check().unwrap()).unwrap();
        let expected = json!({
            "cpus": {"boot_vcpus": 2, "max_vcpus": 4},
            "memory": {
                "size": 128 << 20, "shared": true,
                "hotplug_method": "Acpi", "hotplug_size": 128 << 20,
            },
            "payload": {"kernel": "/boot/k", "cmdline": "console=ttyS0 quiet"},
            "disks": [{
                "id": "disk-image", "path": "/srv/image", "readonly": true, "direct": false,
                "image_type": "Raw",
            }],
            "fs": [{
                "id": "fs-kataShared", "tag": "kataShared", "socket": "/run/a/fs.sock",
                "num_queues": 1, "queue_size": 1024,
            }],
            "vsock": {"cid": 3, "socket": "/run/a/agent"},
            "net": [{
                "id": "net0", "mac": "02:00:00:00:00:01", "num_queues": 4, "queue_size": 256,
                "vhost_user": true, "vhost_socket": "/run/a/0.sock", "vhost_mode": "Server",
            }],
            "serial": {"mode": "Tty"},
            "console": {"mode": "Off"},
        });
        assert_eq!(serde_json::to_value(config).unwrap(), expected);
    }

    #[test]
    fn what_cloud_hypervisor_lacks_is_refused_by_name() {
        type Change = fn(&mut VmSpec);
        let changes: [(&str, Change); 7] = [
            ("VhostVsock", |s| s.agent = Some(AgentChannel::VhostVsock { cid: 3 })),
            ("acceleration by tcg", |s| s.accel = Accel::Tcg),
            ("the machine microvm", |s| s.machine = Machine::Microvm),
            ("control socket", |s| s.control_socket = Some("/run/a/ctl".into())),
            ("without a kernel", |s| s.kernel = None),
            ("3 queue pairs with 2 vCPUs", |s| s.nics[0].queue_pairs = 3),
            ("only sends large segments", |s| s.nics[0].receives_segments = false),
        ];
        for (what, change) in changes {
            let mut spec = spec();
            change(&mut spec);
            let error = config(spec.check().unwrap()).unwrap_err();
            assert!(matches!(error, VmmError::Unsupported { .. }), "{what}: {error}");
            assert!(error.to_string().contains(what), "{error}");
        }
    }
}
