//! What the tests of rings and pipeline share.
#![allow(dead_code, reason = "each test uses the part it needs")]

pub mod model;
pub mod net;
pub mod rig;
pub mod twin;

/// Names the seed when the test fails while it is in use.
pub struct Seed(pub u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with seed {}", self.0);
        }
    }
}
