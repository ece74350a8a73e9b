//! Measuring the switch: a rig to put together, traffic to send through it, and figures to print.
//!
//! Benchmarks measure; tests do not time. Every figure here comes out of one run on one machine,
//! several rounds interleaved, as a median with its spread.

pub mod ab;
pub mod belongings;
pub mod cases;
pub mod circle;
pub mod compare;
pub mod distance;
pub mod ends;
pub mod figures;
pub mod host;
pub mod interrupt;
pub mod limit;
pub mod local;
pub mod machine;
pub mod mann_whitney;
pub mod measure;
pub mod order;
pub mod peer;
pub mod ports;
pub mod reference;
pub mod report;
pub mod results;
pub mod rig;
pub mod runner;
pub mod scenario;
pub mod stats;
pub mod steal;
pub mod syscalls;
pub mod traffic;
pub mod wake;
