//! The files of one VM on the host: made with it, removed with it.
//!
//! # Bounds
//! Only what is listed here is ever removed: the sockets that the VMM binds, files of ours in the
//! run directory, and the run directory itself if we made it and it is empty.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::spec::CheckedSpec;

/// Why the run directory is not fit for the VM.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// The directory could not be made.
    #[error("Failed to create the run directory {path} of VM '{name}'; make its parent first")]
    Create {
        /// The VM's name.
        name: String,
        /// The directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Somebody listens on a socket that the VMM is to bind.
    #[error(
        "Socket {path} of VM '{name}' is in use by another process; stop it, or choose another path"
    )]
    SocketInUse {
        /// The VM's name.
        name: String,
        /// The socket.
        path: PathBuf,
    },
    /// There is something else at the path of a socket.
    #[error("{path} is to be a socket of VM '{name}', but something else is there; remove it")]
    NotASocket {
        /// The VM's name.
        name: String,
        /// The path.
        path: PathBuf,
    },
    /// The path could not be looked at or cleared.
    #[error("Failed to make way for socket {path} of VM '{name}'")]
    Clear {
        /// The VM's name.
        name: String,
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// Removes a VM's files when dropped. Declare it after the child that uses them: fields are
/// dropped in order of declaration.
#[derive(Debug)]
pub(crate) struct RunDir {
    files: Vec<PathBuf>,
    made: Option<PathBuf>,
}

impl RunDir {
    /// Makes the run directory and clears the way for the VM's sockets. A socket that a dead VMM
    /// left behind is removed; one that is alive is not touched.
    pub fn prepare(spec: CheckedSpec<'_>) -> Result<Self, RunDirError> {
        let name = || spec.name.clone();
        // Declared first: what was made is unmade on an early return.
        let mut this = Self { files: Vec::new(), made: None };
        match DirBuilder::new().mode(0o700).create(&spec.run_dir) {
            Ok(()) => this.made = Some(spec.run_dir.clone()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && spec.run_dir.is_dir() => {
            }
            Err(source) => {
                return Err(RunDirError::Create {
                    name: name(),
                    path: spec.run_dir.clone(),
                    source,
                });
            }
        }
        for socket in spec.bound_sockets() {
            make_way(socket, name)?;
        }
        this.files.extend(spec.bound_sockets().map(Path::to_owned));
        let console = spec.console_file.iter().filter(|file| file.starts_with(&spec.run_dir));
        this.files.extend(console.cloned());
        Ok(this)
    }

    /// A socket of our own in the run directory, for this VM.
    pub fn socket(&mut self, spec: CheckedSpec<'_>, suffix: &str) -> Result<PathBuf, RunDirError> {
        let path = spec.run_dir.join(format!("{}.{suffix}", spec.name));
        make_way(&path, || spec.name.clone())?;
        self.files.push(path.clone());
        Ok(path)
    }

    /// Removes everything; a second call finds nothing.
    pub fn remove(&mut self) {
        for file in self.files.drain(..) {
            warn_unless_gone(&file, fs::remove_file(&file));
        }
        if let Some(dir) = self.made.take() {
            match fs::remove_dir(&dir) {
                // The caller put something there: it is the caller's to remove.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                outcome => warn_unless_gone(&dir, outcome),
            }
        }
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        self.remove();
    }
}

fn warn_unless_gone(path: &Path, outcome: io::Result<()>) {
    match outcome {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "Failed to remove a VM's file");
        }
        _ => {}
    }
}

/// Clears `path` for a socket that is to be bound there: what a dead process left is removed.
pub(crate) fn make_way(path: &Path, name: impl Fn() -> String) -> Result<(), RunDirError> {
    let clear = |source| RunDirError::Clear { name: name(), path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(clear(source)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            Err(RunDirError::NotASocket { name: name(), path: path.to_owned() })
        }
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(clear)
            }
            Err(source) => Err(clear(source)),
            Ok(_) => Err(RunDirError::SocketInUse { name: name(), path: path.to_owned() }),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::spec::VmSpec;

    fn spec(dir: &Path) -> VmSpec {
        let mut spec = VmSpec::new("a", dir.join("run"));
        spec.control_socket = Some(dir.join("ctl.sock"));
        spec
    }

    #[test]
    fn a_socket_left_by_a_dead_process_is_cleared_and_the_directory_goes_with_the_vm() {
        let dir = tempfile::tempdir().unwrap();
        let spec = spec(dir.path());
        drop(UnixListener::bind(dir.path().join("ctl.sock")).unwrap());
        let run = RunDir::prepare(spec.check().unwrap()).unwrap();
        assert!(!dir.path().join("ctl.sock").exists() && dir.path().join("run").is_dir());
        drop(run);
        assert!(!dir.path().join("run").exists());
    }

    #[test]
    fn a_socket_in_use_is_refused_and_untouched() {
        let dir = tempfile::tempdir().unwrap();
        let spec = spec(dir.path());
        let _alive = UnixListener::bind(dir.path().join("ctl.sock")).unwrap();
        let error = RunDir::prepare(spec.check().unwrap()).unwrap_err();
        assert!(matches!(error, RunDirError::SocketInUse { .. }), "{error}");
        assert!(dir.path().join("ctl.sock").exists());
        assert!(!dir.path().join("run").exists(), "what was made is unmade");
    }

    #[test]
    fn a_file_in_the_place_of_a_socket_is_refused_and_untouched() {
        let dir = tempfile::tempdir().unwrap();
        let spec = spec(dir.path());
        fs::write(dir.path().join("ctl.sock"), "mine").unwrap();
        let error = RunDir::prepare(spec.check().unwrap()).unwrap_err();
        assert!(matches!(error, RunDirError::NotASocket { .. }), "{error}");
        assert_eq!(fs::read_to_string(dir.path().join("ctl.sock")).unwrap(), "mine");
    }

    #[test]
    fn a_directory_and_files_of_the_caller_stay() {
        let dir = tempfile::tempdir().unwrap();
        let mut spec = spec(dir.path());
        fs::create_dir(dir.path().join("run")).unwrap();
        fs::write(dir.path().join("run/console"), "").unwrap();
        fs::write(dir.path().join("kept"), "").unwrap();
        spec.console_file = Some(dir.path().join("kept"));
        drop(RunDir::prepare(spec.check().unwrap()).unwrap());
        assert!(dir.path().join("run/console").exists() && dir.path().join("kept").exists());
        spec.console_file = Some(dir.path().join("run/console"));
        drop(RunDir::prepare(spec.check().unwrap()).unwrap());
        assert!(!dir.path().join("run/console").exists(), "a console in the run directory goes");
    }
}
