//! Pods and containers on a [`Node`]: handles on what containerd keeps.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::time::{sleep, timeout};

use super::cri::messages::{
    ContainerConfig, ContainerMetadata, ContainerState, ImageSpec, KeyValue, LinuxContainerConfig,
    LinuxContainerResources, LinuxContainerSecurityContext, Mount, NamespaceMode, NamespaceOption,
    PodSandboxConfig,
};
use super::node::Node;
use super::{oci_image, write};

/// For what takes seconds on an idle machine.
const LIMIT: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(20);

/// A pod. Dropping the handle leaves it to its node.
#[derive(Debug)]
pub struct Pod<'a> {
    node: &'a Node,
    id: String,
    address: Ipv4Addr,
    config: PodSandboxConfig,
}

impl<'a> Pod<'a> {
    pub(super) fn new(
        node: &'a Node,
        id: String,
        address: Ipv4Addr,
        config: PodSandboxConfig,
    ) -> Self {
        Self { node, id, address, config }
    }

    /// By which containerd knows it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where it can be reached.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Makes and starts a container.
    ///
    /// # Errors
    /// As containerd says.
    pub async fn run(&self, spec: ContainerSpec) -> Result<Container<'a>> {
        let cri = self.node.cri();
        let log = Path::new(&self.config.log_directory).join(&spec.0.log_path);
        let id = cri.create_container(&self.id, spec.0, self.config.clone()).await?;
        cri.start_container(&id).await?;
        Ok(Container { node: self.node, id, log })
    }

    /// Makes and starts a container that waits until it is killed, for commands to run in.
    ///
    /// # Errors
    /// As containerd says.
    pub async fn idle(&self, name: &str) -> Result<Container<'a>> {
        self.run(ContainerSpec::new(name, &["sleep", "1000000"])).await
    }

    /// Stops and removes it.
    ///
    /// # Errors
    /// As containerd says.
    pub async fn remove(self) -> Result<()> {
        self.node.cri().stop_pod(&self.id).await?;
        self.node.cri().remove_pod(&self.id).await
    }
}

/// What to ask for a container.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerSpec(pub ContainerConfig);

impl ContainerSpec {
    /// Runs `command` of the image of all pods; it logs to `<name>.log`.
    pub fn new(name: &str, command: &[&str]) -> Self {
        let linux = LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: namespaces(NamespaceMode::Container),
            }),
            ..LinuxContainerConfig::default()
        };
        Self(ContainerConfig {
            linux: Some(linux),
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(ImageSpec { image: oci_image::NAME.to_owned() }),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            log_path: format!("{name}.log"),
            ..ContainerConfig::default()
        })
    }

    /// Runs the shell `script`.
    pub fn shell(name: &str, script: &str) -> Self {
        Self::new(name, &["sh", "-c", script])
    }

    /// Sets what it may consume.
    #[must_use]
    pub fn limits(mut self, resources: LinuxContainerResources) -> Self {
        self.0.linux.get_or_insert_default().resources = Some(resources);
        self
    }

    /// Makes it see the processes of its pod. The pod must be asked for the same.
    #[must_use]
    pub fn sharing_processes(mut self) -> Self {
        let context = self.0.linux.get_or_insert_default().security_context.get_or_insert_default();
        context.namespace_options = namespaces(NamespaceMode::Pod);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.0.envs.push(KeyValue { key: key.to_owned(), value: value.to_owned() });
        self
    }

    /// Shows the host's file or folder `from` as `to`.
    #[must_use]
    pub fn mount(mut self, from: &Path, to: &str, readonly: bool) -> Self {
        let host_path = from.display().to_string();
        self.0.mounts.push(Mount { container_path: to.to_owned(), host_path, readonly });
        self
    }
}

/// A container. Dropping the handle leaves it to its pod.
#[derive(Debug)]
pub struct Container<'a> {
    node: &'a Node,
    id: String,
    log: PathBuf,
}

/// A line that a container printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// `stdout` or `stderr`.
    pub stream: String,
    /// Without its end.
    pub text: String,
}

impl Container<'_> {
    /// By which containerd knows it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Runs a command in it, and returns how that ended.
    ///
    /// # Errors
    /// As containerd says; a command that fails is no error here.
    pub async fn exec(&self, command: &[&str]) -> Result<Executed> {
        let answer = self.node.cri().exec(&self.id, command, LIMIT).await?;
        Ok(Executed {
            code: answer.exit_code,
            stdout: String::from_utf8_lossy(&answer.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&answer.stderr).into_owned(),
        })
    }

    /// Runs a shell's `script` in it, and returns what that printed.
    ///
    /// # Errors
    /// As containerd says; the script failed.
    pub async fn shell(&self, script: &str) -> Result<String> {
        let executed = self.exec(&["sh", "-c", script]).await?;
        ensure!(executed.code == 0, "{script}: {executed:?}");
        Ok(executed.stdout)
    }

    /// Returns once it has ended, with its exit code.
    ///
    /// # Errors
    /// As containerd says; it does not end.
    pub async fn ended(&self) -> Result<i32> {
        let ended = async {
            loop {
                let status = self.node.cri().container_status(&self.id).await?;
                if status.state() == ContainerState::Exited {
                    return Ok(status.exit_code);
                }
                sleep(PAUSE).await;
            }
        };
        timeout(LIMIT, ended).await.with_context(|| format!("It did not end within {LIMIT:?}"))?
    }

    /// What it has printed so far.
    ///
    /// # Errors
    /// The file cannot be read, or is not what the CRI demands.
    pub fn log(&self) -> Result<Vec<LogLine>> {
        let text = match fs::read_to_string(&self.log) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.with_context(|| format!("Failed to read {}", self.log.display()))?,
        };
        // The last line may be in the making.
        let (whole, _) = text.rsplit_once('\n').unwrap_or_default();
        whole.lines().map(LogLine::parse).collect()
    }

    /// Returns once it has printed a line with `text`.
    ///
    /// # Errors
    /// It does not.
    pub async fn printed(&self, text: &str) -> Result<()> {
        let printed = async {
            while !self.log()?.iter().any(|line| line.text.contains(text)) {
                sleep(PAUSE).await;
            }
            Ok(())
        };
        match timeout(LIMIT, printed).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let log = self.log()?;
                let last = &log[log.len().saturating_sub(5)..];
                bail!("'{text}' was not printed within {LIMIT:?}; the last lines are {last:?}")
            }
        }
    }

    /// Ends it by its stop signal, and by SIGKILL after `grace`.
    ///
    /// # Errors
    /// As containerd says.
    pub async fn stop(&self, grace: Duration) -> Result<()> {
        self.node.cri().stop_container(&self.id, grace).await
    }

    /// Removes it.
    ///
    /// # Errors
    /// As containerd says.
    pub async fn remove(self) -> Result<()> {
        self.node.cri().remove_container(&self.id).await
    }
}

/// What a kubelet asks for: network and shared memory are the pod's, `processes` are as said.
pub fn namespaces(processes: NamespaceMode) -> Option<NamespaceOption> {
    let shared = NamespaceMode::Pod.into();
    Some(NamespaceOption { network: shared, pid: processes.into(), ipc: shared })
}

/// How a command in a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executed {
    /// Its exit code.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

impl LogLine {
    /// Reads a line of the CRI's log format: time, stream, tag, text.
    fn parse(line: &str) -> Result<Self> {
        let mut fields = line.splitn(4, ' ');
        let (_time, stream, tag, text) =
            (fields.next(), fields.next(), fields.next(), fields.next());
        match (stream, tag, text) {
            (Some(stream), Some("F" | "P"), Some(text)) => {
                Ok(Self { stream: stream.to_owned(), text: text.to_owned() })
            }
            _ => bail!("No line of a container's log: {line:?}"),
        }
    }
}

/// Writes a file for a container to see.
///
/// # Errors
/// The file cannot be written.
pub fn write_volume(folder: &Path, name: &str, contents: &str) -> Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let path = folder.join(name);
    write(&path, contents)?;
    Ok(path)
}
