//! `cargo xtask figures`: the figures of the README, measured on this machine.
//!
//! Of the [`switch`] alone, or with `--pods` of [`pods`]: how long they take to start, and what they
//! cost.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use vmm_glue::accel::AccelChoice;

mod machine;
mod memory;
mod pods;
mod report;
mod spread;
pub mod starts;
mod switch;
mod timeline;

/// Pods that fit into the memory of a large node.
const MOST_PODS: i64 = 400;

/// Arguments of `cargo xtask figures`
#[derive(Args)]
pub struct Arguments {
    /// Measure pods, not the switch: N of them one after the other, and N at once
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "10")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=MOST_PODS))]
    pods: Option<u16>,
    /// How often to measure the pods
    #[arg(long, value_name = "N", requires = "pods", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Who runs the guests' instructions: kvm, tcg, or auto, which tries KVM first
    #[arg(long, requires = "pods", default_value_t)]
    accel: AccelChoice,
    /// Where figures.json and figures.svg go [default: slipway below cargo's target directory]
    #[arg(long, requires = "pods", value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// For the switch's figures, e.g. `--rounds 9 --json`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, conflicts_with = "pods")]
    rest: Vec<String>,
}

/// Runs `cargo xtask figures`.
pub fn main(arguments: &Arguments) -> Result<()> {
    let Arguments { pods, runs, accel, out, rest } = arguments;
    match pods {
        None => switch::measure(rest),
        Some(pods) => pods::measure(&pods::Plan {
            pods: usize::from(*pods),
            runs: usize::from(*runs),
            accel: *accel,
            out: out.clone(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn read(line: &str) -> Result<Arguments, clap::Error> {
        let words = ["figures"].into_iter().chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| line.arguments)
    }

    #[test]
    fn without_pods_the_words_are_for_the_switch() {
        let arguments = read("--rounds 9 --json").unwrap();
        assert_eq!(
            (arguments.pods, arguments.rest.join(" ").as_str()),
            (None, "--rounds 9 --json")
        );
        assert_eq!(read("").unwrap().pods, None);
    }

    #[test]
    fn pods_are_ten_unless_told_otherwise() {
        let arguments = read("--pods --runs 3").unwrap();
        assert_eq!((arguments.pods, arguments.runs), (Some(10), 3));
        assert_eq!(read("--pods 4").unwrap().pods, Some(4));
        for line in ["--pods 0", "--pods 401", "--pods 4 --runs 0", "--runs 2", "--pods 4 --json"] {
            assert!(read(line).is_err(), "{line}");
        }
    }
}
