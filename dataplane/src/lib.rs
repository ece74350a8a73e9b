//! The switch.

pub mod control;
//! x
pub mod fdb;
pub mod flow;
pub mod vhost;
pub mod wire;

#[cfg(feature = "testing")]
pub mod testing;
