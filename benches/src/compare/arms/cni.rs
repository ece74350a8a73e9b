//! Plugins of the Container Network Interface, called as container engines call them.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::kernel::{UPLINK, make_uplink};
use super::{Arm, ArmKind, PLUGINS};
use crate::compare::apart::Apart;
use crate::compare::pod::{INTERFACE, Pod};
use crate::compare::route::Route;

/// What the plugin calls its bridge.
const BRIDGE: &str = "cni0";

/// Runs `plugin` for `pod` and returns its answer, null if it has none.
pub fn call(plugin: &Path, command: &str, pod: &Pod, config: &Value) -> Result<Value> {
    let what = || format!("{} {command}", plugin.display());
    let mut child = Command::new(plugin)
        .env_clear()
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", &pod.name)
        .env("CNI_NETNS", pod.path())
        .env("CNI_IFNAME", INTERFACE)
        .env("CNI_PATH", PLUGINS)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("Failed to run {}", what()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A plugin that ends without reading says why.
        let _ = stdin.write_all(config.to_string().as_bytes());
    }
    let output = child.wait_with_output().with_context(what)?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{} failed: {}", what(), said.trim());
    if said.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&said).with_context(|| format!("{} answered no JSON: {said}", what()))
}

/// One of Debian's.
#[derive(Debug)]
pub struct Plugin {
    kind: ArmKind,
    program: PathBuf,
    config: Value,
    /// Held: addresses that are in use.
    _leases: TempDir,
}

impl Plugin {
    /// Makes what the plugin needs, and its configuration.
    pub fn start(kind: ArmKind, host: &Apart) -> Result<Self> {
        let leases = host.folder("leases")?;
        let (name, mut config) = if kind == ArmKind::CniBridge {
            ("bridge", json!({ "bridge": BRIDGE, "isGateway": true }))
        } else {
            make_uplink(&Route::open()?)?;
            ("macvlan", json!({ "master": UPLINK, "mode": "bridge" }))
        };
        for (key, value) in [
            ("cniVersion", json!("1.0.0")),
            ("name", json!("compare")),
            ("type", json!(name)),
            (
                "ipam",
                json!({
                    "type": "host-local",
                    "dataDir": leases.path(),
                    "ranges": [[{ "subnet": "10.89.0.0/16" }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                }),
            ),
        ] {
            config[key] = value;
        }
        Ok(Self { kind, program: Path::new(PLUGINS).join(name), config, _leases: leases })
    }
}

impl Arm for Plugin {
    fn add(&self, pod: &Pod) -> Result<Option<PathBuf>> {
        let answer = call(&self.program, "ADD", pod, &self.config)?;
        let has_address = answer["ips"].as_array().is_some_and(|ips| !ips.is_empty());
        ensure!(has_address, "The plugin gave no address: {answer}");
        Ok(None)
    }

    fn remove(&self, pod: &Pod) -> Result<()> {
        call(&self.program, "DEL", pod, &self.config).map(drop)
    }

    fn stop(self: Box<Self>) -> Result<()> {
        let name = if self.kind == ArmKind::CniBridge { BRIDGE } else { UPLINK };
        Route::open()?.delete(name).with_context(|| format!("Failed to remove {name}"))
    }
}
