//! containerd's task API, versions 2 and 3: decode, call, answer. No logic.
//!
//! Both versions have the same messages; the server offers one implementation under both names.

use std::collections::HashMap;
use std::sync::Arc;

use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest,
    ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest,
    StatsResponse, Status, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::{EnumOrUnknown, MessageField};
use containerd_shim_protos::shim_async::{Task, create_task};
use containerd_shim_protos::ttrpc;
use containerd_shim_protos::ttrpc::r#async::{Service, TtrpcContext};
use oci_spec::runtime::LinuxResources;
use tokio::sync::watch;

use crate::container::{self, Container};
use crate::error::{Kind, TaskError};
use crate::oci;
use crate::pod::Pod;
use crate::process::State;
use crate::stats;
use crate::stdio::Paths;

const VERSION_2: &str = "containerd.task.v2.Task";
const VERSION_3: &str = "containerd.task.v3.Task";

/// The task service of one pod.
#[derive(Debug)]
pub struct TaskService {
    pod: Arc<Pod>,
    /// Set when the server is to end.
    exit: watch::Sender<bool>,
}

/// The service under both names.
///
/// # Panics
/// Never: the generated code has the service it names.
pub fn services(pod: &Arc<Pod>, exit: &watch::Sender<bool>) -> HashMap<String, Service> {
    let service = || TaskService { pod: Arc::clone(pod), exit: exit.clone() };
    let mut both = create_task(Arc::new(service()));
    let second = create_task(Arc::new(service())).remove(VERSION_3);
    both.extend(second.map(|methods| (VERSION_2.to_owned(), methods)));
    both
}

type Answer<T> = ttrpc::Result<T>;

impl TaskService {
    fn container(&self, id: &str) -> Result<Arc<Container>, TaskError> {
        self.pod.container(id)
    }
}

fn status_of(container: &Container, state: &State, is_init: bool) -> Status {
    match state {
        State::Created => Status::CREATED,
        State::Running if is_init && container.is_paused() => Status::PAUSED,
        State::Running => Status::RUNNING,
        State::Stopped(_) => Status::STOPPED,
    }
}

/// JSON inside an `Any`.
fn json<T: serde::de::DeserializeOwned>(value: &[u8], what: &str) -> Result<T, TaskError> {
    serde_json::from_slice(value).map_err(|error| {
        TaskError::new(Kind::InvalidArgument, format!("The request holds no {what}: {error}"))
    })
}

#[async_trait::async_trait]
impl Task for TaskService {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> Answer<CreateTaskResponse> {
        let id = request.id.clone();
        container::create(&self.pod, request).await.inspect_err(|error| {
            tracing::error!(container = %id, %error, "create failed");
        })?;
        let mut answer = CreateTaskResponse::new();
        answer.pid = self.pod.pid();
        Ok(answer)
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> Answer<StartResponse> {
        let process = self.container(&request.id)?.process(&request.exec_id)?;
        let agent = self.pod.agent().await?;
        let pid = self.pod.pid();
        process.start(&agent, &self.pod.events, pid).await?;
        let mut answer = StartResponse::new();
        answer.pid = pid;
        Ok(answer)
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> Answer<StateResponse> {
        let container = self.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        let state = process.state();
        let mut answer = StateResponse::new();
        answer.id = container.id.clone();
        answer.exec_id.clone_from(&request.exec_id);
        answer.bundle = container.bundle.display().to_string();
        answer.pid = self.pod.pid();
        answer.status =
            EnumOrUnknown::new(status_of(&container, &state, request.exec_id.is_empty()));
        answer.stdin.clone_from(&process.paths.stdin);
        answer.stdout.clone_from(&process.paths.stdout);
        answer.stderr.clone_from(&process.paths.stderr);
        answer.terminal = process.paths.terminal;
        if let State::Stopped(exit) = state {
            answer.exit_status = exit.status;
            answer.exited_at = MessageField::some(exit.at);
        }
        Ok(answer)
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> Answer<Empty> {
        let container = self.container(&request.id)?;
        let mut spec: oci_spec::runtime::Process = json(&request.spec.value, "OCI process")?;
        spec.set_terminal(Some(request.terminal));
        spec.set_apparmor_profile(None);
        spec.set_selinux_label(None);
        let process =
            oci::process(&spec).map_err(|error| TaskError::from(anyhow::Error::new(error)))?;
        let paths = Paths {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        container.add_exec(&self.pod.events, &request.exec_id, paths, process)?;
        Ok(Empty::new())
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> Answer<WaitResponse> {
        let process = self.container(&request.id)?.process(&request.exec_id)?;
        let exit = process.wait().await;
        let mut answer = WaitResponse::new();
        answer.exit_status = exit.status;
        answer.exited_at = MessageField::some(exit.at);
        Ok(answer)
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> Answer<Empty> {
        let container = self.container(&request.id)?;
        container.kill(&self.pod, &request.exec_id, request.signal, request.all).await?;
        Ok(Empty::new())
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> Answer<DeleteResponse> {
        let container = self.container(&request.id)?;
        let exit = match request.exec_id.is_empty() {
            true => container.delete(&self.pod).await?,
            false => container.delete_exec(&request.exec_id)?,
        };
        let mut answer = DeleteResponse::new();
        answer.pid = self.pod.pid();
        answer.exit_status = exit.status;
        answer.exited_at = MessageField::some(exit.at);
        Ok(answer)
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> Answer<PidsResponse> {
        self.container(&request.id)?;
        let mut info = ProcessInfo::new();
        info.pid = self.pod.pid();
        let mut answer = PidsResponse::new();
        answer.processes = vec![info];
        Ok(answer)
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> Answer<Empty> {
        self.container(&request.id)?.set_paused(&self.pod, true).await?;
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> Answer<Empty> {
        self.container(&request.id)?.set_paused(&self.pod, false).await?;
        Ok(Empty::new())
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> Answer<Empty> {
        let message = "The processes of a VM cannot be checkpointed one by one";
        Err(TaskError::new(Kind::Unimplemented, message).into())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> Answer<Empty> {
        let process = self.container(&request.id)?.process(&request.exec_id)?;
        let agent = self.pod.agent().await?;
        process.resize(&agent, request.width, request.height).await?;
        Ok(Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> Answer<Empty> {
        let process = self.container(&request.id)?.process(&request.exec_id)?;
        if request.stdin {
            process.close_stdin();
        }
        Ok(Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> Answer<Empty> {
        let container = self.container(&request.id)?;
        let resources: LinuxResources = json(&request.resources.value, "OCI resources")?;
        container.update(&self.pod, &resources).await?;
        Ok(Empty::new())
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> Answer<StatsResponse> {
        let stats = self.container(&request.id)?.stats(&self.pod).await?;
        let mut answer = StatsResponse::new();
        answer.stats = MessageField::some(stats::metrics(&stats).map_err(TaskError::from)?);
        Ok(answer)
    }

    async fn connect(&self, _: &TtrpcContext, _: ConnectRequest) -> Answer<ConnectResponse> {
        let mut answer = ConnectResponse::new();
        answer.shim_pid = std::process::id();
        answer.task_pid = self.pod.pid();
        answer.version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(answer)
    }

    async fn shutdown(&self, _: &TtrpcContext, request: ShutdownRequest) -> Answer<Empty> {
        if self.pod.is_empty() || request.now {
            self.exit.send_replace(true);
        }
        Ok(Empty::new())
    }
}
