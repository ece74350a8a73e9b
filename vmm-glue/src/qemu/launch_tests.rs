use super::*;
use crate::devices::{DiskSpec, ShareSpec};
use crate::memory::Mib;
use crate::spec::MacAddr;

fn spec() -> VmSpec {
    let mut spec = VmSpec::new("a", "/run/a");
    spec.nics.push(NicSpec::new("/run/a/0,1.sock", MacAddr([2, 0, 0, 0, 0, 1])));
    spec.control_socket = Some("/run/a/ctl.sock".into());
    spec
}

fn line_of(spec: &VmSpec) -> Result<String, VmmError> {
    let version = QemuVersion { major: 7, minor: 2 };
    let host = Host { version, tsc_khz: Some(2_000_000), qmp_socket: Path::new("/run/a/qmp") };
    arguments(spec.check().unwrap(), host).map(|args| args.join(" "))
}

fn assert_has(line: &str, parts: &[&str]) {
    for part in parts {
        assert!(line.contains(part), "'{part}' is missing in: {line}");
    }
}

#[test]
fn under_tcg_pci_devices_have_no_msix() {
    let line = line_of(&spec()).unwrap();
    assert_has(&line, &["virtio-net-pci,disable-legacy=on,vectors=0,"]);
    assert_has(&line, &["virtio-serial-pci,disable-legacy=on,vectors=0,"]);
}

#[test]
fn shares_disks_and_channels_are_devices_of_the_machine_s_bus() {
    let mut spec = spec();
    spec.shares.push(ShareSpec::new("kataShared", "/run/a/f,s"));
    spec.disks.push(DiskSpec::readonly("image", "/proc/self/exe"));
    spec.agent = Some(AgentChannel::Serial { socket: "/run/a/agent".into() });
    let tcg = [
        "-chardev socket,id=fs0,path=/run/a/f,,s ",
        "vhost-user-fs-pci,vectors=0,chardev=fs0,tag=kataShared,queue-size=1024 ",
        "virtio-blk-pci,disable-legacy=on,vectors=0,bus=pcie.0,addr=1,drive=disk0,id=disk-image ",
        "-device virtio-serial-pci,disable-legacy=on,vectors=0,id=serial0,max_ports=3 ",
        "virtserialport,bus=serial0.0,nr=1,chardev=control,name=org.slipway.ctl ",
        "virtserialport,bus=serial0.0,nr=2,chardev=agent,name=org.slipway.agent ",
    ];
    assert_has(&line_of(&spec).unwrap(), &tcg);
    spec.accel = Accel::Kvm;
    let kvm = ["vhost-user-fs-pci,vectors=3,", "virtio-blk-pci,disable-legacy=on,vectors=2,"];
    assert_has(&line_of(&spec).unwrap(), &kvm);
    spec.machine = Machine::Microvm;
    let mmio = ["vhost-user-fs-device,chardev", "virtio-blk-device,drive=disk0,"];
    assert_has(&line_of(&spec).unwrap(), &mmio);
}

#[test]
fn a_vsock_is_the_kernel_s_or_a_helper_s() {
    let mut spec = spec();
    spec.agent = Some(AgentChannel::VhostVsock { cid: 77 });
    let device = "vhost-vsock-pci,disable-legacy=on,vectors=0,guest-cid=77 ";
    assert_has(&line_of(&spec).unwrap(), &[device]);
    spec.agent = Some(AgentChannel::VhostUserVsock { socket: "/run/a/v".into() });
    let device = "vhost-user-vsock-pci,disable-legacy=on,vectors=0,chardev=vsock ";
    assert_has(&line_of(&spec).unwrap(), &["-chardev socket,id=vsock,path=/run/a/v ", device]);
    spec.agent = Some(AgentChannel::Hybrid { socket: "/run/a/v".into(), cid: 3 });
    let error = line_of(&spec).unwrap_err().to_string();
    assert!(error.contains("vhost-device-vsock"), "{error}");
}

#[test]
fn a_disk_that_is_not_there_is_named_before_qemu_starts() {
    let mut spec = spec();
    spec.disks.push(DiskSpec::readonly("image", "/nowhere/image"));
    let error = line_of(&spec).unwrap_err();
    assert!(matches!(error, VmmError::Disk { .. }), "{error}");
    assert!(error.to_string().contains("'image' (/nowhere/image)"), "{error}");
}

#[test]
fn room_for_cpus_and_disks_is_made_only_when_asked_for() {
    let mut spec = spec();
    assert_has(&line_of(&spec).unwrap(), &["-smp cpus=1,maxcpus=2 "]);
    (spec.vcpus_max, spec.disk_slots) = (Some(4), 2);
    let line = line_of(&spec).unwrap();
    let ports = [
        "pcie-root-port,id=port0,bus=pcie.0,addr=1e,chassis=1,slot=1 ",
        "pcie-root-port,id=port1,bus=pcie.0,addr=1d,chassis=2,slot=2 ",
    ];
    assert_has(&line, &["-smp cpus=1,maxcpus=4 ", "-accel tcg,thread=multi ", ports[0], ports[1]]);
    spec.machine = Machine::Microvm;
    assert!(matches!(line_of(&spec), Err(VmmError::Unsupported { .. })));
    spec.vcpus_max = None;
    assert!(line_of(&spec).unwrap_err().to_string().contains("disk hot-add"));
}

#[test]
fn a_bus_has_no_more_than_its_slots() {
    let mut spec = spec();
    // With the NIC and the serial device.
    spec.disk_slots = 24;
    spec.shares = (0..4).map(|i| ShareSpec::new(format!("t{i}"), format!("/{i}"))).collect();
    assert!(line_of(&spec).is_ok());
    spec.shares.push(ShareSpec::new("one-more", "/more"));
    let error = line_of(&spec).unwrap_err().to_string();
    assert!(error.contains("31 PCI devices") && error.contains("at most 30"), "{error}");
}

#[test]
fn under_kvm_each_queue_has_a_vector_and_the_clock_is_left_alone() {
    let mut spec = spec();
    (spec.accel, spec.nics[0].queue_pairs) = (Accel::Kvm, 4);
    (spec.kernel, spec.cmdline) = (Some("/boot/k".into()), "quiet".into());
    let line = line_of(&spec).unwrap();
    assert_has(&line, &["vectors=10,", ",mq=on", "queues=4", "-accel kvm -cpu host"]);
    assert_has(&line, &["-machine q35,memory-backend=ram "]);
    assert_has(&line, &["-append console=ttyS0 8250.nr_uarts=1 quiet -chardev"]);
}

#[test]
fn memory_is_a_shared_memfd() {
    let line = line_of(&spec()).unwrap();
    assert_has(&line, &["memory-backend-memfd,id=ram,size=128M,share=on", "-m size=128M "]);
    assert_has(&line, &[",memory-backend=ram -accel"]);
}

#[test]
fn one_cpu_under_tcg_has_no_acpi_and_has_room_for_another_so_that_barriers_are_kept() {
    let mut spec = spec();
    spec.kernel = Some("/boot/k".into());
    let line = line_of(&spec).unwrap();
    assert_has(&line, &["hpet=off,acpi=off,memory-backend=ram -accel tcg,thread=multi "]);
    assert_has(&line, &["-cpu max,-smap", " acpi=off ", "-smp cpus=1,maxcpus=2 "]);
    spec.vcpus = 2;
    assert_has(&line_of(&spec).unwrap(), &["-smp 2 "]);
}

#[test]
fn what_only_acpi_tells_the_guest_keeps_acpi() {
    let changes: [fn(&mut VmSpec); 6] = [
        |spec| spec.accel = Accel::Kvm,
        |spec| spec.machine = Machine::Microvm,
        |spec| spec.vcpus = 2,
        |spec| spec.vcpus_max = Some(2),
        |spec| spec.disk_slots = 1,
        |spec| spec.memory_max = Some(Mib::new(256)),
    ];
    for change in changes {
        let mut spec = spec();
        spec.kernel = Some("/boot/k".into());
        change(&mut spec);
        let line = line_of(&spec).unwrap();
        assert!(!line.contains("acpi=off"), "{line}");
    }
}

#[test]
fn a_nic_that_receives_no_segments_offers_its_guest_none() {
    let mut spec = spec();
    assert!(!line_of(&spec).unwrap().contains("guest_tso4"));
    spec.nics[0].receives_segments = false;
    assert_has(&line_of(&spec).unwrap(), &[",guest_tso4=off,guest_tso6=off,guest_ecn=off"]);
}

#[test]
fn room_for_hot_add_is_made_only_when_asked_for() {
    let mut spec = spec();
    spec.memory_max = Some(Mib::new(512));
    assert_has(&line_of(&spec).unwrap(), &["-m size=128M,slots=4,maxmem=512M "]);
    spec.machine = Machine::Microvm;
    assert!(matches!(line_of(&spec), Err(VmmError::Unsupported { .. })));
}

#[test]
fn a_comma_in_a_path_is_no_new_option() {
    assert_has(&line_of(&spec()).unwrap(), &["path=/run/a/0,,1.sock,server=on,wait=off"]);
}

#[test]
fn a_client_socket_reconnects_in_the_words_of_its_qemu_version() {
    let mut spec = spec();
    spec.nics[0].mode = SocketMode::SwitchListens;
    assert_has(&line_of(&spec).unwrap(), &["sock,reconnect=1 "]);
    let version = QemuVersion { major: 10, minor: 0 };
    let host = Host { version, tsc_khz: None, qmp_socket: Path::new("/q") };
    let line = arguments(spec.check().unwrap(), host).unwrap().join(" ");
    assert_has(&line, &["sock,reconnect-ms=1000 "]);
}

#[test]
fn microvm_has_mmio_devices_and_under_tcg_old_timers() {
    let mut spec = spec();
    spec.machine = Machine::Microvm;
    let line = line_of(&spec).unwrap();
    assert_has(&line, &["microvm,acpi=on,pit=on,pic=on,rtc=on,memory-backend=ram"]);
    assert_has(&line, &["virtio-mmio.force-legacy=false", "virtio-net-device,netdev=net0"]);
    assert_has(&line, &["virtio-serial-device,id=serial0"]);
    assert!(!line.contains("vectors") && !line.contains("romfile"), "{line}");
}

#[test]
fn microvm_refuses_a_ninth_device() {
    let mut spec = spec();
    spec.machine = Machine::Microvm;
    for i in 1..8 {
        spec.nics.push(NicSpec::new(format!("/{i}"), MacAddr([2, 0, 0, 0, 0, i])));
    }
    let error = line_of(&spec).unwrap_err().to_string();
    assert!(error.contains("9 virtio devices") && error.contains("q35"), "{error}");
}

#[test]
fn the_guest_s_parameters_come_after_those_of_the_machine() {
    let mut spec = spec();
    (spec.kernel, spec.initrd) = (Some("/boot/k".into()), Some("/boot/i".into()));
    spec.cmdline = "tsc=unstable".into();
    let expected = "-kernel /boot/k -initrd /boot/i -append console=ttyS0 8250.nr_uarts=1 \
                    tsc_early_khz=2000000 tsc=reliable no_timer_check acpi=off tsc=unstable ";
    assert_has(&line_of(&spec).unwrap(), &[expected]);
}

#[test]
fn a_command_line_that_outgrows_the_kernel_s_buffer_is_refused() {
    let mut spec = spec();
    (spec.kernel, spec.cmdline) = (Some("/boot/k".into()), "x".repeat(MAX_CMDLINE_BYTES));
    assert!(matches!(line_of(&spec), Err(VmmError::Spec(_))));
}

#[test]
fn the_monitor_is_opened_after_every_other_socket() {
    let line = line_of(&spec()).unwrap();
    let last_socket = line.rfind("-chardev socket").unwrap();
    assert!(line[last_socket..].starts_with("-chardev socket,id=qmp,path=/run/a/qmp "));
}
