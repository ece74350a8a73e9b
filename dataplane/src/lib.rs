//! x
pub mod fdb;
pub mod flow;
pub mod wire;
