//! `cargo xtask test`: everything that continuous integration runs, step by step.
//!
//! A step that fails does not keep the later ones from running: one run shows all that is wrong. The
//! last line counts the tests of all steps.

use std::env;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::command::{self, Ending};
use crate::deps::{self, Purpose};
use crate::rig::oci_image;
use crate::{guest, peers, workspace};

/// Arguments of `cargo xtask test`
#[derive(Args)]
pub struct Arguments {
    /// Run only the steps whose names contain one of these
    steps: Vec<String>,
}

/// One step: a name and the cargo command that it is.
struct Step {
    name: &'static str,
    command: &'static [&'static str],
    /// Some of it boots guests or runs pods: packages, the guest image and the pods' must be there, and
    /// we must be root.
    privileged: bool,
}

/// All steps, the quick ones first.
const STEPS: &[Step] = &[
    Step { name: "format", command: &["fmt", "--all", "--check"], privileged: false },
    Step {
        name: "clippy",
        command: &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--features",
            "benches/instructions",
            "--",
            "-D",
            "warnings",
        ],
        privileged: false,
    },
    Step {
        name: "clippy of the plugin without libc",
        command: &[
            "clippy",
            "--package",
            "slipway-cni",
            "--bin",
            "slipway-cni",
            "--features",
            "bare",
            "--profile",
            "small",
            "--",
            "-D",
            "warnings",
        ],
        privileged: false,
    },
    // One selection of packages for all: another one would have other features, and dependencies
    // would be compiled again for it.
    Step {
        name: "unit tests",
        command: &["test", "--no-fail-fast", "--workspace", "--lib", "--bins"],
        privileged: true,
    },
    Step {
        name: "integration tests: VMMs, guests and pods as well",
        command: &["test", "--no-fail-fast", "--workspace", "--test", "*"],
        privileged: true,
    },
    Step {
        name: "containers of the agent",
        command: &["test", "--workspace", "--test", "containers", "--", "--ignored"],
        privileged: true,
    },
    Step { name: "doc tests", command: &["test", "--workspace", "--doc"], privileged: false },
    Step {
        name: "documentation",
        command: &["doc", "--workspace", "--no-deps", "--document-private-items"],
        privileged: false,
    },
];

/// What a step came to.
struct Outcome {
    name: &'static str,
    seconds: u64,
    passed: u64,
    failed: u64,
    ok: bool,
}

/// Runs `cargo xtask test`.
pub fn main(arguments: &Arguments) -> Result<()> {
    let wanted = |step: &&Step| {
        arguments.steps.is_empty() || arguments.steps.iter().any(|name| step.name.contains(name))
    };
    let steps: Vec<_> = STEPS.iter().filter(wanted).collect();
    if steps.is_empty() {
        let names: Vec<_> = STEPS.iter().map(|step| step.name).collect();
        bail!("No step has such a name; there are: {}", names.join("; "));
    }
    let (mut guest_dir, mut testpmd) = (None, None);
    if steps.iter().any(|step| step.privileged) {
        use Purpose::{Compare, Net, Pods, Share, Trace, Vm};
        deps::ensure(&[Vm, Share, Net, Trace, Pods, Compare])?;
        testpmd = Some(peers::ensure()?);
        guest::ensure(false)?;
        oci_image::ensure()?;
        guest_dir = Some(workspace::target().join("guest"));
    }
    let mut outcomes = Vec::new();
    for step in steps {
        println!("\n==> {} (cargo {})", step.name, step.command.join(" "));
        let mut command = Command::new(workspace::cargo());
        command.args(step.command).current_dir(workspace::root());
        if step.name == "documentation" {
            command.env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links");
        }
        if let Some(dir) = &guest_dir {
            command.env("SLIPWAY_GUEST_DIR", dir);
        }
        if let Some(folder) = &testpmd {
            command.env("SLIPWAY_TESTPMD", folder);
        }
        if step.command.contains(&"*") {
            // Cargo builds the programs of a package with its integration tests. To build them in
            // release as well would take minutes.
            let programs = workspace::target().join("debug");
            let or_set = |name, path| env::var_os(name).unwrap_or(path);
            command.env("SLIPWAYD", or_set("SLIPWAYD", programs.join("slipwayd").into()));
            command.env("SLIPWAY_PROGRAMS", or_set("SLIPWAY_PROGRAMS", programs.into()));
            // Its own tests judge the plugin that is installed, which starts otherwise than cargo's.
            let plugin = workspace::PLUGIN.build(&workspace::target())?;
            command.env("SLIPWAY_CNI", or_set("SLIPWAY_CNI", plugin.into()));
        }
        outcomes.push(run(step.name, command)?);
    }
    report(&outcomes)
}

/// Runs one step, shows what it prints, and counts tests.
fn run(name: &'static str, mut command: Command) -> Result<Outcome> {
    #[expect(clippy::disallowed_methods, reason = "tells how long each step took")]
    let begin = Instant::now();
    command.stdout(Stdio::piped());
    let (status, (passed, failed)) = command::run(&mut command, Ending::Firm, |child| {
        let mut sums = (0, 0);
        let Some(stdout) = child.stdout.take() else { return Ok(sums) };
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            if let Some((passed, failed)) = counts(&line) {
                sums = (sums.0 + passed, sums.1 + failed);
            }
            println!("{line}");
        }
        Ok(sums)
    })
    .with_context(|| format!("The step \"{name}\" did not come to its end"))?;
    let seconds = begin.elapsed().as_secs();
    Ok(Outcome { name, seconds, passed, failed, ok: status.success() })
}

/// Passed and failed tests of a line as the test harness closes with:
/// `test result: ok. 3 passed; 0 failed; 0 ignored; ...`.
fn counts(line: &str) -> Option<(u64, u64)> {
    let rest = line.strip_prefix("test result: ")?;
    let number = |word: &str| {
        let before = rest.split(';').find(|part| part.trim_end().ends_with(word))?;
        before.trim_end().strip_suffix(word)?.split_whitespace().next_back()?.parse().ok()
    };
    Some((number("passed")?, number("failed")?))
}

fn report(outcomes: &[Outcome]) -> Result<()> {
    println!("\n{:<40} {:>8} {:>8} {:>8}", "step", "seconds", "passed", "failed");
    for Outcome { name, seconds, passed, failed, ok } in outcomes {
        let mark = if *ok { "" } else { "  FAILED" };
        println!("{name:<40} {seconds:>8} {passed:>8} {failed:>8}{mark}");
    }
    let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
    println!("\n{} passed, {} failed", sum(|o| o.passed), sum(|o| o.failed));
    let bad: Vec<_> = outcomes.iter().filter(|o| !o.ok).map(|o| o.name).collect();
    if bad.is_empty() { Ok(()) } else { bail!("Failed: {}", bad.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_line_of_the_harness_is_counted_and_no_other() {
        let line = "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 0 filtered \
                    out; finished in 0.02s";
        assert_eq!(counts(line), Some((12, 3)));
        assert_eq!(counts("test result: soon"), None);
        assert_eq!(counts("12 passed; 3 failed"), None);
    }
}
