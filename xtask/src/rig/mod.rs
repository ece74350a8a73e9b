//! Switch and guests, as the demo shows them and the tests with real guests drive them.
//!
//! ```text
//!  Slipwayd (process) <--- vhost-user socket, bound by the VMM ---> Guest (QEMU process)
//!      ^ API socket                                                   ^ control socket
//!      `------------------------- this process ----------------------'
//! ```
//! The VMM listens and the switch connects, so the switch may end and come back while guests run.
//! All files and sockets lie in one folder of the caller's, and every process names it on its command
//! line: that is how [`Leftovers`] recognises what is ours.
//!
//! A [`Node`] is what Kubernetes would run pods on: a private containerd on a private host, with a client of
//! its CRI.
//!
//! Nothing outlives its handle: dropping a [`Slipwayd`] or a [`Guest`] kills the process and waits
//! until it is gone, and the kernel kills both when we die.

mod containerd;
pub mod cri;
mod guest;
mod leftovers;
mod node;
pub mod oci_image;
mod pod;
mod private_host;
mod remains;
mod runtime;
mod slipwayd;
mod stages;
mod tar;
mod unit;

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

pub use containerd::{Containerd, Handler, Settings, Snapshotter};
pub use guest::{Guest, GuestPlan, Image, VNI};
pub use leftovers::{Leftovers, NetworkSnapshot};
pub use node::Node;
pub use pod::{Container, ContainerSpec, Executed, LogLine, Pod, namespaces, write_volume};
pub use private_host::PrivateHost;
pub use remains::{Cgroups, Places, Remains};
pub(crate) use runtime::PROGRAMS;
pub use runtime::{Network, RUNC, Runtime, SLIPWAY, slipway_programs, take_programs};
pub use slipwayd::{NO_CONFIG, Slipwayd, last_core, program};
pub use unit::Unit;

fn write(path: &Path, contents: &str) -> Result<()> {
    fs::write(path, contents).with_context(|| format!("Failed to write {}", path.display()))
}
