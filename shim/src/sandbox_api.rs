//! containerd's sandbox API (2.x, `sandboxer = "shim"`): a pod without a pause container.
//!
//! The pod's VM starts with StartSandbox and ends with StopSandbox. Containers come through the task
//! API, as those of any pod.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anyhow::Context as _;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::sandbox_api as api;
use containerd_shim_protos::sandbox_async::{Sandbox, create_sandbox};
use containerd_shim_protos::ttrpc;
use containerd_shim_protos::ttrpc::r#async::{Service, TtrpcContext};
use kata_agent_protocol::protobuf::well_known_types::timestamp::Timestamp;
use kata_config::InternetworkingModel;
use tokio::sync::{Mutex, watch};

use crate::disks;
use crate::error::{Kind, TaskError, TaskResult};
use crate::events;
use crate::network::Wish;
use crate::order;
use crate::pod::Pod;
use crate::process::Exit;
use crate::sandbox::Order;

/// What CreateSandbox left for StartSandbox, and when things happened.
#[derive(Debug, Default)]
struct Life {
    order: Option<Order>,
    started: Option<Timestamp>,
}

/// The sandbox service of one pod.
#[derive(Debug)]
pub struct SandboxService {
    pod: Arc<Pod>,
    exit: watch::Sender<bool>,
    life: Mutex<Life>,
}

/// The service by its name.
pub fn service(pod: &Arc<Pod>, exit: &watch::Sender<bool>) -> HashMap<String, Service> {
    create_sandbox(Arc::new(SandboxService {
        pod: Arc::clone(pod),
        exit: exit.clone(),
        life: Mutex::default(),
    }))
}

impl SandboxService {
    fn check(&self, id: &str) -> TaskResult<()> {
        match id == self.pod.id {
            true => Ok(()),
            false => Err(TaskError::not_found(format!(
                "This is the shim of {}, not of {id}",
                self.pod.id
            ))),
        }
    }

    fn order(&self, request: &api::CreateSandboxRequest) -> anyhow::Result<Order> {
        let annotations: BTreeMap<_, _> = request.annotations.clone().into_iter().collect();
        let config = order::sized(request.options.as_ref(), &annotations)?;
        let is_none = config.runtime.internetworking_model == InternetworkingModel::None;
        let network = match request.netns_path.as_str() {
            _ if is_none => Wish::None,
            "" => Wish::Own,
            path => Wish::Cni { netns: path.into() },
        };
        let name = annotations.get("io.kubernetes.cri.sandbox-name").cloned();
        let disk_slots = disks::slots(&config, &[], None)?;
        Ok(Order {
            id: request.sandbox_id.clone(),
            config,
            network,
            cgroup: None,
            hostname: name.unwrap_or_default(),
            resolv_conf: Vec::new(),
            disk_slots,
        })
    }
}

type Answer<T> = ttrpc::Result<T>;

#[async_trait::async_trait]
impl Sandbox for SandboxService {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::CreateSandboxRequest,
    ) -> Answer<api::CreateSandboxResponse> {
        self.check(&request.sandbox_id)?;
        let mut life = self.life.lock().await;
        if life.order.is_some() || life.started.is_some() {
            let taken = format!("Sandbox {} was created before", request.sandbox_id);
            return Err(TaskError::new(Kind::AlreadyExists, taken).into());
        }
        life.order = Some(self.order(&request).map_err(TaskError::from)?);
        // From here to ShutdownSandbox.
        self.pod.keep();
        Ok(api::CreateSandboxResponse::new())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::StartSandboxRequest,
    ) -> Answer<api::StartSandboxResponse> {
        self.check(&request.sandbox_id)?;
        let mut life = self.life.lock().await;
        let order = life.order.take().ok_or_else(|| {
            let message = format!("Sandbox {} was not created, or was started", request.sandbox_id);
            TaskError::precondition(message)
        })?;
        let pod = Arc::clone(&self.pod);
        // To its end, even if the caller does not wait for it.
        let starting = tokio::spawn(async move {
            let _one = pod.creating.lock().await;
            pod.up(&order).await
        });
        let broken = |error| anyhow::Error::new(error).context("The start broke off");
        starting.await.map_err(|error| TaskError::from(broken(error)))??;
        let now = events::now();
        life.started = Some(now.clone());
        let mut answer = api::StartSandboxResponse::new();
        answer.pid = self.pod.pid();
        answer.created_at = MessageField::some(now);
        Ok(answer)
    }

    async fn platform(
        &self,
        _: &TtrpcContext,
        request: api::PlatformRequest,
    ) -> Answer<api::PlatformResponse> {
        self.check(&request.sandbox_id)?;
        let mut answer = api::PlatformResponse::new();
        let platform = answer.platform.mut_or_insert_default();
        platform.os = "linux".to_owned();
        // containerd names processors as Go does.
        platform.architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }
        .to_owned();
        Ok(answer)
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::StopSandboxRequest,
    ) -> Answer<api::StopSandboxResponse> {
        self.check(&request.sandbox_id)?;
        self.pod.stop_containers();
        self.pod.close().await.context("Failed to stop the sandbox").map_err(TaskError::from)?;
        Ok(api::StopSandboxResponse::new())
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::WaitSandboxRequest,
    ) -> Answer<api::WaitSandboxResponse> {
        self.check(&request.sandbox_id)?;
        let exit = self.pod.wait_over().await;
        let mut answer = api::WaitSandboxResponse::new();
        answer.exit_status = exit.status;
        answer.exited_at = MessageField::some(exit.at);
        Ok(answer)
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: api::SandboxStatusRequest,
    ) -> Answer<api::SandboxStatusResponse> {
        self.check(&request.sandbox_id)?;
        let life = self.life.lock().await;
        let mut answer = api::SandboxStatusResponse::new();
        answer.sandbox_id.clone_from(&self.pod.id);
        answer.pid = self.pod.pid();
        // The words of CRI's PodSandboxState, which containerd compares with.
        let is_ready = self.pod.is_up().await;
        answer.state = if is_ready { "SANDBOX_READY" } else { "SANDBOX_NOTREADY" }.to_owned();
        answer.created_at = life.started.clone().into();
        answer.exited_at = self.pod.over().map(|exit: Exit| exit.at).into();
        answer.extra = MessageField::some(Any::new());
        Ok(answer)
    }

    async fn ping_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::PingRequest,
    ) -> Answer<api::PingResponse> {
        self.check(&request.sandbox_id)?;
        Ok(api::PingResponse::new())
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::ShutdownSandboxRequest,
    ) -> Answer<api::ShutdownSandboxResponse> {
        self.check(&request.sandbox_id)?;
        self.pod.close().await.context("Failed to stop the sandbox").map_err(TaskError::from)?;
        self.exit.send_replace(true);
        Ok(api::ShutdownSandboxResponse::new())
    }
}
