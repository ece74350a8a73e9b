//! The descriptors that a process begins with.
#![expect(unsafe_code, reason = "without the standard library nobody else vouches for them")]

use rustix::{
    fd::BorrowedFd,
    stdio::{raw_stdin, raw_stdout},
};

/// Descriptor 0.
pub fn stdin() -> BorrowedFd<'static> {
    // SAFETY: nothing in this process closes it. If the process was started without it, read(2) says so; it is
    // read before any other is opened, which could get the number.
    unsafe { BorrowedFd::borrow_raw(raw_stdin()) }
}

/// Descriptor 1.
pub fn stdout() -> BorrowedFd<'static> {
    // SAFETY: nothing in this process closes it. If the process was started without it, write(2) says so: the
    // only other descriptor is opened for one exchange, and closed before the answer is written.
    unsafe { BorrowedFd::borrow_raw(raw_stdout()) }
}
