//! The VMM as the socket's server.

use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Guest, GuestError, Result};
use crate::testing::config::GuestConfig;
use crate::testing::driver::Deadline;

/// A VMM that is the socket's server: it listens, the switch connects.
#[derive(Debug)]
pub struct GuestListener {
    listener: UnixListener,
    path: PathBuf,
}

impl GuestListener {
    /// Listens on a new socket at `path`.
    ///
    /// # Errors
    /// [`GuestError::Socket`].
    pub fn bind(path: &Path) -> Result<Self> {
        let listener = UnixListener::bind(path)
            .map_err(|source| GuestError::Socket { path: path.into(), source })?;
        Ok(Self { listener, path: path.into() })
    }

    /// Waits for the switch to connect.
    ///
    /// # Errors
    /// [`GuestError::NoPeer`] after `timeout`; [`GuestError::Socket`].
    pub fn accept_stream(&self, timeout: Duration) -> Result<UnixStream> {
        let socket = |source| GuestError::Socket { path: self.path.clone(), source };
        let deadline = Deadline::after(timeout);
        loop {
            let mut fds = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
            let left = PollTimeout::try_from(deadline.left_ms()).unwrap_or(PollTimeout::MAX);
            match poll(&mut fds, left) {
                Ok(0) if deadline.passed() => {
                    return Err(GuestError::NoPeer { path: self.path.clone(), timeout });
                }
                Ok(0) | Err(nix::errno::Errno::EINTR) => {}
                Ok(_) => break,
                Err(errno) => return Err(socket(errno.into())),
            }
        }
        self.listener.accept().map(|(stream, _)| stream).map_err(socket)
    }

    /// Waits for the switch to connect and sets the guest up.
    ///
    /// # Errors
    /// As [`Self::accept_stream`] and [`Guest::over`].
    pub fn accept(&self, config: GuestConfig, timeout: Duration) -> Result<Guest> {
        Guest::over(self.accept_stream(timeout)?, config)
    }
}
