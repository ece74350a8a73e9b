//! Starts of pods, measured as a kubelet sees them: from the first request to the running container.

use std::fs;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::rig::cri::Cri;
use crate::rig::cri::messages::PodSandboxConfig;
use crate::rig::{ContainerSpec, Node};

/// What follows the stages in `RunPodSandbox`: the pod's own container in the guest, and containerd.
pub const PAUSE: &str = "PauseContainer";
/// The container's request of that name.
pub const CREATE: &str = "CreateContainer";
/// The container's request of that name.
pub const START: &str = "StartContainer";
/// `RunPodSandbox` of a runtime that notes no stages.
pub const SANDBOX: &str = "RunPodSandbox";

/// One start. All times are in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Start {
    /// When it was asked for, after the first of its series.
    pub asked_ms: f64,
    /// The pod's `RunPodSandbox`.
    pub sandbox_ms: f64,
    /// From the request for the pod to the running container.
    pub total_ms: f64,
    /// What it was spent on, in order: the stages of the pod, [`PAUSE`], [`CREATE`] and [`START`].
    pub stages: Vec<Stage>,
}

impl Start {
    /// When its container ran, after the first of its series was asked for.
    pub fn done_ms(&self) -> f64 {
        self.asked_ms + self.total_ms
    }
}

/// A part of a start.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stage {
    /// Its name.
    pub name: String,
    /// How long it took, in milliseconds.
    pub ms: f64,
}

/// A start of which the runtime's notes were not read yet.
struct Timed {
    pod: String,
    asked: SystemTime,
    after_first: Duration,
    sandbox: Duration,
    create: Duration,
    start: Duration,
}

/// Starts one pod and a container in it; returns the pod's id, too.
///
/// # Errors
/// As containerd says.
pub async fn one(node: &Node, name: &str) -> Result<(String, Start)> {
    let started = timed(node.cri().clone(), node.runtime().handler, config(node, name)?, now());
    let started = started.await?;
    Ok((started.pod.clone(), read(node, started).await?))
}

/// Starts `count` pods at once, and returns when all their containers run.
///
/// # Errors
/// As containerd says of the first that fails.
pub async fn at_once(node: &Node, count: usize) -> Result<Vec<(String, Start)>> {
    let configs: Result<Vec<_>> =
        (0..count).map(|number| config(node, &format!("pod{number}"))).collect();
    let mut starting = JoinSet::new();
    let first = now();
    for config in configs? {
        starting.spawn(timed(node.cri().clone(), node.runtime().handler, config, first));
    }
    let mut timed = Vec::new();
    while let Some(started) = starting.join_next().await {
        timed.push(started.context("A start panicked")??);
    }
    // Only now: it would disturb those that still start.
    let mut started = Vec::new();
    for timed in timed {
        started.push((timed.pod.clone(), read(node, timed).await?));
    }
    Ok(started)
}

/// Stops and removes pods, all at once, and waits until nothing is left of them.
///
/// # Errors
/// As containerd says; something is left.
pub async fn remove(node: &Node, pods: impl IntoIterator<Item = String>) -> Result<()> {
    let mut ending = JoinSet::new();
    for pod in pods {
        let cri = node.cri().clone();
        ending.spawn(async move {
            cri.stop_pod(&pod).await?;
            cri.remove_pod(&pod).await
        });
    }
    while let Some(ended) = ending.join_next().await {
        ended.context("An end panicked")??;
    }
    let remains = node.settle().await?;
    anyhow::ensure!(remains.is_empty(), "Something is left of the pods: {remains}");
    Ok(())
}

fn config(node: &Node, name: &str) -> Result<PodSandboxConfig> {
    let config = node.pod_config(name);
    fs::create_dir_all(&config.log_directory).context("Failed to make the logs' folder")?;
    Ok(config)
}

async fn timed(
    cri: Cri,
    handler: &'static str,
    config: PodSandboxConfig,
    first: Instant,
) -> Result<Timed> {
    #[expect(
        clippy::disallowed_methods,
        reason = "shim and plugin note their stages by this clock"
    )]
    let asked = SystemTime::now();
    let began = now();
    let pod = cri.run_pod(config.clone(), handler).await?;
    let sandbox = now();
    let idle = ContainerSpec::new("idle", &["sleep", "1000000"]).0;
    let container = cri.create_container(&pod, idle, config).await?;
    let created = now();
    cri.start_container(&container).await?;
    let (create, start) = (created - sandbox, now() - created);
    Ok(Timed { pod, asked, after_first: began - first, sandbox: sandbox - began, create, start })
}

async fn read(node: &Node, timed: Timed) -> Result<Start> {
    let Timed { pod, asked, after_first, sandbox, create, start } = timed;
    let noted = node.stages(&pod, asked).await?;
    Ok(Start {
        asked_ms: ms(after_first),
        sandbox_ms: ms(sandbox),
        total_ms: ms(sandbox + create + start),
        stages: all_stages(noted, ms(sandbox), ms(create), ms(start)),
    })
}

/// The stages that were noted, and what was done besides.
fn all_stages(
    noted: Vec<(String, f64)>,
    sandbox_ms: f64,
    create_ms: f64,
    start_ms: f64,
) -> Vec<Stage> {
    let known: f64 = noted.iter().map(|(_, ms)| ms).sum();
    let rest = if noted.is_empty() { SANDBOX } else { PAUSE };
    // Notes are whole milliseconds of another clock: they may come to a little more.
    let rest = (rest.to_owned(), (sandbox_ms - known).max(0.0));
    let container = [(CREATE.to_owned(), create_ms), (START.to_owned(), start_ms)];
    let all = noted.into_iter().chain([rest]).chain(container);
    all.map(|(name, ms)| Stage { name, ms }).collect()
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[expect(clippy::disallowed_methods, reason = "this measures starts")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names_and_ms(stages: &[Stage]) -> Vec<(&str, f64)> {
        stages.iter().map(|stage| (stage.name.as_str(), stage.ms)).collect()
    }

    #[test]
    fn what_no_stage_accounts_for_is_the_pause_containers() {
        let noted = vec![("NetNS".to_owned(), 30.0), ("StartVM".to_owned(), 50.0)];
        let stages = all_stages(noted, 100.0, 7.0, 8.0);
        let expected =
            [("NetNS", 30.0), ("StartVM", 50.0), (PAUSE, 20.0), (CREATE, 7.0), (START, 8.0)];
        assert_eq!(names_and_ms(&stages), expected);
    }

    #[test]
    fn a_runtime_without_notes_has_the_requests_only() {
        let stages = all_stages(Vec::new(), 100.0, 7.0, 8.0);
        assert_eq!(names_and_ms(&stages), [(SANDBOX, 100.0), (CREATE, 7.0), (START, 8.0)]);
    }
}
