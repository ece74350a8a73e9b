//! Where things are: the workspace, cargo's target directory and the programs in it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context as _, Result, ensure};

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

/// Builds programs, each of its package, in release, and returns the folder that they are in: [`PLUGIN`] as a
/// static program. Blocks.
///
/// # Errors
/// One does not compile; cargo has said why.
pub fn build(programs: &[(&str, &str)]) -> Result<PathBuf> {
    let target = target();
    let folder = target.join("release");
    let (plugins, others): (Vec<_>, Vec<_>) =
        programs.iter().partition(|(_, program)| *program == PLUGIN.program);
    if !plugins.is_empty() {
        let built = PLUGIN.build(&target)?;
        fs::create_dir_all(&folder)?;
        let place = folder.join(PLUGIN.program);
        // Not over the file that is there: cargo has it under a second name, and it may be running.
        let fresh = folder.join(".slipway-cni");
        fs::copy(&built, &fresh).with_context(|| format!("Failed to copy {}", built.display()))?;
        fs::rename(&fresh, &place)
            .with_context(|| format!("Failed to replace {}", place.display()))?;
    }
    if others.is_empty() {
        return Ok(folder);
    }
    let mut build = Command::new(cargo());
    build.args(["build", "--locked", "--release"]);
    for (package, program) in others {
        build.args(["--package", package, "--bin", program]);
    }
    build.arg("--target-dir").arg(&target).current_dir(root());
    let status = command::status(&mut build, Ending::Firm)?;
    let names: Vec<_> = programs.iter().map(|(_, program)| *program).collect();
    ensure!(status.success(), "{} does not compile", names.join(", "));
    Ok(folder)
}

/// What static programs run on. With an explicit target their flags do not reach build scripts, and their
/// artefacts lie apart from those of the host.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// A program that needs nothing of the system that it runs on, and no linking and relocating when it is
/// started.
#[derive(Debug, Clone, Copy)]
pub struct Static {
    /// Its package.
    pub package: &'static str,
    /// Its name.
    pub program: &'static str,
    /// The profile that it is built with.
    pub profile: &'static str,
    /// Its features, separated by commas.
    pub features: &'static str,
}

/// The plugin is one, and without libc: it is started for each pod, and where others are linked anew each time
/// and look at the processor, it just runs.
pub const PLUGIN: Static =
    Static { package: "slipway-cni", program: "slipway-cni", profile: "small", features: "bare" };

impl Static {
    /// Builds it with `target` as cargo's target directory, and returns where it is. Blocks.
    ///
    /// # Errors
    /// It does not compile; cargo has said why.
    pub fn build(self, target: &Path) -> Result<PathBuf> {
        let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
        flags.push("-Crelocation-model=static".to_owned());
        // The same program from whatever folder it is built in.
        flags.push(format!("--remap-path-prefix={}=/slipway", root().display()));
        let home = env::var_os("CARGO_HOME").map(PathBuf::from);
        let home = home.or_else(|| env::home_dir().map(|home| home.join(".cargo")));
        if let Some(home) = home {
            flags.push(format!("--remap-path-prefix={}=/cargo", home.display()));
        }
        let mut build = Command::new(cargo());
        build
            .args(["build", "--quiet", "--locked", "--package", self.package])
            .args(["--bin", self.program, "--profile", self.profile, "--target", TARGET])
            .args(["--features", self.features])
            .arg("--target-dir")
            .arg(target)
            // Separated by 0x1f: the flags hold paths, which may hold blanks.
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            .env_remove("RUSTFLAGS")
            .current_dir(root());
        let status = command::status(&mut build, Ending::Firm)?;
        ensure!(status.success(), "{} does not compile as a static program", self.program);
        Ok(target.join(TARGET).join(self.profile).join(self.program))
    }
}
