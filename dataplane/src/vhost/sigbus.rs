//! Survives SIGBUS: guest memory whose file was cut short after it was mapped.
//!
//! # How it works
//! A VMM can truncate (or, with huge pages, punch or exhaust) the file behind memory that it shares
//! with us. The next touch raises SIGBUS in the thread that touches, usually a PMD. A handler finds
//! the mapping in a static table, puts anonymous zero pages in place of the whole of it, marks it
//! dead, and the touch is repeated on zeroes. The owner of the mapping sees [`Guard::is_dead`] and
//! gives the port up; other ports do not notice. A fault outside every guarded range is a bug of
//! ours: the previous action is restored and the fault kills the process.
//!
//! # Bounds
//! [`SLOTS`] ranges: the kernel's own default limit of mappings a process (vm.max_map_count), so it
//! is never the tighter one. The handler's search is linear in the slots ever used at once.
//!
//! # Threads
//! Lock-free, as a handler must be. A slot is in one state at a time:
//!
//! ```text
//!   FREE -> CLAIMED -> LIVE ------> PATCHING -> DEAD (-> PATCHING ..)
//!    ^                   '-> FREE     ^  one handler maps; others and the      '-> FREE
//!    '-- drop waits while PATCHING ---'  owner's drop wait the moment it takes
//! ```
//! A handler takes a slot by compare-and-swap and reads the range again under it, so a slot that
//! was freed and used anew meanwhile is not mistaken for the old one; and a range cannot be
//! unmapped by its owner while a handler is about to map over it.
#![expect(unsafe_code, reason = "a signal handler that replaces a mapping")]

use std::ffi::c_int;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// How many ranges can be guarded at once.
pub const SLOTS: usize = 65536;

const FREE: usize = 0;
const CLAIMED: usize = 1;
const LIVE: usize = 2;
const PATCHING: usize = 3;
const DEAD: usize = 4;

struct Slot {
    state: AtomicUsize,
    start: AtomicUsize,
    len: AtomicUsize,
}

impl Slot {
    const fn free() -> Self {
        Self { state: AtomicUsize::new(FREE), start: AtomicUsize::new(0), len: AtomicUsize::new(0) }
    }

    /// ORDERING: relaxed, as the caller either holds the slot (acquired with its state) or checks
    /// again once it does.
    fn contains(&self, addr: usize) -> bool {
        let start = self.start.load(Ordering::Relaxed);
        addr.wrapping_sub(start) < self.len.load(Ordering::Relaxed)
    }

    /// Takes the slot from `from` to `to`. ORDERING: acquires what the previous holder wrote.
    fn take(&self, from: usize, to: usize) -> bool {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

static TABLE: [Slot; SLOTS] = [const { Slot::free() }; SLOTS];
/// One past the highest slot that was ever claimed.
static USED: AtomicUsize = AtomicUsize::new(0);
static HITS: AtomicU64 = AtomicU64::new(0);
static PREVIOUS: OnceLock<SigAction> = OnceLock::new();

/// Mappings replaced by zero pages since the process began.
#[inline]
pub fn hits() -> u64 {
    HITS.load(Ordering::Relaxed)
}

/// Keeps a range of mapped memory guarded until it is dropped, which must be before the range is
/// unmapped.
#[derive(Debug)]
pub struct Guard {
    slot: usize,
}

impl Guard {
    /// Guards `len` bytes from address `start` on: one whole mapping, which nothing else shares.
    /// `None` if the table is full or the handler cannot be installed.
    pub fn new(start: usize, len: usize) -> Option<Self> {
        install()?;
        let free = |slot: &Slot| slot.state.load(Ordering::Relaxed) == FREE;
        let slot = TABLE.iter().position(|slot| free(slot) && slot.take(FREE, CLAIMED))?;
        TABLE[slot].start.store(start, Ordering::Relaxed);
        TABLE[slot].len.store(len, Ordering::Relaxed);
        // ORDERING: publishes the range; the handler acquires it with the state.
        TABLE[slot].state.store(LIVE, Ordering::Release);
        USED.fetch_max(slot + 1, Ordering::Release);
        Some(Self { slot })
    }

    /// Whether the memory was replaced by zero pages.
    #[inline]
    pub fn is_dead(&self) -> bool {
        matches!(TABLE[self.slot].state.load(Ordering::Relaxed), PATCHING | DEAD)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let slot = &TABLE[self.slot];
        while !slot.take(LIVE, FREE) && !slot.take(DEAD, FREE) {
            std::hint::spin_loop();
        }
    }
}

/// Installs the handler, once.
fn install() -> Option<()> {
    static INSTALLED: OnceLock<bool> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| {
        let action = SigAction::new(
            SigHandler::SigAction(on_sigbus),
            SaFlags::SA_SIGINFO | SaFlags::SA_ONSTACK,
            SigSet::empty(),
        );
        // SAFETY: `on_sigbus` does only what a signal handler may: atomics, mmap, sigaction, raise.
        match unsafe { sigaction(Signal::SIGBUS, &action) } {
            Ok(previous) => PREVIOUS.set(previous).is_ok(),
            Err(_) => false,
        }
    });
    installed.then_some(())
}

extern "C" fn on_sigbus(_signal: c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo, ours until we return.
    let info = unsafe { &*info };
    let code = info.si_code;
    // SAFETY: SIGBUS fills the field in if it comes from a fault, and it is not used otherwise.
    let addr = unsafe { info.si_addr() } as usize;
    // A code above 0 is the kernel's: a fault. Others were sent by some process.
    if code > 0 && patch(addr) {
        return;
    }
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // A fault is repeated on return and meets the action that was there before us. A signal that
    // was sent is not repeated, and handlers for faults tend to take it for one: so, the default.
    let sent = code <= 0;
    let action = if sent { &default } else { PREVIOUS.get().unwrap_or(&default) };
    // SAFETY: either the default action or the one that was there before us.
    let _ = unsafe { sigaction(Signal::SIGBUS, action) };
    if sent {
        let _ = nix::sys::signal::raise(Signal::SIGBUS);
    }
}

/// Replaces the guarded range around `addr` by zero pages; `false` if there is none or the kernel
/// refuses. Async-signal-safe; leaves errno as it was.
fn patch(addr: usize) -> bool {
    let used = USED.load(Ordering::Acquire).min(SLOTS);
    TABLE[..used].iter().any(|slot| patch_slot(slot, addr))
}

fn patch_slot(slot: &Slot, addr: usize) -> bool {
    loop {
        let state = slot.state.load(Ordering::Acquire);
        if !matches!(state, LIVE | PATCHING | DEAD) || !slot.contains(addr) {
            return false;
        }
        if state == PATCHING {
            // Another thread faulted in the same range: its pages will serve us too.
            while slot.state.load(Ordering::Acquire) == PATCHING {
                std::hint::spin_loop();
            }
            return true;
        }
        if !slot.take(state, PATCHING) {
            continue;
        }
        // The slot may have been freed and claimed anew between the look and the take.
        if !slot.contains(addr) {
            slot.state.store(state, Ordering::Release);
            return false;
        }
        // From DEAD too: another thread may have faulted before the first replacement, and memory
        // that fails in hardware must not be tried for ever.
        let patched = map_zeroes(slot);
        if patched && state == LIVE {
            HITS.fetch_add(1, Ordering::Relaxed);
        }
        slot.state.store(if patched { DEAD } else { state }, Ordering::Release);
        return patched;
    }
}

fn map_zeroes(slot: &Slot) -> bool {
    let start = slot.start.load(Ordering::Relaxed) as *mut libc::c_void;
    let len = slot.len.load(Ordering::Relaxed);
    // SAFETY: errno is a thread-local int, always there.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let saved = unsafe { *errno };
    // SAFETY: the range is one whole mapping of guest memory that its owner keeps mapped while the
    // slot is held (drop waits for us). No Rust reference points into guest memory; it is only
    // accessed as bytes and atomics whose values are never trusted.
    let mapped = unsafe {
        libc::mmap(
            start,
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    // SAFETY: as above.
    unsafe { *errno = saved };
    mapped == start
}
