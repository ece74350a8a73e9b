//! Gets Debian packages, the kernel's first of all, and unpacks them without installing them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::{command, deps};

/// The package that depends on the newest kernel made for virtual machines.
const NEWEST: &str = "linux-image-cloud-amd64";
/// What the kernel packages' files are called: `linux-image-<release>_<version>_amd64.deb`.
const PREFIX: &str = "linux-image-";

/// A package on this machine.
#[derive(Debug, PartialEq, Eq)]
pub struct Package {
    /// Its file.
    pub path: PathBuf,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// The kernel package in `cache`, downloaded if there is none or if `update` asks for the newest.
/// The cache keeps one package.
pub fn kernel(cache: &Path, update: bool) -> Result<Package> {
    get(cache, PREFIX, update, newest)
}

/// The package `name` in `cache`, downloaded if it is not there.
pub fn fetch(cache: &Path, name: &str) -> Result<Package> {
    get(cache, &format!("{name}_"), false, || Ok(name.to_owned()))
}

/// The package in `cache` whose file's name begins with `prefix`, or the one that `name` names.
fn get(
    cache: &Path,
    prefix: &str,
    update: bool,
    name: impl FnOnce() -> Result<String>,
) -> Result<Package> {
    fs::create_dir_all(cache).with_context(|| format!("Failed to make {}", cache.display()))?;
    if !update && let Some(path) = cached(cache, prefix)? {
        println!("  from the cache: {}", path.display());
        return describe(path);
    }
    let fresh = tempfile::tempdir_in(cache).context("Failed to make a folder in the cache")?;
    deps::ensure_lists()?;
    download(fresh.path(), &name()?)?;
    let downloaded = cached(fresh.path(), prefix)?.context("apt-get left no package")?;
    let path = cache.join(downloaded.file_name().context("The package has no name")?);
    // The old one goes last, so that there is always one whole package.
    let old = cached(cache, prefix)?;
    fs::rename(&downloaded, &path).context("Failed to move the package to the cache")?;
    if let Some(old) = old.filter(|old| *old != path) {
        fs::remove_file(&old).with_context(|| format!("Failed to remove {}", old.display()))?;
    }
    describe(path)
}

/// Unpacks the files of the package to `folder`.
pub fn unpack(package: &Package, folder: &Path) -> Result<()> {
    let mut command = Command::new("dpkg-deb");
    command.arg("--extract").arg(&package.path).arg(folder);
    output_of(&mut command).map(drop)
}

fn cached(folder: &Path, prefix: &str) -> Result<Option<PathBuf>> {
    let mut found = Vec::new();
    for entry in
        folder.read_dir().with_context(|| format!("Failed to list {}", folder.display()))?
    {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(prefix) && name.ends_with(".deb") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found.pop())
}

fn download(folder: &Path, package: &str) -> Result<()> {
    println!("  downloading {package}");
    let mut command = Command::new("apt-get");
    // apt would read and write as a user of its own, who may not enter the folder.
    command.args(["--quiet", "--option", "APT::Sandbox::User=root", "download", package]);
    output_of(command.current_dir(folder)).map(drop).with_context(|| {
        format!(
            "Failed to download {package}. If the mirror no longer has it, run: apt-get update. \
             Without network, put the package's .deb file into {}",
            folder.parent().unwrap_or(folder).display()
        )
    })
}

fn newest() -> Result<String> {
    let output = output_of(Command::new("apt-cache").args(["depends", NEWEST]))?;
    dependency(&output).with_context(|| {
        format!("apt knows no kernel behind {NEWEST}. Run: apt-get update; this needs Debian")
    })
}

/// The kernel among the dependencies that apt-cache prints.
fn dependency(printed: &str) -> Option<String> {
    let mut names = printed.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.find(|name| name.starts_with(PREFIX)).map(str::to_owned)
}

fn describe(path: PathBuf) -> Result<Package> {
    let mut command = Command::new("dpkg-deb");
    command.args(["--show", "--showformat=${Package}\\t${Version}\\n"]).arg(&path);
    let output = output_of(&mut command)?;
    let (name, version) = name_and_version(&output)
        .with_context(|| format!("dpkg-deb says of {}: {output}", path.display()))?;
    Ok(Package { path, name, version })
}

fn name_and_version(shown: &str) -> Option<(String, String)> {
    let (name, version) = shown.trim_end().split_once('\t')?;
    let is_whole = !name.is_empty() && !version.is_empty() && !version.contains('\n');
    is_whole.then(|| (name.to_owned(), version.to_owned()))
}

fn output_of(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command::output(command.env("LC_ALL", "C")).context("This needs Debian")?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("{program} failed: {}", errors.trim_end());
    }
    let text = String::from_utf8(output.stdout);
    ensure!(text.is_ok(), "{program} did not print text");
    Ok(text?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_found_among_the_dependencies() {
        let printed = "linux-image-cloud-amd64\n  Depends: linux-base\n  \
                       Depends: linux-image-6.1.0-56-cloud-amd64\n  Suggests: linux-doc\n";
        assert_eq!(dependency(printed).as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
    }

    #[test]
    fn an_unknown_package_has_no_kernel() {
        assert_eq!(dependency(""), None);
        assert_eq!(dependency("linux-image-cloud-amd64\n"), None);
    }

    #[test]
    fn name_and_version_are_told_apart() {
        let shown = name_and_version("linux-image-6.1.0-56-cloud-amd64\t6.1.192-2\n");
        let expected = ("linux-image-6.1.0-56-cloud-amd64".to_owned(), "6.1.192-2".to_owned());
        assert_eq!(shown, Some(expected));
        assert_eq!(name_and_version("\t1\n"), None);
        assert_eq!(name_and_version("a\t1\nb\t2\n"), None);
    }

    #[test]
    fn files_that_are_no_kernel_package_are_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["linux-image-6.1_1_amd64.deb", "linux-image-6.1.part", "busybox_1_amd64.deb"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let found = cached(folder.path(), PREFIX).unwrap().unwrap();
        assert_eq!(found.file_name().unwrap(), "linux-image-6.1_1_amd64.deb");
    }
}
