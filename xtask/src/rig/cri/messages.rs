//! The messages of the Container Runtime Interface, version 1, as far as they are spoken here: the fields
//! that nobody here sets or reads are left out, which protobuf allows. Numbers are those of
//! `k8s.io/cri-api/pkg/apis/runtime/v1/api.proto`.

#![expect(missing_docs, reason = "names and meaning are the interface's own")]

use std::collections::HashMap;

use prost::Message;

/// Declares messages, one line for each field.
macro_rules! messages {
    ($($(#[$about:meta])* $name:ident { $($(#[$field_about:meta])+ $field:ident: $kind:ty,)* })*) => {
        $(
            $(#[$about])*
            #[derive(Clone, PartialEq, Message)]
            pub struct $name {
                $($(#[$field_about])+ pub $field: $kind,)*
            }
        )*
    };
}

messages! {
    VersionRequest {
        #[prost(string, tag = "1")] version: String,
    }
    VersionResponse {
        #[prost(string, tag = "2")] runtime_name: String,
        #[prost(string, tag = "3")] runtime_version: String,
        #[prost(string, tag = "4")] runtime_api_version: String,
    }
    StatusRequest {}
    StatusResponse {
        #[prost(message, optional, tag = "1")] status: Option<RuntimeStatus>,
    }
    RuntimeStatus {
        #[prost(message, repeated, tag = "1")] conditions: Vec<RuntimeCondition>,
    }
    RuntimeCondition {
        #[prost(string, tag = "1")] kind: String,
        #[prost(bool, tag = "2")] status: bool,
        #[prost(string, tag = "3")] reason: String,
        #[prost(string, tag = "4")] message: String,
    }

    // Pods.
    PodSandboxMetadata {
        #[prost(string, tag = "1")] name: String,
        #[prost(string, tag = "2")] uid: String,
        #[prost(string, tag = "3")] namespace: String,
        #[prost(uint32, tag = "4")] attempt: u32,
    }
    DnsConfig {
        #[prost(string, repeated, tag = "1")] servers: Vec<String>,
        #[prost(string, repeated, tag = "2")] searches: Vec<String>,
        #[prost(string, repeated, tag = "3")] options: Vec<String>,
    }
    NamespaceOption {
        #[prost(enumeration = "NamespaceMode", tag = "1")] network: i32,
        #[prost(enumeration = "NamespaceMode", tag = "2")] pid: i32,
        #[prost(enumeration = "NamespaceMode", tag = "3")] ipc: i32,
    }
    LinuxSandboxSecurityContext {
        #[prost(message, optional, tag = "1")] namespace_options: Option<NamespaceOption>,
    }
    LinuxPodSandboxConfig {
        #[prost(string, tag = "1")] cgroup_parent: String,
        #[prost(message, optional, tag = "2")] security_context: Option<LinuxSandboxSecurityContext>,
    }
    PodSandboxConfig {
        #[prost(message, optional, tag = "1")] metadata: Option<PodSandboxMetadata>,
        #[prost(string, tag = "2")] hostname: String,
        #[prost(string, tag = "3")] log_directory: String,
        #[prost(message, optional, tag = "4")] dns_config: Option<DnsConfig>,
        #[prost(map = "string, string", tag = "6")] labels: HashMap<String, String>,
        #[prost(map = "string, string", tag = "7")] annotations: HashMap<String, String>,
        #[prost(message, optional, tag = "8")] linux: Option<LinuxPodSandboxConfig>,
    }
    RunPodSandboxRequest {
        #[prost(message, optional, tag = "1")] config: Option<PodSandboxConfig>,
        #[prost(string, tag = "2")] runtime_handler: String,
    }
    /// The request of all calls that take a pod and nothing else, and the answer of the one that makes
    /// it.
    PodSandboxId {
        #[prost(string, tag = "1")] pod_sandbox_id: String,
    }
    /// The answer of calls that answer nothing.
    Empty {}
    PodSandboxNetworkStatus {
        #[prost(string, tag = "1")] ip: String,
    }
    PodSandboxStatus {
        #[prost(string, tag = "1")] id: String,
        #[prost(message, optional, tag = "2")] metadata: Option<PodSandboxMetadata>,
        #[prost(enumeration = "PodSandboxState", tag = "3")] state: i32,
        #[prost(message, optional, tag = "5")] network: Option<PodSandboxNetworkStatus>,
        #[prost(string, tag = "9")] runtime_handler: String,
    }
    PodSandboxStatusResponse {
        #[prost(message, optional, tag = "1")] status: Option<PodSandboxStatus>,
    }
    ListPodSandboxRequest {}
    PodSandbox {
        #[prost(string, tag = "1")] id: String,
        #[prost(message, optional, tag = "2")] metadata: Option<PodSandboxMetadata>,
        #[prost(enumeration = "PodSandboxState", tag = "3")] state: i32,
        #[prost(string, tag = "7")] runtime_handler: String,
    }
    ListPodSandboxResponse {
        #[prost(message, repeated, tag = "1")] items: Vec<PodSandbox>,
    }

    // Containers.
    ContainerMetadata {
        #[prost(string, tag = "1")] name: String,
        #[prost(uint32, tag = "2")] attempt: u32,
    }
    ImageSpec {
        #[prost(string, tag = "1")] image: String,
    }
    KeyValue {
        #[prost(string, tag = "1")] key: String,
        #[prost(string, tag = "2")] value: String,
    }
    Mount {
        #[prost(string, tag = "1")] container_path: String,
        #[prost(string, tag = "2")] host_path: String,
        #[prost(bool, tag = "3")] readonly: bool,
    }
    LinuxContainerResources {
        #[prost(int64, tag = "1")] cpu_period: i64,
        #[prost(int64, tag = "2")] cpu_quota: i64,
        #[prost(int64, tag = "3")] cpu_shares: i64,
        #[prost(int64, tag = "4")] memory_limit_in_bytes: i64,
    }
    LinuxContainerSecurityContext {
        #[prost(message, optional, tag = "3")] namespace_options: Option<NamespaceOption>,
    }
    LinuxContainerConfig {
        #[prost(message, optional, tag = "1")] resources: Option<LinuxContainerResources>,
        #[prost(message, optional, tag = "2")] security_context: Option<LinuxContainerSecurityContext>,
    }
    ContainerConfig {
        #[prost(message, optional, tag = "1")] metadata: Option<ContainerMetadata>,
        #[prost(message, optional, tag = "2")] image: Option<ImageSpec>,
        #[prost(string, repeated, tag = "3")] command: Vec<String>,
        #[prost(string, repeated, tag = "4")] args: Vec<String>,
        #[prost(string, tag = "5")] working_dir: String,
        #[prost(message, repeated, tag = "6")] envs: Vec<KeyValue>,
        #[prost(message, repeated, tag = "7")] mounts: Vec<Mount>,
        #[prost(map = "string, string", tag = "10")] annotations: HashMap<String, String>,
        #[prost(string, tag = "11")] log_path: String,
        #[prost(bool, tag = "12")] stdin: bool,
        #[prost(bool, tag = "13")] stdin_once: bool,
        #[prost(bool, tag = "14")] tty: bool,
        #[prost(message, optional, tag = "15")] linux: Option<LinuxContainerConfig>,
    }
    CreateContainerRequest {
        #[prost(string, tag = "1")] pod_sandbox_id: String,
        #[prost(message, optional, tag = "2")] config: Option<ContainerConfig>,
        #[prost(message, optional, tag = "3")] sandbox_config: Option<PodSandboxConfig>,
    }
    /// The request of all calls that take a container and nothing else, and the answer of the one that
    /// makes it.
    ContainerId {
        #[prost(string, tag = "1")] container_id: String,
    }
    StopContainerRequest {
        #[prost(string, tag = "1")] container_id: String,
        /// In seconds, until it is killed.
        #[prost(int64, tag = "2")] timeout: i64,
    }
    ContainerStatus {
        #[prost(string, tag = "1")] id: String,
        #[prost(message, optional, tag = "2")] metadata: Option<ContainerMetadata>,
        #[prost(enumeration = "ContainerState", tag = "3")] state: i32,
        #[prost(int64, tag = "4")] created_at: i64,
        #[prost(int64, tag = "5")] started_at: i64,
        #[prost(int64, tag = "6")] finished_at: i64,
        #[prost(int32, tag = "7")] exit_code: i32,
        #[prost(string, tag = "10")] reason: String,
        #[prost(string, tag = "11")] message: String,
        #[prost(string, tag = "15")] log_path: String,
    }
    ContainerStatusResponse {
        #[prost(message, optional, tag = "1")] status: Option<ContainerStatus>,
    }
    ListContainersRequest {}
    Container {
        #[prost(string, tag = "1")] id: String,
        #[prost(string, tag = "2")] pod_sandbox_id: String,
        #[prost(message, optional, tag = "3")] metadata: Option<ContainerMetadata>,
        #[prost(enumeration = "ContainerState", tag = "6")] state: i32,
    }
    ListContainersResponse {
        #[prost(message, repeated, tag = "1")] containers: Vec<Container>,
    }
    ExecSyncRequest {
        #[prost(string, tag = "1")] container_id: String,
        #[prost(string, repeated, tag = "2")] cmd: Vec<String>,
        /// In seconds; 0 waits for ever.
        #[prost(int64, tag = "3")] timeout: i64,
    }
    ExecSyncResponse {
        #[prost(bytes = "vec", tag = "1")] stdout: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")] stderr: Vec<u8>,
        #[prost(int32, tag = "3")] exit_code: i32,
    }
    UpdateContainerResourcesRequest {
        #[prost(string, tag = "1")] container_id: String,
        #[prost(message, optional, tag = "2")] linux: Option<LinuxContainerResources>,
    }

    // Statistics.
    UInt64Value {
        #[prost(uint64, tag = "1")] value: u64,
    }
    CpuUsage {
        #[prost(int64, tag = "1")] timestamp: i64,
        #[prost(message, optional, tag = "2")] usage_core_nano_seconds: Option<UInt64Value>,
    }
    MemoryUsage {
        #[prost(int64, tag = "1")] timestamp: i64,
        #[prost(message, optional, tag = "2")] working_set_bytes: Option<UInt64Value>,
        #[prost(message, optional, tag = "4")] usage_bytes: Option<UInt64Value>,
    }
    ContainerAttributes {
        #[prost(string, tag = "1")] id: String,
        #[prost(message, optional, tag = "2")] metadata: Option<ContainerMetadata>,
    }
    ContainerStats {
        #[prost(message, optional, tag = "1")] attributes: Option<ContainerAttributes>,
        #[prost(message, optional, tag = "2")] cpu: Option<CpuUsage>,
        #[prost(message, optional, tag = "3")] memory: Option<MemoryUsage>,
    }
    ContainerStatsResponse {
        #[prost(message, optional, tag = "1")] stats: Option<ContainerStats>,
    }
    ListContainerStatsRequest {}
    ListContainerStatsResponse {
        #[prost(message, repeated, tag = "1")] stats: Vec<ContainerStats>,
    }
    NetworkInterfaceUsage {
        #[prost(string, tag = "1")] name: String,
        #[prost(message, optional, tag = "2")] rx_bytes: Option<UInt64Value>,
        #[prost(message, optional, tag = "4")] tx_bytes: Option<UInt64Value>,
    }
    NetworkUsage {
        #[prost(message, optional, tag = "2")] default_interface: Option<NetworkInterfaceUsage>,
    }
    LinuxPodSandboxStats {
        #[prost(message, optional, tag = "1")] cpu: Option<CpuUsage>,
        #[prost(message, optional, tag = "2")] memory: Option<MemoryUsage>,
        #[prost(message, optional, tag = "3")] network: Option<NetworkUsage>,
        #[prost(message, repeated, tag = "5")] containers: Vec<ContainerStats>,
    }
    PodSandboxStats {
        #[prost(message, optional, tag = "2")] linux: Option<LinuxPodSandboxStats>,
    }
    PodSandboxStatsResponse {
        #[prost(message, optional, tag = "1")] stats: Option<PodSandboxStats>,
    }

    // Images.
    ListImagesRequest {}
    Image {
        #[prost(string, tag = "1")] id: String,
        #[prost(string, repeated, tag = "2")] repo_tags: Vec<String>,
        #[prost(uint64, tag = "4")] size: u64,
    }
    ListImagesResponse {
        #[prost(message, repeated, tag = "1")] images: Vec<Image>,
    }
    ImageStatusRequest {
        #[prost(message, optional, tag = "1")] image: Option<ImageSpec>,
    }
    ImageStatusResponse {
        #[prost(message, optional, tag = "1")] image: Option<Image>,
    }
}

/// Whose a container's namespace is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum NamespaceMode {
    Pod = 0,
    Container = 1,
    Node = 2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum PodSandboxState {
    Ready = 0,
    NotReady = 1,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ContainerState {
    Created = 0,
    Running = 1,
    Exited = 2,
    Unknown = 3,
}
