//! x
pub mod flow;
pub mod wire;
