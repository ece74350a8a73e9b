//! How a virtual machine is started, talked to and ended, whatever the VMM.
//!
//! ```text
//!             boot                     pause            stop(grace), guest powers off, death
//!  Vmm, VmSpec ----> Running <-------------------> Paused ----------------> ExitReport
//!                     |  ^                           |
//!                     `--'  reset (guest reboots)    `-- add_memory, set_vcpus, add_disk,
//!                                                        remove_disk, info, console, wait: any time
//! ```
//!
//! A [`Vmm`] is a back end: [`qemu::Qemu`], [`cloud_hypervisor::CloudHypervisor`], or the fake of
//! feature `testing`. Its `boot` turns a [`VmSpec`] into a [`Vm`], which is a running machine: there
//! is no verb that one could call too early. After the end each verb says how the VM ended.
//!
//! Every NIC is a vhost-user port of a switch, so guest memory is always shared, and a VM boots
//! only once the switch has been connected to each of its NICs. Start both at the same time.
//!
//! Beside a VM run its helpers, each a child of ours: a [`sharefs::Virtiofsd`] per shared directory, and
//! a [`vsock::VsockDevice`] where the host has no vsock. They start before the VM. The agent in the guest
//! is reached through [`agent::Agent`].
//!
//! # Bounds
//! Every wait for a VMM has a limit, except [`Vm::wait`]. What a VMM or a guest sends is bounded:
//! QMP lines, HTTP bodies, console and standard error.
//!
//! # Nothing is left behind
//! Dropping a [`Vm`] kills its VMM, waits for that, and removes sockets and files; it blocks for
//! the few milliseconds that takes. If this process is killed, the VMM dies with it
//! (see [`process`]); its sockets stay and are cleared by the next boot at the same paths.
//!
//! # Threads
//! One thread per process watches all children; everything else runs in the caller's tokio runtime.

pub mod accel;
pub mod agent;
pub mod cloud_hypervisor;
#[cfg(feature = "testing")]
pub mod conformance;
mod console;
mod devices;
mod error;
mod exit;
#[cfg(feature = "testing")]
pub mod fake;
mod helper;
pub mod host;
mod memory;
pub mod process;
pub mod qemu;
mod rundir;
pub mod sharefs;
mod spec;
pub mod vsock;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

pub use console::{Console, ConsoleClosed};
pub use devices::{AGENT_PORT_NAME, AgentChannel, DiskAddress, DiskSpec, PciPath, ShareSpec};
pub use error::VmmError;
pub use exit::{ExitCause, ExitReport};
pub use helper::HelperError;
pub use memory::Mib;
pub use rundir::RunDirError;
pub use spec::{
    CONTROL_PORT, CheckedSpec, HOTPLUG_UNIT, MacAddr, MacError, Machine, NicSpec, SocketMode,
    SpecError, VmSpec,
};

/// A future of a trait object's verb.
pub type VmFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A back end that boots VMs.
pub trait Vmm: fmt::Debug + Send + Sync {
    /// What people call it, with its version where known.
    fn name(&self) -> String;

    /// Starts a VMM process and returns once the guest runs, its sockets are bound, and the switch
    /// has been connected to each NIC. What the guest does then is seen on [`Vm::console`].
    ///
    /// # Errors
    /// A failed or cancelled boot leaves no process, socket or file.
    fn boot<'a>(&'a self, spec: &'a VmSpec) -> VmFuture<'a, Result<Box<dyn Vm>, VmmError>>;
}

/// A booted VM. All verbs take `&self`: one task may wait while another one stops.
///
/// # Errors
/// After the end of the VM every fallible verb but `stop` returns [`VmmError::Gone`] with the report.
pub trait Vm: fmt::Debug + Send + Sync {
    /// Returns how the VM ended, once it has. Any number of waiters; cancel safe.
    fn wait(&self) -> VmFuture<'_, ExitReport>;

    /// Ends the VM: presses the power button and gives the guest `grace` to react (nothing is
    /// pressed if `grace` is zero, or the machine has no button), then asks the VMM to quit, then
    /// kills it. Files and sockets are gone on return. A second stop returns the same report.
    ///
    /// # Errors
    /// [`VmmError::Stuck`]: even the killed process does not end.
    fn stop(&self, grace: Duration) -> VmFuture<'_, Result<ExitReport, VmmError>>;

    /// Stops the virtual CPUs. A paused VM stays paused.
    fn pause(&self) -> VmFuture<'_, Result<(), VmmError>>;

    /// Lets the virtual CPUs go on.
    fn resume(&self) -> VmFuture<'_, Result<(), VmmError>>;

    /// Presses the reset button: the guest reboots, the VM and its pid stay.
    fn reset(&self) -> VmFuture<'_, Result<(), VmmError>>;

    /// Plugs `size` more memory, a multiple of [`HOTPLUG_UNIT`]; the switch sees a new region. The
    /// sum may not exceed [`VmSpec::memory_max`]. A refused size changes nothing.
    fn add_memory(&self, size: Mib) -> VmFuture<'_, Result<(), VmmError>>;

    /// Raises the number of virtual CPUs to `count`, at most [`VmSpec::vcpus_max`]. The guest has
    /// to bring the new ones online (`OnlineCPUMem` of its agent). Fewer than now is refused, and
    /// changes nothing: limit the VMM's cgroup instead.
    fn set_vcpus(&self, count: u16) -> VmFuture<'_, Result<(), VmmError>>;

    /// Plugs a disk into one of the free [`VmSpec::disk_slots`], and returns where the guest will
    /// find it. The guest needs a moment to notice.
    fn add_disk<'a>(&'a self, disk: &'a DiskSpec) -> VmFuture<'a, Result<PciPath, VmmError>>;

    /// Takes a disk out that [`Vm::add_disk`] plugged, and closes its file. The guest must have
    /// unmounted it, and takes part: it acknowledges the removal.
    fn remove_disk<'a>(&'a self, id: &'a str) -> VmFuture<'a, Result<(), VmmError>>;

    /// What the VMM says of the VM now.
    fn info(&self) -> VmFuture<'_, Result<VmInfo, VmmError>>;

    /// The guest's serial console, still readable after the end.
    fn console(&self) -> &Console;
}

/// A VM as its VMM sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmInfo {
    /// The VM's name.
    pub name: String,
    /// The VMM process.
    pub pid: u32,
    /// What the virtual CPUs do.
    pub state: VmState,
    /// Virtual CPUs.
    pub vcpus: u16,
    /// Memory, plugged memory included.
    pub memory: Mib,
}

/// What the virtual CPUs do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmState {
    /// They run.
    Running,
    /// They stand still, on request.
    Paused,
    /// The VMM's own word for anything else: `internal-error`, `guest-panicked`, ...
    Other(String),
}
