//! A container's files: shared with the guest, or on disks of the VM (see [`crate::disks`]).
//!
//! A root is at the same place in the guest either way. The share is read-only there, so the folder that a
//! disk is mounted on is made on the host. Further file systems are mounted where the agent keeps its
//! own, and bound into the container.

use std::path::Path;

use kata_agent_protocol::agent::Storage;

use crate::disks::{self, DiskMount};
use crate::error::TaskResult;
use crate::guest::GuestContainer;
use crate::mounts::MountSpec;
use crate::pod::Pod;
use crate::share;

/// Where the guest mounts volumes of its own, as Kata has it.
const VOLUMES: &str = "/run/kata-containers/sandbox/storage";

/// A root as the guest finds it.
#[derive(Clone, Debug)]
pub struct Root {
    /// Its path there.
    pub path: String,
    /// What the guest mounts for it.
    pub storages: Vec<Storage>,
}

/// Gives the guest the root of container `id`, which `mounts` describe, or the bundle's `own` if there
/// are none.
///
/// # Errors
/// The mount's or the VMM's; [`take_back`] undoes what was done.
pub async fn give(pod: &Pod, id: &str, mounts: &[MountSpec], own: &Path) -> TaskResult<Root> {
    let disk = pod
        .with_sandbox(|sandbox| match sandbox.config.hypervisor.disable_block_device_use {
            true => Ok(None),
            false => DiskMount::of(mounts),
        })
        .await?;
    let Some(disk) = disk else {
        let path = pod.with_sandbox(|sandbox| sandbox.share()?.add_rootfs(id, mounts, own)).await?;
        return Ok(Root { path, storages: Vec::new() });
    };
    let vm = pod.vm().await?;
    let disks = pod
        .with_sandbox(|sandbox| {
            if sandbox.has_share() {
                sandbox.share()?.add_mount_point(id)?;
            }
            Ok(sandbox.disks())
        })
        .await?;
    let address = disks.plug(&*vm, id, "root", &disk).await?;
    let path = share::guest_rootfs(id);
    Ok(Root { storages: vec![disk.storage(&address, path.clone())], path })
}

/// Gives the guest the file systems on block devices that `guest`, container `id`, mounts itself.
///
/// # Errors
/// See [`give`].
pub async fn give_volumes(pod: &Pod, id: &str, guest: &mut GuestContainer) -> TaskResult<()> {
    let is_off = pod.with_sandbox(|s| Ok(s.config.hypervisor.disable_block_device_use)).await?;
    let mounts = guest.spec.mounts().clone().unwrap_or_default();
    let volumes = if is_off { Vec::new() } else { disks::volumes(&mounts)? };
    for (index, disk) in volumes {
        let (vm, plugged) = (pod.vm().await?, pod.with_sandbox(|s| Ok(s.disks())).await?);
        let address = plugged.plug(&*vm, id, &format!("mount {index}"), &disk).await?;
        let folder = format!("{VOLUMES}/{id}-{index}");
        guest.storages.push(disk.storage(&address, folder.clone()));
        guest.set_bind(index, folder, disk.read_only);
    }
    Ok(())
}

/// Takes back what container `id` was given: disks and shared files. The guest uses them no more.
///
/// # Errors
/// What stays plugged or mounted.
pub async fn take_back(pod: &Pod, id: &str) -> TaskResult<()> {
    let vm = pod.vm().await?;
    let disks = pod.with_sandbox(|sandbox| Ok(sandbox.disks())).await?;
    let unplugged = disks.unplug(&*vm, id).await;
    let unshared = pod.with_sandbox(|sandbox| match sandbox.has_share() {
        true => sandbox.share()?.remove_container(id),
        false => Ok(()),
    });
    let unshared = unshared.await;
    unplugged?;
    unshared
}
