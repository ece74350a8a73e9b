//! What the defaults depend on: how large the host is.

use std::{fs, thread};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_mib() {
        assert_eq!(total_mib("MemTotal:       16303428 kB\nMemFree: 1 kB\n"), Some(15_921));
        assert_eq!(total_mib("MemTotal: lots\n"), None);
    }
}
