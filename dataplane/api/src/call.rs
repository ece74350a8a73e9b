//! What is alike in every call of the API, whoever makes it: paths, refusals, and how a call fails.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{ApiError, ErrorCode, ErrorReply};

/// The longest reply that is read, in bytes: a list of [`crate::MAX_FDB_LIST`] entries fits.
pub const MAX_REPLY_BYTES: usize = 64 << 20;

/// How long a call may take where nobody says.
pub(crate) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The switch understood and refused.
    #[error("{0}")]
    Refused(ApiError),
    /// There is no such socket.
    #[error("There is no socket at {}: is slipwayd running, and with this `socket` under [api]?", .0.display())]
    NoSocket(PathBuf),
    /// The socket's file is there, but nobody listens.
    #[error("Nobody listens on {}: is slipwayd running?", .0.display())]
    NoListener(PathBuf),
    /// The socket may not be opened by this user.
    #[error("This user may not open {}: run as root or as slipwayd's user, or join the `group` set under [api]", .0.display())]
    NoAccess(PathBuf),
    /// The socket cannot be opened for another reason.
    #[error("Failed to connect to {}", .socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The switch did not answer in time.
    #[error("slipwayd did not answer {path} within {} s", .after.as_secs_f32())]
    Timeout {
        /// What was asked.
        path: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// The connection broke before the reply was complete.
    #[error("The connection broke while slipwayd answered {path}")]
    Broken {
        /// What was asked.
        path: String,
        /// How it broke.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The reply is not what this version of the API promises.
    #[error(
        "The answer to {path} is not understood (HTTP {status}): is slipwayd of another version?"
    )]
    NotUnderstood {
        /// What was asked.
        path: String,
        /// The HTTP status of the reply.
        status: u16,
        /// What is wrong with it.
        source: Option<serde_json::Error>,
    },
}

impl ClientError {
    /// The switch's refusal, if it was one.
    #[must_use]
    pub const fn refusal(&self) -> Option<&ApiError> {
        match self {
            Self::Refused(error) => Some(error),
            _ => None,
        }
    }
    /// Why `socket` cannot be connected to.
    pub(crate) fn unreachable(socket: &Path, source: io::Error) -> Self {
        let socket = socket.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => Self::NoSocket(socket),
            io::ErrorKind::ConnectionRefused => Self::NoListener(socket),
            io::ErrorKind::PermissionDenied => Self::NoAccess(socket),
            _ => Self::Connect { socket, source },
        }
    }

    /// The connection broke under the call of `path`.
    pub(crate) fn broken(
        path: &str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Broken { path: path.to_owned(), source: source.into() }
    }

    /// What a reply with a status that is no success says.
    pub(crate) fn refused(path: &str, status: u16, body: &[u8]) -> Self {
        match serde_json::from_slice(body) {
            Ok(ErrorReply { error }) => Self::Refused(error),
            Err(source) => Self::not_understood(path, status, Some(source)),
        }
    }

    /// The reply is not what was promised.
    pub(crate) fn not_understood(
        path: &str,
        status: u16,
        source: Option<serde_json::Error>,
    ) -> Self {
        Self::NotUnderstood { path: path.to_owned(), status, source }
    }

    /// The request cannot be written: a path that is not UTF-8 is the only value of the API's types
    /// that JSON cannot carry.
    pub(crate) fn no_json(source: &serde_json::Error) -> Self {
        Self::Refused(ApiError::new(
            ErrorCode::InvalidValue,
            format!("The request cannot be written as JSON: {source}"),
            "Use paths in UTF-8",
        ))
    }
}

/// Percent-encodes what is not unreserved in a URL (RFC 3986, section 2.3).
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

/// Where the attachment of `interface` of `owner` is.
pub(crate) fn attachment_path(owner: &str, interface: &str) -> String {
    format!("/v1/attachments/{}/{}", escape(owner), escape(interface))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_so_that_none_can_change_the_route() {
        assert_eq!(escape("vm-1.a_b"), "vm-1.a_b");
        assert_eq!(escape("../x?y=ü"), "..%2Fx%3Fy%3D%C3%BC");
    }
}
