//! The services `grpc.AgentService` and `grpc.Health`: decode, call, translate errors.
//!
//! What is not here is listed in [`super`].

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use kata_agent_protocol::agent::*;
use kata_agent_protocol::agent_ttrpc::AgentService;
use kata_agent_protocol::health::{
    CheckRequest, HealthCheckResponse, VersionCheckResponse, health_check_response,
};
use kata_agent_protocol::health_ttrpc::Health;
use kata_agent_protocol::protobuf::well_known_types::empty::Empty;
use kata_agent_protocol::{MAX_CHUNK_BYTES, csi, types};
use ttrpc::r#async::TtrpcContext;

use super::container::Container;
use super::error::{Refusal, to_status};
use super::process::{Process, Size};
use super::sandbox::{Sandbox, blocking, whole};
use super::{copyfile, details, spec, stats, storage};

/// Version of the protocol, as Kata's agents tell it.
const API_VERSION: &str = "0.0.1";

/// Both services of one sandbox.
#[derive(Debug, Clone)]
pub struct Service {
    sandbox: Arc<Sandbox>,
}

impl Service {
    /// Serves `sandbox`.
    pub fn new(sandbox: Arc<Sandbox>) -> Self {
        Self { sandbox }
    }

    fn container(&self, id: &str) -> Result<Arc<Container>> {
        self.sandbox.container(id)
    }

    fn process(&self, container: &str, exec: &str) -> Result<Arc<Process>> {
        self.container(container)?.process(exec)
    }

    /// Runs `work` with the container where it may block.
    async fn with_container<T: Send + 'static>(
        &self,
        id: &str,
        work: impl FnOnce(&Container) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let container = self.container(id)?;
        blocking(move || work(&container)).await
    }
}

/// What the caller is told.
fn told<T>(outcome: Result<T>) -> ttrpc::Result<T> {
    outcome.map_err(|error| to_status(&error))
}

/// As [`told`], of a call that answers with nothing.
fn done(outcome: Result<()>) -> ttrpc::Result<Empty> {
    told(outcome.map(|()| Empty::new()))
}

/// How much to read at most. The host's wish is bounded by what a message carries.
fn read_length(request: &ReadStreamRequest) -> Result<usize> {
    match request.len as usize {
        // An empty answer would say that the stream has ended.
        0 => Err(Refusal::invalid("Reading 0 bytes of a stream tells nothing")),
        length => Ok(length.min(MAX_CHUNK_BYTES)),
    }
}

#[async_trait]
impl Health for Service {
    async fn check(&self, _: &TtrpcContext, _: CheckRequest) -> ttrpc::Result<HealthCheckResponse> {
        let status = health_check_response::ServingStatus::SERVING.into();
        Ok(HealthCheckResponse { status, ..Default::default() })
    }

    async fn version(
        &self,
        _: &TtrpcContext,
        _: CheckRequest,
    ) -> ttrpc::Result<VersionCheckResponse> {
        Ok(VersionCheckResponse {
            grpc_version: API_VERSION.to_owned(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
    }
}

#[async_trait]
impl AgentService for Service {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> ttrpc::Result<Empty> {
        let sandbox = Arc::clone(&self.sandbox);
        done(whole(async move { sandbox.create(&request).await }).await)
    }

    async fn destroy_sandbox(
        &self,
        _: &TtrpcContext,
        _: DestroySandboxRequest,
    ) -> ttrpc::Result<Empty> {
        let sandbox = Arc::clone(&self.sandbox);
        done(whole(async move { sandbox.destroy().await }).await)
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let sandbox = Arc::clone(&self.sandbox);
        done(whole(async move { sandbox.create_container(&request).await }).await)
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        request: StartContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let start = async {
            let container = self.container(&request.container_id)?;
            whole(async move { container.start().await }).await
        };
        done(start.await)
    }

    async fn remove_container(
        &self,
        _: &TtrpcContext,
        request: RemoveContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let sandbox = Arc::clone(&self.sandbox);
        let limit = Duration::from_secs(request.timeout.into());
        let remove = async move { sandbox.remove_container(&request.container_id, limit).await };
        done(whole(remove).await)
    }

    async fn exec_process(
        &self,
        _: &TtrpcContext,
        request: ExecProcessRequest,
    ) -> ttrpc::Result<Empty> {
        let sandbox = Arc::clone(&self.sandbox);
        let exec = async move {
            let container = sandbox.container(&request.container_id)?;
            let process = request.process.get_or_default();
            container.exec(&sandbox.reaper, &request.exec_id, process).await
        };
        done(whole(exec).await)
    }

    async fn signal_process(
        &self,
        _: &TtrpcContext,
        request: SignalProcessRequest,
    ) -> ttrpc::Result<Empty> {
        let reaper = Arc::clone(&self.sandbox.reaper);
        let id = request.container_id.clone();
        let signal = self.with_container(&id, move |container| {
            let signal = i32::try_from(request.signal).unwrap_or(i32::MAX);
            container.signal(&reaper, &request.exec_id, signal)
        });
        done(signal.await)
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: WaitProcessRequest,
    ) -> ttrpc::Result<WaitProcessResponse> {
        let process = told(self.process(&request.container_id, &request.exec_id))?;
        Ok(WaitProcessResponse { status: process.wait().await, ..Default::default() })
    }

    async fn pause_container(
        &self,
        _: &TtrpcContext,
        request: PauseContainerRequest,
    ) -> ttrpc::Result<Empty> {
        done(self.with_container(&request.container_id, |container| container.pause(true)).await)
    }

    async fn resume_container(
        &self,
        _: &TtrpcContext,
        request: ResumeContainerRequest,
    ) -> ttrpc::Result<Empty> {
        done(self.with_container(&request.container_id, |container| container.pause(false)).await)
    }

    async fn write_stdin(
        &self,
        _: &TtrpcContext,
        request: WriteStreamRequest,
    ) -> ttrpc::Result<WriteStreamResponse> {
        let process = told(self.process(&request.container_id, &request.exec_id))?;
        told(process.stdio.write_stdin(&request.data).await)?;
        // A message holds no more than 4 MiB.
        let len = request.data.len() as u32;
        Ok(WriteStreamResponse { len, ..Default::default() })
    }

    async fn read_stdout(
        &self,
        _: &TtrpcContext,
        request: ReadStreamRequest,
    ) -> ttrpc::Result<ReadStreamResponse> {
        let process = told(self.process(&request.container_id, &request.exec_id))?;
        let length = told(read_length(&request))?;
        let data = told(process.stdio.read_stdout(length, &process.exit).await)?;
        Ok(ReadStreamResponse { data, ..Default::default() })
    }

    async fn read_stderr(
        &self,
        _: &TtrpcContext,
        request: ReadStreamRequest,
    ) -> ttrpc::Result<ReadStreamResponse> {
        let process = told(self.process(&request.container_id, &request.exec_id))?;
        let length = told(read_length(&request))?;
        let data = told(process.stdio.read_stderr(length, &process.exit).await)?;
        Ok(ReadStreamResponse { data, ..Default::default() })
    }

    async fn close_stdin(
        &self,
        _: &TtrpcContext,
        request: CloseStdinRequest,
    ) -> ttrpc::Result<Empty> {
        let process = told(self.process(&request.container_id, &request.exec_id))?;
        process.stdio.close_stdin().await;
        Ok(Empty::new())
    }

    async fn tty_win_resize(
        &self,
        _: &TtrpcContext,
        request: TtyWinResizeRequest,
    ) -> ttrpc::Result<Empty> {
        let size = Size { rows: request.row, columns: request.column };
        let process = self.process(&request.container_id, &request.exec_id);
        done(process.and_then(|process| process.resize(size)))
    }

    async fn stats_container(
        &self,
        _: &TtrpcContext,
        request: StatsContainerRequest,
    ) -> ttrpc::Result<StatsContainerResponse> {
        let stats = self.with_container(&request.container_id, |container| {
            stats::response(container.cgroup().stats()?)
        });
        told(stats.await)
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: UpdateContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let id = request.container_id.clone();
        let update = self.with_container(&id, move |container| {
            let resources = spec::resources(request.resources.get_or_default());
            let resources = serde_json::from_value(resources);
            container.cgroup().update(&resources.context("The limits make no sense")?)
        });
        done(update.await)
    }

    async fn update_interface(
        &self,
        _: &TtrpcContext,
        request: UpdateInterfaceRequest,
    ) -> ttrpc::Result<types::Interface> {
        let sandbox = Arc::clone(&self.sandbox);
        let interface = request.interface.unwrap_or_default();
        let update = async move {
            sandbox.network.update_interface(&interface).await?;
            Ok(interface)
        };
        told(whole(update).await)
    }

    async fn update_routes(
        &self,
        _: &TtrpcContext,
        request: UpdateRoutesRequest,
    ) -> ttrpc::Result<Routes> {
        let sandbox = Arc::clone(&self.sandbox);
        let update = async move {
            sandbox.network.update_routes(&request.routes.Routes).await?;
            sandbox.network.routes().await
        };
        let routes = told(whole(update).await)?;
        Ok(Routes { Routes: routes, ..Default::default() })
    }

    async fn add_arp_neighbors(
        &self,
        _: &TtrpcContext,
        request: AddARPNeighborsRequest,
    ) -> ttrpc::Result<Empty> {
        let sandbox = Arc::clone(&self.sandbox);
        let add =
            async move { sandbox.network.add_neighbours(&request.neighbors.ARPNeighbors).await };
        done(whole(add).await)
    }

    async fn list_interfaces(
        &self,
        _: &TtrpcContext,
        _: ListInterfacesRequest,
    ) -> ttrpc::Result<Interfaces> {
        let interfaces = told(self.sandbox.network.interfaces().await)?;
        Ok(Interfaces { Interfaces: interfaces, ..Default::default() })
    }

    async fn list_routes(&self, _: &TtrpcContext, _: ListRoutesRequest) -> ttrpc::Result<Routes> {
        let routes = told(self.sandbox.network.routes().await)?;
        Ok(Routes { Routes: routes, ..Default::default() })
    }

    async fn get_guest_details(
        &self,
        _: &TtrpcContext,
        request: GuestDetailsRequest,
    ) -> ttrpc::Result<GuestDetailsResponse> {
        told(details::guest(&request))
    }

    async fn get_metrics(&self, _: &TtrpcContext, _: GetMetricsRequest) -> ttrpc::Result<Metrics> {
        Ok(Metrics { metrics: told(details::metrics())?, ..Default::default() })
    }

    async fn get_volume_stats(
        &self,
        _: &TtrpcContext,
        request: VolumeStatsRequest,
    ) -> ttrpc::Result<csi::VolumeStatsResponse> {
        told(blocking(move || details::volume(&request.volume_guest_path)).await)
    }

    async fn online_cpu_mem(
        &self,
        _: &TtrpcContext,
        request: OnlineCPUMemRequest,
    ) -> ttrpc::Result<Empty> {
        done(details::online(&request).await)
    }

    async fn set_guest_date_time(
        &self,
        _: &TtrpcContext,
        request: SetGuestDateTimeRequest,
    ) -> ttrpc::Result<Empty> {
        done(details::set_clock(&request))
    }

    async fn reseed_random_dev(
        &self,
        _: &TtrpcContext,
        request: ReseedRandomDevRequest,
    ) -> ttrpc::Result<Empty> {
        done(details::reseed(&request))
    }

    async fn copy_file(&self, _: &TtrpcContext, request: CopyFileRequest) -> ttrpc::Result<Empty> {
        done(blocking(move || copyfile::copy(&request)).await)
    }

    async fn update_ephemeral_mounts(
        &self,
        _: &TtrpcContext,
        request: UpdateEphemeralMountsRequest,
    ) -> ttrpc::Result<Empty> {
        done(blocking(move || storage::resize(&request.storages)).await)
    }

    async fn get_oom_event(
        &self,
        _: &TtrpcContext,
        _: GetOOMEventRequest,
    ) -> ttrpc::Result<OOMEvent> {
        let container_id = told(self.sandbox.oom.next().await)?;
        Ok(OOMEvent { container_id, ..Default::default() })
    }
}
