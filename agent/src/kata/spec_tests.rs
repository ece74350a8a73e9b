use kata_agent_protocol::protobuf::MessageField;

use super::*;

fn smallest() -> oci::Spec {
    let process = oci::Process {
        Args: vec!["true".to_owned()],
        Capabilities: MessageField::some(oci::LinuxCapabilities::default()),
        ..oci::Process::default()
    };
    oci::Spec {
        Process: MessageField::some(process),
        Root: MessageField::some(oci::Root { Path: "/r".to_owned(), ..oci::Root::default() }),
        Linux: MessageField::some(oci::Linux::default()),
        ..oci::Spec::default()
    }
}

#[test]
fn the_smallest_specification_is_one_that_libraries_read() {
    let config = config(&smallest()).unwrap();
    let spec: oci_spec::runtime::Spec = serde_json::from_value(config.clone()).unwrap();
    assert_eq!(spec.process().as_ref().unwrap().cwd().to_str(), Some("/"));
    assert_eq!(config["process"]["env"], json!([DEFAULT_PATH]));
    assert!(config["linux"].get("resources").is_none(), "{config}");
}

#[test]
fn what_a_bundle_cannot_do_without_is_asked_for_by_name() {
    for (what, take) in [
        ("process", (|spec: &mut oci::Spec| spec.Process.clear()) as fn(&mut oci::Spec)),
        ("root", |spec| spec.Root.clear()),
        ("Linux part", |spec| spec.Linux.clear()),
        ("arguments", |spec| spec.Process.mut_or_insert_default().Args.clear()),
        ("capabilities", |spec| spec.Process.mut_or_insert_default().Capabilities.clear()),
    ] {
        let mut spec = smallest();
        take(&mut spec);
        let error = config(&spec).expect_err(what);
        assert!(error.to_string().contains(what), "{error}");
    }
}

#[test]
fn limits_that_are_not_set_are_left_out_and_unlimited_swap_is_no_limit() {
    let resources = oci::LinuxResources {
        Memory: MessageField::some(oci::LinuxMemory {
            Limit: 64 << 20,
            Swap: -1,
            ..Default::default()
        }),
        CPU: MessageField::some(oci::LinuxCPU { Quota: -1, Shares: 2, ..Default::default() }),
        ..Default::default()
    };
    let expected = json!({ "memory": { "limit": 64 << 20 }, "cpu": { "shares": 2, "quota": -1 } });
    assert_eq!(super::resources(&resources), expected);
}

#[test]
fn only_start_container_hooks_are_kept() {
    let hook = |path: &str| oci::Hook { Path: path.to_owned(), ..Default::default() };
    let mut spec = smallest();
    spec.Hooks = MessageField::some(oci::Hooks {
        Prestart: vec![hook("/host")],
        StartContainer: vec![hook("/guest")],
        ..Default::default()
    });
    let expected = json!({ "startContainer": [{ "path": "/guest" }] });
    assert_eq!(config(&spec).unwrap()["hooks"], expected);
}

#[test]
fn seccomp_is_refused_rather_than_left_out() {
    let mut spec = smallest();
    spec.Linux.mut_or_insert_default().Seccomp = MessageField::some(oci::LinuxSeccomp {
        DefaultAction: "SCMP_ACT_ERRNO".to_owned(),
        ..Default::default()
    });
    let error = config(&spec).unwrap_err().to_string();
    assert!(error.contains("disable_guest_seccomp"), "{error}");
}
