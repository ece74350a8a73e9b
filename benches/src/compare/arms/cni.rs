//! Plugins of the Container Network Interface, called as container engines call them.

use std::path::{Path, PathBuf};
use std::process::Command;

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
pub fn call(
    host: &Apart,
    plugin: &Path,
    command: &str,
    pod: &Pod,
    config: &Value,
) -> Result<Value> {
    let what = || format!("{} {command}", plugin.display());
    let mut process = Command::new(plugin);
    process
        .env_clear()
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", &pod.name)
        .env("CNI_NETNS", pod.path())
        .env("CNI_IFNAME", INTERFACE)
        .env("CNI_PATH", PLUGINS);
    let output = host.launchers.output(process, config.to_string().into_bytes());
    let output = output.with_context(|| format!("Failed to run {}", what()))?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{} failed: {}", what(), said.trim());
    if said.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&said).with_context(|| format!("{} answered no JSON: {said}", what()))
}

/// One of Debian's.
#[derive(Debug)]
pub struct Plugin<'a> {
    host: &'a Apart,
    kind: ArmKind,
    program: PathBuf,
    config: Value,
    /// Held: addresses that are in use.
    _leases: TempDir,
}

impl<'a> Plugin<'a> {
    /// Makes what the plugin needs, and its configuration.
    pub fn start(kind: ArmKind, host: &'a Apart) -> Result<Self> {
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
        let program = Path::new(PLUGINS).join(name);
        Ok(Self { host, kind, program, config, _leases: leases })
    }
}

impl Arm for Plugin<'_> {
    fn add(&self, pod: &Pod) -> Result<Option<PathBuf>> {
        let answer = call(self.host, &self.program, "ADD", pod, &self.config)?;
        let has_address = answer["ips"].as_array().is_some_and(|ips| !ips.is_empty());
        ensure!(has_address, "The plugin gave no address: {answer}");
        Ok(None)
    }

    fn remove(&self, pod: &Pod) -> Result<()> {
        call(self.host, &self.program, "DEL", pod, &self.config).map(drop)
    }

    fn stop(self: Box<Self>) -> Result<()> {
        let name = if self.kind == ArmKind::CniBridge { BRIDGE } else { UPLINK };
        Route::open()?.delete(name).with_context(|| format!("Failed to remove {name}"))
    }
}
