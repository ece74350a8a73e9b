//! Guest memory to and from file descriptors, without a copy in between.

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

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
    fn what_the_kernel_refuses_is_told() {
        let (read, write) = std::io::pipe().expect("a pipe");
        let mut bytes = [0u8; 4];
        assert_eq!(GuestSlice::of_private(&mut bytes).read_from(&write), Err(Errno::EBADF));
        assert_eq!(GuestSlice::of_private(&mut bytes).write_to(&read), Err(Errno::EBADF));
    }
}
