//! What a runtime leaves on its host when all pods are removed: nothing, as it should be.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use slipway_api::PortMode;
use slipway_api::client::Client;
use tokio::time::sleep;

use super::private_host::PrivateHost;

/// Where the kernel shows control groups: one folder for each hierarchy of version 1, or one for all.
const HIERARCHIES: &str = "/sys/fs/cgroup";
/// How long a shim may take to end on a busy machine: after its last container, and after a start that
/// nobody waited for.
const LIMIT: Duration = Duration::from_secs(45);
const PAUSE: Duration = Duration::from_millis(20);

/// The control groups below one of our own, in every hierarchy. Dropping it removes them, if
/// nothing runs there.
#[derive(Debug)]
pub struct Cgroups {
    name: String,
}

impl Cgroups {
    /// Those below `/name`. Nothing is made: runtimes do that.
    pub fn below(name: &str) -> Self {
        Self { name: name.to_owned() }
    }

    /// The path of one of them as runtimes take it.
    pub fn path(&self, child: &str) -> String {
        let path = format!("/{}/{child}", self.name);
        path.trim_end_matches('/').to_owned()
    }

    /// Those that exist below our own.
    fn children(&self) -> Vec<PathBuf> {
        self.roots().iter().flat_map(|root| folders_below(root)).collect()
    }

    fn roots(&self) -> Vec<PathBuf> {
        let top = Path::new(HIERARCHIES);
        let entries = fs::read_dir(top).into_iter().flatten().flatten();
        let hierarchies = entries.map(|entry| entry.path()).chain([top.to_owned()]);
        // Some names are links to a hierarchy of several controllers.
        let roots = hierarchies.filter(|path| !path.is_symlink()).map(|path| path.join(&self.name));
        roots.filter(|root| root.is_dir()).collect()
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for root in self.roots() {
            for group in folders_below(&root).into_iter().chain([root]) {
                if let Err(error) = fs::remove_dir(&group) {
                    eprintln!("Failed to remove the control group {}: {error}", group.display());
                }
            }
        }
    }
}

/// All folders below `root`, the deepest first.
fn folders_below(root: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut found = Vec::new();
    for folder in folders.map(|entry| entry.path()) {
        found.extend(folders_below(&folder));
        found.push(folder);
    }
    found
}

/// Where pods leave something if they do.
#[derive(Debug)]
pub struct Places<'a> {
    /// Where they run.
    pub host: &'a PrivateHost,
    /// Theirs.
    pub cgroups: &'a Cgroups,
    /// The host's own, which stay.
    pub devices: Vec<&'a str>,
    /// On the host; nothing may be in them. They need not exist.
    pub folders: Vec<PathBuf>,
    /// Who gives pods ports and addresses.
    pub switch: Option<&'a Client>,
}

/// What of the pods is still there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remains {
    /// Command lines.
    pub processes: Vec<String>,
    /// Where something is mounted.
    pub mounts: BTreeSet<PathBuf>,
    /// Network devices.
    pub devices: BTreeSet<String>,
    /// Named network namespaces.
    pub namespaces: BTreeSet<String>,
    /// Control groups.
    pub cgroups: Vec<PathBuf>,
    /// Sockets and other files.
    pub files: Vec<PathBuf>,
    /// Ports of the switch, and attachments with their addresses.
    pub ports: Vec<String>,
}

impl Remains {
    /// Looks until there is nothing, for a few seconds at most. containerd and the switch may stay.
    ///
    /// # Errors
    /// The host is gone, or the switch does not answer.
    pub async fn settle(places: &Places<'_>) -> Result<Self> {
        for _ in 0..LIMIT.as_millis() / PAUSE.as_millis() {
            let remains = Self::look(places).await?;
            if remains.is_empty() {
                return Ok(remains);
            }
            sleep(PAUSE).await;
        }
        Self::look(places).await
    }

    async fn look(places: &Places<'_>) -> Result<Self> {
        let Places { host, cgroups, devices, folders, switch } = places;
        // One that ends meanwhile has no command line any more.
        let lines = host.pids()?.into_iter().map(|pid| (pid, host.command_line(pid)));
        let strange = lines.filter(|(_, line)| !line.is_empty() && !is_of_node(line));
        let mut found = host.devices().await?;
        found.retain(|device| !devices.contains(&device.as_str()));
        let files = folders.iter().flat_map(|folder| entries(&host.path(folder)));
        let mut ports = Vec::new();
        if let Some(switch) = switch {
            let attachments = switch.list_attachments(None).await?.attachments;
            ports.extend(attachments.iter().map(|it| format!("{it:?}")));
            // The gateway's is there from the first pod on.
            let of_pods = switch.list_ports().await?.ports.into_iter();
            let of_pods = of_pods.filter(|port| port.spec.mode != PortMode::Tap);
            ports.extend(of_pods.map(|port| port.spec.name));
        }
        Ok(Self {
            processes: strange.map(|(pid, line)| format!("{pid}: {line}")).collect(),
            mounts: host.mounts()?,
            devices: found,
            namespaces: host.namespaces()?,
            cgroups: cgroups.children(),
            files: files.collect(),
            ports,
        })
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    // A folder that does not exist has no entries.
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// Whether it is containerd, the switch, or a tracer of theirs.
fn is_of_node(line: &str) -> bool {
    let program = line.split(' ').next().unwrap_or_default();
    let name = program.rsplit('/').next().unwrap_or_default();
    matches!(name, "containerd" | "slipwayd" | "strace")
}

impl fmt::Display for Remains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("nothing");
        }
        write!(f, "{self:#?}")
    }
}
