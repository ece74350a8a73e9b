//! What the programs beside a VMM have in common: they are found, started, awaited until they serve
//! their socket, and end with us.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::exit::ExitReport;
use crate::process::{Child, ProcessError, Stuck};
use crate::rundir::RunDirError;

/// How long a helper may take until it serves its socket, on a busy machine.
pub(crate) const READY_LIMIT: Duration = Duration::from_secs(10);

/// Why a helper of a VM does not serve.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// The program is nowhere to be found.
    #[error("Found no {program} in {places}; {remedy}")]
    NotFound {
        /// The program's name.
        program: &'static str,
        /// Where it was looked for.
        places: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The program does not say which one it is.
    #[error("Failed to run '{program} --version'; {remedy}")]
    Program {
        /// The program.
        program: PathBuf,
        /// What to do.
        remedy: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// An option that this program does not have.
    #[error("'{name}': {what} is not possible with {program}; {remedy}")]
    Unsupported {
        /// What people call the helper.
        name: String,
        /// What was asked for.
        what: String,
        /// The program.
        program: PathBuf,
        /// What to do instead.
        remedy: &'static str,
    },
    /// There is no way for its socket.
    #[error(transparent)]
    Way(#[from] RunDirError),
    /// Its socket could not be bound.
    #[error("'{name}': failed to listen on {path}")]
    Bind {
        /// What people call the helper.
        name: String,
        /// The socket.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The process was not started.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// It ended before it served.
    #[error("The helper {0}")]
    Died(Box<ExitReport>),
    /// It did not serve in time, and was killed.
    #[error("'{name}' (pid {pid}) did not serve {socket} within {limit:?}\n{stderr_tail}")]
    NotReady {
        /// What people call the helper.
        name: String,
        /// The killed process.
        pid: u32,
        /// The socket.
        socket: PathBuf,
        /// The limit.
        limit: Duration,
        /// The last lines of its standard error.
        stderr_tail: String,
    },
    /// It was killed, and does not end.
    #[error(transparent)]
    Stuck(#[from] Stuck),
}

/// The program `name` in PATH, or else the first of `others` that can be run.
pub(crate) fn find(name: &str, others: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).filter(|dir| dir.is_absolute());
    let candidates = in_path.map(|dir| dir.join(name)).chain(others.iter().map(PathBuf::from));
    candidates.into_iter().find(|file| is_program(file))
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

/// Waits until `child` is `ready`, which may never happen; the child is gone after a failure.
pub(crate) async fn await_ready(
    name: &str,
    child: &Child,
    socket: &Path,
    ready: impl Future<Output = ()>,
) -> Result<(), HelperError> {
    let failure = tokio::select! {
        // Both: it printed its line and died.
        biased;
        report = child.wait() => return Err(HelperError::Died(Box::new(report))),
        outcome = tokio::time::timeout(READY_LIMIT, ready) => match outcome {
            Ok(()) => return Ok(()),
            Err(_) => HelperError::NotReady {
                name: name.to_owned(),
                pid: child.pid(),
                socket: socket.to_owned(),
                limit: READY_LIMIT,
                stderr_tail: child.stderr_tail(),
            },
        },
    };
    child.end().await?;
    Err(failure)
}

/// Removes sockets when dropped. Declare it after the child that uses them.
#[derive(Debug)]
pub(crate) struct Sockets(pub Vec<PathBuf>);

impl Sockets {
    pub fn remove(&self) {
        for path in &self.0 {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "Failed to remove a socket");
                }
                _ => {}
            }
        }
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        self.remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_run_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (text, program) = (dir.path().join("text"), dir.path().join("program"));
        std::fs::write(&text, "").unwrap();
        std::fs::write(&program, "").unwrap();
        std::fs::set_permissions(&text, PermissionsExt::from_mode(0o644)).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        let places = [&text, &program].map(|path| path.to_str().unwrap());
        assert_eq!(find("no-such-program", &places).as_ref(), Some(&program));
        assert_eq!(find("no-such-program", &places[..1]), None);
        assert!(find("sh", &[]).is_some(), "in PATH");
    }
}
