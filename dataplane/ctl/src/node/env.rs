//! `slipwayctl env`: one document that says what pods here run with, for a report or a script.

use std::path::PathBuf;

use kata_config::{KataConfig, Loaded};
use serde::Serialize;

use super::{Node, RUNTIME, check::Daemon, host::HostFacts, version};

/// The document.
#[derive(Clone, Debug, Serialize)]
pub struct Environment {
    /// The runtime.
    pub runtime: Runtime,
    /// Where the configuration came from.
    pub configuration: Configuration,
    /// What holds.
    pub effective: KataConfig,
    /// The programs that pods run with.
    pub programs: Programs,
    /// The switch.
    pub slipwayd: Slipwayd,
    /// The host.
    pub host: HostFacts,
}

/// The runtime.
#[derive(Clone, Debug, Serialize)]
pub struct Runtime {
    /// Its name for containerd.
    pub name: &'static str,
    /// The version of this program.
    pub version: &'static str,
    /// The shim, as containerd finds it.
    pub shim: Option<PathBuf>,
    /// The CNI plugin.
    pub cni_plugin: Option<PathBuf>,
}

/// Where the configuration came from.
#[derive(Clone, Debug, Serialize)]
pub struct Configuration {
    /// The file, then its drop-ins.
    pub files: Vec<PathBuf>,
    /// What to look at.
    pub warnings: Vec<String>,
    /// What is set and has no effect.
    pub ignored: Vec<String>,
}

/// The programs that pods run with.
#[derive(Clone, Debug, Serialize)]
pub struct Programs {
    /// The VMM.
    pub vmm: Program,
    /// The virtio-fs daemon.
    pub virtiofsd: Program,
    /// The vhost-user vsock daemon.
    pub vsock_daemon: Program,
    /// containerd.
    pub containerd: Program,
}

/// A program, or why there is none.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Program {
    /// Where it is.
    pub path: Option<PathBuf>,
    /// What it answers to `--version`.
    pub version: Option<String>,
    /// What is wrong with it.
    pub problem: Option<String>,
}

impl Program {
    async fn ask(found: Result<PathBuf, String>) -> Self {
        let path = match found {
            Ok(path) => path,
            Err(problem) => return Self { problem: Some(problem), ..Self::default() },
        };
        let (version, problem) = match version(&path).await {
            Ok(version) => (Some(version), None),
            Err(problem) => (None, Some(problem)),
        };
        Self { path: Some(path), version, problem }
    }
}

/// The switch.
#[derive(Clone, Debug, Serialize)]
pub struct Slipwayd {
    /// Where it was asked.
    pub socket: PathBuf,
    /// Its version.
    pub version: Option<String>,
    /// The names of its networks.
    pub networks: Vec<String>,
    /// What it did not answer, and why.
    pub problem: Option<String>,
}

/// Gathers the document.
pub async fn environment(node: &Node, loaded: Loaded, daemon: &Daemon) -> Environment {
    let Loaded { config, warnings, ignored, files } = loaded;
    let containerd = node.containerd();
    let (machine, slipway) = (&config.hypervisor, &config.slipway);
    let programs = Programs {
        vmm: Program::ask(node.vmm(machine)).await,
        virtiofsd: Program::ask(node.virtiofsd(machine)).await,
        vsock_daemon: Program::ask(node.vsock_daemon(slipway)).await,
        containerd: Program::ask(node.program(None, "containerd", &[])).await,
    };
    let networks = daemon.networks.iter().flat_map(|list| &list.networks);
    let problem = daemon.version.as_ref().err().or(daemon.networks.as_ref().err());
    let slipwayd = Slipwayd {
        socket: daemon.socket.clone(),
        version: daemon.version.as_ref().ok().map(|version| version.version.clone()),
        networks: networks.map(|network| network.name.clone()).collect(),
        problem: problem.map(ToString::to_string),
    };
    Environment {
        runtime: Runtime {
            name: RUNTIME,
            version: env!("CARGO_PKG_VERSION"),
            shim: node.shim(&containerd).ok(),
            cni_plugin: node.cni_plugin(&containerd),
        },
        configuration: Configuration {
            files,
            warnings: warnings.iter().map(ToString::to_string).collect(),
            ignored: ignored.iter().map(ToString::to_string).collect(),
        },
        programs,
        slipwayd,
        host: node.host(),
        effective: config,
    }
}
