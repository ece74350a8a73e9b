//! What outlives the daemon, what is forgotten, and what is set aside.

use super::*;

#[test]
fn a_restart_finds_everything_as_it_was() {
    let rig = Rig::start(vec![network(&["10.0.0.0/29", "fd00::/64"])]);
    for owner in ["z", "a", "m"] {
        rig.add(owner);
    }
    rig.attachments.attach(&rig.switch, "a", "net1", &AttachmentSpec::default()).expect("a second");
    rig.detach("z");
    let before = rig.attachments.list(&rig.switch, None);
    let ports = rig.switch.ports.borrow().clone();
    let rig = rig.restart();
    assert_eq!(rig.attachments.list(&rig.switch, None), before);
    assert_eq!(*rig.switch.ports.borrow(), ports);
    assert_eq!(rig.attachments.list(&rig.switch, Some("a")).attachments.len(), 2);
    assert_eq!(text(&rig.add("new").addresses), "10.0.0.6/29 fd00::6/64", "the walk goes on");
    assert_eq!(rig.owners(), ["a", "m", "a", "new"]);
}

#[test]
fn a_policy_outlives_the_daemon_asked_for_or_changed() {
    let deny = |ports: &str| {
        let rule = format!("deny egress protocol tcp ports {ports}").parse().expect("a rule");
        Some(Policy { rules: vec![rule], ..Policy::default() })
    };
    let rig = Rig::small();
    let asked = AttachmentSpec { policy: deny("25"), ..AttachmentSpec::default() };
    let port = rig.attach("asked", &asked).expect("attaches").port;
    let changed = rig.add("changed").port;
    let (_, before) =
        rig.attachments.set_policy(&rig.switch, &changed, deny("80")).expect("changes");
    assert_eq!(before, None);
    let rig = rig.restart();
    let policy_of = |rig: &Rig, port: &str| rig.switch.ports.borrow()[port].spec.policy.clone();
    assert_eq!((policy_of(&rig, &port), policy_of(&rig, &changed)), (deny("25"), deny("80")));
    let shown = rig.attachments.get(&rig.switch, "changed", "eth0").expect("is attached");
    assert_eq!(shown.policy, deny("80"));
    // Who asks as before finds it; the policy that it has now is its own affair.
    rig.attach("changed", &AttachmentSpec::default()).expect("is attached");
    let (_, before) = rig.attachments.set_policy(&rig.switch, &port, None).expect("changes");
    assert_eq!(before, deny("25"));
    let rig = rig.restart();
    assert_eq!(policy_of(&rig, &port), None);
    let error = rig.attachments.set_policy(&rig.switch, "none", None).expect_err("no such port");
    assert_eq!(error.code, ErrorCode::NotFound);
}

#[test]
fn pins_outlive_the_daemon_and_a_switch_that_has_not_the_pmds() {
    let pinned =
        AttachmentSpec { queue_pairs: Some(2), pmds: vec![1, 0], ..AttachmentSpec::default() };
    let rig = Rig::small();
    let made = rig.attach("a", &pinned).expect("attaches");
    let pins = |rig: &Rig| rig.switch.ports.borrow()[&made.port].spec.pmds.clone();
    assert_eq!((pins(&rig), made.pmds), (vec![1, 0], vec![1, 0]));
    assert_eq!(rig.attach("a", &AttachmentSpec::default()).expect("left open").pmds, [1, 0]);
    let rig = rig.restart();
    assert_eq!(pins(&rig), [1, 0]);

    let Rig { networks, folder, .. } = rig;
    let switch = Notes { pmds: Some(1), ..Notes::default() };
    let attachments = open(&networks, &folder);
    attachments.restore(&switch).expect("reads");
    let rig = Rig { attachments, switch, networks, folder };
    assert_eq!(pins(&rig), [0; 0], "better anywhere than nowhere");
    let error = rig.attach("b", &pinned).expect_err("a new pod can be told");
    assert_eq!((error.code, error.field.as_deref()), (ErrorCode::InvalidValue, Some("pmds")));
    rig.attach("a", &pinned).expect("is attached as before");
    assert_eq!(pins(&rig.restart()), [1, 0], "with more PMDs again");
}

#[test]
fn a_policy_that_cannot_be_kept_changes_nothing() {
    let rig = Rig::small();
    let port = rig.add("a").port;
    fs::remove_dir_all(rig.folder.path().join("attachments")).expect("removes");
    let set = rig.attachments.set_policy(&rig.switch, &port, Some(Policy::default()));
    assert_eq!(set.expect_err("cannot be kept").code, ErrorCode::Internal);
    assert_eq!(rig.switch.ports.borrow()[&port].spec.policy, None);
    let shown = rig.attachments.get(&rig.switch, "a", "eth0").expect("is attached");
    assert_eq!(shown.policy, None);
}

#[test]
fn what_was_not_finished_is_forgotten_and_what_is_damaged_is_set_aside() {
    let rig = Rig::small();
    let (good, other) = (rig.add("good"), rig.add("other"));
    let store = rig.folder.path().join("attachments");
    let path = |attachment: &Attachment| store.join(format!("{}.json", attachment.port));
    let text = fs::read_to_string(path(&good)).expect("reads");
    let renamed = |from: &str, to: &str| {
        let changed = text.replace(from, to);
        assert_ne!(changed, text);
        changed
    };
    fs::write(store.join(".new-x"), "{\"vers").expect("writes");
    let thief = port_name("thief", "eth0");
    for (name, content) in [
        ("cut".to_owned(), text[..40].to_owned()),
        ("empty".to_owned(), String::new()),
        ("moved".to_owned(), text.clone()),
        (good.port.replace('-', "_"), renamed("\"version\":1", "\"version\":2")),
        // The address of another, later.
        (
            thief.clone(),
            renamed("\"sequence\":0", "\"sequence\":9")
                .replace("\"good\"", "\"thief\"")
                .replace(&good.port, &thief),
        ),
    ] {
        fs::write(store.join(format!("{name}.json")), content).expect("writes");
    }
    fs::write(store.join("README"), "not ours").expect("writes");
    let rig = rig.restart();
    assert_eq!(rig.owners(), ["good", "other"]);
    assert_eq!(rig.attachments.get(&rig.switch, "good", "eth0"), Some(good.clone()));
    let mut expected = vec![
        "README".to_owned(),
        "cut.json.bad".into(),
        "empty.json.bad".into(),
        format!("{}.json", good.port),
        format!("{}.json.bad", good.port.replace('-', "_")),
        "moved.json.bad".into(),
        format!("{}.json", other.port),
        format!("{thief}.json.bad"),
    ];
    expected.sort();
    assert_eq!(rig.files(), expected);
    let rig = rig.restart();
    assert_eq!(rig.owners(), ["good", "other"], "what is set aside stays aside");
}

#[test]
fn pods_of_another_boot_are_forgotten() {
    let rig = Rig::small();
    let (old, new) = (rig.add("old"), rig.add("new"));
    let file = rig.folder.path().join(format!("attachments/{}.json", old.port));
    let mut record: serde_json::Value =
        serde_json::from_slice(&fs::read(&file).expect("reads")).expect("JSON");
    record["boot"] = "00000000-0000-0000-0000-000000000000".into();
    fs::write(&file, record.to_string()).expect("writes");
    let rig = rig.restart();
    assert_eq!((rig.owners(), rig.used()), (vec!["new".to_owned()], 1));
    assert_eq!(rig.files(), [format!("{}.json", new.port)]);
}

#[test]
fn a_network_that_changed_keeps_its_pods() {
    let mut rig = Rig::small();
    let made = rig.add("a");
    let mut changed = network(&["10.0.0.0/29"]);
    changed.exclude = vec![crate::config::Excluded::Address(made.addresses[0].addr())];
    rig.networks = vec![changed];
    let mut rig = rig.restart();
    assert_eq!((rig.owners(), rig.used()), (vec!["a".to_owned()], 1));
    rig.networks = vec![NetworkConfig { name: "other".into(), ..network(&["10.0.0.0/29"]) }];
    let rig = rig.restart();
    assert_eq!(rig.attachments.get(&rig.switch, "a", "eth0").as_ref(), Some(&made));
    assert_eq!(rig.add("a"), made, "asking again finds it, though its network is gone");
    assert_eq!(rig.used(), 0, "it is none of this network's");
    rig.detach("a");
    rig.assert_empty();
}

#[test]
fn a_port_that_cannot_be_made_again_keeps_its_addresses() {
    let rig = Rig::small();
    let made = rig.add("a");
    let Rig { networks, folder, .. } = rig;
    let (attachments, switch) = (open(&networks, &folder), Notes::default());
    *switch.refuse.borrow_mut() = Some(ApiError::new(ErrorCode::LimitReached, "full", "-"));
    attachments.restore(&switch).expect("reads");
    let rig = Rig { attachments, switch, networks, folder };
    let found = rig.attachments.get(&rig.switch, "a", "eth0").expect("is there");
    assert_eq!((found.link, &found.addresses), (LinkState::Broken, &made.addresses));
    *rig.switch.refuse.borrow_mut() = None;
    assert_ne!(rig.add("b").addresses, made.addresses);
    rig.detach("a");
}
