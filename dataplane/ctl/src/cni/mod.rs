//! slipway-cni: the CNI plugin (CNI specification 0.3.1 to 1.1.0) as a client of slipwayd.
//!
//! ```text
//! environment --call--> what is asked, for which container     stdin --config--> which network
//!                           `------------- run: one or two calls of slipway_api::blocking
//!                                            `--> reply: result or error, as JSON on stdout
//! ```
//! An ADD makes an attachment in slipwayd and nothing else: no device, no netlink message, and the
//! network namespace is not entered. The interface that the result tells of appears in the guest,
//! when the shim asks slipwayd for the attachments of its sandbox.
//!
//! # Threads
//! One.

mod call;
mod config;
mod error;
mod reply;
mod run;

pub use error::{CniError, Code};
pub use run::run;

/// The versions of the specification that are spoken, in their order.
pub const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The label of an attachment that says which network configuration made it.
pub const LABEL_NETWORK: &str = "cni-network";
/// The label that says when the plugin was started, in milliseconds since 1970.
pub const LABEL_STARTED_MS: &str = "cni-started-ms";
