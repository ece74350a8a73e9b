//! What pods may say, and what only operators may.

use std::{collections::BTreeMap, path::Path};

use kata_config::{Host, KataConfig, apply_annotations_on, parse};

const HOST: Host = Host { cpus: 8, memory_mib: 16_384 };
const HYPERVISOR: &str = "io.katacontainers.config.hypervisor.";

fn config(hypervisor: &str) -> KataConfig {
    let text = format!("[hypervisor.qemu]\n{hypervisor}\n[slipway]\nvalid_networks = [\"blue-*\"]");
    parse(&text, Path::new("/etc/x.toml"), HOST).expect(&text).config
}

fn apply(config: &KataConfig, pairs: &[(&str, &str)]) -> Result<(KataConfig, Vec<String>), String> {
    let annotations: BTreeMap<_, _> =
        pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    let mut changed = config.clone();
    match apply_annotations_on(&mut changed, &annotations, HOST) {
        Ok(warnings) => Ok((changed, warnings.iter().map(ToString::to_string).collect())),
        Err(error) => {
            assert_eq!(changed, *config, "an error changed something");
            Err(error.to_string())
        }
    }
}

fn hypervisor(config: &KataConfig, pairs: &[(&str, &str)]) -> Result<KataConfig, String> {
    let names: Vec<_> = pairs.iter().map(|(name, _)| format!("{HYPERVISOR}{name}")).collect();
    let pairs: Vec<_> =
        names.iter().zip(pairs).map(|(name, (_, value))| (name.as_str(), *value)).collect();
    apply(config, &pairs).map(|(config, _)| config)
}

#[test]
fn an_annotation_that_is_not_enabled_fails_the_pod_and_names_list_and_file() {
    let strict = config("enable_annotations = [\"kernel_params\"]");
    let told = hypervisor(&strict, &[("default_memory", "4096")]).expect_err("not enabled");
    for part in [
        "io.katacontainers.config.hypervisor.default_memory",
        "[\"kernel_params\"]",
        "/etc/x.toml",
        "not enabled",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    // One that nobody knows needs leave as well, as it may be a newer Kata's.
    assert!(hypervisor(&strict, &[("new_thing", "1")]).is_err());
}

#[test]
fn patterns_match_any_part_of_a_name_unless_they_are_anchored() {
    let part = config("enable_annotations = [\"default_\"]");
    let machine = hypervisor(&part, &[("default_memory", "4096"), ("default_vcpus", "2.5")]);
    let machine = machine.expect("enabled").hypervisor;
    assert_eq!((machine.default_memory_mib, machine.default_vcpus), (4096, 2.5));
    let whole = config("enable_annotations = [\"^default$\"]");
    assert!(hypervisor(&whole, &[("default_memory", "4096")]).is_err());
}

#[test]
fn runtime_and_agent_annotations_need_no_leave() {
    let (changed, _) = apply(
        &config(""),
        &[
            ("io.katacontainers.config.agent.kernel_modules", "e1000e EEE=1; i915 enable_ppgtt=0"),
            ("io.katacontainers.config.agent.container_pipe_size", "65536"),
            ("io.katacontainers.config.runtime.disable_guest_seccomp", "false"),
            ("io.kubernetes.cri.sandbox-memory", "1"),
        ],
    )
    .expect("applies");
    assert_eq!(changed.agent.kernel_modules, ["e1000e EEE=1", "i915 enable_ppgtt=0"]);
    assert_eq!(changed.agent.container_pipe_size, 65_536);
    assert!(!changed.runtime.disable_guest_seccomp);
}

#[test]
fn programs_have_to_match_a_glob_of_the_operators() {
    let open = config(
        "enable_annotations = [\".*\"]\nvalid_hypervisor_paths = [\"/opt/*/bin/qemu-*\"]\nvirtio_fs_daemon = \"/v\"",
    );
    let path = |value: &str| hypervisor(&open, &[("path", value)]);
    let good = path("/opt/a/bin/qemu-x").expect("allowed");
    assert_eq!(good.hypervisor.path.as_deref(), Some(Path::new("/opt/a/bin/qemu-x")));
    for bad in [
        "/bin/sh",
        "/opt/a/b/bin/qemu-x",
        "/opt/a/bin/qemu-x/../../../../bin/sh",
        "/opt/../bin/qemu-x",
        "qemu-x",
        "",
    ] {
        let told = path(bad).expect_err(bad);
        assert!(told.contains("valid_hypervisor_paths = [\"/opt/*/bin/qemu-*\"]"), "{told}");
        assert!(told.contains(&format!("\"{bad}\"")) && told.contains("/etc/x.toml"), "{told}");
    }
    let told = hypervisor(&open, &[("virtio_fs_daemon", "/v")]).expect_err("no list");
    assert!(told.contains("valid_virtio_fs_daemon_paths = []"), "{told}");
}

#[test]
fn a_bad_value_is_refused_with_annotation_and_remedy() {
    let open = config("enable_annotations = [\".*\"]");
    for (name, value, part) in [
        ("default_memory", "2G", "number from 0 to"),
        ("default_memory", "20000", "default_maxmemory allows 16384 MiB"),
        ("default_vcpus", "many", "number from"),
        ("virtio_fs_extra_args", "[1]", "JSON list"),
        ("virtio_fs_cache", "sometimes", "never"),
        ("network_queues", "0", "1 to 64"),
        ("kernel", "vmlinux", "absolute path"),
        ("kernel_params", "a\nb", "line of text"),
        ("enable_iommu", "true", "not passed through"),
        ("rx_rate_limiter_max_rate", "1000", "leave it 0"),
    ] {
        let told = hypervisor(&open, &[(name, value)]).expect_err(name);
        assert!(told.starts_with(&format!("annotation {HYPERVISOR}{name}: ")), "{told}");
        assert!(told.contains(part), "{told}");
    }
    let flag = "io.katacontainers.config.runtime.sandbox_cgroup_only";
    let told = apply(&open, &[(flag, "yes")]).expect_err("no flag");
    assert!(told.contains(flag) && told.contains("true or false"), "{told}");
}

#[test]
fn what_says_off_is_accepted_of_what_would_be_refused() {
    let open = config("enable_annotations = [\".*\"]");
    for (name, value) in [
        ("enable_iommu", "false"),
        ("rx_rate_limiter_max_rate", "0"),
        ("cold_plug_vfio", "no-port"),
    ] {
        assert_eq!(hypervisor(&open, &[(name, value)]).as_ref(), Ok(&open), "{name}");
    }
}

#[test]
fn kernel_parameters_are_added_and_lists_replaced() {
    let open = config(
        "enable_annotations = [\".*\"]\nkernel_params = \"quiet\"\nvirtio_fs_extra_args = [\"-d\"]",
    );
    let changed = hypervisor(
        &open,
        &[("kernel_params", "debug"), ("virtio_fs_extra_args", "[\"--a=1,2\", \"-f\"]")],
    );
    let machine = changed.expect("applies").hypervisor;
    assert_eq!(machine.kernel_params, "quiet debug");
    assert_eq!(machine.virtio_fs_extra_args, ["--a=1,2", "-f"]);
    let plain = hypervisor(&open, &[("virtio_fs_extra_args", "-f, -g")]).expect("applies");
    assert_eq!(plain.hypervisor.virtio_fs_extra_args, ["-f", "-g"]);
}

#[test]
fn a_pods_initrd_takes_the_place_of_the_files_image() {
    let open = config("enable_annotations = [\".*\"]\nimage = \"/i\"");
    let machine = hypervisor(&open, &[("initrd", "/r")]).expect("applies").hypervisor;
    assert_eq!((machine.image, machine.initrd), (None, Some("/r".into())));
    let told = hypervisor(&open, &[("initrd", "/r"), ("image", "/j")]).expect_err("both");
    assert!(told.contains("a guest has one"), "{told}");
}

#[test]
fn a_pod_gets_no_more_vcpus_than_the_operator_allows() {
    let open = config("enable_annotations = [\".*\"]\ndefault_maxvcpus = 4");
    let name = format!("{HYPERVISOR}default_vcpus");
    let (changed, warnings) = apply(&open, &[(&name, "64")]).expect("applies");
    assert_eq!(changed.hypervisor.default_vcpus, 4.0);
    assert_eq!(warnings, ["default_vcpus = 64 was lowered to 4: default_maxvcpus allows no more"]);
}

#[test]
fn an_annotation_that_nobody_knows_is_a_warning_with_the_nearest_one() {
    let (_, warnings) =
        apply(&config(""), &[("io.katacontainers.config.agent.kernel_module", "x")]).expect("fine");
    assert_eq!(
        warnings,
        [
            "annotation io.katacontainers.config.agent.kernel_module: it is not known and has no effect; did you mean io.katacontainers.config.agent.kernel_modules?"
        ]
    );
    let (_, warnings) = apply(&config(""), &[("example.org/whatever", "x")]).expect("fine");
    assert!(warnings.is_empty());
}

#[test]
fn a_network_has_to_be_one_of_those_that_pods_may_choose() {
    let network = |name: &str| apply(&config(""), &[("io.slipway.network", name)]);
    let (changed, _) = network("blue-7").expect("allowed");
    assert_eq!(changed.slipway.network.as_deref(), Some("blue-7"));
    let told = network("red").expect_err("not allowed");
    assert!(told.contains("valid_networks = [\"blue-*\"]"), "{told}");
}

#[test]
fn a_pod_cannot_leave_its_configuration() {
    for name in
        ["io.katacontainers.config_path", "io.katacontainers.config.runtime.hypervisor_name"]
    {
        let told = apply(&config(""), &[(name, "/etc/other.toml")]).expect_err(name);
        assert!(told.contains("RuntimeClass"), "{told}");
    }
}
