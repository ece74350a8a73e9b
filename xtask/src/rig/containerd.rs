//! One containerd, started privately.
//!
//! It is Debian's, with root, state and sockets in a folder of ours and on a host of ours (see
//! [`PrivateHost`]); an installed and running one is left alone. It serves the CRI and takes
//! orders from `ctr`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Command;
use tokio::time::{sleep, timeout};
use vmm_glue::process::{Child, Launch};

use super::cri::Cri;
use super::private_host::{PrivateHost, only_child};
use super::{oci_image, write};

/// What it logs once it serves.
const READY: &str = "containerd successfully booted";
/// How long a start or an end may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(10);

/// Who keeps the layers of images and containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Snapshotter {
    /// Overlay mounts.
    Overlayfs,
    /// Plain copies, where overlay mounts do not work.
    Native,
}

impl Snapshotter {
    const fn name(self) -> &'static str {
        match self {
            Self::Overlayfs => "overlayfs",
            Self::Native => "native",
        }
    }
}

/// A runtime handler, as containerd is told of it.
#[derive(Debug, Clone)]
pub struct Handler {
    /// What pods ask for.
    pub name: &'static str,
    /// Which shim it is.
    pub runtime_type: &'static str,
    /// The CNI configuration list of its pods.
    pub network: String,
    /// The shim's configuration file, if it takes one.
    pub config: Option<PathBuf>,
}

/// How to run it.
#[derive(Debug, Clone)]
pub struct Settings {
    /// For all its files; must exist. Its path stands on the command line.
    pub folder: PathBuf,
    /// Folders to look for shims in, before those of `PATH`.
    pub programs: Vec<PathBuf>,
    /// CNI plugins.
    pub plugins: Vec<PathBuf>,
    /// What pods may ask for; the first is the default. Without any it is containerd's own, runc.
    pub handlers: Vec<Handler>,
    /// What an administrator would append to the configuration.
    pub appended: String,
    /// Who keeps the layers.
    pub snapshotter: Snapshotter,
    /// What to run it under, see [`vmm_glue::VmSpec::wrapper`]; its shims and plugins run under it, too.
    pub wrapper: Vec<String>,
}

/// A running containerd. Dropping it kills the process; its shims and pods stay, as it should be, until their
/// host ends.
#[derive(Debug)]
pub struct Containerd {
    settings: Settings,
    wrapper: Vec<String>,
    child: Mutex<Option<Child>>,
    cri: Cri,
}

impl Containerd {
    /// Starts it on `host`. Returns once it serves.
    ///
    /// # Errors
    /// It is not installed, ended, or was not ready in time; with what it logged.
    pub async fn start(host: &PrivateHost, settings: Settings) -> Result<Self> {
        settings.write()?;
        let cri = Cri::new(&settings.socket());
        let containerd = Self { settings, wrapper: host.wrapper(), child: Mutex::new(None), cri };
        containerd.launch().await?;
        Ok(containerd)
    }

    /// Starts it again after [`Containerd::stop`] or [`Containerd::kill`].
    ///
    /// # Errors
    /// See [`Containerd::start`]; it runs.
    pub async fn launch(&self) -> Result<()> {
        ensure!(self.child().is_none(), "containerd runs");
        let Settings { folder, programs, wrapper: inner, .. } = &self.settings;
        let path = std::env::var("PATH").unwrap_or_default();
        let path: Vec<_> =
            programs.iter().map(|program| program.display().to_string()).chain([path]).collect();
        let mut wrapper = self.wrapper.clone();
        wrapper.extend(["env".to_owned(), format!("PATH={}", path.join(":"))]);
        wrapper.extend(inner.iter().cloned());
        let child = Child::spawn(Launch {
            name: "containerd".to_owned(),
            program: "containerd".into(),
            args: vec!["--config".into(), folder.join("config.toml").into()],
            wrapper,
            ..Launch::default()
        })
        .await?;
        match timeout(LIMIT, child.stderr().wait_for(READY)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => bail!("{}", child.wait().await),
            Err(_) => {
                bail!("containerd was not ready within {LIMIT:?}:\n{}", child.stderr_tail())
            }
        }
        *self.child() = Some(child);
        // The CRI comes last: it looks at the pods that are there first.
        let ready = async {
            while self.cri.status().await.is_err() {
                sleep(PAUSE).await;
            }
        };
        timeout(LIMIT, ready).await.with_context(|| {
            format!("containerd does not serve the CRI within {LIMIT:?}:\n{}", self.log_tail())
        })
    }

    /// Ends it in order. Pods go on.
    ///
    /// # Errors
    /// It does not run, or did not end in time and was killed.
    pub async fn stop(&self) -> Result<()> {
        self.end(Signal::SIGTERM).await
    }

    /// Ends it by SIGKILL, as a crash would. Pods go on.
    ///
    /// # Errors
    /// It does not run, or is stuck in the kernel.
    pub async fn kill(&self) -> Result<()> {
        self.end(Signal::SIGKILL).await
    }

    async fn end(&self, signal: Signal) -> Result<()> {
        let child = self.child().take();
        let child = child.context("containerd does not run")?;
        // Our child is nsenter, which ends after containerd and passes no signals on.
        let pid = Pid::from_raw(only_child(child.pid())?.cast_signed());
        kill(pid, signal).context("Failed to signal containerd")?;
        match timeout(LIMIT, child.wait()).await {
            Ok(_) => Ok(()),
            Err(_) => bail!("containerd did not end within {LIMIT:?}:\n{}", child.stderr_tail()),
        }
    }

    /// No code panics while it holds the lock.
    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its CRI. Stays good when it is restarted.
    pub fn cri(&self) -> &Cri {
        &self.cri
    }

    /// `ctr` in containerd's namespace `namespace`: that of the CRI is `k8s.io`.
    pub fn ctr(&self, host: &PrivateHost, namespace: &str) -> Command {
        let mut command = host.command("ctr");
        command.arg("--address").arg(self.settings.socket()).args(["--namespace", namespace]);
        command.env("CONTAINERD_SNAPSHOTTER", self.settings.snapshotter.name());
        command
    }

    /// Imports the image in the archive `file` for the CRI and for `ctr`.
    ///
    /// # Errors
    /// In the words of `ctr`.
    pub async fn import(&self, host: &PrivateHost, file: &Path) -> Result<()> {
        for namespace in ["k8s.io", "default"] {
            let mut import = self.ctr(host, namespace);
            let output = import.args(["images", "import"]).arg(file).output().await?;
            let errors = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "ctr images import failed: {errors}");
        }
        // The CRI learns of images from events.
        let known = async {
            while self.cri.image(oci_image::NAME).await?.is_none() {
                sleep(PAUSE).await;
            }
            Ok(())
        };
        timeout(LIMIT, known).await.context("The imported image does not become known")?
    }

    /// The last lines of its log, which is its shims', too.
    pub fn log_tail(&self) -> String {
        self.child().as_ref().map(|child| child.stderr().tail(60)).unwrap_or_default()
    }
}

impl Settings {
    fn socket(&self) -> PathBuf {
        self.folder.join("containerd.sock")
    }

    /// Writes the configuration, and puts plugins and their configuration where it says they are.
    fn write(&self) -> Result<()> {
        let plugins = self.folder.join("plugins");
        fs::create_dir_all(&plugins)?;
        for plugin in &self.plugins {
            let name = plugin.file_name().with_context(|| format!("{plugin:?} names no file"))?;
            let link = plugins.join(name);
            std::os::unix::fs::symlink(plugin, &link)
                .with_context(|| format!("Failed to make {}", link.display()))?;
        }
        for handler in &self.handlers {
            let folder = self.networks(handler.name);
            fs::create_dir_all(&folder)?;
            write(&folder.join("10-pods.conflist"), &handler.network)?;
        }
        write(&self.folder.join("config.toml"), &self.config()?)
    }

    fn networks(&self, handler: &str) -> PathBuf {
        self.folder.join("networks").join(handler)
    }

    /// For containerd 1.6, in version 2 of its configuration's format.
    fn config(&self) -> Result<String> {
        // Paths of temporary folders need no quoting, and this is made sure.
        let folder = self.folder.to_str().filter(|path| !path.contains(['"', '\\']));
        let folder = folder.with_context(|| format!("{:?} cannot be quoted", self.folder))?;
        let default = self.handlers.first().map_or("runc", |handler| handler.name);
        let mut config = format!(
            r#"version = 2
root = "{folder}/root"
state = "{folder}/state"
# Of no use here, and slow to find that out.
disabled_plugins = [
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
address = "{folder}/containerd.sock"
[ttrpc]
address = "{folder}/ttrpc.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "{folder}/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{image}"
# Lowering the score of a pod takes a privilege that root may be without.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{folder}/plugins"
conf_dir = "{conf_dir}"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "{snapshotter}"
default_runtime_name = "{default}"
"#,
            image = oci_image::NAME,
            conf_dir = self.networks(default).display(),
            snapshotter = self.snapshotter.name(),
        );
        for handler in &self.handlers {
            config += &format!(
                r#"[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{name}]
runtime_type = "{runtime_type}"
cni_conf_dir = "{conf_dir}"
pod_annotations = ["io.katacontainers.*"]
container_annotations = ["io.katacontainers.*"]
"#,
                name = handler.name,
                runtime_type = handler.runtime_type,
                conf_dir = self.networks(handler.name).display(),
            );
            if let Some(file) = &handler.config {
                config += &format!(
                    r#"[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{}.options]
ConfigPath = "{}"
"#,
                    handler.name,
                    file.display(),
                );
            }
        }
        Ok(config + &self.appended)
    }
}
