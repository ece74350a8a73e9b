//! What can go wrong on the front end's side.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::testing::driver::{DeviceFault, TxError};
use crate::testing::memory::MemoryError;

/// What can go wrong between a guest and its switch.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The socket could not be reached, bound or accepted on.
    #[error("vhost-user socket {path}")]
    Socket {
        /// The socket.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Nobody connected in time.
    #[error("nobody connected to {path} within {timeout:?}")]
    NoPeer {
        /// The socket.
        path: PathBuf,
        /// How long we waited.
        timeout: Duration,
    },
    /// A request failed, was refused, or ended the connection.
    #[error("vhost-user request {request} failed")]
    Request {
        /// The request.
        request: &'static str,
        /// The cause.
        source: vhost::Error,
    },
    /// The back end does not offer what this guest cannot be without.
    #[error("the back end offers features {offered:#x}, without {missing:#x}")]
    MissingFeatures {
        /// Feature bits offered.
        offered: u64,
        /// Feature bits needed beyond them.
        missing: u64,
    },
    /// The back end has too few vrings.
    #[error("the back end has {offered} vrings, {wanted} are wanted")]
    TooFewVrings {
        /// Vrings the back end has.
        offered: u64,
        /// Vrings wanted.
        wanted: u64,
    },
    /// There is no connection.
    #[error("the guest is not connected")]
    Detached,
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Sending.
    #[error(transparent)]
    Tx(#[from] TxError),
    /// The device misbehaved.
    #[error(transparent)]
    Device(#[from] DeviceFault),
}

/// Names the request that failed.
pub(super) trait Named<T> {
    fn named(self, request: &'static str) -> Result<T, GuestError>;
}

impl<T> Named<T> for vhost::Result<T> {
    fn named(self, request: &'static str) -> Result<T, GuestError> {
        self.map_err(|source| GuestError::Request { request, source })
    }
}
