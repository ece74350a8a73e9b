//! The sandbox's cgroup on the host: everything that runs for a pod is charged to the pod.
//!
//! The path is the container's `cgroupsPath` as the engine chose it (`/kubepods/.../ID`, or
//! `slice:prefix:name` for systemd). VMM, helpers and shim join the sandbox's cgroup; containers of
//! the pod need none on the host, their limits hold inside the guest.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use libcgroups::common::{AnyCgroupManager, CgroupConfig, CgroupManager as _, CgroupSetup};
use nix_of_libcgroups::unistd::Pid;
use serde::{Deserialize, Serialize};

/// Which cgroup, in a form that survives a crash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupPath {
    /// `cgroupsPath` of the OCI specification.
    path: PathBuf,
    /// The sandbox.
    id: String,
    is_systemd: bool,
}

impl CgroupPath {
    /// The cgroup of sandbox `id`; without a path the engine wants none, and ours is `/slipway/ID`.
    pub fn of(path: Option<&Path>, id: &str) -> Self {
        let path = path.map_or_else(|| Path::new("/slipway").join(id), Path::to_owned);
        let text = path.to_string_lossy();
        let is_systemd = text.matches(':').count() == 2 && !text.starts_with('/');
        Self { path, id: id.to_owned(), is_systemd }
    }

    /// Kata's cgroup outside the pod's, for `sandbox_cgroup_only = false`: what runs for a pod is not
    /// charged to it.
    pub fn overhead(id: &str) -> Self {
        let path = Path::new("/kata_overhead").join(id);
        Self { path, id: id.to_owned(), is_systemd: false }
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
        self.manager()?.add_task(Pid::from_raw(pid)).with_context(|| {
            format!("Failed to put process {pid} in the cgroup {}", self.path.display())
        })
    }

    /// Kills every process in the cgroup and removes it. May be called again.
    ///
    /// # Errors
    /// A process has not ended yet.
    pub fn remove(&self) -> Result<()> {
        self.manager()?
            .remove()
            .with_context(|| format!("Failed to remove the cgroup {}", self.path.display()))
    }
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
}
