//! Where things are: the workspace, cargo's target directory and the programs in it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::command::{self, Ending};

/// The root of the workspace.
pub fn root() -> &'static Path {
    // This package lies directly below it.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package has a parent folder")
}

/// Cargo's target directory, as `CARGO_TARGET_DIR` names it.
pub fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        // Cargo takes a relative path from the current directory, as does this.
        Some(path) if !path.is_empty() => {
            std::path::absolute(&path).unwrap_or_else(|_| path.into())
        }
        _ => root().join("target"),
    }
}

/// The cargo that runs us.
pub fn cargo() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from)
}

/// Builds slipwayd as it is meant to run, in release, and returns where it is. Blocks.
///
/// # Errors
/// It does not compile; cargo has said why.
pub fn build_slipwayd() -> Result<PathBuf> {
    Ok(build(&[("dataplane", "slipwayd")])?.join("slipwayd"))
}

/// Builds programs, each of its package, in release, and returns the folder that they are in. Blocks.
///
/// # Errors
/// One does not compile; cargo has said why.
pub fn build(programs: &[(&str, &str)]) -> Result<PathBuf> {
    let target = target();
    let mut build = Command::new(cargo());
    build.args(["build", "--locked", "--release"]);
    for (package, program) in programs {
        build.args(["--package", package, "--bin", program]);
    }
    build.arg("--target-dir").arg(&target).current_dir(root());
    let status = command::status(&mut build, Ending::Firm)?;
    let names: Vec<_> = programs.iter().map(|(_, program)| *program).collect();
    ensure!(status.success(), "{} does not compile", names.join(", "));
    Ok(target.join("release"))
}
