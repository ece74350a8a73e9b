//! KVM or TCG: chosen by trying, never by assuming.
//!
//! A `/dev/kvm` that opens, and even creates a VM, may belong to a nested hypervisor that emulates
//! an ordinary guest kernel instruction by instruction: minutes to the first console line. So
//! [`probe`] boots the real guest kernel under KVM and looks at its console until a deadline; TCG
//! is the answer otherwise, with the reason in words.
//!
//! # Bounds
//! The trial takes the deadline at most, and only the first run pays: the outcome is kept in a file
//! and holds for the same host boot, QEMU, machine, kernel and initial RAM disk.

mod cache;

use std::fmt;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::VmmError;
use crate::memory::Mib;
use crate::qemu::Qemu;
use crate::spec::{Machine, VmSpec};
use crate::{Vm, VmState};

use cache::{Cache, Key};

/// Long enough for a guest kernel under a working KVM to print (it takes well under 1 s), short
/// enough to wait for once.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(8);
const KVM_DEVICE: &str = "/dev/kvm";

/// Who runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// The processor, by way of `/dev/kvm`.
    Kvm,
    /// QEMU's translator: works everywhere, 10 to 50 times slower.
    Tcg,
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// What the user asked for: `--accel kvm|tcg|auto`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AccelChoice {
    /// KVM if it runs the guest, TCG otherwise.
    #[default]
    Auto,
    /// KVM, or an error.
    Kvm,
    /// TCG; KVM is not tried.
    Tcg,
}

impl fmt::Display for AccelChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// A text that names no accelerator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no accelerator; use kvm, tcg or auto")]
pub struct AccelChoiceError(String);

impl FromStr for AccelChoice {
    type Err = AccelChoiceError;

    fn from_str(text: &str) -> Result<Self, AccelChoiceError> {
        match text {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            _ => Err(AccelChoiceError(text.to_owned())),
        }
    }
}

/// What to try, and where to remember the outcome.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// Its initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The machine that will be used.
    pub machine: Machine,
    /// The guest's kernel parameters.
    pub cmdline: String,
    /// A text that the guest prints when it is up. `None`: any console output will do.
    pub ready: Option<String>,
    /// How long the guest may take, see [`DEFAULT_DEADLINE`].
    pub deadline: Duration,
    /// An existing directory for the outcome and, during the trial, for the trial's VM.
    pub dir: PathBuf,
}

/// The accelerator to use, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chosen {
    /// The accelerator.
    pub accel: Accel,
    /// In words, for people.
    pub reason: String,
}

/// Why there is no accelerator to use.
#[derive(Debug, thiserror::Error)]
pub enum AccelError {
    /// KVM was demanded, and does not run the guest.
    #[error(
        "KVM was asked for, but does not run the guest: {reason}; use --accel tcg or auto, or remove {} to try KVM again",
        cache.display()
    )]
    KvmUnusable {
        /// In words.
        reason: String,
        /// Where this outcome is remembered.
        cache: PathBuf,
    },
    /// The kernel or the initial RAM disk cannot be read.
    #[error("Failed to read the guest image {path}; build it first")]
    Image {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The trial could not be made, whatever the accelerator.
    #[error("Failed to try KVM")]
    Trial(#[source] VmmError),
}

/// Chooses the accelerator for `wanted`: tries KVM by booting the guest, unless TCG is wanted or the
/// outcome is known.
///
/// # Errors
/// KVM was demanded and does not work; or the guest's files are not there.
pub async fn probe(qemu: &Qemu, probe: &Probe, wanted: AccelChoice) -> Result<Chosen, AccelError> {
    if wanted == AccelChoice::Tcg {
        return Ok(Chosen { accel: Accel::Tcg, reason: "TCG was asked for".to_owned() });
    }
    let key = Key::of(qemu, probe)?;
    let cache = Cache::in_dir(&probe.dir);
    let chosen = match cache.lookup(&key) {
        Some(chosen) => chosen,
        None => {
            let chosen = match kvm_access(Path::new(KVM_DEVICE)) {
                // Not remembered: it costs nothing to ask again, and may be repaired any time.
                Err(reason) => Chosen { accel: Accel::Tcg, reason },
                Ok(()) => {
                    let chosen = try_kvm(qemu, probe).await?;
                    cache.store(key, &chosen);
                    chosen
                }
            };
            tracing::info!(accel = %chosen.accel, reason = chosen.reason, "Accelerator probed");
            chosen
        }
    };
    if wanted == AccelChoice::Kvm && chosen.accel != Accel::Kvm {
        let cache = cache.path().to_owned();
        return Err(AccelError::KvmUnusable { reason: chosen.reason, cache });
    }
    Ok(chosen)
}

/// Whether the device is there and ours to use; the reason in words if not.
fn kvm_access(device: &Path) -> Result<(), String> {
    let opened = OpenOptions::new().read(true).write(true).open(device);
    opened.map(drop).map_err(|error| format!("{} cannot be opened ({error})", device.display()))
}

async fn try_kvm(qemu: &Qemu, probe: &Probe) -> Result<Chosen, AccelError> {
    let mut spec =
        VmSpec::new("accel-probe", probe.dir.join(format!("probe-{}", std::process::id())));
    spec.accel = Accel::Kvm;
    spec.machine = probe.machine;
    spec.memory = Mib::new(256);
    spec.kernel = Some(probe.kernel.clone());
    spec.initrd.clone_from(&probe.initrd);
    spec.cmdline.clone_from(&probe.cmdline);
    // A guest that is to be controlled may end where there is no channel.
    spec.control_socket = Some(spec.run_dir.join("control.sock"));
    spec.boot_timeout = probe.deadline;
    let no = |reason: String| Ok(Chosen { accel: Accel::Tcg, reason });
    let seconds = probe.deadline.as_secs_f32();

    let vm = match qemu.boot(&spec).await {
        Ok(vm) => vm,
        Err(VmmError::Died(report)) => {
            let words = report.stderr_tail.lines().last().unwrap_or("without a word").to_owned();
            return no(format!("{KVM_DEVICE} opens, but QEMU {} ({words})", report.cause));
        }
        Err(VmmError::BootTimeout { .. }) => {
            return no(format!("{KVM_DEVICE} opens, but QEMU did not start in {seconds} s"));
        }
        Err(error) => return Err(AccelError::Trial(error)),
    };
    let awaited = probe.ready.as_deref();
    let seen = tokio::time::timeout(probe.deadline, first_sign(&vm, awaited)).await;
    let outcome = match seen {
        Ok(true) => Chosen { accel: Accel::Kvm, reason: "the guest came up under KVM".to_owned() },
        Ok(false) => {
            let cause = vm.wait().await.cause;
            let reason = format!("{KVM_DEVICE} opens, but the guest died: its VMM {cause}");
            Chosen { accel: Accel::Tcg, reason }
        }
        Err(_) => {
            let silent = vm.console().bytes_seen() == 0;
            let what = if silent { "printed nothing" } else { "did not come up" };
            let state = match vm.info().await {
                Ok(info) if info.state != VmState::Running => format!(" ({:?})", info.state),
                _ => String::new(),
            };
            let reason = format!("{KVM_DEVICE} opens, but the guest {what} in {seconds} s{state}");
            Chosen { accel: Accel::Tcg, reason }
        }
    };
    vm.stop(Duration::ZERO).await.map_err(AccelError::Trial)?;
    Ok(outcome)
}

/// Whether the guest showed the text (any output, for `None`) before its console closed.
async fn first_sign(vm: &impl Vm, text: Option<&str>) -> bool {
    // A newline ends the first line, of whatever.
    vm.console().wait_for(text.unwrap_or("\n")).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_reads_what_it_writes_and_nothing_else() {
        for choice in [AccelChoice::Auto, AccelChoice::Kvm, AccelChoice::Tcg] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        let error = "KVM".parse::<AccelChoice>().unwrap_err();
        assert_eq!(error.to_string(), "'KVM' is no accelerator; use kvm, tcg or auto");
    }

    #[test]
    fn a_device_that_does_not_open_is_a_reason_in_words() {
        let reason = kvm_access(Path::new("/nowhere/kvm")).unwrap_err();
        assert!(reason.starts_with("/nowhere/kvm cannot be opened"), "{reason}");
    }
}
