//! The control group of one container.
//!
//! In the guest this is cgroup v2. libcgroups knows v1 too, which is what some machines have that
//! the tests run on.

use std::fs;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result};
use libcgroups::common::{
    AnyCgroupManager, CgroupConfig, CgroupManager as _, CgroupSetup, ControllerOpt, FreezerState,
    create_cgroup_manager, get_cgroup_setup,
};
use libcgroups::stats::Stats;
use oci_spec::runtime::LinuxResources;

use super::error::Refusal;
use super::sys;

/// Where the guest's cgroups are.
const ROOT: &str = "/sys/fs/cgroup";

/// Whether the main hierarchy is version 2, as it is in the guest.
pub fn is_v2() -> bool {
    matches!(get_cgroup_setup(), Ok(CgroupSetup::Unified))
}

/// A container's cgroup, by its path from the root of all.
#[derive(Debug, Clone)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// The cgroup for the path of an OCI specification.
    ///
    /// There is no systemd in the guest: `SLICE:PREFIX:NAME`, as it is written for systemd, is the
    /// group `PREFIX-NAME` in the group `SLICE`.
    ///
    /// # Errors
    /// A path that climbs out of its place.
    pub fn new(given: &str, container: &str) -> Result<Self> {
        let path = match given.split(':').collect::<Vec<_>>()[..] {
            [""] => format!("slipway/{container}"),
            [slice, prefix, name] => format!("{slice}/{prefix}-{name}"),
            _ => given.to_owned(),
        };
        let path = Path::new("/").join(path.trim_start_matches('/'));
        let is_plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
        if path == Path::new("/") || !path.components().all(is_plain) {
            return Err(Refusal::invalid(format!("The cgroup path '{given}' names no group")));
        }
        Ok(Self { path })
    }

    /// The path from the root of all groups, with a leading slash.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The group's folder under cgroup v2.
    pub fn folder(&self) -> PathBuf {
        let relative = self.path.strip_prefix("/").unwrap_or(&self.path);
        Path::new(ROOT).join(relative)
    }

    /// What the container has used.
    pub fn stats(&self) -> Result<Stats> {
        self.manager()?
            .stats()
            .with_context(|| format!("Failed to read the usage of {}", self.path.display()))
    }

    /// Stops all processes where they are, or lets them go on.
    pub fn freeze(&self, is_frozen: bool) -> Result<()> {
        let state = if is_frozen { FreezerState::Frozen } else { FreezerState::Thawed };
        self.manager()?.freeze(state).with_context(|| {
            let what = if is_frozen { "freeze" } else { "thaw" };
            format!("Failed to {what} {}", self.path.display())
        })
    }

    /// Changes the limits that are given.
    pub fn update(&self, resources: &LinuxResources) -> Result<()> {
        let options = ControllerOpt {
            resources,
            disable_oom_killer: false,
            oom_score_adj: None,
            freezer_state: None,
        };
        self.manager()?
            .apply(&options)
            .with_context(|| format!("Failed to change the limits of {}", self.path.display()))
    }

    /// Kills all processes, those that are born meanwhile as well.
    pub fn kill_all(&self) -> Result<()> {
        let file = self.folder().join("cgroup.kill");
        match fs::write(&file, "1") {
            // cgroup v1, or a kernel before 5.14.
            Err(error) if error.kind() == ErrorKind::NotFound => self.kill_each(),
            outcome => outcome.with_context(|| format!("Failed to write {}", file.display())),
        }
    }

    /// Removes groups that the container made below its own.
    pub fn remove_inner(&self) -> Result<()> {
        let folder = self.folder();
        match fs::read_dir(&folder) {
            Ok(_) => remove_below(&folder)
                .with_context(|| format!("Failed to remove the groups in {}", folder.display())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => {
                Err(error).with_context(|| format!("Failed to list {}", folder.display()))
            }
        }
    }

    fn kill_each(&self) -> Result<()> {
        self.freeze(true)?;
        let pids = self.manager()?.get_all_pids();
        let pids = pids.with_context(|| format!("Failed to list {}", self.path.display()));
        for pid in pids.iter().flatten() {
            // Frozen, so none has ended since the list was made but by somebody else's signal.
            let _gone = sys::kill(pid.as_raw(), nix::libc::SIGKILL);
        }
        self.freeze(false)?;
        pids.map(drop)
    }

    fn manager(&self) -> Result<AnyCgroupManager> {
        let config = CgroupConfig {
            cgroup_path: self.path.clone(),
            systemd_cgroup: false,
            container_name: String::new(),
        };
        create_cgroup_manager(config)
            .with_context(|| format!("Failed to look up the cgroup {}", self.path.display()))
    }
}

fn remove_below(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_below(&entry.path())?;
            fs::remove_dir(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path_of(given: &str) -> String {
        Cgroup::new(given, "c1").unwrap().path().display().to_string()
    }

    #[test]
    fn a_plain_path_stays_and_one_for_systemd_becomes_folders() {
        assert_eq!(path_of("/kubepods/pod1/c1"), "/kubepods/pod1/c1");
        assert_eq!(path_of("kubepods/c1"), "/kubepods/c1");
        let systemd = "kubepods-pod1.slice:cri-containerd:c1";
        assert_eq!(path_of(systemd), "/kubepods-pod1.slice/cri-containerd-c1");
        assert_eq!(path_of(""), "/slipway/c1");
    }

    #[test]
    fn a_path_that_climbs_is_refused() {
        for given in ["/", "../x", "/a/../../b", "a:..:b/../.."] {
            assert!(Cgroup::new(given, "c1").is_err(), "{given}");
        }
    }
}
