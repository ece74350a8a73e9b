//! What a container has used, in the words of the protocol.

use std::fs;

use anyhow::{Context as _, Result};
use kata_agent_protocol::agent::*;
use kata_agent_protocol::protobuf::MessageField;
use libcgroups::stats::{self, BlkioDeviceStat};

/// Turns a cgroup's figures into an answer, with those of the pod's interfaces.
pub fn response(stats: stats::Stats) -> Result<StatsContainerResponse> {
    let stats::Stats { cpu, memory, pids, blkio, hugetlb } = stats;
    let usage = CpuUsage {
        total_usage: cpu.usage.usage_total,
        percpu_usage: cpu.usage.per_core_usage_total,
        usage_in_kernelmode: cpu.usage.usage_kernel,
        usage_in_usermode: cpu.usage.usage_user,
        ..Default::default()
    };
    let throttling = ThrottlingData {
        periods: cpu.throttling.periods,
        throttled_periods: cpu.throttling.throttled_periods,
        throttled_time: cpu.throttling.throttled_time,
        ..Default::default()
    };
    let memory = MemoryStats {
        cache: memory.cache,
        usage: MessageField::some(memory_data(&memory.memory)),
        swap_usage: MessageField::some(memory_data(&memory.memswap)),
        kernel_usage: MessageField::some(memory_data(&memory.kernel)),
        use_hierarchy: memory.hierarchy,
        stats: memory.stats,
        ..Default::default()
    };
    let hugetlb = hugetlb.into_iter().map(|(size, usage)| {
        let usage = HugetlbStats {
            usage: usage.usage,
            max_usage: usage.max_usage,
            failcnt: usage.fail_count,
            ..Default::default()
        };
        (size, usage)
    });
    let cgroup = CgroupStats {
        cpu_stats: MessageField::some(CpuStats {
            cpu_usage: MessageField::some(usage),
            throttling_data: MessageField::some(throttling),
            ..Default::default()
        }),
        memory_stats: MessageField::some(memory),
        pids_stats: MessageField::some(PidsStats {
            current: pids.current,
            limit: pids.limit,
            ..Default::default()
        }),
        blkio_stats: MessageField::some(block_io(blkio)),
        hugetlb_stats: hugetlb.collect(),
        ..Default::default()
    };
    Ok(StatsContainerResponse {
        cgroup_stats: MessageField::some(cgroup),
        network_stats: network()?,
        ..Default::default()
    })
}

fn memory_data(data: &stats::MemoryData) -> MemoryData {
    MemoryData {
        usage: data.usage,
        max_usage: data.max_usage,
        failcnt: data.fail_count,
        limit: data.limit,
        ..Default::default()
    }
}

fn block_io(stats: stats::BlkioStats) -> BlkioStats {
    let entries = |stats: Vec<BlkioDeviceStat>| -> Vec<BlkioStatsEntry> {
        let entry = |stat: BlkioDeviceStat| BlkioStatsEntry {
            major: stat.major,
            minor: stat.minor,
            op: stat.op_type.unwrap_or_default(),
            value: stat.value,
            ..Default::default()
        };
        stats.into_iter().map(entry).collect()
    };
    BlkioStats {
        io_service_bytes_recursive: entries(stats.service_bytes),
        io_serviced_recursive: entries(stats.serviced),
        io_queued_recursive: entries(stats.queued),
        io_service_time_recursive: entries(stats.service_time),
        io_wait_time_recursive: entries(stats.wait_time),
        io_merged_recursive: entries(stats.merged),
        io_time_recursive: entries(stats.time),
        sectors_recursive: entries(stats.sectors),
        ..Default::default()
    }
}

/// The counters of all interfaces but the loop.
fn network() -> Result<Vec<NetworkStats>> {
    const PATH: &str = "/proc/net/dev";
    let text = fs::read_to_string(PATH).with_context(|| format!("Failed to read {PATH}"))?;
    Ok(parse_network(&text).filter(|stats| stats.name != "lo").collect())
}

/// Lines of `/proc/net/dev`: name, eight counters of receiving, eight of sending.
pub fn parse_network(text: &str) -> impl Iterator<Item = NetworkStats> {
    text.lines().filter_map(|line| {
        let (name, counters) = line.split_once(':')?;
        let counters: Vec<u64> =
            counters.split_ascii_whitespace().map_while(|counter| counter.parse().ok()).collect();
        let [rx_bytes, rx_packets, rx_errors, rx_dropped, _, _, _, _, rest @ ..] = &counters[..]
        else {
            return None;
        };
        let [tx_bytes, tx_packets, tx_errors, tx_dropped, ..] = rest else { return None };
        Some(NetworkStats {
            name: name.trim().to_owned(),
            rx_bytes: *rx_bytes,
            rx_packets: *rx_packets,
            rx_errors: *rx_errors,
            rx_dropped: *rx_dropped,
            tx_bytes: *tx_bytes,
            tx_packets: *tx_packets,
            tx_errors: *tx_errors,
            tx_dropped: *tx_dropped,
            ..Default::default()
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_interfaces_are_read_by_their_columns() {
        let text = "Inter-|   Receive                            |  Transmit\n\
            face |bytes    packets errs drop fifo frame compressed multicast|bytes packets\n\
            eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n";
        let all: Vec<_> = parse_network(text).collect();
        assert_eq!(all.len(), 1);
        let stats = &all[0];
        assert_eq!(stats.name, "eth0");
        assert_eq!((stats.rx_bytes, stats.rx_dropped), (1, 4));
        assert_eq!((stats.tx_bytes, stats.tx_packets, stats.tx_dropped), (9, 10, 12));
    }
}
