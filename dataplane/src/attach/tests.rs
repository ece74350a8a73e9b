//! Attachments over a switch of notes, with and without files.

mod restart;

use std::cell::RefCell;
use std::fs;

use slipway_api::PortDefaults;
use tempfile::TempDir;

use super::*;

/// A switch that has no ports but their names, and fails when it is told to.
#[derive(Debug, Default)]
struct Notes {
    ports: RefCell<BTreeMap<String, PodPort>>,
    refuse: RefCell<Option<ApiError>>,
    /// How many PMDs there are, if that matters.
    pmds: Option<u32>,
    /// MAC addresses that ports made by hand have.
    strangers: RefCell<Vec<Mac>>,
}

impl PodPorts for Notes {
    fn open_pod(&self, port: PodPort) -> Result<(), ApiError> {
        let defaults =
            PortDefaults { socket_dir: "/unused".into(), mac_quota: 64, max_queue_pairs: 8 };
        let spec = port.spec.clone().apply(&defaults)?;
        if let Some(refusal) = self.refuse.borrow().clone() {
            return Err(refusal);
        }
        let is_unknown = |pmd: &&u32| self.pmds.is_some_and(|pmds| **pmd >= pmds);
        if let Some(pmd) = spec.pmds.iter().find(is_unknown) {
            return Err(ApiError::invalid("pmds", pmd, "no such PMD", "-"));
        }
        if spec.mac.is_some_and(|mac| self.strangers.borrow().contains(&mac)) {
            return Err(ApiError::new(ErrorCode::Conflict, "taken", "-").about("mac", ""));
        }
        let before = self.ports.borrow_mut().insert(spec.name, port);
        assert_eq!(before, None, "a port is opened once");
        Ok(())
    }

    fn close_pod(&self, name: &str) {
        self.ports.borrow_mut().remove(name);
    }

    fn set_policy(
        &self,
        name: &str,
        policy: Option<Policy>,
    ) -> Result<(Port, Option<Policy>), ApiError> {
        let mut ports = self.ports.borrow_mut();
        let port = ports.get_mut(name).ok_or_else(|| ApiError::not_found("port", name))?;
        let before = std::mem::replace(&mut port.spec.policy, policy);
        let defaults =
            PortDefaults { socket_dir: "/unused".into(), mac_quota: 64, max_queue_pairs: 8 };
        let shown = Port {
            id: 0,
            spec: port.spec.clone().apply(&defaults)?,
            link: LinkState::Waiting,
            reason: None,
            features: Vec::new(),
            rings: Vec::new(),
            memory: Vec::new(),
        };
        Ok((shown, before))
    }

    fn pod_link(&self, name: &str) -> Option<LinkState> {
        self.ports.borrow().contains_key(name).then_some(LinkState::Waiting)
    }
}

/// Attachments, their switch, and the folder that outlives both.
struct Rig {
    attachments: Attachments,
    switch: Notes,
    networks: Vec<NetworkConfig>,
    folder: TempDir,
}

fn network(ranges: &[&str]) -> NetworkConfig {
    let ranges = ranges.iter().map(|range| range.parse().expect("a prefix")).collect();
    NetworkConfig { ranges, ..NetworkConfig::preset() }
}

impl Rig {
    fn start(networks: Vec<NetworkConfig>) -> Self {
        let folder = tempfile::tempdir().expect("tempdir");
        let attachments = open(&networks, &folder);
        Self { attachments, switch: Notes::default(), networks, folder }
    }

    fn small() -> Self {
        Self::start(vec![network(&["10.0.0.0/29"])])
    }

    /// The daemon is killed, and another takes over.
    fn restart(self) -> Self {
        let Self { networks, folder, .. } = self;
        let (attachments, switch) = (open(&networks, &folder), Notes::default());
        attachments.restore(&switch).expect("reads");
        Self { attachments, switch, networks, folder }
    }

    fn attach(&self, owner: &str, spec: &AttachmentSpec) -> Result<Attachment, ApiError> {
        self.attachments.attach(&self.switch, owner, "eth0", spec).map(|(made, _)| made)
    }

    fn add(&self, owner: &str) -> Attachment {
        self.attach(owner, &AttachmentSpec::default()).expect(owner)
    }

    fn detach(&self, owner: &str) {
        self.attachments.detach(&self.switch, owner, "eth0").expect("detaches");
    }

    fn owners(&self) -> Vec<String> {
        let list = self.attachments.list(&self.switch, None).attachments;
        list.into_iter().map(|attachment| attachment.owner).collect()
    }

    fn files(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.folder.path().join("attachments"))
            .expect("lists")
            .map(|entry| entry.expect("lists").file_name().into_string().expect("text"))
            .collect();
        names.sort();
        names
    }

    fn used(&self) -> u64 {
        self.attachments.networks().networks[0].used
    }

    /// Nothing is taken, kept or open.
    fn assert_empty(&self) {
        assert_eq!((self.used(), self.files().len(), self.switch.ports.borrow().len()), (0, 0, 0));
        assert_eq!(self.owners(), [""; 0]);
    }
}

fn open(networks: &[NetworkConfig], folder: &TempDir) -> Attachments {
    let config = AttachConfig {
        networks: networks.to_vec(),
        socket_dir: folder.path().join("vm"),
        store_dir: Some(folder.path().join("attachments")),
    };
    Attachments::open(config).expect("opens")
}

fn asking(addresses: &[&str]) -> AttachmentSpec {
    let addresses = addresses.iter().map(|text| text.parse().expect("an address")).collect();
    AttachmentSpec { addresses, ..AttachmentSpec::default() }
}

fn text<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

#[test]
fn an_attachment_says_all_that_a_guest_must_be_told() {
    let mut config = network(&["10.0.0.0/24", "fd00::/64"]);
    config.routes = vec![crate::config::RouteConfig {
        destination: "10.9.0.0/16".parse().expect("a prefix"),
        gateway: None,
    }];
    config.dns.nameservers = vec!["10.0.0.1".parse().expect("an address")];
    let rig = Rig::start(vec![config]);
    let got = rig.add("sandbox");
    assert_eq!(text(&got.addresses), "10.0.0.2/24 fd00::2/64");
    assert_eq!(got.mac.to_string(), "0a:58:0a:00:00:02");
    assert_eq!((got.mode, got.mtu, got.queue_pairs), (PortMode::Connect, 1500, 1));
    assert_eq!(got.socket, rig.folder.path().join(format!("vm/{}.sock", got.port)));
    let routes = got.routes.iter().map(|route| (route.destination.to_string(), route.gateway));
    let gateway = |text: &str| Some(text.parse().expect("an address"));
    assert_eq!(
        routes.collect::<Vec<_>>(),
        [
            ("0.0.0.0/0".to_owned(), gateway("10.0.0.1")),
            ("::/0".to_owned(), gateway("fd00::1")),
            ("10.9.0.0/16".to_owned(), None),
        ]
    );
    assert_eq!(got.neighbours.len(), 2);
    assert!(got.neighbours.iter().all(|neighbour| neighbour.mac == gateway_mac(0)));
    assert_eq!(text(&got.dns.nameservers), "10.0.0.1");
    let port = rig.switch.ports.borrow()[&got.port].clone();
    assert_eq!(port.addresses, got.addresses.iter().map(IpNet::addr).collect::<Vec<_>>());
    assert_eq!((port.spec.anti_spoof, port.spec.mtu), (Some(true), Some(1500)));
    assert_eq!(port.user, "eth0 of sandbox");
}

#[test]
fn without_a_gateway_there_is_no_way_out() {
    let mut config = network(&["10.0.0.0/24"]);
    config.host_gateway = false;
    let rig = Rig::start(vec![config]);
    let got = rig.add("a");
    assert_eq!(text(&got.addresses), "10.0.0.1/24");
    assert!(got.routes.is_empty() && got.neighbours.is_empty());
}

#[test]
fn a_gateway_that_is_another_guest_is_found_by_arp() {
    let mut config = network(&["10.0.0.0/24"]);
    config.host_gateway = false;
    config.gateways = Some(vec!["10.0.0.9".parse().expect("an address")]);
    let got = Rig::start(vec![config]).add("a");
    assert_eq!((got.routes.len(), got.neighbours.len()), (1, 0));
}

#[test]
fn asking_again_finds_it_and_asking_otherwise_names_the_field() {
    let rig = Rig::small();
    let labels = BTreeMap::from([("pod".to_owned(), "web".to_owned())]);
    let spec = AttachmentSpec { labels, mtu: Some(1400), ..asking(&["10.0.0.4"]) };
    let (made, created) =
        rig.attachments.attach(&rig.switch, "a", "eth0", &spec).expect("attaches");
    assert_eq!(created, Created::New);
    let again = rig.attachments.attach(&rig.switch, "a", "eth0", &spec).expect("finds");
    assert_eq!(again, (made.clone(), Created::Existing));
    let open = AttachmentSpec {
        addresses: Vec::new(),
        mac: Some(made.mac),
        mtu: None,
        queue_pairs: Some(1),
        ..spec.clone()
    };
    assert_eq!(rig.attach("a", &open).expect("what was left open was chosen"), made);
    for (field, other) in [
        (
            "addresses",
            AttachmentSpec { addresses: asking(&["10.0.0.5"]).addresses, ..spec.clone() },
        ),
        ("mac", AttachmentSpec { mac: Some(Mac([2, 0, 0, 0, 0, 1])), ..spec.clone() }),
        ("mtu", AttachmentSpec { mtu: Some(1300), ..spec.clone() }),
        ("queue_pairs", AttachmentSpec { queue_pairs: Some(2), ..spec.clone() }),
        ("policy", AttachmentSpec { policy: Some(Policy::default()), ..spec.clone() }),
        ("pmds", AttachmentSpec { pmds: vec![0], ..spec.clone() }),
        ("labels.pod", AttachmentSpec { labels: BTreeMap::new(), ..spec.clone() }),
    ] {
        let error = rig.attach("a", &other).expect_err(field);
        assert_eq!((error.code, error.field.as_deref()), (ErrorCode::Conflict, Some(field)));
    }
    assert_eq!(rig.attach("a", &spec).expect("nothing has changed"), made);
}

#[test]
fn another_network_is_a_conflict_too() {
    let other = NetworkConfig { name: "b".into(), vni: 7, ..network(&["10.0.0.0/29"]) };
    let rig = Rig::start(vec![network(&["10.0.0.0/29"]), other]);
    rig.add("a");
    let spec = AttachmentSpec { network: Some("b".into()), ..AttachmentSpec::default() };
    assert_eq!(rig.attach("a", &spec).expect_err("attached").field.as_deref(), Some("network"));
    let got = rig.attach("b", &spec).expect("attaches");
    assert_eq!((got.vni, text(&got.addresses)), (7, "10.0.0.2/29".to_owned()));
    assert_eq!(got.mac, rig.attachments.get(&rig.switch, "a", "eth0").expect("is there").mac);
    let spec = AttachmentSpec { network: Some("c".into()), ..AttachmentSpec::default() };
    let error = rig.attach("c", &spec).expect_err("no such network");
    assert!(error.remedy.contains("default, b"), "{error:?}");
}

#[test]
fn a_full_network_says_so_and_a_freed_address_is_given_last() {
    let rig = Rig::small();
    for owner in ["a", "b", "c", "d", "e"] {
        rig.add(owner);
    }
    let error = rig.attach("f", &AttachmentSpec::default()).expect_err("full");
    assert_eq!(error.code, ErrorCode::LimitReached);
    assert_eq!(
        error.message,
        "Network default has no free address: 5 of the 5 of 10.0.0.0/29 are in use"
    );
    let freed = rig.attachments.get(&rig.switch, "b", "eth0").expect("is there").addresses;
    rig.detach("b");
    assert_eq!(rig.add("f").addresses, freed);
    assert_eq!(rig.owners(), ["a", "c", "d", "e", "f"]);
}

#[test]
fn addresses_that_cannot_be_had_are_refused_with_who_has_them() {
    let rig = Rig::small();
    rig.attach("a", &asking(&["10.0.0.3"])).expect("attaches");
    for (addresses, code, part) in [
        (&["10.0.0.3"][..], ErrorCode::Conflict, "eth0 of a has this address"),
        (&["10.0.0.1"], ErrorCode::InvalidValue, "gateway"),
        (&["10.0.0.7"], ErrorCode::InvalidValue, "its ranges are 10.0.0.0/29"),
        (&["10.1.0.2"], ErrorCode::InvalidValue, "its ranges are 10.0.0.0/29"),
        (&["10.0.0.4", "10.0.0.5"], ErrorCode::InvalidValue, "one address of each range"),
    ] {
        let error = rig.attach("b", &asking(addresses)).expect_err("refused");
        assert_eq!((error.code, error.field.as_deref()), (code, Some("addresses")), "{error:?}");
        assert!(error.message.contains(part), "{error:?}");
    }
    assert_eq!((rig.used(), rig.owners().len()), (1, 1));
}

#[test]
fn a_family_that_is_full_leaves_the_other_as_it_was() {
    let rig = Rig::start(vec![network(&["fd00::/64", "10.0.0.0/30"])]);
    rig.add("a");
    rig.attach("b", &AttachmentSpec::default()).expect_err("IPv4 is full");
    rig.attach("b", &asking(&["fd00::3"])).expect_err("IPv4 is full");
    rig.detach("a");
    let got = rig.attach("b", &asking(&["fd00::3"])).expect("fd00::3 was given back");
    assert_eq!(text(&got.addresses), "fd00::3/64 10.0.0.2/30");
}

#[test]
fn a_mac_that_somebody_has_is_refused_or_passed_over() {
    let rig = Rig::small();
    let first = rig.add("a").mac;
    for (mac, part) in [(first, "eth0 of a has"), (gateway_mac(0), "The gateway has")] {
        let spec = AttachmentSpec { mac: Some(mac), ..AttachmentSpec::default() };
        let error = rig.attach("b", &spec).expect_err("taken");
        assert_eq!((error.code, error.field.as_deref()), (ErrorCode::Conflict, Some("mac")));
        assert!(error.message.contains(part), "{error:?}");
    }
    rig.switch.strangers.borrow_mut().push(Mac([0x0a, 0x58, 10, 0, 0, 5]));
    // Its refusals took no address for good, but the walk went on.
    let got = rig.attach("b", &asking(&["10.0.0.5"])).expect("another MAC is found");
    assert_eq!(got.mac.to_string(), "0a:59:0a:00:00:05");
}

#[test]
fn whatever_fails_leaves_nothing_behind() {
    let rig = Rig::small();
    *rig.switch.refuse.borrow_mut() = Some(ApiError::new(ErrorCode::LimitReached, "full", "-"));
    let error = rig.attach("a", &AttachmentSpec::default()).expect_err("no port");
    assert_eq!(error.message, "full");
    rig.assert_empty();
    *rig.switch.refuse.borrow_mut() = None;
    let spec = AttachmentSpec { queue_pairs: Some(9), ..AttachmentSpec::default() };
    assert_eq!(rig.attach("a", &spec).expect_err("pairs").field.as_deref(), Some("queue_pairs"));
    let spec = AttachmentSpec { mtu: Some(1501), ..AttachmentSpec::default() };
    assert_eq!(rig.attach("a", &spec).expect_err("mtu").field.as_deref(), Some("mtu"));
    rig.assert_empty();

    // Root writes wherever it likes, but not into a folder that is gone.
    let store = rig.folder.path().join("attachments");
    fs::remove_dir(&store).expect("is empty");
    let error = rig.attach("a", &AttachmentSpec::default()).expect_err("no folder");
    assert_eq!(error.code, ErrorCode::Internal);
    assert!(error.message.contains("Failed to write") && error.remedy.contains("run_dir"));
    fs::create_dir(&store).expect("makes");
    rig.assert_empty();
    rig.add("a");
    rig.detach("a");
    rig.assert_empty();
}

#[test]
fn an_attachment_whose_file_stays_stays_attached() {
    let rig = Rig::small();
    let made = rig.add("a");
    let file = rig.folder.path().join(format!("attachments/{}.json", made.port));
    fs::remove_file(&file).expect("is there");
    fs::create_dir(&file).expect("something that remove_file(3) does not remove");
    let error = rig.attachments.detach(&rig.switch, "a", "eth0").expect_err("cannot be removed");
    assert_eq!(error.code, ErrorCode::Internal);
    assert_eq!((rig.owners(), rig.used()), (vec!["a".to_owned()], 1));
    fs::remove_dir(&file).expect("is empty");
    rig.detach("a");
    rig.assert_empty();
}

#[test]
fn detaching_again_or_what_never_was_is_done() {
    let rig = Rig::small();
    let made = rig.add("a");
    drop(std::os::unix::net::UnixListener::bind(&made.socket).expect("a VMM listened"));
    rig.detach("a");
    rig.detach("a");
    rig.detach("never");
    assert!(!made.socket.exists(), "a socket that a killed VMM left is removed");
    rig.assert_empty();
}

#[test]
fn port_names_are_short_whatever_the_owner_and_differ_with_it() {
    let id = "4f2a9c81d3e0".repeat(10);
    let name = port_name(&id, "eth0");
    assert!(name.starts_with("4f2a9c81d3e0-") && name.len() == 29, "{name}");
    assert_eq!(port_name(&id, "eth0"), name);
    assert_ne!(port_name(&id, "eth1"), name);
    assert_ne!(port_name(&id[1..], "eth0"), name);
    assert!(port_name("a", "e").len() < 29);
}
