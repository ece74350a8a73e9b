//! How large a pod's VM is, from the pod's limits.
//!
//! ```text
//! limit said:   VM = limit + overhead_*        (without that key: + default_*, as Kata's Go runtime)
//! not said:     VM = default_*
//! ```
//! CPU and memory are decided each by itself. (Kata's Rust runtime gives a pod that limits only its
//! CPU `overhead_memory` and nothing more, which is too little to boot with.) Whole vCPUs, rounded up.
//!
//! The annotations that containerd makes for a sandbox are the sum of its containers' limits. The
//! overhead of its RuntimeClass is not in them: the kubelet adds that to the pod's cgroup, where the
//! VMM's own needs are met from it. So here nothing of it is added, and nothing is taken off.

use std::collections::BTreeMap;

use crate::{
    KataConfig,
    error::{ConfigError, Place},
};

const PREFIX: &str = "io.kubernetes.cri.sandbox-";
/// Limits from here on are how "no limit" is written in bytes: the kernel's own is a little below
/// 2^63.
const UNLIMITED_BYTES: u64 = 1 << 60;

/// What a pod may use at most.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// Processors.
    pub cpus: Option<f64>,
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
}

impl Limits {
    /// From a CFS quota and period in microseconds and a memory limit in bytes, as OCI and CRI have
    /// them: what is not positive is no limit.
    #[must_use]
    pub fn new(cpu_quota_us: i64, cpu_period_us: u64, memory_bytes: i64) -> Self {
        let has_cpus = cpu_quota_us > 0 && cpu_period_us > 0;
        let memory = u64::try_from(memory_bytes).unwrap_or(0);
        Self {
            cpus: has_cpus.then(|| cpu_quota_us as f64 / cpu_period_us as f64),
            memory_bytes: (1..UNLIMITED_BYTES).contains(&memory).then_some(memory),
        }
    }

    /// What two containers may use together. One without a limit adds nothing, as with Kata: it takes what
    /// the others leave.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let cpus = [self.cpus, other.cpus].into_iter().flatten().reduce(|a, b| a + b);
        let memory = [self.memory_bytes, other.memory_bytes].into_iter().flatten();
        Self { cpus, memory_bytes: memory.reduce(u64::saturating_add) }
    }

    /// From the annotations `io.kubernetes.cri.sandbox-cpu-quota`, `-cpu-period` and `-memory`.
    /// Shares are what a pod gets at least, so they limit nothing.
    ///
    /// # Errors
    /// One of them is no number.
    pub fn from_annotations(annotations: &BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let number = |short: &str| -> Result<i64, ConfigError> {
            let name = format!("{PREFIX}{short}");
            let Some(text) = annotations.get(&name) else { return Ok(0) };
            text.trim().parse().map_err(|_| ConfigError::BadValue {
                place: Place::Annotation { annotation: name },
                key: format!("sandbox-{short}"),
                value: format!("{text:?}"),
                remedy: "containerd writes a whole number here".into(),
            })
        };
        let period = u64::try_from(number("cpu-period")?).unwrap_or(0);
        Ok(Self::new(number("cpu-quota")?, period, number("memory")?))
    }
}

/// The size of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodSize {
    /// vCPUs, at least 1.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
}

/// The size of the VM at its start: that of the pod with `static_sandbox_resource_mgmt`, else the
/// configuration's default, and it grows with its containers. Neither is above `default_maxvcpus` and
/// `default_maxmemory`: more is not there to be had.
#[must_use]
pub fn pod_size(config: &KataConfig, limits: Limits) -> PodSize {
    match config.runtime.static_sandbox_resource_mgmt {
        true => size_for(config, limits),
        false => size_for(config, Limits::default()),
    }
}

/// The size that a VM has to have for these limits, those of all its containers together.
#[must_use]
pub fn size_for(config: &KataConfig, limits: Limits) -> PodSize {
    let machine = &config.hypervisor;
    let default_vcpus = f64::from(machine.default_vcpus);
    let vcpus = match limits.cpus {
        Some(cpus) => cpus + machine.overhead_vcpus.map_or(default_vcpus, f64::from),
        None => default_vcpus,
    };
    let most = machine.default_maxvcpus.max(1);
    // The sum of two decimal fractions may lie a little above the whole number that is meant.
    let vcpus = ((vcpus - 1e-6).ceil().clamp(1.0, f64::from(most))) as u32;
    let default_memory = u64::from(machine.default_memory_mib);
    let memory = match limits.memory_bytes {
        Some(bytes) => {
            bytes.div_ceil(1 << 20) + machine.overhead_memory_mib.map_or(default_memory, u64::from)
        }
        None => default_memory,
    };
    let memory = memory.min(machine.default_maxmemory_mib.max(default_memory));
    PodSize { vcpus, memory_mib: u32::try_from(memory).unwrap_or(u32::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(overhead: Option<(f32, u32)>) -> KataConfig {
        let mut config = KataConfig::default();
        let machine = &mut config.hypervisor;
        (machine.default_vcpus, machine.default_maxvcpus) = (2.0, 8);
        (machine.default_memory_mib, machine.default_maxmemory_mib) = (1024, 8192);
        machine.overhead_vcpus = overhead.map(|(cpus, _)| cpus);
        machine.overhead_memory_mib = overhead.map(|(_, mib)| mib);
        config
    }

    fn size(config: &KataConfig, quota: i64, memory_mib: i64) -> (u32, u32) {
        let size = pod_size(config, Limits::new(quota, 100_000, memory_mib << 20));
        (size.vcpus, size.memory_mib)
    }

    #[test]
    fn a_pod_without_limits_has_the_defaults() {
        for overhead in [None, Some((0.5, 128))] {
            assert_eq!(size(&config(overhead), 0, 0), (2, 1024));
            assert_eq!(size(&config(overhead), -1, -1), (2, 1024));
        }
        let unlimited = Limits::new(0, 0, i64::MAX & !4095);
        assert_eq!(unlimited, Limits::default());
    }

    #[test]
    fn limits_and_overhead_are_added_and_vcpus_rounded_up() {
        let config = config(Some((0.5, 128)));
        assert_eq!(size(&config, 150_000, 600), (2, 728));
        assert_eq!(size(&config, 160_000, 600), (3, 728));
        assert_eq!(size(&config, 10_000, 600), (1, 728));
    }

    #[test]
    fn what_a_pod_does_not_limit_keeps_its_default() {
        let config = config(Some((0.5, 128)));
        assert_eq!(size(&config, 150_000, 0), (2, 1024));
        assert_eq!(size(&config, 0, 512), (2, 640));
    }

    #[test]
    fn without_overhead_keys_the_default_is_the_overhead() {
        assert_eq!(size(&config(None), 100_000, 512), (3, 1536));
        assert_eq!(size(&config(Some((0.0, 0))), 100_000, 512), (1, 512));
    }

    #[test]
    fn sums_of_fractions_do_not_cost_a_vcpu() {
        assert_eq!(size(&config(Some((0.7, 0))), 30_000, 64).0, 1);
        assert_eq!(size(&config(Some((0.1, 0))), 190_000, 64).0, 2);
    }

    #[test]
    fn a_vm_is_never_larger_than_the_largest_one() {
        let config = config(Some((0.5, 128)));
        assert_eq!(size(&config, 6_400_000, 1 << 20), (8, 8192));
    }

    #[test]
    fn a_vm_that_grows_starts_with_the_defaults() {
        let mut config = config(Some((0.5, 128)));
        config.runtime.static_sandbox_resource_mgmt = false;
        assert_eq!(size(&config, 400_000, 4096), (2, 1024));
        let grown = size_for(&config, Limits::new(400_000, 100_000, 4096 << 20));
        assert_eq!((grown.vcpus, grown.memory_mib), (5, 4224));
    }

    #[test]
    fn limits_add_up_and_those_without_any_count_nothing() {
        let one = Limits::new(150_000, 100_000, 1 << 20);
        let sum = one.and(Limits::new(0, 0, 2 << 20)).and(Limits::default());
        assert_eq!(sum, Limits { cpus: Some(1.5), memory_bytes: Some(3 << 20) });
        assert_eq!(Limits::default().and(Limits::default()), Limits::default());
        assert_eq!(one.and(one).cpus, Some(3.0));
    }

    #[test]
    fn limits_come_from_the_annotations_of_the_sandbox() {
        let annotations = |pairs: &[(&str, &str)]| {
            let pair = |(name, text): &(&str, &str)| (format!("{PREFIX}{name}"), text.to_string());
            Limits::from_annotations(&pairs.iter().map(pair).collect())
        };
        let limits = annotations(&[
            ("cpu-period", "100000"),
            ("cpu-quota", "250000"),
            ("cpu-shares", "2560"),
            ("memory", "536870912"),
        ]);
        let wanted = Limits { cpus: Some(2.5), memory_bytes: Some(512 << 20) };
        assert_eq!(limits.expect("numbers"), wanted);
        assert_eq!(annotations(&[("cpu-shares", "2")]).expect("numbers"), Limits::default());
        let error = annotations(&[("memory", "1Gi")]).expect_err("no number").to_string();
        assert!(error.contains("io.kubernetes.cri.sandbox-memory") && error.contains("1Gi"));
    }
}
