//! The calls that the CNI plugin makes, without an async runtime.
//!
//! A container engine starts the plugin for every pod, so what the plugin takes is paid by each of them:
//! here it is a socket, one write and one or two reads. Everything else uses [`crate::client`].
//!
//! # How it works
//! A request of HTTP/1.0, whose reply is never in chunks and whose connection is the server's to close
//! (RFC 1945). Its length comes with the reply, or is what there is until the connection ends.
//!
//! # Bounds
//! A call waits at most [`Client::with_timeout`]'s time for a place in the socket's queue, and as long for
//! the reply, all of it; a reply has at most [`MAX_REPLY_BYTES`].

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    os::{fd::AsRawFd as _, unix::net::UnixStream},
    path::PathBuf,
    time::{Duration, Instant},
};

use nix::sys::{
    socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt},
    time::TimeVal,
};
use serde::de::DeserializeOwned;

use crate::{
    Attachment, AttachmentList, AttachmentSpec, Created, Health, NetworkList,
    call::{DEFAULT_TIMEOUT, attachment_path},
};

pub use crate::call::{ClientError, MAX_REPLY_BYTES};

type Result<T> = std::result::Result<T, ClientError>;

/// HTTP's status of a thing that was made.
const CREATED: u16 = 201;
/// The one of a switch that is not well.
const SERVICE_UNAVAILABLE: u16 = 503;
/// What a reply mostly fits into, in bytes.
const ROOM: usize = 4096;

/// Talks to one slipwayd, a call at a time.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    timeout: Duration,
}

/// Status and body.
#[derive(Debug, PartialEq, Eq)]
struct Reply {
    status: u16,
    body: Vec<u8>,
}

impl Client {
    /// The daemon that listens on `socket`; nothing is opened yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), timeout: DEFAULT_TIMEOUT }
    }

    /// Lets one call wait as long as `timeout`; 10 s otherwise.
    #[must_use]
    pub const fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Attaches interface `interface` of sandbox `owner`, or finds it attached with the same settings.
    ///
    /// # Errors
    /// As every call: [`ClientError::Refused`] with the switch's own words, or why it could not be
    /// asked.
    pub fn attach(
        &self,
        owner: &str,
        interface: &str,
        spec: &AttachmentSpec,
    ) -> Result<(Attachment, Created)> {
        let path = attachment_path(owner, interface);
        let body = serde_json::to_vec(spec).map_err(|source| ClientError::no_json(&source))?;
        let reply = self.exchange("PUT", &path, Some(&body))?;
        let is_new = reply.status == CREATED;
        Ok((read(&path, &reply, None)?, if is_new { Created::New } else { Created::Existing }))
    }

    /// One attachment.
    ///
    /// # Errors
    /// See [`Client::attach`].
    pub fn get_attachment(&self, owner: &str, interface: &str) -> Result<Attachment> {
        self.get(&attachment_path(owner, interface), None)
    }

    /// All attachments, in the order in which they were made.
    ///
    /// # Errors
    /// See [`Client::attach`].
    pub fn list_attachments(&self) -> Result<AttachmentList> {
        self.get("/v1/attachments", None)
    }

    /// Gives back address and port of an attachment. One that is not there is no error.
    ///
    /// # Errors
    /// See [`Client::attach`].
    pub fn detach(&self, owner: &str, interface: &str) -> Result<()> {
        let path = attachment_path(owner, interface);
        let Reply { status, body } = self.exchange("DELETE", &path, None)?;
        if is_success(status) { Ok(()) } else { Err(ClientError::refused(&path, status, &body)) }
    }

    /// The networks that attachments may join.
    ///
    /// # Errors
    /// See [`Client::attach`].
    pub fn list_networks(&self) -> Result<NetworkList> {
        self.get("/v1/networks", None)
    }

    /// Whether the switch does its work; a degraded one is an answer, not an error.
    ///
    /// # Errors
    /// See [`Client::attach`].
    pub fn health(&self) -> Result<Health> {
        self.get("/v1/health", Some(SERVICE_UNAVAILABLE))
    }

    fn get<T: DeserializeOwned>(&self, path: &str, also: Option<u16>) -> Result<T> {
        read(path, &self.exchange("GET", path, None)?, also)
    }

    fn exchange(&self, method: &str, path: &str, body: Option<&[u8]>) -> Result<Reply> {
        let mut stream = self.connect(path)?;
        let broken = |error: io::Error| match error.kind() {
            ErrorKind::WouldBlock => self.late(path),
            _ => ClientError::broken(path, error),
        };
        let mut request = format!("{method} {path} HTTP/1.0\r\nhost: localhost\r\n").into_bytes();
        if let Some(body) = body {
            let length = body.len();
            let head =
                format!("content-type: application/json\r\ncontent-length: {length}\r\n\r\n");
            request.extend_from_slice(head.as_bytes());
            request.extend_from_slice(body);
        } else {
            request.extend_from_slice(b"\r\n");
        }
        // A server that refused without reading on has said why.
        let sent = stream.write_all(&request);
        let begin = now();
        let mut text = Vec::with_capacity(ROOM);
        let mut length = None;
        loop {
            let room = text.len();
            text.resize(room + ROOM, 0);
            let got = match stream.read(&mut text[room..]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {
                    text.truncate(room);
                    continue;
                }
                got => got.map_err(broken)?,
            };
            text.truncate(room + got);
            length = length.or_else(|| expected_length(&text));
            if got == 0 || length.is_some_and(|length| text.len() >= length) {
                break;
            }
            if begin.elapsed() > self.timeout {
                return Err(self.late(path));
            }
            if text.len() > MAX_REPLY_BYTES {
                return Err(ClientError::broken(path, "The reply is too long"));
            }
        }
        if text.is_empty() {
            sent.map_err(broken)?;
        }
        match parse(&text) {
            Some(reply) if length.is_none_or(|length| text.len() >= length) => Ok(reply),
            _ => Err(ClientError::broken(path, "What came is no whole HTTP reply")),
        }
    }

    /// Waits for a place in the queue of a server that is busy, but not for ever: that is why the socket has
    /// its limits before it is connected.
    fn connect(&self, path: &str) -> Result<UnixStream> {
        let unreachable = |errno: nix::Error| match errno {
            nix::Error::EAGAIN => self.late(path),
            _ => ClientError::unreachable(&self.socket, errno.into()),
        };
        let open = || -> nix::Result<_> {
            let (family, flags) = (AddressFamily::Unix, SockFlag::SOCK_CLOEXEC);
            let stream = socket(family, SockType::Stream, flags, None)?;
            let (seconds, micros) = (self.timeout.as_secs(), self.timeout.subsec_micros());
            let limit = TimeVal::new(seconds as i64, i64::from(micros));
            setsockopt(&stream, sockopt::SendTimeout, &limit)?;
            setsockopt(&stream, sockopt::ReceiveTimeout, &limit)?;
            connect(stream.as_raw_fd(), &UnixAddr::new(&self.socket)?)?;
            Ok(stream)
        };
        open().map(UnixStream::from).map_err(unreachable)
    }

    fn late(&self, path: &str) -> ClientError {
        ClientError::Timeout { path: path.to_owned(), after: self.timeout }
    }
}

#[expect(clippy::disallowed_methods, reason = "a client's time-out is none of the switch's time")]
fn now() -> Instant {
    Instant::now()
}

const fn is_success(status: u16) -> bool {
    matches!(status, 200..=299)
}

/// What a reply carries; one with status `also` carries it, too.
fn read<T: DeserializeOwned>(path: &str, reply: &Reply, also: Option<u16>) -> Result<T> {
    let Reply { status, ref body } = *reply;
    match serde_json::from_slice(body) {
        Ok(value) if is_success(status) || also == Some(status) => Ok(value),
        Err(source) if is_success(status) => {
            Err(ClientError::not_understood(path, status, Some(source)))
        }
        _ => Err(ClientError::refused(path, status, body)),
    }
}

/// Where the head of a reply ends and its body begins.
fn split(text: &[u8]) -> Option<(&str, usize)> {
    let end = text.windows(4).position(|window| window == b"\r\n\r\n")?;
    Some((std::str::from_utf8(&text[..end]).ok()?, end + 4))
}

/// Bytes of the whole reply, once its head is here and says so.
fn expected_length(text: &[u8]) -> Option<usize> {
    let (head, begin) = split(text)?;
    let mut fields = head.split("\r\n").filter_map(|line| line.split_once(':'));
    let (_, value) = fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length"))?;
    begin.checked_add(value.trim().parse().ok()?)
}

fn parse(text: &[u8]) -> Option<Reply> {
    let (head, begin) = split(text)?;
    let mut words = head.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    let status = words.next()?.get(..3)?.parse().ok()?;
    Some(Reply { status, body: text[begin..].to_vec() })
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener, thread};

    use super::*;

    /// What a client says to a server that answers `pieces`, and what the server heard.
    fn ask(pieces: &'static [&'static str]) -> (Result<Attachment>, String) {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("api.sock");
        let listener = UnixListener::bind(&path).expect("binds");
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accepts");
            let mut heard = vec![0; ROOM];
            let length = stream.read(&mut heard).expect("reads");
            for piece in pieces {
                stream.write_all(piece.as_bytes()).expect("writes");
            }
            heard.truncate(length);
            String::from_utf8(heard).expect("text")
        });
        let answer = Client::new(&path).get_attachment("a/b", "eth0");
        (answer, server.join().expect("no panic"))
    }

    #[test]
    fn a_refusal_is_told_in_the_switch_s_words_however_it_is_cut() {
        let (answer, heard) = ask(&[
            "HTTP/1.0 404 Not",
            " Found\r\nContent-Length: 75\r\n\r",
            "\n{\"error\":{\"code\":\"not_found\",\"message\":\"no \",",
            "\"remedy\":\"look\",\"field\":\"x\"}}\n",
        ]);
        assert!(heard.starts_with("GET /v1/attachments/a%2Fb/eth0 HTTP/1.0\r\n"), "{heard}");
        let error = answer.expect_err("refused");
        assert!(
            matches!(&error, ClientError::Refused(refusal) if refusal.remedy == "look"),
            "{error:?}"
        );
    }

    #[test]
    fn half_a_reply_and_one_of_another_kind_are_broken_connections() {
        for pieces in [
            &["HTTP/1.0 200 OK\r\ncontent-length: 9\r\n\r\n{}"][..],
            &["HTTP/1.0 200 OK\r\ncontent-"],
            &["220 smtp ready\r\n\r\n"],
            &[],
        ] {
            let (answer, _) = ask(pieces);
            assert!(matches!(answer, Err(ClientError::Broken { .. })), "{pieces:?}: {answer:?}");
        }
    }

    #[test]
    fn a_reply_that_is_no_attachment_is_not_understood() {
        let (answer, _) = ask(&["HTTP/1.0 200 OK\r\n\r\n{}"]);
        assert!(
            matches!(answer, Err(ClientError::NotUnderstood { status: 200, .. })),
            "{answer:?}"
        );
    }

    #[test]
    fn silence_ends_in_a_time_out_and_a_missing_daemon_is_named() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("api.sock");
        let client = Client::new(&path).with_timeout(Duration::from_millis(30));
        let missing = client.health().expect_err("missing");
        assert!(matches!(missing, ClientError::NoSocket(_)), "{missing:?}");
        let listener = UnixListener::bind(&path).expect("binds");
        let silent = client.health().expect_err("silence");
        assert!(matches!(silent, ClientError::Timeout { .. }), "{silent:?}");
        drop(listener);
        let dead = client.health().expect_err("dead");
        assert!(matches!(dead, ClientError::NoListener(_)), "{dead:?}");
    }
}
