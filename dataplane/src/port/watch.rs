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
}

impl Watch {
    /// Watches `kick`; events carry `tag`.
    pub fn new(epoll: &Arc<Epoll>, kick: EventFd, tag: u64) -> nix::Result<Self> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, tag);
        epoll.add(&kick, event)?;
        Ok(Self { epoll: Arc::clone(epoll), kick })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Closing our descriptor would not do: the guest's VMM holds the same eventfd open, and
        // events would go on. Fails only if the descriptor is not watched, which is as well.
        let _ = self.epoll.delete(&self.kick);
    }
}
