//! slipway-cni with the real switch behind the API: what it adds is a port that a VMM can use, and
//! outlives the switch.

mod cni_support;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use cni_support::Plugin;
use dataplane::{
    attach::{AttachConfig, Attachments},
    config::{Config, NetworkConfig},
    control::{
        Control,
        peer::PeerPolicy,
        server::ApiServer,
        socket::ApiSocket,
        switch::{Switch, SwitchConfig},
    },
    pmd::PmdConfig,
    testing::{GuestConfig, GuestListener},
    vhost::socket::{SocketMode, VhostConfig, VhostThread},
};
use serde_json::json;
use slipway_api::LinkState;

/// How long anything may take.
const TIMEOUT: Duration = Duration::from_secs(40);

/// The real switch, served; all of it but the folder ends with the value.
struct Served {
    _server: ApiServer,
    switch: Arc<Switch>,
}

/// A core that this process may run on.
fn core() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    list.unwrap().trim().rsplit([',', '-']).next().unwrap().parse().unwrap()
}

fn serve(folder: &Path) -> Served {
    let config = SwitchConfig {
        cores: vec![core()],
        pmd: PmdConfig { idle_before_sleep_us: 50, ..PmdConfig::default() },
        ports: Config::default().port_defaults(),
        listen: SocketMode::Listen { permissions: 0o600, group: None },
        max_ports: 64,
        fdb_capacity: 1024,
        ageing_s: 300,
    };
    let attachments = AttachConfig {
        networks: vec![NetworkConfig::preset()],
        socket_dir: folder.join("vm"),
        store_dir: Some(folder.join("attachments")),
    };
    let vhost = VhostThread::spawn(VhostConfig::default()).unwrap();
    let switch = Switch::start(config, vhost, [1, 2])
        .unwrap()
        .with_attachments(Attachments::open(attachments).unwrap())
        .unwrap();
    let switch = Arc::new(switch);
    let socket = ApiSocket::bind(&api(folder), None).unwrap();
    let control = Arc::clone(&switch) as Arc<dyn Control>;
    let server = ApiServer::start(socket, PeerPolicy::new(None), control).unwrap();
    Served { _server: server, switch }
}

fn api(folder: &Path) -> PathBuf {
    folder.join("slipwayd.sock")
}

#[test]
fn what_is_added_can_be_used_and_outlives_the_switch() {
    let folder = tempfile::tempdir().unwrap();
    let plugin = Plugin::of(&api(folder.path()));
    let served = serve(folder.path());
    let result = plugin.run("ADD").result();
    let socket = PathBuf::from(result["interfaces"][0]["socketPath"].as_str().unwrap());
    let vmm = GuestListener::bind(&socket).unwrap();
    let mut guest = vmm.accept(GuestConfig::default(), TIMEOUT).unwrap();
    let mac = served.switch.get_attachment("sandbox", "eth0").unwrap().mac;
    assert_eq!(result["interfaces"][0]["mac"], json!(mac));
    drop(served);

    plugin.run("ADD").error(11, "is slipwayd running");
    plugin.run("DEL").error(11, "is slipwayd running");
    let served = serve(folder.path());
    guest.reconnect_over(vmm.accept_stream(TIMEOUT).unwrap()).unwrap();
    guest.sync().unwrap();
    assert_eq!(served.switch.get_attachment("sandbox", "eth0").unwrap().link, LinkState::Up);
    assert_eq!(plugin.run("ADD").result(), result);
    plugin.clone().set("prevResult", result).run("CHECK").nothing();

    plugin.run("DEL").nothing();
    plugin.run("DEL").nothing();
    assert!(served.switch.list_ports().ports.is_empty());
    assert_eq!(served.switch.list_networks().networks[0].used, 0);
    assert_eq!(fs::read_dir(folder.path().join("vm")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(folder.path().join("attachments")).unwrap().count(), 0);
}

#[test]
fn many_pods_at_once_get_addresses_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let served = serve(folder.path());
    let plugin = Plugin::of(&api(folder.path()));
    let addresses: std::collections::BTreeSet<String> = std::thread::scope(|scope| {
        let adds: Vec<_> = (0..16)
            .map(|n| plugin.clone().container(&format!("pod{n}")))
            .map(|plugin| scope.spawn(move || plugin.run("ADD").result()))
            .collect();
        let address = |add: std::thread::ScopedJoinHandle<'_, serde_json::Value>| {
            add.join().unwrap()["ips"][0]["address"].as_str().unwrap().to_owned()
        };
        adds.into_iter().map(address).collect()
    });
    assert_eq!(addresses.len(), 16);
    assert_eq!(served.switch.list_attachments(None).attachments.len(), 16);
}
