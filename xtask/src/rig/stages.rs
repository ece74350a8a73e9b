//! The stages of a pod's start, under the names of the literature.
//!
//! ```text
//!  asked            plugin starts       shim starts                              pod is there
//!    |---- NetNS -----|----- AddCNI ------|-+- Cgroup, AttachIf, StartVM, Guest -| ... |
//!       containerd      plugin, containerd  `- the shim's own question is AddCNI, too
//! ```
//! The shim notes its own stages in a file of the pod's, the plugin its start on the attachment.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use super::Node;

/// Where the shim keeps what it knows of a pod.
const PODS: &str = "/run/slipway/pods";
/// Their order. Others come after them.
const KNOWN: [&str; 5] = ["NetNS", "AddCNI", "Cgroup", "AttachIf", "StartVM"];

/// What the shim noted of a start.
#[derive(Debug, Deserialize)]
struct Noted {
    /// In milliseconds since 1970.
    began_ms: u64,
    stages_ms: BTreeMap<String, f64>,
}

impl Node {
    /// The stages of the start of `pod`, which was asked for at `asked`: names and milliseconds, in
    /// their order. None if the runtime notes none.
    ///
    /// # Errors
    /// Shim or plugin did not note what they should have.
    pub async fn stages(&self, pod: &str, asked: SystemTime) -> Result<Vec<(String, f64)>> {
        if !self.runtime().has_vm {
            return Ok(Vec::new());
        }
        // Nobody's plugin notes nothing: all up to the shim's start is the first stage.
        let mut plugin = None;
        if let Some(slipwayd) = self.slipwayd() {
            let attachments = slipwayd.client().list_attachments(Some(pod)).await?.attachments;
            let attachment = attachments.first().context("The pod has no port")?;
            let noted = attachment.labels.get("cni-started-ms").and_then(|ms| ms.parse().ok());
            plugin = Some(noted.context("slipway-cni did not note its start")?);
        }
        let asked = asked.duration_since(UNIX_EPOCH)?.as_millis() as u64;
        let path = Path::new(PODS).join(pod).join("stages.json");
        let text = fs::read_to_string(self.host().path(&path));
        let text = text.with_context(|| format!("Failed to read {}", path.display()))?;
        stages(asked, plugin, &text)
    }
}

/// The first two stages are containerd's: up to the plugin's start, and from there to the shim's.
fn stages(asked_ms: u64, plugin_ms: Option<u64>, noted: &str) -> Result<Vec<(String, f64)>> {
    let mut noted: Noted = serde_json::from_str(noted).context("The shim's note of the stages")?;
    let plugin_ms = plugin_ms.unwrap_or(noted.began_ms);
    let between =
        |from: u64, to: u64| Duration::from_millis(to.saturating_sub(from)).as_secs_f64() * 1e3;
    *noted.stages_ms.entry("AddCNI".to_owned()).or_default() += between(plugin_ms, noted.began_ms);
    noted.stages_ms.insert("NetNS".to_owned(), between(asked_ms, plugin_ms));
    let order = |name: &str| KNOWN.iter().position(|it| *it == name).unwrap_or(KNOWN.len());
    let mut stages: Vec<_> = noted.stages_ms.into_iter().collect();
    stages.sort_by_key(|(name, _)| order(name));
    Ok(stages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_come_in_their_order_and_begin_with_containerds() {
        let noted = r#"{"began_ms": 1090, "stages_ms":
            {"StartVM": 400.0, "Cgroup": 1.0, "AddCNI": 5.0, "Guest": 9.0, "AttachIf": 2.0}}"#;
        let stages = stages(1000, Some(1030), noted).unwrap();
        let stages: Vec<_> = stages.iter().map(|(name, ms)| (name.as_str(), *ms)).collect();
        let expected = [
            ("NetNS", 30.0),
            ("AddCNI", 65.0),
            ("Cgroup", 1.0),
            ("AttachIf", 2.0),
            ("StartVM", 400.0),
            ("Guest", 9.0),
        ];
        assert_eq!(stages, expected);
    }
}
