//! The switch.

pub mod vhost;
