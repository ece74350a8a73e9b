//! `slipwayctl check`: could a pod start here, and if not, what to do.

use std::{
    fmt,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use kata_config::{
    Acceleration, AgentChannel, ConfigError, HypervisorKind, KataConfig, Loaded, SharedFs,
};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::Serialize;
use slipway_api::{NetworkList, Version, client::ClientError};

use super::{Containerd, Node, RUNTIME, major_minor, version, vmm_name};

/// How something stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Pods start, and something is less than it could be.
    Warn,
    /// No pod starts.
    Fail,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        })
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub check: &'static str,
    /// How it stands.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do, unless all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// All that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether a pod could start: nothing is a FAIL.
    pub ok: bool,
    /// In the order in which a pod needs them.
    pub checks: Vec<Finding>,
}

/// What slipwayd answered.
#[derive(Debug)]
pub struct Daemon {
    /// Where it was asked.
    pub socket: PathBuf,
    /// Which one it is.
    pub version: Result<Version, ClientError>,
    /// What pods can join.
    pub networks: Result<NetworkList, ClientError>,
}

/// Looks at everything.
pub async fn check(node: &Node, loaded: &Result<Loaded, ConfigError>, daemon: &Daemon) -> Report {
    let mut checks = Checks(Vec::new());
    // A configuration that cannot be read is the first thing to mend; the rest is looked at as the
    // defaults have it.
    let defaults = KataConfig::default();
    let config = loaded.as_ref().map_or(&defaults, |loaded| &loaded.config);
    checks.configuration(loaded);
    checks.cpu(node, config);
    checks.kvm(node, config);
    checks.vmm(node, config).await;
    if loaded.is_ok() {
        checks.guest(config);
    }
    checks.agent_channel(node, config);
    checks.shared_fs(node, config).await;
    checks.memory(node, config);
    checks.cgroups(node);
    let containerd = node.containerd();
    checks.shim(node, &containerd);
    checks.slipwayd(daemon);
    checks.networks(daemon);
    checks.containerd(node, &containerd).await;
    checks.cni(node, &containerd);
    let Checks(checks) = checks;
    Report { ok: checks.iter().all(|finding| finding.verdict != Verdict::Fail), checks }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Finding { check, verdict, found, remedy } in &self.checks {
            writeln!(f, "{verdict:<5} {check:<14} {found}")?;
            if let Some(remedy) = remedy {
                writeln!(f, "{:20} {remedy}", "")?;
            }
        }
        let count = |wanted| self.checks.iter().filter(|found| found.verdict == wanted).count();
        match (count(Verdict::Fail), count(Verdict::Warn)) {
            (0, 0) => writeln!(f, "\nPods can start here."),
            (0, warned) => writeln!(f, "\nPods can start here; {warned} to look at."),
            (failed, _) => writeln!(f, "\nPods cannot start here: {failed} to mend."),
        }
    }
}

struct Checks(Vec<Finding>);

impl Checks {
    fn ok(&mut self, check: &'static str, found: impl Into<String>) {
        self.0.push(Finding { check, verdict: Verdict::Ok, found: found.into(), remedy: None });
    }

    fn bad(
        &mut self,
        check: &'static str,
        verdict: Verdict,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let remedy = Some(remedy.into());
        self.0.push(Finding { check, verdict, found: found.into(), remedy });
    }

    fn configuration(&mut self, loaded: &Result<Loaded, ConfigError>) {
        const CHECK: &str = "configuration";
        let loaded = match loaded {
            Ok(loaded) => loaded,
            Err(error) => {
                let remedy = "mend it; docs/kata-compat.md lists every key";
                return self.bad(CHECK, Verdict::Fail, error.to_string(), remedy);
            }
        };
        match &loaded.files[..] {
            [] => {}
            [file] => self.ok(CHECK, file.display().to_string()),
            [file, drop_ins @ ..] => {
                let found = format!("{} and {} drop-ins", file.display(), drop_ins.len());
                self.ok(CHECK, found);
            }
        }
        for warning in &loaded.warnings {
            let remedy = if loaded.files.is_empty() {
                "copy slipway's sample to /etc/slipway/configuration.toml"
            } else {
                "mend it, so that it says what holds"
            };
            self.bad(CHECK, Verdict::Warn, warning.to_string(), remedy);
        }
    }

    fn cpu(&mut self, node: &Node, config: &KataConfig) {
        match (node.cpu_virtualisation(), config.slipway.acceleration) {
            (Some(flag), _) => self.ok("CPU", format!("can run virtual machines ({flag})")),
            (None, Acceleration::Tcg) => self.ok("CPU", "is translated, as acceleration says"),
            // Some hosts run guests without these bits, so `/dev/kvm` has the last word.
            (None, _) => self.bad(
                "CPU",
                Verdict::Warn,
                "has neither vmx nor svm",
                "switch virtualisation on in the firmware, or nesting in the hypervisor above",
            ),
        }
    }

    fn kvm(&mut self, node: &Node, config: &KataConfig) {
        if config.slipway.acceleration == Acceleration::Tcg {
            return self.ok("KVM", "is not used, as acceleration says");
        }
        match node.opens("/dev/kvm") {
            Ok(()) => self.ok("KVM", "/dev/kvm opens; the first pod tries whether it runs a guest"),
            Err(error) => self.bad(
                "KVM",
                needs_kvm(config),
                format!("/dev/kvm: {error}; guests are translated, 10 to 50 times slower"),
                "load kvm_intel or kvm_amd; run as root or join the group kvm",
            ),
        }
    }

    async fn vmm(&mut self, node: &Node, config: &KataConfig) {
        let machine = &config.hypervisor;
        let path = match node.vmm(machine) {
            Ok(path) => path,
            Err(found) => {
                let name = vmm_name(machine.kind);
                let remedy = format!("install {name}, or set `path` under [hypervisor.*]");
                return self.bad("VMM", Verdict::Fail, found, remedy);
            }
        };
        let found = match version(&path).await {
            Ok(version) => version,
            Err(error) => {
                let found = format!("{}: {error}", path.display());
                let remedy = "install it anew: it has to run before a pod can";
                return self.bad("VMM", Verdict::Fail, found, remedy);
            }
        };
        let (oldest, newest_old) = match machine.kind {
            HypervisorKind::Qemu => ((7, 2), "7.2"),
            HypervisorKind::CloudHypervisor => ((51, 0), "51"),
        };
        match major_minor(&found) {
            Some(number) if number < oldest => self.bad(
                "VMM",
                Verdict::Warn,
                format!("{}: {found}", path.display()),
                format!("slipway is written for {newest_old} and newer"),
            ),
            _ => self.ok("VMM", format!("{}: {found}", path.display())),
        }
    }

    /// The files that the guest boots from.
    fn guest(&mut self, config: &KataConfig) {
        let machine = &config.hypervisor;
        let root = match (&machine.initrd, &machine.image) {
            (Some(initrd), _) => ("initrd", Some(initrd)),
            (None, image) => ("image", image.as_ref()),
        };
        for (check, path) in [("kernel", machine.kernel.as_ref()), root] {
            match path {
                None => self.bad(
                    check,
                    Verdict::Fail,
                    match check {
                        "kernel" => "the configuration names no kernel",
                        _ => "the configuration names neither image nor initrd",
                    },
                    "set it under [hypervisor.*]; `cargo xtask guest` builds slipway's own guest",
                ),
                Some(path) => match has_bytes(path) {
                    Ok(()) => self.ok(check, path.display().to_string()),
                    Err(error) => self.bad(
                        check,
                        Verdict::Fail,
                        format!("{}: {error}", path.display()),
                        format!("install the guest there, or mend `{check}` under [hypervisor.*]"),
                    ),
                },
            }
        }
    }

    fn agent_channel(&mut self, node: &Node, config: &KataConfig) {
        const CHECK: &str = "agent channel";
        if config.hypervisor.kind == HypervisorKind::CloudHypervisor {
            return self.ok(CHECK, "Cloud Hypervisor's own vsock");
        }
        let kernel = || match node.opens("/dev/vhost-vsock") {
            Ok(()) => Ok("/dev/vhost-vsock".to_owned()),
            Err(error) => Err(format!("/dev/vhost-vsock: {error}")),
        };
        let daemon = || node.vsock_daemon(&config.slipway).map(|path| path.display().to_string());
        let found = match config.slipway.agent_channel {
            AgentChannel::VhostVsock => kernel(),
            AgentChannel::VhostUserVsock => daemon(),
            AgentChannel::Serial => Ok("virtio-serial: slipway's own agent only".to_owned()),
            AgentChannel::Auto => match kernel()
                .or_else(|first| daemon().map_err(|second| format!("{first}; {second}")))
            {
                Ok(found) => Ok(found),
                Err(missing) => {
                    let found = format!("virtio-serial, as {missing}");
                    let remedy = "fine for slipway's own agent; for Kata's load vhost_vsock, or install vhost-device-vsock";
                    return self.bad(CHECK, Verdict::Warn, found, remedy);
                }
            },
        };
        match found {
            Ok(found) => self.ok(CHECK, found),
            Err(missing) => self.bad(
                CHECK,
                Verdict::Fail,
                missing,
                "load vhost_vsock, install vhost-device-vsock, or set agent_channel = \"auto\" under [slipway]",
            ),
        }
    }

    async fn shared_fs(&mut self, node: &Node, config: &KataConfig) {
        if config.hypervisor.shared_fs == SharedFs::None {
            return self.ok("virtiofsd", "is not used, as shared_fs says");
        }
        let remedy = "install virtiofsd, or set `virtio_fs_daemon` under [hypervisor.*]";
        match node.virtiofsd(&config.hypervisor) {
            Err(found) => self.bad("virtiofsd", Verdict::Fail, found, remedy),
            Ok(path) => match version(&path).await {
                Ok(version) => self.ok("virtiofsd", format!("{}: {version}", path.display())),
                Err(error) => {
                    let found = format!("{}: {error}", path.display());
                    self.bad("virtiofsd", Verdict::Fail, found, remedy);
                }
            },
        }
    }

    fn memory(&mut self, node: &Node, config: &KataConfig) {
        let wanted = config.hypervisor.default_memory_mib;
        if let Some(available) = node.memory_available_mib() {
            let found = format!("{available} MiB available, {wanted} for a pod without limits");
            if available < u64::from(wanted) {
                let remedy = "lower default_memory under [hypervisor.*], or delete pods";
                self.bad("memory", Verdict::Warn, found, remedy);
            } else {
                self.ok("memory", found);
            }
        }
        match memfd_create(c"slipwayctl-check", MFdFlags::MFD_CLOEXEC) {
            Ok(_) => self.ok("memfd", "can be made"),
            Err(error) => self.bad(
                "memfd",
                Verdict::Fail,
                format!("memfd_create: {error}"),
                "guest memory is a memfd: use Linux 3.17 or newer, and no filter against it",
            ),
        }
        let pages = node.hugepages();
        let found = format!("{} of 2 MiB, {} of them free", pages.total, pages.free);
        self.ok("huge pages", format!("{found}; guest memory is of ordinary pages"));
    }

    fn cgroups(&mut self, node: &Node) {
        match node.cgroup_version() {
            Some(version) => self.ok("cgroups", format!("version {version}")),
            None => self.bad(
                "cgroups",
                Verdict::Fail,
                "no controllers under /sys/fs/cgroup",
                "mount cgroup2 there",
            ),
        }
    }

    fn shim(&mut self, node: &Node, containerd: &Containerd) {
        match node.shim(containerd) {
            Ok(path) => self.ok("shim", path.display().to_string()),
            Err(found) => self.bad(
                "shim",
                Verdict::Fail,
                found,
                "install it or a link to it where containerd's PATH has it, as /usr/local/bin",
            ),
        }
    }

    fn slipwayd(&mut self, daemon: &Daemon) {
        let socket = daemon.socket.display();
        match &daemon.version {
            Ok(version) => {
                self.ok(
                    "slipwayd",
                    format!("{} (API {}) on {socket}", version.version, version.api),
                );
            }
            Err(error) => {
                let remedy = "start slipwayd, or mend `socket` under [slipway]";
                self.bad("slipwayd", Verdict::Fail, error.to_string(), remedy);
            }
        }
    }

    fn networks(&mut self, daemon: &Daemon) {
        const CHECK: &str = "networks";
        let list = match (&daemon.version, &daemon.networks) {
            (Ok(_), Ok(list)) => list,
            (Ok(_), Err(error)) => {
                let remedy = "only DAN files give pods a NIC then: use slipwayd of this version";
                return self.bad(CHECK, Verdict::Warn, error.to_string(), remedy);
            }
            // That slipwayd is missing was said.
            (Err(_), _) => return,
        };
        let names: Vec<_> = list.networks.iter().map(|network| network.name.as_str()).collect();
        if names.is_empty() {
            let remedy = "add [[networks]] to slipwayd.toml, so that pods get addresses";
            return self.bad(CHECK, Verdict::Warn, "slipwayd has none", remedy);
        }
        self.ok(CHECK, names.join(", "));
        for network in list.networks.iter().filter(|network| network.used >= network.capacity) {
            let found = format!("{} has no address left of {}", network.name, network.capacity);
            self.bad(CHECK, Verdict::Warn, found, "give it a larger range, or delete pods");
        }
    }

    /// What containerd needs to connect a pod: our plugin, `loopback`, and a network of ours.
    fn cni(&mut self, node: &Node, containerd: &Containerd) {
        const CHECK: &str = "CNI plugin";
        let folders: Vec<_> = containerd.bin_dirs.iter().map(|dir| dir.display()).collect();
        let folders = folders.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        match (containerd.slipway_cni(), node.cni_plugin(containerd)) {
            (Some(path), _) => self.ok(CHECK, path.display().to_string()),
            (None, Some(path)) => self.bad(
                CHECK,
                Verdict::Warn,
                format!("{}, but containerd looks in {folders}", path.display()),
                format!("ln -s {} there; only `ctr` works without", path.display()),
            ),
            (None, None) => self.bad(
                CHECK,
                Verdict::Warn,
                format!("no slipway-cni in {folders}"),
                "install it there; only `ctr` works without",
            ),
        }
        if containerd.plugin("loopback").is_none() {
            self.bad(
                CHECK,
                Verdict::Warn,
                format!("no loopback in {folders}, which containerd runs for every pod"),
                "install containernetworking-plugins, or link its loopback there",
            );
        }
        if containerd.file.is_none() {
            // That there is no runtime is said elsewhere.
            return;
        }
        match containerd.network() {
            Some(path) => self.ok("CNI network", path.display().to_string()),
            None => self.bad(
                "CNI network",
                Verdict::Warn,
                format!("the first list in {} is not of slipway-cni", containerd.conf_dir.display()),
                "put 10-slipway.conflist into /etc/slipway/cni, and that as cni_conf_dir of the runtime",
            ),
        }
    }

    async fn containerd(&mut self, node: &Node, told: &Containerd) {
        let Some(path) = node.find("containerd", &[]) else {
            let remedy = "install containerd 1.6 or newer, or put it into PATH";
            return self.bad("containerd", Verdict::Warn, "no containerd in PATH", remedy);
        };
        match version(&path).await {
            Err(error) => {
                let found = format!("{}: {error}", path.display());
                self.bad("containerd", Verdict::Warn, found, "install it anew");
            }
            Ok(found) if major_minor(&found).is_some_and(|number| number < (1, 6)) => {
                self.bad("containerd", Verdict::Fail, found, "use containerd 1.6 or newer");
            }
            Ok(found) => self.ok("containerd", found),
        }
        for damaged in &told.damaged {
            let remedy = "mend it: containerd does not start with it, or without what it says";
            self.bad("runtime class", Verdict::Fail, damaged, remedy);
        }
        match &told.file {
            None => self.bad(
                "runtime class",
                Verdict::Warn,
                format!("no {RUNTIME} in /etc/containerd/config.toml or conf.d"),
                "put it there as slipway's containerd-*.toml says; only `ctr --runtime` works without",
            ),
            Some(file) => self.ok("runtime class", format!("{RUNTIME} in {}", file.display())),
        }
    }
}

/// Whether a pod fails without KVM, or is slow.
fn needs_kvm(config: &KataConfig) -> Verdict {
    let is_asked_for = config.slipway.acceleration == Acceleration::Kvm;
    let has_no_other = config.hypervisor.kind == HypervisorKind::CloudHypervisor;
    if is_asked_for || has_no_other { Verdict::Fail } else { Verdict::Warn }
}

/// Whether a file can be read and has a first byte.
fn has_bytes(path: &Path) -> Result<(), String> {
    let mut byte = [0];
    let read = File::open(path).and_then(|mut file| file.read(&mut byte));
    match read {
        Ok(0) => Err("is empty".to_owned()),
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}
