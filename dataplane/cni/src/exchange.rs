//! One exchange with slipwayd: a request of HTTP/1.0, whose reply is never in chunks and whose connection is the
//! server's to close (RFC 1945).

use alloc::{format, vec::Vec};
use core::time::Duration;

use rustix::{
    fd::{AsFd, OwnedFd},
    io::{Errno, read, retry_on_intr},
    net::{
        AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, send,
        socket_with, sockopt,
    },
};

use crate::{Code, MAX_ANSWER_BYTES, ROUTE, TIMEOUT_S, error::CniError};

/// What is read at once, in bytes: an answer mostly fits in.
const ROOM: usize = 4096;

/// Status and body.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    pub body: Vec<u8>,
}

/// Sends `body` to the slipwayd that listens on `socket`, and returns what it answers.
pub fn exchange(socket: &str, body: &[u8]) -> Result<Reply, CniError> {
    let stream = open(socket)?;
    let length = body.len();
    let mut request = format!(
        "POST {ROUTE} HTTP/1.0\r\nhost: localhost\r\ncontent-type: application/octet-stream\r\n\
         content-length: {length}\r\n\r\n"
    )
    .into_bytes();
    request.extend_from_slice(body);
    // A server that refused without reading on has said why.
    let sent = send_all(&stream, &request);
    let mut text = Vec::new();
    let mut expected = None;
    loop {
        let got = text.len();
        text.resize(got + ROOM, 0);
        let more = retry_on_intr(|| read(&stream, &mut text[got..])).map_err(broken)?;
        text.truncate(got + more);
        expected = expected.or_else(|| expected_length(&text));
        if more == 0 || expected.is_some_and(|length| text.len() >= length) {
            break;
        }
        if text.len() > MAX_ANSWER_BYTES {
            return Err(not_understood("it is too long"));
        }
    }
    if text.is_empty() {
        sent.map_err(broken)?;
    }
    match parse(&text) {
        Some(reply) if expected.is_none_or(|length| text.len() >= length) => Ok(reply),
        _ => Err(not_understood("it is no whole HTTP reply")),
    }
}

/// Waits for a place in the queue of a server that is busy, but not for ever: that is why the socket has its
/// limits before it is connected.
fn open(path: &str) -> Result<OwnedFd, CniError> {
    let limit = Some(Duration::from_secs(TIMEOUT_S));
    let attempt = || -> Result<OwnedFd, Errno> {
        let family = AddressFamily::UNIX;
        let stream = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        for which in [sockopt::Timeout::Send, sockopt::Timeout::Recv] {
            sockopt::set_socket_timeout(&stream, which, limit)?;
        }
        let address = SocketAddrUnix::new(path)?;
        retry_on_intr(|| connect(&stream, &address))?;
        Ok(stream)
    };
    attempt().map_err(|errno| {
        let (code, message) = match errno {
            Errno::NOENT => (
                Code::TryAgainLater,
                format!(
                    "There is no socket at {path}: is slipwayd running, and with this `socket` under [api]?"
                ),
            ),
            Errno::CONNREFUSED => (
                Code::TryAgainLater,
                format!("Nobody listens on {path}: is slipwayd running?"),
            ),
            Errno::AGAIN => return late(),
            Errno::ACCESS | Errno::PERM => {
                let message = format!("This user may not open {path}: run as root");
                return CniError::new(Code::Io, message, "CNI plugins are run by root");
            }
            other => {
                let message = format!("Failed to connect to {path}: {other}");
                return CniError::new(Code::Io, message, "See `socket` of the configuration");
            }
        };
        CniError::new(code, message, "Start slipwayd, or wait until it is back")
    })
}

fn send_all(stream: impl AsFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        let sent = retry_on_intr(|| send(&stream, bytes, SendFlags::NOSIGNAL))?;
        bytes = &bytes[sent..];
    }
    Ok(())
}

fn late() -> CniError {
    let message = format!("slipwayd did not answer within {TIMEOUT_S} s");
    CniError::new(Code::TryAgainLater, message, "Look at slipwayd's log, or wait")
}

fn broken(errno: Errno) -> CniError {
    if errno == Errno::AGAIN {
        return late();
    }
    let message = format!("The connection broke while slipwayd answered: {errno}");
    CniError::new(Code::TryAgainLater, message, "Start slipwayd, or wait until it is back")
}

/// The answer is not what slipwayd gives.
pub fn not_understood(why: &str) -> CniError {
    let message = format!("slipwayd's answer is not understood: {why}");
    CniError::new(
        Code::Refused,
        message,
        "Install slipway-cni and slipwayd of one release, and restart slipwayd",
    )
}

fn split_head(text: &[u8]) -> Option<(&str, &[u8])> {
    let end = text.windows(4).position(|window| window == b"\r\n\r\n")?;
    Some((core::str::from_utf8(&text[..end]).ok()?, &text[end + 4..]))
}

/// How long the whole reply is, as soon as its head is there and says so.
fn expected_length(text: &[u8]) -> Option<usize> {
    let (head, body) = split_head(text)?;
    let mut fields = head.lines().filter_map(|line| line.split_once(':'));
    let (_, length) = fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length"))?;
    Some((text.len() - body.len()).saturating_add(length.trim().parse().ok()?))
}

fn parse(text: &[u8]) -> Option<Reply> {
    let (head, body) = split_head(text)?;
    let mut words = head.lines().next()?.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    let status = words.next()?.parse().ok()?;
    Some(Reply { status, body: body.to_vec() })
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{
        io::{Read as _, Write as _},
        os::unix::net::UnixListener,
        string::ToString as _,
        thread, vec,
    };

    use super::*;

    /// What comes of a server that reads a request and says `said`.
    fn answered(said: &'static [u8]) -> Result<Reply, CniError> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).expect("a socket");
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a call");
            let mut request = vec![0; 4096];
            let got = stream.read(&mut request).expect("a request");
            request.truncate(got);
            for part in said.chunks(7) {
                stream.write_all(part).expect("the caller reads");
            }
            request
        });
        let outcome = exchange(path.to_str().expect("UTF-8"), b"A=1\0\0{}");
        let request = server.join().expect("the server ends");
        let (head, body) = split_head(&request).expect("a whole head");
        assert!(head.starts_with("POST /v1/cni HTTP/1.0\r\n"), "{head}");
        assert!(head.contains("content-length: 7"), "{head}");
        assert_eq!(body, b"A=1\0\0{}");
        outcome
    }

    #[test]
    fn a_reply_is_read_to_its_end_in_whatever_parts_it_comes() {
        let expected = Reply { status: 200, body: b"{\"a\":1}".to_vec() };
        let with_length = b"HTTP/1.0 200 OK\r\nContent-Length: 7\r\n\r\n{\"a\":1}";
        assert_eq!(answered(with_length), Ok(expected));
        let until_end = b"HTTP/1.0 422 X\r\n\r\nrest";
        assert_eq!(answered(until_end), Ok(Reply { status: 422, body: b"rest".to_vec() }));
    }

    #[test]
    fn what_is_no_whole_reply_is_refused() {
        for said in [
            &b""[..],
            b"HTTP/1.0 200 OK\r\n",
            b"HTTP/1.0 200 OK\r\ncontent-length: 8\r\n\r\nshort",
            b"HTTP/1.0 200 OK\r\ncontent-length: 18446744073709551615\r\n\r\nshort",
            b"SSH-2.0\r\n\r\n",
            b"HTTP/1.0 \xff\r\n\r\n",
        ] {
            let error = answered(said).expect_err("refused");
            assert_eq!(error.code, Code::Refused, "{error:?}");
        }
    }

    #[test]
    fn a_socket_that_cannot_be_connected_to_is_named_with_its_reason() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name).to_string_lossy().to_string();
        let failure = |socket: &str| exchange(socket, b"").expect_err(socket);
        let none = failure(&path("none"));
        assert_eq!(none.code, Code::TryAgainLater);
        assert!(none.message.contains("none") && none.message.contains("is slipwayd running"));
        drop(UnixListener::bind(path("left")).expect("a socket"));
        assert_eq!(failure(&path("left")).code, Code::TryAgainLater);
        assert_eq!(failure(&"x".repeat(200)).code, Code::Io);
        assert_eq!(failure(&path("none/none")).code, Code::TryAgainLater);
    }
}
