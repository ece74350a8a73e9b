//! QEMU's arguments for disks, shared directories and the ways into the guest.
//!
//! ```text
//!  slot of q35's root bus
//!  00           host bridge
//!  01, 02, ...  disks, in their order: the guest's /dev/vda is the first
//!  ...          NICs, shares, virtio-serial, vsock: in the order of their arguments
//!  ..., 1d, 1e  root ports, each with room for one plugged disk: the first is 1e
//!  1f           ICH9
//! ```

use std::path::Path;

use serde_json::{Value, json};

use super::launch::{Arguments, Q35_SLOTS, escaped, on_bus};
use crate::devices::{AGENT_PORT_NAME, AgentChannel, DiskSpec, PciPath, disk_slot};
use crate::error::VmmError;
use crate::spec::{CONTROL_PORT, CheckedSpec, Machine};

/// The id of a disk's device. Its node is numbered instead: names of nodes have 31 bytes.
pub(super) fn device_id(disk: &str) -> String {
    format!("disk-{disk}")
}

/// The node of the disk `number`, counted from the first cold-plugged one on.
pub(super) fn node_name(number: usize) -> String {
    format!("disk{number}")
}

/// The root port `index` and the slot it is in.
pub(super) fn port(index: usize) -> (String, u8) {
    (format!("port{index}"), u8::try_from(Q35_SLOTS.saturating_sub(index)).unwrap_or_default())
}

/// Where a guest finds what is plugged into the root port `index`: its bus has one slot.
pub(super) fn port_path(index: usize) -> PciPath {
    PciPath::new([port(index).1, 0])
}

/// Argument of `-blockdev` and `blockdev-add`.
///
/// # Errors
/// [`VmmError::Disk`]: there is no file or block device.
pub(super) fn block_node(vm: &str, number: usize, disk: &DiskSpec) -> Result<Value, VmmError> {
    let driver = if disk.is_block_device(vm)? { "host_device" } else { "file" };
    Ok(json!({
        "driver": "raw", "node-name": node_name(number), "read-only": disk.readonly,
        "discard": "unmap",
        "file": {
            "driver": driver, "filename": disk.path, "read-only": disk.readonly,
            "cache": {"direct": disk.direct}, "discard": "unmap",
        },
    }))
}

pub(super) fn disks(args: &mut Arguments, spec: CheckedSpec<'_>) -> Result<(), VmmError> {
    for (index, disk) in spec.disks.iter().enumerate() {
        args.pair("-blockdev", block_node(&spec.name, index, disk)?.to_string());
        let (device, slot) = (on_bus("virtio-blk", spec, 2), disk_slot(index));
        let place = match spec.machine {
            Machine::Q35 => format!(",bus=pcie.0,addr={slot:x}"),
            // QEMU hands out the highest transport first, and there the guest starts to count.
            Machine::Microvm => String::new(),
        };
        let (id, node) = (device_id(&disk.id), node_name(index));
        args.pair("-device", format!("{device}{place},drive={node},id={id}"));
    }
    Ok(())
}

/// Each port serves one disk.
pub(super) fn disk_ports(args: &mut Arguments, spec: CheckedSpec<'_>) {
    for index in 0..usize::from(spec.disk_slots) {
        let ((id, slot), chassis) = (port(index), index + 1);
        let place = format!("bus=pcie.0,addr={slot:x},chassis={chassis},slot={chassis}");
        args.pair("-device", format!("pcie-root-port,id={id},{place}"));
    }
}

pub(super) fn shares(args: &mut Arguments, spec: CheckedSpec<'_>) {
    for (index, share) in spec.shares.iter().enumerate() {
        args.pair("-chardev", format!("socket,id=fs{index},path={}", escaped(&share.socket)));
        // High-priority and request queue, configuration changes.
        let (device, size) = (on_bus("vhost-user-fs", spec, 3), share.queue_size);
        let device = format!("{device},chardev=fs{index},tag={},queue-size={size}", share.tag);
        args.pair("-device", device);
    }
}

/// Whether there is a virtio-serial device.
pub(super) fn has_serial_bus(spec: CheckedSpec<'_>) -> bool {
    spec.control_socket.is_some() || matches!(spec.agent, Some(AgentChannel::Serial { .. }))
}

/// Control port and the way to the agent.
pub(super) fn channels(args: &mut Arguments, spec: CheckedSpec<'_>) {
    if has_serial_bus(spec) {
        // Port 0 is reserved for a console.
        let device = on_bus("virtio-serial", spec, 4);
        args.pair("-device", format!("{device},id=serial0,max_ports=3"));
    }
    if let Some(socket) = &spec.control_socket {
        serial_port(args, 1, "control", socket, CONTROL_PORT);
    }
    match &spec.agent {
        // Hybrid was refused before.
        None | Some(AgentChannel::Hybrid { .. }) => {}
        Some(AgentChannel::Serial { socket }) => {
            serial_port(args, 2, "agent", socket, AGENT_PORT_NAME);
        }
        Some(AgentChannel::VhostVsock { cid }) => {
            let device = on_bus("vhost-vsock", spec, 3);
            args.pair("-device", format!("{device},guest-cid={cid}"));
        }
        Some(AgentChannel::VhostUserVsock { socket }) => {
            args.pair("-chardev", format!("socket,id=vsock,path={}", escaped(socket)));
            let device = on_bus("vhost-user-vsock", spec, 3);
            args.pair("-device", format!("{device},chardev=vsock"));
        }
    }
}

fn serial_port(args: &mut Arguments, number: u8, id: &str, socket: &Path, name: &str) {
    let path = escaped(socket);
    args.pair("-chardev", format!("socket,id={id},path={path},server=on,wait=off"));
    args.pair(
        "-device",
        format!("virtserialport,bus=serial0.0,nr={number},chardev={id},name={name}"),
    );
}
