//! Parts of the switch to be run over and over in one thread: what instructions are counted of
//! (`benches/instructions.rs`) and what is timed (`benches/stages.rs`).
//!
//! ```text
//!  prepare  guests fill and empty their rings      not measured
//!  run      the code of the switch, FRAMES frames  measured, without anything of a guest
//! ```
//!
//! A case repeats exactly: addresses, hash seeds and the order of frames are fixed.

mod parts;
mod pipeline;
mod rings;

use anyhow::{Context as _, Result};

/// Frames of one run.
pub const FRAMES: usize = 256;
/// Frames that are handled together.
const BURST: usize = 32;
/// Bytes that a frame on a wire has more: its check sequence.
const FCS: usize = 4;

/// A part of the switch, set up.
pub trait Case {
    /// Makes ready for a run.
    ///
    /// # Errors
    /// The run before left something else than it should have.
    fn prepare(&mut self) -> Result<()>;

    /// Handles [`FRAMES`] frames; returns what keeps a compiler from leaving the work out.
    ///
    /// # Errors
    /// They are not handled as they should be.
    fn run(&mut self) -> Result<u64>;
}

type Make = fn() -> Result<Box<dyn Case>>;

/// All there are, by name: what, with which rings, bytes on a wire.
pub const ALL: &[(&str, Make)] = &[
    ("pop_split_64", || rings::pop(false, 64)),
    ("pop_split_1518", || rings::pop(false, 1518)),
    ("pop_packed_64", || rings::pop(true, 64)),
    ("pop_packed_1518", || rings::pop(true, 1518)),
    ("push_split_64", || rings::push(false, 64)),
    ("push_split_1518", || rings::push(false, 1518)),
    ("push_packed_64", || rings::push(true, 64)),
    ("push_packed_1518", || rings::push(true, 1518)),
    ("parse_l2", parts::parse_l2),
    ("parse_udp4", parts::parse_udp4),
    ("parse_tcp6", parts::parse_tcp6),
    ("fdb_hit", parts::fdb_hit),
    ("fdb_miss", parts::fdb_miss),
    ("fdb_refresh", parts::fdb_refresh),
    ("spoof_bound", parts::spoof_bound),
    ("neighbour_none", parts::neighbour_none),
    ("neighbour_arp", parts::neighbour_arp),
    ("pipeline_split_64", || pipeline::one_way(false, false, 64, 1)),
    ("pipeline_packed_64", || pipeline::one_way(true, false, 64, 1)),
    ("pipeline_bound_64", || pipeline::one_way(false, true, 64, 1)),
    ("pipeline_policy_64", || pipeline::with_policy(16)),
    ("pipeline_split_1518", || pipeline::one_way(false, false, 1518, 1)),
    ("pipeline_fan8_64", || pipeline::one_way(false, false, 64, 8)),
];

/// The case of this name, ready for its first run.
///
/// # Errors
/// There is none; it cannot be set up.
pub fn prepared(name: &str) -> Result<Box<dyn Case>> {
    let named = ALL.iter().find(|(other, _)| *other == name);
    let (_, make) = named.with_context(|| format!("There is no case {name:?}"))?;
    let mut case = make().with_context(|| format!("Failed to set up {name}"))?;
    case.prepare().with_context(|| format!("Failed to prepare {name}"))?;
    Ok(case)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_runs_again_and_again() {
        for (name, _) in ALL {
            let mut case = prepared(name).unwrap();
            let first = case.run().unwrap();
            assert_ne!(first, 0, "{name}");
            case.prepare().unwrap();
            assert_eq!(case.run().unwrap(), first, "{name}");
        }
    }

    #[test]
    fn instructions_are_counted_of_every_case() {
        let bench = include_str!("../benches/instructions.rs");
        for (name, _) in ALL {
            let line = format!("#[bench::{name}(\"{name}\")]");
            assert!(bench.contains(&line), "there is no {line} in benches/instructions.rs");
        }
    }

    #[test]
    fn what_was_not_prepared_anew_is_noticed() {
        for name in ["pop_split_64", "push_packed_64", "pipeline_split_64"] {
            let mut case = prepared(name).unwrap();
            case.run().unwrap();
            assert!(case.run().is_err(), "{name}");
        }
    }
}
