//! Where an agent is, written as Kata's tools write it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use kata_agent_protocol::AGENT_PORT;

use crate::devices::AgentChannel;

/// Where an agent listens, as seen from the host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AgentAddress {
    /// A plain stream, `unix:///path`: a serial port's socket, or that of an agent without a VM.
    Unix(PathBuf),
    /// A UNIX socket that leads to all vsock ports of one guest, `hvsock:///path:1024`. One asks it
    /// for a port with a line.
    Hybrid {
        /// The socket.
        socket: PathBuf,
        /// The guest's port.
        port: u32,
    },
    /// A vsock of the host's kernel, `vsock://3:1024`.
    Vsock {
        /// The guest.
        cid: u32,
        /// Its port.
        port: u32,
    },
}

impl fmt::Display for AgentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Hybrid { socket, port } => write!(f, "hvsock://{}:{port}", socket.display()),
            Self::Vsock { cid, port } => write!(f, "vsock://{cid}:{port}"),
        }
    }
}

/// A text that is no address of an agent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no address of an agent; write unix:///path, hvsock:///path:PORT or vsock://CID:PORT"
)]
pub struct AddressError(String);

impl FromStr for AgentAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let absolute = |path: &str| Path::new(path).is_absolute().then(|| PathBuf::from(path));
        let number = |text: &str| {
            // `parse` would take a sign.
            let is_number = text.bytes().all(|b| b.is_ascii_digit());
            is_number.then(|| text.parse().ok()).flatten()
        };
        let parse = || {
            if let Some(path) = text.strip_prefix("unix://") {
                return absolute(path).map(Self::Unix);
            }
            let (rest, port) = text.rsplit_once(':')?;
            let port = number(port)?;
            if let Some(path) = rest.strip_prefix("hvsock://") {
                return Some(Self::Hybrid { socket: absolute(path)?, port });
            }
            Some(Self::Vsock { cid: number(rest.strip_prefix("vsock://")?)?, port })
        };
        parse().ok_or_else(|| AddressError(text.to_owned()))
    }
}

impl AgentChannel {
    /// Where the agent listens behind this channel; `None` for
    /// [`AgentChannel::VhostUserVsock`]: there [`VsockDevice::address`] knows.
    ///
    /// [`VsockDevice::address`]: crate::vsock::VsockDevice::address
    pub fn address(&self) -> Option<AgentAddress> {
        let port = AGENT_PORT;
        match self {
            Self::VhostVsock { cid } => Some(AgentAddress::Vsock { cid: *cid, port }),
            Self::VhostUserVsock { .. } => None,
            Self::Serial { socket } => Some(AgentAddress::Unix(socket.clone())),
            Self::Hybrid { socket, .. } => {
                Some(AgentAddress::Hybrid { socket: socket.clone(), port })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_what_it_writes_and_nothing_else() {
        let good = ["unix:///run/a:b.sock", "hvsock:///run/a:b.sock:1024", "vsock://4294967295:1"];
        for text in good {
            assert_eq!(text.parse::<AgentAddress>().unwrap().to_string(), text);
        }
        let bad = [
            "",
            "unix://relative",
            "hvsock:///run/a",
            "hvsock://a:1024",
            "hvsock:///run/a:+1",
            "vsock://3",
            "vsock://-1:1024",
            "vsock://3:4294967296",
            "tcp://127.0.0.1:1",
        ];
        for text in bad {
            assert_eq!(text.parse::<AgentAddress>(), Err(AddressError(text.to_owned())));
        }
    }
}
