//! Storages: what is mounted in the guest before containers can use it.
//!
//! A storage is known by its mount point. Those of a container are counted, as several containers
//! may bring the same one, and unmounted with the last. Those of the sandbox, and every volume
//! that lives in the guest's memory, stay until the sandbox ends: a container that is started
//! again must find what it wrote.

use std::collections::HashMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use kata_agent_protocol::agent::Storage;
use kata_agent_protocol::types::FSGroupChangePolicy;
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use tokio::task::spawn_blocking;

use super::device;
use super::error::Refusal;
use super::mounting::{make_target, mount_with};

/// The drivers served, as they are told to the host.
pub const DRIVERS: [&str; 8] =
    ["bind", "blk", "ephemeral", "local", "mmioblk", "overlayfs", "virtio-fs", "watchable-bind"];

/// Tells the agent to add a writable layer, which overlayfs itself does not know.
const OVERLAY_RW: &str = "io.katacontainers.fs-opt.overlay-rw";
/// Options that are for the agent or the host.
const KATA_OPTIONS: &str = "io.katacontainers.";
/// Where files of groups are made to belong to their folder's group.
const SETGID: u32 = 0o2000;

/// The storages that are mounted, and how many containers use each.
#[derive(Debug, Default)]
pub struct Storages {
    used: Mutex<HashMap<PathBuf, Use>>,
    /// Held while a storage is mounted: two containers may bring the same one at once.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Use {
    containers: usize,
    /// Stays when no container uses it any more.
    is_kept: bool,
}

impl Storages {
    /// Mounts the storages, those that are there excepted, and returns their mount points.
    ///
    /// # Errors
    /// A failed mount; those before it are released again.
    pub async fn add(&self, storages: &[Storage], of_sandbox: bool) -> Result<Vec<PathBuf>> {
        let mut added = Vec::new();
        for storage in storages {
            match self.add_one(storage, of_sandbox).await {
                Ok(path) => added.push(path),
                Err(error) => {
                    // The first error is the one to tell.
                    drop(self.release(&added));
                    return Err(error.context(format!(
                        "Failed to set up the {} storage {} for {}",
                        storage.driver, storage.source, storage.mount_point
                    )));
                }
            }
        }
        Ok(added)
    }

    async fn add_one(&self, storage: &Storage, of_sandbox: bool) -> Result<PathBuf> {
        let path = checked(&storage.mount_point)?;
        let _turn = self.turn.lock().await;
        if let Some(used) = self.used().get_mut(&path) {
            used.containers += 1;
            return Ok(path);
        }
        let source = source(storage).await?;
        let (own, target) = (storage.clone(), path.clone());
        let mounted = spawn_blocking(move || set_up(&own, &source, &target)).await;
        mounted.context("The mount was given up")??;
        let in_memory = matches!(storage.driver.as_str(), "ephemeral" | "local");
        let is_kept = of_sandbox || storage.shared || in_memory;
        self.used().insert(path.clone(), Use { containers: 1, is_kept });
        Ok(path)
    }

    /// A container no longer uses these.
    pub fn release(&self, paths: &[PathBuf]) -> Result<()> {
        let mut used = self.used();
        let mut outcome = Ok(());
        for path in paths.iter().rev() {
            let Some(storage) = used.get_mut(path) else { continue };
            storage.containers = storage.containers.saturating_sub(1);
            if storage.containers == 0 && !storage.is_kept {
                used.remove(path);
                outcome = outcome.and(unmount(path));
            }
        }
        outcome
    }

    /// Unmounts all, those within others first.
    pub fn clear(&self) -> Result<()> {
        let mut paths: Vec<_> = self.used().drain().map(|(path, _)| path).collect();
        paths.sort();
        paths.iter().rev().map(|path| unmount(path)).fold(Ok(()), Result::and)
    }

    fn used(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, Use>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives file systems in memory that are mounted other options, as a larger `size=`.
pub fn resize(storages: &[Storage]) -> Result<()> {
    for storage in storages {
        if storage.driver != "ephemeral" {
            let driver = &storage.driver;
            return Err(Refusal::invalid(format!(
                "Only ephemeral storages can be changed, not those of the driver '{driver}'"
            )));
        }
        let target = checked(&storage.mount_point)?;
        let options = storage.options.iter().map(String::as_str);
        let options = options.filter(|option| !option.starts_with("fsgid=")).chain(["remount"]);
        mount_with(&storage.source, &target, &storage.fstype, options)?;
    }
    Ok(())
}

/// The mount point, without a slash at its end.
fn checked(path: &str) -> Result<PathBuf> {
    let path = Path::new(path);
    let is_plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
    let is_below_root = path.is_absolute() && path.components().count() > 1;
    if is_below_root && path.components().all(is_plain) {
        return Ok(path.components().collect());
    }
    let path = path.display();
    Err(Refusal::invalid(format!("The mount point '{path}' is no absolute path without '..'")))
}

/// What to mount: block devices are waited for.
async fn source(storage: &Storage) -> Result<String> {
    Ok(match storage.driver.as_str() {
        "blk" | "mmioblk" => {
            let node = device::wait_for_block(&storage.source).await?;
            node.to_string_lossy().into_owned()
        }
        _ => storage.source.clone(),
    })
}

fn set_up(storage: &Storage, source: &str, target: &Path) -> Result<()> {
    let options = storage.options.iter().map(String::as_str);
    let plain = options.clone().filter(|option| !option.starts_with(KATA_OPTIONS));
    let kind = storage.fstype.as_str();
    match storage.driver.as_str() {
        "virtio-fs" | "blk" | "mmioblk" => {
            fs::create_dir_all(target)?;
            mount_with(source, target, kind, plain)?;
        }
        "bind" | "watchable-bind" => {
            make_target(Path::new(source), target)?;
            mount_with(source, target, "bind", plain)?;
        }
        "overlayfs" => overlay(target, options)?,
        "ephemeral" => ephemeral(source, target, kind, plain)?,
        "local" => local(target, plain)?,
        driver => {
            let known = DRIVERS.join(", ");
            let message = format!("The storage driver '{driver}' is unknown; there are {known}");
            return Err(Refusal::invalid(message));
        }
    }
    match storage.fs_group.as_ref() {
        Some(group) => {
            let policy = group.group_change_policy.enum_value_or_default();
            give_to_group(target, group.group_id, policy)
        }
        None => Ok(()),
    }
}

/// Mounts an overlay; a writable one gets its upper layer beside the mount point.
fn overlay<'a>(target: &Path, options: impl Iterator<Item = &'a str> + Clone) -> Result<()> {
    fs::create_dir_all(target)?;
    let mut own = Vec::new();
    if options.clone().any(|option| option == OVERLAY_RW) {
        let beside = |name| target.with_file_name(name);
        let (upper, work) = (beside("upper"), beside("work"));
        for folder in [&upper, &work] {
            fs::create_dir_all(folder)
                .with_context(|| format!("Failed to make {}", folder.display()))?;
        }
        own.push(format!("upperdir={}", upper.display()));
        own.push(format!("workdir={}", work.display()));
    }
    let plain = options.filter(|option| !option.starts_with(KATA_OPTIONS));
    own.splice(0..0, plain.map(str::to_owned));
    mount_with("overlay", target, "overlay", own.iter().map(String::as_str))
}

/// Mounts a file system that lives in memory.
fn ephemeral<'a>(
    source: &str,
    target: &Path,
    kind: &str,
    options: impl Iterator<Item = &'a str> + Clone,
) -> Result<()> {
    fs::create_dir_all(target)?;
    let group = group_of(options.clone())?;
    let options = options.filter(|option| !option.starts_with("fsgid="));
    if kind == "hugetlbfs" {
        reserve_hugepages(options.clone())?;
    }
    mount_with(source, target, kind, options)?;
    group.map_or(Ok(()), |group| give_to_group(target, group, FSGroupChangePolicy::Always))
}

/// Makes a folder on the guest's root.
fn local<'a>(target: &Path, options: impl Iterator<Item = &'a str> + Clone) -> Result<()> {
    fs::create_dir_all(target)?;
    if let Some(mode) = options.clone().find_map(|option| option.strip_prefix("mode=")) {
        let mode = u32::from_str_radix(mode, 8)
            .map_err(|_| Refusal::invalid(format!("mode={mode} is no octal number")))?;
        fs::set_permissions(target, Permissions::from_mode(mode))?;
    }
    let group = group_of(options)?;
    group.map_or(Ok(()), |group| give_to_group(target, group, FSGroupChangePolicy::Always))
}

fn group_of<'a>(mut options: impl Iterator<Item = &'a str>) -> Result<Option<u32>> {
    let Some(group) = options.find_map(|option| option.strip_prefix("fsgid=")) else {
        return Ok(None);
    };
    let parsed = group.parse().map(Some);
    parsed.map_err(|_| Refusal::invalid(format!("fsgid={group} is no group number")))
}

/// Gives everything below `path` to a group: who is in it can read, and write what the owner can.
fn give_to_group(path: &Path, group: u32, policy: FSGroupChangePolicy) -> Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    let is_given = metadata.gid() == group && metadata.mode() & SETGID != 0;
    if policy == FSGroupChangePolicy::OnRootMismatch && is_given {
        return Ok(());
    }
    let failed = || format!("Failed to give {} to the group {group}", path.display());
    if metadata.is_symlink() {
        return Ok(());
    }
    chown(path, None, Some(group)).with_context(failed)?;
    let mode = metadata.mode() & 0o7777;
    let shared = mode | (mode & 0o700) >> 3 | if metadata.is_dir() { SETGID } else { 0 };
    fs::set_permissions(path, Permissions::from_mode(shared)).with_context(failed)?;
    if metadata.is_dir() {
        for entry in fs::read_dir(path).with_context(failed)? {
            give_to_group(&entry?.path(), group, FSGroupChangePolicy::Always)?;
        }
    }
    Ok(())
}

/// Has the kernel set aside the huge pages of `pagesize=` for `size=`, both in bytes or with a
/// letter.
fn reserve_hugepages<'a>(options: impl Iterator<Item = &'a str> + Clone) -> Result<()> {
    let bytes = |name: &str| {
        let value = options.clone().find_map(|option| option.strip_prefix(name)?.strip_prefix('='));
        let value =
            value.ok_or_else(|| Refusal::invalid(format!("Huge pages need the option {name}=")))?;
        parse_bytes(value)
            .ok_or_else(|| Refusal::invalid(format!("{name}={value} is no number of bytes")))
    };
    let (page, size) = (bytes("pagesize")?, bytes("size")?);
    let file = format!("/sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages", page / 1024);
    let present = fs::read_to_string(&file).with_context(|| format!("Failed to read {file}"))?;
    let present: u64 = present.trim().parse().with_context(|| format!("{file} is no number"))?;
    let wanted = present + size.div_ceil(page.max(1));
    fs::write(&file, wanted.to_string())
        .with_context(|| format!("Failed to write {wanted} to {file}"))
}

/// `2Mi`, `2M` and `2097152` are the same.
fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.strip_suffix(['i', 'B']).unwrap_or(text);
    let (digits, shift) = match text.chars().last()? {
        'k' | 'K' => (&text[..text.len() - 1], 10),
        'm' | 'M' => (&text[..text.len() - 1], 20),
        'g' | 'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn unmount(path: &Path) -> Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        // A folder, or unmounted with its container.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("Failed to unmount {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_must_be_an_absolute_path_that_does_not_climb() {
        assert_eq!(checked("/run/a/").unwrap(), Path::new("/run/a"));
        for path in ["", "/", "run", "/run/../etc", "../x"] {
            assert!(checked(path).is_err(), "{path}");
        }
    }

    #[test]
    fn sizes_are_read_with_and_without_letters() {
        for text in ["2097152", "2048k", "2M", "2Mi"] {
            assert_eq!(parse_bytes(text), Some(2 << 20), "{text}");
        }
        assert_eq!(parse_bytes("1G"), Some(1 << 30));
        for text in ["", "M", "x", "-1", "99999999999G"] {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
    }

    #[tokio::test]
    async fn a_local_volume_gets_its_mode_and_outlives_its_containers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/volume");
        let storage = Storage {
            driver: "local".to_owned(),
            source: "local".to_owned(),
            fstype: "local".to_owned(),
            options: vec!["mode=0777".to_owned()],
            mount_point: path.to_str().unwrap().to_owned(),
            ..Storage::default()
        };
        let storages = Storages::default();
        let added = storages.add(&[storage], false).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o777);
        fs::write(path.join("file"), "kept").unwrap();
        storages.release(&added).unwrap();
        assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "kept");
    }

    #[tokio::test]
    async fn an_unknown_driver_is_refused_with_the_known_ones() {
        let storage = Storage {
            driver: "tape".to_owned(),
            mount_point: "/run/x".to_owned(),
            ..Storage::default()
        };
        let error = Storages::default().add(&[storage], false).await.unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("'tape'") && text.contains("virtio-fs"), "{text}");
    }
}
