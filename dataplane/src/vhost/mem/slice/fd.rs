//! Guest memory to and from file descriptors, without a copy in between.

use std::os::fd::{AsFd, AsRawFd};

use arrayvec::ArrayVec;
use nix::errno::Errno;

use crate::vring::MAX_SEGMENTS;

use super::GuestSlice;

impl GuestSlice<'_> {
    /// Reads from `fd` into the slice; returns the bytes read, 0 at the end of a file.
    ///
    /// # Errors
    /// That of read(2).
    pub fn read_from(&self, fd: impl AsFd) -> Result<usize, Errno> {
        let fd = fd.as_fd().as_raw_fd();
        // SAFETY: the slice holds `len` bytes that may be written at any time by anybody, and no
        // reference to them exists; the kernel is one writer more.
        let n = unsafe { libc::read(fd, self.ptr.as_ptr().cast(), self.len as usize) };
        Errno::result(n).map(|n| n as usize)
    }

    /// Writes the whole slice to `fd` by one call; returns the bytes written.
    ///
    /// # Errors
    /// That of write(2).
    pub fn write_to(&self, fd: impl AsFd) -> Result<usize, Errno> {
        let fd = fd.as_fd().as_raw_fd();
        // SAFETY: the slice holds `len` bytes, mapped as long as it lives; the kernel copies them.
        let n = unsafe { libc::write(fd, self.ptr.as_ptr().cast(), self.len as usize) };
        Errno::result(n).map(|n| n as usize)
    }
}

/// Pieces that one frame may be in: its head, its body, and the segments after that.
const PIECES: usize = 2 + MAX_SEGMENTS;

/// Writes `head` and then `parts` to `fd` by one call; returns the bytes written.
///
/// # Errors
/// That of writev(2); E2BIG for more parts than a frame has.
pub fn write_pieces<'m>(
    fd: impl AsFd,
    head: &[u8],
    parts: impl Iterator<Item = GuestSlice<'m>>,
) -> Result<usize, Errno> {
    let mut pieces = ArrayVec::<libc::iovec, PIECES>::new();
    pieces.push(libc::iovec { iov_base: head.as_ptr().cast_mut().cast(), iov_len: head.len() });
    for part in parts.filter(|part| !part.is_empty()) {
        let piece = libc::iovec { iov_base: part.ptr.as_ptr().cast(), iov_len: part.len as usize };
        pieces.try_push(piece).map_err(|_| Errno::E2BIG)?;
    }
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: writev(2) only reads. `head` is borrowed until then; each part holds `len` bytes, mapped
    // for 'm, which outlives this call. A guest may change its bytes meanwhile: the kernel gets some
    // mixture, as any receiver would.
    let n = unsafe { libc::writev(fd, pieces.as_ptr(), pieces.len() as libc::c_int) };
    Errno::result(n).map(|n| n as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_through_a_pipe_and_come_back() {
        let (mut there, mut back) = ([1u8, 2, 3, 4], [0u8; 6]);
        let (read, write) = std::io::pipe().expect("a pipe");
        assert_eq!(GuestSlice::of_private(&mut there).write_to(&write), Ok(4));
        assert_eq!(GuestSlice::of_private(&mut back).read_from(&read), Ok(4));
        assert_eq!(back, [1, 2, 3, 4, 0, 0]);
        drop(write);
        assert_eq!(GuestSlice::of_private(&mut back).read_from(&read), Ok(0));
    }

    #[test]
    fn pieces_are_written_in_order_by_one_call() {
        let (read, write) = std::io::pipe().expect("a pipe");
        let (mut a, mut b) = ([3u8, 4], [5u8]);
        let parts =
            [GuestSlice::of_private(&mut a), GuestSlice::empty(), GuestSlice::of_private(&mut b)];
        assert_eq!(write_pieces(&write, &[1, 2], parts.into_iter()), Ok(5));
        let mut back = [0u8; 8];
        assert_eq!(GuestSlice::of_private(&mut back).read_from(&read), Ok(5));
        assert_eq!(back, [1, 2, 3, 4, 5, 0, 0, 0]);
        let too_many = std::iter::repeat_n(parts[0], PIECES);
        assert_eq!(write_pieces(&write, &[1], too_many), Err(Errno::E2BIG));
        assert_eq!(write_pieces(&read, &[1], parts.into_iter()), Err(Errno::EBADF));
    }

    #[test]
    fn what_the_kernel_refuses_is_told() {
        let (read, write) = std::io::pipe().expect("a pipe");
        let mut bytes = [0u8; 4];
        assert_eq!(GuestSlice::of_private(&mut bytes).read_from(&write), Err(Errno::EBADF));
        assert_eq!(GuestSlice::of_private(&mut bytes).write_to(&read), Err(Errno::EBADF));
    }
}
