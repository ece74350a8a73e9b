//! `slipwayctl check` and `slipwayctl env` on nodes made of folders.
//!
//! Programs are links to scripts that stand in `tests/programs`: a script that a test wrote itself
//! could not be run while another test's child still has it open.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use kata_config::{Loaded, load};
use serde_json::Value;
use slipway_api::{Network, NetworkList, Version, client::ClientError};
use slipwayctl::node::{
    Node,
    check::{Daemon, Finding, Report, Verdict, check},
    env::environment,
};

/// A node whose `/`, `PATH` and guest are folders of one temporary folder.
struct Rig {
    folder: tempfile::TempDir,
}

impl Rig {
    /// A node that has everything.
    fn whole() -> Self {
        let rig = Self { folder: tempfile::tempdir().expect("tempdir") };
        for (name, script) in [
            ("qemu-system-x86_64", "qemu"),
            ("cloud-hypervisor", "cloud-hypervisor"),
            ("virtiofsd", "virtiofsd"),
            ("containerd", "containerd"),
            ("containerd-shim-slipway-v2", "silent"),
        ] {
            rig.program(name, script);
        }
        rig.file("root/dev/kvm", "");
        rig.file("root/dev/vhost-vsock", "");
        rig.file(
            "root/proc/cpuinfo",
            "processor\t: 0\nmodel name\t: Toy 1\nflags\t\t: fpu vmx sse\n",
        );
        rig.file("root/proc/sys/kernel/osrelease", "6.1.0-test\n");
        rig.file("root/sys/fs/cgroup/cgroup.controllers", "cpu memory\n");
        rig.file("root/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "300\n");
        rig.file("root/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "256\n");
        rig.file(
            "root/etc/containerd/config.toml",
            &containerd("cni_conf_dir = \"/etc/slipway/cni\""),
        );
        rig.file("root/etc/slipway/cni/10-slipway.conflist", "{\"type\": \"slipway-cni\"}");
        for name in ["slipway-cni", "loopback"] {
            rig.link("silent", &format!("root/opt/cni/bin/{name}"));
        }
        rig.file("root/etc/os-release", "NAME=Toy\nPRETTY_NAME=\"Toy 12\"\n");
        rig.file("root/proc/meminfo", "MemTotal: 4194304 kB\nMemAvailable:    2097152 kB\n");
        rig.file("guest/vmlinux", "kernel");
        rig.file("guest/initrd.img", "disk");
        rig.configure("");
        rig
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn file(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("makes the folder");
        fs::write(path, text).expect("writes");
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).expect("removes");
    }

    /// Puts a script into `PATH` under this name.
    fn program(&self, name: &str, script: &str) {
        self.link(script, &format!("bin/{name}"));
    }

    fn link(&self, script: &str, name: &str) {
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs");
        let link = self.path(name);
        fs::create_dir_all(link.parent().expect("a folder")).expect("makes the folder");
        let _ = fs::remove_file(&link);
        symlink(scripts.join(script), link).expect("links");
    }

    /// Writes the configuration: the guest, and these lines.
    fn configure(&self, lines: &str) {
        let (kernel, initrd) = (self.path("guest/vmlinux"), self.path("guest/initrd.img"));
        let (kernel, initrd) = (kernel.display(), initrd.display());
        self.file(
            "configuration.toml",
            &format!(
                "[hypervisor.qemu]\nkernel = \"{kernel}\"\ninitrd = \"{initrd}\"\ndefault_memory = 512\n{lines}\n"
            ),
        );
    }

    fn load(&self) -> Result<Loaded, kata_config::ConfigError> {
        load(Some(&self.path("configuration.toml")))
    }

    fn node(&self) -> Node {
        Node { root: self.path("root"), path: self.path("bin").into() }
    }

    fn check_with(&self, daemon: &Daemon) -> Report {
        let (node, loaded) = (self.node(), self.load());
        block_on(check(&node, &loaded, daemon))
    }

    fn check(&self) -> Report {
        self.check_with(&daemon(vec![network("default", 3)]))
    }

    /// What is not well, as `verdict check`.
    fn complaints(&self) -> Vec<String> {
        complaints(&self.check())
    }

    /// The one finding that is not well.
    fn complaint(&self) -> Finding {
        let report = self.check();
        let mut bad = report.checks.into_iter().filter(|found| found.verdict != Verdict::Ok);
        let first = bad.next().expect("something is not well");
        assert_eq!(bad.next(), None);
        assert!(first.remedy.is_some(), "{first:?}");
        first
    }
}

/// A configuration of containerd's with our runtime and these lines of it.
fn containerd(lines: &str) -> String {
    format!(
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.slipway]\n\
         runtime_type = \"io.containerd.slipway.v2\"\n{lines}\n"
    )
}

fn complaints(report: &Report) -> Vec<String> {
    let bad = report.checks.iter().filter(|found| found.verdict != Verdict::Ok);
    bad.map(|found| format!("{} {}", found.verdict, found.check)).collect()
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().expect("a runtime").block_on(work)
}

fn network(name: &str, used: u64) -> Network {
    Network {
        name: name.into(),
        vni: 7,
        mtu: 1450,
        ranges: Vec::new(),
        gateways: Vec::new(),
        host_gateway: false,
        used,
        capacity: 254,
    }
}

fn daemon(networks: Vec<Network>) -> Daemon {
    Daemon {
        socket: "/run/slipway/slipwayd.sock".into(),
        version: Ok(Version { name: "slipwayd".into(), version: "0.1.0".into(), api: "v1".into() }),
        networks: Ok(NetworkList { networks }),
    }
}

#[test]
fn on_a_node_that_has_everything_all_is_well() {
    let report = Rig::whole().check();
    assert_eq!(complaints(&report), Vec::<String>::new());
    assert!(report.ok);
    let text = report.to_string();
    assert!(text.ends_with("\nPods can start here.\n"), "{text}");
    for part in [
        "QEMU emulator version 7.2.22",
        "virtiofsd 1.14.0",
        "containerd.io 1.7.20",
        "default",
        "300 of 2 MiB, 256 of them free",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_configuration_that_cannot_be_used_is_told_with_its_line() {
    let rig = Rig::whole();
    rig.configure("confidential_guest = true");
    let complaint = rig.complaint();
    assert_eq!((complaint.check, complaint.verdict), ("configuration", Verdict::Fail));
    assert!(complaint.found.contains("configuration.toml:5: "), "{complaint:?}");
    rig.configure("default_vcpu = 2");
    let complaint = rig.complaint();
    assert_eq!((complaint.check, complaint.verdict), ("configuration", Verdict::Warn));
    assert!(complaint.found.contains("did you mean `default_vcpus`"), "{complaint:?}");
}

#[test]
fn without_kvm_guests_are_slow_unless_it_was_asked_for() {
    let rig = Rig::whole();
    rig.remove("root/dev/kvm");
    rig.file("root/proc/cpuinfo", "flags\t: fpu sse\n");
    assert_eq!(rig.complaints(), ["warn CPU", "warn KVM"]);
    assert!(rig.check().ok);
    rig.configure("[slipway]\nacceleration = \"kvm\"");
    assert_eq!(rig.complaints(), ["warn CPU", "FAIL KVM"]);
    rig.configure("[slipway]\nacceleration = \"tcg\"");
    assert_eq!(rig.complaints(), Vec::<String>::new());
}

#[test]
fn cloud_hypervisor_needs_kvm_and_brings_its_own_vsock() {
    let rig = Rig::whole();
    let (kernel, initrd) = (rig.path("guest/vmlinux"), rig.path("guest/initrd.img"));
    let (kernel, initrd) = (kernel.display(), initrd.display());
    let text = format!("[hypervisor.clh]\nkernel = \"{kernel}\"\ninitrd = \"{initrd}\"\n");
    rig.file("configuration.toml", &text);
    rig.remove("root/dev/vhost-vsock");
    let report = rig.check();
    assert_eq!(complaints(&report), Vec::<String>::new());
    assert!(report.to_string().contains("cloud-hypervisor v51.1.0"));
    rig.remove("root/dev/kvm");
    assert_eq!(rig.complaints(), ["FAIL KVM"]);
}

#[test]
fn a_vmm_that_is_missing_broken_or_old_is_told() {
    let rig = Rig::whole();
    rig.program("qemu-system-x86_64", "qemu-old");
    let complaint = rig.complaint();
    assert_eq!((complaint.check, complaint.verdict), ("VMM", Verdict::Warn));
    rig.program("qemu-system-x86_64", "broken");
    let complaint = rig.complaint();
    assert_eq!((complaint.check, complaint.verdict), ("VMM", Verdict::Fail));
    assert!(complaint.found.contains("127: cannot open shared object file"), "{complaint:?}");
    rig.remove("bin/qemu-system-x86_64");
    assert_eq!(rig.complaint().found, "no qemu-system-x86_64 in PATH");
    let path = rig.path("guest/vmlinux");
    rig.configure(&format!("path = \"{}\"", path.display()));
    assert_eq!(rig.complaint().found, format!("{} is no program", path.display()));
}

#[test]
fn a_guest_that_is_not_there_is_told_with_its_path() {
    let rig = Rig::whole();
    rig.remove("guest/vmlinux");
    rig.file("guest/initrd.img", "");
    assert_eq!(rig.complaints(), ["FAIL kernel", "FAIL initrd"]);
    let text = rig.check().to_string();
    assert!(text.contains("guest/vmlinux: No such file") && text.contains("initrd.img: is empty"));
    assert!(text.ends_with("\nPods cannot start here: 2 to mend.\n"), "{text}");
    rig.file("configuration.toml", "[hypervisor.qemu]\n");
    assert_eq!(rig.complaints(), ["FAIL kernel", "FAIL image"]);
}

#[test]
fn the_agents_channel_is_the_first_that_the_host_has() {
    let rig = Rig::whole();
    let found = |rig: &Rig| {
        let report = rig.check();
        let mut checks = report.checks.into_iter();
        checks.find(|finding| finding.check == "agent channel").expect("is checked")
    };
    assert_eq!(found(&rig).found, "/dev/vhost-vsock");
    rig.remove("root/dev/vhost-vsock");
    let serial = found(&rig);
    assert_eq!(serial.verdict, Verdict::Warn);
    assert!(serial.found.starts_with("virtio-serial, as /dev/vhost-vsock: "), "{serial:?}");
    rig.program("vhost-device-vsock", "silent");
    assert!(found(&rig).found.ends_with("bin/vhost-device-vsock"));
    rig.configure("[slipway]\nagent_channel = \"vhost-vsock\"");
    assert_eq!(found(&rig).verdict, Verdict::Fail);
}

#[test]
fn virtiofsd_is_found_where_distributions_put_it_and_needed_only_for_sharing() {
    let rig = Rig::whole();
    rig.remove("bin/virtiofsd");
    assert_eq!(rig.complaints(), ["FAIL virtiofsd"]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/virtiofsd");
    fs::create_dir_all(rig.path("root/usr/lib/qemu")).expect("makes");
    symlink(script, rig.path("root/usr/lib/qemu/virtiofsd")).expect("links");
    assert_eq!(rig.complaints(), Vec::<String>::new());
    rig.remove("root/usr/lib/qemu/virtiofsd");
    rig.configure("shared_fs = \"none\"");
    assert_eq!(rig.complaints(), Vec::<String>::new());
}

#[test]
fn cgroups_of_either_version_do() {
    let rig = Rig::whole();
    rig.remove("root/sys/fs/cgroup/cgroup.controllers");
    assert_eq!(rig.complaints(), ["FAIL cgroups"]);
    fs::create_dir_all(rig.path("root/sys/fs/cgroup/memory")).expect("makes");
    assert_eq!(rig.complaints(), Vec::<String>::new());
}

#[test]
fn slipway_itself_has_to_be_installed_and_running() {
    let rig = Rig::whole();
    rig.remove("bin/containerd-shim-slipway-v2");
    rig.remove("root/opt/cni/bin/slipway-cni");
    assert_eq!(rig.complaints(), ["FAIL shim", "warn CNI plugin"]);
    let rig = Rig::whole();
    let gone = || ClientError::NoSocket("/run/slipway/slipwayd.sock".into());
    let absent = Daemon { version: Err(gone()), networks: Err(gone()), ..daemon(vec![]) };
    assert_eq!(complaints(&rig.check_with(&absent)), ["FAIL slipwayd"]);
    let older = Daemon { networks: Err(gone()), ..daemon(vec![]) };
    assert_eq!(complaints(&rig.check_with(&older)), ["warn networks"]);
    assert_eq!(complaints(&rig.check_with(&daemon(vec![]))), ["warn networks"]);
    let full = rig.check_with(&daemon(vec![network("blue", 254), network("red", 3)]));
    assert_eq!(complaints(&full), ["warn networks"]);
    assert!(full.to_string().contains("blue has no address left of 254"), "{full}");
}

#[test]
fn containerd_has_to_know_the_runtime() {
    let rig = Rig::whole();
    let config = "root/etc/containerd/config.toml";
    let text = fs::read_to_string(rig.path(config)).expect("reads");
    rig.file(config, "# io.containerd.slipway.v2 would go here\n");
    assert_eq!(rig.complaints(), ["warn runtime class"]);
    // A file that containerd does not import.
    rig.file("root/etc/containerd/conf.d/50-slipway.toml.off", &text);
    assert_eq!(rig.complaints(), ["warn runtime class"]);
    rig.file("root/etc/containerd/conf.d/50-slipway.toml", &text);
    assert_eq!(rig.complaints(), Vec::<String>::new());
    rig.file(config, &format!("{text}{text}"));
    let complaint = rig.complaint();
    assert_eq!((complaint.check, complaint.verdict), ("runtime class", Verdict::Fail));
    assert!(complaint.found.contains("config.toml: duplicate key"), "{complaint:?}");
    rig.file(config, "");
    rig.program("containerd", "containerd-old");
    assert_eq!(rig.complaints(), ["FAIL containerd"]);
    rig.program("containerd", "silent");
    assert_eq!(rig.complaints(), ["warn containerd"]);
    rig.remove("bin/containerd");
    assert_eq!(rig.complaints(), ["warn containerd"]);
}

#[test]
fn a_shim_may_be_elsewhere_if_containerd_is_told_where() {
    let rig = Rig::whole();
    rig.remove("bin/containerd-shim-slipway-v2");
    let path = "/opt/slipway/bin/containerd-shim-slipway-v2";
    let lines = "cni_conf_dir = \"/etc/slipway/cni\"\nruntime_path";
    let config = containerd(&format!("{lines} = \"{path}\""));
    rig.file("root/etc/containerd/config.toml", &config);
    let complaint = rig.complaint();
    assert_eq!((complaint.check, complaint.verdict), ("shim", Verdict::Fail));
    assert!(complaint.found.ends_with(&format!("{path} does not exist")), "{complaint:?}");
    rig.link("silent", &format!("root{path}"));
    assert_eq!(rig.complaints(), Vec::<String>::new());
}

#[test]
fn plugins_have_to_be_where_containerd_looks_and_the_network_ours() {
    let rig = Rig::whole();
    let config = "root/etc/containerd/config.toml";
    let text = containerd("cni_conf_dir = \"/etc/slipway/cni\"");
    let elsewhere = "[plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/usr/lib/cni\"\n";
    rig.file(config, &format!("{text}{elsewhere}"));
    assert_eq!(rig.complaints(), ["warn CNI plugin", "warn CNI plugin"]);
    let said = rig.check().to_string();
    for part in
        ["opt/cni/bin/slipway-cni, but containerd looks in ", "no loopback in ", "root/usr/lib/cni"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
    // containerd 2.1 has a list of folders.
    let both = elsewhere
        .replace("bin_dir = ", "bin_dirs = [\"/opt/cni/bin\", ")
        .replace("cni\"\n", "cni\"]\n");
    rig.file(config, &format!("{text}{both}"));
    assert_eq!(rig.complaints(), Vec::<String>::new());
    rig.file(config, &containerd(""));
    assert_eq!(rig.complaint().check, "CNI network");
    rig.file("root/etc/cni/net.d/20-slipway.conflist", "slipway-cni");
    assert_eq!(rig.complaints(), Vec::<String>::new());
    // containerd takes the first.
    rig.file("root/etc/cni/net.d/10-others.conflist", "bridge");
    assert_eq!(rig.complaint().check, "CNI network");
}

#[test]
fn less_memory_than_a_pod_takes_is_told() {
    let rig = Rig::whole();
    rig.file("root/proc/meminfo", "MemAvailable:  102400 kB\n");
    let complaint = rig.complaint();
    assert_eq!((complaint.check, complaint.verdict), ("memory", Verdict::Warn));
    assert_eq!(complaint.found, "100 MiB available, 512 for a pod without limits");
}

#[test]
fn the_environment_is_one_document() {
    let rig = Rig::whole();
    rig.configure("msize_9p = 8192\nvirtio_fs_daemon = \"/nowhere/virtiofsd\"");
    let loaded = rig.load().expect("loads");
    let daemon = daemon(vec![network("default", 0)]);
    let document = block_on(environment(&rig.node(), loaded, &daemon));
    let json = serde_json::to_value(&document).expect("JSON");
    let at = |pointer: &str| json.pointer(pointer).unwrap_or_else(|| panic!("{pointer}: {json:#}"));
    assert_eq!(at("/runtime/name"), "io.containerd.slipway.v2");
    assert_eq!(at("/effective/hypervisor/default_memory_mib"), 512);
    assert_eq!(at("/effective/hypervisor/kind"), "qemu");
    assert_eq!(at("/effective/agent/dial_timeout_ms"), 45_000);
    assert_eq!(at("/programs/virtiofsd/problem"), "/nowhere/virtiofsd does not exist");
    assert_eq!(at("/slipwayd/networks/0"), "default");
    assert_eq!(at("/host/distribution"), "Toy 12");
    assert_eq!(at("/host/memory_available_mib"), 2048);
    assert_eq!(at("/host/kernel"), "6.1.0-test");
    assert_eq!(at("/host/cpu_virtualisation"), "vmx");
    assert_eq!(at("/host/hugepages_2mib/free"), 256);
    let ignored = at("/configuration/ignored/0").as_str().expect("text");
    assert!(ignored.contains("there is no 9p"), "{ignored}");
}

/// Runs `slipwayctl` itself, with the rig's programs in `PATH` and this machine's `/`.
fn slipwayctl(rig: &Rig, words: &[&str]) -> Output {
    // The scripts need a shell's commands.
    let path = format!("{}:/bin:/usr/bin", rig.path("bin").display());
    Command::new(env!("CARGO_BIN_EXE_slipwayctl"))
        .env("PATH", path)
        .env("SLIPWAY_SOCKET", rig.path("no.sock"))
        .args(words)
        .arg("--config")
        .arg(rig.path("configuration.toml"))
        .output()
        .expect("slipwayctl runs")
}

#[test]
fn check_ends_with_1_when_something_fails_and_says_what() {
    let rig = Rig::whole();
    rig.remove("guest/vmlinux");
    let output = slipwayctl(&rig, &["check"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(text.contains("FAIL  kernel         ") && text.contains("FAIL  slipwayd"), "{text}");
    let output = slipwayctl(&rig, &["check", "--json"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["ok"], false);
    let checks = report["checks"].as_array().expect("a list");
    let kernel = checks.iter().find(|check| check["check"] == "kernel").expect("is checked");
    assert_eq!(kernel["verdict"], "fail");
    assert!(kernel["remedy"].is_string(), "{kernel}");
}

#[test]
fn env_prints_toml_or_json_and_refuses_what_cannot_be_read() {
    let rig = Rig::whole();
    let output = slipwayctl(&rig, &["env"]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    let toml: toml::Table = text.parse().unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!(toml["effective"]["hypervisor"]["default_memory_mib"].as_integer(), Some(512));
    assert!(toml["programs"]["vmm"]["version"].as_str().is_some_and(|v| v.contains("7.2.22")));
    let output = slipwayctl(&rig, &["env", "--json"]);
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(
        json["programs"]["vmm"]["version"],
        toml["programs"]["vmm"]["version"].as_str().expect("text")
    );
    rig.configure("default_memory = \"much\"");
    let output = slipwayctl(&rig, &["env"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let told = String::from_utf8(output.stderr).expect("text");
    assert!(told.starts_with("slipwayctl: ") && told.contains("configuration.toml"), "{told}");
}
