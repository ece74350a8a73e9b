//! Debian packages, by what they are needed for.
//!
//! As root what is missing is installed, with one `apt-get update` at most; anybody else is told
//! the one line to run. Waiting for another package manager is left to apt.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use crate::command::{self, Ending};
use crate::workspace;

/// Where apt keeps its lists of packages.
const LISTS: &str = "/var/lib/apt/lists";
const CONTAINERD: &str = "containerd";
const OVS: &str = "openvswitch-switch-dpdk";
/// Packages that bring system services along, themselves or by what they need.
const SERVICES: &[(&str, &[&str])] = &[
    (CONTAINERD, &["containerd"]),
    (OVS, &["openvswitch-switch", "ovs-vswitchd", "ovsdb-server", "ovs-record-hostname"]),
];
/// Packages of other makers that contain others: Docker's own containerd comes with runc.
const STAND_INS: &[(&str, &str)] = &[(CONTAINERD, "containerd.io"), ("runc", "containerd.io")];
/// A package that apt lets stand beside those of its own version alone, and one of these that we need: Debian's
/// `qemu-utils` from backports breaks the `qemu-system-common` of the release.
const COMPANION: (&str, &str) = ("qemu-utils", "qemu-system-common");
/// Where an administrator's word on systemd's units stands.
const UNITS: &str = "/etc/systemd/system";
/// How long apt waits for another package manager, in seconds.
const LOCK_TIMEOUT_S: u32 = 600;

/// The program that serves a vsock, and the version that was tried.
const VSOCK: &str = "vhost-device-vsock";
const VSOCK_VERSION: &str = "0.3.0";

/// Arguments of `cargo xtask deps`
#[derive(Args)]
pub struct Arguments {
    /// What the packages are needed for [default: all]
    purposes: Vec<Purpose>,
    /// Only tell what is missing
    #[arg(long)]
    check: bool,
    /// Also build vhost-device-vsock below cargo's target directory, which takes minutes
    #[arg(long)]
    vsock: bool,
}

/// What packages are needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Purpose {
    /// Running guests
    Vm,
    /// Sharing directories with guests
    Share,
    /// Watching the system calls of our processes
    Trace,
    /// The host's gateway: interfaces and rules
    Net,
    /// Running pods: containerd, runc, the stock CNI plugins, and file systems on disks
    Pods,
    /// Comparing with other switches
    Bench,
    /// Comparing with other ways to connect pods, and counting what they ask of the kernel
    Compare,
    /// Counting instructions
    Count,
}

impl Purpose {
    /// The packages, as apt names them.
    const fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Vm => &["qemu-system-x86"],
            // Debian 12 has virtiofsd in there.
            Self::Share => &["qemu-system-common"],
            Self::Trace => &["strace"],
            Self::Net => &["iproute2", "nftables"],
            Self::Pods => &[CONTAINERD, "runc", "containernetworking-plugins", "e2fsprogs"],
            // The last three are plugins, which nothing is linked with.
            Self::Bench => {
                &[OVS, "dpdk", "librte-net-vhost23", "librte-net-virtio23", "librte-mempool-ring23"]
            }
            Self::Compare => {
                &[OVS, "containernetworking-plugins", "bpftrace", "iperf3", "sockperf", "ethtool"]
            }
            Self::Count => &["valgrind"],
        }
    }
}

/// Runs `cargo xtask deps`.
pub fn main(arguments: &Arguments) -> Result<()> {
    let purposes = match arguments.purposes.as_slice() {
        [] => Purpose::value_variants(),
        some => some,
    };
    if arguments.check {
        return match missing(purposes)?.as_slice() {
            [] => Ok(()),
            packages => bail!("Missing packages: {}", packages.join(" ")),
        };
    }
    ensure(purposes)?;
    if arguments.vsock {
        install_vsock()?;
    }
    Ok(())
}

/// Builds vhost-device-vsock, which no package has: guests reach the host by vsock through it where
/// the host's kernel has none.
fn install_vsock() -> Result<()> {
    let programs = install_crate(VSOCK, VSOCK_VERSION)?;
    println!("To have it found: export PATH=$PATH:{}", programs.display());
    Ok(())
}

/// Builds the programs of a crate below cargo's target directory, and returns the folder that they
/// are in. cargo does nothing if they are there already.
///
/// # Errors
/// It cannot be had, or does not compile; cargo has said why.
pub fn install_crate(name: &str, version: &str) -> Result<PathBuf> {
    let folder = workspace::target().join("tools");
    let mut command = Command::new(workspace::cargo());
    command
        .args(["install", "--quiet", "--locked", "--version", version, name, "--root"])
        .arg(&folder)
        // Outside of the workspace, whose settings are not for it.
        .current_dir("/");
    let status = command::status(&mut command, Ending::Firm)?;
    if !status.success() {
        bail!("{name} {version} could not be built: {status}");
    }
    Ok(folder.join("bin"))
}

/// Sees to it that the packages for `purposes` are installed.
///
/// # Errors
/// When some are missing and we are not root: the line to run. When apt fails.
pub fn ensure(purposes: &[Purpose]) -> Result<()> {
    let packages = missing(purposes)?;
    if packages.is_empty() {
        return Ok(());
    }
    if !nix::unistd::geteuid().is_root() {
        let install = install(&packages)?.join(" ");
        bail!("Packages are missing. Run:\n  sudo sh -c 'apt-get update && apt-get {install}'");
    }
    println!("Installing {}", packages.join(", "));
    for (_, services) in SERVICES.iter().filter(|(package, _)| packages.contains(package)) {
        for service in *services {
            mask_service(Path::new(UNITS), service)?;
        }
    }
    // Lists that are old may name versions that the mirror no longer has.
    if !has_lists() || apt_get(&install(&packages)?).is_err() {
        apt_get(&["update"])?;
        apt_get(&install(&packages)?)?;
    }
    Ok(())
}

/// What apt-get is told to install `packages`. Nothing of the user's is removed for our sake: if a package
/// conflicts, apt says so.
fn install(packages: &[&str]) -> Result<Vec<String>> {
    let words = ["install", "--yes", "--no-install-recommends", "--no-remove"];
    let mut words: Vec<_> = words.iter().chain(packages).map(|&word| word.to_owned()).collect();
    if let Some(companion) = companion(packages)? {
        println!("{companion} takes the place of a newer one, which breaks {}", COMPANION.1);
        words.extend(["--allow-downgrades".to_owned(), companion]);
    }
    Ok(words)
}

/// What has to be installed along with `packages`, as apt wants it said, so that [`COMPANION`] stays.
fn companion(packages: &[&str]) -> Result<Option<String>> {
    let (other, ours) = COMPANION;
    if !packages.iter().any(|package| package.starts_with("qemu-system")) {
        return Ok(None);
    }
    let policy = |package: &str| -> Result<String> {
        let output =
            command::output(Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C"));
        Ok(String::from_utf8_lossy(&output.context("This needs Debian")?.stdout).into_owned())
    };
    let (other_policy, our_policy) = (policy(other)?, policy(ours)?);
    let (Some(installed), Some(version)) =
        (version_in(&other_policy, "Installed"), version_in(&our_policy, "Candidate"))
    else {
        return Ok(None);
    };
    let mut compare = Command::new("dpkg");
    let is_newer = compare.args(["--compare-versions", installed, "gt", version]);
    let is_newer = command::status(is_newer, Ending::Firm)?.success();
    Ok(is_newer.then(|| format!("{other}={version}")))
}

/// The version that `apt-cache policy` tells as `which`.
fn version_in<'a>(policy: &'a str, which: &str) -> Option<&'a str> {
    let mut lines = policy.lines().filter_map(|line| line.trim().split_once(": "));
    lines.find(|(key, _)| *key == which).map(|(_, version)| version).filter(|v| *v != "(none)")
}

/// Sees to it that apt knows which packages there are.
///
/// # Errors
/// When it does not and we are not root: the line to run. When apt fails.
pub fn ensure_lists() -> Result<()> {
    if has_lists() {
        return Ok(());
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("apt has no list of packages yet. Run:\n  sudo apt-get update");
    }
    println!("Fetching apt's lists of packages");
    apt_get(&["update"])
}

fn has_lists() -> bool {
    Path::new(LISTS).read_dir().is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
    })
}

fn apt_get(arguments: &[impl AsRef<str>]) -> Result<()> {
    let arguments: Vec<_> = arguments.iter().map(AsRef::as_ref).collect();
    let mut command = Command::new("apt-get");
    command
        .args(["--quiet", "--option", &format!("DPkg::Lock::Timeout={LOCK_TIMEOUT_S}")])
        .args(&arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdout(Stdio::null());
    let status = command::status(&mut command, Ending::Gentle).context("This needs Debian")?;
    if !status.success() {
        bail!("apt-get {} failed: {status}", arguments.join(" "));
    }
    Ok(())
}

/// Keeps a program that is about to be installed from being started and enabled as a service: we run
/// our own. What `systemctl mask` does, which `systemctl unmask` undoes; a unit that the administrator
/// has written stands.
fn mask_service(units: &Path, service: &str) -> Result<()> {
    let unit = units.join(format!("{service}.service"));
    if !units.is_dir() || unit.symlink_metadata().is_ok() {
        return Ok(());
    }
    println!("  its service stays off; if you want it: systemctl unmask {service}");
    symlink("/dev/null", &unit).with_context(|| format!("Failed to mask {}", unit.display()))
}

fn missing(purposes: &[Purpose]) -> Result<Vec<&'static str>> {
    let needed: Vec<_> = purposes.iter().flat_map(|purpose| purpose.packages()).copied().collect();
    let mut command = Command::new("dpkg-query");
    command.args(["--show", "--showformat=${Package}\\t${db:Status-Status}\\n"]).args(&needed);
    command.args(STAND_INS.iter().map(|(_, other)| other));
    let output = command::output(&mut command).context("This needs Debian")?;
    // It fails when it knows nothing of one of the names; what it knows of the others stands.
    Ok(not_installed(&needed, &String::from_utf8_lossy(&output.stdout)))
}

/// Those of `needed` that dpkg-query does not show as installed, neither they nor a stand-in.
fn not_installed(needed: &[&'static str], shown: &str) -> Vec<&'static str> {
    let is_shown = |package: &str| {
        shown.lines().any(|line| line.split_once('\t') == Some((package, "installed")))
    };
    let is_installed = |package: &str| {
        let mut others = STAND_INS.iter().filter(|(of, _)| *of == package);
        is_shown(package) || others.any(|(_, other)| is_shown(other))
    };
    needed.iter().copied().filter(|package| !is_installed(package)).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn packages_that_are_removed_or_unknown_to_dpkg_are_missing() {
        let shown =
            "strace\tinstalled\nqemu-system-x86\tconfig-files\nqemu-system-x86-xen\tinstalled\n";
        let missing = not_installed(&["qemu-system-x86", "strace", "kmod"], shown);
        assert_eq!(missing, ["qemu-system-x86", "kmod"]);
    }

    #[test]
    fn the_containerd_of_another_maker_is_not_replaced() {
        let shown = "containerd.io\tinstalled\n";
        assert_eq!(not_installed(&["containerd", "runc", "strace"], shown), ["strace"]);
    }

    #[test]
    fn apt_s_words_on_versions_are_understood() {
        let policy =
            "qemu-utils:\n  Installed: (none)\n  Candidate: 1:7.2+dfsg-7\n  Version table:\n";
        assert_eq!(version_in(policy, "Installed"), None);
        assert_eq!(version_in(policy, "Candidate"), Some("1:7.2+dfsg-7"));
        assert_eq!(version_in("", "Candidate"), None);
    }

    #[test]
    fn what_has_nothing_to_do_with_a_companion_brings_none() {
        assert_eq!(companion(&["strace", "containerd"]).unwrap(), None);
    }

    #[test]
    fn the_service_is_masked_unless_the_administrator_has_a_word_on_it() {
        let units = tempfile::tempdir().unwrap();
        let unit = units.path().join("containerd.service");
        mask_service(units.path(), "containerd").unwrap();
        assert_eq!(unit.read_link().unwrap(), Path::new("/dev/null"));
        fs::remove_file(&unit).unwrap();
        fs::write(&unit, "[Unit]").unwrap();
        mask_service(units.path(), "containerd").unwrap();
        assert_eq!(fs::read_to_string(&unit).unwrap(), "[Unit]");
        // Without systemd there is no service to keep off.
        mask_service(&units.path().join("none"), "containerd").unwrap();
    }

    #[test]
    fn nothing_shown_means_nothing_installed() {
        assert_eq!(not_installed(&["strace"], ""), ["strace"]);
    }
}
