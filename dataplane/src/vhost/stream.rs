//! One connection: bytes and files from a socket become whole messages, and nothing ever blocks.
//!
//! # How it works
//! The socket is non-blocking. A message is read in two steps, header then payload, each no
//! further than its end, because the kernel delivers files with the bytes they were sent with; what
//! has come of a message is kept until the rest comes. A reply that the peer's buffer does not take
//! is kept as well, and no further message is read until it is gone, so a peer that never reads
//! can make us keep one reply.
//!
//! # Bounds
//! One payload ([`MAX_PAYLOAD`](super::message::MAX_PAYLOAD) bytes, allocated when its header is
//! sound), [`MAX_FILES`] files and one reply a connection. More files than that in one message, or
//! more than the process can open, end it: the kernel has dropped some, and which is unknown.
#![expect(unsafe_code, reason = "received file descriptors arrive as numbers")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{MsgFlags, send};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::message::{HEADER_LEN, Header, MAX_FILES, Malformed};

/// A message as received; the payload has the size that the header announced.
#[derive(Debug)]
pub struct Message {
    /// Its head.
    pub header: Header,
    /// What followed.
    pub payload: Vec<u8>,
    /// The files that came with it.
    pub files: Vec<File>,
}

/// Why nothing more can be read from a connection.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The peer hung up between messages: the usual end.
    #[error("the front end disconnected")]
    Closed,
    /// The peer hung up within a message.
    #[error("the front end disconnected after {got} bytes of a message")]
    Cut {
        /// Bytes of the message that had come.
        got: usize,
    },
    /// More files than a message may bring, or than this process may open.
    #[error(
        "A message brought more than {MAX_FILES} file descriptors, or no more can be opened; \
         raise LimitNOFILE if ports are many"
    )]
    Files,
    /// A header that is none.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The kernel refused.
    #[error("Failed to use the connection")]
    Io(#[from] io::Error),
}

/// A connected front end.
#[derive(Debug)]
pub struct Stream {
    socket: UnixStream,
    head: [u8; HEADER_LEN],
    /// Bytes of the message in hand that have come, header included.
    got: usize,
    header: Option<Header>,
    payload: Vec<u8>,
    files: Vec<File>,
    /// What the peer's buffer did not take.
    unsent: Vec<u8>,
}

impl Stream {
    /// Takes a connected socket over.
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            head: [0; HEADER_LEN],
            got: 0,
            header: None,
            payload: Vec::new(),
            files: Vec::new(),
            unsent: Vec::new(),
        })
    }

    /// Whether a part of a message has come, but not all.
    pub fn is_within_message(&self) -> bool {
        self.got > 0
    }

    /// Whether a reply waits for the peer to read.
    pub fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// The next message; `None` until more comes.
    pub fn receive(&mut self) -> Result<Option<Message>, StreamError> {
        while self.header.is_none() {
            match read(&self.socket, &mut self.head[self.got..], &mut self.files)? {
                None => return Ok(None),
                Some(0) => return Err(self.end()),
                Some(n) => self.got += n,
            }
            if self.got == HEADER_LEN {
                let header = Header::parse(&self.head)?;
                self.payload = vec![0; header.size];
                self.header = Some(header);
            }
        }
        while self.got < HEADER_LEN + self.payload.len() {
            let rest = &mut self.payload[self.got - HEADER_LEN..];
            match read(&self.socket, rest, &mut self.files)? {
                None => return Ok(None),
                Some(0) => return Err(self.end()),
                Some(n) => self.got += n,
            }
        }
        self.got = 0;
        let (payload, files) = (std::mem::take(&mut self.payload), std::mem::take(&mut self.files));
        Ok(self.header.take().map(|header| Message { header, payload, files }))
    }

    fn end(&self) -> StreamError {
        match self.got {
            0 => StreamError::Closed,
            got => StreamError::Cut { got },
        }
    }

    /// Sends as much as the peer's buffer takes and keeps the rest.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.unsent.extend_from_slice(bytes);
        self.flush()
    }

    /// Sends what was kept, as far as the peer's buffer takes it.
    pub fn flush(&mut self) -> io::Result<()> {
        while self.has_unsent() {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match send(self.socket.as_raw_fd(), &self.unsent, flags).map_err(io::Error::from) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Reads into `buffer`, which must not be empty, and appends the files that came along. `None` if
/// nothing is there, 0 at the end of the stream.
fn read(
    socket: &UnixStream,
    buffer: &mut [u8],
    files: &mut Vec<File>,
) -> Result<Option<usize>, StreamError> {
    let mut fds: [RawFd; MAX_FILES] = [-1; MAX_FILES];
    let (bytes, count) = loop {
        let mut iov = [libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() }];
        // SAFETY: the vector names `buffer`, which is ours for the call and takes any bytes.
        let outcome = unsafe { socket.recv_with_fds(&mut iov, &mut fds) };
        match outcome.map_err(|error| error.errno()) {
            Ok(outcome) => break outcome,
            Err(libc::EINTR) => {}
            Err(libc::EAGAIN) => return Ok(None),
            // Said when not all files fit; those that did are closed by now.
            Err(libc::ENOBUFS) => return Err(StreamError::Files),
            Err(errno) => return Err(io::Error::from_raw_os_error(errno).into()),
        }
    };
    let known = files.len();
    for &fd in &fds[..count] {
        // SAFETY: the kernel just installed this descriptor for us; nobody else knows it.
        files.push(unsafe { OwnedFd::from_raw_fd(fd) }.into());
    }
    for file in &files[known..] {
        fcntl(file, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(io::Error::from)?;
    }
    if files.len() > MAX_FILES {
        return Err(StreamError::Files);
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn pair() -> (UnixStream, Stream) {
        let (peer, ours) = UnixStream::pair().unwrap();
        (peer, Stream::new(ours).unwrap())
    }

    fn bytes(code: u32, payload: &[u8]) -> Vec<u8> {
        let head = [code, 1, payload.len() as u32].map(u32::to_ne_bytes);
        [head.as_flattened(), payload].concat()
    }

    #[test]
    fn a_message_is_given_out_once_its_last_byte_has_come() {
        let (mut peer, mut stream) = pair();
        for byte in bytes(2, &[7; 8]) {
            assert!(stream.receive().unwrap().is_none());
            peer.write_all(&[byte]).unwrap();
        }
        peer.write_all(&bytes(3, &[])).unwrap();
        let first = stream.receive().unwrap().unwrap();
        assert_eq!((first.header.code, first.payload), (2, vec![7; 8]));
        assert_eq!(stream.receive().unwrap().unwrap().header.code, 3);
        assert!(stream.receive().unwrap().is_none());
    }

    #[test]
    fn files_come_with_the_message_they_were_sent_with() {
        let (peer, mut stream) = pair();
        let file = tempfile::tempfile().unwrap();
        for (code, count) in [(13, 1), (1, 0), (5, 32)] {
            let fds = vec![file.as_raw_fd(); count];
            peer.send_with_fds(&[&bytes(code, &[])[..]], &fds).unwrap();
        }
        for (code, count) in [(13, 1), (1, 0), (5, 32)] {
            let message = stream.receive().unwrap().unwrap();
            assert_eq!((message.header.code, message.files.len()), (code, count));
        }
    }

    #[test]
    fn more_files_than_a_message_may_bring_end_the_connection() {
        let (peer, mut stream) = pair();
        let file = tempfile::tempfile().unwrap();
        peer.send_with_fds(&[&bytes(5, &[])[..]], &[file.as_raw_fd(); 33]).unwrap();
        assert!(matches!(stream.receive(), Err(StreamError::Files)));

        let (peer, mut stream) = pair();
        let bytes = bytes(5, &[]);
        peer.send_with_fds(&[&bytes[..4]], &[file.as_raw_fd(); 20]).unwrap();
        peer.send_with_fds(&[&bytes[4..]], &[file.as_raw_fd(); 20]).unwrap();
        assert!(matches!(stream.receive(), Err(StreamError::Files)));
    }

    #[test]
    fn a_received_file_is_closed_on_exec() {
        let (peer, mut stream) = pair();
        let file = tempfile::tempfile().unwrap();
        peer.send_with_fds(&[&bytes(13, &[])[..]], &[file.as_raw_fd()]).unwrap();
        let message = stream.receive().unwrap().unwrap();
        let flags = fcntl(&message.files[0], FcntlArg::F_GETFD).unwrap();
        assert!(FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC));
    }

    /// The kernel counts an out-of-band byte as queued and then does not deliver it.
    #[test]
    fn an_out_of_band_byte_neither_blocks_nor_counts_as_payload() {
        let (mut peer, mut stream) = pair();
        peer.write_all(&bytes(2, &[7; 8])[..19]).unwrap();
        send(peer.as_raw_fd(), &[9], MsgFlags::MSG_OOB).unwrap();
        assert!(stream.receive().unwrap().is_none());
        peer.write_all(&[7]).unwrap();
        assert_eq!(stream.receive().unwrap().unwrap().payload, [7; 8]);
    }

    #[test]
    fn a_reply_that_is_not_read_is_kept_and_sent_later() {
        let (mut peer, mut stream) = pair();
        let mut sent = 0;
        while !stream.has_unsent() {
            stream.send(&[sent as u8; 1000]).unwrap();
            sent += 1;
        }
        let mut back = vec![0; sent * 1000];
        let (first, rest) = back.split_at_mut(sent * 500);
        peer.read_exact(first).unwrap();
        stream.flush().unwrap();
        assert!(!stream.has_unsent());
        peer.read_exact(rest).unwrap();
        assert_eq!(back.chunks(1000).map(|c| c[999]).collect::<Vec<_>>(), {
            (0..sent).map(|i| i as u8).collect::<Vec<_>>()
        });
    }

    #[test]
    fn the_end_of_the_stream_is_told_from_a_cut_message() {
        let (peer, mut stream) = pair();
        drop(peer);
        assert!(matches!(stream.receive(), Err(StreamError::Closed)));
        let (mut peer, mut stream) = pair();
        peer.write_all(&bytes(2, &[7; 8])[..15]).unwrap();
        drop(peer);
        assert!(matches!(stream.receive(), Err(StreamError::Cut { got: 15 })));
    }
}
