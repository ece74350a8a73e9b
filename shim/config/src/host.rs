//! What the defaults depend on: how large the host is.

use std::{fs, thread};

use crate::{Hypervisor, KataConfig, Warning};

/// The size of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// Processors this process may use.
    pub cpus: u32,
    /// Memory, in MiB.
    pub memory_mib: u64,
}

impl Host {
    /// The host we run on. What cannot be read counts as one processor, or as no bound of memory.
    #[must_use]
    pub fn read() -> Self {
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        let memory = fs::read_to_string("/proc/meminfo").ok();
        Self {
            cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
            memory_mib: memory.as_deref().and_then(total_mib).unwrap_or(u64::MAX),
        }
    }
}

fn total_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? >> 10)
}

/// Gives the numbers that mean "the host's" their value, and keeps the others within what the host
/// has, as Kata does.
pub(crate) fn settle(config: &mut KataConfig, host: Host) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let mut lowered = |name: &str, from: String, to: String, why: &str| {
        let message = format!("{name} = {from} was lowered to {to}: {why}");
        warnings.push(Warning { place: None, message });
    };
    let machine = &mut config.hypervisor;
    let cpus = host.cpus.max(1);
    if machine.default_maxvcpus > cpus {
        let (from, to) = (machine.default_maxvcpus.to_string(), cpus.to_string());
        lowered("default_maxvcpus", from, to, "the host has no more processors");
    }
    if machine.default_maxvcpus == 0 || machine.default_maxvcpus > cpus {
        machine.default_maxvcpus = cpus;
    }
    let most = machine.default_maxvcpus as f32;
    if machine.default_vcpus > most {
        let (from, to) = (machine.default_vcpus.to_string(), most.to_string());
        lowered("default_vcpus", from, to, "default_maxvcpus allows no more");
    }
    machine.default_vcpus = match machine.default_vcpus {
        count if count < 0.0 => most,
        0.0 => 1.0_f32.min(most),
        count => count.min(most),
    };
    if machine.default_memory_mib == 0 {
        machine.default_memory_mib = Hypervisor::default().default_memory_mib;
    }
    let memory = u64::from(machine.default_memory_mib);
    let most = host.memory_mib.max(memory);
    if machine.default_maxmemory_mib > most {
        let (from, to) = (machine.default_maxmemory_mib.to_string(), most.to_string());
        lowered("default_maxmemory", from, to, "the host has no more memory");
    }
    machine.default_maxmemory_mib = match machine.default_maxmemory_mib {
        0 => most,
        mib => mib.min(most).max(memory),
    };
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_mib() {
        assert_eq!(total_mib("MemTotal:       16303428 kB\nMemFree: 1 kB\n"), Some(15_921));
        assert_eq!(total_mib("MemTotal: lots\n"), None);
    }
}
