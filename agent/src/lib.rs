//! What guest and host share: the words of the control channel and the test streams.
//!
//! The binary of this package is the init of slipway's own guest image (see `main.rs`). It talks
//! to the host over a virtio-serial port, in the lines of [`protocol`], and moves the streams of
//! [`pattern`] between guests. The host's half of the conversation is the `client` module,
//! behind the feature of that name.

#[cfg(feature = "client")]
pub mod client;
pub mod image;
pub mod lines;
pub mod pattern;
pub mod protocol;
