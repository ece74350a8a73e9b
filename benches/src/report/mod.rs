//! What a run gave, for people ([`table`], [`svg`]), for programs ([`json`]), and against what was
//! aimed at ([`targets`]).

pub mod ab;
pub mod json;
pub mod svg;
pub mod table;
pub mod targets;
