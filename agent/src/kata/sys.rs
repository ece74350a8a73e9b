//! The calls that have no safe wrapper, or one that knows no real-time signals.

#![expect(unsafe_code, reason = "real-time signals, window sizes, polling of any descriptor")]

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Takes the exit status of some child that has ended: its number, and its exit code or 128 and
/// the signal that ended it. `None` when there is none (or none yet).
pub fn reap() -> Option<(i32, i32)> {
    loop {
        let mut status = 0;
        // SAFETY: writes one integer, which outlives the call.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        match pid {
            1.. if libc::WIFEXITED(status) => return Some((pid, libc::WEXITSTATUS(status))),
            1.. if libc::WIFSIGNALED(status) => return Some((pid, 128 + libc::WTERMSIG(status))),
            // Stopped or continued, which was not asked for.
            1.. => {}
            _ if Errno::last() == Errno::EINTR && pid < 0 => {}
            _ => return None,
        }
    }
}

/// Has the runtime poll a descriptor.
pub fn poll(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` stays open, and the same file, until it is dropped, which is when the
    // `AsyncFd` is that owns it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// Sends the signal with this number, which may be a real-time signal; 0 only looks whether the
/// process is there.
pub fn kill(pid: i32, signal: i32) -> nix::Result<()> {
    // SAFETY: takes two numbers and touches no memory.
    Errno::result(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Gives SIGPIPE its default action back, which Rust's start-up code takes: a program that is
/// started from here inherits it.
pub fn default_sigpipe() -> nix::Result<()> {
    // SAFETY: the default action is no handler, so no code of ours runs in a signal's context.
    unsafe {
        nix::sys::signal::signal(nix::sys::signal::SIGPIPE, nix::sys::signal::SigHandler::SigDfl)
    }
    .map(drop)
}

/// Sets the size of a terminal in characters.
pub fn set_window_size(terminal: impl AsFd, rows: u16, columns: u16) -> nix::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let fd = terminal.as_fd().as_raw_fd();
    // SAFETY: the descriptor is borrowed for the call, and TIOCSWINSZ reads one `winsize`.
    Errno::result(unsafe { libc::ioctl(fd, libc::TIOCSWINSZ, &raw const size) }).map(drop)
}
