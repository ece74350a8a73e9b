//! `[hypervisor.*]` and `[factory]`.

use super::{Deed::*, Key, ListRule, Scope, Set::*};
use crate::model::{CacheMode, MachineType, RootfsType, SharedFs};

const fn key(name: &'static str, deed: super::Deed, note: &'static str) -> Key {
    Key::new(Scope::Hypervisor, name, deed, note)
}

/// An annotation of Kata's whose key is named otherwise, or missing.
const fn annotation(name: &'static str, deed: super::Deed, note: &'static str) -> Key {
    Key::only_annotation(Scope::Hypervisor, name, deed, note)
}

/// The largest memory that is taken for meant: 16 TiB in MiB.
const MAX_MIB: i64 = 16 << 20;

const VFIO: &str = "host devices are not passed through: leave it off";
const ONLY_VFIO: &str = "only for host devices, which are not passed through";
const COCO: &str = "confidential guests are not supported: use Kata for these pods";
const ONLY_COCO: &str = "only for confidential guests";
const SWAP: &str = "there is no swap in the guest: leave it off";
const ONLY_SWAP: &str = "only for swap in the guest, which is off";
const NET_RATE: &str = "a pod's NIC is not limited yet: leave it 0";
const DISK_RATE: &str = "a pod's disks are not limited: leave it 0";
const ONLY_RATE: &str = "only with a rate, which has to be 0";
const HASH: &str = "files are not compared with hashes: protect them by their permissions";
const TEMPLATE: &str = "VMs are not cloned from a template: leave it off";
const ONLY_TEMPLATE: &str = "only for templates, which are off";
const GPU: &str = "there are no remote hypervisors";

pub(super) static KEYS: &[Key] = &[
    // The VMM.
    key(
        "path",
        Honoured(Path(|c, path| c.hypervisor.path = path)),
        "the VMM's program; default: by its usual name from PATH",
    )
    .annotated()
    .guarded("valid_hypervisor_paths", |c| &c.hypervisor.valid_hypervisor_paths),
    key(
        "valid_hypervisor_paths",
        Honoured(List(ListRule::Globs, |c| &mut c.hypervisor.valid_hypervisor_paths)),
        "globs for the annotation `path`",
    ),
    key("ctlpath", Ignored, "no VMM that is supported has a control program").annotated(),
    key("valid_ctlpaths", Ignored, "as ctlpath"),
    key("jailer_path", Ignored, "no VMM that is supported has a jailer").annotated(),
    key("valid_jailer_paths", Ignored, "as jailer_path"),
    key(
        "enable_annotations",
        Honoured(List(ListRule::Regexes, |c| &mut c.hypervisor.enable_annotations)),
        "regular expressions; as in Kata one that matches a part of the name is enough",
    ),
    key(
        "enable_debug",
        Honoured(Flag(|c| &mut c.hypervisor.enable_debug)),
        "the guest's kernel says more on its console, whose end is in the message of a failed start",
    ),
    key("log_level", Ignored, "enable_debug chooses").rs(),
    key("hypervisor_loglevel", Ignored, "enable_debug chooses").go(),
    key(
        "extra_monitor_socket",
        Refused(&[]),
        "who reaches a monitor owns the VM: there is none besides the shim's",
    ),
    key("seccomp_sandbox", Ignored, "QEMU's seccomp filter is always on").rs(),
    key("seccompsandbox", Ignored, "QEMU's seccomp filter is always on").go(),
    key("disable_seccomp", Ignored, "the VMM's seccomp filter is always on"),
    key("rootless", Refused(&[]), "the VMM runs as the shim's user: leave it false").annotated(),
    key("rootless_user", Ignored, "only with rootless").rs(),
    key("disable_selinux", Ignored, "the VMM has the label that the host's policy gives it"),
    key(
        "disable_guest_selinux",
        Only("true"),
        "no SELinux policy is loaded in the guest: leave it true",
    ),
    key("selinux_label", Refused(&[]), "no SELinux policy is loaded in the guest").rs(),
    key("disable_nesting_checks", Ignored, "nothing is done differently on a nested host"),
    key("disable_nested_virtualization", Ignored, "the host decides whether guests may nest"),
    // What boots.
    key("kernel", Honoured(Path(|c, path| c.hypervisor.kernel = path)), "the guest's kernel")
        .annotated(),
    key(
        "image",
        Honoured(Path(|c, path| c.hypervisor.image = path)),
        "the guest's root file system; not with initrd",
    )
    .annotated(),
    key(
        "initrd",
        Honoured(Path(|c, path| c.hypervisor.initrd = path)),
        "the guest's initial RAM disk; not with image",
    )
    .annotated(),
    key(
        "rootfs_type",
        Honoured(Choice(RootfsType::NAMES, |c, name| {
            RootfsType::from_name(name).map(|kind| c.hypervisor.rootfs_type = kind)
        })),
        "the file system in image",
    ),
    key("vm_rootfs_driver", Ignored, "image is a virtio-blk disk").rs(),
    key("disable_image_nvdimm", Ignored, "image is a virtio-blk disk").annotated(),
    key(
        "kernel_params",
        Honoured(Words(|c| &mut c.hypervisor.kernel_params)),
        "put after slipway's own; an annotation's are put after the file's",
    )
    .annotated(),
    key(
        "kernel_verity_params",
        Refused(&[]),
        "the image is not verified: use an image without dm-verity",
    )
    .annotated(),
    key("firmware", Refused(&[]), "the kernel is started directly: leave it empty").annotated(),
    key("firmware_volume", Refused(&[]), "the kernel is started directly: leave it empty"),
    key("pflashes", Refused(&[]), "the kernel is started directly: leave it empty"),
    annotation("path_hash", Refused(&[]), HASH),
    annotation("hypervisorctl_hash", Refused(&[]), HASH),
    annotation("jailer_hash", Refused(&[]), HASH),
    annotation("kernel_hash", Refused(&[]), HASH),
    annotation("image_hash", Refused(&[]), HASH),
    annotation("initrd_hash", Refused(&[]), HASH),
    annotation("firmware_hash", Refused(&[]), HASH),
    annotation("asset_hash_type", Ignored, "only with a hash"),
    // The machine.
    key(
        "machine_type",
        Honoured(Choice(MachineType::NAMES, |c, name| {
            MachineType::from_name(name).map(|machine| c.hypervisor.machine_type = machine)
        })),
        "of QEMU; Cloud Hypervisor has one machine",
    )
    .annotated(),
    key(
        "machine_accelerators",
        Refused(&[]),
        "the machine's properties are slipway's: leave it empty",
    )
    .annotated(),
    key(
        "cpu_features",
        Refused(&["pmu=off"]),
        "the processor's features are slipway's: leave it empty, or Kata's pmu=off",
    )
    .annotated(),
    key(
        "default_vcpus",
        Honoured(Number(-4096.0, 4096.0, |c, count| c.hypervisor.default_vcpus = count)),
        "of a pod without limits: 0 is 1, negative all of the host's, never more than default_maxvcpus",
    )
    .annotated(),
    key(
        "default_maxvcpus",
        Honoured(Whole(0, 4096, |c, count| c.hypervisor.default_maxvcpus = count)),
        "0 is as many as the host has, which is also the most",
    )
    .annotated_as("default_max_vcpus"),
    key(
        "default_memory",
        Honoured(Whole(0, MAX_MIB, |c, mib| c.hypervisor.default_memory_mib = mib)),
        "MiB of a pod without limits; 0 is 2048",
    )
    .annotated(),
    key(
        "default_maxmemory",
        Honoured(Whole(0, MAX_MIB, |c, mib| c.hypervisor.default_maxmemory_mib = mib.into())),
        "MiB; 0 is as much as the host has, which is also the most",
    ),
    key(
        "overhead_vcpus",
        Honoured(Number(0.0, 4096.0, |c, count| c.hypervisor.overhead_vcpus = Some(count))),
        "added to a pod's limit; without this key default_vcpus is, as the Go runtime does",
    )
    .rs(),
    key(
        "overhead_memory",
        Honoured(Whole(0, MAX_MIB, |c, mib| c.hypervisor.overhead_memory_mib = Some(mib))),
        "MiB added to a pod's limit; without this key default_memory is, as the Go runtime does",
    )
    .rs(),
    key("memory_slots", Ignored, "memory is added in at most 4 steps, for as many containers with a limit").annotated(),
    key("memory_offset", Ignored, "only for NVDIMM").annotated(),
    key("enable_virtio_mem", Ignored, "memory is added as DIMMs").annotated(),
    key(
        "enable_hugepages",
        Refused(&[]),
        "guest memory is of ordinary pages: leave it false",
    )
    .annotated(),
    key("hugepage_type", Ignored, "only with enable_hugepages").rs(),
    key(
        "enable_mem_prealloc",
        Refused(&[]),
        "guest memory comes from the host when it is first used: leave it false",
    )
    .annotated(),
    key("reclaim_guest_freed_memory", Ignored, "memory that was used once stays the guest's"),
    key("file_mem_backend", Ignored, "guest memory is a memfd, shared already").annotated(),
    key("valid_file_mem_backends", Ignored, "as file_mem_backend"),
    key("enable_guest_swap", Refused(&[]), SWAP).annotated(),
    key("enable_swap", Refused(&[]), SWAP).annotated(),
    key("guest_swap_path", Ignored, ONLY_SWAP).rs(),
    key("guest_swap_size_percent", Ignored, ONLY_SWAP).rs(),
    key("guest_swap_create_threshold_secs", Ignored, ONLY_SWAP).rs(),
    key("enable_numa", Refused(&[]), "a guest has one NUMA node: leave it off").go(),
    key("numa_mapping", Refused(&[]), "a guest has one NUMA node: leave it empty").go(),
    key("default_bridges", Ignored, "devices have slots of their own; how many disks may be added, `disk_slots` of [slipway] says"),
    key("entropy_source", Ignored, "guests seed from the processor and from the VMM's default")
        .annotated(),
    key("valid_entropy_sources", Ignored, "as entropy_source"),
    key("use_legacy_serial", Ignored, "the console is a serial port already").annotated(),
    key("guest_memory_dump_path", Refused(&[]), "a panicked guest is not dumped: leave it empty"),
    key("guest_memory_dump_paging", Ignored, "only with guest_memory_dump_path"),
    key(
        "guest_hook_path",
        Honoured(Text(|c| &mut c.hypervisor.guest_hook_path)),
        "told to the agent",
    )
    .annotated(),
    // Shared files.
    key(
        "shared_fs",
        Honoured(Choice(SharedFs::NAMES, |c, name| {
            SharedFs::from_name(name).map(|kind| c.hypervisor.shared_fs = kind)
        })),
        "9p, nydus and the inline kind are not there",
    )
    .annotated(),
    key(
        "virtio_fs_daemon",
        Honoured(Path(|c, path| c.hypervisor.virtio_fs_daemon = path)),
        "default: virtiofsd from PATH",
    )
    .annotated()
    .guarded("valid_virtio_fs_daemon_paths", |c| &c.hypervisor.valid_virtio_fs_daemon_paths),
    key(
        "valid_virtio_fs_daemon_paths",
        Honoured(List(ListRule::Globs, |c| &mut c.hypervisor.valid_virtio_fs_daemon_paths)),
        "globs for the annotation `virtio_fs_daemon`",
    ),
    key(
        "virtio_fs_extra_args",
        Honoured(List(ListRule::Any, |c| &mut c.hypervisor.virtio_fs_extra_args)),
        "given to virtiofsd; as an annotation it lets pods choose what virtiofsd may do",
    )
    .annotated(),
    key(
        "virtio_fs_cache",
        Honoured(Choice(CacheMode::NAMES, |c, name| {
            CacheMode::from_name(name).map(|mode| c.hypervisor.virtio_fs_cache = mode)
        })),
        "default never, as in the Rust runtime",
    )
    .annotated(),
    key(
        "virtio_fs_queue_size",
        Honoured(PowerOfTwo(16, 1024, |c, size| c.hypervisor.virtio_fs_queue_size = size)),
        "descriptors; default 1024",
    ),
    key(
        "virtio_fs_cache_size",
        Refused(&[]),
        "there is no DAX window: leave it 0",
    )
    .annotated(),
    key("virtio_fs_is_dax", Refused(&[]), "there is no DAX window: leave it false").rs(),
    key("msize_9p", Ignored, "there is no 9p").annotated(),
    // Block devices.
    key(
        "disable_block_device_use",
        Honoured(Flag(|c| &mut c.hypervisor.disable_block_device_use)),
        "default false: a container's root on a block device is a disk of the VM; true mounts it on the host and shares it",
    )
    .annotated(),
    key("block_device_driver", Ignored, "block devices are virtio-blk: a container cannot tell")
        .annotated(),
    key("block_device_aio", Ignored, "the VMM's default"),
    key("block_device_cache_set", Ignored, "the VMM's default").annotated(),
    key("block_device_cache_direct", Ignored, "the VMM's default").annotated(),
    key("block_device_cache_noflush", Ignored, "a guest's flush is always obeyed").annotated(),
    key(
        "block_device_logical_sector_size",
        Refused(&["512"]),
        "disks have the sectors of their host device: leave it 0",
    )
    .annotated_as("blk_logical_sector_size"),
    key(
        "block_device_physical_sector_size",
        Refused(&["512"]),
        "disks have the sectors of their host device: leave it 0",
    )
    .annotated_as("blk_physical_sector_size"),
    key("enable_iothreads", Ignored, "disks are served by the VMM's own threads").annotated(),
    key("indep_iothreads", Ignored, "disks are served by the VMM's own threads"),
    key("queue_size", Ignored, "of disks: the VMM's default").rs()
        .annotated_as("block_device_queue_size"),
    key("num_queues", Ignored, "of disks: the VMM's default").rs()
        .annotated_as("block_device_num_queues"),
    key("disk_rate_limiter_bw_max_rate", Refused(&[]), DISK_RATE),
    key("disk_rate_limiter_bw_one_time_burst", Ignored, ONLY_RATE),
    key("disk_rate_limiter_ops_max_rate", Refused(&[]), DISK_RATE),
    key("disk_rate_limiter_ops_one_time_burst", Ignored, ONLY_RATE),
    key(
        "enable_vhost_user_store",
        Refused(&[]),
        "disks of vhost-user are not supported: leave it off",
    )
    .annotated(),
    key("vhost_user_store_path", Ignored, "only with enable_vhost_user_store").annotated(),
    key("valid_vhost_user_store_paths", Ignored, "only with enable_vhost_user_store"),
    key(
        "vhost_user_reconnect_timeout_sec",
        Ignored,
        "for disks; NICs always connect anew",
    )
    .go(),
    // Network.
    key(
        "network_queues",
        Honoured(Whole(1, 64, |c, pairs| c.hypervisor.network_queues = pairs)),
        "queue pairs of a NIC that neither slipway-cni nor the DAN file asks for otherwise; default 1. Kata has no such annotation",
    )
    .rs()
    .annotated(),
    key("disable_vhost_net", Ignored, "there is no vhost-net: packets go through slipwayd")
        .annotated(),
    key("rx_rate_limiter_max_rate", Refused(&[]), NET_RATE).annotated(),
    key("tx_rate_limiter_max_rate", Refused(&[]), NET_RATE).annotated(),
    key("net_rate_limiter_bw_max_rate", Refused(&[]), NET_RATE).go(),
    key("net_rate_limiter_bw_one_time_burst", Ignored, ONLY_RATE).go(),
    key("net_rate_limiter_ops_max_rate", Refused(&[]), NET_RATE).go(),
    key("net_rate_limiter_ops_one_time_burst", Ignored, ONLY_RATE).go(),
    // Host devices.
    key("enable_iommu", Refused(&[]), VFIO).annotated(),
    key("enable_iommu_platform", Refused(&[]), VFIO).annotated(),
    key("hot_plug_vfio", Refused(&["no-port"]), VFIO).go().annotated(),
    key("cold_plug_vfio", Refused(&["no-port"]), VFIO).annotated(),
    key("hotplug_vfio_on_root_bus", Ignored, ONLY_VFIO).annotated(),
    key("pcie_root_port", Ignored, ONLY_VFIO).annotated(),
    key("pcie_switch_port", Ignored, ONLY_VFIO).annotated(),
    annotation("default_gpus", Refused(&[]), GPU),
    annotation("default_gpu_model", Refused(&[]), GPU),
    // Confidential guests.
    key("confidential_guest", Refused(&[]), COCO),
    key("sev_snp_guest", Refused(&[]), COCO),
    key("sev_guest_policy", Ignored, ONLY_COCO),
    key("snp_guest_policy", Ignored, ONLY_COCO),
    key("snp_id_block", Ignored, ONLY_COCO),
    key("snp_id_auth", Ignored, ONLY_COCO),
    key("snp_certs_path", Ignored, ONLY_COCO),
    key("tdx_quote_generation_service_socket_port", Ignored, ONLY_COCO),
    key("qgs_port", Ignored, ONLY_COCO).rs(),
    key("measurement_algo", Ignored, ONLY_COCO),
    key("guest_pre_attestation", Refused(&[]), COCO),
    key("initdata", Refused(&[]), COCO),
    annotation("cc_init_data", Refused(&[]), COCO),
];

const fn factory(name: &'static str, deed: super::Deed, note: &'static str) -> Key {
    Key::new(Scope::Factory, name, deed, note)
}

pub(super) static FACTORY: &[Key] = &[
    factory("enable_template", Refused(&[]), TEMPLATE),
    factory("template_path", Ignored, ONLY_TEMPLATE),
    factory("boot_to_be_template", Refused(&[]), TEMPLATE).rs(),
    factory("boot_from_template", Refused(&[]), TEMPLATE).rs(),
    factory("memory_path", Ignored, ONLY_TEMPLATE).rs(),
    factory("device_state_path", Ignored, ONLY_TEMPLATE).rs(),
    factory("memory_restore_mode", Ignored, ONLY_TEMPLATE).rs(),
    factory("vm_cache_number", Refused(&[]), "there is no cache of VMs: leave it 0").go(),
    factory("vm_cache_endpoint", Ignored, "only with vm_cache_number").go(),
];
