//! What a VM has besides CPUs, memory and NICs: shared directories, disks, and the way to its agent.
//!
//! ```text
//!  ShareSpec            vhost-user-fs, served by a virtiofsd that listens before the VM boots
//!  DiskSpec             virtio-blk on a file or a block device of the host
//!  AgentChannel         one of:
//!    VhostVsock         a vsock of the host's kernel
//!    VhostUserVsock     a vsock served by vhost-device-vsock, which listens before the VM boots
//!    Serial             a virtio-serial port behind a UNIX socket of the VMM's
//!    Hybrid             a vsock behind a UNIX socket of Cloud Hypervisor's
//! ```
//!
//! # Bounds
//! Tags up to 36 bytes (virtio 1.3 §5.11.4), names of disks up to 63, 8 shares, 24 disks, plugged
//! ones included.

use std::fmt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use crate::error::VmmError;
use crate::spec::{CheckedSpec, Machine, SpecError, VmSpec, is_name};

/// Name of the virtio-serial port that carries the agent's channel; the guest finds it as
/// `/dev/virtio-ports/org.slipway.agent`, or by that name in sysfs.
pub const AGENT_PORT_NAME: &str = "org.slipway.agent";

const MAX_TAG_BYTES: usize = 36;
const MAX_SHARES: usize = 8;
const MAX_DISKS: usize = 24;
const FS_RING_SIZES: std::ops::RangeInclusive<u16> = 16..=1024;
/// 0 to 2 are the hypervisor, the local loop and the host (vsock(7)); -1 is "any".
const CIDS: std::ops::RangeInclusive<u32> = 3..=u32::MAX - 1;

/// How the host reaches the agent in the guest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AgentChannel {
    /// The host's kernel carries the vsock: QEMU opens `/dev/vhost-vsock`.
    VhostVsock {
        /// The guest's address, 3 or more, of no other guest of this host.
        cid: u32,
    },
    /// A [`VsockDevice`](crate::vsock::VsockDevice) carries the vsock. The guest's address, and the
    /// UNIX socket that leads into the guest, are the device's.
    VhostUserVsock {
        /// The vhost-user socket on which the device listens.
        socket: PathBuf,
    },
    /// The virtio-serial port [`AGENT_PORT_NAME`].
    Serial {
        /// UNIX socket, bound by the VMM, behind the port. It takes one connection at a time.
        socket: PathBuf,
    },
    /// The vsock that Cloud Hypervisor has built in.
    Hybrid {
        /// UNIX socket, bound by the VMM, that leads to all ports of the guest.
        socket: PathBuf,
        /// The guest's address as the guest sees it, 3 or more.
        cid: u32,
    },
}

impl AgentChannel {
    /// Its UNIX socket, whoever binds it.
    pub(crate) fn socket(&self) -> Option<&Path> {
        match self {
            Self::VhostVsock { .. } => None,
            Self::VhostUserVsock { socket }
            | Self::Serial { socket }
            | Self::Hybrid { socket, .. } => Some(socket),
        }
    }
}

/// A directory of the host that the guest can mount: `mount -t virtiofs TAG DIR`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ShareSpec {
    /// What the guest mounts it by; unique, 1 to 36 letters, digits, `.`, `_`, `-`.
    pub tag: String,
    /// The vhost-user socket on which its [`Virtiofsd`](crate::sharefs::Virtiofsd) listens.
    pub socket: PathBuf,
    /// Descriptors of the virtqueue: a power of two from 16 to 1024.
    pub queue_size: u16,
}

impl ShareSpec {
    /// With the largest queue.
    pub fn new(tag: impl Into<String>, socket: impl Into<PathBuf>) -> Self {
        Self { tag: tag.into(), socket: socket.into(), queue_size: *FS_RING_SIZES.end() }
    }
}

/// A virtio-blk disk with the raw bytes of a file or a block device.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DiskSpec {
    /// Unique among the VM's disks; see [`VmSpec::name`] for what it may consist of.
    pub id: String,
    /// A regular file or a block device.
    pub path: PathBuf,
    /// The guest cannot write.
    pub readonly: bool,
    /// Past the host's page cache (`O_DIRECT`).
    pub direct: bool,
}

impl DiskSpec {
    /// Read-only, through the page cache.
    pub fn readonly(id: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self { id: id.into(), path: path.into(), readonly: true, direct: false }
    }

    /// Judges one disk, of a specification or to be plugged.
    pub(crate) fn check(&self, vm: &str) -> Result<(), SpecError> {
        let refuse = |field, value: String, allowed| {
            Err(SpecError { vm: vm.to_owned(), field, value, allowed })
        };
        if !is_name(&self.id) {
            let allowed = "1 to 63 of letters, digits, '.', '_', '-'";
            return refuse("disks.id", self.id.clone(), allowed);
        }
        let is_text = self.path.to_str().is_some_and(|text| !text.contains(['\0', '\n']));
        if !is_text || !self.path.is_absolute() {
            let value = self.path.display().to_string();
            return refuse("disks.path", value, "an absolute path in UTF-8");
        }
        Ok(())
    }

    /// Whether it is a block device, or else a file.
    ///
    /// # Errors
    /// [`VmmError::Disk`]: it is neither, or cannot be looked at.
    pub(crate) fn is_block_device(&self, vm: &str) -> Result<bool, VmmError> {
        let refuse = |why: String| VmmError::Disk {
            name: vm.to_owned(),
            disk: self.id.clone(),
            path: self.path.clone(),
            why,
        };
        let kind = self.path.metadata().map_err(|error| refuse(error.to_string()))?.file_type();
        match (kind.is_block_device(), kind.is_file()) {
            (false, false) => Err(refuse("it is neither a file nor a block device".to_owned())),
            (is_block_device, _) => Ok(is_block_device),
        }
    }
}

/// Where a guest finds a PCI device: the slots on the way from the root bus, `05` or `1e/00`. It is
/// what the Kata agent takes as the `id` of a block device.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PciPath(Vec<u8>);

impl PciPath {
    /// `slots` from the root bus on, each below 32.
    pub(crate) fn new(slots: impl Into<Vec<u8>>) -> Self {
        Self(slots.into())
    }
}

impl fmt::Display for PciPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (depth, slot) in self.0.iter().enumerate() {
            let separator = if depth == 0 { "" } else { "/" };
            write!(f, "{separator}{slot:02x}")?;
        }
        Ok(())
    }
}

/// Where a guest finds a disk.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DiskAddress {
    /// On the PCI bus; which `/dev/vdX` that is, is the guest's to find out.
    Pci(PciPath),
    /// A machine without PCI: the device node that Linux gives it.
    Node(String),
}

impl fmt::Display for DiskAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pci(path) => path.fmt(f),
            Self::Node(node) => node.fmt(f),
        }
    }
}

/// The slot of a cold-plugged disk. Disks come first, so that the first one is `/dev/vda` wherever
/// Linux counts by slot. Slot 0 is the host bridge.
pub(crate) fn disk_slot(index: usize) -> u8 {
    u8::try_from(index + 1).unwrap_or(u8::MAX)
}

impl VmSpec {
    /// Where the guest of QEMU finds the disk `index` of [`VmSpec::disks`]; `None` beyond their end.
    pub fn disk_address(&self, index: usize) -> Option<DiskAddress> {
        self.disks.get(index)?;
        Some(match self.machine {
            Machine::Q35 => DiskAddress::Pci(PciPath::new([disk_slot(index)])),
            Machine::Microvm => {
                let letter = char::from(b'a' + u8::try_from(index).ok()?);
                DiskAddress::Node(format!("/dev/vd{letter}"))
            }
        })
    }

    /// The part of [`VmSpec::check`] that concerns this module.
    pub(crate) fn check_devices(&self) -> Result<(), SpecError> {
        let refuse = |field, value: &dyn fmt::Display, allowed| {
            Err(SpecError { vm: self.name.clone(), field, value: value.to_string(), allowed })
        };
        if let Some(AgentChannel::VhostVsock { cid } | AgentChannel::Hybrid { cid, .. }) =
            &self.agent
            && !CIDS.contains(cid)
        {
            return refuse("agent.cid", cid, "3 to 4294967294");
        }
        if self.shares.len() > MAX_SHARES {
            return refuse("shares", &self.shares.len(), "at most 8");
        }
        for (i, share) in self.shares.iter().enumerate() {
            if !is_name(&share.tag) || share.tag.len() > MAX_TAG_BYTES {
                let allowed = "1 to 36 of letters, digits, '.', '_', '-'";
                return refuse("shares.tag", &share.tag, allowed);
            }
            if self.shares[..i].iter().any(|other| other.tag == share.tag) {
                return refuse("shares.tag", &share.tag, "of one share only");
            }
            if !FS_RING_SIZES.contains(&share.queue_size) || !share.queue_size.is_power_of_two() {
                let allowed = "a power of two from 16 to 1024";
                return refuse("shares.queue_size", &share.queue_size, allowed);
            }
        }
        let disks = self.disks.len() + usize::from(self.disk_slots);
        if disks > MAX_DISKS {
            return refuse("disks and disk_slots", &disks, "at most 24 together");
        }
        for (i, disk) in self.disks.iter().enumerate() {
            disk.check(&self.name)?;
            if self.disks[..i].iter().any(|other| other.id == disk.id) {
                return refuse("disks.id", &disk.id, "of one disk only");
            }
        }
        Ok(())
    }
}

impl CheckedSpec<'_> {
    /// The sockets on which others listen before the VM boots, and who.
    fn served_sockets(&self) -> impl Iterator<Item = (&Path, String)> {
        let shares = self.shares.iter();
        let shares = shares.map(|share| (&*share.socket, format!("the share '{}'", share.tag)));
        let vsock = match &self.agent {
            Some(AgentChannel::VhostUserVsock { socket }) => {
                Some((&**socket, "the agent's vsock".to_owned()))
            }
            _ => None,
        };
        shares.chain(vsock)
    }

    /// Looks whether the helpers' sockets are there. Whether somebody listens cannot be tried: a
    /// helper takes the first connection for its VMM.
    ///
    /// # Errors
    /// [`VmmError::NotServed`] names the first that is missing.
    pub(crate) fn check_served(&self) -> Result<(), VmmError> {
        let is_socket =
            |path: &Path| path.metadata().is_ok_and(|data| data.file_type().is_socket());
        match self.served_sockets().find(|(path, _)| !is_socket(path)) {
            Some((path, what)) => {
                Err(VmmError::NotServed { name: self.name.clone(), what, socket: path.to_owned() })
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> VmSpec {
        let mut spec = VmSpec::new("a", "/run/a");
        spec.agent = Some(AgentChannel::Hybrid { socket: "/run/a/agent".into(), cid: 3 });
        spec.shares.push(ShareSpec::new("kataShared", "/run/a/fs"));
        spec.disks.push(DiskSpec::readonly("image", "/dev/null"));
        spec
    }

    #[test]
    fn each_device_that_no_back_end_could_honour_is_refused_by_name() {
        let refused_field = |change: &dyn Fn(&mut VmSpec)| {
            let mut spec = spec();
            assert!(spec.check().is_ok());
            change(&mut spec);
            spec.check().expect_err("the change makes it invalid").field
        };
        let cid = |cid| AgentChannel::VhostVsock { cid };
        assert_eq!(refused_field(&|s| s.agent = Some(cid(2))), "agent.cid");
        assert_eq!(refused_field(&|s| s.agent = Some(cid(u32::MAX))), "agent.cid");
        let serial = || AgentChannel::Serial { socket: "/run/a/fs".into() };
        assert_eq!(refused_field(&|s| s.agent = Some(serial())), "socket");
        assert_eq!(refused_field(&|s| s.shares[0].tag = "a,b".into()), "shares.tag");
        assert_eq!(refused_field(&|s| s.shares[0].tag = "a".repeat(37)), "shares.tag");
        assert_eq!(
            refused_field(&|s| s.shares.push(ShareSpec::new("kataShared", "/x"))),
            "shares.tag"
        );
        assert_eq!(refused_field(&|s| s.shares.push(ShareSpec::new("b", "/run/a/fs"))), "socket");
        assert_eq!(refused_field(&|s| s.shares[0].queue_size = 2048), "shares.queue_size");
        assert_eq!(refused_field(&|s| s.disks[0].id = "../a".into()), "disks.id");
        assert_eq!(refused_field(&|s| s.disks.push(s.disks[0].clone())), "disks.id");
        assert_eq!(refused_field(&|s| s.disks[0].path = "image".into()), "disks.path");
        assert_eq!(refused_field(&|s| s.disk_slots = 24), "disks and disk_slots");
    }

    #[test]
    fn a_pci_path_is_written_as_the_kata_agent_reads_it() {
        assert_eq!(PciPath::new([5]).to_string(), "05");
        assert_eq!(PciPath::new([0x1e, 0]).to_string(), "1e/00");
    }

    #[test]
    fn disks_are_found_in_the_order_of_the_specification() {
        let mut spec = spec();
        spec.disks.push(DiskSpec::readonly("second", "/dev/null"));
        let address = |spec: &VmSpec, i| spec.disk_address(i).map(|address| address.to_string());
        assert_eq!(address(&spec, 1).as_deref(), Some("02"));
        spec.machine = Machine::Microvm;
        assert_eq!(address(&spec, 1).as_deref(), Some("/dev/vdb"));
        assert_eq!(address(&spec, 2), None);
    }

    #[test]
    fn a_helper_that_does_not_listen_yet_is_named_with_its_socket() {
        let dir = tempfile::tempdir().unwrap();
        let mut spec = spec();
        spec.shares[0].socket = dir.path().join("fs");
        let error = spec.check().unwrap().check_served().unwrap_err().to_string();
        assert!(error.contains("share 'kataShared'") && error.contains("/fs"), "{error}");
        let _listener = std::os::unix::net::UnixListener::bind(&spec.shares[0].socket).unwrap();
        assert!(spec.check().unwrap().check_served().is_ok());
    }
}
