//! The node that pods are to run on: what of it they need, and whether it is there.
//!
//! ```text
//! configuration --load--> KataConfig --.
//! PATH, /dev, /proc, /sys, /etc ------ Node --check--> findings, exit code 1 if one is a FAIL
//! slipwayd's API ---------------------'      `-env---> one document: TOML or JSON
//! ```
//! Nothing is changed and no VM is started: whether KVM really runs a guest is tried when the first pod
//! starts.
//!
//! # Bounds
//! A program that is asked for its version has 5 s, and its first line is taken.

pub mod check;
mod containerd;
pub mod env;
mod host;

use std::{
    env::split_paths,
    ffi::OsString,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use containerd::Containerd;
use kata_config::{Hypervisor, HypervisorKind, SlipwayConfig};
use tokio::{process::Command, time::timeout};

const VERSION_TIMEOUT: Duration = Duration::from_secs(5);

/// The shim's program, as containerd derives it from `io.containerd.slipway.v2`.
pub const SHIM: &str = "containerd-shim-slipway-v2";
/// The runtime's name in containerd's configuration.
pub const RUNTIME: &str = "io.containerd.slipway.v2";
/// Where distributions put virtiofsd, none of it in `PATH`; the shim looks here too.
const VIRTIOFSD_PLACES: [&str; 3] =
    ["/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd"];
/// Where installations put the CNI plugin.
const CNI_PLACES: [&str; 2] = ["/opt/cni/bin/slipway-cni", "/usr/lib/cni/slipway-cni"];

/// Where things are looked for: this machine, or a test's folders.
#[derive(Clone, Debug)]
pub struct Node {
    /// What `/dev`, `/proc`, `/sys` and `/etc` are under.
    pub root: PathBuf,
    /// The folders of programs, as `PATH` has them.
    pub path: OsString,
}

impl Node {
    /// This machine.
    #[must_use]
    pub fn here() -> Self {
        Self { root: "/".into(), path: std::env::var_os("PATH").unwrap_or_default() }
    }

    /// The place of this absolute path.
    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// The text of a file, if it can be read.
    fn text(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.at(path)).ok()
    }

    /// The program of this name in `PATH`, else the first of these places that has one.
    fn find(&self, name: &str, places: &[&str]) -> Option<PathBuf> {
        let in_path = split_paths(&self.path).map(|folder| folder.join(name));
        in_path.chain(places.iter().map(|place| self.at(place))).find(|path| is_program(path))
    }

    /// The program that the configuration names, else the one that [`Node::find`] finds.
    ///
    /// # Errors
    /// What is missing, in words.
    fn program(
        &self,
        configured: Option<&Path>,
        name: &str,
        places: &[&str],
    ) -> Result<PathBuf, String> {
        match configured {
            Some(path) if is_program(path) => Ok(path.to_owned()),
            Some(path) if path.exists() => Err(format!("{} is no program", path.display())),
            Some(path) => Err(format!("{} does not exist", path.display())),
            None => self.find(name, places).ok_or_else(|| match places {
                [] => format!("no {name} in PATH"),
                places => format!("no {name} in PATH, nor {}", places.join(", ")),
            }),
        }
    }

    /// The VMM of this configuration.
    fn vmm(&self, machine: &Hypervisor) -> Result<PathBuf, String> {
        self.program(machine.path.as_deref(), vmm_name(machine.kind), &[])
    }

    fn virtiofsd(&self, machine: &Hypervisor) -> Result<PathBuf, String> {
        self.program(machine.virtio_fs_daemon.as_deref(), "virtiofsd", &VIRTIOFSD_PLACES)
    }

    fn vsock_daemon(&self, slipway: &SlipwayConfig) -> Result<PathBuf, String> {
        self.program(slipway.vsock_daemon.as_deref(), "vhost-device-vsock", &[])
    }

    /// The shim that containerd is told of by its path, else the one in `PATH`, which is taken for
    /// containerd's too.
    fn shim(&self, containerd: &Containerd) -> Result<PathBuf, String> {
        self.program(containerd.runtime_path.as_deref(), SHIM, &[])
    }

    /// The plugin that containerd finds, else one that is elsewhere.
    fn cni_plugin(&self, containerd: &Containerd) -> Option<PathBuf> {
        containerd.slipway_cni().or_else(|| self.find("slipway-cni", &CNI_PLACES))
    }
}

const fn vmm_name(kind: HypervisorKind) -> &'static str {
    match kind {
        HypervisorKind::Qemu => "qemu-system-x86_64",
        HypervisorKind::CloudHypervisor => "cloud-hypervisor",
    }
}

fn is_program(path: &Path) -> bool {
    let is_executable =
        |data: fs::Metadata| data.is_file() && data.permissions().mode() & 0o111 != 0;
    fs::metadata(path).is_ok_and(is_executable)
}

/// The first line of what a program answers to `--version`.
///
/// # Errors
/// Why there is none, in words.
async fn version(program: &Path) -> Result<String, String> {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).kill_on_drop(true);
    let output = match timeout(VERSION_TIMEOUT, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(format!("it cannot be run: {error}")),
        Err(_) => {
            return Err(format!("no answer to --version in {} s", VERSION_TIMEOUT.as_secs()));
        }
    };
    let line = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let line = text.lines().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned);
        line.map(|line| line.chars().filter(|c| !c.is_control()).take(200).collect::<String>())
    };
    let words = line(&output.stdout).or_else(|| line(&output.stderr));
    match words {
        Some(words) if output.status.success() => Ok(words),
        Some(words) => Err(format!("--version ended with {}: {words}", output.status)),
        None => Err(format!("--version said nothing and ended with {}", output.status)),
    }
}

/// The first number with a dot in a line: `QEMU emulator version 7.2.22 (Debian ...)` is 7.2.
fn major_minor(version: &str) -> Option<(u32, u32)> {
    let words = version.split_whitespace().map(|word| word.trim_start_matches('v'));
    let numbers = |word: &str| {
        let mut parts = word.split(|c: char| !c.is_ascii_digit());
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    };
    words.filter(|word| word.starts_with(|c: char| c.is_ascii_digit())).find_map(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_the_first_number_with_a_dot() {
        for (text, wanted) in [
            ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)", Some((7, 2))),
            (
                "containerd containerd.io 1.6.20 2806fc1057397dbaeefbea0e4e17bddfbd388f38",
                Some((1, 6)),
            ),
            ("containerd github.com/containerd/containerd/v2 v2.1.0 abc", Some((2, 1))),
            ("cloud-hypervisor v51.1.0", Some((51, 1))),
            ("virtiofsd 1.14.0", Some((1, 14))),
            ("no number", None),
        ] {
            assert_eq!(major_minor(text), wanted, "{text}");
        }
    }
}
