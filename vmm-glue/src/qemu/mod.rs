//! QEMU, driven by its monitor protocol. Machines: q35 and microvm, under KVM or TCG.
//!
//! # The order of a boot
//! ```text
//!  we                               QEMU                               switch
//!  bind monitor socket, start ---->
//!  accept <------------------------ opens its sockets, monitor last
//!                                   builds the NICs: waits <---------- connects to each socket
//!  greeting <---------------------- main loop; the guest runs
//! ```
//! A `server=on,wait=off` socket does not let QEMU boot without a switch: QEMU asks the back end for
//! its features while it builds the NIC, and blocks until each NIC was connected once (7.2). The
//! listening socket is what lets the switch *restart*: QEMU takes the link down, listens on, and
//! takes it up with the next connection. So the switch must go on trying while a VM boots; if it
//! does not come, the boot ends with an error that names the sockets.
//!
//! The helpers of shares and of a vsock work the other way round: they listen, QEMU connects while it
//! builds the device, and ends if nobody is there. So they start before it.
//!
//! # What is the machine's, and what is the guest's
//! The model, its CPU and its devices are chosen here, by accelerator, and so are the kernel
//! parameters that follow from them; under TCG all for a quick boot, since there a boot is nothing
//! but the host's CPU time. What an image wants of its kernel comes in
//! [`VmSpec::cmdline`](crate::VmSpec::cmdline).
//!
//! # Bounds
//! The boot has the limit of the specification, each monitor command 10 s, `stop` its grace and
//! then 2 s before it kills.

mod devices;
mod hotplug;
mod launch;
mod qmp;
mod vm;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

pub use qmp::{Qmp, QmpError, QmpEvent};
pub use vm::QemuVm;

use crate::error::VmmError;
use crate::spec::VmSpec;
use crate::{Vm, VmFuture, Vmm};

/// The program's name, looked up in PATH.
pub const PROGRAM: &str = "qemu-system-x86_64";
const VERSION_LIMIT: Duration = Duration::from_secs(10);

/// QEMU on this host.
#[derive(Clone, Debug)]
pub struct Qemu {
    program: PathBuf,
    version: QemuVersion,
}

impl Qemu {
    /// The `qemu-system-x86_64` in PATH.
    ///
    /// # Errors
    /// [`VmmError::Program`]: it is not there, or does not tell its version.
    pub async fn discover() -> Result<Self, VmmError> {
        Self::at(PROGRAM).await
    }

    /// A QEMU of the caller's choice.
    ///
    /// # Errors
    /// [`VmmError::Program`]: it is not there, or does not tell its version.
    pub async fn at(program: impl Into<PathBuf>) -> Result<Self, VmmError> {
        let program = program.into();
        let failed = |source| VmmError::Program {
            program: program.clone(),
            remedy: "install it (Debian: apt-get install --no-install-recommends qemu-system-x86)"
                .to_owned(),
            source,
        };
        let mut command = Command::new(&program);
        command.arg("--version").stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(VERSION_LIMIT, command.output()).await;
        let output = output.map_err(|_| failed(io::ErrorKind::TimedOut.into()))?.map_err(failed)?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = QemuVersion::parse(&text).ok_or_else(|| {
            failed(io::Error::other(format!("no version in its answer '{}'", text.trim())))
        })?;
        Ok(Self { program, version })
    }

    /// The program's path, as it was given or found.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The version it told.
    pub fn version(&self) -> QemuVersion {
        self.version
    }

    /// [`Vmm::boot`] with QEMU's own type, which knows more verbs than [`Vm`].
    ///
    /// # Errors
    /// See [`Vmm::boot`].
    pub async fn boot(&self, spec: &VmSpec) -> Result<QemuVm, VmmError> {
        QemuVm::boot(self, spec.check()?).await
    }
}

impl Vmm for Qemu {
    fn name(&self) -> String {
        format!("QEMU {}", self.version)
    }

    fn boot<'a>(&'a self, spec: &'a VmSpec) -> VmFuture<'a, Result<Box<dyn Vm>, VmmError>> {
        Box::pin(async move { Ok(Box::new(Self::boot(self, spec).await?) as Box<dyn Vm>) })
    }
}

/// Major and minor version: options change with these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QemuVersion {
    /// 7 of 7.2.22.
    pub major: u16,
    /// 2 of 7.2.22.
    pub minor: u16,
}

impl QemuVersion {
    /// `reconnect-ms` came, and `reconnect` was deprecated to be removed.
    pub(crate) const RECONNECT_MS: Self = Self { major: 9, minor: 2 };

    /// Reads the answer to `--version`: `QEMU emulator version 7.2.22 (Debian ...)`.
    fn parse(text: &str) -> Option<Self> {
        let (_, version) = text.split_once("version ")?;
        let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        Some(Self { major: numbers.next()?.ok()?, minor: numbers.next()?.ok()? })
    }
}

impl fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_what_qemu_prints() {
        let version = |text| QemuVersion::parse(text).map(|v| v.to_string());
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright";
        assert_eq!(version(debian).as_deref(), Some("7.2"));
        assert_eq!(version("QEMU emulator version 10.0.50-dirty").as_deref(), Some("10.0"));
        assert_eq!(version("version x"), None);
        assert_eq!(version("7.2.22"), None);
    }

    #[tokio::test]
    async fn a_missing_qemu_is_an_error_that_says_what_to_install() {
        let error = Qemu::at("/nowhere/qemu").await.unwrap_err().to_string();
        assert!(error.contains("/nowhere/qemu") && error.contains("qemu-system-x86"), "{error}");
    }

    #[tokio::test]
    async fn a_program_that_is_no_qemu_is_refused_with_its_answer() {
        let error = Qemu::at("/bin/true").await.unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("no version"), "{cause}");
    }
}
