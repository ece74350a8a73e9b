//! What a run was made on: without it a table says little.

use std::fs;
use std::process::Command;

use dataplane::clock;
use serde::{Deserialize, Serialize};

/// A machine and the versions of what was compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
    /// The processor, as it calls itself.
    pub cpu: String,
    /// Ticks of its time-stamp counter in a microsecond.
    pub ticks_per_us: u64,
    /// Cores that we may use.
    pub cores: usize,
    /// Of the kernel.
    pub kernel: String,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Package and version of each peer that is installed.
    pub packages: Vec<String>,
}

impl Machine {
    /// This one. What it does not tell stays empty.
    pub fn here() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
        let kib: u64 =
            memory.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or(0);
        Self {
            unix_ms: clock::unix_ms(),
            cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or_default(),
            ticks_per_us: clock::ticks_per_us(),
            cores: core_affinity::get_core_ids().map_or(0, |cores| cores.len()),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            memory_mib: kib / 1024,
            packages: packages(),
        }
    }
}

fn packages() -> Vec<String> {
    let mut query = Command::new("dpkg-query");
    query.args([
        "--show",
        "--showformat=${Package} ${Version}\\n",
        "openvswitch-switch-dpdk",
        "dpdk",
        "containernetworking-plugins",
        "iperf3",
        "sockperf",
    ]);
    let shown = query.output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&shown).lines().map(str::to_owned).collect()
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { cpu, ticks_per_us, cores, kernel, memory_mib, .. } = self;
        write!(
            f,
            "{cpu}, {cores} cores, TSC {ticks_per_us} MHz, {memory_mib} MiB, Linux {kernel}"
        )?;
        self.packages.iter().try_for_each(|package| write!(f, ", {package}"))
    }
}
