//! What has to be built before it can be installed.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::licences;
use crate::rig::PROGRAMS;
use crate::{command, guest, workspace};

/// Shells that slipwayctl has completions for.
const SHELLS: [&str; 3] = ["bash", "zsh", "fish"];

/// Where it is, or what it is.
#[derive(Debug)]
pub struct Built {
    /// Folder of the programs.
    pub programs: PathBuf,
    /// The guest image.
    pub guest: guest::Paths,
    /// Completions of slipwayctl: shell, and script.
    pub completions: Vec<(&'static str, Vec<u8>)>,
    /// The licences of all that the programs are made of.
    pub licences: Vec<u8>,
}

/// Builds everything, or takes what was built: from `SLIPWAY_PROGRAMS` and `SLIPWAY_GUEST_DIR` if they
/// are set.
///
/// # Errors
/// Something does not compile, or was not built.
pub fn build(no_build: bool) -> Result<Built> {
    let (programs, guest) = if no_build {
        let named = env::var_os("SLIPWAY_PROGRAMS").map(PathBuf::from);
        (named.unwrap_or_else(|| workspace::target().join("release")), guest::Paths::find())
    } else {
        (workspace::build(&PROGRAMS)?, guest::ensure(false)?)
    };
    Ok(Built {
        completions: completions(&programs.join("slipwayctl"))?,
        programs,
        guest,
        licences: licences::collect(&PROGRAMS.map(|(package, _)| package))?,
    })
}

/// Asks `slipwayctl` itself, so that they are those of this very version.
fn completions(slipwayctl: &Path) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let of = |shell| {
        let output = command::output(Command::new(slipwayctl).args(["completions", shell]))
            .with_context(|| format!("{} is not built", slipwayctl.display()))?;
        ensure!(output.status.success(), "slipwayctl completions {shell}: {}", output.status);
        Ok((shell, output.stdout))
    };
    SHELLS.into_iter().map(of).collect()
}

#[cfg(test)]
pub mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// Programs that only say their name, and a guest that does not boot.
    pub fn built(folder: &Path) -> Built {
        for (_, name) in PROGRAMS {
            let file = folder.join(name);
            fs::write(&file, format!("#!/bin/sh\necho {name} $*\n")).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let guest = guest::Paths::below(folder);
        for file in [&guest.vmlinux, &guest.initrd, &guest.manifest] {
            fs::write(file, file.file_name().unwrap().as_encoded_bytes()).unwrap();
        }
        Built {
            programs: folder.to_owned(),
            guest,
            completions: SHELLS.map(|shell| (shell, shell.as_bytes().to_vec())).to_vec(),
            licences: b"Apache-2.0".to_vec(),
        }
    }

    #[test]
    fn a_program_that_was_not_built_is_named() {
        let error = completions(Path::new("/nowhere/slipwayctl")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/slipwayctl is not built"), "{error}");
    }

    #[test]
    fn a_slipwayctl_that_knows_no_completions_is_no_slipwayctl() {
        let error = completions(Path::new("/bin/false")).unwrap_err();
        assert!(
            error.to_string().contains("slipwayctl completions bash: exit status: 1"),
            "{error}"
        );
    }
}
