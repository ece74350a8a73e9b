//! One thing that several PMDs work on in turn and that the control thread changes between.
//!
//! ```text
//! PMD, once per burst                      control, to change it
//! wanted.load()  -- true: leave it alone   wanted = true
//! lock                                     lock        <- waits for the burst in hand
//!   work on it                             change it
//! unlock                                   unlock, wanted = false
//! ```
//!
//! The lock is the handshake: when [`Handover::with`] returns, whatever a PMD does with the thing comes
//! after the change. `wanted` only keeps a busy PMD from winning the lock over and over; control may
//! call from several threads.
//!
//! The model in `dataplane/loom` is made of this very file and walks through its interleavings.

use crate::sync::{AtomicBool, Mutex, MutexGuard, Ordering, PoisonError};

/// A place that is worked on burst by burst.
#[derive(Debug, Default)]
pub struct Handover<T> {
    wanted: AtomicBool,
    inner: Mutex<T>,
}

impl<T> Handover<T> {
    /// For a PMD: the thing, for one burst. `None` while the control thread wants it.
    #[inline]
    pub fn enter(&self) -> Option<MutexGuard<'_, T>> {
        // ORDERING: only a hint; the lock orders everything.
        if self.wanted.load(Ordering::Relaxed) {
            return None;
        }
        Some(self.lock())
    }

    /// For the control thread: changes the thing between bursts.
    pub fn with<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        self.wanted.store(true, Ordering::Relaxed);
        let mut inner = self.lock();
        let result = change(&mut inner);
        drop(inner);
        self.wanted.store(false, Ordering::Relaxed);
        result
    }

    /// For the control thread: takes out whatever is there.
    pub fn take(&self) -> T
    where
        T: Default,
    {
        self.with(std::mem::take)
    }

    fn lock(&self) -> MutexGuard<'_, T> {
        // A panic in a PMD ends the process in release builds; in tests the thing is still whole, as
        // it is only replaced as a whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
