//! What can go wrong between a caller and a VM.

use std::path::PathBuf;
use std::time::Duration;

use crate::cloud_hypervisor::ApiError;
use crate::exit::ExitReport;
use crate::process::{ProcessError, Stuck};
use crate::qemu::QmpError;
use crate::rundir::RunDirError;
use crate::spec::SpecError;

/// Why a verb of a [`Vmm`](crate::Vmm) or [`Vm`](crate::Vm) failed.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// The specification is not valid anywhere.
    #[error("The VM was not booted")]
    Spec(#[from] SpecError),
    /// This back end, machine or configuration lacks something.
    #[error("VM '{name}': {what} is not possible with {backend}; {remedy}")]
    Unsupported {
        /// The VM's name.
        name: String,
        /// What was asked for.
        what: String,
        /// The back end, with its machine where that matters.
        backend: String,
        /// What to do instead.
        remedy: String,
    },
    /// The VMM's program is not to be found, or does not answer.
    #[error("Failed to run '{program} --version'; {remedy}")]
    Program {
        /// The program.
        program: PathBuf,
        /// What to do.
        remedy: String,
        /// The cause.
        source: std::io::Error,
    },
    /// Files and sockets of the VM.
    #[error("The VM was not booted")]
    RunDir(#[from] RunDirError),
    /// The process was not started.
    #[error("The VM was not booted")]
    Process(#[from] ProcessError),
    /// A socket between us and the VMM.
    #[error("VM '{name}': failed to {what}")]
    Socket {
        /// The VM's name.
        name: String,
        /// What was tried.
        what: String,
        /// The cause.
        source: std::io::Error,
    },
    /// A helper was not started before the VM.
    #[error(
        "VM '{name}': nobody serves {what}: there is no socket at {socket}; start its helper first"
    )]
    NotServed {
        /// The VM's name.
        name: String,
        /// What it would serve.
        what: String,
        /// Where it is to listen.
        socket: PathBuf,
    },
    /// A disk that cannot be opened, plugged or found.
    #[error("VM '{name}': disk '{disk}' ({path}) cannot be used: {why}")]
    Disk {
        /// The VM's name.
        name: String,
        /// The disk's id.
        disk: String,
        /// Its file or block device.
        path: PathBuf,
        /// Why not, and what to do.
        why: String,
    },
    /// A number of virtual CPUs that the VM cannot have.
    #[error("VM '{name}': {asked} vCPUs are not possible; {allowed}")]
    Vcpus {
        /// The VM's name.
        name: String,
        /// What was asked for.
        asked: u16,
        /// What would be accepted.
        allowed: String,
    },
    /// The VMM ended while it was to boot.
    #[error("The VM did not boot: {0}")]
    Died(Box<ExitReport>),
    /// The VMM did not get ready in time, and was killed.
    #[error("VM '{name}' (pid {pid}) did not boot within {limit:?}: {waiting_for}\n{stderr_tail}")]
    BootTimeout {
        /// The VM's name.
        name: String,
        /// The killed process.
        pid: u32,
        /// The limit from the specification.
        limit: Duration,
        /// What did not happen.
        waiting_for: String,
        /// The last lines of the VMM's standard error.
        stderr_tail: String,
    },
    /// The VM ended before the verb, or during it.
    #[error("The VM cannot {verb} any more: {report}")]
    Gone {
        /// How it ended.
        report: Box<ExitReport>,
        /// What was asked of it.
        verb: &'static str,
    },
    /// The killed VMM process does not end; its files are left alone.
    #[error(transparent)]
    Stuck(#[from] Stuck),
    /// A size of memory that cannot be added.
    #[error("VM '{name}': {asked_mib} MiB cannot be added; {allowed}")]
    Memory {
        /// The VM's name.
        name: String,
        /// What was asked for, MiB.
        asked_mib: u32,
        /// What would be accepted.
        allowed: String,
    },
    /// The monitor of QEMU refused or went away.
    #[error("VM '{name}': QEMU failed to {verb}")]
    Qmp {
        /// The VM's name.
        name: String,
        /// The verb of ours.
        verb: &'static str,
        /// The cause.
        source: QmpError,
    },
    /// The API of Cloud Hypervisor refused or went away.
    #[error("VM '{name}': Cloud Hypervisor failed to {verb}")]
    Api {
        /// The VM's name.
        name: String,
        /// The verb of ours.
        verb: &'static str,
        /// The cause.
        source: ApiError,
    },
    /// The fake VMM was told to fail.
    #[cfg(feature = "testing")]
    #[error("VM '{name}': {verb} fails on request")]
    Injected {
        /// The VM's name.
        name: String,
        /// The verb that fails.
        verb: crate::fake::Verb,
    },
}
