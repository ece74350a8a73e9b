//! How long each part of a pod's start took, under the names of the literature.
//!
//! | stage | what |
//! |---|---|
//! | `AddCNI` | asking slipwayd for the pod's ports; the plugin's own time is in its log |
//! | `Cgroup` | making and joining the sandbox's cgroup |
//! | `AttachIf` | folders, sockets and helpers that VM and ports need |
//! | `StartVM` | from the VMM's start to the agent's first answer |
//! | `Guest` | setting up sandbox and network in the guest |
//!
//! `NetNS` is the engine's, before a shim is called.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::clock;

/// The file with the stages of a running pod, in its folder.
pub const FILE: &str = "stages.json";

/// Stages in milliseconds, and when the first began.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Stages {
    /// Milliseconds since 1970.
    pub began_ms: u64,
    /// Milliseconds by stage.
    pub stages_ms: BTreeMap<&'static str, f64>,
}

impl Stages {
    /// From now on.
    pub fn begin() -> Self {
        Self { began_ms: clock::unix_ms(), stages_ms: BTreeMap::new() }
    }

    /// Adds the time of one stage.
    pub fn add(&mut self, stage: &'static str, took: Duration) {
        *self.stages_ms.entry(stage).or_default() += took.as_secs_f64() * 1e3;
        tracing::info!(stage, took_ms = took.as_secs_f64() * 1e3, "pod.start");
    }
}
