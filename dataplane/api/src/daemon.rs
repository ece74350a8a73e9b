//! The daemon itself: is it well, and which one is it.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Whether the switch does its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    /// All threads make progress.
    Ok,
    /// Something of the switch's own does not work; `problems` says what.
    Degraded,
}

impl fmt::Display for HealthStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// How the switch is. A broken port is its guest's affair and does not count against it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// Whether it does its work.
    pub status: HealthStatus,
    /// What does not work, one sentence each; empty when all is well.
    pub problems: Vec<String>,
    /// Seconds since the daemon started.
    pub uptime_s: u64,
    /// How many ports there are.
    pub ports: u32,
    /// How many of them have their link up.
    pub ports_up: u32,
    /// How many of them are broken.
    pub ports_broken: u32,
    /// How many PMD threads poll.
    pub pmds: u32,
}

/// Which daemon answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// `slipwayd`.
    pub name: String,
    /// Its release.
    pub version: String,
    /// The API it speaks: the `v1` of the routes.
    pub api: String,
}
