//! Kicks of guests, watched by the epoll of a PMD.
//!
//! A kick descriptor is watched from the start of its ring to its end, edge-triggered: every kick
//! is one event, however often it was signalled before, so nothing needs to be read or re-armed. A
//! polled ring does not kick, so the watch costs nothing while there is traffic.

use std::sync::Arc;

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use crate::vhost::eventfd::EventFd;

/// One watched kick; ends when dropped.
#[derive(Debug)]
pub struct Watch {
    epoll: Arc<Epoll>,
    kick: EventFd,
    tag: u64,
}

impl Watch {
    /// Watches `kick`; events carry `tag`.
    pub fn new(epoll: &Arc<Epoll>, kick: EventFd, tag: u64) -> nix::Result<Self> {
        epoll.add(&kick, event(tag))?;
        Ok(Self { epoll: Arc::clone(epoll), kick, tag })
    }

    /// Watches from another epoll instead. A kick in between is an event there; a kick of before may
    /// be one as well, as nobody reads the descriptor.
    ///
    /// # Errors
    /// The new epoll does not take it; the old one goes on.
    pub fn follow(&mut self, epoll: &Arc<Epoll>) -> nix::Result<()> {
        epoll.add(&self.kick, event(self.tag))?;
        let old = std::mem::replace(&mut self.epoll, Arc::clone(epoll));
        // As when dropped.
        let _ = old.delete(&self.kick);
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
        let _ = self.epoll.delete(&self.kick);
    }
}
