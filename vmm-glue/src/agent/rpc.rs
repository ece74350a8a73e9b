//! The agent's services: one method each, which adds a time limit and says what failed.
//!
//! Requests and answers are the protocol's own. An answer of the agent that is empty is `()`.

use std::time::Duration;

use kata_agent_protocol::agent as msg;
use kata_agent_protocol::csi::VolumeStatsResponse;
use kata_agent_protocol::health::{CheckRequest, HealthCheckResponse, VersionCheckResponse};
use kata_agent_protocol::ttrpc::context::{Context, with_duration};
use kata_agent_protocol::types::Interface;

use super::{Agent, AgentError, HEALTH_LIMIT};

/// No limit is `None` here, and zero for ttrpc.
fn context(limit: Option<Duration>) -> Context {
    limit.map_or_else(Context::default, with_duration)
}

/// `doc, name = "Method" (Request) [-> Answer] [forever | within LIMIT];`
macro_rules! methods {
    (@limit $agent:ident) => { Some($agent.limit) };
    (@limit $agent:ident forever) => { None };
    (@limit $agent:ident within $limit:ident) => { Some($limit) };
    (@answer $answer:ident) => { drop($answer) };
    (@answer $answer:ident $type:ty) => { $answer };
    (@type) => { () };
    (@type $type:ty) => { $type };
    ($client:ident: $(
        $(#[$doc:meta])*
        $name:ident = $method:literal ($request:ty) $(-> $answer:ty)? $([$($limit:ident)+])?;
    )+) => {
        impl Agent { $(
            $(#[$doc])*
            ///
            /// # Errors
            /// See [`AgentError`].
            pub async fn $name(
                &self,
                request: &$request,
            ) -> Result<methods!(@type $($answer)?), AgentError> {
                let limit = methods!(@limit self $($($limit)+)?);
                let answer = self.$client.$name(context(limit), request).await;
                let answer = answer.map_err(|error| AgentError::from_ttrpc($method, error))?;
                Ok(methods!(@answer answer $($answer)?))
            }
        )+ }
    };
}

methods! { health:
    /// Whether the agent serves.
    check = "Check" (CheckRequest) -> HealthCheckResponse [within HEALTH_LIMIT];
    /// Versions of its protocol and of itself.
    version = "Version" (CheckRequest) -> VersionCheckResponse [within HEALTH_LIMIT];
}

methods! { service:
    /// Makes the pod: shared directories, shared namespaces, DNS.
    create_sandbox = "CreateSandbox" (msg::CreateSandboxRequest);
    /// Ends the pod; the agent's service ends with it.
    destroy_sandbox = "DestroySandbox" (msg::DestroySandboxRequest);
    /// Makes a container up to the point where its program would start.
    create_container = "CreateContainer" (msg::CreateContainerRequest);
    /// Starts a container's program.
    start_container = "StartContainer" (msg::StartContainerRequest);
    /// Kills what is left of a container, and removes it.
    remove_container = "RemoveContainer" (msg::RemoveContainerRequest);
    /// Starts another program in a container.
    exec_process = "ExecProcess" (msg::ExecProcessRequest);
    /// Signals a process, or all of a container.
    signal_process = "SignalProcess" (msg::SignalProcessRequest);
    /// Returns when a process has ended.
    wait_process = "WaitProcess" (msg::WaitProcessRequest) -> msg::WaitProcessResponse [forever];
    /// Changes a container's resources.
    update_container = "UpdateContainer" (msg::UpdateContainerRequest);
    /// Freezes a container.
    pause_container = "PauseContainer" (msg::PauseContainerRequest);
    /// Thaws a container.
    resume_container = "ResumeContainer" (msg::ResumeContainerRequest);
    /// What a container uses.
    stats_container = "StatsContainer" (msg::StatsContainerRequest) -> msg::StatsContainerResponse;
    /// Changes the size of memory-backed volumes.
    update_ephemeral_mounts = "UpdateEphemeralMounts" (msg::UpdateEphemeralMountsRequest);
    /// Unmounts shared directories that an earlier sandbox left.
    remove_stale_virtiofs_share_mounts =
        "RemoveStaleVirtiofsShareMounts" (msg::RemoveStaleVirtiofsShareMountsRequest);
    /// What the guest knows about a failure.
    get_diagnostic_data =
        "GetDiagnosticData" (msg::GetDiagnosticDataRequest) -> msg::GetDiagnosticDataResponse;
    /// Feeds a process; the answer says how much was taken. No data: end of input.
    write_stdin = "WriteStdin" (msg::WriteStreamRequest) -> msg::WriteStreamResponse;
    /// Returns what a process wrote, as soon as there is something. No data: end of output.
    read_stdout = "ReadStdout" (msg::ReadStreamRequest) -> msg::ReadStreamResponse [forever];
    /// As [`Agent::read_stdout`].
    read_stderr = "ReadStderr" (msg::ReadStreamRequest) -> msg::ReadStreamResponse [forever];
    /// Ends a process's input.
    close_stdin = "CloseStdin" (msg::CloseStdinRequest);
    /// Tells a process the size of its terminal.
    tty_win_resize = "TtyWinResize" (msg::TtyWinResizeRequest);
    /// Names, addresses and brings up an interface.
    update_interface = "UpdateInterface" (msg::UpdateInterfaceRequest) -> Interface;
    /// Sets routes; the answer is all there are.
    update_routes = "UpdateRoutes" (msg::UpdateRoutesRequest) -> msg::Routes;
    /// The interfaces there are.
    list_interfaces = "ListInterfaces" (msg::ListInterfacesRequest) -> msg::Interfaces;
    /// The routes there are.
    list_routes = "ListRoutes" (msg::ListRoutesRequest) -> msg::Routes;
    /// Sets neighbours that are known beforehand.
    add_arp_neighbors = "AddARPNeighbors" (msg::AddARPNeighborsRequest);
    /// The guest's packet filter.
    get_ip_tables = "GetIPTables" (msg::GetIPTablesRequest) -> msg::GetIPTablesResponse;
    /// Replaces the guest's packet filter.
    set_ip_tables = "SetIPTables" (msg::SetIPTablesRequest) -> msg::SetIPTablesResponse;
    /// The agent's metrics, as Prometheus reads them.
    get_metrics = "GetMetrics" (msg::GetMetricsRequest) -> msg::Metrics;
    /// Brings plugged CPUs and memory online.
    online_cpu_mem = "OnlineCPUMem" (msg::OnlineCPUMemRequest);
    /// Feeds the guest's random numbers.
    reseed_random_dev = "ReseedRandomDev" (msg::ReseedRandomDevRequest);
    /// Tells the guest of plugged memory, by address.
    mem_hotplug_by_probe = "MemHotplugByProbe" (msg::MemHotplugByProbeRequest);
    /// Sets the guest's clock.
    set_guest_date_time = "SetGuestDateTime" (msg::SetGuestDateTimeRequest);
    /// Puts a piece of a file into the guest.
    copy_file = "CopyFile" (msg::CopyFileRequest);
    /// Swaps to a disk, by PCI path.
    add_swap = "AddSwap" (msg::AddSwapRequest);
    /// Swaps to a disk, by path.
    add_swap_path = "AddSwapPath" (msg::AddSwapPathRequest);
    /// Grows a volume's file system.
    resize_volume = "ResizeVolume" (msg::ResizeVolumeRequest);
    /// Replaces the agent's policy.
    set_policy = "SetPolicy" (msg::SetPolicyRequest);
    /// What the guest and its agent are.
    get_guest_details = "GetGuestDetails" (msg::GuestDetailsRequest) -> msg::GuestDetailsResponse;
    /// Returns when a container ran out of memory.
    get_oom_event = "GetOOMEvent" (msg::GetOOMEventRequest) -> msg::OOMEvent [forever];
    /// What a volume holds.
    get_volume_stats = "GetVolumeStats" (msg::VolumeStatsRequest) -> VolumeStatsResponse;
}
