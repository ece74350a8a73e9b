//! The switch.

pub mod control;
pub mod vhost;
