//! What the guest is and how it fares: details, metrics, volumes, clock, entropy, processors.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use kata_agent_protocol::agent::*;
use kata_agent_protocol::csi::{
    VolumeCondition, VolumeStatsResponse, VolumeUsage, volume_usage::Unit,
};
use kata_agent_protocol::protobuf::MessageField;
use nix::sys::statvfs::statvfs;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

use super::error::Refusal;
use super::{device, stats, storage};

const MEMORY_BLOCK: &str = "/sys/devices/system/memory/block_size_bytes";
const MEMORY_PROBE: &str = "/sys/devices/system/memory/probe";
const CPUS: &str = "/sys/devices/system/cpu";
const MEMORY: &str = "/sys/devices/system/memory";
/// How often and how long to look for processors that the host says it has added.
const CPU_LOOKS: u32 = 100;
const CPU_PAUSE: Duration = Duration::from_millis(10);

/// Answers GetGuestDetails.
pub fn guest(request: &GuestDetailsRequest) -> Result<GuestDetailsResponse> {
    let names = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    let details = AgentDetails {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        init_daemon: std::process::id() == 1,
        device_handlers: names(&device::TYPES),
        storage_handlers: names(&storage::DRIVERS),
        supports_seccomp: false,
        ..Default::default()
    };
    let mut response =
        GuestDetailsResponse { agent_details: MessageField::some(details), ..Default::default() };
    if request.mem_block_size && Path::new(MEMORY_BLOCK).exists() {
        let text = fs::read_to_string(MEMORY_BLOCK)
            .with_context(|| format!("Failed to read {MEMORY_BLOCK}"))?;
        response.mem_block_size_bytes = u64::from_str_radix(text.trim(), 16)
            .with_context(|| format!("{MEMORY_BLOCK} is no number: {text}"))?;
    }
    if request.mem_hotplug_probe {
        response.support_mem_hotplug_probe = Path::new(MEMORY_PROBE).exists();
    }
    Ok(response)
}

/// Brings processors and memory on line that the host has added. With `wait` it looks for as many
/// processors as were announced.
pub async fn online(request: &OnlineCPUMemRequest) -> Result<()> {
    if request.nb_cpus > 0 {
        let mut looks = if request.wait { CPU_LOOKS } else { 1 };
        let mut brought = 0;
        while brought < request.nb_cpus && looks > 0 {
            brought += bring_online(Path::new(CPUS), "cpu")?;
            looks -= 1;
            if brought < request.nb_cpus && looks > 0 {
                tokio::time::sleep(CPU_PAUSE).await;
            }
        }
        // The kernel may have brought them on line itself, so fewer are no failure.
    }
    if !request.cpu_only && Path::new(MEMORY).exists() {
        bring_online(Path::new(MEMORY), "memory")?;
    }
    Ok(())
}

/// Brings on line what is not, among the numbered devices of a folder; returns how many.
fn bring_online(folder: &Path, prefix: &str) -> Result<u32> {
    let mut brought = 0;
    let entries =
        fs::read_dir(folder).with_context(|| format!("Failed to list {}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let number = name.strip_prefix(prefix).unwrap_or_default();
        if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let file = entry.path().join("online");
        // The first processor has no such file: it is always on line.
        if fs::read_to_string(&file).is_ok_and(|state| state.trim() == "0") {
            fs::write(&file, "1").with_context(|| format!("Failed to write {}", file.display()))?;
            brought += 1;
        }
    }
    Ok(brought)
}

/// Sets the guest's clock.
pub fn set_clock(request: &SetGuestDateTimeRequest) -> Result<()> {
    let (seconds, micros) = (request.Sec, request.Usec);
    if seconds < 0 || !(0..1_000_000).contains(&micros) {
        return Err(Refusal::invalid(format!("{seconds} s and {micros} us is no time")));
    }
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::new(seconds, micros * 1000))
        .context("Failed to set the clock")
}

/// Mixes bytes into the kernel's random numbers.
pub fn reseed(request: &ReseedRandomDevRequest) -> Result<()> {
    const PATH: &str = "/dev/random";
    fs::write(PATH, &request.data).with_context(|| format!("Failed to write {PATH}"))
}

/// How full the file system of a volume is.
pub fn volume(path: &str) -> Result<VolumeStatsResponse> {
    let stats = statvfs(path).with_context(|| format!("Failed to look at the volume {path}"))?;
    let usage = |unit: Unit, total: u64, free: u64, available: u64| VolumeUsage {
        available,
        total,
        used: total.saturating_sub(free),
        unit: unit.into(),
        ..Default::default()
    };
    let block = stats.fragment_size();
    let bytes = usage(
        Unit::BYTES,
        block * stats.blocks(),
        block * stats.blocks_free(),
        block * stats.blocks_available(),
    );
    let inodes = usage(Unit::INODES, stats.files(), stats.files_free(), stats.files_available());
    Ok(VolumeStatsResponse {
        usage: vec![bytes, inodes],
        volume_condition: MessageField::some(VolumeCondition {
            message: "OK".to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    })
}

/// The guest's figures in Prometheus' text format, under the names that Kata's agents use.
pub fn metrics() -> Result<String> {
    let read =
        |path: &str| fs::read_to_string(path).with_context(|| format!("Failed to read {path}"));
    let mut text = String::new();
    write_load(&mut text, &read("/proc/loadavg")?)?;
    write_memory(&mut text, &read("/proc/meminfo")?)?;
    write_cpu(&mut text, &read("/proc/stat")?)?;
    write_network(&mut text, &read("/proc/net/dev")?)?;
    Ok(text)
}

fn head(text: &mut String, name: &str, help: &str) -> Result<()> {
    Ok(write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n")?)
}

fn write_load(text: &mut String, loadavg: &str) -> Result<()> {
    const NAME: &str = "kata_guest_load";
    head(text, NAME, "Guest system load.")?;
    let loads = loadavg.split_ascii_whitespace();
    for (item, load) in ["load1", "load5", "load15"].iter().zip(loads) {
        writeln!(text, "{NAME}{{item=\"{item}\"}} {load}")?;
    }
    Ok(())
}

/// In kB, as `/proc/meminfo` has it.
fn write_memory(text: &mut String, meminfo: &str) -> Result<()> {
    const NAME: &str = "kata_guest_meminfo";
    head(text, NAME, "Statistics about memory usage in the system.")?;
    for line in meminfo.lines() {
        let Some((item, value)) = line.split_once(':') else { continue };
        let Some(value) = value.split_ascii_whitespace().next() else { continue };
        let item = item.to_ascii_lowercase().replace('(', "_").replace(')', "");
        writeln!(text, "{NAME}{{item=\"{item}\"}} {value}")?;
    }
    Ok(())
}

/// In ticks of 10 ms, as `/proc/stat` has it.
fn write_cpu(text: &mut String, stat: &str) -> Result<()> {
    const NAME: &str = "kata_guest_cpu_time";
    const ITEMS: [&str; 10] = [
        "user",
        "nice",
        "system",
        "idle",
        "iowait",
        "irq",
        "softirq",
        "steal",
        "guest",
        "guest_nice",
    ];
    head(text, NAME, "Guest CPU statistics.")?;
    for line in stat.lines().filter(|line| line.starts_with("cpu")) {
        let mut words = line.split_ascii_whitespace();
        let cpu = words.next().unwrap_or_default();
        let cpu = if cpu == "cpu" { "total" } else { &cpu[3..] };
        for (item, ticks) in ITEMS.iter().zip(words) {
            writeln!(text, "{NAME}{{cpu=\"{cpu}\",item=\"{item}\"}} {ticks}")?;
        }
    }
    Ok(())
}

fn write_network(text: &mut String, dev: &str) -> Result<()> {
    const NAME: &str = "kata_guest_netdev_stat";
    head(text, NAME, "Guest net devices statistics.")?;
    for stats in stats::parse_network(dev) {
        let name = &stats.name;
        for (item, value) in [
            ("recv_bytes", stats.rx_bytes),
            ("recv_packets", stats.rx_packets),
            ("recv_errs", stats.rx_errors),
            ("recv_drop", stats.rx_dropped),
            ("sent_bytes", stats.tx_bytes),
            ("sent_packets", stats.tx_packets),
            ("sent_errs", stats.tx_errors),
            ("sent_drop", stats.tx_dropped),
        ] {
            writeln!(text, "{NAME}{{interface=\"{name}\",item=\"{item}\"}} {value}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_have_katas_names_and_the_kernels_values() {
        let mut text = String::new();
        write_load(&mut text, "0.50 0.25 0.10 1/80 99\n").unwrap();
        write_memory(&mut text, "MemFree:  1024 kB\nActive(anon):  7 kB\n").unwrap();
        write_cpu(&mut text, "cpu  1 2\ncpu0 3 4\nintr 5\n").unwrap();
        for line in [
            "kata_guest_load{item=\"load5\"} 0.25",
            "kata_guest_meminfo{item=\"memfree\"} 1024",
            "kata_guest_meminfo{item=\"active_anon\"} 7",
            "kata_guest_cpu_time{cpu=\"total\",item=\"nice\"} 2",
            "kata_guest_cpu_time{cpu=\"0\",item=\"user\"} 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn only_numbered_devices_that_are_off_line_are_brought_on_line() {
        let folder = tempfile::tempdir().unwrap();
        for (name, state) in [("cpu1", "0\n"), ("cpu2", "1\n"), ("cpufreq", "0\n")] {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("online"), state).unwrap();
        }
        fs::create_dir(folder.path().join("cpu0")).unwrap();
        assert_eq!(bring_online(folder.path(), "cpu").unwrap(), 1);
        let state = |name: &str| fs::read_to_string(folder.path().join(name).join("online"));
        assert_eq!(state("cpu1").unwrap(), "1");
        assert_eq!(state("cpufreq").unwrap(), "0\n");
    }

    #[test]
    fn a_time_that_is_none_is_refused() {
        for (seconds, micros) in [(-1, 0), (0, -1), (0, 1_000_000)] {
            let request =
                SetGuestDateTimeRequest { Sec: seconds, Usec: micros, ..Default::default() };
            assert!(set_clock(&request).is_err(), "{seconds} {micros}");
        }
    }
}
