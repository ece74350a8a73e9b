//! The API's socket file: taken by one daemon at a time, never open to more than it should be.
//!
//! ```text
//! <socket>.lock   flock held while we serve; who holds it owns the name <socket>
//! <socket>        bound, mode set, only then listening: nobody connects before the mode is right
//! ```
//! Two daemons cannot replace each other's socket, because only the holder of the lock touches it; a
//! file left by a killed daemon is recognised by the free lock and a refused connection. What is not
//! a socket is never removed.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::AsRawFd,
        unix::{
            fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg, OFlag},
    sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket},
    unistd::{Gid, Group},
};
use slipway_api::MAX_SOCKET_PATH_BYTES;

/// Only root and our own user.
const MODE_PRIVATE: u32 = 0o600;
/// And the members of the configured group.
const MODE_GROUP: u32 = 0o660;
/// The folder, when we make it: entered by the group, changed only by us.
const MODE_FOLDER: u32 = 0o750;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Why the API's socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another daemon holds the lock.
    #[error(
        "Another slipwayd{} already serves {}: stop it, or give this one another `socket` under [api]",
        .pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(), .socket.display()
    )]
    Held {
        /// The socket both want.
        socket: PathBuf,
        /// The holder, if the lock file tells.
        pid: Option<u32>,
    },
    /// A program that does not take part in the locking listens there.
    #[error("Another program listens on {}: stop it, or choose another `socket` under [api]", .0.display())]
    Listening(PathBuf),
    /// The path is taken by something that is not a socket.
    #[error("{} exists and is not a socket: move it away, or choose another `socket` under [api]", .0.display())]
    NotASocket(PathBuf),
    /// The path does not fit into a socket address.
    #[error("The socket path {} has {} bytes, at most 107 fit: choose a shorter one", .0.display(), .0.as_os_str().len())]
    TooLong(PathBuf),
    /// Anyone could replace the socket.
    #[error("Everyone may write to {}: choose a folder of your own for the socket, or take the right away", .0.display())]
    OpenFolder(PathBuf),
    /// The group is not in the user database.
    #[error(
        "There is no group `{0}` for the API's socket: create it, or change `group` under [api]"
    )]
    NoGroup(String),
    /// The system refused a step.
    #[error("Failed to {step} {}", .path.display())]
    System {
        /// What was tried.
        step: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The group that `name` means: a name of the user database, or a number.
///
/// # Errors
/// [`SocketError::NoGroup`].
pub fn find_group(name: &str) -> Result<Gid, SocketError> {
    if let Ok(Some(group)) = Group::from_name(name) {
        return Ok(group.gid);
    }
    name.parse().map(Gid::from_raw).map_err(|_| SocketError::NoGroup(name.to_owned()))
}

/// A listening socket and the lock on its name. Dropping it removes both files, if they are still
/// ours.
#[derive(Debug)]
pub struct ApiSocket {
    listener: UnixListener,
    // Dropped in this order: the name goes before the lock that guards it.
    _name: OwnName,
    _lock: NameLock,
}

impl ApiSocket {
    /// Takes the name, replaces what a dead daemon left there, and listens.
    ///
    /// Mode 0600, or 0660 with `group`; a missing parent folder is made with mode 0750.
    ///
    /// # Errors
    /// Each [`SocketError`] but `NoGroup`; nothing of another program is touched then.
    pub fn bind(path: &Path, group: Option<Gid>) -> Result<Self, SocketError> {
        if path.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
            return Err(SocketError::TooLong(path.to_owned()));
        }
        prepare_folder(path.parent().unwrap_or(Path::new("/")), group)?;
        let lock = NameLock::take(path)?;
        remove_stale(path)?;
        let (listener, name) = listen_at(path, group)?;
        Ok(Self { listener, _name: name, _lock: lock })
    }

    /// The non-blocking listener.
    #[must_use]
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

fn system<'a>(step: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> SocketError + 'a {
    move |source| SocketError::System { step, path: path.to_owned(), source }
}

/// Makes the folder if it is missing; refuses one in which anybody could swap the socket.
fn prepare_folder(folder: &Path, group: Option<Gid>) -> Result<(), SocketError> {
    match DirBuilder::new().mode(MODE_FOLDER).create(folder) {
        Ok(()) => {
            chown(folder, None, group.map(Gid::as_raw)).map_err(system("give the group", folder))
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            const WRITABLE_BY_ALL: u32 = 0o002;
            const STICKY: u32 = 0o1000;
            let mode = fs::metadata(folder).map_err(system("look at", folder))?.mode();
            if mode & WRITABLE_BY_ALL != 0 && mode & STICKY == 0 {
                return Err(SocketError::OpenFolder(folder.to_owned()));
            }
            Ok(())
        }
        Err(source) => Err(system("create the folder", folder)(source)),
    }
}

/// The lock file, locked; removed on drop.
#[derive(Debug)]
struct NameLock {
    path: PathBuf,
    file: Flock<File>,
}

impl NameLock {
    fn take(socket: &Path) -> Result<Self, SocketError> {
        let mut path = socket.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(MODE_PRIVATE)
                .custom_flags(OFlag::O_NOFOLLOW.bits())
                .open(&path)
                .map_err(system("open the lock", &path))?;
            let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((mut file, Errno::EWOULDBLOCK)) => {
                    return Err(SocketError::Held {
                        socket: socket.to_owned(),
                        pid: read_pid(&mut file),
                    });
                }
                Err((_, errno)) => return Err(system("lock", &path)(errno.into())),
            };
            // The last holder removes the file while it holds the lock, so what we locked may have
            // no name any more; then another daemon can lock the file that has.
            if is_same_file(&file, &path) {
                // Only a help to people: the lock does not depend on it.
                file.set_len(0)
                    .and_then(|()| writeln!(file, "{}", std::process::id()))
                    .map_err(system("write", &path))?;
                return Ok(Self { path, file });
            }
        }
    }
}

impl Drop for NameLock {
    fn drop(&mut self) {
        if is_same_file(&self.file, &self.path) {
            // Nothing depends on it: a lock file that stays is locked again by the next daemon.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn is_same_file(file: &File, path: &Path) -> bool {
    let (Ok(ours), Ok(named)) = (file.metadata(), fs::symlink_metadata(path)) else { return false };
    (ours.dev(), ours.ino()) == (named.dev(), named.ino())
}

/// Removes the socket of a dead daemon. The caller holds the lock.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(system("look at", path)(source)),
    };
    if !kind.is_socket() {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(system("remove the stale socket", path))
        }
        Ok(_) => Err(SocketError::Listening(path.to_owned())),
        Err(source) => Err(system("look who listens on", path)(source)),
    }
}

/// The socket's file, known by device and inode.
#[derive(Debug)]
struct OwnName {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for OwnName {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|named| (named.dev(), named.ino()) == (self.device, self.inode));
        if is_ours {
            // A socket that stays is recognised as stale by the next daemon.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn listen_at(path: &Path, group: Option<Gid>) -> Result<(UnixListener, OwnName), SocketError> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .map_err(|errno| system("create the socket", path)(errno.into()))?;
    let address = UnixAddr::new(path).map_err(|_| SocketError::TooLong(path.to_owned()))?;
    bind(socket.as_raw_fd(), &address)
        .map_err(|errno| system("bind the socket", path)(errno.into()))?;
    let metadata = fs::symlink_metadata(path).map_err(system("look at", path))?;
    let name = OwnName { path: path.to_owned(), device: metadata.dev(), inode: metadata.ino() };
    // Between bind and listen every connection is refused, so the mode is right before it matters.
    if let Some(group) = group {
        chown(path, None, Some(group.as_raw())).map_err(system("give the group", path))?;
    }
    let mode = if group.is_some() { MODE_GROUP } else { MODE_PRIVATE };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(system("set the mode of", path))?;
    let backlog = Backlog::new(BACKLOG).unwrap_or(Backlog::MAXCONN);
    listen(&socket, backlog).map_err(|errno| system("listen on", path)(errno.into()))?;
    Ok((socket.into(), name))
}

#[cfg(test)]
mod tests {
    use nix::unistd::getegid;

    use super::*;

    fn mode_of(path: &Path) -> u32 {
        fs::metadata(path).expect("exists").mode() & 0o7777
    }

    #[test]
    fn the_socket_is_private_and_its_missing_folder_is_made() {
        let root = tempfile::tempdir().expect("tempdir");
        let path = root.path().join("slipway/api.sock");
        let _socket = ApiSocket::bind(&path, None).expect("binds");
        assert_eq!(mode_of(&path), 0o600);
        assert_eq!(mode_of(path.parent().expect("parent")) & !0o750, 0);
        UnixStream::connect(&path).expect("connects");
    }

    #[test]
    fn a_group_gets_the_socket_too() {
        let root = tempfile::tempdir().expect("tempdir");
        let path = root.path().join("api.sock");
        let _socket = ApiSocket::bind(&path, Some(getegid())).expect("binds");
        assert_eq!(mode_of(&path), 0o660);
        assert_eq!(fs::metadata(&path).expect("exists").gid(), getegid().as_raw());
    }

    #[test]
    fn dropping_it_leaves_nothing_behind() {
        let root = tempfile::tempdir().expect("tempdir");
        let path = root.path().join("api.sock");
        drop(ApiSocket::bind(&path, None).expect("binds"));
        assert_eq!(fs::read_dir(root.path()).expect("lists").count(), 0);
    }

    #[test]
    fn a_second_daemon_is_refused_and_told_who_holds_the_name() {
        let root = tempfile::tempdir().expect("tempdir");
        let path = root.path().join("api.sock");
        let _first = ApiSocket::bind(&path, None).expect("binds");
        match ApiSocket::bind(&path, None).expect_err("held") {
            SocketError::Held { pid, .. } => assert_eq!(pid, Some(std::process::id())),
            other => panic!("{other:?}"),
        }
        UnixStream::connect(&path).expect("the first one still listens");
    }

    #[test]
    fn what_a_killed_daemon_left_is_replaced() {
        let root = tempfile::tempdir().expect("tempdir");
        let path = root.path().join("api.sock");
        drop(UnixListener::bind(&path).expect("binds"));
        fs::write(root.path().join("api.sock.lock"), "4242\n").expect("writes");
        let _socket = ApiSocket::bind(&path, None).expect("replaces");
        UnixStream::connect(&path).expect("connects");
    }

    #[test]
    fn a_program_that_listens_there_keeps_its_socket() {
        let root = tempfile::tempdir().expect("tempdir");
        let path = root.path().join("api.sock");
        let _other = UnixListener::bind(&path).expect("binds");
        let error = ApiSocket::bind(&path, None).expect_err("taken");
        assert!(matches!(error, SocketError::Listening(_)), "{error:?}");
        UnixStream::connect(&path).expect("it still listens");
    }

    #[test]
    fn a_file_that_is_no_socket_is_never_removed() {
        let root = tempfile::tempdir().expect("tempdir");
        let path = root.path().join("api.sock");
        fs::write(&path, "precious").expect("writes");
        let error = ApiSocket::bind(&path, None).expect_err("not a socket");
        assert!(matches!(error, SocketError::NotASocket(_)), "{error:?}");
        assert_eq!(fs::read_to_string(&path).expect("reads"), "precious");
    }

    #[test]
    fn a_socket_that_took_our_name_is_not_removed() {
        let root = tempfile::tempdir().expect("tempdir");
        let path = root.path().join("api.sock");
        let ours = ApiSocket::bind(&path, None).expect("binds");
        fs::rename(&path, root.path().join("moved")).expect("renames");
        let _usurper = UnixListener::bind(&path).expect("binds");
        drop(ours);
        UnixStream::connect(&path).expect("the usurper is untouched");
    }

    #[test]
    fn a_folder_that_everyone_may_write_is_refused_unless_it_is_sticky() {
        let root = tempfile::tempdir().expect("tempdir");
        let set = |mode| {
            fs::set_permissions(root.path(), fs::Permissions::from_mode(mode)).expect("chmod");
        };
        set(0o777);
        let error = ApiSocket::bind(&root.path().join("a.sock"), None).expect_err("open");
        assert!(matches!(error, SocketError::OpenFolder(_)), "{error:?}");
        set(0o1777);
        ApiSocket::bind(&root.path().join("a.sock"), None).expect("binds");
    }

    #[test]
    fn a_path_that_does_not_fit_is_refused_by_its_length() {
        let error = ApiSocket::bind(Path::new(&format!("/{}", "x".repeat(107))), None);
        assert!(matches!(error, Err(SocketError::TooLong(_))));
    }

    #[test]
    fn a_group_is_found_by_name_and_by_number() {
        assert_eq!(find_group("root").expect("exists"), Gid::from_raw(0));
        assert_eq!(find_group("4242").expect("a number"), Gid::from_raw(4242));
        assert!(matches!(find_group("no such group"), Err(SocketError::NoGroup(_))));
    }
}
