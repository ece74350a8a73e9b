//! `cargo xtask deb`: a Debian package, made by Debian's own dpkg-deb of the same list of files that
//! `cargo xtask install` puts into place (docs/decisions/0013).
//!
//! ```text
//!  target/deb/slipway_VERSION_amd64.deb
//!    DEBIAN/control, conffiles, postinst, prerm, postrm
//!    etc/slipway/...    usr/bin/...    usr/lib/...    usr/share/...
//! ```
//! It enables no service and changes no configuration of containerd or Kubernetes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use super::build::{self, Built};
use super::files::{self, Kind, Layout};
use super::place;
use crate::command::{self, Ending};
use crate::workspace;

/// Debian's word for x86-64, which is what the guest image is for.
const ARCHITECTURE: &str = "amd64";

/// Reloads what systemd knows. On an upgrade a switch that runs becomes the new one: VMs listen on
/// their sockets and are found again.
const POSTINST: &str = r#"#!/bin/sh
set -e
if [ "$1" = configure ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
    if [ -n "$2" ]; then
        systemctl try-restart slipwayd.service || true
    fi
fi
"#;
/// A service whose program goes has to end first.
const PRERM: &str = r#"#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
    systemctl disable --now slipwayd.service || true
fi
"#;
const POSTRM: &str = r#"#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
fi
"#;

/// Arguments of `cargo xtask deb`
#[derive(Args)]
pub struct Arguments {
    /// Package what was built before
    #[arg(long)]
    no_build: bool,
    /// Where the package goes [default: deb in cargo's target directory]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

/// Runs `cargo xtask deb`.
pub fn main(arguments: &Arguments) -> Result<()> {
    let folder = arguments.output.clone().unwrap_or_else(|| workspace::target().join("deb"));
    let built = build::build(arguments.no_build)?;
    println!("Packing, which takes a while");
    let package = package(&built, &folder)?;
    let bytes = fs::metadata(&package)?.len();
    println!("  {} ({:.1} MB)", package.display(), bytes as f64 / 1e6);
    println!("\nTo install it, as root: apt install {}", package.display());
    Ok(())
}

/// Makes the package in `folder` and returns where it is.
fn package(built: &Built, folder: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder)
        .with_context(|| format!("Failed to make the folder {}", folder.display()))?;
    let scratch = tempfile::tempdir_in(folder).context("Failed to make a folder to pack")?;
    // The scratch folder itself is for nobody else, and the package's root for everybody.
    let root = scratch.path().join("root");
    fs::create_dir(&root)?;
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755))?;

    let items = files::list(&Layout::debian(), built)?;
    let mut bytes = 0;
    let mut glibc = Glibc(2, 0);
    let mut conffiles = String::new();
    for item in &items {
        bytes += place::stage(&root, item)?;
        match item.kind {
            Kind::Program => glibc = glibc.max(Glibc::needed_by(&item.bytes()?)),
            Kind::Config => conffiles += &format!("{}\n", item.path.display()),
            Kind::Data => {}
        }
    }
    let debian = root.join("DEBIAN");
    fs::create_dir(&debian)?;
    fs::set_permissions(&debian, fs::Permissions::from_mode(0o755))?;
    let version = debian_version(env!("CARGO_PKG_VERSION"));
    for (name, text, mode) in [
        ("control", control(&version, bytes, glibc).as_str(), 0o644),
        ("conffiles", &conffiles, 0o644),
        ("postinst", POSTINST, 0o755),
        ("prerm", PRERM, 0o755),
        ("postrm", POSTRM, 0o755),
    ] {
        let file = debian.join(name);
        fs::write(&file, text).with_context(|| format!("Failed to write {}", file.display()))?;
        fs::set_permissions(&file, fs::Permissions::from_mode(mode))?;
    }

    let package = folder.join(format!("slipway_{version}_{ARCHITECTURE}.deb"));
    let mut command = Command::new("dpkg-deb");
    // xz, which it takes by default, saves a fifth more in ten times the time.
    command.args(["--root-owner-group", "-Zzstd", "-z10", "--build"]).arg(&root).arg(&package);
    let status = command::status(&mut command, Ending::Firm).context("This needs Debian's dpkg")?;
    ensure!(status.success(), "dpkg-deb failed: {status}");
    Ok(package)
}

/// `-` begins Debian's own part of a version, and a pre-release sorts before its release by `~`.
fn debian_version(version: &str) -> String {
    version.replace('-', "~")
}

/// The package's description for dpkg and apt.
fn control(version: &str, bytes: u64, glibc: Glibc) -> String {
    let Glibc(major, minor) = glibc;
    format!(
        "Package: slipway\n\
         Version: {version}\n\
         Architecture: {ARCHITECTURE}\n\
         Maintainer: slipway developers <slipway@localhost>\n\
         Installed-Size: {kib}\n\
         Depends: libc6 (>= {major}.{minor}), libgcc-s1, qemu-system-x86, qemu-system-common, \
         virtiofsd | qemu-system-common (<< 1:8~), containerd | containerd.io, nftables\n\
         Recommends: containernetworking-plugins\n\
         Section: net\n\
         Priority: optional\n\
         Description: containers in microVMs with a userspace switch\n \
         A containerd runtime class (io.containerd.slipway.v2) that runs each pod in a VM of its own,\n \
         compatible with the configuration of Kata Containers. The network of the VMs is slipwayd, a\n \
         userspace vhost-user switch: a pod costs no network device and no netlink message.\n",
        kib = bytes.div_ceil(1024),
    )
}

/// A version of the C library.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Glibc(u32, u32);

impl Glibc {
    /// The newest that a program names. A program that is linked to the library has the versions of
    /// the functions that it uses as strings, `GLIBC_2.34`, which end with a zero byte.
    fn needed_by(program: &[u8]) -> Self {
        const WORD: &[u8] = b"GLIBC_";
        let mut newest = Self(2, 0);
        for start in program.windows(WORD.len()).enumerate().filter(|(_, w)| *w == WORD) {
            let rest = &program[start.0 + WORD.len()..];
            let end = rest.iter().position(|byte| *byte == 0).unwrap_or(0);
            if let Some(version) = Self::parse(&rest[..end]) {
                newest = newest.max(version);
            }
        }
        newest
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let mut numbers = std::str::from_utf8(text).ok()?.split('.').map(str::parse);
        Some(Self(numbers.next()?.ok()?, numbers.next()?.ok()?))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::super::build::tests::built;
    use super::*;

    /// What dpkg-deb says of `package`.
    fn dpkg_deb(arguments: &[&str], package: &Path) -> String {
        let output = Command::new("dpkg-deb").args(arguments).arg(package).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn the_package_has_every_file_for_all_and_names_the_administrator_s() {
        let programs = tempfile::tempdir().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let built = built(programs.path());
        let package = package(&built, folder.path()).unwrap();
        // Nothing but the package is left.
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);

        let contents = dpkg_deb(&["--contents"], &package);
        let items = files::list(&Layout::debian(), &built).unwrap();
        for item in &items {
            let end = format!(" .{}", item.path.display());
            let line = contents.lines().find(|line| line.ends_with(&end)).expect(&end);
            let mode = if item.kind == Kind::Program { "-rwxr-xr-x" } else { "-rw-r--r--" };
            assert!(line.starts_with(&format!("{mode} root/root ")), "{line}");
        }
        assert!(contents.starts_with("drwxr-xr-x root/root "), "{contents}");
        let files = contents.lines().filter(|line| !line.starts_with('d')).count();
        assert_eq!(files, items.len(), "{contents}");

        let field = |name: &str| {
            dpkg_deb(&["--field"], &package)
                .lines()
                .find_map(|line| line.strip_prefix(&format!("{name}: ")).map(str::to_owned))
        };
        assert_eq!(field("Version").as_deref(), Some(env!("CARGO_PKG_VERSION")));
        let depends = field("Depends").unwrap();
        assert!(depends.contains("containerd | containerd.io"), "{depends}");

        let root = folder.path().join("root");
        let arguments = ["--raw-extract", package.to_str().unwrap()];
        dpkg_deb(&arguments, &root);
        let conffiles = fs::read_to_string(root.join("DEBIAN/conffiles")).unwrap();
        let configs = items.iter().filter(|item| item.kind == Kind::Config);
        let configs: Vec<_> = configs.map(|item| item.path.display().to_string()).collect();
        assert_eq!(conffiles.lines().collect::<Vec<_>>(), configs);
        for name in ["postinst", "prerm", "postrm"] {
            let script = root.join("DEBIAN").join(name);
            assert_eq!(fs::metadata(&script).unwrap().mode() & 0o777, 0o755);
            let is_right = Command::new("sh").arg("-n").arg(&script).status().unwrap().success();
            assert!(is_right, "{name}");
        }
    }

    #[test]
    fn a_program_needs_the_newest_library_that_it_names() {
        let program = b"\x7fELF\0GLIBC_2.2.5\0GLIBC_PRIVATE\0xGLIBC_2.34\0GLIBC_2.9\0GLIBC_2.99";
        assert_eq!(Glibc::needed_by(program), Glibc(2, 34));
        assert_eq!(Glibc::needed_by(b"#!/bin/sh"), Glibc(2, 0));
    }

    #[test]
    fn a_pre_release_sorts_before_its_release() {
        assert_eq!(debian_version("1.2.0-rc.1"), "1.2.0~rc.1");
        let order = Command::new("dpkg")
            .args(["--compare-versions", "1.2.0~rc.1", "lt", "1.2.0"])
            .status()
            .unwrap();
        assert!(order.success());
    }
}
