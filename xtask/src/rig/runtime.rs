//! The runtimes that a node can have: a table, and what each line of it needs to run.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use slipway_agent::image::command_line;
use tokio::task;
use vmm_glue::accel::Accel;

use super::containerd::Handler;
use super::guest::Image;
use super::private_host::PrivateHost;
use super::slipwayd::{Slipwayd, last_core};
use super::write;
use crate::workspace;

/// Where Debian puts the stock CNI plugins.
const STOCK_PLUGINS: &str = "/usr/lib/cni";
/// What slipway is made of: packages and their programs.
pub(crate) const PROGRAMS: [(&str, &str); 4] = [
    ("dataplane", "slipwayd"),
    ("slipwayctl", "slipwayctl"),
    ("slipwayctl", "slipway-cni"),
    ("shim", "containerd-shim-slipway-v2"),
];

/// Who runs the pods of a node, and what tests must know of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Runtime {
    /// What pods ask for, and what the shim's program is named after.
    pub handler: &'static str,
    /// For `ctr run --runtime`.
    pub runtime_type: &'static str,
    /// Who connects the pods.
    pub network: Network,
    /// Each pod has a kernel of its own.
    pub has_vm: bool,
    /// Who runs its instructions.
    pub accel: Accel,
}

/// Who connects the pods of a runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Stock plugins: a bridge and a pair of veth devices for each pod.
    Bridge,
    /// slipwayd, with its default network.
    Slipwayd,
}

/// What every containerd can do; it tests the tests.
pub const RUNC: Runtime = Runtime {
    handler: "runc",
    runtime_type: "io.containerd.runc.v2",
    network: Network::Bridge,
    has_vm: false,
    accel: Accel::Tcg,
};

/// Ours: a VM for each pod.
pub const SLIPWAY: Runtime = Runtime {
    handler: "slipway",
    runtime_type: "io.containerd.slipway.v2",
    network: Network::Slipwayd,
    has_vm: true,
    // It works everywhere.
    accel: Accel::Tcg,
};

/// What a runtime brings to a node.
#[derive(Debug)]
pub struct Parts {
    /// How containerd is told of it.
    pub handler: Handler,
    /// Where its shim is.
    pub programs: Vec<PathBuf>,
    /// Its CNI plugins, and `loopback`, which containerd runs for every pod.
    pub plugins: Vec<PathBuf>,
    /// The switch.
    pub slipwayd: Option<Slipwayd>,
}

impl Runtime {
    /// Starts what the runtime needs on `host`, with files in `folder`. Programs that are not built
    /// yet are, which takes minutes. `wrapper` tells what the switch is to run under, if there is one, see
    /// [`vmm_glue::VmSpec::wrapper`].
    ///
    /// # Errors
    /// Something does not compile or start; there is no guest image.
    pub async fn start(
        self,
        host: &PrivateHost,
        folder: &Path,
        wrapper: &mut impl FnMut(&str) -> Vec<String>,
    ) -> Result<Parts> {
        let Self { handler: name, runtime_type, network, .. } = self;
        let conflist = network.conflist(folder);
        match network {
            Network::Bridge => Ok(Parts {
                handler: Handler { name, runtime_type, network: conflist, config: None },
                programs: Vec::new(),
                plugins: ["bridge", "host-local", "loopback"].map(stock_plugin).into(),
                slipwayd: None,
            }),
            Network::Slipwayd => {
                let programs =
                    task::spawn_blocking(slipway_programs).await.context("A build panicked")??;
                let run_dir = folder.join("slipwayd");
                fs::create_dir_all(&run_dir)?;
                let wrapper = [host.wrapper(), wrapper("slipwayd")].concat();
                let program = programs.join("slipwayd");
                let gateway = folder.join("slipwayd.toml");
                write(&gateway, "[gateway]\nenabled = true\n")?;
                let core = last_core()?;
                let slipwayd =
                    Slipwayd::start(&program, &gateway, &run_dir, core, &wrapper).await?;
                let config = folder.join("configuration.toml");
                write(&config, &configuration(&Image::find()?, self.accel, folder))?;
                Ok(Parts {
                    handler: Handler {
                        name,
                        runtime_type,
                        network: conflist,
                        config: Some(config),
                    },
                    // containerd brings up `lo` of each pod by a plugin of its own.
                    plugins: vec![programs.join("slipway-cni"), stock_plugin("loopback")],
                    programs: vec![programs],
                    slipwayd: Some(slipwayd),
                })
            }
        }
    }
}

impl Network {
    /// The address of the host in the pods' network.
    pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);

    /// The device that is there however many pods there are, and stays when they are gone.
    pub const fn device_of_node(self) -> &'static str {
        match self {
            Self::Bridge => "slipway-br",
            Self::Slipwayd => "slipway0",
        }
    }

    /// The CNI configuration list. `folder` is for the plugins' own files.
    fn conflist(self, folder: &Path) -> String {
        let plugin = match self {
            Self::Bridge => json!({
                "type": "bridge",
                "bridge": self.device_of_node(),
                "isGateway": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": folder.join("addresses"),
                    "ranges": [[{"subnet": "10.88.0.0/16"}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            }),
            Self::Slipwayd => json!({"type": "slipway-cni", "socket": socket(folder)}),
        };
        json!({"cniVersion": "0.4.0", "name": "pods", "plugins": [plugin]}).to_string()
    }
}

/// A plugin as Debian's containerd finds it.
pub(super) fn stock_plugin(name: &str) -> PathBuf {
    Path::new(STOCK_PLUGINS).join(name)
}

/// slipwayd's API.
fn socket(folder: &Path) -> PathBuf {
    folder.join("slipwayd/slipwayd.sock")
}

/// The shim's configuration: QEMU with the image that `cargo xtask guest` made.
fn configuration(image: &Image, accel: Accel, folder: &Path) -> String {
    let Image { kernel, initrd } = image;
    format!(
        r#"[hypervisor.qemu]
kernel = "{kernel}"
initrd = "{initrd}"
kernel_params = "{parameters}"
default_memory = 256
[slipway]
socket = "{socket}"
acceleration = "{accel}"
"#,
        kernel = kernel.display(),
        initrd = initrd.display(),
        parameters = command_line(accel == Accel::Tcg),
        socket = socket(folder).display(),
    )
}

/// The folder of slipway's programs: `SLIPWAY_PROGRAMS`, or that of the release build of this tree, made
/// if need be. Blocks meanwhile.
///
/// # Errors
/// One of them is not there, or does not compile.
pub fn slipway_programs() -> Result<PathBuf> {
    static BUILT: Mutex<Option<PathBuf>> = Mutex::new(None);
    if let Some(folder) = std::env::var_os("SLIPWAY_PROGRAMS") {
        let folder = PathBuf::from(folder);
        for (_, program) in PROGRAMS {
            let path = folder.join(program);
            ensure!(path.is_file(), "SLIPWAY_PROGRAMS: there is no {}", path.display());
        }
        return Ok(folder);
    }
    // Whoever comes second waits here, not for cargo's lock. A build that panicked left no path.
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if built.is_none() {
        *built = Some(workspace::build(&PROGRAMS)?);
    }
    built.clone().context("There are no programs")
}
