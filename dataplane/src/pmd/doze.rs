//! How a PMD falls asleep without missing a message.
//!
//! ```text
//! control                             PMD
//! queue.push(ring), or stopping       asleep = true
//! fence                               fence
//! asleep? -- yes --> signal           queue empty, not stopping? -- no --> work, asleep = false
//!                                     epoll_wait
//! ```
//!
//! Either the PMD sees the message before it sleeps, or control sees it asleep and signals.
//!
//! The model in `dataplane/loom` is made of this very file and walks through its interleavings.

use crate::sync::{AtomicBool, Ordering, fence};

/// Whether a PMD sleeps, and whether it shall end.
#[derive(Debug, Default)]
pub struct Doze {
    asleep: AtomicBool,
    stopping: AtomicBool,
}

impl Doze {
    /// For control, after it left a message: whether the PMD has to be signalled.
    pub fn must_wake(&self) -> bool {
        // ORDERING: see the drawing; pairs with the fence in `fall_asleep`.
        fence(Ordering::SeqCst);
        self.asleep.load(Ordering::Relaxed)
    }

    /// For control: the PMD shall end; returns whether it has to be signalled.
    pub fn stop(&self) -> bool {
        self.stopping.store(true, Ordering::Relaxed);
        self.must_wake()
    }

    /// For the PMD: whether it shall end.
    #[inline]
    pub fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// For the PMD: announces that it will sleep. `false`: there is something to do first.
    pub fn fall_asleep(&self, has_messages: impl FnOnce() -> bool) -> bool {
        self.asleep.store(true, Ordering::Relaxed);
        // ORDERING: see the drawing; pairs with the fence in `must_wake`.
        fence(Ordering::SeqCst);
        if !has_messages() && !self.stopping() {
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
