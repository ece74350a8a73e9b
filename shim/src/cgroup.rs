//! The sandbox's cgroup on the host: everything that runs for a pod is charged to the pod.
//!
//! The path is the container's `cgroupsPath` as the engine chose it (`/kubepods/.../ID`, or
//! `slice:prefix:name` for systemd). VMM, helpers and shim join the sandbox's cgroup; containers of
//! the pod need none on the host, their limits hold inside the guest.
//!
//! Where the engine chooses no path, the sandbox's cgroup is in a folder of ours, which is made with the
//! first pod and goes with the last. Pods do not agree on which they are: `rmdir` refuses a folder with
//! cgroups in it, and who finds the folder gone while it makes its cgroup begins anew.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use libcgroups::common::{AnyCgroupManager, CgroupConfig, CgroupManager as _, CgroupSetup};
use nix_of_libcgroups::unistd::Pid;
use serde::{Deserialize, Serialize};

/// How often a pod tries to make its cgroup while others remove the folder that it is in. They do so once
/// each, and only if the pod has nothing in it yet.
const TRIES: usize = 50;

/// Which cgroup, in a form that survives a crash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupPath {
    /// `cgroupsPath` of the OCI specification.
    path: PathBuf,
    /// The sandbox.
    id: String,
    is_systemd: bool,
    /// It is in a folder of ours.
    #[serde(default)]
    is_ours: bool,
}

impl CgroupPath {
    /// The cgroup of sandbox `id`; without a path the engine wants none, and ours is `/slipway/ID`.
    pub fn of(path: Option<&Path>, id: &str) -> Self {
        let Some(path) = path else { return Self::in_folder("/slipway", id) };
        let text = path.to_string_lossy();
        let is_systemd = text.matches(':').count() == 2 && !text.starts_with('/');
        Self { path: path.to_owned(), id: id.to_owned(), is_systemd, is_ours: false }
    }

    /// Kata's cgroup outside the pod's, for `sandbox_cgroup_only = false`: what runs for a pod is not
    /// charged to it.
    pub fn overhead(id: &str) -> Self {
        Self::in_folder("/kata_overhead", id)
    }

    fn in_folder(folder: &str, id: &str) -> Self {
        let path = Path::new(folder).join(id);
        Self { path, id: id.to_owned(), is_systemd: false, is_ours: true }
    }

    fn manager(&self) -> Result<AnyCgroupManager> {
        let config = CgroupConfig {
            cgroup_path: self.path.clone(),
            systemd_cgroup: self.is_systemd,
            container_name: self.id.clone(),
        };
        libcgroups::common::create_cgroup_manager(config)
            .with_context(|| format!("Failed to use the cgroup {}", self.path.display()))
    }

    /// Makes the cgroup and puts `pid` in it; what the process starts from then on is there too.
    ///
    /// # Errors
    /// The cgroup file system's or systemd's, with the path.
    pub fn join(&self, pid: u32) -> Result<()> {
        let pid = i32::try_from(pid).context("A process id beyond 2^31")?;
        let join = || {
            self.manager()?.add_task(Pid::from_raw(pid)).with_context(|| {
                format!("Failed to put process {pid} in the cgroup {}", self.path.display())
            })
        };
        let mut joined = join();
        let tries = if self.is_ours { TRIES } else { 1 };
        for _ in 1..tries {
            if joined.is_ok() {
                break;
            }
            joined = join();
        }
        joined
    }

    /// Kills every process in the cgroup and removes it. May be called again.
    ///
    /// # Errors
    /// A process has not ended yet.
    pub fn remove(&self) -> Result<()> {
        self.manager()?
            .remove()
            .with_context(|| format!("Failed to remove the cgroup {}", self.path.display()))?;
        if self.is_ours
            && let Some(folder) = self.path.parent()
        {
            for folder in everywhere(folder) {
                // Other pods may be in it, and that is all that can be wrong.
                std::fs::remove_dir(folder).ok();
            }
        }
        Ok(())
    }
}

/// A cgroup's folder in every hierarchy that has it.
fn everywhere(cgroup: &Path) -> Vec<PathBuf> {
    let root = Path::new(libcgroups::common::DEFAULT_CGROUP_ROOT);
    let path = cgroup.strip_prefix("/").unwrap_or(cgroup);
    let hierarchies = std::fs::read_dir(root).into_iter().flatten().flatten();
    let folders = hierarchies.map(|entry| entry.path()).chain([root.to_owned()]);
    folders.map(|hierarchy| hierarchy.join(path)).filter(|folder| folder.is_dir()).collect()
}

/// Where a process was before it joined a sandbox's cgroup.
#[derive(Clone, Debug, Default)]
pub struct Origin(Vec<PathBuf>);

impl Origin {
    /// Where this process is now, by `/proc/self/cgroup` (cgroups(7)).
    pub fn of_self() -> Self {
        let table = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self(table.lines().filter_map(procs_file).collect())
    }

    /// Goes back there, so that the sandbox's cgroup is empty. Where that fails the process stays,
    /// and removing the cgroup says so.
    pub fn restore(&self) {
        for file in &self.0 {
            if let Err(error) = std::fs::write(file, std::process::id().to_string()) {
                tracing::debug!(file = %file.display(), %error, "this cgroup is not ours to go back to");
            }
        }
    }
}

/// The `cgroup.procs` of a line `number:controllers:path`.
fn procs_file(line: &str) -> Option<PathBuf> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, fields.next()?);
    let root = Path::new(libcgroups::common::DEFAULT_CGROUP_ROOT);
    let unified = root.join("unified");
    let hierarchy = match controllers.strip_prefix("name=").unwrap_or(controllers) {
        "" if unified.is_dir() => unified,
        "" => root.to_owned(),
        name => root.join(name),
    };
    let file = hierarchy.join(path.trim_start_matches('/')).join(libcgroups::common::CGROUP_PROCS);
    file.exists().then_some(file)
}

/// Whether the host's main hierarchy is version 2.
pub fn is_v2() -> bool {
    matches!(libcgroups::common::get_cgroup_setup(), Ok(CgroupSetup::Unified))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_s_form_of_a_path_is_recognised() {
        let systemd =
            CgroupPath::of(Some(Path::new("kubepods-pod1.slice:cri-containerd:abc")), "abc");
        assert!(systemd.is_systemd);
        assert!(!CgroupPath::of(Some(Path::new("/kubepods/pod1/abc")), "abc").is_systemd);
        assert!(!CgroupPath::of(Some(Path::new("/a:b:c")), "abc").is_systemd);
    }

    #[test]
    fn without_a_path_the_sandbox_has_one_of_its_own() {
        assert_eq!(CgroupPath::of(None, "abc").path, Path::new("/slipway/abc"));
    }

    #[test]
    fn pods_that_come_and_go_at_once_share_a_folder_that_goes_with_the_last() {
        let folder = format!("/slipway-unit-{}", std::process::id());
        let pod = |number: usize| {
            let cgroup = CgroupPath::in_folder(&folder, &format!("pod{number}"));
            for _ in 0..30 {
                let mut process = std::process::Command::new("sleep").arg("60").spawn().unwrap();
                cgroup.join(process.id()).unwrap();
                process.kill().unwrap();
                process.wait().unwrap();
                cgroup.remove().unwrap();
            }
        };
        std::thread::scope(|scope| {
            let pods: Vec<_> = (0..3).map(|number| scope.spawn(move || pod(number))).collect();
            assert!(pods.into_iter().all(|pod| pod.join().is_ok()));
        });
        assert_eq!(everywhere(Path::new(&folder)), Vec::<PathBuf>::new());
    }

    #[test]
    fn the_engine_s_own_folder_stays() {
        let folder = format!("/slipway-unit-engine-{}", std::process::id());
        let cgroup = CgroupPath::of(Some(&Path::new(&folder).join("pod")), "pod");
        let mut process = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        cgroup.join(process.id()).unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
        cgroup.remove().unwrap();
        let left = everywhere(Path::new(&folder));
        left.iter().for_each(|folder| std::fs::remove_dir(folder).unwrap());
        assert!(!left.is_empty());
    }
}
