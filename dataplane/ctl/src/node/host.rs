//! Facts of the host, each from the file that has it.

use std::{fs::OpenOptions, io};

use serde::Serialize;

use super::Node;

/// The host, as far as pods depend on it.
#[derive(Clone, Debug, Serialize)]
pub struct HostFacts {
    /// The distribution, as it calls itself.
    pub distribution: Option<String>,
    /// Release of the host's kernel.
    pub kernel: Option<String>,
    /// The processor's architecture.
    pub architecture: &'static str,
    /// The processor's name.
    pub cpu: Option<String>,
    /// `vmx` or `svm`: what the processor has for virtual machines.
    pub cpu_virtualisation: Option<String>,
    /// Processors.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// How much of it is to be had, in MiB.
    pub memory_available_mib: Option<u64>,
    /// cgroup version 1 or 2.
    pub cgroup_version: Option<u8>,
    /// Whether `/dev/kvm` can be opened.
    pub kvm: bool,
    /// Whether `/dev/vhost-vsock` can be opened.
    pub vhost_vsock: bool,
    /// Huge pages of 2 MiB.
    pub hugepages_2mib: HugePages,
}

/// How many huge pages there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HugePages {
    /// Set aside.
    pub total: u64,
    /// Of these not in use.
    pub free: u64,
}

impl Node {
    /// Everything of [`HostFacts`].
    pub(super) fn host(&self) -> HostFacts {
        let size = kata_config::Host::read();
        let release = self.text("/proc/sys/kernel/osrelease");
        HostFacts {
            distribution: self.distribution(),
            kernel: release.map(|text| text.trim().to_owned()),
            architecture: std::env::consts::ARCH,
            cpu: self.cpuinfo("model name"),
            cpu_virtualisation: self.cpu_virtualisation(),
            cpus: size.cpus,
            memory_mib: size.memory_mib,
            memory_available_mib: self.memory_available_mib(),
            cgroup_version: self.cgroup_version(),
            kvm: self.opens("/dev/kvm").is_ok(),
            vhost_vsock: self.opens("/dev/vhost-vsock").is_ok(),
            hugepages_2mib: self.hugepages(),
        }
    }

    /// os-release(5).
    fn distribution(&self) -> Option<String> {
        let text = self.text("/etc/os-release")?;
        let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
        Some(name.trim_matches(['"', '\'']).to_owned())
    }

    /// `MemAvailable` of proc_meminfo(5).
    pub(super) fn memory_available_mib(&self) -> Option<u64> {
        let text = self.text("/proc/meminfo")?;
        let rest = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        let kib: u64 = rest.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(kib / 1024)
    }

    fn cpuinfo(&self, key: &str) -> Option<String> {
        let text = self.text("/proc/cpuinfo")?;
        let mut lines = text.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim().to_owned())
    }

    pub(super) fn cpu_virtualisation(&self) -> Option<String> {
        let flags = self.cpuinfo("flags")?;
        let mut flags = flags.split(' ');
        flags.find(|flag| matches!(*flag, "vmx" | "svm")).map(str::to_owned)
    }

    /// Whether a device can be opened as a VMM opens it.
    pub(super) fn opens(&self, device: &str) -> io::Result<()> {
        OpenOptions::new().read(true).write(true).open(self.at(device)).map(drop)
    }

    pub(super) fn cgroup_version(&self) -> Option<u8> {
        if self.at("/sys/fs/cgroup/cgroup.controllers").exists() {
            return Some(2);
        }
        self.at("/sys/fs/cgroup/memory").exists().then_some(1)
    }

    pub(super) fn hugepages(&self) -> HugePages {
        let number = |name: &str| {
            let path = format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{name}");
            self.text(&path).and_then(|text| text.trim().parse().ok()).unwrap_or(0)
        };
        HugePages { total: number("nr_hugepages"), free: number("free_hugepages") }
    }
}
