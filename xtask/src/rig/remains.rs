//! What a runtime leaves on its host when all pods are removed: nothing, as it should be.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;

use super::private_host::PrivateHost;

/// Where the kernel shows control groups: one folder for each hierarchy of version 1, or one for all.
const HIERARCHIES: &str = "/sys/fs/cgroup";
/// How long a shim may take to end after its last container.
const LIMIT: Duration = Duration::from_secs(15);
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
}

impl Remains {
    /// Looks until there is nothing, for a few seconds at most. `devices` are the host's own, and so
    /// are containerd and the switch.
    ///
    /// # Errors
    /// The host is gone.
    pub async fn settle(host: &PrivateHost, cgroups: &Cgroups, devices: &[&str]) -> Result<Self> {
        for _ in 0..LIMIT.as_millis() / PAUSE.as_millis() {
            let remains = Self::look(host, cgroups, devices).await?;
            if remains.is_empty() {
                return Ok(remains);
            }
            sleep(PAUSE).await;
        }
        Self::look(host, cgroups, devices).await
    }

    async fn look(host: &PrivateHost, cgroups: &Cgroups, devices: &[&str]) -> Result<Self> {
        // One that ends meanwhile has no command line any more.
        let lines = host.pids()?.into_iter().map(|pid| (pid, host.command_line(pid)));
        let strange = lines.filter(|(_, line)| !line.is_empty() && !is_of_node(line));
        let mut found = host.devices().await?;
        found.retain(|device| !devices.contains(&device.as_str()));
        Ok(Self {
            processes: strange.map(|(pid, line)| format!("{pid}: {line}")).collect(),
            mounts: host.mounts()?,
            devices: found,
            namespaces: host.namespaces()?,
            cgroups: cgroups.children(),
        })
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
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
