//! The agent as a pod's agent: the real program in namespaces of its own, driven over a UNIX
//! socket as a runtime drives it over vsock. There is no VM; containers get the machine's own
//! `/usr` as theirs.
//!
//! These need root and are part of the privileged tests: `cargo xtask test privileged`.

mod exec;
mod lifecycle;
mod network;
mod refusals;
mod rig;
mod sandbox;
mod signals;
mod streams;
