//! One try to reach the agent: a connection, and for a hybrid vsock the line that asks for the port.

use std::io;
use std::path::Path;
use std::time::Duration;

use kata_agent_protocol::ttrpc::r#async::transport::Socket;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_vsock::{VsockAddr, VsockStream};

use super::AgentAddress;

/// `OK ` and a port number of 32 bits.
const MAX_ANSWER_BYTES: usize = 32;
/// The VMM answers when the guest has; a guest whose kernel does not answer is tried anew.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// A stream that may lead to the agent: that it serves shows with the first call.
pub(super) async fn dial(address: &AgentAddress) -> io::Result<Socket> {
    match address {
        AgentAddress::Unix(path) => Ok(Socket::new(UnixStream::connect(path).await?)),
        AgentAddress::Hybrid { socket, port } => {
            let asked = tokio::time::timeout(ANSWER_LIMIT, ask_for_port(socket, *port)).await;
            Ok(Socket::new(asked.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??))
        }
        AgentAddress::Vsock { cid, port } => {
            Ok(Socket::new(VsockStream::connect(VsockAddr::new(*cid, *port)).await?))
        }
    }
}

/// The host's half of a hybrid vsock: `CONNECT 1024`, answered by `OK` and a number that is of no
/// interest, or by the end of the connection if nobody listens there.
async fn ask_for_port(socket: &Path, port: u32) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    let mut answer = Vec::with_capacity(MAX_ANSWER_BYTES);
    // Byte by byte: what follows the line is the agent's.
    loop {
        match stream.read_u8().await {
            Ok(b'\n') => break,
            Ok(byte) if answer.len() < MAX_ANSWER_BYTES => answer.push(byte),
            Ok(_) => return Err(not_a_vsock(&answer)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let text = format!("nobody listens on port {port} in the guest yet");
                return Err(io::Error::new(io::ErrorKind::ConnectionRefused, text));
            }
            Err(error) => return Err(error),
        }
    }
    if answer.starts_with(b"OK ") { Ok(stream) } else { Err(not_a_vsock(&answer)) }
}

fn not_a_vsock(answer: &[u8]) -> io::Error {
    let text = format!("'{}' is no answer to CONNECT", answer.escape_ascii());
    io::Error::new(io::ErrorKind::InvalidData, text)
}
