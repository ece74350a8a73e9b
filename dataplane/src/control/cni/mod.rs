//! Calls of the CNI plugin (CNI specification 0.3.1 to 1.1.0), as slipway-cni hands them over.
//!
//! ```text
//! POST /v1/cni --request--> environment --call--> what is asked, for which container
//!                           configuration --config--> which network
//!                               `------- run: one or two calls of Control
//!                                          `--> reply: result, or error document
//! ```
//! An ADD makes an attachment and nothing else: no device, no netlink message, and the
//! network namespace is not entered. The interface that the result tells of appears in the guest,
//! when the shim asks for the attachments of its sandbox.
//!
//! # Bounds
//! A call has at most [`MAX_CALL_BYTES`].

mod call;
mod config;
mod error;
mod reply;
mod request;
mod run;

use slipway_cni::{MAX_CONFIG_BYTES, MAX_ENVIRONMENT_BYTES};

pub use run::answer;

/// The longest call that is read, in bytes: what the plugin adds to the environment fits in as well.
pub const MAX_CALL_BYTES: usize = MAX_ENVIRONMENT_BYTES + MAX_CONFIG_BYTES + 1024;

/// The label of an attachment that says which network configuration made it.
const LABEL_NETWORK: &str = "cni-network";
/// The label that says when the plugin was started, in milliseconds since 1970.
const LABEL_STARTED_MS: &str = "cni-started-ms";
