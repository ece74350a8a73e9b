//! Kicks of guests, and frames of taps, watched by the epoll of a PMD.
//!
//! A descriptor is watched from the start of its ring to its end, edge-triggered: every kick
//! is one event, however often it was signalled before, so nothing needs to be read or re-armed. A
//! polled ring does not kick, so the watch costs nothing while there is traffic. A tap does not know
//! whether it is polled: the kernel notes an event for it now and then, which nobody waits for.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use crate::gateway::interface::Tap;
use crate::vhost::eventfd::EventFd;

/// What says that there are frames.
#[derive(Debug)]
pub enum Wake {
    /// A guest's kick.
    Kick(EventFd),
    /// A tap that can be read.
    Tap(Arc<Tap>),
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Kick(kick) => kick.as_fd(),
            Self::Tap(tap) => tap.as_fd(),
        }
    }
}

/// One watched descriptor; ends when dropped.
#[derive(Debug)]
pub struct Watch {
    epoll: Arc<Epoll>,
    wake: Wake,
    tag: u64,
}

impl Watch {
    /// Watches `wake`; events carry `tag`.
    pub fn new(epoll: &Arc<Epoll>, wake: Wake, tag: u64) -> nix::Result<Self> {
        epoll.add(&wake, event(tag))?;
        Ok(Self { epoll: Arc::clone(epoll), wake, tag })
    }

    /// Watches from another epoll instead. A kick in between is an event there; a kick of before may
    /// be one as well, as nobody reads the descriptor.
    ///
    /// # Errors
    /// The new epoll does not take it; the old one goes on.
    pub fn follow(&mut self, epoll: &Arc<Epoll>) -> nix::Result<()> {
        epoll.add(&self.wake, event(self.tag))?;
        let old = std::mem::replace(&mut self.epoll, Arc::clone(epoll));
        // As when dropped.
        let _ = old.delete(&self.wake);
        Ok(())
    }
}

fn event(tag: u64) -> EpollEvent {
    EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, tag)
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Closing our descriptor would not do: the guest's VMM holds the same eventfd open, and
        // events would go on. Fails only if the descriptor is not watched, which is as well.
        let _ = self.epoll.delete(&self.wake);
    }
}
