//! `cargo xtask guest`: the kernel and initrd that demo and tests boot.
//!
//! Debian's cloud kernel is downloaded and unpacked, never installed; its ELF file, the virtio
//! modules and our own init become `vmlinux` and `initrd.img` below `guest` in cargo's target
//! directory. `manifest.json` beside them says what they were made of. As long as that is
//! unchanged, and the files are as it says, nothing is done.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::workspace;
use deb::Package;
use image::Image;

pub mod boot;
pub mod cpio;
pub mod deb;
mod image;
mod kernel;
mod module;

/// To be counted up when the same inputs make another image.
const RECIPE: u32 = 3;
/// The names of the image's files.
const FILES: [&str; 2] = ["vmlinux", "initrd.img"];

/// Arguments of `cargo xtask guest`
#[derive(Args)]
pub struct Arguments {
    /// Take the newest kernel that apt knows, even if one is in the cache
    #[arg(long)]
    update: bool,
    /// Build everything twice and compare
    #[arg(long)]
    check_reproducible: bool,
    /// Boot the image once under emulation and print the seconds until it is ready
    #[arg(long)]
    boot: bool,
}

/// What an image was made of, and what came out.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    inputs: Inputs,
    /// Release of the kernel.
    kernel_release: String,
    /// Modules in the initrd, in the order of loading.
    modules: Vec<String>,
    vmlinux: Output,
    initrd: Output,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Inputs {
    recipe: u32,
    package: String,
    version: String,
    package_sha256: String,
    agent_sha256: String,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Output {
    bytes: u64,
    sha256: String,
}

/// Where the image is.
#[derive(Debug, Clone)]
pub struct Paths {
    /// The kernel.
    pub vmlinux: PathBuf,
    /// The initial root file system.
    pub initrd: PathBuf,
    /// What they were made of.
    pub manifest: PathBuf,
}

impl Paths {
    /// Of the image that was built, if it was: in `SLIPWAY_GUEST_DIR` if that is set, otherwise below
    /// cargo's target directory.
    pub fn find() -> Self {
        let named = std::env::var_os("SLIPWAY_GUEST_DIR").map(PathBuf::from);
        Self::below(&named.unwrap_or_else(|| workspace::target().join("guest")))
    }

    /// In `folder`.
    pub fn below(folder: &Path) -> Self {
        let [vmlinux, initrd] = FILES.map(|name| folder.join(name));
        Self { vmlinux, initrd, manifest: folder.join("manifest.json") }
    }
}

/// Runs `cargo xtask guest`.
pub fn main(arguments: &Arguments) -> Result<()> {
    let paths = ensure(arguments.update)?;
    if arguments.check_reproducible {
        check_reproducible(&paths)?;
    }
    if arguments.boot {
        boot::once(&paths)?;
    }
    Ok(())
}

/// Sees to it that the image is there and made of what there is now.
pub fn ensure(update: bool) -> Result<Paths> {
    let target = workspace::target();
    let folder = target.join("guest");
    println!("[1/3] Kernel package");
    let package = deb::kernel(&folder.join("cache"), update)?;
    println!("  {} {}", package.name, package.version);
    println!("[2/3] Agent");
    let agent = read(&image::build_agent(&target)?)?;
    let inputs = inputs(&package, &agent)?;
    println!("[3/3] Image");
    let paths = Paths::below(&folder);
    if is_current(&paths, &inputs)? {
        println!("  up to date: {}", folder.display());
        return Ok(paths);
    }
    let image = make(&package, agent, &folder)?;
    store(&paths, inputs, &image)?;
    println!("  {} of {}", FILES.join(" and "), folder.display());
    Ok(paths)
}

fn make(package: &Package, agent: Vec<u8>, folder: &Path) -> Result<Image> {
    let scratch = tempfile::tempdir_in(folder).context("Failed to make a folder to unpack to")?;
    image::make(package, agent, scratch.path())
}

fn inputs(package: &Package, agent: &[u8]) -> Result<Inputs> {
    Ok(Inputs {
        recipe: RECIPE,
        package: package.name.clone(),
        version: package.version.clone(),
        package_sha256: sha256(&read(&package.path)?),
        agent_sha256: sha256(agent),
    })
}

/// Whether the manifest names `inputs`, and the files are those it names.
fn is_current(paths: &Paths, inputs: &Inputs) -> Result<bool> {
    let manifest = match fs::read(&paths.manifest) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => {
            return Err(error)
                .with_context(|| format!("Failed to read {}", paths.manifest.display()));
        }
    };
    // One that cannot be read is of another version of this program, or half written.
    let Ok(manifest) = serde_json::from_slice::<Manifest>(&manifest) else { return Ok(false) };
    let is_as_named = |path: &Path, output: &Output| {
        fs::read(path).is_ok_and(|bytes| describe(&bytes) == *output)
    };
    Ok(manifest.inputs == *inputs
        && is_as_named(&paths.vmlinux, &manifest.vmlinux)
        && is_as_named(&paths.initrd, &manifest.initrd))
}

/// Writes the files, the manifest last: it vouches for the others.
fn store(paths: &Paths, inputs: Inputs, image: &Image) -> Result<()> {
    let manifest = Manifest {
        inputs,
        kernel_release: image.release.clone(),
        modules: image.modules.clone(),
        vmlinux: describe(&image.vmlinux),
        initrd: describe(&image.initrd),
    };
    let mut text = serde_json::to_vec_pretty(&manifest)?;
    text.push(b'\n');
    write(&paths.vmlinux, &image.vmlinux)?;
    write(&paths.initrd, &image.initrd)?;
    write(&paths.manifest, &text)
}

/// Replaces the file as a whole: guests that run keep the one they opened.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let fresh = path.with_extension("new");
    fs::write(&fresh, bytes)
        .and_then(|()| fs::rename(&fresh, path))
        .with_context(|| format!("Failed to write {}", path.display()))
}

/// Builds agent and image anew, apart from all that is there, and compares.
fn check_reproducible(paths: &Paths) -> Result<()> {
    println!("Building everything a second time");
    let folder = workspace::target().join("guest");
    let target = tempfile::tempdir_in(&folder).context("Failed to make a folder to build in")?;
    let package = deb::kernel(&folder.join("cache"), false)?;
    let agent = read(&image::build_agent(target.path())?)?;
    let again = make(&package, agent, &folder)?;
    for (path, again) in [(&paths.vmlinux, &again.vmlinux), (&paths.initrd, &again.initrd)] {
        let (first, second) = (sha256(&read(path)?), sha256(again));
        ensure!(first == second, "{} is {first}, and then {second}", path.display());
        println!("  {first}  {}", path.display());
    }
    println!("  the same, byte for byte");
    Ok(())
}

fn describe(bytes: &[u8]) -> Output {
    Output { bytes: bytes.len() as u64, sha256: sha256(bytes) }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("Failed to read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs_of(agent: &str) -> Inputs {
        Inputs {
            recipe: RECIPE,
            package: "linux-image".to_owned(),
            version: "6.1".to_owned(),
            package_sha256: sha256(b"package"),
            agent_sha256: sha256(agent.as_bytes()),
        }
    }

    fn stored(folder: &Path) -> Paths {
        let paths = Paths::below(folder);
        let image = Image {
            vmlinux: b"kernel".to_vec(),
            initrd: b"initrd".to_vec(),
            release: "6.1".to_owned(),
            modules: vec!["virtio".to_owned()],
        };
        store(&paths, inputs_of("agent"), &image).unwrap();
        paths
    }

    #[test]
    fn an_image_is_current_until_an_input_changes() {
        let folder = tempfile::tempdir().unwrap();
        let paths = stored(folder.path());
        assert!(is_current(&paths, &inputs_of("agent")).unwrap());
        assert!(!is_current(&paths, &inputs_of("another agent")).unwrap());
    }

    #[test]
    fn an_image_whose_file_was_changed_or_lost_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let paths = stored(folder.path());
        fs::write(&paths.initrd, "changed").unwrap();
        assert!(!is_current(&paths, &inputs_of("agent")).unwrap());
        fs::remove_file(&paths.initrd).unwrap();
        assert!(!is_current(&paths, &inputs_of("agent")).unwrap());
    }

    #[test]
    fn without_a_readable_manifest_the_image_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let paths = stored(folder.path());
        fs::write(&paths.manifest, "{").unwrap();
        assert!(!is_current(&paths, &inputs_of("agent")).unwrap());
        fs::remove_file(&paths.manifest).unwrap();
        assert!(!is_current(&paths, &inputs_of("agent")).unwrap());
    }
}
