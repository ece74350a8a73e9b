//! QEMU's arguments, a pure function of the specification and a few facts of the host.
//!
//! Written for QEMU 7.2 and newer. Nothing is inherited from configuration files or defaults, the
//! process is confined by QEMU's own seccomp filter, and a machine has the devices named here only.

use std::path::Path;

use super::{QemuVersion, devices};
use crate::accel::Accel;
use crate::devices::AgentChannel;
use crate::error::VmmError;
use crate::spec::{
    CheckedSpec, MAX_CMDLINE_BYTES, Machine, NicSpec, SocketMode, SpecError, VmSpec,
};

/// virtio-mmio transports of the microvm machine with one I/O APIC.
const MICROVM_SLOTS: usize = 8;
/// Slot 0 of q35's root bus is the host bridge, the last of 32 is the ICH9.
pub(super) const Q35_SLOTS: usize = 30;
/// DIMM slots for hot-add. With the boot memory, split around the PCI hole, and low memory they
/// stay within the 8 regions of a SET_MEM_TABLE (vhost-user, "Memory region description").
pub(super) const DIMM_SLOTS: usize = 4;

/// What the arguments depend on besides the specification.
#[derive(Clone, Copy, Debug)]
pub(super) struct Host<'a> {
    pub version: QemuVersion,
    /// See [`crate::host::tsc_khz`].
    pub tsc_khz: Option<u32>,
    /// We listen here, QEMU connects: so there is nothing to wait for by trial, and nobody else
    /// can reach the monitor.
    pub qmp_socket: &'a Path,
}

/// The arguments after the program's name.
///
/// # Errors
/// The machine lacks something, or the whole kernel command line is too long.
pub(super) fn arguments(spec: CheckedSpec<'_>, host: Host<'_>) -> Result<Vec<String>, VmmError> {
    check_machine(spec)?;
    let mut args = Arguments(Vec::new());
    args.flag("-no-user-config");
    args.flag("-nodefaults");
    args.pair("-name", format!("{},debug-threads=on", spec.name));
    args.pair(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".to_owned(),
    );
    args.pair("-display", "none".to_owned());
    machine(&mut args, spec);
    console(&mut args);
    // Those with slots of their own come first; the others take what is left, from below.
    devices::disks(&mut args, spec)?;
    devices::disk_ports(&mut args, spec);
    for (index, nic) in spec.nics.iter().enumerate() {
        network(&mut args, spec, index, nic, host.version);
    }
    devices::shares(&mut args, spec);
    devices::channels(&mut args, spec);
    kernel(&mut args, spec, host.tsc_khz)?;
    // Character devices are opened in this order. The monitor comes last: when it connects, the
    // sockets above are bound.
    args.pair("-chardev", format!("socket,id=qmp,path={}", escaped(host.qmp_socket)));
    args.pair("-mon", "chardev=qmp,mode=control".to_owned());
    Ok(args.0)
}

pub(super) struct Arguments(Vec<String>);

impl Arguments {
    fn flag(&mut self, flag: &str) {
        self.0.push(flag.to_owned());
    }

    pub(super) fn pair(&mut self, flag: &str, value: String) {
        self.0.extend([flag.to_owned(), value]);
    }
}

/// A path inside a comma-separated option: commas are doubled. The specification's check made sure
/// that it is UTF-8.
pub(super) fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// Devices on the machine's bus.
fn device_count(spec: CheckedSpec<'_>) -> usize {
    let agent = spec.agent.as_ref().filter(|agent| !matches!(agent, AgentChannel::Serial { .. }));
    spec.nics.len()
        + spec.disks.len()
        + usize::from(spec.disk_slots)
        + spec.shares.len()
        + usize::from(devices::has_serial_bus(spec))
        + usize::from(agent.is_some())
}

fn check_machine(spec: CheckedSpec<'_>) -> Result<(), VmmError> {
    let refuse = |what: String, remedy: &str| {
        let (name, backend) = (spec.name.clone(), format!("QEMU's {} machine", spec.machine));
        Err(VmmError::Unsupported { name, what, backend, remedy: remedy.to_owned() })
    };
    if let Some(AgentChannel::Hybrid { .. }) = spec.agent {
        let remedy = "serve it by vhost-device-vsock (VhostUserVsock), or use Serial";
        return refuse("a vsock of the VMM's own".to_owned(), remedy);
    }
    let devices = device_count(spec);
    if spec.machine == Machine::Q35 {
        if devices > Q35_SLOTS {
            return refuse(format!("{devices} PCI devices"), "have at most 30");
        }
        return Ok(());
    }
    if devices > MICROVM_SLOTS {
        return refuse(format!("{devices} virtio devices"), "use at most 8, or the q35 machine");
    }
    if spec.memory_max.is_some() {
        return refuse("memory hot-add".to_owned(), "leave `memory_max` out, or use q35");
    }
    if spec.vcpus_max.is_some_and(|max| max > spec.vcpus) {
        return refuse("CPU hot-add".to_owned(), "leave `vcpus_max` out, or use q35");
    }
    if spec.disk_slots > 0 {
        return refuse("disk hot-add".to_owned(), "leave `disk_slots` at 0, or use q35");
    }
    Ok(())
}

/// Whether the guest finds ACPI, and with it a power button, a way to switch itself off, further
/// CPUs, plugged memory and plugged disks (Linux drives a port's own hot-plug too, but through the
/// 8259 controllers it hears of no plugged disk).
///
/// It does, but where all it would bring is a slow boot: its interpreter is a seventh of all the
/// code that a boot runs, which TCG must translate first. A q35 guest with one CPU does with the
/// 8259 interrupt controllers instead, and can reboot. It halts when it powers off, and the VMM has
/// to quit.
pub(super) fn has_acpi(spec: &VmSpec) -> bool {
    spec.accel == Accel::Kvm
        || spec.machine == Machine::Microvm
        || spec.vcpus > 1
        || spec.vcpus_max.is_some_and(|max| max > 1)
        || spec.disk_slots > 0
        || spec.memory_max.is_some()
}

/// QEMU's `-cpu` under TCG. SMAP's toggles, XSAVE's areas and `rep stosb` are quick in hardware and
/// slow in an emulator; without their bits the kernel uses plain loads and stores.
const TCG_CPU: &str = "max,-smap,-smep,-umip,-xsave,-pku,-fsgsbase,-erms,-la57";
/// A q35 under TCG does without system management mode, whose firmware costs flushes of the TLB,
/// and without devices that the guest would look for.
const TCG_Q35: &str = "q35,smm=off,sata=off,smbus=off,hpet=off";

fn machine(args: &mut Arguments, spec: CheckedSpec<'_>) {
    let model = match (spec.machine, spec.accel) {
        (Machine::Q35, Accel::Kvm) => "q35",
        (Machine::Q35, Accel::Tcg) => TCG_Q35,
        // ACPI tells the guest of its virtio-mmio devices and gives it a way to power off. The other
        // way, kernel parameters, is not built into distribution kernels. Under TCG there is no
        // paravirtual clock, so Linux needs PIT, PICs and RTC to find its timer, and hangs in
        // calibration without them.
        (Machine::Microvm, Accel::Tcg) => "microvm,acpi=on,pit=on,pic=on,rtc=on",
        (Machine::Microvm, Accel::Kvm) => "microvm,acpi=on",
    };
    let acpi = if has_acpi(&spec) { "" } else { ",acpi=off" };
    args.pair("-machine", format!("{model}{acpi},memory-backend=ram"));
    let (accel, cpu) = match spec.accel {
        Accel::Kvm => ("kvm", "host"),
        Accel::Tcg => ("tcg,thread=multi", TCG_CPU),
    };
    args.pair("-accel", accel.to_owned());
    args.pair("-cpu", cpu.to_owned());
    args.pair(
        "-smp",
        match vcpus_max(&spec).filter(|max| *max > spec.vcpus) {
            Some(max) => format!("cpus={},maxcpus={max}", spec.vcpus),
            None => spec.vcpus.to_string(),
        },
    );
    let size = spec.memory.get();
    args.pair("-object", format!("memory-backend-memfd,id=ram,size={size}M,share=on"));
    let ceiling = spec.memory_max.filter(|max| *max > spec.memory);
    args.pair(
        "-m",
        match ceiling {
            Some(max) => format!("size={size}M,slots={DIMM_SLOTS},maxmem={}M", max.get()),
            None => format!("size={size}M"),
        },
    );
    if spec.machine == Machine::Microvm {
        // The virtio-mmio default of QEMU is the legacy interface, without VERSION_1.
        args.pair("-global", "virtio-mmio.force-legacy=false".to_owned());
    }
}

/// For how many virtual CPUs there is room, if that was asked for, or if it must be more than one: for a machine of one
/// the translator of QEMU before 8.1 leaves memory barriers out. A driver then looks whether the device wants to be
/// told before the device can see what there is to tell, and who serves the ring from outside of QEMU, as a switch
/// does, sleeps on (virtio 1.3 section 2.7.13.4.1).
fn vcpus_max(spec: &CheckedSpec<'_>) -> Option<u16> {
    let least = if spec.accel == Accel::Tcg { Some(2) } else { None };
    spec.vcpus_max.max(least)
}

fn console(args: &mut Arguments) {
    // Standard output is a pipe to us, see `crate::console`. Its input is /dev/null.
    args.pair("-chardev", "stdio,id=console,signal=off".to_owned());
    args.pair("-serial", "chardev:console".to_owned());
}

/// The device name on this machine's bus, and its interrupt vectors.
///
/// Under TCG QEMU 7.2 dies of SIGSEGV as soon as the guest enables a vhost-user device with MSI-X, so
/// there PCI devices have no vectors and use INTx; without ACPI there is no local APIC to send an MSI
/// to anyway. Under KVM each queue wants a vector of its own: MSI-X. microvm's devices have one
/// interrupt line each, and no choice.
pub(super) fn on_bus(device: &str, spec: CheckedSpec<'_>, vectors: u32) -> String {
    // Its generic PCI type was born modern, and has no such property.
    let modern = if device == "vhost-user-fs" { "" } else { ",disable-legacy=on" };
    match (spec.machine, spec.accel) {
        (Machine::Microvm, _) => format!("{device}-device"),
        (Machine::Q35, Accel::Tcg) => format!("{device}-pci{modern},vectors=0"),
        (Machine::Q35, Accel::Kvm) => format!("{device}-pci{modern},vectors={vectors}"),
    }
}

fn network(
    args: &mut Arguments,
    spec: CheckedSpec<'_>,
    index: usize,
    nic: &NicSpec,
    version: QemuVersion,
) {
    let (path, pairs, ring) = (escaped(&nic.socket), nic.queue_pairs, nic.ring_size);
    let mode = match nic.mode {
        SocketMode::VmmListens => "server=on,wait=off",
        SocketMode::SwitchListens if version >= QemuVersion::RECONNECT_MS => "reconnect-ms=1000",
        SocketMode::SwitchListens => "reconnect=1",
    };
    args.pair("-chardev", format!("socket,id=nic{index},path={path},{mode}"));
    args.pair("-netdev", format!("vhost-user,id=net{index},chardev=nic{index},queues={pairs}"));
    // Receive and transmit queue of each pair, the control queue, configuration changes.
    let device = on_bus("virtio-net", spec, u32::from(pairs) * 2 + 2);
    let multi_queue = if pairs > 1 { ",mq=on" } else { "" };
    let segments = match nic.receives_segments {
        true => "",
        false => ",guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off",
    };
    // No boot ROM: nobody boots from this network, and the ROM is in a package of its own.
    let rom = if spec.machine == Machine::Q35 { ",romfile=" } else { "" };
    args.pair(
        "-device",
        format!(
            "{device},netdev=net{index},mac={},rx_queue_size={ring},tx_queue_size={ring}\
             {multi_queue}{segments}{rom}",
            nic.mac
        ),
    );
}

fn kernel(
    args: &mut Arguments,
    spec: CheckedSpec<'_>,
    tsc_khz: Option<u32>,
) -> Result<(), VmmError> {
    let Some(kernel) = &spec.kernel else { return Ok(()) };
    args.pair("-kernel", kernel.display().to_string());
    if let Some(initrd) = &spec.initrd {
        args.pair("-initrd", initrd.display().to_string());
    }
    let mut parameters = machine_parameters(spec, tsc_khz);
    if !spec.cmdline.is_empty() {
        parameters.push(spec.cmdline.clone());
    }
    let cmdline = parameters.join(" ");
    if cmdline.len() > MAX_CMDLINE_BYTES {
        let allowed = "at most 2047 bytes together with the parameters of the machine";
        let (vm, value) = (spec.name.clone(), format!("{} bytes", cmdline.len()));
        return Err(SpecError { vm, field: "cmdline", value, allowed }.into());
    }
    args.pair("-append", cmdline);
    Ok(())
}

/// Kernel parameters that follow from the machine, not from the guest.
fn machine_parameters(spec: CheckedSpec<'_>, tsc_khz: Option<u32>) -> Vec<String> {
    // One serial port is there to be probed.
    let mut parameters = vec!["console=ttyS0".to_owned(), "8250.nr_uarts=1".to_owned()];
    if spec.accel == Accel::Tcg {
        // TCG's guests read the host's time-stamp counter. Calibrating it against an emulated timer
        // takes long and now and then fails on a busy host, which ends in a hang, in the panic of
        // the timer check, or in a clock of 4 ms steps. Told the frequency, Linux trusts it, and
        // derives `lpj` from it.
        parameters.extend(tsc_khz.map(|khz| format!("tsc_early_khz={khz}")));
        parameters.extend(["tsc=reliable".to_owned(), "no_timer_check".to_owned()]);
    }
    if !has_acpi(&spec) {
        parameters.push("acpi=off".to_owned());
    }
    parameters
}

#[cfg(test)]
#[path = "launch_tests.rs"]
mod tests;
