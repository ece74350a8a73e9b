//! Where things are: the workspace and cargo's target directory.

use std::env;
use std::path::{Path, PathBuf};

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
