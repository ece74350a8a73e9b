//! Whole files of both dialects, as they ship and as operators change them.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use kata_config::{CacheMode, Host, HypervisorKind, KataConfig, Loaded, SharedFs, load, parse};

const HOST: Host = Host { cpus: 8, memory_mib: 16_384 };

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn stock(name: &str) -> Loaded {
    let file = data(name);
    let text = fs::read_to_string(&file).expect("test data");
    parse(&text, &file, HOST).unwrap_or_else(|error| panic!("{error}"))
}

/// Reads a text as `x.toml`.
fn read(text: &str) -> Loaded {
    parse(text, Path::new("x.toml"), HOST).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn config(text: &str) -> KataConfig {
    read(text).config
}

fn refusal(text: &str) -> String {
    match parse(text, Path::new("x.toml"), HOST) {
        Ok(_) => panic!("{text}: was accepted"),
        Err(error) => error.to_string(),
    }
}

fn warnings(text: &str) -> Vec<String> {
    read(text).warnings.iter().map(ToString::to_string).collect()
}

#[test]
fn files_that_ship_load_without_refusal_and_without_warning() {
    for name in ["rs-qemu.toml", "rs-clh.toml", "go-qemu.toml"] {
        let loaded = stock(name);
        assert_eq!(loaded.warnings, [], "{name}");
        let machine = &loaded.config.hypervisor;
        let share = Path::new("/opt/kata/share/kata-containers");
        assert_eq!(machine.image, Some(share.join("kata-containers.img")), "{name}");
        assert!(machine.kernel.as_ref().is_some_and(|path| path.starts_with(share)), "{name}");
        assert_eq!((machine.default_vcpus, machine.default_maxvcpus), (1.0, 8), "{name}");
        let memory = (machine.default_memory_mib, machine.default_maxmemory_mib);
        assert_eq!(memory, (2048, 16_384), "{name}");
        assert_eq!(machine.virtio_fs_cache, CacheMode::Auto, "{name}");
        assert_eq!(machine.shared_fs, SharedFs::VirtioFs, "{name}");
        assert_eq!(loaded.config.agent.dial_timeout, Duration::from_secs(45), "{name}");
        assert_eq!(loaded.config.file.as_deref(), Some(data(name).as_path()));
    }
}

#[test]
fn the_dialects_differ_where_kata_differs() {
    let (rs, clh, go) = (stock("rs-qemu.toml"), stock("rs-clh.toml"), stock("go-qemu.toml"));
    let (rs, clh, go) = (rs.config, clh.config, go.config);
    assert_eq!(rs.hypervisor.kind, HypervisorKind::Qemu);
    assert_eq!(clh.hypervisor.kind, HypervisorKind::CloudHypervisor);
    assert_eq!(rs.hypervisor.overhead_memory_mib, Some(128));
    assert_eq!(go.hypervisor.overhead_memory_mib, None);
    assert_eq!(clh.agent.create_container_timeout, Duration::from_secs(30));
    assert_eq!(go.agent.create_container_timeout, Duration::from_secs(60));
    assert!(rs.runtime.static_sandbox_resource_mgmt && !go.runtime.static_sandbox_resource_mgmt);
    assert!(rs.runtime.sandbox_cgroup_only && !go.runtime.sandbox_cgroup_only);
}

#[test]
fn what_has_no_effect_is_listed_with_its_line() {
    let loaded = read("[hypervisor.qemu]\npath = \"/q\"\nmsize_9p = 8192\n");
    let ignored: Vec<_> = loaded.ignored.iter().map(ToString::to_string).collect();
    assert_eq!(ignored, ["x.toml:3: `hypervisor.qemu.msize_9p` has no effect: there is no 9p"]);
}

#[test]
fn an_unknown_key_is_a_warning_with_its_line_and_the_nearest_one() {
    let told = |text: &str| warnings(text).join("\n");
    assert_eq!(
        told("[hypervisor.qemu]\n\ndefault_vcpu = 2\n"),
        "x.toml:3: `hypervisor.qemu.default_vcpu` is not known and has no effect; did you mean `default_vcpus`?"
    );
    assert_eq!(
        told("[runtime]\nkernel_params = \"quiet\"\n"),
        "x.toml:2: `runtime.kernel_params` is not known and has no effect; it belongs under [hypervisor.*]"
    );
    assert_eq!(
        told("[runtimes]\nenable_debug = true\n"),
        "x.toml:1: `runtimes` is not known and has no effect; did you mean [runtime]?"
    );
    assert_eq!(
        told("[slipway]\nzzzzzz = 1\n"),
        "x.toml:2: `slipway.zzzzzz` is not known and has no effect"
    );
    assert!(told("[agent.other]\nenable_debug = true").contains("`agent.other` has no effect"));
}

#[test]
fn wrong_types_and_ranges_are_refused_with_place_value_and_remedy() {
    assert_eq!(
        refusal("[hypervisor.qemu]\ndefault_memory = \"2G\"\n"),
        "x.toml:2: `hypervisor.qemu.default_memory` = \"2G\" cannot be used: it is a number from 0 to 16777216"
    );
    assert_eq!(
        refusal("[runtime]\n\nlog_level = \"loud\"\n"),
        "x.toml:3: `runtime.log_level` = \"loud\" cannot be used: it is one of trace, debug, info, warn, warning, error, critical, fatal, panic"
    );
    for (text, part) in [
        ("[hypervisor.qemu]\nnetwork_queues = 65", "1 to 64"),
        ("[hypervisor.qemu]\nnetwork_queues = 0", "1 to 64"),
        ("[hypervisor.qemu]\nkernel = \"vmlinux\"", "absolute path"),
        ("[hypervisor.qemu]\nkernel_params = \"a\\nb\"", "line of text"),
        ("[hypervisor.qemu]\nenable_annotations = [\"(\"]", "no regular expression"),
        ("[hypervisor.qemu]\nvalid_hypervisor_paths = [\"a[\"]", "no glob"),
        ("[hypervisor.qemu]\ndefault_vcpus = nan", "-4096 to 4096"),
        ("[hypervisor.qemu]\nenable_debug = 1", "true or false"),
        ("[hypervisor.qemu]\nvirtio_fs_queue_size = 48", "power of two from 16 to 1024"),
        ("[hypervisor.qemu]\nvirtio_fs_extra_args = \"-d\"", "list of texts"),
        ("[hypervisor.qemu]\nvirtio_fs_extra_args = [1]", "list of texts"),
        ("[hypervisor.qemu]\nmachine_type = \"pc\"", "q35, microvm"),
        ("[hypervisor.qemu]\nshared_fs = \"virtio-9p\"", "virtio-fs, none"),
        ("[runtime]\nsandbox_bind_mounts = [\"etc\"]", "no absolute path"),
        ("[runtime]\nhypervisor_name = 7", "line of text"),
        ("[agent.kata]\ndial_timeout = 0", "1 to 86400"),
        ("runtime = 7", "write [runtime]"),
        ("hypervisor.qemu = 7", "write [hypervisor.qemu]"),
    ] {
        let told = refusal(text);
        assert!(told.starts_with("x.toml:") && told.contains(part), "{text}: {told}");
    }
}

#[test]
fn what_changes_a_pod_and_cannot_be_had_is_refused_with_reason() {
    assert_eq!(
        refusal("[hypervisor.qemu]\nconfidential_guest = true\n"),
        "x.toml:2: `hypervisor.qemu.confidential_guest` = true is not supported: confidential guests are not supported: use Kata for these pods"
    );
    assert!(refusal("[factory]\nenable_template = true").contains("factory.enable_template"));
    assert!(
        refusal("[hypervisor.qemu.factory]\nenable_template = true")
            .contains("factory.enable_template")
    );
    assert!(refusal("[agent.kata.mem_agent]\nmem_agent_enable = true").contains("mem_agent"));
    assert!(refusal("[hypervisor.qemu]\ndisable_guest_selinux = false").contains("leave it true"));
}

#[test]
fn the_hypervisor_is_the_one_named_or_the_only_one_or_qemu() {
    let kind = |text: &str| config(text).hypervisor.kind;
    assert_eq!(kind(""), HypervisorKind::Qemu);
    assert_eq!(kind("[hypervisor.clh]\n"), HypervisorKind::CloudHypervisor);
    assert_eq!(kind("[hypervisor.clh]\n[hypervisor.qemu]\n"), HypervisorKind::Qemu);
    let both = "[hypervisor.clh]\npath = \"/c\"\n[hypervisor.qemu]\npath = \"/q\"\n[runtime]\n";
    let named = config(&format!("{both}hypervisor_name = \"clh\""));
    assert_eq!(named.hypervisor.path.as_deref(), Some(Path::new("/c")));
    assert_eq!(named.runtime.hypervisor_name, "clh");
    let beside = "[hypervisor.firecracker]\nnonsense = 1\n[hypervisor.qemu]\n";
    assert_eq!(kind(beside), HypervisorKind::Qemu);
    assert_eq!(warnings(beside), Vec::<String>::new());
}

#[test]
fn another_hypervisor_is_refused_by_name() {
    let told = refusal("\n[hypervisor.dragonball]\npath = \"\"\n");
    assert!(told.starts_with("x.toml:2: `hypervisor.dragonball`"), "{told}");
    let told = refusal("[hypervisor.qemu]\n[runtime]\nhypervisor_name = \"stratovirt\"\n");
    assert!(told.starts_with("x.toml:3: ") && told.contains("\"stratovirt\""), "{told}");
    let told = refusal("[hypervisor.qemu]\n[runtime]\nhypervisor_name = \"clh\"\n");
    assert!(told.contains("there is [hypervisor.qemu], but no [hypervisor.clh]"), "{told}");
}

#[test]
fn an_image_and_an_initrd_contradict_each_other() {
    let both = "[hypervisor.qemu]\nimage = \"/i\"\ninitrd = \"/r\"\n";
    let told = refusal(both);
    assert!(told.starts_with("x.toml:3: `hypervisor.qemu.initrd` = \"/r\""), "{told}");
    let one = config("[hypervisor.qemu]\nimage = \"\"\ninitrd = \"/r\"\n").hypervisor;
    assert_eq!((one.image, one.initrd), (None, Some("/r".into())));
}

#[test]
fn a_pod_in_the_hosts_namespace_needs_the_model_none() {
    let told = refusal("[runtime]\ndisable_new_netns = true\n");
    assert!(told.starts_with("x.toml:2: ") && told.contains("\"none\""), "{told}");
    let runtime = "[runtime]\ndisable_new_netns = true\ninternetworking_model = \"none\"";
    assert!(config(runtime).runtime.disable_new_netns);
}

#[test]
fn numbers_that_mean_the_hosts_are_filled_in_and_larger_ones_lowered() {
    let machine = |text: &str| config(&format!("[hypervisor.qemu]\n{text}")).hypervisor;
    assert_eq!(machine("").default_maxvcpus, 8);
    assert_eq!(machine("default_vcpus = -1").default_vcpus, 8.0);
    assert_eq!(machine("default_vcpus = 0").default_vcpus, 1.0);
    assert_eq!(machine("default_vcpus = 1.5").default_vcpus, 1.5);
    assert_eq!(machine("default_vcpus = 9\ndefault_maxvcpus = 4").default_vcpus, 4.0);
    assert_eq!(machine("default_maxvcpus = 240").default_maxvcpus, 8);
    assert_eq!(machine("default_memory = 0").default_memory_mib, 2048);
    assert_eq!(machine("default_maxmemory = 4096").default_maxmemory_mib, 4096);
    assert_eq!(machine("default_maxmemory = 1").default_maxmemory_mib, 2048);
    assert_eq!(machine("default_maxmemory = 99999").default_maxmemory_mib, 16_384);
    assert_eq!(machine("default_memory = 20000").default_maxmemory_mib, 20_000);
    let told = warnings("[hypervisor.qemu]\ndefault_maxvcpus = 240\n");
    assert_eq!(told, ["default_maxvcpus = 240 was lowered to 8: the host has no more processors"]);
}

#[test]
fn times_are_converted_from_the_unit_of_their_dialect() {
    let agent = |text: &str| config(&format!("[agent.kata]\n{text}")).agent;
    assert_eq!(agent("dial_timeout = 7").dial_timeout, Duration::from_secs(7));
    assert_eq!(agent("reconnect_timeout_ms = 7000").dial_timeout, Duration::from_secs(7));
    assert_eq!(agent("reconnect_timeout_ms = 3000").dial_timeout, Duration::from_secs(45));
    assert_eq!(agent("dial_timeout_ms = 10").dial_timeout, Duration::from_secs(45));
    let both =
        "[runtime]\ncreate_container_timeout = 5\n[agent.kata]\ncreate_container_timeout = 6";
    assert_eq!(config(both).agent.create_container_timeout, Duration::from_secs(6));
}

#[test]
fn what_is_empty_is_not_said() {
    let said = |text: &str| config(&format!("[slipway]\n{text}")).slipway;
    assert_eq!(said("network = \"\"\nvsock_daemon = \"\"\nsocket = \"\""), said(""));
    assert_eq!(said("network = \"blue\"").network.as_deref(), Some("blue"));
}

#[test]
fn drop_ins_are_read_in_lexical_order_each_over_the_last() {
    let folder = tempfile::tempdir().expect("tempdir");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("makes");
        fs::write(path, text).expect("writes");
    };
    write(
        "real/kata.toml",
        "[hypervisor.qemu]\ndefault_memory = 256\nkernel = \"/k\"\nenable_annotations = [\"a\", \"b\"]\n",
    );
    write("real/config.d/20-b.toml", "[hypervisor.qemu]\ndefault_memory = 512\n");
    write(
        "real/config.d/10-a.toml",
        "[hypervisor.qemu]\ndefault_memory = 1024\nenable_annotations = [\"c\"]\n",
    );
    write("real/config.d/30-c.toml.bak", "this is not TOML");
    // What ships is a link, and its drop-ins are where it leads.
    let link = folder.path().join("configuration.toml");
    std::os::unix::fs::symlink("real/kata.toml", &link).expect("links");
    let loaded = load(Some(&link)).unwrap_or_else(|error| panic!("{error}"));
    let machine = &loaded.config.hypervisor;
    assert_eq!(machine.default_memory_mib, 512);
    assert_eq!(machine.kernel.as_deref(), Some(Path::new("/k")));
    assert_eq!(machine.enable_annotations, ["c"]);
    assert_eq!(loaded.config.file.as_deref(), Some(link.as_path()));
    let names: Vec<_> = loaded.files.iter().filter_map(|file| file.file_name()?.to_str()).collect();
    assert_eq!(names, ["configuration.toml", "10-a.toml", "20-b.toml"]);

    write("real/config.d/40-d.toml", "[hypervisor.qemu]\n\ndefault_memory = false\n");
    let told = load(Some(&link)).expect_err("a wrong type").to_string();
    assert!(told.contains("config.d/40-d.toml:3: `hypervisor.qemu.default_memory`"), "{told}");
    write("real/config.d/40-d.toml", "[hypervisor\n");
    let told = load(Some(&link)).expect_err("no TOML").to_string();
    assert!(told.contains("config.d/40-d.toml:1: this is not TOML"), "{told}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().expect("tempdir");
    let missing = folder.path().join("none.toml");
    assert!(load(Some(&missing)).expect_err("missing").to_string().contains("none.toml"));
    let long = folder.path().join("long.toml");
    fs::write(&long, "#".repeat((1 << 20) + 1)).expect("writes");
    assert!(load(Some(&long)).expect_err("long").to_string().contains("1048576"));
    fs::write(&long, [0xff, 0xfe]).expect("writes");
    assert!(load(Some(&long)).is_err());
}

#[test]
fn slipways_sample_says_every_key_that_is_honoured() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/configuration.toml");
    let text = fs::read_to_string(&file).expect("the sample");
    let loaded = parse(&text, &file, HOST).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((loaded.warnings, loaded.ignored), (vec![], vec![]));
    for entry in kata_config::table() {
        // Of two words for one thing the Rust runtime's is shown.
        let is_old_name = entry.dialect == kata_config::Dialect::Go;
        let is_key = entry.table.is_some() && entry.standing == kata_config::Standing::Honoured;
        if !is_key || is_old_name {
            continue;
        }
        let shown = text.lines().any(|line| {
            let line = line.trim_start_matches('#').trim_start();
            line.strip_prefix(&entry.name).is_some_and(|rest| rest.trim_start().starts_with('='))
        });
        assert!(shown, "{:?} {}", entry.table, entry.name);
    }
}

#[test]
fn the_sample_with_every_comment_taken_off_is_right_too() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/configuration.toml");
    let text = fs::read_to_string(&file).expect("the sample");
    // `#key = value` is a default that is shown; `# words` is a comment.
    let shown: Vec<_> = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(key) if key.starts_with(|c: char| c.is_ascii_lowercase()) => key,
            _ => line,
        })
        .filter(|line| !line.starts_with("image ="))
        .collect();
    let loaded = parse(&shown.join("\n"), &file, HOST).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(loaded.warnings, []);
    let config = loaded.config;
    // What is shown as a default is the default.
    let plain = parse("", &file, HOST).expect("nothing").config;
    assert_eq!(config.agent, plain.agent);
    assert_eq!(config.runtime, plain.runtime);
}
