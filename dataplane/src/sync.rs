//! What threads agree by, under one name for the modules that loom walks through: there,
//! `dataplane/loom` puts loom's in its place.

pub use std::sync::atomic::{AtomicBool, Ordering, fence};
pub use std::sync::{Mutex, MutexGuard, PoisonError};
