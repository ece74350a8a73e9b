//! slipway-cni as a container engine runs it, and a switch for it to talk to.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    collections::BTreeMap,
    env,
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::Arc,
};

use dataplane::{
    config::NetworkConfig,
    control::{Control, fake::FakeSwitch, peer::PeerPolicy, server::ApiServer, socket::ApiSocket},
};
use serde_json::{Map, Value, json};
use slipway_api::PortDefaults;

pub const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The program that `SLIPWAY_CNI` names, as the installed one is built otherwise; cargo's if it names none.
fn program() -> PathBuf {
    let named = env::var_os("SLIPWAY_CNI").map(PathBuf::from);
    named.unwrap_or_else(|| env!("CARGO_BIN_EXE_slipway-cni").into())
}

/// A served fake switch; all of it ends with the value.
pub struct Fake {
    pub switch: Arc<FakeSwitch>,
    pub socket: PathBuf,
    _server: ApiServer,
    _folder: tempfile::TempDir,
}

impl Fake {
    pub fn start() -> Self {
        Self::with_ranges(&["10.88.0.0/16"])
    }

    pub fn with_ranges(ranges: &[&str]) -> Self {
        let ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
        let network = NetworkConfig { ranges, ..NetworkConfig::preset() };
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("api.sock");
        let defaults = PortDefaults {
            socket_dir: "/run/slipway/ports".into(),
            mac_quota: 64,
            max_queue_pairs: 16,
        };
        let switch = Arc::new(FakeSwitch::with_networks(defaults, vec![network]));
        let listening = ApiSocket::bind(&socket, None).unwrap();
        let control = Arc::clone(&switch) as Arc<dyn Control>;
        let server = ApiServer::start(listening, PeerPolicy::new(None), control).unwrap();
        Self { switch, socket, _server: server, _folder: folder }
    }

    pub fn plugin(&self) -> Plugin {
        Plugin::of(&self.socket)
    }
}

/// A call of the plugin, to be changed before it is made.
#[derive(Clone, Debug)]
pub struct Plugin {
    environment: BTreeMap<String, String>,
    config: Map<String, Value>,
    stdin: Option<String>,
}

impl Plugin {
    /// A call about interface `eth0` of `sandbox`, for the slipwayd behind `socket`.
    pub fn of(socket: &Path) -> Self {
        let environment = [
            ("CNI_CONTAINERID", "sandbox"),
            ("CNI_NETNS", "/var/run/netns/pod"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt/cni/bin"),
        ];
        let config = json!({
            "cniVersion": "1.1.0", "name": "slipway", "type": "slipway-cni", "socket": socket,
        });
        let Value::Object(config) = config else { unreachable!("an object was written") };
        let environment = environment.map(|(key, value)| (key.to_owned(), value.to_owned()));
        Self { environment: environment.into(), config, stdin: None }
    }

    pub fn version(self, version: &str) -> Self {
        self.set("cniVersion", json!(version))
    }

    pub fn container(self, id: &str) -> Self {
        self.env("CNI_CONTAINERID", id)
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    pub fn unset(mut self, name: &str) -> Self {
        self.environment.remove(name);
        self
    }

    pub fn set(mut self, key: &str, value: Value) -> Self {
        self.config.insert(key.to_owned(), value);
        self
    }

    /// This text in place of the configuration.
    pub fn stdin(mut self, text: &str) -> Self {
        self.stdin = Some(text.to_owned());
        self
    }

    /// Starts the plugin, whose stdin stays open; no command in the environment if `command` is empty.
    pub fn start(&self, command: &str) -> Child {
        self.start_with(command, Stdio::piped())
    }

    /// Runs the plugin to its end, with `stdin` in place of the configuration.
    pub fn reading(&self, stdin: File, command: &str) -> Answer {
        let child = self.start_with(command, stdin.into());
        Answer { what: command.to_owned(), output: child.wait_with_output().unwrap() }
    }

    fn start_with(&self, command: &str, stdin: Stdio) -> Child {
        let mut plugin = Command::new(program());
        plugin.env_clear().envs(&self.environment);
        if !command.is_empty() {
            plugin.env("CNI_COMMAND", command);
        }
        plugin.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Runs the plugin to its end.
    pub fn run(&self, command: &str) -> Answer {
        let text =
            self.stdin.clone().unwrap_or_else(|| Value::from(self.config.clone()).to_string());
        let mut child = self.start(command);
        // It may have refused before it read.
        let _ = child.stdin.take().unwrap().write_all(text.as_bytes());
        Answer { what: format!("{command} {text}"), output: child.wait_with_output().unwrap() }
    }
}

/// What the plugin said.
#[derive(Debug)]
pub struct Answer {
    what: String,
    output: Output,
}

impl Answer {
    /// The result of a command that has one.
    #[track_caller]
    pub fn result(&self) -> Value {
        assert!(self.output.status.success(), "{self:?}");
        self.json()
    }

    /// It went well, and there is nothing to say.
    #[track_caller]
    pub fn nothing(&self) {
        assert!(self.output.status.success() && self.output.stdout.is_empty(), "{self:?}");
    }

    /// It failed with `code`, whole error document, and `part` in the message.
    #[track_caller]
    pub fn error(&self, code: u32, part: &str) -> Value {
        assert_eq!(self.output.status.code(), Some(1), "{self:?}");
        let error = self.json();
        assert_eq!(error["code"], code, "{self:?}");
        assert!(error["msg"].as_str().is_some_and(|text| text.contains(part)), "{part}: {self:?}");
        assert!(error["details"].as_str().is_some_and(|text| !text.is_empty()), "{self:?}");
        assert!(VERSIONS.iter().any(|version| error["cniVersion"] == *version), "{self:?}");
        error
    }

    fn json(&self) -> Value {
        assert!(self.output.stderr.is_empty(), "{self:?}");
        serde_json::from_slice(&self.output.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}
