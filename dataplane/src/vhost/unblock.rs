//! Gets a thread out of a write that a peer made blocking.
//!
//! An eventfd that a front end passed shares its O_NONBLOCK flag with the front end's own descriptor. A
//! hostile one can clear the flag and fill the counter just before we signal; the write then waits for
//! a reader that never comes, and the kernel has no non-blocking write for an eventfd of somebody else.
//!
//! ```text
//! thread that signals          watcher, every 50 ms
//! mark += 1   (odd: inside)    odd, and the same as last time?
//! write                          -- yes --> a signal, whose handler does nothing: EINTR
//! mark += 1   (even)
//! ```
//! The write that was interrupted is the guilty ring's last one ([`super::eventfd::Blocked`]).
//!
//! # Bounds
//! Such a write holds up its thread for at most two turns of the watcher, once per ring and set-up.
//!
//! # Threads
//! Each thread that signals foreign eventfds calls [`watch_this_thread`] once. One thread,
//! `slipway-watch`, watches all of them.
#![expect(unsafe_code, reason = "a signal handler can only be installed by an unsafe call")]

use std::cell::OnceCell;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sys::pthread::{Pthread, pthread_kill, pthread_self};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Nobody else sends it, and by default it is ignored.
const NUDGE: Signal = Signal::SIGURG;
/// How often the watcher looks.
const TURN: Duration = Duration::from_millis(50);

/// One watched thread.
#[derive(Debug)]
struct Watched {
    thread: Pthread,
    mark: Arc<AtomicU64>,
    /// The mark at the watcher's last turn.
    last: u64,
}

static WATCHED: Mutex<Vec<Watched>> = Mutex::new(Vec::new());

/// Ends the watch when its thread ends: after that its handle must not be used.
struct Watch(Arc<AtomicU64>);

impl Drop for Watch {
    fn drop(&mut self) {
        watched().retain(|watched| !Arc::ptr_eq(&watched.mark, &self.0));
    }
}

thread_local! {
    static WATCH: OnceCell<Watch> = const { OnceCell::new() };
}

fn watched() -> MutexGuard<'static, Vec<Watched>> {
    // Each change is one push or one retain.
    WATCHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has the calling thread watched until it ends.
///
/// # Errors
/// The handler could not be installed, or the watcher not started.
pub fn watch_this_thread() -> io::Result<()> {
    start_watcher()?;
    WATCH.with(|watch| {
        watch.get_or_init(|| {
            let mark = Arc::new(AtomicU64::new(0));
            let thread = pthread_self();
            watched().push(Watched { thread, mark: Arc::clone(&mark), last: 0 });
            Watch(mark)
        });
    });
    Ok(())
}

/// Runs `write`, which may block, under the watch of its thread, if there is one.
#[inline]
pub fn guarded<T>(write: impl FnOnce() -> T) -> T {
    // ORDERING: the watcher reads a mark some milliseconds later; nothing else hangs on it.
    let step = |mark: &AtomicU64| {
        mark.store(mark.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    };
    WATCH.with(|watch| {
        let mark = watch.get().map(|watch| &*watch.0);
        mark.inspect(|mark| step(mark));
        let result = write();
        mark.inspect(|mark| step(mark));
        result
    })
}

fn start_watcher() -> io::Result<()> {
    static STARTED: OnceLock<()> = OnceLock::new();
    static STARTING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    if STARTED.get().is_some() {
        return Ok(());
    }
    extern "C" fn do_nothing(_signal: i32) {}
    // Without SA_RESTART: the point is that the system call ends.
    let action = SigAction::new(SigHandler::Handler(do_nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing, so it is async-signal-safe, and nobody else handles SIGURG.
    unsafe { sigaction(NUDGE, &action) }?;
    thread::Builder::new().name("slipway-watch".into()).spawn(watch)?;
    STARTED.get_or_init(|| ());
    Ok(())
}

/// The watcher. It ends with the process.
fn watch() {
    loop {
        thread::sleep(TURN);
        for watched in watched().iter_mut() {
            let now = watched.mark.load(Ordering::Relaxed);
            if now % 2 == 1 && now == watched.last {
                // It runs: its entry is removed, under the lock that we hold, before it ends.
                let _ = pthread_kill(watched.thread, NUDGE);
            }
            watched.last = now;
        }
    }
}
