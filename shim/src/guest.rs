//! An OCI specification of the host, as one for the guest: what means nothing in the guest is taken
//! out, and host paths become those of the share.
//!
//! Pure but for one question to the caller: what a host path is ([`Translate::is_tmpfs`]).

use std::path::{Path, PathBuf};

use kata_agent_protocol::agent::Storage;
use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};

use crate::share::HostBind;

/// The sandbox's shared memory in the guest.
pub const SHM: &str = "/run/kata-containers/sandbox/shm";
/// Where the guest keeps `emptyDir`s in memory.
const EPHEMERAL: &str = "/run/kata-containers/sandbox/ephemeral";
/// How kubelet names the folder of an `emptyDir`.
const EMPTY_DIR: &str = "kubernetes.io~empty-dir";

/// What decides the translation besides the specification.
#[derive(Clone, Copy, Debug)]
pub struct Translate<'a> {
    /// Where the guest finds the container's root.
    pub rootfs: &'a str,
    /// The bundle on the host.
    pub bundle: &'a Path,
    /// The container stands for a pod.
    pub is_sandbox: bool,
    /// Seccomp profiles are not for guests (`disable_guest_seccomp`).
    pub drop_seccomp: bool,
    /// `emptyDir`s in memory are the host's, as all others (`disable_guest_empty_dir`).
    pub keeps_empty_dirs: bool,
    /// Whether a host path lies on a tmpfs.
    pub is_tmpfs: fn(&Path) -> bool,
}

/// A container as the guest is to make it.
#[derive(Clone, Debug)]
pub struct GuestContainer {
    /// The specification. Mounts listed in `binds` still name their host paths.
    pub spec: Spec,
    /// What must be shared before: the index of the mount, and the host's file or folder.
    pub binds: Vec<(usize, HostBind)>,
    /// File systems the guest mounts for it.
    pub storages: Vec<Storage>,
    /// It joins the pod's process namespace.
    pub shares_pids: bool,
    /// Mounts left out, for the log: host paths that mean nothing in a guest.
    pub left_out: Vec<PathBuf>,
}

/// Translates `spec`.
pub fn translate(spec: &Spec, how: Translate<'_>) -> GuestContainer {
    let mut guest = spec.clone();
    guest.set_hooks(None);
    if let Some(root) = guest.root_mut() {
        root.set_path(how.rootfs.into());
    }
    if let Some(process) = guest.process_mut() {
        // Profiles and labels of the host's kernel.
        process.set_apparmor_profile(None);
        process.set_selinux_label(None);
    }
    let shares_pids = linux(&mut guest, how.drop_seccomp);
    let mut annotations = guest.annotations().clone().unwrap_or_default();
    annotations.insert(
        "io.katacontainers.pkg.oci.bundle_path".to_owned(),
        how.bundle.display().to_string(),
    );
    let kind = if how.is_sandbox { "pod_sandbox" } else { "pod_container" };
    annotations.insert("io.katacontainers.pkg.oci.container_type".to_owned(), kind.to_owned());
    guest.set_annotations(Some(annotations));

    let mut container = GuestContainer {
        spec: guest,
        binds: Vec::new(),
        storages: Vec::new(),
        shares_pids,
        left_out: Vec::new(),
    };
    let mut mounts = Vec::new();
    for mount in spec.mounts().iter().flatten() {
        if let Some(mount) = container.mount(mount, mounts.len(), how) {
            mounts.push(mount);
        }
    }
    container.spec.set_mounts(Some(mounts));
    container
}

/// Returns whether the container joins the pod's process namespace.
fn linux(spec: &mut Spec, drop_seccomp: bool) -> bool {
    let mut shares_pids = false;
    let Some(linux) = spec.linux_mut() else { return false };
    if drop_seccomp {
        linux.set_seccomp(None);
    }
    linux.set_mount_label(None);
    if let Some(namespaces) = linux.namespaces_mut() {
        let is_shared =
            |path: &Option<PathBuf>| path.as_ref().is_some_and(|path| !path.as_os_str().is_empty());
        namespaces.retain_mut(|namespace| match namespace.typ() {
            // The guest is the network namespace; the others the agent sees to itself.
            LinuxNamespaceType::Network | LinuxNamespaceType::Time | LinuxNamespaceType::Cgroup => {
                false
            }
            LinuxNamespaceType::Pid => {
                shares_pids = is_shared(namespace.path());
                false
            }
            _ => {
                namespace.set_path(None);
                true
            }
        });
    }
    if let Some(resources) = linux.resources_mut() {
        resources.set_devices(None);
        resources.set_block_io(None);
        resources.set_network(None);
        if let Some(cpu) = resources.cpu_mut() {
            // Numbers of the host's processors and memory nodes.
            cpu.set_cpus(None);
            cpu.set_mems(None);
        }
    }
    if let Some(devices) = linux.devices_mut() {
        devices.retain(|device| !device.path().starts_with("/dev/vfio"));
    }
    shares_pids
}

impl GuestContainer {
    /// The mount as the guest makes it, as number `index` of its mounts.
    fn mount(&mut self, mount: &Mount, index: usize, how: Translate<'_>) -> Option<Mount> {
        let mut mount = mount.clone();
        if mount.destination() == Path::new("/dev/shm") {
            mount.set_typ(Some("bind".to_owned()));
            mount.set_source(Some(SHM.into()));
            mount.set_options(Some(vec!["rbind".to_owned()]));
            return Some(mount);
        }
        if !is_bind(&mount) {
            return Some(mount);
        }
        let source = mount.source().clone().unwrap_or_default();
        let means_nothing = ["/proc", "/sys", "/dev"].iter().any(|top| source.starts_with(top));
        if means_nothing {
            self.left_out.push(source);
            return None;
        }
        if is_empty_dir(&source) && !how.keeps_empty_dirs && (how.is_tmpfs)(&source) {
            let name = source.file_name().unwrap_or("empty".as_ref()).to_string_lossy();
            let folder = format!("{EPHEMERAL}/{name}");
            self.storages.push(ephemeral(&folder));
            mount.set_source(Some(folder.into()));
            return Some(mount);
        }
        let options = mount.options().clone().unwrap_or_default();
        let has = |word: &str| options.iter().any(|option| option == word);
        let bind = HostBind {
            source,
            destination: mount.destination().clone(),
            recursive: has("rbind"),
            read_only: has("ro"),
        };
        self.binds.push((index, bind));
        Some(mount)
    }

    /// Makes mount `index` a bind of what the guest has mounted on `source`.
    pub fn set_bind(&mut self, index: usize, source: String, is_read_only: bool) {
        if let Some(mount) = self.spec.mounts_mut().as_mut().and_then(|list| list.get_mut(index)) {
            let access = if is_read_only { "ro" } else { "rw" };
            mount.set_typ(Some("bind".to_owned()));
            mount.set_source(Some(source.into()));
            mount.set_options(Some(vec!["rbind".to_owned(), access.to_owned()]));
        }
    }

    /// Says where the guest finds what was shared for mount `index`.
    pub fn set_source(&mut self, index: usize, source: String) {
        if let Some(mount) = self.spec.mounts_mut().as_mut().and_then(|list| list.get_mut(index)) {
            mount.set_source(Some(source.into()));
        }
    }
}

fn is_bind(mount: &Mount) -> bool {
    let options = mount.options().iter().flatten();
    mount.typ().as_deref() == Some("bind")
        || options.into_iter().any(|option| option == "bind" || option == "rbind")
}

fn is_empty_dir(source: &Path) -> bool {
    source.components().any(|part| part.as_os_str() == EMPTY_DIR)
}

fn ephemeral(folder: &str) -> Storage {
    let mut storage = Storage::new();
    storage.driver = "ephemeral".to_owned();
    storage.source = "tmpfs".to_owned();
    storage.fstype = "tmpfs".to_owned();
    storage.mount_point = folder.to_owned();
    storage
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(json: serde_json::Value) -> GuestContainer {
        let spec: Spec = serde_json::from_value(json).unwrap();
        let how = Translate {
            rootfs: "/guest/rootfs",
            bundle: Path::new("/b"),
            is_sandbox: false,
            drop_seccomp: true,
            keeps_empty_dirs: false,
            is_tmpfs: |path| path.ends_with("memory"),
        };
        translate(&spec, how)
    }

    fn base() -> serde_json::Value {
        serde_json::json!({
            "ociVersion": "1.0.2",
            "root": {"path": "rootfs"},
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/",
                        "apparmorProfile": "p", "selinuxLabel": "l"},
            "hooks": {"prestart": [{"path": "/bin/x"}]},
            "linux": {
                "namespaces": [{"type": "pid"}, {"type": "network", "path": "/run/netns/x"},
                               {"type": "ipc", "path": "/proc/1/ns/ipc"}, {"type": "mount"},
                               {"type": "cgroup"}],
                "resources": {"devices": [{"allow": false}], "cpu": {"shares": 5, "cpus": "3"}},
                "seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}
            }
        })
    }

    #[test]
    fn what_belongs_to_the_host_s_kernel_is_taken_out() {
        let guest = translated(base());
        let spec = &guest.spec;
        assert_eq!(spec.root().as_ref().unwrap().path(), Path::new("/guest/rootfs"));
        assert!(spec.hooks().is_none());
        let process = spec.process().as_ref().unwrap();
        assert!(process.apparmor_profile().is_none() && process.selinux_label().is_none());
        let linux = spec.linux().as_ref().unwrap();
        assert!(linux.seccomp().is_none());
        let resources = linux.resources().as_ref().unwrap();
        assert!(resources.devices().is_none());
        let cpu = resources.cpu().as_ref().unwrap();
        assert_eq!((cpu.shares(), cpu.cpus().as_ref()), (Some(5), None));
        let kinds: Vec<_> =
            linux.namespaces().iter().flatten().map(|n| (n.typ(), n.path().clone())).collect();
        assert_eq!(kinds, [(LinuxNamespaceType::Ipc, None), (LinuxNamespaceType::Mount, None)]);
        assert!(!guest.shares_pids);
        let annotations = spec.annotations().as_ref().unwrap();
        assert_eq!(annotations["io.katacontainers.pkg.oci.container_type"], "pod_container");
    }

    #[test]
    fn a_process_namespace_with_a_path_is_the_pod_s() {
        let mut json = base();
        json["linux"]["namespaces"][0]["path"] = "/proc/7/ns/pid".into();
        assert!(translated(json).shares_pids);
    }

    #[test]
    fn mounts_of_the_host_are_shared_and_the_guest_s_own_stay() {
        let mut json = base();
        json["mounts"] = serde_json::json!([
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/data", "type": "bind", "source": "/srv/data", "options": ["rbind", "ro"]},
            {"destination": "/dev/shm", "type": "bind", "source": "/run/shm", "options": ["rbind"]},
            {"destination": "/host", "source": "/proc/1", "options": ["bind"]},
            {"destination": "/cache", "type": "bind", "options": ["rbind"],
             "source": "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/memory"},
            {"destination": "/disk", "type": "bind", "options": ["rbind"],
             "source": "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/disk"}
        ]);
        let mut guest = translated(json);
        let mounts = guest.spec.mounts().clone().unwrap();
        assert_eq!(mounts.len(), 5);
        assert_eq!(mounts[2].source().as_deref(), Some(Path::new(SHM)));
        assert_eq!(guest.left_out, [PathBuf::from("/proc/1")]);
        assert_eq!(guest.storages.len(), 1);
        assert_eq!(guest.storages[0].mount_point, format!("{EPHEMERAL}/memory"));
        let indices: Vec<_> = guest.binds.iter().map(|(index, _)| *index).collect();
        assert_eq!(indices, [1, 4]);
        let bind = &guest.binds[0].1;
        assert!(bind.read_only && bind.recursive && bind.source == Path::new("/srv/data"));
        guest.set_source(1, "/guest/x".into());
        let mounts = guest.spec.mounts().as_ref().unwrap();
        assert_eq!(mounts[1].source().as_deref(), Some(Path::new("/guest/x")));
    }
}
