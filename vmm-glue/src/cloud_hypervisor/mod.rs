//! Cloud Hypervisor, driven by its REST API over a UNIX socket.
//!
//! **Never run against Cloud Hypervisor itself.** It is written from its published API description
//! (versions 51 to 54) and tested against a fake of ours (module `fake`, feature `testing`), which
//! shares no types with this module but may share its misunderstandings. Treat it as a second shape
//! that keeps the [`Vmm`] trait honest until somebody runs `tests/cloud_hypervisor.rs` on the real one.
//!
//! # The order of a boot
//! start, `vmm.ping` until it answers, `vm.create`, `vm.boot`. With a NIC socket of its own it blocks
//! in `vm.boot` until the switch connects; the limit of the specification holds for all of it.
//!
//! # What differs from QEMU
//! KVM only, one machine model, a kernel is required, no virtio-serial ports (so no control socket, and
//! the agent is behind its own hybrid vsock), at most one queue pair per vCPU. Each is refused by
//! name. It numbers the slots of its disks itself, and tells that of a plugged one. After a lost connection it waits for
//! the switch for 60 s and then gives the NIC up.
//!
//! # Bounds
//! A request has 10 s, an answer 1 MiB.

mod api;
mod client;
#[cfg(feature = "testing")]
pub mod fake;
mod launch;
mod vm;

use std::path::{Path, PathBuf};

pub use client::ApiError;
pub use vm::CloudHypervisorVm;

use crate::error::VmmError;
use crate::spec::VmSpec;
use crate::{Vm, VmFuture, Vmm};

/// The program's name, looked up in PATH.
pub const PROGRAM: &str = "cloud-hypervisor";

/// Cloud Hypervisor on this host.
#[derive(Clone, Debug)]
pub struct CloudHypervisor {
    program: PathBuf,
}

impl CloudHypervisor {
    /// `program`, mostly [`PROGRAM`]. Whether it is there shows at the first boot.
    pub fn at(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into() }
    }

    /// The program.
    pub fn program(&self) -> &Path {
        &self.program
    }
}

impl Vmm for CloudHypervisor {
    fn name(&self) -> String {
        "Cloud Hypervisor".to_owned()
    }

    fn boot<'a>(&'a self, spec: &'a VmSpec) -> VmFuture<'a, Result<Box<dyn Vm>, VmmError>> {
        Box::pin(async move {
            let vm = CloudHypervisorVm::boot(&self.program, spec.check()?).await?;
            Ok(Box::new(vm) as Box<dyn Vm>)
        })
    }
}
