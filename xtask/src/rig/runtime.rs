//! The runtimes that a node can have: a table, and what each line of it needs to run.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, bail, ensure};
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
/// The bridge of the stock plugin.
const BRIDGE: &str = "slipway-br";
/// What macvlan devices are on, and its far end.
const UPLINK: [&str; 2] = ["uplink", "uplink-far"];
/// The plugin of [`Network::Nobody`].
const NOBODY: &str = "nobody";
const NOBODYS_PLUGIN: &str = r#"#!/bin/sh
[ "$CNI_COMMAND" = ADD ] || exit 0
echo '{"cniVersion": "0.4.0", "interfaces": [{"name": "eth0", "sandbox": "'"$CNI_NETNS"'"}],
 "ips": [{"version": "4", "address": "10.88.0.2/16", "interface": 0}]}'
"#;
/// What slipway is made of: packages and their programs.
pub(crate) const PROGRAMS: [(&str, &str); 4] = [
    ("dataplane", "slipwayd"),
    ("slipwayctl", "slipwayctl"),
    ("slipway-cni", "slipway-cni"),
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
    /// Stock plugins: a device of that kind for each pod, on one end of a veth pair of the host.
    Macvlan,
    /// slipwayd, with its default network.
    Slipwayd,
    /// Nobody: a plugin that names an address and makes nothing, as containerd runs none without.
    Nobody,
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
        let mut plugins = network.plugins(folder)?;
        // containerd brings up `lo` of each pod by a plugin of its own.
        plugins.push(stock_plugin("loopback"));
        if network == Network::Macvlan {
            let [uplink, far] = UPLINK;
            let mut add = host.command("ip");
            add.args(["link", "add", uplink, "type", "veth", "peer", "name", far]);
            ensure!(add.status().await?.success(), "Failed to make {uplink} for macvlan");
            for end in UPLINK {
                let up = host.command("ip").args(["link", "set", end, "up"]).status().await?;
                ensure!(up.success(), "Failed to set {end} up");
            }
        }
        match (self.has_vm, network) {
            (false, _) => Ok(Parts {
                handler: Handler { name, runtime_type, network: conflist, config: None },
                programs: Vec::new(),
                plugins,
                slipwayd: None,
            }),
            (true, Network::Nobody) => {
                let programs =
                    task::spawn_blocking(slipway_programs).await.context("A build panicked")??;
                let config = folder.join("configuration.toml");
                let mut text = configuration(&Image::find()?, self.accel, folder);
                text += "[runtime]\ninternetworking_model = \"none\"\n";
                write(&config, &text)?;
                let config = Some(config);
                Ok(Parts {
                    handler: Handler { name, runtime_type, network: conflist, config },
                    plugins,
                    programs: vec![programs],
                    slipwayd: None,
                })
            }
            (true, Network::Bridge | Network::Macvlan) => {
                bail!("A VM joins no network of stock plugins")
            }
            (true, Network::Slipwayd) => {
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
                    plugins: [vec![programs.join("slipway-cni")], plugins].concat(),
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

    /// The devices that are there however many pods there are, and stay when they are gone.
    pub const fn devices_of_node(self) -> &'static [&'static str] {
        match self {
            Self::Bridge => &["lo", BRIDGE],
            Self::Macvlan => &["lo", UPLINK[0], UPLINK[1]],
            Self::Slipwayd => &["lo", "slipway0"],
            Self::Nobody => &["lo"],
        }
    }

    /// Its plugins, but for slipway's own; that of nobody is made.
    fn plugins(self, folder: &Path) -> Result<Vec<PathBuf>> {
        Ok(match self {
            Self::Bridge => ["bridge", "host-local"].map(stock_plugin).into(),
            Self::Macvlan => ["macvlan", "host-local"].map(stock_plugin).into(),
            Self::Slipwayd => Vec::new(),
            Self::Nobody => {
                let plugin = folder.join(NOBODY);
                write(&plugin, NOBODYS_PLUGIN)?;
                fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755))?;
                vec![plugin]
            }
        })
    }

    /// The CNI configuration list. `folder` is for the plugins' own files.
    fn conflist(self, folder: &Path) -> String {
        let addresses = json!({
            "type": "host-local",
            "dataDir": folder.join("addresses"),
            "ranges": [[{"subnet": "10.88.0.0/16"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        });
        let plugin = match self {
            Self::Bridge => json!({
                "type": "bridge", "bridge": BRIDGE, "isGateway": true, "ipam": addresses,
            }),
            Self::Macvlan => json!({
                "type": "macvlan", "master": UPLINK[0], "mode": "bridge", "ipam": addresses,
            }),
            Self::Nobody => json!({"type": NOBODY}),
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
enable_annotations = ["default_memory"]
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

/// The folder of slipway's programs, once they are built.
static BUILT: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Has [`slipway_programs`] take those in `folder`, where they were just built with others. Built apart, they
/// would be compiled and linked with other features, which takes minutes.
pub fn take_programs(folder: &Path) {
    *BUILT.lock().unwrap_or_else(PoisonError::into_inner) = Some(folder.to_owned());
}

/// The folder of slipway's programs: `SLIPWAY_PROGRAMS`, or that of the release build of this tree, made
/// if need be. Blocks meanwhile.
///
/// # Errors
/// One of them is not there, or does not compile.
pub fn slipway_programs() -> Result<PathBuf> {
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
