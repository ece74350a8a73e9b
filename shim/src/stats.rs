//! A container's statistics in the form that containerd of this host reads: metrics of cgroup
//! version 1 or 2, whichever the host has. The guest's own version does not matter.

use anyhow::{Context as _, Result};
use containerd_shim_protos::protobuf::{MessageDyn, MessageField, well_known_types::any::Any};
use containerd_shim_protos::{cgroups, cgroups_v2};
use kata_agent_protocol::agent::{CgroupStats, StatsContainerResponse};

use crate::cgroup;

const V1: &str = "io.containerd.cgroups.v1.Metrics";
const V2: &str = "io.containerd.cgroups.v2.Metrics";

/// The agent's answer as containerd's metrics.
///
/// # Errors
/// A message that cannot be encoded.
pub fn metrics(stats: &StatsContainerResponse) -> Result<Any> {
    if cgroup::is_v2() { packed(V2, &v2(&stats.cgroup_stats)) } else { packed(V1, &v1(stats)) }
}

fn packed(name: &str, message: &dyn MessageDyn) -> Result<Any> {
    let mut any = Any::new();
    any.type_url = name.to_owned();
    any.value = message.write_to_bytes_dyn().context("Failed to encode the statistics")?;
    Ok(any)
}

fn v1(stats: &StatsContainerResponse) -> cgroups::metrics::Metrics {
    use cgroups::metrics::{
        CPUStat, CPUUsage, MemoryEntry, MemoryStat, Metrics, NetworkStat, PidsStat, Throttle,
    };
    let from = &stats.cgroup_stats;
    let mut metrics = Metrics::new();

    let mut usage = CPUUsage::new();
    usage.total = from.cpu_stats.cpu_usage.total_usage;
    usage.kernel = from.cpu_stats.cpu_usage.usage_in_kernelmode;
    usage.user = from.cpu_stats.cpu_usage.usage_in_usermode;
    usage.per_cpu.clone_from(&from.cpu_stats.cpu_usage.percpu_usage);
    let mut throttling = Throttle::new();
    throttling.periods = from.cpu_stats.throttling_data.periods;
    throttling.throttled_periods = from.cpu_stats.throttling_data.throttled_periods;
    throttling.throttled_time = from.cpu_stats.throttling_data.throttled_time;
    let mut cpu = CPUStat::new();
    cpu.usage = MessageField::some(usage);
    cpu.throttling = MessageField::some(throttling);
    metrics.cpu = MessageField::some(cpu);

    let entry = |data: &kata_agent_protocol::agent::MemoryData| {
        let mut entry = MemoryEntry::new();
        entry.usage = data.usage;
        entry.max = data.max_usage;
        entry.failcnt = data.failcnt;
        entry.limit = data.limit;
        MessageField::some(entry)
    };
    let mut memory = MemoryStat::new();
    memory.usage = entry(&from.memory_stats.usage);
    memory.swap = entry(&from.memory_stats.swap_usage);
    memory.kernel = entry(&from.memory_stats.kernel_usage);
    memory.cache = from.memory_stats.cache;
    let value = |name: &str| from.memory_stats.stats.get(name).copied().unwrap_or_default();
    // containerd's CRI computes the working set as usage less this one.
    memory.total_inactive_file = value("inactive_file").max(value("total_inactive_file"));
    memory.inactive_file = memory.total_inactive_file;
    memory.active_file = value("active_file");
    memory.rss = value("rss").max(value("anon"));
    memory.pg_fault = value("pgfault");
    memory.pg_maj_fault = value("pgmajfault");
    metrics.memory = MessageField::some(memory);

    let mut pids = PidsStat::new();
    pids.current = from.pids_stats.current;
    pids.limit = from.pids_stats.limit;
    metrics.pids = MessageField::some(pids);

    for nic in &stats.network_stats {
        let mut network = NetworkStat::new();
        network.name.clone_from(&nic.name);
        network.rx_bytes = nic.rx_bytes;
        network.rx_packets = nic.rx_packets;
        network.rx_errors = nic.rx_errors;
        network.rx_dropped = nic.rx_dropped;
        network.tx_bytes = nic.tx_bytes;
        network.tx_packets = nic.tx_packets;
        network.tx_errors = nic.tx_errors;
        network.tx_dropped = nic.tx_dropped;
        metrics.network.push(network);
    }
    metrics
}

fn v2(from: &CgroupStats) -> cgroups_v2::metrics::Metrics {
    use cgroups_v2::metrics::{CPUStat, MemoryStat, Metrics, PidsStat};
    const NS_PER_US: u64 = 1000;
    let mut metrics = Metrics::new();

    let mut cpu = CPUStat::new();
    cpu.usage_usec = from.cpu_stats.cpu_usage.total_usage / NS_PER_US;
    cpu.user_usec = from.cpu_stats.cpu_usage.usage_in_usermode / NS_PER_US;
    cpu.system_usec = from.cpu_stats.cpu_usage.usage_in_kernelmode / NS_PER_US;
    cpu.nr_periods = from.cpu_stats.throttling_data.periods;
    cpu.nr_throttled = from.cpu_stats.throttling_data.throttled_periods;
    cpu.throttled_usec = from.cpu_stats.throttling_data.throttled_time / NS_PER_US;
    metrics.cpu = MessageField::some(cpu);

    let value = |name: &str| from.memory_stats.stats.get(name).copied().unwrap_or_default();
    let mut memory = MemoryStat::new();
    memory.usage = from.memory_stats.usage.usage;
    memory.usage_limit = from.memory_stats.usage.limit;
    memory.swap_usage = from.memory_stats.swap_usage.usage;
    memory.swap_limit = from.memory_stats.swap_usage.limit;
    memory.anon = value("anon").max(value("rss"));
    memory.file = value("file").max(from.memory_stats.cache);
    memory.inactive_file = value("inactive_file").max(value("total_inactive_file"));
    memory.active_file = value("active_file");
    memory.pgfault = value("pgfault");
    memory.pgmajfault = value("pgmajfault");
    metrics.memory = MessageField::some(memory);

    let mut pids = PidsStat::new();
    pids.current = from.pids_stats.current;
    pids.limit = from.pids_stats.limit;
    metrics.pids = MessageField::some(pids);
    metrics
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats() -> StatsContainerResponse {
        use kata_agent_protocol::agent as a;
        let mut usage = a::CpuUsage::new();
        (usage.total_usage, usage.usage_in_usermode) = (5_000, 3_000);
        let mut cpu = a::CpuStats::new();
        cpu.cpu_usage = MessageField::some(usage);
        let mut data = a::MemoryData::new();
        (data.usage, data.limit) = (4096, 8192);
        let mut memory = a::MemoryStats::new();
        memory.usage = MessageField::some(data);
        memory.stats.insert("inactive_file".to_owned(), 100);
        let mut pids = a::PidsStats::new();
        pids.current = 3;
        let mut cgroup = CgroupStats::new();
        cgroup.cpu_stats = MessageField::some(cpu);
        cgroup.memory_stats = MessageField::some(memory);
        cgroup.pids_stats = MessageField::some(pids);
        let mut nic = a::NetworkStats::new();
        (nic.name, nic.rx_bytes) = ("eth0".to_owned(), 9);
        let mut stats = StatsContainerResponse::new();
        stats.cgroup_stats = MessageField::some(cgroup);
        stats.network_stats.push(nic);
        stats
    }

    #[test]
    fn version_1_has_nanoseconds_and_the_network() {
        let metrics = v1(&stats());
        assert_eq!((metrics.cpu.usage.total, metrics.cpu.usage.user), (5_000, 3_000));
        assert_eq!((metrics.memory.usage.usage, metrics.memory.usage.limit), (4096, 8192));
        assert_eq!(metrics.memory.total_inactive_file, 100);
        assert_eq!(metrics.pids.current, 3);
        assert_eq!((metrics.network[0].name.as_str(), metrics.network[0].rx_bytes), ("eth0", 9));
    }

    #[test]
    fn version_2_has_microseconds() {
        let metrics = v2(&stats().cgroup_stats);
        assert_eq!((metrics.cpu.usage_usec, metrics.cpu.user_usec), (5, 3));
        assert_eq!((metrics.memory.usage, metrics.memory.inactive_file), (4096, 100));
    }

    #[test]
    fn the_message_is_named_as_containerd_looks_for_it() {
        let any = metrics(&stats()).unwrap();
        assert!([V1, V2].contains(&any.type_url.as_str()));
        assert!(!any.value.is_empty());
    }
}
