//! The protocols by which threads of the switch agree, made of the very files of `dataplane` but with
//! loom's locks and atomics: `tests/` walks through all interleavings of their threads, and all values
//! that the memory model of Rust lets an atomic have.
//!
//! A package of its own, so that neither the switch nor what it depends on is built with `cfg(loom)`.

#[path = "../../src/pmd/doze.rs"]
pub mod doze;
#[path = "../../src/port/handover.rs"]
pub mod handover;

/// In place of `dataplane::sync`.
pub mod sync {
    pub use std::sync::PoisonError;

    pub use loom::sync::atomic::{AtomicBool, Ordering, fence};
    pub use loom::sync::{Mutex, MutexGuard};
}
