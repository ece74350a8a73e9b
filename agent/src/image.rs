//! How the guest image wants its kernel to be booted: its part of the command line.
//!
//! Under emulation (TCG) the time to boot is the host's CPU time, and most of it is code that runs
//! once and must be translated first. So everything the guest can do without is left out: the
//! decision page on the guest image has the seconds for each. What follows from the machine, not
//! from the image (console, clocks, ACPI), is the VMM's to add.

/// The virtio-serial port on which the agent serves the Kata agent protocol.
pub const AGENT_PORT: &str = "org.slipway.agent";

/// Kernel parameters for every guest.
///
/// * `quiet`: the serial console shows errors and the agent's words.
/// * `random.trust_cpu=1`: RDRAND seeds the random numbers; a guest this small would wait for
///   entropy.
/// * `cryptomgr.notests`: the ciphers are not tested at each boot.
/// * `lsm= apparmor=0 audit=0`: the machine is the boundary around all that runs in it.
pub const COMMAND_LINE: &str = "quiet random.trust_cpu=1 cryptomgr.notests lsm= apparmor=0 audit=0";

/// Kernel parameters under emulation, in addition to [`COMMAND_LINE`]: there is no secret in the
/// guest.
pub const EMULATED_COMMAND_LINE: &str =
    "mitigations=off init_on_alloc=0 hardened_usercopy=off randomize_kstack_offset=off";

/// Initialisations the kernel skips under emulation (`initcall_blacklist=`, separated by commas). A
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

/// All of the above; the caller appends `slipway.ip=` and `slipway.mtu=`.
pub fn command_line(is_emulated: bool) -> String {
    if !is_emulated {
        return COMMAND_LINE.to_owned();
    }
    let skipped = SKIPPED_INITCALLS.join(",");
    format!("{COMMAND_LINE} {EMULATED_COMMAND_LINE} initcall_blacklist={skipped}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_leaves_room_for_settings_and_the_machine() {
        let settings = " slipway.ip=255.255.255.255/32 slipway.mtu=65535";
        let length = command_line(true).len() + settings.len();
        // COMMAND_LINE_SIZE of x86 is 2048.
        assert!(length < 1536, "{length} bytes");
    }

    #[test]
    fn the_command_line_names_no_parameter_twice() {
        let line = command_line(true);
        let mut names: Vec<_> =
            line.split(' ').map(|word| word.split('=').next().unwrap()).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count, "{line}");
    }

    #[test]
    fn hardware_needs_nothing_skipped() {
        assert!(!command_line(false).contains("initcall_blacklist"));
    }
}
