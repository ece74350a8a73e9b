//! x

pub mod config;
pub mod control;
