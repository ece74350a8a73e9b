//! What a back end needs to boot a VM, as plain data, and the one place that judges it.
//!
//! [`VmSpec::check`] yields a [`CheckedSpec`]; only that is turned into arguments and requests, so
//! the code that does so has no error paths for names, sizes and paths.
//!
//! # Bounds
//! Names up to 63 bytes, socket paths up to 107 (`sun_path` of unix(7)), the kernel command line
//! up to 2047 (`COMMAND_LINE_SIZE` of x86 Linux), 28 NICs of 1 to 64 queue pairs each. What a machine
//! has room for is its back end's to judge.

use std::fmt;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use crate::accel::Accel;
use crate::devices::{AgentChannel, DiskSpec, ShareSpec};
use crate::memory::Mib;

/// Name of the virtio-serial port that carries the control channel (virtio 1.3 §5.3); the guest
/// finds it as `/dev/virtio-ports/org.slipway.ctl`, or by that name in sysfs.
pub const CONTROL_PORT: &str = "org.slipway.ctl";

/// Linux adds memory to x86-64 guests in blocks of this size, so DIMMs are multiples of it.
pub const HOTPLUG_UNIT: Mib = Mib::new(128);

const MAX_NAME_BYTES: usize = 63;
const MAX_SOCKET_PATH_BYTES: usize = 107;
/// Linux's buffer is 2048 bytes with the closing NUL; the back ends check the final string.
pub(crate) const MAX_CMDLINE_BYTES: usize = 2047;
const MAX_VCPUS: u16 = 254;
const MIN_MEMORY: Mib = Mib::new(16);
const MAX_NICS: usize = 28;
const MAX_QUEUE_PAIRS: u16 = 64;
const RING_SIZES: std::ops::RangeInclusive<u16> = 256..=1024;

/// One VM: everything that a [`Vmm`](crate::Vmm) needs to boot it.
#[derive(Clone, Debug)]
pub struct VmSpec {
    /// Unique among the VMs of `run_dir`: letters, digits, `.`, `_`, `-`; at most 63 bytes.
    pub name: String,
    /// Virtual CPUs at boot, 1 to 254.
    pub vcpus: u16,
    /// Up to where [`Vm::set_vcpus`](crate::Vm::set_vcpus) may raise their number; `None`: it may not.
    pub vcpus_max: Option<u16>,
    /// Memory at boot, at least 16 MiB. Always shared with the switch (a memfd), never preallocated.
    pub memory: Mib,
    /// Up to where [`Vm::add_memory`](crate::Vm::add_memory) may grow it; `None`: it may not.
    pub memory_max: Option<Mib>,
    /// `bzImage`, or `vmlinux` with the PVH note. `None`: the firmware runs and finds nothing.
    pub kernel: Option<PathBuf>,
    /// The kernel's initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The guest's own kernel parameters. What belongs to the machine (console, clocks) is put in
    /// front of them by the back end, so that these win.
    pub cmdline: String,
    /// The machine model.
    pub machine: Machine,
    /// Who runs the guest's instructions.
    pub accel: Accel,
    /// vhost-user NICs, in the order in which the guest finds them.
    pub nics: Vec<NicSpec>,
    /// Directories of the host.
    pub shares: Vec<ShareSpec>,
    /// Disks at boot, in the order in which the guest finds them.
    pub disks: Vec<DiskSpec>,
    /// How many more disks [`Vm::add_disk`](crate::Vm::add_disk) may plug at a time. Each costs the
    /// guest a PCI bridge to look at during its boot.
    pub disk_slots: u16,
    /// How the host reaches the agent in the guest.
    pub agent: Option<AgentChannel>,
    /// UNIX socket, bound by the VMM, behind the virtio-serial port [`CONTROL_PORT`].
    pub control_socket: Option<PathBuf>,
    /// Where the serial console is written (the newest 8 MiB). Removed with the VM if it lies in
    /// `run_dir`, kept otherwise. `None`: it is only kept in memory, see
    /// [`Console`](crate::Console).
    pub console_file: Option<PathBuf>,
    /// For sockets of the VM's own. Created with mode 0700 if absent, and then removed with the VM.
    pub run_dir: PathBuf,
    /// A program and its arguments to run the VMM under. It must `exec` the VMM in its own process
    /// (`strace -D`, `nice`, `numactl` do), as exit and death are watched by pid.
    pub wrapper: Vec<String>,
    /// See [`Launch::cgroup_procs`](crate::process::Launch::cgroup_procs).
    pub cgroup_procs: Vec<PathBuf>,
    /// How long [`Vmm::boot`](crate::Vmm::boot) may take, the switch's connections included.
    pub boot_timeout: Duration,
}

impl VmSpec {
    /// One vCPU, 128 MiB, q35 under TCG, no NIC, no kernel, no console file, 30 s to boot.
    pub fn new(name: impl Into<String>, run_dir: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            vcpus: 1,
            vcpus_max: None,
            memory: Mib::new(128),
            memory_max: None,
            kernel: None,
            initrd: None,
            cmdline: String::new(),
            machine: Machine::Q35,
            accel: Accel::Tcg,
            nics: Vec::new(),
            shares: Vec::new(),
            disks: Vec::new(),
            disk_slots: 0,
            agent: None,
            control_socket: None,
            console_file: None,
            run_dir: run_dir.into(),
            wrapper: Vec::new(),
            cgroup_procs: Vec::new(),
            boot_timeout: Duration::from_secs(30),
        }
    }

    /// Judges every field.
    ///
    /// # Errors
    /// The first field that no back end could honour, with its value and what is allowed.
    pub fn check(&self) -> Result<CheckedSpec<'_>, SpecError> {
        let refuse = |field, value: &dyn fmt::Display, allowed| {
            Err(SpecError { vm: self.name.clone(), field, value: value.to_string(), allowed })
        };
        if !is_name(&self.name) {
            return refuse("name", &self.name, "1 to 63 of letters, digits, '.', '_', '-'");
        }
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return refuse("vcpus", &self.vcpus, "1 to 254");
        }
        if let Some(max) = self.vcpus_max
            && !(self.vcpus..=MAX_VCPUS).contains(&max)
        {
            return refuse("vcpus_max", &max, "at least `vcpus`, and at most 254");
        }
        if self.memory < MIN_MEMORY {
            return refuse("memory", &self.memory, "at least 16 MiB");
        }
        if let Some(max) = self.memory_max
            && (max < self.memory || !max.is_multiple_of(HOTPLUG_UNIT))
        {
            return refuse("memory_max", &max, "a multiple of 128 MiB, not below `memory`");
        }
        if self.initrd.is_some() && self.kernel.is_none() {
            return refuse("initrd", &"set without a kernel", "only together with `kernel`");
        }
        if self.cmdline.len() > MAX_CMDLINE_BYTES || self.cmdline.contains(['\0', '\n']) {
            return refuse("cmdline", &self.cmdline, "at most 2047 bytes, no NUL, no newline");
        }
        if self.nics.len() > MAX_NICS {
            return refuse("nics", &self.nics.len(), "at most 28");
        }
        for nic in &self.nics {
            if !nic.mac.is_unicast() {
                return refuse("nics.mac", &nic.mac, "a unicast address other than zero");
            }
            if !(1..=MAX_QUEUE_PAIRS).contains(&nic.queue_pairs) {
                return refuse("nics.queue_pairs", &nic.queue_pairs, "1 to 64");
            }
            if !RING_SIZES.contains(&nic.ring_size) || !nic.ring_size.is_power_of_two() {
                return refuse("nics.ring_size", &nic.ring_size, "256, 512 or 1024");
            }
        }
        self.check_devices()?;
        let mut sockets: Vec<&Path> = self.nics.iter().map(|nic| nic.socket.as_path()).collect();
        sockets.extend(self.shares.iter().map(|share| share.socket.as_path()));
        sockets.extend(self.control_socket.as_deref());
        sockets.extend(self.agent.as_ref().and_then(AgentChannel::socket));
        for (i, socket) in sockets.iter().enumerate() {
            if socket.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
                return refuse("socket", &socket.display(), "a path of at most 107 bytes");
            }
            if sockets[..i].contains(socket) {
                return refuse("socket", &socket.display(), "one path per socket");
            }
        }
        let paths = [&self.kernel, &self.initrd, &self.console_file].into_iter().flatten();
        let paths = paths.chain(&self.cgroup_procs).map(PathBuf::as_path);
        for path in paths.chain(sockets).chain([self.run_dir.as_path()]) {
            let is_text = path.to_str().is_some_and(|text| !text.contains(['\0', '\n']));
            if !is_text || !path.is_absolute() {
                return refuse("path", &path.display(), "an absolute path in UTF-8");
            }
        }
        if self.wrapper.first().is_some_and(String::is_empty)
            || self.wrapper.iter().any(|word| word.contains('\0'))
        {
            return refuse("wrapper", &self.wrapper.join(" "), "a program and its arguments");
        }
        Ok(CheckedSpec(self))
    }
}

/// A [`VmSpec`] whose fields were judged by [`VmSpec::check`].
#[derive(Clone, Copy, Debug)]
pub struct CheckedSpec<'a>(&'a VmSpec);

impl Deref for CheckedSpec<'_> {
    type Target = VmSpec;

    fn deref(&self) -> &VmSpec {
        self.0
    }
}

impl CheckedSpec<'_> {
    /// The sockets that the VMM binds, and that are therefore ours to remove.
    pub fn bound_sockets(&self) -> impl Iterator<Item = &Path> {
        let listens = |nic: &&NicSpec| nic.mode == SocketMode::VmmListens;
        let nics = self.0.nics.iter().filter(listens).map(|nic| nic.socket.as_path());
        let agent = match &self.0.agent {
            Some(AgentChannel::Serial { socket } | AgentChannel::Hybrid { socket, .. }) => {
                Some(socket.as_path())
            }
            _ => None,
        };
        nics.chain(self.0.control_socket.as_deref()).chain(agent)
    }
}

/// Of a VM, a share, a disk: fit for a file name, an option of QEMU and a person.
pub(crate) fn is_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    !name.is_empty()
        && name.len() <= MAX_NAME_BYTES
        && !name.starts_with(['.', '-'])
        && name.bytes().all(allowed)
}

/// A field of a [`VmSpec`] that cannot be honoured. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("VM '{vm}': {field} is '{value}', but must be {allowed}")]
pub struct SpecError {
    /// The VM's name, as given.
    pub vm: String,
    /// The field.
    pub field: &'static str,
    /// Its value.
    pub value: String,
    /// What would be accepted.
    pub allowed: &'static str,
}

/// A vhost-user NIC: one UNIX socket between VMM and switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicSpec {
    /// The socket's path.
    pub socket: PathBuf,
    /// The guest's MAC address.
    pub mac: MacAddr,
    /// N pairs of receive and transmit queues (virtio 1.3 §5.1.2), 1 to 64.
    pub queue_pairs: u16,
    /// Descriptors per virtqueue: 256, 512 or 1024.
    pub ring_size: u16,
    /// Who binds the socket.
    pub mode: SocketMode,
    /// Whether the guest is offered to receive TCP segments larger than its MTU (GUEST_TSO4 and the
    /// like, virtio 1.3 §5.1.3). Without, the switch has to cut what others send in one piece.
    pub receives_segments: bool,
}

impl NicSpec {
    /// One queue pair of 256 descriptors, the VMM listens, the guest may receive large segments.
    pub fn new(socket: impl Into<PathBuf>, mac: MacAddr) -> Self {
        Self {
            socket: socket.into(),
            mac,
            queue_pairs: 1,
            ring_size: 256,
            mode: SocketMode::VmmListens,
            receives_segments: true,
        }
    }
}

/// Who binds a NIC's socket. Either way a VM boots only once each NIC has been connected for a first
/// time: the VMM asks the switch for its features before it builds the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SocketMode {
    /// The VMM binds and goes on listening: the switch may restart and connects anew.
    VmmListens,
    /// The switch binds; the VMM tries again every second after a lost connection.
    SwitchListens,
}

/// The machine model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Machine {
    /// PCIe machine: memory hot-add, an interrupt per queue under KVM.
    Q35,
    /// virtio-mmio machine without PCI: at most 8 devices, no hot-add, one interrupt per device.
    Microvm,
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Q35 => "q35",
            Self::Microvm => "microvm",
        })
    }
}

/// A MAC address, written `52:54:00:12:34:56`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// Neither group address (IEEE 802, first octet's lowest bit) nor all zero.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A text that is no MAC address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no MAC address; write six pairs of hexadecimal digits, like 52:54:00:12:34:56")]
pub struct MacError(String);

impl FromStr for MacAddr {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let pair = |part: &str| {
            let is_pair = part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
            is_pair.then(|| u8::from_str_radix(part, 16).ok()).flatten()
        };
        let octets: Option<Vec<u8>> = text.splitn(7, ':').map(pair).collect();
        let octets = octets.and_then(|octets| <[u8; 6]>::try_from(octets).ok());
        octets.map(Self).ok_or_else(|| MacError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused_field(change: impl FnOnce(&mut VmSpec)) -> &'static str {
        let mut spec = VmSpec::new("a", "/run/a");
        spec.nics.push(NicSpec::new("/run/a/0.sock", MacAddr([2, 0, 0, 0, 0, 1])));
        assert!(spec.check().is_ok());
        change(&mut spec);
        spec.check().expect_err("the change makes it invalid").field
    }

    #[test]
    fn each_field_that_no_back_end_could_honour_is_refused_by_name() {
        let second = NicSpec::new("/run/a/0.sock", MacAddr([2, 0, 0, 0, 0, 2]));
        assert_eq!(refused_field(|s| s.name = "a,b".into()), "name");
        assert_eq!(refused_field(|s| s.name = String::new()), "name");
        assert_eq!(refused_field(|s| s.name = "../a".into()), "name");
        assert_eq!(refused_field(|s| s.vcpus = 0), "vcpus");
        assert_eq!(refused_field(|s| (s.vcpus, s.vcpus_max) = (2, Some(1))), "vcpus_max");
        assert_eq!(refused_field(|s| s.memory = Mib::new(15)), "memory");
        assert_eq!(refused_field(|s| s.memory_max = Some(Mib::new(64))), "memory_max");
        assert_eq!(refused_field(|s| s.initrd = Some("/initrd".into())), "initrd");
        assert_eq!(refused_field(|s| s.cmdline = "a\0b".into()), "cmdline");
        assert_eq!(refused_field(|s| s.cmdline = "a".repeat(2048)), "cmdline");
        assert_eq!(refused_field(|s| s.nics[0].mac = MacAddr([1; 6])), "nics.mac");
        assert_eq!(refused_field(|s| s.nics[0].queue_pairs = 0), "nics.queue_pairs");
        assert_eq!(refused_field(|s| s.nics[0].ring_size = 300), "nics.ring_size");
        assert_eq!(refused_field(|s| s.nics = vec![s.nics[0].clone(); 29]), "nics");
        assert_eq!(refused_field(|s| s.nics.push(second)), "socket");
        assert_eq!(refused_field(|s| s.control_socket = Some("/".repeat(108).into())), "socket");
        assert_eq!(refused_field(|s| s.run_dir = "relative".into()), "path");
        assert_eq!(refused_field(|s| s.cgroup_procs = vec!["tasks".into()]), "path");
        assert_eq!(refused_field(|s| s.wrapper = vec![String::new()]), "wrapper");
    }

    #[test]
    fn the_error_carries_name_field_value_and_what_is_allowed() {
        let mut spec = VmSpec::new("a", "/run/a");
        spec.vcpus = 999;
        let message = spec.check().unwrap_err().to_string();
        assert_eq!(message, "VM 'a': vcpus is '999', but must be 1 to 254");
    }

    #[test]
    fn only_sockets_that_the_vmm_binds_are_ours_to_remove() {
        let mut spec = VmSpec::new("a", "/run/a");
        spec.nics.push(NicSpec::new("/run/a/0.sock", MacAddr([2, 0, 0, 0, 0, 1])));
        spec.nics.push(NicSpec {
            mode: SocketMode::SwitchListens,
            ..NicSpec::new("/run/switch/1.sock", MacAddr([2, 0, 0, 0, 0, 2]))
        });
        spec.control_socket = Some("/run/a/ctl.sock".into());
        spec.shares.push(ShareSpec::new("kataShared", "/run/a/fs.sock"));
        spec.agent = Some(AgentChannel::Serial { socket: "/run/a/agent.sock".into() });
        let checked = spec.check().unwrap();
        let bound: Vec<_> = checked.bound_sockets().collect();
        let expected = ["/run/a/0.sock", "/run/a/ctl.sock", "/run/a/agent.sock"];
        assert_eq!(bound, expected.map(Path::new));
    }

    #[test]
    fn a_mac_address_reads_what_it_writes_and_nothing_else() {
        let mac: MacAddr = "52:54:00:aB:00:01".parse().unwrap();
        assert_eq!(mac.to_string(), "52:54:00:ab:00:01");
        for bad in
            ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "52:54:00:12:34:+6", "5:2:3:4:5:6"]
        {
            assert_eq!(bad.parse::<MacAddr>(), Err(MacError(bad.into())));
        }
    }
}
