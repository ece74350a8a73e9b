//! Event file descriptors, our own and those that a front end passes.
//!
//! # Bounds
//! A front end may pass any file descriptor as kick or call. One that is no eventfd is refused on
//! receipt: a write to a pipe could block, a write to a regular file would grow it. All eventfds
//! are non-blocking: a counter that is full stays full, which still wakes its reader.
//!
//! The flag O_NONBLOCK belongs to the open file, which the front end shares and may change at any
//! time. A VMM that clears it and fills the counter so holds up a writer, until [`super::unblock`]
//! interrupts it. [`EventFd::drain`] has the same weakness, so a PMD watches foreign eventfds
//! edge-triggered and never reads them.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::unblock;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl, readlink};
use nix::sys::eventfd::{EfdFlags, EventFd as NixEventFd};

/// A file descriptor that was passed as an eventfd and is none.
#[derive(Debug, thiserror::Error)]
#[error("Not an eventfd but {found}; kick, call and error descriptors must be eventfds")]
pub struct NotAnEventFd {
    /// What it is, as /proc/self/fd names it, or why that is unknown.
    pub found: String,
}

/// A peer made its eventfd block and filled it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocked;

/// An eventfd. Clones are counted references to the same descriptor, which the last one closes.
#[derive(Debug, Clone)]
pub struct EventFd(Arc<OwnedFd>);

impl EventFd {
    /// A new one, its counter 0.
    pub fn new() -> std::io::Result<Self> {
        let fd = NixEventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Self(Arc::new(fd.into())))
    }

    /// Takes a descriptor that a peer sent, if it is an eventfd.
    pub fn from_untrusted(file: File) -> Result<Self, NotAnEventFd> {
        let unknown = |errno: Errno| NotAnEventFd { found: format!("unknown ({errno})") };
        let link = format!("/proc/self/fd/{}", file.as_raw_fd());
        let found = readlink(link.as_str()).map_err(unknown)?;
        if found != "anon_inode:[eventfd]" {
            return Err(NotAnEventFd { found: found.to_string_lossy().into_owned() });
        }
        let flags = fcntl(&file, FcntlArg::F_GETFL).map_err(unknown)?;
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
        fcntl(&file, FcntlArg::F_SETFL(flags)).map_err(unknown)?;
        fcntl(&file, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(unknown)?;
        Ok(Self(Arc::new(file.into())))
    }

    /// Adds 1 to the counter, which wakes who waits on it. A counter that is full is left so: its
    /// reader has a wake-up pending anyway.
    #[inline]
    pub fn signal(&self) {
        // An eventfd refuses 1 only when it is full.
        let _ = nix::unistd::write(&*self.0, &1u64.to_ne_bytes());
    }

    /// As [`Self::signal`], for an eventfd that a peer passed and may have made to block.
    ///
    /// # Errors
    /// [`Blocked`]: it did block, and must not be signalled again.
    #[inline]
    pub fn signal_foreign(&self) -> Result<(), Blocked> {
        match unblock::guarded(|| nix::unistd::write(&*self.0, &1u64.to_ne_bytes())) {
            Err(Errno::EINTR) => Err(Blocked),
            _ => Ok(()),
        }
    }

    /// Sets the counter to 0; returns whether it was more.
    pub fn drain(&self) -> bool {
        nix::unistd::read(&*self.0, &mut [0; 8]).is_ok()
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn as_file(event: &EventFd) -> File {
        event.as_fd().try_clone_to_owned().unwrap().into()
    }

    #[test]
    fn a_signal_is_seen_through_another_descriptor_of_the_same_event() {
        let ours = EventFd::new().unwrap();
        let theirs = EventFd::from_untrusted(as_file(&ours)).unwrap();
        assert!(!theirs.drain());
        ours.signal();
        ours.signal();
        assert!(theirs.drain());
        assert!(!ours.drain());
    }

    #[test]
    fn a_full_counter_does_not_block_the_signal_and_stays_readable() {
        let blocking = NixEventFd::from_flags(EfdFlags::empty()).unwrap();
        let event = EventFd::from_untrusted(OwnedFd::from(blocking).into()).unwrap();
        nix::unistd::write(&event, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        event.signal();
        assert!(event.drain());
    }

    #[test]
    fn what_is_no_eventfd_is_refused_by_name() {
        let (pipe, _other) = std::io::pipe().unwrap();
        let refused = EventFd::from_untrusted(OwnedFd::from(pipe).into()).unwrap_err();
        assert!(refused.found.starts_with("pipe:"), "{}", refused.found);
        let file = tempfile::tempfile().unwrap();
        assert!(EventFd::from_untrusted(file).is_err());
        let epoll = nix::sys::epoll::Epoll::new(nix::sys::epoll::EpollCreateFlags::empty());
        let refused = EventFd::from_untrusted(epoll.unwrap().0.into()).unwrap_err();
        assert_eq!(refused.found, "anon_inode:[eventpoll]");
    }
}
