//! The literature's experiments side by side: ways to connect pods, each with what it takes.
//!
//! ```text
//!  arms      how a pod is connected                       one implementation for each
//!  burst     N pods set up at once and taken down         the start-up figures
//!  count     rtnetlink and RTNL, in a pass of its own
//!  flows     what pods that are up get out of their network: the data-plane figures
//!  run       rounds, interleaved  --->  samples           all that was measured
//!  summary   medians and their intervals  <---'
//!  claims    what the literature says, and whether it is so here
//!  report    table, pictures, one page, tests of two files against each other
//! ```
//! All of it happens on a host of our own ([`apart`]), which is gone when we are.

pub mod apart;
pub mod arms;
pub mod burst;
pub mod claims;
pub mod count;
pub mod figures;
pub mod flows;
pub mod guests;
pub mod launch;
mod meminfo;
mod pod;
pub mod report;
mod route;
pub mod run;
pub mod samples;
pub mod summary;
