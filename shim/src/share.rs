//! What the guest sees of the host's files: Kata's shared folder.
//!
//! ```text
//! host                                                      guest
//! BASE/SID/mounts/CID/rootfs      container's root          GUEST/CID/rootfs
//! BASE/SID/mounts/CID-HEX-NAME    one volume or file each   GUEST/CID-HEX-NAME
//! BASE/SID/shared                 read-only slave of mounts, what virtiofsd serves
//! ```
//! We mount below `mounts`; mounts travel to `shared`, and never back. A guest that takes over its
//! virtiofsd can write what was shared writable, but make nothing in our folders.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::mount::MsFlags;

use crate::mounts::{self, MountSpec};

/// Where the host keeps shared folders, as Kata does.
pub const BASE: &str = "/run/kata-containers/shared/sandboxes";
/// Where the guest mounts the share.
pub const GUEST: &str = "/run/kata-containers/shared/containers";
/// The share's virtio-fs tag.
pub const TAG: &str = "kataShared";

/// Where the guest finds the root of container `id`.
pub fn guest_rootfs(id: &str) -> String {
    format!("{GUEST}/{id}/rootfs")
}

/// The shared folder of one sandbox.
#[derive(Clone, Debug)]
pub struct Share {
    root: PathBuf,
}

impl Share {
    /// That of sandbox `id` below `base`; nothing is made yet.
    pub fn of(base: &Path, id: &str) -> Self {
        Self { root: base.join(id) }
    }

    /// What virtiofsd serves.
    pub fn served(&self) -> PathBuf {
        self.root.join("shared")
    }

    fn mounts(&self) -> PathBuf {
        self.root.join("mounts")
    }

    /// Makes the folders and ties them together.
    ///
    /// # Errors
    /// The file system's; call [`Share::remove`] then.
    pub fn create(&self) -> Result<()> {
        let (mounts, served) = (self.mounts(), self.served());
        for folder in [&mounts, &served] {
            make_folder(folder)?;
        }
        // A mount of its own, so that what is mounted below travels as we say.
        mounts::bind(&mounts, &mounts, false)?;
        mounts::propagate(&mounts, MsFlags::MS_SHARED)?;
        mounts::bind(&mounts, &served, true)?;
        mounts::propagate(&served, MsFlags::MS_SLAVE)?;
        mounts::remount_bind(&served, MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV)
            .with_context(|| format!("Failed to make {} read-only", served.display()))
    }

    /// Mounts a container's root as containerd describes it, or binds the bundle's own if it does
    /// not. Returns where the guest finds it.
    ///
    /// # Errors
    /// The mount's; nothing is left mounted.
    pub fn add_rootfs(&self, id: &str, specs: &[MountSpec], own: &Path) -> Result<String> {
        let target = self.mounts().join(id).join("rootfs");
        make_folder(&target)?;
        let mounted = (|| {
            if specs.is_empty() {
                if !own.is_dir() {
                    bail!("The root of container {id}, {}, is no folder", own.display());
                }
                mounts::bind(own, &target, true)?;
            }
            specs.iter().try_for_each(|spec| mounts::mount_spec(spec, &target))?;
            match specs.iter().any(|spec| spec.options.iter().any(|option| option == "ro")) {
                true => self.make_read_only(&Path::new(id).join("rootfs")),
                false => Ok(()),
            }
        })();
        if let Err(error) = mounted {
            drop(self.remove_container(id));
            return Err(error);
        }
        Ok(guest_rootfs(id))
    }

    /// Makes the folder that the guest mounts the root of container `id` on.
    ///
    /// # Errors
    /// The file system's.
    pub fn add_mount_point(&self, id: &str) -> Result<()> {
        make_folder(&self.mounts().join(id).join("rootfs"))
    }

    /// Shares `sandbox_bind_mounts` with the guest: files and folders of the host that belong to no
    /// container, each as `GUEST/sandbox-mounts/NAME`, read-only unless it ends in `:rw`.
    ///
    /// # Errors
    /// What does not exist, or two of one name.
    pub fn add_sandbox_binds(&self, paths: &[String]) -> Result<()> {
        for path in paths {
            let (source, is_writable) = match path.strip_suffix(":rw") {
                Some(source) => (Path::new(source), true),
                None => (Path::new(path.strip_suffix(":ro").unwrap_or(path)), false),
            };
            let what = || format!("Failed to share {path} of `sandbox_bind_mounts`");
            let folder = self.mounts().join("sandbox-mounts");
            let name = source.file_name().with_context(what)?;
            let target = folder.join(name);
            if target.exists() {
                bail!("{}: there is another one of this name", what());
            }
            make_folder(&folder)?;
            if fs::metadata(source).with_context(what)?.is_dir() {
                make_folder(&target)?;
            } else {
                fs::write(&target, "").with_context(what)?;
            }
            mounts::bind(source, &target, true)?;
            if !is_writable {
                self.make_read_only(&Path::new("sandbox-mounts").join(name))?;
            }
        }
        Ok(())
    }

    /// Shares one file or folder of the host with container `id`. Returns where the guest finds it.
    ///
    /// # Errors
    /// What is neither file nor folder, or does not exist.
    pub fn add_bind(&self, id: &str, bind: &HostBind) -> Result<String> {
        let name = bind.destination.file_name().unwrap_or("root".as_ref()).to_string_lossy();
        // Container ids are at most 76 characters, names 255: the sum must stay a file name.
        let name: String = name.chars().filter(|c| *c != '/').take(64).collect();
        let name = format!("{id}-{}-{name}", bind.number());
        let target = self.mounts().join(&name);
        let kind = fs::metadata(&bind.source).with_context(|| {
            format!("Failed to find {}, a volume of container {id}", bind.source.display())
        })?;
        if kind.is_dir() {
            make_folder(&target)?;
        } else if kind.is_file() {
            fs::write(&target, "")
                .with_context(|| format!("Failed to create {}", target.display()))?;
        } else {
            let what = if kind.file_type().is_socket() { "a socket" } else { "a device or pipe" };
            bail!(
                "{} is {what} of the host: a guest of its own kernel cannot use it; mount a folder \
                 or a file",
                bind.source.display()
            );
        }
        mounts::bind(&bind.source, &target, bind.recursive).inspect_err(|_| {
            drop(remove_mount_point(&target));
        })?;
        if bind.read_only {
            self.make_read_only(Path::new(&name))?;
        }
        Ok(format!("{GUEST}/{name}"))
    }

    /// Makes a mount read-only, and its copy below `shared` too: a mount travels with the flags it has
    /// when it is made, and what virtiofsd serves is the copy.
    fn make_read_only(&self, name: &Path) -> Result<()> {
        for point in [self.mounts().join(name), self.served().join(name)] {
            mounts::remount_bind(&point, MsFlags::MS_RDONLY)
                .with_context(|| format!("Failed to make {} read-only", point.display()))?;
        }
        Ok(())
    }

    /// Takes back all that was shared with container `id`.
    ///
    /// # Errors
    /// What stays mounted.
    pub fn remove_container(&self, id: &str) -> Result<()> {
        let mounts = self.mounts();
        let prefix = format!("{id}-");
        let entries = match fs::read_dir(&mounts) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error).context("Failed to list the shared folder"),
        };
        for entry in entries {
            let entry = entry.context("Failed to list the shared folder")?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name == id {
                let root = entry.path().join("rootfs");
                mounts::unmount_below(&root)?;
                remove_mount_point(&root)?;
                remove_mount_point(&entry.path())?;
            } else if name.strip_prefix(&prefix).is_some_and(is_ours) {
                mounts::unmount_below(&entry.path())?;
                remove_mount_point(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Takes back everything. May be called at any time, and again.
    ///
    /// # Errors
    /// What stays mounted; nothing below it is removed.
    pub fn remove(&self) -> Result<()> {
        if !self.root.exists() {
            return Ok(());
        }
        mounts::unmount_below(&self.root)?;
        let left = mounts::below(&self.root).context("Failed to read the table of mounts")?;
        if let Some(point) = left.first() {
            // Removing files now would remove those of a volume.
            bail!("{} stays mounted: something holds it", point.display());
        }
        remove_empty_tree(&self.root)
    }
}

/// A file or folder of the host that a container wants to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostBind {
    /// On the host.
    pub source: PathBuf,
    /// In the container.
    pub destination: PathBuf,
    /// With what is mounted below it.
    pub recursive: bool,
    /// The guest may not write.
    pub read_only: bool,
}

impl HostBind {
    /// Sixteen hexadecimal digits that tell the binds of a container apart.
    fn number(&self) -> String {
        use sha2::{Digest as _, Sha256};
        let digest = Sha256::digest(self.destination.as_os_str().as_encoded_bytes());
        digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Whether what follows `CID-` was named by [`Share::add_bind`]: ids may contain dashes too.
fn is_ours(rest: &str) -> bool {
    rest.split_once('-').is_some_and(|(number, _)| {
        number.len() == 16 && number.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

fn make_folder(folder: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(folder)
        .with_context(|| format!("Failed to make the folder {}", folder.display()))
}

/// Removes an empty folder or an empty file. Never anything with content: if an unmount was missed,
/// the content is a user's.
fn remove_mount_point(point: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(point) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => Err(error),
        Ok(kind) if kind.is_dir() => fs::remove_dir(point),
        Ok(kind) if kind.is_file() && kind.len() == 0 => fs::remove_file(point),
        Ok(_) => Err(io::Error::other("it is not empty")),
    };
    removed.with_context(|| format!("Failed to remove the mount point {}", point.display()))
}

fn remove_empty_tree(folder: &Path) -> Result<()> {
    let entries = fs::read_dir(folder);
    for entry in entries.with_context(|| format!("Failed to list {}", folder.display()))? {
        let path = entry.with_context(|| format!("Failed to list {}", folder.display()))?.path();
        if fs::symlink_metadata(&path).is_ok_and(|kind| kind.is_dir()) {
            remove_empty_tree(&path)?;
        } else {
            remove_mount_point(&path)?;
        }
    }
    remove_mount_point(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_binds_are_taken_for_binds() {
        assert!(is_ours("0123456789abcdef-data"));
        // Container `a-b` next to container `a`.
        assert!(!is_ours("b"));
        assert!(!is_ours("b-0123456789abcdef-data"));
    }

    #[test]
    fn a_tree_with_a_user_s_file_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("sid");
        make_folder(&root.join("mounts/c/rootfs")).unwrap();
        fs::write(root.join("mounts/c/rootfs/data"), "precious").unwrap();
        let error = Share::of(folder.path(), "sid").remove().unwrap_err();
        assert!(format!("{error:#}").contains("not empty"), "{error:#}");
        assert_eq!(fs::read(root.join("mounts/c/rootfs/data")).unwrap(), b"precious");
    }

    #[test]
    fn removing_twice_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let share = Share::of(folder.path(), "sid");
        make_folder(&share.served()).unwrap();
        share.remove().unwrap();
        share.remove().unwrap();
        assert!(!folder.path().join("sid").exists());
    }
}
