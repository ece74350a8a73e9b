//! slipway-cni: the CNI plugin (CNI specification 0.3.1 to 1.1.0), which hands its call to slipwayd.
//!
//! ```text
//! container engine                slipway-cni                         slipwayd
//!   environment (CNI_*) ---.
//!   stdin (configuration) --`--> POST /v1/cni, as it came ----------> judges it, attaches, detaches
//!   stdout, exit code <--------- as it was answered <---------------- result or error document
//! ```
//! A container engine starts it for each pod, so what it takes is paid by each of them. Hence it decides nothing:
//! it looks into the configuration for slipwayd's socket, and that is all it knows of networks. By itself it
//! answers VERSION, which needs no switch, and says so when there is none.
//!
//! # How it starts
//! The process costs more than what it does here: a C library looks at the processor before anything else, with
//! instructions (CPUID) that every hypervisor intercepts. So this package is `no_std`, and the program that is
//! installed (feature `bare`) begins in `start.rs`, with neither libc nor Rust's runtime. Without that feature
//! the same code is an ordinary program. See docs/decisions/0022-plugin-without-libc.md.
//!
//! # Bounds
//! [`MAX_ENVIRONMENT_BYTES`] and [`MAX_CONFIG_BYTES`] of a call, [`MAX_ANSWER_BYTES`] of an answer. It waits
//! [`TIMEOUT_S`] for slipwayd.
//!
//! # Threads
//! One.
#![no_std]

extern crate alloc;

mod confine;
mod error;
mod exchange;
mod run;
mod stdio;

pub use error::{CniError, Code};
pub use run::run;

/// The versions of the specification that are spoken, in their order.
pub const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Where slipwayd takes calls: the environment as execve(2) has it, each variable ended by a zero byte, one more
/// zero byte, and the configuration.
pub const ROUTE: &str = "/v1/cni";

/// The variable that says when the plugin was started, in milliseconds since 1970; the plugin adds it.
pub const STARTED_MS: &str = "SLIPWAY_STARTED_MS";

/// All of the environment that is the container engine's (`CNI_*`), in bytes.
pub const MAX_ENVIRONMENT_BYTES: usize = 32 << 10;

/// The longest configuration that is read, in bytes.
pub const MAX_CONFIG_BYTES: usize = 1 << 20;

/// The longest answer that is read, in bytes.
pub const MAX_ANSWER_BYTES: usize = 1 << 20;

/// How long slipwayd may be silent, in seconds.
pub const TIMEOUT_S: u64 = 10;

/// HTTP's status of a call that went well.
pub const STATUS_DONE: u16 = 200;

/// HTTP's status of a call that failed, whose body is the specification's error document.
pub const STATUS_FAILED: u16 = 422;
