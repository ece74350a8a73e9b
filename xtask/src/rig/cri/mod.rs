//! A client of the Container Runtime Interface: what a kubelet asks of containerd.

use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::client::Grpc;
use tonic::codegen::http::Uri;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;
use tower::service_fn;

use messages::{
    ContainerConfig, ContainerId, ContainerStats, ContainerStatsResponse, ContainerStatus,
    ContainerStatusResponse, CreateContainerRequest, Empty, ExecSyncRequest, ExecSyncResponse,
    ImageSpec, ImageStatusRequest, ImageStatusResponse, LinuxContainerResources,
    LinuxPodSandboxStats, ListContainerStatsRequest, ListContainerStatsResponse,
    ListContainersRequest, ListContainersResponse, ListImagesRequest, ListImagesResponse,
    ListPodSandboxRequest, ListPodSandboxResponse, PodSandboxConfig, PodSandboxId,
    PodSandboxStatsResponse, PodSandboxStatus, PodSandboxStatusResponse, RunPodSandboxRequest,
    RuntimeCondition, StatusRequest, StatusResponse, StopContainerRequest,
    UpdateContainerResourcesRequest, VersionRequest, VersionResponse,
};

pub mod messages;

const RUNTIME: &str = "runtime.v1.RuntimeService";
const IMAGES: &str = "runtime.v1.ImageService";
/// For any call: the kubelet gives the start of a pod four minutes.
const LIMIT: Duration = Duration::from_secs(240);

/// Speaks to one containerd, and connects anew when that was started anew. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cri(Grpc<Channel>);

impl Cri {
    /// For the containerd that serves, or will serve, at `socket`.
    ///
    /// Must be called in a runtime.
    pub fn new(socket: &Path) -> Self {
        let socket = socket.to_owned();
        let connector = service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { io::Result::Ok(TokioIo::new(UnixStream::connect(socket).await?)) }
        });
        // The name says nothing: the connector knows where to.
        let endpoint = Endpoint::from_static("http://localhost").timeout(LIMIT);
        Self(Grpc::new(endpoint.connect_with_connector_lazy(connector)))
    }

    async fn call<Q, A>(&self, service: &str, method: &str, request: Q) -> Result<A>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let call = async {
            let mut grpc = self.0.clone();
            grpc.ready().await.map_err(|error| Status::unavailable(format!("{error:?}")))?;
            let path = PathAndQuery::try_from(format!("/{service}/{method}"))
                .map_err(|error| Status::internal(error.to_string()))?;
            let codec = ProstCodec::<Q, A>::default();
            grpc.unary(Request::new(request), path, codec).await
        };
        // Its code is still there: `downcast_ref::<Status>`.
        call.await.map(tonic::Response::into_inner).with_context(|| format!("{method} failed"))
    }

    async fn runtime<Q, A>(&self, method: &str, request: Q) -> Result<A>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        self.call(RUNTIME, method, request).await
    }

    /// Who is there.
    ///
    /// # Errors
    /// Nobody answers.
    pub async fn version(&self) -> Result<VersionResponse> {
        self.runtime("Version", VersionRequest { version: "v1".to_owned() }).await
    }

    /// Whether runtime and network are ready.
    ///
    /// # Errors
    /// As containerd says; so it is with all calls below.
    pub async fn status(&self) -> Result<Vec<RuntimeCondition>> {
        let answer: StatusResponse = self.runtime("Status", StatusRequest {}).await?;
        Ok(answer.status.context("Status has no status")?.conditions)
    }

    /// Starts a pod and returns its id.
    ///
    /// # Errors
    /// As containerd says.
    pub async fn run_pod(&self, config: PodSandboxConfig, handler: &str) -> Result<String> {
        let request =
            RunPodSandboxRequest { config: Some(config), runtime_handler: handler.to_owned() };
        let answer: PodSandboxId = self.runtime("RunPodSandbox", request).await?;
        Ok(answer.pod_sandbox_id)
    }

    /// Ends all that runs in a pod, and gives its network back. May be repeated.
    ///
    /// # Errors
    /// As containerd says.
    pub async fn stop_pod(&self, pod: &str) -> Result<()> {
        self.runtime("StopPodSandbox", pod_id(pod)).await.map(|Empty {}| ())
    }

    /// Removes a pod with its containers. May be repeated.
    ///
    /// # Errors
    /// As containerd says.
    pub async fn remove_pod(&self, pod: &str) -> Result<()> {
        self.runtime("RemovePodSandbox", pod_id(pod)).await.map(|Empty {}| ())
    }

    /// How a pod is.
    ///
    /// # Errors
    /// As containerd says.
    pub async fn pod_status(&self, pod: &str) -> Result<PodSandboxStatus> {
        let answer: PodSandboxStatusResponse =
            self.runtime("PodSandboxStatus", pod_id(pod)).await?;
        answer.status.context("PodSandboxStatus has no status")
    }

    /// All pods.
    ///
    /// # Errors
    /// As containerd says.
    pub async fn pods(&self) -> Result<Vec<messages::PodSandbox>> {
        let answer: ListPodSandboxResponse =
            self.runtime("ListPodSandbox", ListPodSandboxRequest {}).await?;
        Ok(answer.items)
    }

    /// What a pod and its containers consume.
    ///
    /// # Errors
    /// As containerd says.
    pub async fn pod_stats(&self, pod: &str) -> Result<LinuxPodSandboxStats> {
        let answer: PodSandboxStatsResponse = self.runtime("PodSandboxStats", pod_id(pod)).await?;
        answer.stats.and_then(|stats| stats.linux).context("PodSandboxStats has no stats")
    }

    /// Makes a container in a pod and returns its id. containerd wants the pod's configuration again.
    ///
    /// # Errors
    /// As containerd says.
    pub async fn create_container(
        &self,
        pod: &str,
        config: ContainerConfig,
        sandbox_config: PodSandboxConfig,
    ) -> Result<String> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let answer: ContainerId = self.runtime("CreateContainer", request).await?;
        Ok(answer.container_id)
    }

    /// Starts a container that was made.
    ///
    /// # Errors
    /// As containerd says.
    pub async fn start_container(&self, container: &str) -> Result<()> {
        self.runtime("StartContainer", container_id(container)).await.map(|Empty {}| ())
    }

    /// Ends a container: by its stop signal, and by SIGKILL after `grace`.
    ///
    /// # Errors
    /// As containerd says.
    pub async fn stop_container(&self, container: &str, grace: Duration) -> Result<()> {
        let request =
            StopContainerRequest { container_id: container.to_owned(), timeout: seconds(grace) };
        self.runtime("StopContainer", request).await.map(|Empty {}| ())
    }

    /// Removes a container.
    ///
    /// # Errors
    /// As containerd says.
    pub async fn remove_container(&self, container: &str) -> Result<()> {
        self.runtime("RemoveContainer", container_id(container)).await.map(|Empty {}| ())
    }

    /// How a container is.
    ///
    /// # Errors
    /// As containerd says.
    pub async fn container_status(&self, container: &str) -> Result<ContainerStatus> {
        let answer: ContainerStatusResponse =
            self.runtime("ContainerStatus", container_id(container)).await?;
        answer.status.context("ContainerStatus has no status")
    }

    /// All containers.
    ///
    /// # Errors
    /// As containerd says.
    pub async fn containers(&self) -> Result<Vec<messages::Container>> {
        let answer: ListContainersResponse =
            self.runtime("ListContainers", ListContainersRequest {}).await?;
        Ok(answer.containers)
    }

    /// Runs a command in a container, for `limit` at most, and returns what it printed.
    ///
    /// # Errors
    /// As containerd says; a command that fails is no error here.
    pub async fn exec(
        &self,
        container: &str,
        command: &[&str],
        limit: Duration,
    ) -> Result<ExecSyncResponse> {
        let request = ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            timeout: seconds(limit),
        };
        self.runtime("ExecSync", request).await
    }

    /// Changes what a container may consume.
    ///
    /// # Errors
    /// As containerd says.
    pub async fn update_container(
        &self,
        container: &str,
        resources: LinuxContainerResources,
    ) -> Result<()> {
        let request = UpdateContainerResourcesRequest {
            container_id: container.to_owned(),
            linux: Some(resources),
        };
        self.runtime("UpdateContainerResources", request).await.map(|Empty {}| ())
    }

    /// What a container consumes.
    ///
    /// # Errors
    /// As containerd says.
    pub async fn container_stats(&self, container: &str) -> Result<ContainerStats> {
        let answer: ContainerStatsResponse =
            self.runtime("ContainerStats", container_id(container)).await?;
        answer.stats.context("ContainerStats has no stats")
    }

    /// What all containers consume.
    ///
    /// # Errors
    /// As containerd says.
    pub async fn all_container_stats(&self) -> Result<Vec<ContainerStats>> {
        let answer: ListContainerStatsResponse =
            self.runtime("ListContainerStats", ListContainerStatsRequest {}).await?;
        Ok(answer.stats)
    }

    /// The images that are there.
    ///
    /// # Errors
    /// As containerd says.
    pub async fn images(&self) -> Result<Vec<messages::Image>> {
        let answer: ListImagesResponse =
            self.call(IMAGES, "ListImages", ListImagesRequest {}).await?;
        Ok(answer.images)
    }

    /// The image of that name, if it is there.
    ///
    /// # Errors
    /// As containerd says.
    pub async fn image(&self, name: &str) -> Result<Option<messages::Image>> {
        let image = Some(ImageSpec { image: name.to_owned() });
        let answer: ImageStatusResponse =
            self.call(IMAGES, "ImageStatus", ImageStatusRequest { image }).await?;
        Ok(answer.image)
    }
}

fn pod_id(pod: &str) -> PodSandboxId {
    PodSandboxId { pod_sandbox_id: pod.to_owned() }
}

fn container_id(container: &str) -> ContainerId {
    ContainerId { container_id: container.to_owned() }
}

/// Whole seconds, as the interface counts, and never 0, which would mean for ever.
fn seconds(limit: Duration) -> i64 {
    i64::try_from(limit.as_secs().max(1)).unwrap_or(i64::MAX)
}
