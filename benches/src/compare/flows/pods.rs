//! Whole pods, which containerd starts: with a network and without.
//!
//! They are started by `cargo xtask compare`, which has containerd, guest image and runtime, and come here as a file
//! of measurements. `netns` is a pod with a network namespace and nothing in it: a CNI plugin that
//! makes nothing, and for a VM no NIC. VMs and processes are figures of their own.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::experiment::{Curve, Endpoints, Experiment, Point, Quantity};
use super::measurement::{Absence, Measurement};
use crate::compare::samples::Samples;

/// Until the last pod's container runs.
pub const READY: &str = "ready_s";
/// A microVM for each pod.
pub const VM: &str = "pods-vm";

const POINTS: &[Point] = &[Point::always("2", 2), Point::full("4", 4), Point::full("8", 8)];
const ALL_READY: Quantity = Quantity::new(READY, "all ready", "s", 2);
const P50: Quantity = Quantity::new("p50_ms", "pod p50", "ms", 0);
const P99: Quantity = Quantity::new("p99_ms", "pod p99", "ms", 0);
const CPU: Quantity = Quantity::new("cpu_per_pod_s", "CPU per pod, whole machine", "s", 2);
const CREATE: Quantity = Quantity::new("CreateContainer_ms", "CreateContainer", "ms", 0);
const START: Quantity = Quantity::new("StartContainer_ms", "StartContainer", "ms", 0);
const READY_PODS: &[Curve] =
    &[Curve { key: "ready_ms", x: "2", name: "Pods ready, 2 at once", unit: "ms", of: "pods" }];

/// The figures.
pub const EXPERIMENTS: &[Experiment] = &[
    Experiment {
        id: VM,
        title: "Pods with a microVM each, started at once",
        endpoints: Endpoints::Pod,
        axis: "pods",
        points: POINTS,
        table: &[
            ALL_READY,
            P50,
            P99,
            CPU,
            Quantity::new("NetNS_ms", "NetNS", "ms", 0),
            Quantity::new("AddCNI_ms", "AddCNI", "ms", 0),
            Quantity::new("Cgroup_ms", "Cgroup", "ms", 1),
            Quantity::new("AttachIf_ms", "AttachIf", "ms", 1),
            Quantity::new("StartVM_ms", "StartVM", "ms", 0),
            CREATE,
            START,
        ],
        lines: &[ALL_READY],
        curves: READY_PODS,
        scatter: None,
    },
    Experiment {
        id: "pods-runc",
        title: "Pods of processes (runc), started at once",
        endpoints: Endpoints::Pod,
        axis: "pods",
        points: POINTS,
        table: &[
            ALL_READY,
            P50,
            P99,
            CPU,
            Quantity::new("RunPodSandbox_ms", "RunPodSandbox", "ms", 0),
            CREATE,
            START,
        ],
        lines: &[ALL_READY],
        curves: READY_PODS,
        scatter: None,
    },
];

/// Enters what `cargo xtask compare` measured of `experiments` into `samples`; without a file it says so.
///
/// # Errors
/// The file cannot be read, or is not about pods.
pub fn enter(
    samples: &mut Samples,
    experiments: &[&'static Experiment],
    measured: Option<&Path>,
) -> Result<()> {
    let asked: BTreeSet<_> = experiments
        .iter()
        .filter(|experiment| experiment.endpoints == Endpoints::Pod)
        .map(|experiment| experiment.id)
        .collect();
    if asked.is_empty() {
        return Ok(());
    }
    let Some(path) = measured else {
        let reason = "whole pods are started by `cargo xtask compare` alone".to_owned();
        let absent = |arm| Absence { endpoints: Endpoints::Pod, arm, reason: reason.clone() };
        samples.absences.extend(samples.parameters.arms.clone().into_iter().map(absent));
        return Ok(());
    };
    let name = || format!("Failed to read {}", path.display());
    let text = fs::read_to_string(path).with_context(name)?;
    let measured: Vec<Measurement> = serde_json::from_str(&text).with_context(name)?;
    for measurement in measured {
        let known = EXPERIMENTS.iter().any(|experiment| experiment.id == measurement.experiment);
        ensure!(known, "{} tells of {}", path.display(), measurement.experiment);
        let is_asked = asked.contains(measurement.experiment.as_str())
            && samples.parameters.arms.contains(&measurement.arm);
        if is_asked {
            samples.measurements.push(measurement);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::arms::ArmKind::{Kata, Netns, Slipway};
    use crate::compare::report::tests::samples;

    /// As xtask writes them.
    const FILE: &str = r#"[
{"experiment":"pods-vm","arm":"slipway","x":"2","round":0,"place":0,"values":{"ready_s":4.1},
 "distributions":{"ready_ms":[3900.0,4100.0]},"repeated":0,"discarded":null,"failures":[]},
{"experiment":"pods-vm","arm":"netns","x":"2","round":0,"place":1,"values":{"ready_s":4.0},
 "distributions":{},"repeated":1,"discarded":null,"failures":[]},
{"experiment":"pods-runc","arm":"netns","x":"2","round":0,"place":2,"values":{},
 "distributions":{},"repeated":0,"discarded":null,"failures":["refused"]}]"#;

    #[test]
    fn what_was_measured_of_pods_is_entered_and_compared() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pods.json");
        fs::write(&path, FILE).unwrap();
        let mut samples = samples(100);
        let vm = [&EXPERIMENTS[0]];
        enter(&mut samples, &vm, Some(&path)).unwrap();
        assert_eq!(samples.measurements.len(), 2, "pods-runc was not asked for");
        let ratio = samples.flow_ratio(VM, (Slipway, "2"), (Netns, "2"), READY).unwrap();
        assert!((ratio.median - 1.025).abs() < 1e-9, "{ratio:?}");
        fs::write(&path, FILE.replace("pods-runc", "pods-lxc")).unwrap();
        let error = enter(&mut samples, &vm, Some(&path)).unwrap_err().to_string();
        assert!(error.contains("pods-lxc"), "{error}");
    }

    #[test]
    fn without_xtask_every_arm_is_absent_with_the_reason() {
        let mut samples = samples(100);
        enter(&mut samples, &[], None).unwrap();
        assert!(samples.absences.is_empty());
        enter(&mut samples, &[&EXPERIMENTS[1]], None).unwrap();
        let kata = samples.absences.iter().find(|absence| absence.arm == Kata).unwrap();
        assert!(kata.reason.contains("cargo xtask compare"), "{kata:?}");
    }
}
