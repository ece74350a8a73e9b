//! The two event descriptors of a ring, and sleeping on one of them.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{Ordering, fence};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::Deadline;
use crate::testing::memory::MemoryError;

/// Kick and call of one ring.
#[derive(Debug)]
pub(super) struct Events {
    kicks: u64,
    kick: EventFd,
    call: EventFd,
    waiter: Option<Epoll>,
}

impl Events {
    pub fn new() -> Result<Self, MemoryError> {
        let event = |source| MemoryError::System { what: "eventfd", len: 8, source };
        let new_event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(event);
        Ok(Self { kicks: 0, kick: new_event()?, call: new_event()?, waiter: None })
    }

    /// An eventfd left signalled by the ring's former life means nothing to this one.
    pub fn forget(&self) {
        let _ = (self.kick.read(), self.call.read());
    }

    /// The eventfd the device waits on.
    pub fn kick_fd(&self) -> &EventFd {
        &self.kick
    }

    /// The eventfd the device signals.
    pub fn call_fd(&self) -> &EventFd {
        &self.call
    }

    /// Kicks sent so far.
    pub fn kicks(&self) -> u64 {
        self.kicks
    }

    #[cold]
    pub fn kick(&mut self) {
        self.kicks += 1;
        // The only failure of this write is a counter already full, and then the kick is pending.
        let _ = self.kick.write(1);
    }

    /// Sleeps until the device calls, `is_there` says that it need not, or `deadline`. The device was
    /// asked to call.
    pub fn wait(&mut self, deadline: Deadline, is_there: impl Fn() -> bool) -> io::Result<()> {
        if self.waiter.is_none() {
            let epoll = Epoll::new()?;
            let interest = EpollEvent::new(EventSet::IN, 0);
            epoll.ctl(ControlOperation::Add, self.call.as_raw_fd(), interest)?;
            self.waiter = Some(epoll);
        }
        loop {
            // ORDERING: the wish to be called must be visible before the last look, or a used
            // entry could slip in between and never be announced.
            fence(Ordering::SeqCst);
            if is_there() {
                return Ok(());
            }
            let left_ms = deadline.left_ms();
            let mut events = [EpollEvent::default()];
            match self.waiter.as_ref().map_or(Ok(0), |epoll| epoll.wait(left_ms, &mut events)) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
            // Drained whether or not it was signalled: it does not block.
            let _ = self.call.read();
            if left_ms == 0 {
                return Ok(());
            }
        }
    }
}
