//! Block devices that the guest uses itself: each is a disk of the VM, and not mounted on the host.
//!
//! ```text
//! snapshotter's mount           plugged                  the agent mounts
//! ext4 on /dev/mapper/x   --->  virtio-blk at 1e/00 ---> storage "blk", source 1e/00
//! ```
//! A disk is opened by the VMM and by nobody else, so there is no record of it: the end of the VMM closes
//! it, whoever ends it.
//!
//! # Bounds
//! A VM has as many disks as it was booted with slots for, see [`slots`].

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use kata_agent_protocol::agent::Storage;
use kata_config::{KataConfig, MachineType};
use nix::sys::stat::{major, minor};
use oci_spec::runtime::Mount;
use tokio::sync::Mutex;
use vmm_glue::{DiskSpec, PciPath, Vm};

use crate::mounts::MountSpec;

/// File systems that one kernel at a time mounts from one device. Not btrfs, whose snapshots are parts
/// of a file system that the host has mounted.
const FILE_SYSTEMS: [&str; 6] = ["ext2", "ext3", "ext4", "xfs", "erofs", "squashfs"];
/// Slots of a pod whose containers have their roots on block devices, unless `disk_slots` says.
const POD_SLOTS: usize = 8;

/// A mount whose source can be a disk of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskMount {
    /// The block device, or the file with its bytes.
    pub path: PathBuf,
    /// The file system.
    pub kind: String,
    /// For the guest's mount.
    pub options: Vec<String>,
    /// Nobody writes to it.
    pub read_only: bool,
}

impl DiskMount {
    /// What `mounts` mean as a disk; `None` if they do not, or must not: what the host has mounted has to
    /// be shared.
    ///
    /// # Errors
    /// `/proc` is not there.
    pub fn of(mounts: &[MountSpec]) -> Result<Option<Self>> {
        let [mount] = mounts else { return Ok(None) };
        if !FILE_SYSTEMS.contains(&mount.kind.as_str()) {
            return Ok(None);
        }
        let has = |word: &str| mount.options.iter().any(|option| option == word);
        // What is not there is told by whoever mounts it.
        let Ok(metadata) = fs::metadata(&mount.source) else { return Ok(None) };
        let is_image = metadata.is_file() && has("loop");
        if !is_image && !metadata.file_type().is_block_device() {
            return Ok(None);
        }
        let number = format!("{}:{}", major(metadata.rdev()), minor(metadata.rdev()));
        let table = fs::read_to_string("/proc/self/mountinfo")
            .context("Failed to read the table of mounts")?;
        if !is_image && is_mounted(&table, &number) {
            tracing::warn!(device = mount.source, "the host has it mounted, so it is shared");
            return Ok(None);
        }
        let mut options: Vec<_> =
            mount.options.iter().filter(|option| *option != "loop").cloned().collect();
        if mount.kind == "xfs" && !has("nouuid") {
            // Snapshots have the UUID of what they are taken from.
            options.push("nouuid".to_owned());
        }
        Ok(Some(Self {
            path: mount.source.clone().into(),
            kind: mount.kind.clone(),
            options,
            read_only: has("ro"),
        }))
    }

    /// As the agent mounts it.
    pub fn storage(&self, address: &PciPath, mount_point: String) -> Storage {
        let mut storage = Storage::new();
        storage.driver = "blk".to_owned();
        storage.source = address.to_string();
        storage.fstype.clone_from(&self.kind);
        storage.options.clone_from(&self.options);
        storage.mount_point = mount_point;
        storage
    }
}

/// The third field of each line is the device (proc_pid_mountinfo(5)).
fn is_mounted(table: &str, number: &str) -> bool {
    table.lines().any(|line| line.split(' ').nth(2) == Some(number))
}

/// The mounts of a specification whose sources can be disks, with their places in its list.
///
/// # Errors
/// See [`DiskMount::of`].
pub fn volumes(mounts: &[Mount]) -> Result<Vec<(usize, DiskMount)>> {
    let mut volumes = Vec::new();
    for (index, mount) in mounts.iter().enumerate() {
        let spec = MountSpec {
            kind: mount.typ().clone().unwrap_or_default(),
            source: mount.source().iter().map(|path| path.display().to_string()).collect(),
            options: mount.options().clone().unwrap_or_default(),
        };
        volumes.extend(DiskMount::of(&[spec])?.map(|disk| (index, disk)));
    }
    Ok(volumes)
}

/// How many disks a pod may be given while it runs, by its first container: its `root`, and the mounts
/// of one that has a VM for itself. A slot makes the boot slower, so a pod has none unless they let
/// expect that it needs them.
///
/// # Errors
/// The machine takes no disk while it runs.
pub fn slots(config: &KataConfig, root: &[MountSpec], alone: Option<&[Mount]>) -> Result<u16> {
    let expected = if config.hypervisor.disable_block_device_use {
        0
    } else {
        match (DiskMount::of(root)?.is_some(), alone) {
            (is_disk, Some(mounts)) => usize::from(is_disk) + volumes(mounts)?.len(),
            (true, None) => POD_SLOTS,
            (false, None) => 0,
        }
    };
    let expected = u32::try_from(expected).context("A container of more than 2^32 disks")?;
    let slots = u16::try_from(config.slipway.disk_slots.unwrap_or(expected))
        .context("A pod of more than 65535 disks")?;
    if slots > 0 && config.hypervisor.machine_type == MachineType::Microvm {
        bail!(
            "The container has a block device, or `disk_slots` is set, and the machine \
             \"microvm\" takes no disk while it runs: set machine_type = \"q35\", or \
             disable_block_device_use = true"
        );
    }
    Ok(slots)
}

/// The disks of a running VM, by the container they are for.
#[derive(Debug, Default)]
pub struct Disks(Mutex<BTreeMap<String, Vec<String>>>);

impl Disks {
    /// Plugs a disk for `container`; the `purpose` tells its disks apart.
    ///
    /// # Errors
    /// No slot is free, or the VMM refuses, with what to do.
    pub async fn plug(
        &self,
        vm: &dyn Vm,
        container: &str,
        purpose: &str,
        disk: &DiskMount,
    ) -> Result<PciPath> {
        let mut disks = self.0.lock().await;
        let spec = DiskSpec {
            id: disk_id(container, purpose),
            path: disk.path.clone(),
            readonly: disk.read_only,
            direct: false,
        };
        let address = vm.add_disk(&spec).await.with_context(|| {
            format!(
                "Failed to give {} of container {container} to the VM as a disk; `disk_slots` of \
                 [slipway] says how many a pod may have, and disable_block_device_use = true shares \
                 it instead",
                disk.path.display()
            )
        })?;
        disks.entry(container.to_owned()).or_default().push(spec.id);
        Ok(address)
    }

    /// Takes the disks of `container` out, and closes their devices. The guest has unmounted them.
    ///
    /// # Errors
    /// The first that the guest or the VMM keeps; it may be tried again.
    pub async fn unplug(&self, vm: &dyn Vm, container: &str) -> Result<()> {
        let mut disks = self.0.lock().await;
        let Some(ids) = disks.get_mut(container) else { return Ok(()) };
        while let Some(id) = ids.last() {
            vm.remove_disk(id).await.with_context(|| {
                format!("Failed to take a disk of container {container} out of the VM")
            })?;
            ids.pop();
        }
        disks.remove(container);
        Ok(())
    }

    /// The containers that have disks.
    pub async fn containers(&self) -> Vec<String> {
        self.0.lock().await.keys().cloned().collect()
    }
}

/// Ids of containers are longer than a disk's may be.
fn disk_id(container: &str, purpose: &str) -> String {
    use sha2::{Digest as _, Sha256};
    let digest = Sha256::digest(Path::new(container).join(purpose).as_os_str().as_encoded_bytes());
    let digits: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("c-{digits}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, source: &Path, options: &[&str]) -> MountSpec {
        MountSpec {
            kind: kind.to_owned(),
            source: source.display().to_string(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        }
    }

    #[test]
    fn an_image_file_is_a_disk_only_where_it_would_be_looped() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        fs::write(&image, "").unwrap();
        assert_eq!(DiskMount::of(&[mount("ext4", &image, &["rw"])]).unwrap(), None);
        let disk = DiskMount::of(&[mount("xfs", &image, &["loop", "ro"])]).unwrap().unwrap();
        assert!(disk.read_only && disk.path == image);
        assert_eq!(disk.options, ["ro", "nouuid"]);
        let two = [mount("ext4", &image, &["loop"]), mount("ext4", &image, &["loop"])];
        assert_eq!(DiskMount::of(&two).unwrap(), None);
        assert_eq!(DiskMount::of(&[]).unwrap(), None);
    }

    #[test]
    fn what_is_no_device_or_no_file_system_of_one_is_mounted_on_the_host() {
        let folder = tempfile::tempdir().unwrap();
        for (kind, source) in [
            ("bind", folder.path()),
            ("overlay", Path::new("overlay")),
            ("btrfs", Path::new("/dev/null")),
            ("ext4", Path::new("/dev/null")),
            ("ext4", Path::new("/no/such/device")),
        ] {
            assert_eq!(DiskMount::of(&[mount(kind, source, &["loop"])]).unwrap(), None, "{kind}");
        }
    }

    #[test]
    fn a_device_that_the_host_has_mounted_is_found_by_its_number() {
        let table = "29 1 259:2 / / rw - ext4 /dev/root rw\n30 29 7:10 / /mnt rw - ext4 x rw\n";
        assert!(is_mounted(table, "7:10"));
        assert!(!is_mounted(table, "7:1"));
    }

    #[test]
    fn slots_are_there_for_roots_on_devices_and_where_they_are_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        fs::write(&image, "").unwrap();
        let disk = [mount("ext4", &image, &["loop"])];
        let mut config = KataConfig::default();
        let mut volume = Mount::default();
        volume.set_typ(Some("ext4".to_owned())).set_source(Some(image));
        volume.set_options(Some(vec!["loop".to_owned()]));
        let with = |volume: Option<&Mount>| volume.cloned().into_iter().collect::<Vec<_>>();
        let (none, one) = (with(None), with(Some(&volume)));
        assert_eq!(slots(&config, &[], Some(&none)).unwrap(), 0);
        assert_eq!(slots(&config, &disk, Some(&none)).unwrap(), 1);
        assert_eq!(slots(&config, &disk, Some(&one)).unwrap(), 2);
        assert_eq!(slots(&config, &disk, None).unwrap(), 8);
        assert_eq!(slots(&config, &[], None).unwrap(), 0);
        config.hypervisor.machine_type = MachineType::Microvm;
        let error = slots(&config, &disk, None).unwrap_err().to_string();
        assert!(error.contains("q35"), "{error}");
        assert_eq!(slots(&config, &[], Some(&none)).unwrap(), 0);
        config.hypervisor.disable_block_device_use = true;
        assert_eq!(slots(&config, &disk, Some(&one)).unwrap(), 0);
        config.hypervisor.machine_type = MachineType::Q35;
        config.slipway.disk_slots = Some(3);
        assert_eq!(slots(&config, &disk, None).unwrap(), 3);
    }

    #[test]
    fn a_disk_s_name_fits_whatever_the_container_s() {
        let long = "a".repeat(76);
        assert!(disk_id(&long, "root").len() <= 63);
        assert_ne!(disk_id(&long, "root"), disk_id(&long, "data"));
    }
}
