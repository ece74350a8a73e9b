//! What a runtime and the agent of a Kata guest say to each other: ttrpc messages and services.
//!
//! The `.proto` files beside this crate name the messages as the Kata agent does; numbers have not
//! changed since Kata 3.0, so a client of these works with any agent since. An agent that does not
//! know a method answers `UNIMPLEMENTED` or `NOT_FOUND`: treat both as "an older agent".
//!
//! # Transport
//! ttrpc over one stream: vsock, or any byte stream that reaches the agent. Frames carry at most
//! 4 MiB; files go in pieces of [`MAX_CHUNK_BYTES`].

#![allow(
    missing_docs,
    missing_debug_implementations,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    reason = "generated code"
)]

mod generated {
    include!(concat!(env!("OUT_DIR"), "/mod.rs"));
}

pub use generated::{agent, agent_ttrpc, csi, health, health_ttrpc, oci, types};
pub use protobuf;
pub use ttrpc;

/// vsock port of the agent's services, unless `agent.server_addr` says another.
pub const AGENT_PORT: u32 = 1024;

/// vsock port of the debug console, if it is switched on.
pub const DEBUG_CONSOLE_PORT: u32 = 1026;

/// How much of a file or a stream goes in one message, in bytes.
pub const MAX_CHUNK_BYTES: usize = 1 << 20;
