//! What is around a shim: containerd that takes its events, slipwayd's API, and its configuration.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use containerd_shim_protos::api;
use containerd_shim_protos::events::task::TaskOOM;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Events as EventsService, create_events};
use containerd_shim_protos::ttrpc;
use containerd_shim_protos::ttrpc::r#async::{Server, TtrpcContext};
use dataplane::config::NetworkConfig;
use dataplane::control::Control;
use dataplane::control::fake::FakeSwitch;
use dataplane::control::peer::PeerPolicy;
use dataplane::control::server::ApiServer;
use dataplane::control::socket::ApiSocket;
use slipway_api::PortDefaults;
use tokio::sync::watch;

/// What differs from rig to rig.
#[derive(Debug, Default)]
pub struct Setup {
    /// Lines under `[hypervisor.qemu]`, besides the rig's own.
    pub hypervisor: String,
    /// Lines under `[agent.kata]`.
    pub agent: String,
    /// Lines under `[runtime]`.
    pub runtime: String,
    /// Lines under `[slipway]`, besides the rig's own.
    pub slipway: String,
    /// In place of the stand-in.
    pub virtiofsd: Option<PathBuf>,
    /// The switch's range; default 10.88.0.0/16.
    pub range: Option<&'static str>,
}

/// What containerd was told.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub topic: String,
    pub type_url: String,
    pub container: String,
    value: Vec<u8>,
}

impl Event {
    pub fn body<M: Message>(&self) -> M {
        M::parse_from_bytes(&self.value).expect("the message that its topic says")
    }
}

/// containerd's half of the events.
#[derive(Clone, Debug, Default)]
pub struct Recorder(pub watch::Sender<Vec<Event>>);

#[async_trait::async_trait]
impl EventsService for Recorder {
    async fn forward(
        &self,
        _: &TtrpcContext,
        request: ForwardRequest,
    ) -> ttrpc::Result<api::Empty> {
        let envelope = request.envelope.unwrap_or_default();
        assert_eq!(envelope.namespace, "test");
        assert!(envelope.timestamp.is_some());
        let any = envelope.event.unwrap_or_default();
        // The container's id is the first field of all of them.
        let id = TaskOOM::parse_from_bytes(&any.value).expect("an event").container_id;
        let event = Event {
            topic: envelope.topic,
            type_url: any.type_url,
            container: id,
            value: any.value,
        };
        self.0.send_modify(|events| events.push(event));
        Ok(api::Empty::new())
    }
}

/// Serves containerd's end of the events.
pub async fn serve_events(folder: &Path, events: &Recorder) -> Server {
    let address = format!("unix://{}/events.sock", folder.display());
    let service = create_events(Arc::new(events.clone()));
    let mut server = Server::new().bind(&address).unwrap().register_service(service);
    server.start().await.unwrap();
    server
}

/// A switch that is served where the configuration says.
pub fn switch(folder: &Path, range: &str) -> (Arc<FakeSwitch>, ApiServer) {
    let network = NetworkConfig { ranges: vec![range.parse().unwrap()], ..NetworkConfig::preset() };
    let defaults =
        PortDefaults { socket_dir: folder.join("ports"), mac_quota: 64, max_queue_pairs: 16 };
    let switch = Arc::new(FakeSwitch::with_networks(defaults, vec![network]));
    let api = serve_switch(folder, &switch);
    (switch, api)
}

/// Serves the API of `switch` where the configuration says.
pub fn serve_switch(folder: &Path, switch: &Arc<FakeSwitch>) -> ApiServer {
    let socket = ApiSocket::bind(&folder.join("slipwayd.sock"), None).unwrap();
    ApiServer::start(socket, PeerPolicy::new(None), Arc::clone(switch) as Arc<dyn Control>).unwrap()
}

/// Writes the configuration, and the files that it names.
pub fn write_configuration(folder: &Path, setup: &Setup) {
    use std::os::unix::fs::PermissionsExt as _;
    let stand_in = folder.join("virtiofsd");
    let here = folder.display().to_string();
    fs::write(&stand_in, STAND_IN.replace("FOLDER", &here)).unwrap();
    fs::set_permissions(&stand_in, fs::Permissions::from_mode(0o755)).unwrap();
    for file in ["vmlinuz", "initrd"] {
        fs::write(folder.join(file), "not really").unwrap();
    }
    let virtiofsd = setup.virtiofsd.clone().unwrap_or(stand_in);
    let Setup { hypervisor, agent, runtime, slipway, .. } = setup;
    let text = format!(
        "[hypervisor.qemu]\nkernel = \"{here}/vmlinuz\"\ninitrd = \"{here}/initrd\"\n\
         virtio_fs_daemon = \"{}\"\nenable_annotations = [\".*\"]\n{hypervisor}\n\
         [agent.kata]\n{agent}\n[runtime]\n{runtime}\n\
         [slipway]\nsocket = \"{here}/slipwayd.sock\"\nagent_channel = \"serial\"\n{slipway}\n",
        virtiofsd.display()
    );
    fs::write(folder.join("configuration.toml"), text).unwrap();
}

const STAND_IN: &str = r#"#!/bin/sh
case "$1" in --version) echo "virtiofsd 1.13.2"; exit 0;; esac
echo $$ >> "FOLDER/helpers"
echo "Waiting for vhost-user socket connection..." >&2
exec sleep 600
"#;
