//! Starts agents, and says what tests say often.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kata_agent_protocol::agent::*;
use kata_agent_protocol::agent_ttrpc::AgentServiceClient;
use kata_agent_protocol::health_ttrpc::HealthClient;
use kata_agent_protocol::oci;
use kata_agent_protocol::protobuf::MessageField;
use tempfile::TempDir;
use ttrpc::r#async::Client;
use ttrpc::context::{self, Context};
use ttrpc::{Code, Error};

/// Calls that do not return are a failure, not a hung test.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// An agent with its sandbox.
pub struct Agent {
    /// Its main service.
    pub client: AgentServiceClient,
    /// Its health service.
    pub health: HealthClient,
    process: Child,
    folder: TempDir,
    cgroup: String,
}

/// What a process did.
#[derive(Debug, PartialEq, Eq)]
pub struct Ended {
    /// Exit code, or 128 and the signal.
    pub status: i32,
    /// All of standard output.
    pub stdout: Vec<u8>,
    /// All of standard error.
    pub stderr: Vec<u8>,
}

/// The context of a call.
pub fn call() -> Context {
    context::with_duration(PATIENCE)
}

impl Agent {
    /// Starts an agent, without a sandbox.
    pub async fn bare() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent.sock");
        // The agent's folders are below /run, so it gets one of its own.
        let script = "mount -t tmpfs tmpfs /run && exec \"$0\"";
        let process = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["--net", "--uts", "--ipc", "--", "sh", "-c", script])
            .arg(env!("CARGO_BIN_EXE_slipway-agent"))
            .env("KATA_AGENT_SERVER_ADDR", format!("unix://{}", socket.display()))
            .spawn()
            .expect("these tests need unshare, and root");
        let client = connect(&socket).await;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let cgroup = format!("/slipway-test-{}-{number}", std::process::id());
        let health = HealthClient::new(client.clone());
        let client = AgentServiceClient::new(client);
        Self { client, health, process, folder, cgroup }
    }

    /// Starts an agent with a sandbox.
    pub async fn start() -> Self {
        let agent = Self::bare().await;
        let request = CreateSandboxRequest {
            hostname: "pod".to_owned(),
            sandbox_id: "sandbox".to_owned(),
            ..Default::default()
        };
        agent.client.create_sandbox(call(), &request).await.unwrap();
        agent
    }

    /// The request that creates a container which runs `script` in a shell.
    pub fn container(&self, id: &str, script: &str) -> CreateContainerRequest {
        let root = self.folder.path().join(format!("root-{id}"));
        let mut mounts = vec![
            mount("proc", "proc", "/proc", &[]),
            mount("tmpfs", "tmpfs", "/dev", &["mode=755"]),
            mount("devpts", "devpts", "/dev/pts", &["newinstance", "ptmxmode=0666", "mode=620"]),
            mount("tmpfs", "tmpfs", "/tmp", &[]),
        ];
        fs::create_dir_all(&root).unwrap();
        for folder in ["/usr", "/bin", "/lib", "/lib64", "/sbin"] {
            if Path::new(folder).exists() {
                mounts.push(mount("bind", folder, folder, &["rbind", "ro"]));
            }
        }
        let namespace =
            |kind: &str| oci::LinuxNamespace { Type: kind.to_owned(), ..Default::default() };
        let linux = oci::Linux {
            CgroupsPath: format!("{}/{id}", self.cgroup),
            Namespaces: ["ipc", "uts", "mount"].map(namespace).to_vec(),
            ..Default::default()
        };
        let root = root.to_str().unwrap().to_owned();
        let spec = oci::Spec {
            Version: "1.0.2".to_owned(),
            Process: MessageField::some(shell(script)),
            Root: MessageField::some(oci::Root { Path: root, ..Default::default() }),
            Mounts: mounts,
            Linux: MessageField::some(linux),
            ..Default::default()
        };
        CreateContainerRequest {
            container_id: id.to_owned(),
            exec_id: id.to_owned(),
            OCI: MessageField::some(spec),
            ..Default::default()
        }
    }

    /// Creates and starts a container.
    pub async fn run(&self, id: &str, script: &str) {
        self.client.create_container(call(), &self.container(id, script)).await.unwrap();
        self.begin(id).await;
    }

    /// Starts a container that was created.
    pub async fn begin(&self, id: &str) {
        let request = StartContainerRequest { container_id: id.to_owned(), ..Default::default() };
        self.client.start_container(call(), &request).await.unwrap();
    }

    /// Runs `script` in a container.
    pub async fn exec(&self, id: &str, exec: &str, script: &str) {
        self.exec_process(id, exec, shell(script)).await.unwrap();
    }

    /// Runs a process in a container.
    pub async fn exec_process(
        &self,
        id: &str,
        exec: &str,
        process: oci::Process,
    ) -> ttrpc::Result<()> {
        let request = ExecProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            process: MessageField::some(process),
            ..Default::default()
        };
        self.client.exec_process(call(), &request).await.map(drop)
    }

    /// Waits for a process.
    pub async fn wait(&self, id: &str, exec: &str) -> i32 {
        self.try_wait(id, exec).await.unwrap()
    }

    /// Waits for a process.
    pub async fn try_wait(&self, id: &str, exec: &str) -> ttrpc::Result<i32> {
        let request = WaitProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        self.client.wait_process(call(), &request).await.map(|response| response.status)
    }

    /// Reads a process's streams to their ends and waits for it.
    pub async fn end(&self, id: &str, exec: &str) -> Ended {
        let stderr = async {
            let mut all = Vec::new();
            loop {
                let request = read_request(id, exec);
                let data = self.client.read_stderr(call(), &request).await.unwrap().data;
                if data.is_empty() {
                    return all;
                }
                all.extend(data);
            }
        };
        let (stdout, stderr) = tokio::join!(self.read_all(id, exec), stderr);
        Ended { status: self.wait(id, exec).await, stdout, stderr }
    }

    /// Reads standard output to its end.
    pub async fn read_all(&self, id: &str, exec: &str) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let data = self.read(id, exec).await;
            if data.is_empty() {
                return all;
            }
            all.extend(data);
        }
    }

    /// Reads standard output once.
    pub async fn read(&self, id: &str, exec: &str) -> Vec<u8> {
        self.client.read_stdout(call(), &read_request(id, exec)).await.unwrap().data
    }

    /// Reads standard output until `text` was seen.
    pub async fn read_until(&self, id: &str, exec: &str, text: &str) -> String {
        let mut all = Vec::new();
        loop {
            let data = self.read(id, exec).await;
            let seen = String::from_utf8_lossy(&all).into_owned();
            assert!(!data.is_empty(), "the stream ended with {seen:?} before {text:?}");
            all.extend(data);
            let seen = String::from_utf8_lossy(&all);
            if seen.contains(text) {
                return seen.into_owned();
            }
        }
    }

    /// Writes to standard input; nothing closes it.
    pub async fn write(&self, id: &str, exec: &str, data: &[u8]) {
        let request = WriteStreamRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            data: data.to_vec(),
            ..Default::default()
        };
        let written = self.client.write_stdin(call(), &request).await.unwrap();
        assert_eq!(written.len as usize, data.len());
    }

    /// Sends a signal.
    pub async fn signal(&self, id: &str, exec: &str, signal: i32) {
        let request = SignalProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            signal: signal as u32,
            ..Default::default()
        };
        self.client.signal_process(call(), &request).await.unwrap();
    }

    /// Removes a container.
    pub async fn remove(&self, id: &str) {
        let request = RemoveContainerRequest { container_id: id.to_owned(), ..Default::default() };
        self.client.remove_container(call(), &request).await.unwrap();
    }

    /// A path of the agent's file systems as the test sees it.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.pid()))
    }

    /// Gives the agent's network namespace an interface.
    pub fn nic(&self, name: &str, mac: &str) {
        let status = Command::new("nsenter")
            .args([format!("--target={}", self.pid()), "--net".to_owned()])
            .args(["ip", "link", "add", name, "address", mac, "type", "bridge"])
            .status();
        assert!(status.expect("these tests need nsenter and ip").success());
    }

    /// Waits for the agent's own end.
    pub async fn ended(&mut self) -> ExitStatus {
        for _ in 0..500 {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the agent does not end");
    }

    /// The agent's number in the test's pid namespace.
    fn pid(&self) -> String {
        let unshare = self.process.id();
        let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"));
        children.unwrap().trim().to_owned()
    }

    /// The cgroups of this agent's containers, as far as there are any.
    pub fn cgroups(&self, id: &str) -> Vec<PathBuf> {
        let root = Path::new("/sys/fs/cgroup");
        let mut folders = vec![root.to_owned()];
        folders.extend(fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()));
        let own = format!("{}/{id}", self.cgroup.trim_start_matches('/'));
        folders.iter().map(|folder| folder.join(&own)).filter(|path| path.exists()).collect()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Killed together with all containers, which are in its pid namespace; their groups are
        // free once the last of them has gone.
        drop(self.process.kill());
        drop(self.process.wait());
        for _ in 0..200 {
            let groups = self.cgroups("");
            if groups.is_empty() {
                return;
            }
            for group in groups {
                for inner in fs::read_dir(&group).into_iter().flatten().flatten() {
                    drop(fs::remove_dir(inner.path()));
                }
                drop(fs::remove_dir(group));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

async fn connect(socket: &Path) -> Client {
    let address = format!("unix://{}", socket.display());
    for _ in 0..500 {
        if let Ok(client) = Client::connect(&address).await {
            return client;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the agent does not listen on {address}");
}

/// A process that runs `script` in a shell.
pub fn shell(script: &str) -> oci::Process {
    program(&["/bin/sh", "-c", script])
}

/// A process with a few capabilities.
pub fn program(args: &[&str]) -> oci::Process {
    let few: Vec<_> = ["CAP_KILL", "CAP_CHOWN", "CAP_SETUID"].map(str::to_owned).to_vec();
    let capabilities = oci::LinuxCapabilities {
        Bounding: few.clone(),
        Effective: few.clone(),
        Permitted: few,
        ..Default::default()
    };
    oci::Process {
        Args: args.iter().map(|&arg| arg.to_owned()).collect(),
        Env: vec!["PATH=/usr/bin:/bin:/usr/sbin:/sbin".to_owned(), "TERM=xterm".to_owned()],
        Cwd: "/".to_owned(),
        User: MessageField::some(oci::User::default()),
        Capabilities: MessageField::some(capabilities),
        ..Default::default()
    }
}

/// A mount of a container.
pub fn mount(kind: &str, source: &str, destination: &str, options: &[&str]) -> oci::Mount {
    oci::Mount {
        type_: kind.to_owned(),
        source: source.to_owned(),
        destination: destination.to_owned(),
        options: options.iter().map(|&option| option.to_owned()).collect(),
        ..Default::default()
    }
}

fn read_request(id: &str, exec: &str) -> ReadStreamRequest {
    ReadStreamRequest {
        container_id: id.to_owned(),
        exec_id: exec.to_owned(),
        len: 1 << 20,
        ..Default::default()
    }
}

/// The code and the text of a refused call.
pub fn refusal<T: std::fmt::Debug>(outcome: ttrpc::Result<T>) -> (Code, String) {
    match outcome {
        Err(Error::RpcStatus(status)) => (status.code(), status.message),
        other => panic!("not refused: {other:?}"),
    }
}
