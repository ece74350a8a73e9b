//! Control thread to PMD thread: rings to poll, and the end. A PMD that sleeps is woken; how no message
//! is missed in between, [`Doze`] says.

use std::io;
use std::sync::Arc;

use crossbeam::queue::SegQueue;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use crate::port::Vport;
use crate::vhost::eventfd::EventFd;

use super::doze::Doze;

/// Tag of the mailbox's own event; no ring has it, as ports are counted from 0.
pub const WAKE_TAG: u64 = u64::MAX;

/// A transmit ring to poll from now on.
#[derive(Debug)]
pub struct Visit {
    /// Its vport.
    pub vport: Arc<Vport>,
    /// Which of the vport's transmit rings.
    pub queue: u16,
}

/// One PMD's mailbox.
#[derive(Debug)]
pub struct Mailbox {
    queue: SegQueue<Visit>,
    doze: Doze,
    wake: EventFd,
}

impl Mailbox {
    /// A mailbox whose wake-ups arrive at `epoll`.
    pub fn new(epoll: &Epoll) -> io::Result<Self> {
        let wake = EventFd::new()?;
        let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, WAKE_TAG);
        epoll.add(&wake, event)?;
        Ok(Self { queue: SegQueue::new(), doze: Doze::default(), wake })
    }

    /// Hands a ring to the PMD.
    pub fn visit(&self, vport: Arc<Vport>, queue: u16) {
        self.queue.push(Visit { vport, queue });
        if self.doze.must_wake() {
            self.wake.signal();
        }
    }

    /// Ends the PMD.
    pub fn stop(&self) {
        if self.doze.stop() {
            self.wake.signal();
        }
    }

    /// For the PMD: the next ring.
    #[inline]
    pub fn take(&self) -> Option<Visit> {
        self.queue.pop()
    }

    /// For the PMD: whether it shall end.
    #[inline]
    pub fn stopping(&self) -> bool {
        self.doze.stopping()
    }

    /// For the PMD: announces that it will sleep. `false`: there is something to do first.
    pub fn fall_asleep(&self) -> bool {
        self.doze.fall_asleep(|| !self.queue.is_empty())
    }

    /// For the PMD: it is awake again.
    pub fn woke(&self) {
        self.doze.woke();
    }
}
