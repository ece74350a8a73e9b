//! Guests whose rings the kernel serves itself: vhost-net, below it a tap.
//!
//! ```text
//!  guest's rings ==== memory ==== vhost worker (a kernel thread for each guest) --- tap --- bridge
//!        `--- kick: eventfd, when the worker sleeps
//! ```
//! The ioctls are those of the kernel's `linux/vhost.h`, in the order in which QEMU makes them. The workers sleep when
//! they have nothing to do, as vhost-net's do: waking them is a system call of the guest. All of them are pinned to one
//! core, so that this arm has as many as every other one.
//!
//! # Headers
//! The tap has IFF_VNET_HDR and a header of 12 bytes (TUNSETVNETHDRSZ), which is what a guest with VERSION_1 and
//! MRG_RXBUF has in its buffers. So VHOST_NET_F_VIRTIO_NET_HDR stays off: with it, vhost-net would make headers
//! of its own for a tap that has none.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use dataplane::clock;
use dataplane::gateway::interface::Tap;
use dataplane::testing::{
    AnyVring, DriverRing as _, GuestConfig, GuestMemory, LocalGuest, features,
};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::{Pid, gettid};
use vhost::net::VhostNet as _;
use vhost::vhost_kern::net::Net;
use vhost::{VhostBackend as _, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap};

use crate::compare::flows::cpu::Cpu;
use crate::peer::Work;
use crate::rig::Pinned;

/// What the driver of our guests uses; the others of [`features::PLAIN`] are not the kernel's to offer.
const FEATURES: u64 =
    features::VERSION_1 | features::MRG_RXBUF | features::INDIRECT_DESC | features::EVENT_IDX;

/// The kernel's ends of all guests. They end when this is dropped.
pub struct VhostNet {
    core: usize,
    names: Vec<String>,
    /// With the taps that they hold.
    _devices: Vec<(Net<Arc<GuestMemoryMmap>>, Tap)>,
}

impl std::fmt::Debug for VhostNet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VhostNet").field("taps", &self.names).finish_non_exhaustive()
    }
}

impl VhostNet {
    /// Makes a guest for each tap, and has the kernel serve them on `core`.
    ///
    /// # Errors
    /// The kernel has no vhost-net, or refuses a step.
    pub fn start(core: usize, taps: Vec<Tap>) -> Result<(Self, Vec<LocalGuest>)> {
        let names = taps.iter().map(|tap| tap.name().to_owned()).collect();
        let (mut guests, mut devices) = (Vec::new(), Vec::new());
        for tap in taps {
            let config = GuestConfig::default().features(FEATURES);
            let mut guest = LocalGuest::new(config)?;
            let net = attach(core, &mut guest, &tap)
                .with_context(|| format!("vhost-net does not serve {}", tap.name()))?;
            devices.push((net, tap));
            guests.push(guest);
        }
        pin_threads(core)?;
        Ok((Self { core, names, _devices: devices }, guests))
    }

    /// What the core did so far; others of the machine that ran there are in it. Frames are those of the
    /// guests.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn work(&self) -> Result<Work> {
        let cpu = Cpu::of_core(self.core)?;
        let ticks = |s: f64| (s * 1e6) as u64 * clock::ticks_per_us();
        let path = "/proc/thread-self/net/dev";
        let text = fs::read_to_string(path).with_context(|| format!("Failed to read {path}"))?;
        let frames = self.names.iter().filter_map(|name| frames_of(&text, name)).sum();
        Ok(Work { busy_ticks: ticks(cpu.busy_s()), idle_ticks: ticks(cpu.idle_s), frames })
    }
}

/// Hands a guest's rings to the kernel, and `tap` below them.
fn attach(core: usize, guest: &mut LocalGuest, tap: &Tap) -> Result<Net<Arc<GuestMemoryMmap>>> {
    let memory = map(guest.memory())?;
    let net = Net::new(Arc::clone(&memory)).context("Failed to open vhost-net")?;
    {
        // Since Linux 6.4 the worker is a thread of ours and begins where we are.
        let _pinned = Pinned::to(core)?;
        net.set_owner().context("VHOST_SET_OWNER failed")?;
    }
    let offered = net.get_features().context("VHOST_GET_FEATURES failed")?;
    let missing = FEATURES & !offered;
    ensure!(missing == 0, "vhost-net offers {offered:#x}, which lacks {missing:#x}");
    net.set_features(FEATURES).context("VHOST_SET_FEATURES failed")?;
    net.set_mem_table(&table(&memory)?).context("VHOST_SET_MEM_TABLE failed")?;
    let backend = File::from(tap.as_fd().try_clone_to_owned()?);
    let pair = guest.pair(0);
    for (index, ring) in [pair.rx.any_ring(), pair.tx.any_ring()].into_iter().enumerate() {
        start(&net, index, ring).with_context(|| format!("Failed to set vring {index} up"))?;
    }
    for index in 0..2 {
        net.set_backend(index, Some(&backend))
            .with_context(|| format!("VHOST_NET_SET_BACKEND of vring {index} failed"))?;
    }
    // Whatever was published before.
    pair.rx.any_ring().kick();
    pair.tx.any_ring().kick();
    Ok(net)
}

fn start(net: &Net<Arc<GuestMemoryMmap>>, index: usize, ring: &mut AnyVring) -> Result<()> {
    net.set_vring_num(index, ring.size()).context("VHOST_SET_VRING_NUM failed")?;
    let base = ring.base();
    net.set_vring_base(index, base).context("VHOST_SET_VRING_BASE failed")?;
    net.set_vring_addr(index, &addresses(ring)).context("VHOST_SET_VRING_ADDR failed")?;
    net.set_vring_kick(index, ring.kick_fd()).context("VHOST_SET_VRING_KICK failed")?;
    net.set_vring_call(index, ring.call_fd()).context("VHOST_SET_VRING_CALL failed")
}

/// Where a ring lies, by the guest's addresses: the crate turns them into ours.
fn addresses(ring: &AnyVring) -> VringConfigData {
    let [desc, avail, used] = ring.areas().map(|area| area.gpa());
    VringConfigData {
        queue_max_size: ring.size(),
        queue_size: ring.size(),
        flags: 0,
        desc_table_addr: desc,
        used_ring_addr: used,
        avail_ring_addr: avail,
        log_addr: None,
    }
}

/// Maps the guest's memory a second time, as a VMM has it.
fn map(memory: &GuestMemory) -> Result<Arc<GuestMemoryMmap>> {
    let mut ranges = Vec::new();
    for region in memory.regions() {
        let file = region.file().try_clone().context("Failed to duplicate a descriptor")?;
        let file = FileOffset::new(file, region.file_offset());
        ranges.push((GuestAddress(region.gpa()), region.len(), Some(file)));
    }
    Ok(Arc::new(GuestMemoryMmap::from_ranges_with_files(ranges)?))
}

/// What the kernel is told of it.
fn table(memory: &GuestMemoryMmap) -> Result<Vec<VhostUserMemoryRegionInfo>> {
    let info = VhostUserMemoryRegionInfo::from_guest_region;
    Ok(memory.iter().map(info).collect::<Result<_, _>>()?)
}

/// Until Linux 6.3 workers are threads of the kernel's own, named after the thread that was their first owner.
fn pin_threads(core: usize) -> Result<()> {
    let (name, mut only) = (format!("vhost-{}\n", gettid()), CpuSet::new());
    only.set(core)?;
    for entry in fs::read_dir("/proc").context("Failed to list /proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // Who ends meanwhile has no name.
        if fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm == name) {
            sched_setaffinity(Pid::from_raw(pid), &only)
                .with_context(|| format!("Failed to pin thread {pid} to core {core}"))?;
        }
    }
    Ok(())
}

/// Frames that the kernel received from the device `name`, by its /proc/net/dev (proc(5)).
fn frames_of(text: &str, name: &str) -> Option<u64> {
    let of_name =
        |line: &str| Some(line.trim_start().strip_prefix(name)?.strip_prefix(':')?.to_owned());
    text.lines().find_map(of_name)?.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes as _, GuestMemoryRegion as _};

    use super::*;
    use crate::compare::arms::ArmKind;

    #[test]
    fn the_memory_table_is_the_guests_memory_and_the_rings_lie_in_it() {
        let mut guest = LocalGuest::new(GuestConfig::default()).unwrap();
        let memory = map(guest.memory()).unwrap();
        let table = table(&memory).unwrap();
        assert_eq!(table.len(), guest.memory().regions().len());
        for (info, region) in table.iter().zip(guest.memory().regions()) {
            assert_eq!(info.guest_phys_addr, region.gpa());
            assert_eq!(info.memory_size, region.len() as u64);
            assert_ne!(info.userspace_addr, region.user_addr(), "a mapping of its own");
        }
        assert_eq!(memory.iter().map(|region| region.len()).sum::<u64>(), table[0].memory_size);
        // The driver posted its receive buffers: what the kernel would read of the ring says so.
        let ring = guest.pair(0).rx.any_ring();
        let (addresses, size) = (addresses(ring), ring.size());
        let index: u16 = memory.read_obj(GuestAddress(addresses.avail_ring_addr + 2)).unwrap();
        assert_eq!((addresses.queue_size, index), (size, size));
        assert!(addresses.desc_table_addr.is_multiple_of(16));
        assert!(addresses.used_ring_addr.is_multiple_of(4));
    }

    #[test]
    fn vhost_net_is_absent_with_the_reason_where_the_kernel_has_none() {
        let lack = ArmKind::VhostNet.lack().unwrap();
        let here = std::path::Path::new("/dev/vhost-net").exists();
        let missing = "not on this kernel: no /dev/vhost-net";
        assert_eq!(lack.as_deref().is_some_and(|lack| lack == missing), !here, "{lack:?}");
        let absence = ArmKind::VhostNet.absence().unwrap();
        assert_eq!(absence.as_deref(), Some("for microVM endpoints only"));
    }

    #[test]
    fn frames_of_a_tap_are_those_that_its_guest_sent() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets errs\n\
                    cmp1: 10 7 0 0 0 0 0 0 20 9 0\n  cmp10: 5 3 0 0 0 0 0 0 0 0 0\n";
        assert_eq!((frames_of(text, "cmp1"), frames_of(text, "cmp10")), (Some(7), Some(3)));
        assert_eq!(frames_of(text, "cmp"), None);
    }
}
