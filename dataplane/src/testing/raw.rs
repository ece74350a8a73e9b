//! Raw vhost-user messages: any header, any size, any descriptors, whole or in pieces.
//!
//! For tests of what no VMM would say. Header and bodies follow the vhost-user specification,
//! "Message Specification": three 32-bit words (request, flags, size) and the body, in native byte
//! order, file descriptors as ancillary data of the first byte.
//!
//! # Bounds
//! A peer that does not read holds a send up for [`SEND_TIMEOUT`], then it fails. Receiving is
//! bounded by the caller.

use std::io::{self, IoSlice, Read};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use vhost::vhost_user::message::FrontendReq;

use super::driver::{Deadline, Vring};
use super::memory::Region;

/// Bytes of a message header.
pub const HEADER_BYTES: usize = 12;

/// How long a send may be held up by a peer that does not read.
pub const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// Flags of a well-formed request: version 1.
pub const VERSION: u32 = 1;
/// Flag: this is a reply.
pub const REPLY: u32 = 1 << 2;
/// Flag: a reply is wanted (REPLY_ACK).
pub const NEED_REPLY: u32 = 1 << 3;

/// Longest answer [`RawPeer::recv`] takes, in bytes: more than any message has.
const MAX_ANSWER: usize = 1 << 16;

/// A message, right or wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawMessage {
    /// Request code.
    pub request: u32,
    /// Version and flags.
    pub flags: u32,
    /// The size the header claims; `None` for the true one.
    pub claimed_size: Option<u32>,
    /// The body.
    pub body: Vec<u8>,
}

impl RawMessage {
    /// A well-formed request without a body.
    pub fn new(request: FrontendReq) -> Self {
        Self { request: request.into(), flags: VERSION, claimed_size: None, body: Vec::new() }
    }

    /// With these flags instead of plain version 1.
    #[must_use]
    pub fn flags(self, flags: u32) -> Self {
        Self { flags, ..self }
    }

    /// With a header that claims this body size.
    #[must_use]
    pub fn claiming(self, size: u32) -> Self {
        Self { claimed_size: Some(size), ..self }
    }

    /// With bytes appended to the body.
    #[must_use]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.body.extend_from_slice(bytes);
        self
    }

    /// With a 32-bit word appended to the body.
    #[must_use]
    pub fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_ne_bytes())
    }

    /// With a 64-bit word appended to the body.
    #[must_use]
    pub fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_ne_bytes())
    }

    /// SET_VRING_NUM, SET_VRING_BASE, SET_VRING_ENABLE, GET_VRING_BASE.
    pub fn vring_state(request: FrontendReq, index: u32, value: u32) -> Self {
        Self::new(request).u32(index).u32(value)
    }

    /// SET_VRING_ADDR with these user addresses.
    pub fn vring_addr(index: u32, desc: u64, used: u64, avail: u64) -> Self {
        let flags = 0;
        let log = 0;
        let head = Self::new(FrontendReq::SET_VRING_ADDR).u32(index).u32(flags);
        head.u64(desc).u64(used).u64(avail).u64(log)
    }

    /// SET_VRING_ADDR of `ring`.
    pub fn vring_addr_of(index: u32, ring: &Vring) -> Self {
        let [desc, used, avail] =
            [ring.desc_table(), ring.used(), ring.avail()].map(|part| part.user_addr());
        Self::vring_addr(index, desc, used, avail)
    }

    /// SET_MEM_TABLE of regions (guest-physical address, bytes, user address, file offset).
    pub fn mem_table(regions: &[[u64; 4]]) -> Self {
        let head = Self::new(FrontendReq::SET_MEM_TABLE).u32(regions.len() as u32).u32(0);
        regions.iter().flatten().fold(head, |message, word| message.u64(*word))
    }

    /// ADD_MEM_REG, REM_MEM_REG of a region (as in [`Self::mem_table`]).
    pub fn mem_region(request: FrontendReq, region: [u64; 4]) -> Self {
        region.into_iter().fold(Self::new(request).u64(0), Self::u64)
    }

    /// The words that describe `region` in messages.
    pub fn words_of(region: &Region) -> [u64; 4] {
        [region.gpa(), region.len() as u64, region.user_addr(), region.file_offset()]
    }

    /// Header and body as sent.
    pub fn to_bytes(&self) -> Vec<u8> {
        let size = self.claimed_size.unwrap_or(self.body.len() as u32);
        let header = [self.request, self.flags, size].map(u32::to_ne_bytes);
        let mut bytes = header.concat();
        bytes.extend_from_slice(&self.body);
        bytes
    }

    /// The body as one 64-bit word, if it is one.
    pub fn as_u64(&self) -> Option<u64> {
        Some(u64::from_ne_bytes(self.body[..].try_into().ok()?))
    }
}

/// What came from the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A whole message.
    Message(RawMessage),
    /// The peer hung up; a message it had begun is lost.
    Closed,
    /// Nothing, or part of a message, before the deadline.
    Silent,
}

/// One end of a vhost-user connection, without manners.
#[derive(Debug)]
pub struct RawPeer {
    stream: UnixStream,
    received: Vec<u8>,
}

impl RawPeer {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// What `connect` says.
    pub fn connect(path: &Path) -> io::Result<Self> {
        Self::over(UnixStream::connect(path)?)
    }

    /// Speaks over `stream`.
    ///
    /// # Errors
    /// When the send time-out cannot be set.
    pub fn over(stream: UnixStream) -> io::Result<Self> {
        stream.set_write_timeout(Some(SEND_TIMEOUT))?;
        Ok(Self { stream, received: Vec::new() })
    }

    /// The stream, to shut down or to hand over.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends a message with `fds` attached.
    ///
    /// # Errors
    /// `EPIPE` and `ECONNRESET` when the peer has hung up, `EAGAIN` when it does not read.
    pub fn send(&self, message: &RawMessage, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send_bytes(&message.to_bytes(), fds)
    }

    /// Sends any bytes, `fds` attached to the first of them. Part of a message is as good.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let mut ancillary = if fds.is_empty() { &[][..] } else { &rights[..] };
        let mut rest = bytes;
        while !rest.is_empty() {
            let iov = [IoSlice::new(rest)];
            let fd = self.stream.as_raw_fd();
            match sendmsg::<()>(fd, &iov, ancillary, MsgFlags::MSG_NOSIGNAL, None) {
                Ok(sent) => (rest, ancillary) = (&rest[sent..], &[]),
                Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// The next message, waiting for it up to `timeout`. Descriptors that come along are closed.
    ///
    /// # Errors
    /// `InvalidData` for a header that claims more than any answer has; what `read` says.
    pub fn recv(&mut self, timeout: Duration) -> io::Result<Answer> {
        let deadline = Deadline::after(timeout);
        loop {
            if let Some(message) = self.take_message()? {
                return Ok(Answer::Message(message));
            }
            // A read time-out of zero would mean none at all.
            let left = deadline.left().max(Duration::from_micros(1));
            self.stream.set_read_timeout(Some(left))?;
            let mut chunk = [0; 4096];
            match (&self.stream).read(&mut chunk) {
                Ok(0) => return Ok(Answer::Closed),
                Ok(len) => self.received.extend_from_slice(&chunk[..len]),
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(Answer::Closed),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if deadline.passed() {
                        return Ok(Answer::Silent);
                    }
                }
                Err(e) => return Err(e),
            }
        }
    }

    fn take_message(&mut self) -> io::Result<Option<RawMessage>> {
        let Some((header, rest)) = self.received.split_at_checked(HEADER_BYTES) else {
            return Ok(None);
        };
        let word = |n: usize| {
            let bytes = [header[4 * n], header[4 * n + 1], header[4 * n + 2], header[4 * n + 3]];
            u32::from_ne_bytes(bytes)
        };
        let (request, flags, size) = (word(0), word(1), word(2) as usize);
        if size > MAX_ANSWER {
            let text = format!("answer to request {request} claims {size} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let Some(body) = rest.get(..size) else { return Ok(None) };
        let message = RawMessage { request, flags, claimed_size: None, body: body.to_vec() };
        self.received.drain(..HEADER_BYTES + size);
        Ok(Some(message))
    }

    /// Sends a request without descriptors and waits for its answer.
    ///
    /// # Errors
    /// As [`Self::send`] and [`Self::recv`].
    pub fn ask(&mut self, message: &RawMessage, timeout: Duration) -> io::Result<Answer> {
        self.send(message, &[])?;
        self.recv(timeout)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::IoSliceMut;
    use std::os::fd::AsFd;

    use nix::sys::socket::{ControlMessageOwned, recvmsg};
    use nix::unistd::close;

    use super::*;

    #[test]
    fn header_and_body_are_sent_as_claimed_with_all_descriptors() {
        let (near, far) = UnixStream::pair().unwrap();
        let peer = RawPeer::over(near).unwrap();
        let files: Vec<File> = (0..20).map(|_| File::open("/dev/null").unwrap()).collect();
        let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        let message = RawMessage::new(FrontendReq::SET_FEATURES).u64(5).claiming(9).flags(0xf1);
        peer.send(&message, &fds).unwrap();

        let mut bytes = [0; 64];
        let mut ancillary = nix::cmsg_space!([RawFd; 32]);
        let mut iov = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::empty();
        let received =
            recvmsg::<()>(far.as_raw_fd(), &mut iov, Some(&mut ancillary), flags).unwrap();
        let (len, mut passed) = (received.bytes, Vec::new());
        for message in received.cmsgs().unwrap() {
            let ControlMessageOwned::ScmRights(fds) = message else { panic!("{message:?}") };
            passed.extend(fds);
        }
        let words = [2, 0xf1, 9].map(u32::to_ne_bytes).concat();
        assert_eq!(bytes[..len], [words, 5u64.to_ne_bytes().to_vec()].concat());
        assert_eq!(passed.len(), files.len());
        passed.into_iter().for_each(|fd| close(fd).unwrap());
    }

    #[test]
    fn an_answer_in_pieces_is_put_together_and_then_the_close_is_seen() {
        let (near, far) = UnixStream::pair().unwrap();
        let mut peer = RawPeer::over(near).unwrap();
        let other = RawPeer::over(far).unwrap();
        let answer = RawMessage::new(FrontendReq::GET_FEATURES).flags(VERSION | REPLY).u64(77);
        let bytes = answer.to_bytes();
        other.send_bytes(&bytes[..5], &[]).unwrap();
        assert_eq!(peer.recv(Duration::from_millis(1)).unwrap(), Answer::Silent);
        other.send_bytes(&bytes[5..], &[]).unwrap();
        other.send_bytes(&bytes[..13], &[]).unwrap();
        drop(other);
        let timeout = Duration::from_secs(10);
        assert_eq!(peer.recv(timeout).unwrap(), Answer::Message(answer.clone()));
        assert_eq!(answer.as_u64(), Some(77));
        assert_eq!(peer.recv(timeout).unwrap(), Answer::Closed);
    }
}
