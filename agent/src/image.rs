//! How the guest image wants to be booted: command line, machine and CPU.
//!
//! Under emulation (TCG) the time to boot is the host's CPU time, and most of it is code that runs
//! once and must be translated first. So everything the guest can do without is left out: the
//! decision page on the guest image has the seconds for each. Hardware virtualisation needs none
//! of it beyond [`COMMAND_LINE`].

/// Kernel parameters for every guest.
///
/// * `quiet console=ttyS0`: the serial console shows errors and the agent's words.
/// * `random.trust_cpu=1`: RDRAND seeds the random numbers; a guest this small would wait for
///   entropy.
/// * `8250.nr_uarts=1`: one serial port is there to be probed.
/// * `cryptomgr.notests`: the ciphers are not tested at each boot.
/// * `lsm= apparmor=0 audit=0`: there is one process in the guest.
/// * `ipv6.disable=1`: the guest's only words on the wire are those it was asked to say, no
///   router solicitations and multicast reports of its own.
pub const COMMAND_LINE: &str = "quiet console=ttyS0 random.trust_cpu=1 8250.nr_uarts=1 \
    cryptomgr.notests lsm= apparmor=0 audit=0 ipv6.disable=1";

/// Kernel parameters under TCG, in addition to [`COMMAND_LINE`].
///
/// * `tsc=reliable no_timer_check`: the emulated timers would be watched and tested.
/// * `mitigations=off init_on_alloc=0 hardened_usercopy=off randomize_kstack_offset=off`: there
///   is no secret in the guest.
/// * `initcall_blacklist=`: see [`SKIPPED_INITCALLS`].
pub const TCG_COMMAND_LINE: &str = "tsc=reliable no_timer_check mitigations=off \
    init_on_alloc=0 hardened_usercopy=off randomize_kstack_offset=off";

/// Initialisations the kernel skips under TCG (`initcall_blacklist=`, separated by commas). A
/// kernel that lacks one of them passes over its name.
///
/// * Tracing: searching all traceable functions for weak ones, rewriting the formats of all
///   events, the files of tracefs.
/// * Registering functions for BPF, the first of which parses the kernel's type information.
///   TCP CUBIC registers such functions too, so the guest's TCP uses Reno.
/// * The certificates that signatures of modules are checked with: the image's are not signed.
/// * `/sys/kernel/slab`, the PS/2 keyboard, encrypted keys.
pub const SKIPPED_INITCALLS: [&str; 19] = [
    "ftrace_check_for_weak_functions",
    "ftrace_check_sync",
    "trace_eval_init",
    "tracer_init_tracefs",
    "event_trace_init",
    "init_kprobe_trace",
    "init_dynamic_event",
    "init_blk_tracer",
    "bpf_rstat_kfunc_init",
    "bpf_key_sig_kfuncs_init",
    "bpf_tcp_ca_kfunc_init",
    "bpf_prog_test_run_init",
    "bpf_kfunc_init",
    "kfunc_init",
    "cubictcp_register",
    "load_system_certificate_list",
    "slab_sysfs_init",
    "i8042_init",
    "init_encrypted",
];

/// A machine for QEMU and the kernel parameters that go with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tcg {
    /// QEMU's `-machine`: a q35 without system management mode (its firmware costs TLB flushes),
    /// SATA, SMBus and HPET.
    pub machine: &'static str,
    /// The kernel's command line; the caller appends `slipway.ip=` and `slipway.mtu=`.
    pub command_line: String,
}

impl Tcg {
    /// The quickest machine for a guest of `vcpus` virtual CPUs.
    ///
    /// With one CPU there is no ACPI: its interpreter is a seventh of all code that a boot
    /// runs, and the guest does with the 8259 interrupt controllers and without MSI-X. More CPUs
    /// are found by ACPI's tables alone, so it is there for them. A guest without ACPI can reboot
    /// but not switch itself off: after `poweroff` it halts, and the VMM has to quit.
    ///
    /// The emulated CPU's time stamp counter is the host's, so `tsc_khz` is best what
    /// [`host_tsc_khz`] says. Without it the guest measures it against the emulated timer, which
    /// fails now and then on a busy host and leaves the guest with a clock of 4 ms steps.
    pub fn new(vcpus: u8, tsc_khz: Option<u32>) -> Self {
        let (machine, acpi) = match vcpus {
            0 | 1 => ("q35,acpi=off,smm=off,sata=off,smbus=off,hpet=off", " acpi=off"),
            _ => ("q35,smm=off,sata=off,smbus=off,hpet=off", ""),
        };
        let skipped = SKIPPED_INITCALLS.join(",");
        let tsc = tsc_khz.map(|khz| format!(" tsc_early_khz={khz}")).unwrap_or_default();
        let command_line =
            format!("{COMMAND_LINE} {TCG_COMMAND_LINE}{acpi}{tsc} initcall_blacklist={skipped}");
        Self { machine, command_line }
    }
}

/// QEMU's `-cpu` under TCG. SMAP toggles, XSAVE areas and `rep stosb` are quick on hardware and
/// slow in an emulator; without the bits the kernel uses plain loads and stores.
pub const TCG_CPU: &str = "max,-smap,-smep,-umip,-xsave,-pku,-fsgsbase,-erms,-la57";

/// The frequency of the host's time stamp counter in kHz, if its kernel tells.
pub fn host_tsc_khz() -> Option<u32> {
    tsc_khz_of(&std::fs::read_to_string("/proc/cpuinfo").ok()?)
}

/// A kernel that times its delays by a constant time stamp counter shows twice its MHz as
/// BogoMIPS, with two decimals: exact to 5 kHz.
fn tsc_khz_of(cpuinfo: &str) -> Option<u32> {
    let field = |name: &str| {
        let mut fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        fields.find(|(key, _)| key.trim_end() == name).map(|(_, value)| value.trim())
    };
    if !field("flags")?.split(' ').any(|flag| flag == "constant_tsc") {
        return None;
    }
    let (whole, hundredths) = field("bogomips")?.split_once('.')?;
    let (whole, hundredths): (u32, u32) = (whole.parse().ok()?, hundredths.parse().ok()?);
    whole.checked_mul(500)?.checked_add(hundredths * 5)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPUINFO: &str = "processor\t: 0\ncpu MHz\t\t: 3100.000\n\
        flags\t\t: fpu tsc constant_tsc nonstop_tsc\nbogomips\t: 5192.26\n";

    #[test]
    fn the_counter_runs_at_half_the_bogomips() {
        assert_eq!(tsc_khz_of(CPUINFO), Some(2_596_130));
    }

    #[test]
    fn a_counter_that_is_not_constant_is_not_told() {
        assert_eq!(tsc_khz_of(&CPUINFO.replace("constant_tsc", "")), None);
    }

    #[test]
    fn machine_and_kernel_agree_on_acpi() {
        for (vcpus, without) in [(1, true), (2, false)] {
            let tcg = Tcg::new(vcpus, None);
            assert_eq!(tcg.machine.contains("acpi=off"), without, "{vcpus} CPUs");
            assert_eq!(tcg.command_line.contains(" acpi=off"), without, "{vcpus} CPUs");
        }
    }

    #[test]
    fn the_command_line_is_shorter_than_the_kernel_reads() {
        let settings = " slipway.ip=255.255.255.255/32 slipway.mtu=65535";
        let length = Tcg::new(1, Some(u32::MAX)).command_line.len() + settings.len();
        assert!(length < 2048, "{length} bytes"); // COMMAND_LINE_SIZE of x86
    }

    #[test]
    fn the_command_line_names_no_parameter_twice() {
        let line = Tcg::new(1, Some(1)).command_line;
        let mut names: Vec<_> =
            line.split(' ').map(|word| word.split('=').next().unwrap()).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count, "{line}");
    }
}
