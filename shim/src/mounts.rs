//! The kernel's table of mounts, and mounting as containerd's requests describe it.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A mount as containerd asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountSpec {
    /// The file system's type; `bind` for a bind mount.
    pub kind: String,
    /// What is mounted.
    pub source: String,
    /// Options as fstab(5) has them.
    pub options: Vec<String>,
}

/// `mount(2)` takes a page of options at most, with its terminating zero.
const MAX_DATA_BYTES: usize = 4095;

const FLAGS: [(&str, MsFlags, bool); 21] = [
    ("ro", MsFlags::MS_RDONLY, true),
    ("rw", MsFlags::MS_RDONLY, false),
    ("nosuid", MsFlags::MS_NOSUID, true),
    ("suid", MsFlags::MS_NOSUID, false),
    ("nodev", MsFlags::MS_NODEV, true),
    ("dev", MsFlags::MS_NODEV, false),
    ("noexec", MsFlags::MS_NOEXEC, true),
    ("exec", MsFlags::MS_NOEXEC, false),
    ("sync", MsFlags::MS_SYNCHRONOUS, true),
    ("async", MsFlags::MS_SYNCHRONOUS, false),
    ("dirsync", MsFlags::MS_DIRSYNC, true),
    ("noatime", MsFlags::MS_NOATIME, true),
    ("atime", MsFlags::MS_NOATIME, false),
    ("nodiratime", MsFlags::MS_NODIRATIME, true),
    ("diratime", MsFlags::MS_NODIRATIME, false),
    ("relatime", MsFlags::MS_RELATIME, true),
    ("norelatime", MsFlags::MS_RELATIME, false),
    ("strictatime", MsFlags::MS_STRICTATIME, true),
    ("bind", MsFlags::MS_BIND, true),
    ("rbind", MsFlags::MS_BIND.union(MsFlags::MS_REC), true),
    ("defaults", MsFlags::empty(), true),
];

/// Flags of mount(2), and the options that are the file system's own.
pub fn flags_and_data(options: &[String]) -> (MsFlags, String) {
    let (mut flags, mut data) = (MsFlags::empty(), Vec::new());
    for option in options {
        match FLAGS.iter().find(|(name, ..)| name == option) {
            Some((_, flag, set)) => flags.set(*flag, *set),
            None => data.push(option.as_str()),
        }
    }
    (flags, data.join(","))
}

/// Mounts `spec` on `target`, which exists.
///
/// # Errors
/// The kernel's, with source, type and target.
pub fn mount_spec(spec: &MountSpec, target: &Path) -> Result<()> {
    let (mut flags, data) = flags_and_data(&spec.options);
    if spec.kind == "bind" {
        flags |= MsFlags::MS_BIND;
    }
    let what =
        || format!("Failed to mount {} (type {}) on {}", spec.source, spec.kind, target.display());
    if data.len() > MAX_DATA_BYTES {
        bail!("{}: its options have {} bytes, and the kernel takes 4095", what(), data.len());
    }
    if spec.options.iter().any(|option| option == "loop") {
        bail!(
            "{}: the option `loop` takes a disk image, which is given to the VM; with \
             disable_block_device_use = true there is nobody to do that: leave it false",
            what()
        );
    }
    let data = (!data.is_empty()).then_some(data.as_str());
    let is_bind = flags.contains(MsFlags::MS_BIND);
    let first = if is_bind { flags & (MsFlags::MS_BIND | MsFlags::MS_REC) } else { flags };
    mount(Some(spec.source.as_str()), target, Some(spec.kind.as_str()), first, data)
        .with_context(what)?;
    // The flags of a bind mount take effect with a second call.
    let rest = flags - (MsFlags::MS_BIND | MsFlags::MS_REC);
    if is_bind && !rest.is_empty() {
        remount_bind(target, rest).inspect_err(|_| drop(unmount(target))).with_context(what)?;
    }
    Ok(())
}

/// Binds `source` to `target`, with what is mounted below it if `recursive`.
///
/// # Errors
/// The kernel's, with both paths.
pub fn bind(source: &Path, target: &Path, recursive: bool) -> Result<()> {
    let mut flags = MsFlags::MS_BIND;
    flags.set(MsFlags::MS_REC, recursive);
    mount(Some(source), target, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("Failed to bind {} to {}", source.display(), target.display()))
}

/// Sets flags of a bind mount, such as `MS_RDONLY`.
///
/// # Errors
/// The kernel's.
pub fn remount_bind(target: &Path, flags: MsFlags) -> nix::Result<()> {
    let flags = flags | MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>)
}

/// Says how mounts travel from and to `target`.
///
/// # Errors
/// The kernel's, with the path.
pub fn propagate(target: &Path, how: MsFlags) -> Result<()> {
    mount(None::<&str>, target, None::<&str>, how, None::<&str>)
        .with_context(|| format!("Failed to set the propagation of {}", target.display()))
}

/// Unmounts what is on `target`; nothing there is no error.
///
/// # Errors
/// The kernel's, with the path.
pub fn unmount(target: &Path) -> Result<()> {
    match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("Failed to unmount {}", target.display())),
    }
}

/// All mount points below `root`, and `root` if it is one, in the order in which they were mounted.
///
/// # Errors
/// `/proc` is not there.
pub fn below(root: &Path) -> io::Result<Vec<PathBuf>> {
    let table = fs::read("/proc/self/mountinfo")?;
    Ok(points(&table).filter(|point| point.starts_with(root)).collect())
}

/// Unmounts everything below `root`, the last first.
///
/// # Errors
/// A mount that stays; the others are gone.
pub fn unmount_below(root: &Path) -> Result<()> {
    let mut outcome = Ok(());
    for point in below(root).context("Failed to read the table of mounts")?.iter().rev() {
        if let Err(error) = unmount(point) {
            outcome = Err(error);
        }
    }
    outcome
}

/// The fifth field of each line (proc_pid_mountinfo(5)).
fn points(table: &[u8]) -> impl Iterator<Item = PathBuf> {
    table.split(|byte| *byte == b'\n').filter_map(|line| {
        let field = line.split(|byte| *byte == b' ').nth(4)?;
        Some(PathBuf::from(OsString::from_vec(unescaped(field))))
    })
}

/// Blanks and the like are written as three octal digits behind a backslash.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let code = match (first, tail.get(..3)) {
            (b'\\', Some(digits)) => {
                std::str::from_utf8(digits).ok().and_then(|text| u8::from_str_radix(text, 8).ok())
            }
            _ => None,
        };
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn flags_are_told_from_the_file_system_s_own_options() {
        let (flags, data) =
            flags_and_data(&options(&["ro", "nosuid", "lowerdir=/a:/b", "index=off"]));
        assert_eq!(flags, MsFlags::MS_RDONLY | MsFlags::MS_NOSUID);
        assert_eq!(data, "lowerdir=/a:/b,index=off");
    }

    #[test]
    fn the_last_of_two_opposite_options_counts() {
        assert_eq!(flags_and_data(&options(&["ro", "rw"])).0, MsFlags::empty());
        let (flags, _) = flags_and_data(&options(&["rbind", "ro"]));
        assert_eq!(flags, MsFlags::MS_BIND | MsFlags::MS_REC | MsFlags::MS_RDONLY);
    }

    #[test]
    fn mount_points_are_read_with_their_blanks() {
        let table =
            b"1 2 0:3 / / rw - ext4 /dev/a rw\n4 1 0:5 / /a\\040b rw shared:1 - tmpfs t rw\n";
        let points: Vec<_> = points(table).collect();
        assert_eq!(points, [PathBuf::from("/"), PathBuf::from("/a b")]);
    }
}
