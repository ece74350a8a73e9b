//! Network namespaces of containers, by path (network_namespaces(7), ip-netns(8)).
//!
//! A namespace is entered by a thread of its own, which ends there: no other thread of slipwayd is ever
//! anywhere but where slipwayd was started. That takes CAP_SYS_ADMIN at the time, and CAP_NET_ADMIN for
//! what is made there; seccomp leaves both calls to slipwayd ([`slipway_api::confine`] refuses netlink
//! sockets only, and interfaces are made by ioctl).
//!
//! # Bounds
//! A path is opened only once it is known to be a namespace, so no device or pipe of that name is touched.
//! The kernel keeps a namespace for as long as a tap in it is open: who has one asks
//! [`Namespace::is_at_its_path`] now and then, and lets go of what nobody can reach any more.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{NSFS_MAGIC, statfs};

/// The namespace that a thread is in.
const OWN: &str = "/proc/thread-self/ns/net";

/// Why a namespace can not be entered.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// There is nothing, or it can not be looked at.
    #[error("{} can not be opened", path.display())]
    Open {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file of another kind, or a namespace of another kind.
    #[error("{} is not a network namespace", .0.display())]
    OtherKind(PathBuf),
    /// It is that of slipwayd.
    #[error("{} is the network namespace of slipwayd itself", .0.display())]
    Own(PathBuf),
    /// The kernel does not let us in.
    #[error("the kernel does not let slipwayd into {}", path.display())]
    Enter {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Which namespace it is: device and inode number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity(u64, u64);

impl Identity {
    fn at(path: &Path) -> io::Result<Self> {
        std::fs::metadata(path).map(|found| Self(found.dev(), found.ino()))
    }
}

/// A network namespace that is not slipwayd's. It does not keep the namespace alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    path: PathBuf,
    identity: Identity,
}

impl Namespace {
    /// The namespace that `path` names now, and a descriptor to enter it by.
    ///
    /// # Errors
    /// [`NamespaceError`].
    pub fn open(path: &Path) -> Result<(Self, File), NamespaceError> {
        let path = path.to_owned();
        match statfs(&path) {
            Ok(found) if found.filesystem_type() == NSFS_MAGIC => {}
            Ok(_) => return Err(NamespaceError::OtherKind(path)),
            Err(errno) => return Err(NamespaceError::Open { path, source: errno.into() }),
        }
        let failed = |source| NamespaceError::Open { path: path.clone(), source };
        // It may have been replaced meanwhile: then setns(2) refuses it, and this must not wait.
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(&path).map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        let identity = Identity(found.dev(), found.ino());
        if Identity::at(Path::new(OWN)).is_ok_and(|own| own == identity) {
            return Err(NamespaceError::Own(path));
        }
        Ok((Self { path, identity }, file))
    }

    /// Where it was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the path still names it; not after `ip netns delete`.
    pub fn is_at_its_path(&self) -> bool {
        Identity::at(&self.path).is_ok_and(|found| found == self.identity)
    }

    /// Runs `work` on a thread in the namespace that `file` is, and returns what it returns.
    ///
    /// # Errors
    /// [`NamespaceError`]; `work` did not run.
    ///
    /// # Panics
    /// If `work` does.
    pub fn run_in<R: Send>(
        &self,
        file: &File,
        work: impl FnOnce() -> R + Send,
    ) -> Result<R, NamespaceError> {
        let path = || self.path.clone();
        let enter = |source: io::Error| NamespaceError::Enter { path: path(), source };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("slipway-netns".to_owned());
            let entered = thread.spawn_scoped(scope, || {
                setns(file, CloneFlags::CLONE_NEWNET).map_err(|errno| match errno {
                    Errno::EINVAL => NamespaceError::OtherKind(path()),
                    errno => enter(errno.into()),
                })?;
                Ok(work())
            });
            let joined = entered.map_err(enter)?.join();
            joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(path: &Path) -> String {
        Namespace::open(path).expect_err("is refused").to_string()
    }

    #[test]
    fn what_is_no_namespace_is_refused_unopened_and_by_name() {
        let dir = tempfile::tempdir().expect("a folder");
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        // A pipe without a writer would be waited for.
        for other in [&pipe, dir.path(), Path::new("/dev/null")] {
            assert!(refusal(other).contains("is not a network namespace"), "{}", refusal(other));
            assert!(refusal(other).contains(&*other.to_string_lossy()));
        }
        let missing = refusal(&dir.path().join("none"));
        assert!(missing.contains("/none can not be opened"), "{missing}");
    }

    #[test]
    fn neither_its_own_namespace_nor_one_of_another_kind_is_entered() {
        assert!(refusal(Path::new(OWN)).contains("of slipwayd itself"));
        let (other, file) = Namespace::open(Path::new("/proc/self/ns/uts")).expect("a namespace");
        let error = other.run_in(&file, || ()).expect_err("of another kind").to_string();
        // Without CAP_SYS_ADMIN the kernel looks no further.
        let expected = ["is not a network namespace", "does not let slipwayd into"];
        assert!(expected.iter().any(|text| error.contains(text)), "{error}");
        assert!(other.is_at_its_path());
    }
}
