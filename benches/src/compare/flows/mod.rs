//! The data plane: what connected pods get out of their network, and what that takes.
//!
//! ```text
//!  experiment    a figure: an id, points on its axis, what is drawn of it      one constant for each
//!  measurement   what one arm gave at one point in one round                   stored in samples.json
//!  run           rounds, interleaved: each arm is set up, serves all points, is taken down
//!    Bench       a kind of endpoints: which arms it has, how one is set up     [containers], [microvms]
//!    Node        an arm that is up, with as many pairs as were needed so far
//! ```
//! There are two kinds of endpoints, and no figure has both: kernel TCP in network namespaces, and a user-space
//! guest behind a virtio device. Real QEMU guests, and whole pods, of which only the start is measured, are stored and drawn alike.

pub mod congestion;
pub mod containers;
pub mod cpu;
pub mod experiment;
pub mod fair;
pub mod measurement;
pub mod microvms;
pub mod pods;
pub mod qemu;
pub mod run;
