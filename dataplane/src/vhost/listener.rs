//! The socket file of a port that listens: taken without harm to others, given back likewise.
//!
//! # How it works
//! A socket file outlives the process that made it, so a file in our way is usually stale, and
//! sometimes somebody's living socket. The kernel tells which without disturbing the owner: a
//! connection attempt with the wrong socket type is refused as "wrong type" while any socket is
//! bound to the file, and as "connection refused" when none is.
//!
//! Between that look and the removal nobody may bind, so the directory is locked (flock) for the
//! moment. All our processes do so; and while a listener of ours lives, its file is never stale to
//! them, so on removal the file can be compared with what we bound and unlinked while the listener
//! is still open. A program that unlinks blindly before it binds can still take the name from
//! anybody in that instant; no call unlinks only if.
//!
//! # Bounds
//! The lock is waited for at most [`LOCK_WAIT`] times a millisecond: whoever may read the directory
//! may hold it. This happens on the thread that adds the port, never on the control thread.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket,
};
use nix::sys::stat::{Mode, fchmod};

/// Milliseconds to wait for the lock of the directory.
const LOCK_WAIT: u32 = 1000;
/// Connections the kernel holds for us until we accept them.
const BACKLOG: i32 = 16;

/// Why a port could not have its socket.
#[derive(Debug, thiserror::Error)]
pub enum PortSocketError {
    /// The path cannot be a socket's.
    #[error("{} cannot be a socket path: {reason}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// Why not.
        reason: &'static str,
    },
    /// A living process listens there.
    #[error("{} is in use by a running process; choose another path or stop it", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// Something else has the name.
    #[error("{} exists and is not a socket; it was left alone", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Somebody holds the lock of the directory.
    #[error("The directory of {} is locked by another process", path.display())]
    Locked {
        /// The path.
        path: PathBuf,
    },
    /// The kernel refused.
    #[error("Failed to {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// There is a port with this number.
    #[error("Port {id} exists already")]
    IdInUse {
        /// The number.
        id: u32,
    },
    /// Another port of ours uses the path.
    #[error("Port {id} already uses {}", path.display())]
    PathInUse {
        /// The other port.
        id: u32,
        /// The path.
        path: PathBuf,
    },
    /// The control thread has ended.
    #[error("The vhost-user control thread has been shut down")]
    Stopped,
}

/// The address of `path`.
pub(super) fn address(path: &Path) -> Result<UnixAddr, PortSocketError> {
    let refuse = |reason| PortSocketError::Path { path: path.into(), reason };
    if path.file_name().is_none() {
        return Err(refuse("it names no file"));
    }
    UnixAddr::new(path).map_err(|_| refuse("a socket path has at most 107 bytes"))
}

/// The directory that `path` is in.
pub(super) fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// A listening socket whose file is removed when it is dropped.
#[derive(Debug)]
pub(super) struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of the file that we bound.
    identity: (u64, u64),
}

impl Listener {
    /// Binds and listens. `permissions` are those of the file (who may write may connect).
    pub fn bind(
        path: &Path,
        permissions: u32,
        group: Option<u32>,
    ) -> Result<Self, PortSocketError> {
        let address = address(path)?;
        let failed = |action, source| PortSocketError::Io { action, path: path.into(), source };
        let _lock = lock_directory(path)?;
        remove_stale(path)?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)
            .map_err(|errno| failed("open a socket for", errno.into()))?;
        // The kernel gives the file the mode of the socket: nobody but us may connect until owner
        // and permissions are as they shall be.
        fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(|errno| failed("restrict the socket for", errno.into()))?;
        bind(fd.as_raw_fd(), &address).map_err(|errno| match errno {
            Errno::EADDRINUSE => PortSocketError::InUse { path: path.into() },
            errno => failed("bind the vhost-user socket", errno.into()),
        })?;
        let file = fs::symlink_metadata(path).map_err(|e| failed("inspect the new socket", e))?;
        let listener = Self {
            socket: UnixListener::from(fd),
            path: path.into(),
            identity: (file.dev(), file.ino()),
        };
        // From here on, an error drops the listener and with it the file.
        if group.is_some() {
            lchown(path, None, group).map_err(|e| failed("set the group of", e))?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(permissions))
            .map_err(|e| failed("set the permissions of", e))?;
        let backlog = Backlog::new(BACKLOG).unwrap_or(Backlog::MAXCONN);
        listen(&listener.socket, backlog).map_err(|errno| failed("listen on", errno.into()))?;
        Ok(listener)
    }

    /// Where it was bound.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next connection, if one waits.
    pub fn accept(&self) -> io::Result<UnixStream> {
        self.socket.accept().map(|(stream, _)| stream)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // The socket is still open here: see the module text.
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|file| (file.dev(), file.ino()) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!("Failed to remove the socket {}: {error}", self.path.display());
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn lock_directory(path: &Path) -> Result<Flock<File>, PortSocketError> {
    let failed =
        |source| PortSocketError::Io { action: "open the directory of", path: path.into(), source };
    let mut directory = File::open(directory(path)).map_err(failed)?;
    for _ in 0..LOCK_WAIT {
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((file, Errno::EWOULDBLOCK | Errno::EINTR)) => directory = file,
            Err((_, errno)) => return Err(failed(errno.into())),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(PortSocketError::Locked { path: path.into() })
}

/// Removes a socket file that no socket is bound to. The directory is locked.
fn remove_stale(path: &Path) -> Result<(), PortSocketError> {
    let failed = |action, source| PortSocketError::Io { action, path: path.into(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("inspect", error)),
        Ok(file) if !file.file_type().is_socket() => {
            return Err(PortSocketError::NotASocket { path: path.into() });
        }
        Ok(_) => {}
    }
    let probe = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
        .map_err(|errno| failed("open a socket for", errno.into()))?;
    match connect(probe.as_raw_fd(), &address(path)?) {
        Err(Errno::ECONNREFUSED) => {}
        Err(Errno::ENOENT) => return Ok(()),
        // EPROTOTYPE: some socket of another type is bound. Anything else we may not judge.
        _ => return Err(PortSocketError::InUse { path: path.into() }),
    }
    fs::remove_file(path).map_err(|error| failed("remove the stale socket", error))
}

/// Connects to a listening VMM, or says at once why not.
pub(super) fn dial(address: &UnixAddr) -> Result<UnixStream, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(fd.as_raw_fd(), address)?;
    Ok(UnixStream::from(fd))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    fn bind_at(path: &Path) -> Result<Listener, PortSocketError> {
        Listener::bind(path, 0o660, None)
    }

    #[test]
    fn a_stale_file_is_replaced_and_a_living_owner_is_left_alone_and_undisturbed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("port");
        let theirs = UnixListener::bind(&path).unwrap();
        theirs.set_nonblocking(true).unwrap();
        assert!(matches!(bind_at(&path), Err(PortSocketError::InUse { .. })));
        let kind = theirs.accept().unwrap_err().kind();
        assert_eq!(kind, io::ErrorKind::WouldBlock, "the owner saw no connection");
        drop(theirs);
        let ours = bind_at(&path).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
        assert!(matches!(bind_at(&path), Err(PortSocketError::InUse { .. })));
        drop(ours);
        assert!(!path.exists());
    }

    #[test]
    fn sockets_of_other_types_are_left_alone_as_well() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("port");
        let _theirs = UnixDatagram::bind(&path).unwrap();
        assert!(matches!(bind_at(&path), Err(PortSocketError::InUse { .. })));
    }

    #[test]
    fn what_is_no_socket_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        fs::write(&path, "data").unwrap();
        assert!(matches!(bind_at(&path), Err(PortSocketError::NotASocket { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"data");
    }

    #[test]
    fn the_file_of_a_successor_survives_its_predecessor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("port");
        let first = bind_at(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let second = bind_at(&path).unwrap();
        drop(first);
        assert!(UnixStream::connect(&path).is_ok());
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn the_file_has_the_permissions_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("port");
        let _ours = bind_at(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o660);
    }

    #[test]
    fn paths_that_cannot_be_bound_are_refused_with_the_reason() {
        let long = PathBuf::from("/tmp").join("x".repeat(200));
        assert!(matches!(bind_at(&long), Err(PortSocketError::Path { .. })));
        assert!(matches!(bind_at(Path::new("/")), Err(PortSocketError::Path { .. })));
        let absent = Path::new("/nonexistent/dir/port");
        assert!(matches!(bind_at(absent), Err(PortSocketError::Io { .. })));
    }

    #[test]
    fn a_directory_lock_that_is_never_released_is_an_error_not_a_hang() {
        let dir = tempfile::tempdir().unwrap();
        let held = File::open(dir.path()).unwrap();
        let _held = Flock::lock(held, FlockArg::LockExclusive).unwrap();
        assert!(matches!(bind_at(&dir.path().join("port")), Err(PortSocketError::Locked { .. })));
    }
}
