//! `cargo xtask bench instructions`: what a change costs where no clock can be trusted.
//!
//! Counts of callgrind, driven by gungraun, repeat whatever else the machine does. They are of one
//! compiler, one C library (its memcpy is among them) and one kind of processor (which memcpy that
//! is): whoever changes one of these stores a new baseline, with `--save-baseline`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::command::{self, Ending};
use crate::deps::{self, Purpose};
use crate::workspace;

const RUNNER: &str = "gungraun-runner";
/// That of the crate gungraun in the workspace's manifest: they have to match.
const VERSION: &str = "0.20.0";
/// More instructions than this over the baseline's are a regression.
const TOLERANCE_PERCENT: u64 = 2;
/// Frames that every case handles, as `benches::cases` has it.
const FRAMES: f64 = 256.0;

/// Arguments of `cargo xtask bench instructions`
#[derive(Args)]
pub struct Arguments {
    /// Store the counts as what later ones are compared with
    #[arg(long)]
    save_baseline: bool,
}

/// Counts, by case.
type Counts = BTreeMap<String, u64>;

/// What is stored.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Baseline {
    /// What compiled the switch.
    rustc: String,
    /// Of each case, all its frames together.
    instructions: Counts,
}

/// Runs `cargo xtask bench instructions`.
pub fn main(arguments: &Arguments) -> Result<()> {
    deps::ensure(&[Purpose::Count])?;
    let runner = deps::install_crate(RUNNER, VERSION)?.join(RUNNER);
    let now = Baseline { rustc: rustc()?, instructions: count(&runner)? };
    let path = workspace::root().join("benches/baseline/instructions.json");
    if arguments.save_baseline {
        let text = serde_json::to_string_pretty(&now)?;
        fs::create_dir_all(path.with_file_name("")).context("Failed to make a folder")?;
        fs::write(&path, text + "\n")
            .with_context(|| format!("Failed to write {}", path.display()))?;
        print(&now.instructions, &now.instructions);
        println!("\nStored {}", path.display());
        return Ok(());
    }
    let text = fs::read_to_string(&path)
        .with_context(|| format!("There is no {}; make it with --save-baseline", path.display()))?;
    let before: Baseline =
        serde_json::from_str(&text).with_context(|| format!("{} is broken", path.display()))?;
    let bad = print(&before.instructions, &now.instructions);
    if before.rustc != now.rustc {
        println!("\nThe baseline is of {}, this of {}", before.rustc, now.rustc);
    }
    println!("\nMore of each: callgrind_annotate {}/gungraun/...", workspace::target().display());
    ensure!(
        bad.is_empty(),
        "Instructions are not as in the baseline: {}. If they are meant to be, store them with \
         --save-baseline",
        bad.join(", ")
    );
    Ok(())
}

fn rustc() -> Result<String> {
    let output = command::output(Command::new("rustc").arg("--version"))?;
    ensure!(output.status.success(), "rustc does not tell its version");
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Runs every case below callgrind. Blocks.
fn count(runner: &Path) -> Result<Counts> {
    let mut bench = Command::new(workspace::cargo());
    bench
        .args([
            "bench",
            "--quiet",
            "--locked",
            "--package",
            "benches",
            "--features",
            "instructions",
        ])
        .args(["--bench", "instructions", "--target-dir"])
        .arg(workspace::target())
        .args(["--", "--output-format=json"])
        .env("GUNGRAUN_RUNNER", runner)
        .current_dir(workspace::root())
        .stdout(Stdio::piped());
    let (status, printed) = command::run(&mut bench, Ending::Firm, |child| {
        let mut text = String::new();
        child.stdout.take().map_or(Ok(0), |mut stdout| stdout.read_to_string(&mut text))?;
        Ok(text)
    })?;
    ensure!(status.success(), "The cases could not be counted: {status}\n{printed}");
    let summaries = printed.lines().filter(|line| line.starts_with('{'));
    let counts = summaries.map(summary).collect::<Result<Counts>>()?;
    if counts.is_empty() {
        bail!("gungraun printed no counts:\n{printed}");
    }
    Ok(counts)
}

/// Case and count of one of gungraun's summaries, its version 7.
fn summary(line: &str) -> Result<(String, u64)> {
    let value: Value = serde_json::from_str(line).context("A summary of gungraun is no JSON")?;
    let name = value["id"].as_str().context("A summary of gungraun names no case")?;
    let profiles = value["profiles"].as_array().map_or(&[][..], Vec::as_slice);
    let counts = profiles.iter().find_map(|profile| {
        profile.pointer("/data/total/metrics/Ir/values/new").and_then(Value::as_u64)
    });
    let count = counts.with_context(|| format!("A summary of gungraun counts nothing: {line}"))?;
    Ok((name.to_owned(), count))
}

/// What became of a case.
#[derive(Debug, PartialEq)]
enum Change {
    Same,
    Fewer,
    More,
    /// It has no baseline.
    New,
    /// It was not counted.
    Gone,
}

fn change(before: Option<u64>, now: Option<u64>) -> Change {
    let (before, now) = match (before, now) {
        (Some(before), Some(now)) => (before, now),
        (None, _) => return Change::New,
        (_, None) => return Change::Gone,
    };
    if now * 100 > before * (100 + TOLERANCE_PERCENT) {
        Change::More
    } else if now * 100 < before * (100 - TOLERANCE_PERCENT) {
        Change::Fewer
    } else {
        Change::Same
    }
}

/// Prints a table, and returns what of it is no good.
fn print(before: &Counts, now: &Counts) -> Vec<String> {
    println!("Instructions for a frame, by callgrind");
    println!("{:<22} {:>10} {:>10} {:>9}", "case", "baseline", "now", "change");
    let mut bad = Vec::new();
    let names: std::collections::BTreeSet<_> = before.keys().chain(now.keys()).collect();
    for name in names {
        let (before, now) = (before.get(name).copied(), now.get(name).copied());
        let number = |count: Option<u64>| match count {
            Some(count) => format!("{:.1}", count as f64 / FRAMES),
            None => "-".to_owned(),
        };
        let percent = match (before, now) {
            (Some(before), Some(now)) => {
                format!("{:+.2} %", (now as f64 / before as f64 - 1.0) * 100.0)
            }
            _ => String::new(),
        };
        let verdict = match change(before, now) {
            Change::Same => "",
            Change::Fewer => "fewer",
            Change::More => "MORE",
            Change::New => "not in the baseline",
            Change::Gone => "NOT COUNTED",
        };
        println!("{name:<22} {:>10} {:>10} {percent:>9}  {verdict}", number(before), number(now));
        if matches!(change(before, now), Change::More | Change::New | Change::Gone) {
            bad.push(name.clone());
        }
    }
    bad
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_the_tolerance_is_a_regression_and_so_is_what_is_missing() {
        assert_eq!(change(Some(1000), Some(1020)), Change::Same);
        assert_eq!(change(Some(1000), Some(1021)), Change::More);
        assert_eq!(change(Some(1000), Some(979)), Change::Fewer);
        let of = |counts: &[(&str, u64)]| -> Counts {
            counts.iter().map(|&(name, count)| (name.to_owned(), count)).collect()
        };
        let before = of(&[("gone", 5), ("more", 100), ("same", 100)]);
        let now = of(&[("more", 110), ("new", 5), ("same", 101)]);
        assert_eq!(print(&before, &now), ["gone", "more", "new"]);
        assert_eq!(print(&now, &now), Vec::<String>::new());
    }

    #[test]
    fn a_summary_tells_its_case_and_count() {
        let line = r#"{"id":"fdb_hit","profiles":[{"data":{"parts":[],"total":{"metrics":
            {"Ir":{"values":{"new":55642}}},"regressions":[]}},"tool":"Callgrind"}]}"#;
        assert_eq!(summary(line).unwrap(), ("fdb_hit".to_owned(), 55_642));
        assert!(summary(r#"{"id":"fdb_hit","profiles":[]}"#).is_err());
        assert!(summary("{}").is_err());
    }

    #[test]
    fn the_runner_is_of_the_version_that_the_workspace_has() {
        let manifest = fs::read_to_string(workspace::root().join("Cargo.toml")).unwrap();
        assert!(manifest.contains(&format!("gungraun = \"={VERSION}\"")), "not {VERSION}");
    }
}
