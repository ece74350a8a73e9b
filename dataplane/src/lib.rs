//! x
pub mod fdb;
pub mod flow;
pub mod offload;
pub mod wire;
