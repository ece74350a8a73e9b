//! `mount(2)` from the words that storages and OCI mounts use.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use crate::modules;

/// Flags by option name; `false` clears.
const FLAGS: [(&str, bool, MsFlags); 24] = [
    ("ro", true, MsFlags::MS_RDONLY),
    ("rw", false, MsFlags::MS_RDONLY),
    ("nosuid", true, MsFlags::MS_NOSUID),
    ("suid", false, MsFlags::MS_NOSUID),
    ("nodev", true, MsFlags::MS_NODEV),
    ("dev", false, MsFlags::MS_NODEV),
    ("noexec", true, MsFlags::MS_NOEXEC),
    ("exec", false, MsFlags::MS_NOEXEC),
    ("sync", true, MsFlags::MS_SYNCHRONOUS),
    ("async", false, MsFlags::MS_SYNCHRONOUS),
    ("dirsync", true, MsFlags::MS_DIRSYNC),
    ("remount", true, MsFlags::MS_REMOUNT),
    ("noatime", true, MsFlags::MS_NOATIME),
    ("atime", false, MsFlags::MS_NOATIME),
    ("nodiratime", true, MsFlags::MS_NODIRATIME),
    ("diratime", false, MsFlags::MS_NODIRATIME),
    ("relatime", true, MsFlags::MS_RELATIME),
    ("norelatime", false, MsFlags::MS_RELATIME),
    ("strictatime", true, MsFlags::MS_STRICTATIME),
    ("nostrictatime", false, MsFlags::MS_STRICTATIME),
    ("bind", true, MsFlags::MS_BIND),
    ("rbind", true, MsFlags::MS_BIND.union(MsFlags::MS_REC)),
    ("silent", true, MsFlags::MS_SILENT),
    ("loud", false, MsFlags::MS_SILENT),
];
/// How a mount passes later ones on; set by a call of its own.
const PROPAGATION: [(&str, MsFlags); 8] = [
    ("private", MsFlags::MS_PRIVATE),
    ("rprivate", MsFlags::MS_PRIVATE.union(MsFlags::MS_REC)),
    ("shared", MsFlags::MS_SHARED),
    ("rshared", MsFlags::MS_SHARED.union(MsFlags::MS_REC)),
    ("slave", MsFlags::MS_SLAVE),
    ("rslave", MsFlags::MS_SLAVE.union(MsFlags::MS_REC)),
    ("unbindable", MsFlags::MS_UNBINDABLE),
    ("runbindable", MsFlags::MS_UNBINDABLE.union(MsFlags::MS_REC)),
];
/// What a bind mount takes over from its source unless a second call sets it.
const BIND_ONLY: MsFlags = MsFlags::MS_BIND.union(MsFlags::MS_REC);

/// Options, sorted.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    flags: MsFlags,
    propagation: Vec<MsFlags>,
    /// For the file system: `size=1m,mode=1777`.
    data: String,
}

impl Options {
    fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        let (propagation, data) = (Vec::new(), String::new());
        let mut options = Self { flags: MsFlags::empty(), propagation, data };
        for word in words {
            if let Some((_, sets, flag)) = FLAGS.iter().find(|(name, ..)| *name == word) {
                options.flags.set(*flag, *sets);
            } else if let Some((_, flag)) = PROPAGATION.iter().find(|(name, _)| *name == word) {
                options.propagation.push(*flag);
            } else if !word.is_empty() && word != "defaults" {
                let separator = if options.data.is_empty() { "" } else { "," };
                options.data = format!("{}{separator}{word}", options.data);
            }
        }
        options
    }
}

/// Mounts `source` on `target`, with the file system's driver loaded if it is a module.
pub fn mount_with<'a>(
    source: &str,
    target: &Path,
    kind: &str,
    options: impl IntoIterator<Item = &'a str>,
) -> Result<()> {
    let Options { mut flags, propagation, data } = Options::parse(options);
    if kind == "bind" {
        flags |= MsFlags::MS_BIND;
    }
    let failed = || format!("Failed to mount {kind} {source} on {}", target.display());
    let data = (!data.is_empty()).then_some(data.as_str());
    let none = None::<&str>;
    if flags.contains(MsFlags::MS_BIND) {
        let bind = flags & BIND_ONLY;
        mount(Some(source), target, none, bind, none).with_context(failed)?;
        let rest = flags - BIND_ONLY;
        if !rest.is_empty() {
            let remount = rest | MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
            mount(none, target, none, remount, none).with_context(failed)?;
        }
    } else {
        let attempt = || mount(Some(source), target, Some(kind), flags, data);
        let outcome = match attempt() {
            // The kernel does not know the file system yet.
            Err(Errno::ENODEV) if modules::load(kind).with_context(failed)? => attempt(),
            outcome => outcome,
        };
        outcome.with_context(|| {
            let data = data.unwrap_or("none");
            format!("{} with flags {flags:?} and options {data}", failed())
        })?;
    }
    for flag in propagation {
        mount(none, target, none, flag, none).with_context(failed)?;
    }
    Ok(())
}

/// Makes what `source` can be mounted on: a folder, or a file for anything else.
pub fn make_target(source: &Path, target: &Path) -> Result<()> {
    let failed = || format!("Failed to make the mount point {}", target.display());
    if source.is_file() {
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder).with_context(failed)?;
        }
        fs::OpenOptions::new().append(true).create(true).open(target).with_context(failed)?;
        return Ok(());
    }
    fs::create_dir_all(target).with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_propagation_and_data_are_told_apart() {
        let words = ["nosuid", "noexec", "mode=1777", "rprivate", "defaults", "size=65536k"];
        let options = Options::parse(words);
        assert_eq!(options.flags, MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC);
        assert_eq!(options.propagation, [MsFlags::MS_PRIVATE | MsFlags::MS_REC]);
        assert_eq!(options.data, "mode=1777,size=65536k");
    }

    #[test]
    fn a_later_word_takes_back_an_earlier_one() {
        assert_eq!(Options::parse(["ro", "rw"]).flags, MsFlags::empty());
    }
}
