//! Control thread to PMD thread: rings to poll, and the end.
//!
//! ```text
//! control                             PMD
//! queue.push(ring)                    asleep = true
//! fence                               fence
//! asleep? -- yes --> signal           queue empty? -- no --> work, asleep = false
//!                                     epoll_wait
//! ```
//!
//! Either the PMD sees the ring before it sleeps, or control sees it asleep and signals.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use crossbeam::queue::SegQueue;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use crate::port::Vport;
use crate::vhost::eventfd::EventFd;

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
    asleep: AtomicBool,
    stopping: AtomicBool,
    wake: EventFd,
}

impl Mailbox {
    /// A mailbox whose wake-ups arrive at `epoll`.
    pub fn new(epoll: &Epoll) -> io::Result<Self> {
        let wake = EventFd::new()?;
        let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, WAKE_TAG);
        epoll.add(&wake, event)?;
        Ok(Self {
            queue: SegQueue::new(),
            asleep: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            wake,
        })
    }

    /// Hands a ring to the PMD.
    pub fn visit(&self, vport: Arc<Vport>, queue: u16) {
        self.queue.push(Visit { vport, queue });
        self.wake_if_asleep();
    }

    /// Ends the PMD.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.wake_if_asleep();
    }

    fn wake_if_asleep(&self) {
        // ORDERING: see the drawing; pairs with the fence in `fall_asleep`.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) {
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
        self.stopping.load(Ordering::Relaxed)
    }

    /// For the PMD: announces that it will sleep. `false`: there is something to do first.
    pub fn fall_asleep(&self) -> bool {
        self.asleep.store(true, Ordering::Relaxed);
        // ORDERING: see the drawing; pairs with the fence in `wake_if_asleep`.
        fence(Ordering::SeqCst);
        if self.queue.is_empty() && !self.stopping() {
            return true;
        }
        self.woke();
        false
    }

    /// For the PMD: it is awake again.
    pub fn woke(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }
}
