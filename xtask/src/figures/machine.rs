//! What the figures were measured on.

use std::fs;
use std::thread;

use anyhow::{Context as _, Result};
use serde::Serialize;
use vmm_glue::accel::Chosen;
use vmm_glue::qemu::Qemu;

use crate::rig::Node;

/// Machine and programs.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Who ran the guests' instructions.
    pub accel: String,
    /// Why.
    pub accel_reason: String,
    /// As the processor calls itself.
    pub processor: String,
    /// That this process may use.
    pub cores: usize,
    /// Release of the host's kernel.
    pub kernel: String,
    /// Release of the guests' kernel.
    pub guest_kernel: String,
    /// Version of QEMU.
    pub qemu: String,
    /// Version of containerd.
    pub containerd: String,
    /// Runnable tasks when the measurement began, a mean of the minute before: others' work.
    pub load_before: f64,
}

impl Machine {
    /// Looks at it. Load is to be read before the first measurement.
    ///
    /// # Errors
    /// The kernel or containerd does not tell.
    pub async fn look(
        node: &Node,
        qemu: &Qemu,
        chosen: Chosen,
        guest_kernel: String,
        load_before: f64,
    ) -> Result<Self> {
        let processors = read("/proc/cpuinfo")?;
        let name = processors.lines().find_map(|line| line.strip_prefix("model name"));
        let name = name.map_or("unknown", |name| name.trim_start_matches([' ', '\t', ':']));
        Ok(Self {
            accel: chosen.accel.to_string(),
            accel_reason: chosen.reason,
            processor: name.to_owned(),
            cores: thread::available_parallelism().context("Failed to count cores")?.get(),
            kernel: read("/proc/sys/kernel/osrelease")?.trim_end().to_owned(),
            guest_kernel,
            qemu: qemu.version().to_string(),
            containerd: node.cri().version().await?.runtime_version,
            load_before,
        })
    }
}

/// Runnable tasks, a mean of the last minute.
///
/// # Errors
/// The kernel does not tell.
pub fn load() -> Result<f64> {
    let text = read("/proc/loadavg")?;
    let first = text.split(' ').next().and_then(|word| word.parse().ok());
    first.with_context(|| format!("/proc/loadavg has no number: {text:?}"))
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("Failed to read {path}"))
}
