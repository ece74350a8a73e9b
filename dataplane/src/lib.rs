//! The switch.

pub mod control;
pub mod flow;
pub mod vhost;
pub mod wire;
