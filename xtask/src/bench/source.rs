//! Programs of any revision, built alike.
//!
//! ```text
//!  REV           -> tree ┐                       ┌ slipwayd-1f09…
//!  working tree  -> tree ┴> ab/source -> cargo -> ┴ slipwayd-83c2…
//!                           (checked out, built, removed)
//! ```
//!
//! The working tree is built from a snapshot in the same folder as every other revision, as cargo's
//! names of symbols, and so the order of code in a program, depend on where a package lies: the same
//! source gives the same program. A program is kept under the name of its tree, what cargo compiled
//! in `ab/build`.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

use crate::command::{self, Ending};
use crate::workspace;

/// What a program is built from.
#[derive(Debug)]
pub struct Source {
    /// For people.
    pub name: String,
    /// git's name of the tree, so of all files together.
    pub tree: String,
}

impl Source {
    /// Of a revision.
    ///
    /// # Errors
    /// There is no such revision.
    pub fn of_revision(revision: &str) -> Result<Self> {
        let tree =
            git(&["rev-parse", "--verify", "--quiet", &format!("{revision}^{{tree}}")], None)
                .with_context(|| format!("git knows no revision {revision:?}"))?;
        let short = git(&["rev-parse", "--short", &format!("{revision}^{{}}")], None)?;
        Ok(Self { name: format!("{revision} ({short})"), tree })
    }

    /// Of the working tree as it is, with files that git does not know yet but would not ignore.
    /// Neither the tree nor the index changes.
    ///
    /// # Errors
    /// git cannot read it.
    pub fn of_working_tree(workshop: &Workshop) -> Result<Self> {
        let index = workshop.folder.join("index");
        // From what git knows by now, so that it need not read every file.
        let current = git(&["rev-parse", "--path-format=absolute", "--git-path", "index"], None)?;
        fs::copy(&current, &index).with_context(|| format!("Failed to copy {current}"))?;
        git(&["add", "--all"], Some(&index))?;
        let tree = git(&["write-tree"], Some(&index))?;
        let short = git(&["rev-parse", "--short", "HEAD"], None)?;
        let is_clean = tree == git(&["rev-parse", "HEAD^{tree}"], None)?;
        let changes = if is_clean { "without changes" } else { "with changes" };
        Ok(Self { name: format!("working tree ({short} {changes})"), tree })
    }
}

/// Where programs are built, by one of us at a time.
#[derive(Debug)]
pub struct Workshop {
    folder: PathBuf,
    /// Held while this lives.
    _lock: File,
}

impl Workshop {
    /// Opens it.
    ///
    /// # Errors
    /// Somebody else is in it.
    pub fn open() -> Result<Self> {
        let folder = workspace::target().join("ab");
        let failed = || format!("Failed to make {}", folder.display());
        fs::create_dir_all(&folder).with_context(failed)?;
        let lock = File::create(folder.join("lock")).with_context(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { folder, _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                bail!("Another comparison runs in {}; wait for it", folder.display())
            }
            Err(TryLockError::Error(error)) => Err(error).with_context(failed),
        }
    }

    /// slipwayd of `source`, built unless it was before by this compiler.
    ///
    /// # Errors
    /// It does not compile; cargo has said why.
    pub fn slipwayd(&self, source: &Source) -> Result<PathBuf> {
        let program = self.folder.join(format!("slipwayd-{}", key(source)?));
        if program.exists() {
            return Ok(program);
        }
        println!("Building slipwayd of {}", source.name);
        let checkout = Checkout::of(&source.tree, self)?;
        let target = self.folder.join("build");
        let mut build = Command::new(workspace::cargo());
        build.args([
            "build",
            "--locked",
            "--release",
            "--package",
            "dataplane",
            "--bin",
            "slipwayd",
        ]);
        build.arg("--target-dir").arg(&target).current_dir(&checkout.folder);
        let status = command::status(&mut build, Ending::Firm)?;
        ensure!(status.success(), "slipwayd of {} does not compile", source.name);
        // Under its name only when it is whole.
        let half = program.with_extension("half");
        fs::copy(target.join("release/slipwayd"), &half)
            .and_then(|_| fs::rename(&half, &program))
            .with_context(|| format!("Failed to write {}", program.display()))?;
        Ok(program)
    }
}

/// What decides how a program comes out: its source, the compiler and the flags from outside.
fn key(source: &Source) -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = command::output(Command::new(rustc).arg("-vV"))?;
    ensure!(version.status.success(), "rustc does not tell its version");
    let mut hash = Sha256::new();
    hash.update(version.stdout);
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"] {
        hash.update(std::env::var_os(name).unwrap_or_default().as_encoded_bytes());
        hash.update([0]);
    }
    let [a, b, c, d, ..] = <[u8; 32]>::from(hash.finalize());
    Ok(format!("{}-{a:02x}{b:02x}{c:02x}{d:02x}", source.tree))
}

/// The files of a tree, gone when this is.
struct Checkout {
    folder: PathBuf,
}

impl Checkout {
    fn of(tree: &str, workshop: &Workshop) -> Result<Self> {
        let checkout = Self { folder: workshop.folder.join("source") };
        // Somebody may have been killed here.
        checkout.remove();
        let index = workshop.folder.join("index");
        git(&["read-tree", tree], Some(&index))?;
        // Unlike those of `git archive`, its files are as new as they are: cargo goes by that.
        let prefix = format!("--prefix={}/", checkout.folder.display());
        git(&["checkout-index", "--all", &prefix], Some(&index))?;
        Ok(checkout)
    }

    fn remove(&self) {
        if self.folder.exists()
            && let Err(error) = fs::remove_dir_all(&self.folder)
        {
            eprintln!("Failed to remove {}: {error}", self.folder.display());
        }
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        self.remove();
    }
}

/// What git prints, without its line end; with `index` instead of the repository's own.
fn git(args: &[&str], index: Option<&Path>) -> Result<String> {
    let mut git = Command::new("git");
    git.args(args).current_dir(workspace::root());
    if let Some(index) = index {
        git.env("GIT_INDEX_FILE", index);
    }
    let output = command::output(&mut git)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "git {} failed: {}", args.join(" "), errors.trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}
