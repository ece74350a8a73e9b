//! What a guest is told between its agent's first answer and the pod's first container.

use anyhow::{Context as _, Result};
use kata_agent_protocol::agent::{
    AddARPNeighborsRequest, CreateSandboxRequest, KernelModule, Storage, UpdateInterfaceRequest,
    UpdateRoutesRequest,
};
use kata_agent_protocol::protobuf::MessageField;
use vmm_glue::agent::Agent;

use crate::guest::SHM;
use crate::network::PodNetwork;
use crate::sandbox::Order;
use crate::share;

/// The size of `/dev/shm` in bytes, as container engines have it.
const SHM_BYTES: u64 = 64 << 20;

/// Makes the sandbox and its network. Interfaces do not wait for the sandbox, nor the sandbox for them.
///
/// # Errors
/// The first call that the agent refuses.
pub async fn guest(
    agent: &Agent,
    order: &Order,
    network: &PodNetwork,
    has_share: bool,
) -> Result<()> {
    let sandbox = create_sandbox(agent, order, network, has_share);
    let interfaces = async {
        for interface in &network.interfaces {
            let mut request = UpdateInterfaceRequest::new();
            request.interface = MessageField::some(interface.clone());
            agent.update_interface(&request).await.with_context(|| {
                format!("Failed to set up the guest's interface {}", interface.name)
            })?;
        }
        if !network.neighbours.ARPNeighbors.is_empty() {
            let mut request = AddARPNeighborsRequest::new();
            request.neighbors = MessageField::some(network.neighbours.clone());
            agent
                .add_arp_neighbors(&request)
                .await
                .context("Failed to set the guest's neighbours")?;
        }
        if !network.routes.Routes.is_empty() {
            let mut request = UpdateRoutesRequest::new();
            request.routes = MessageField::some(network.routes.clone());
            agent.update_routes(&request).await.context("Failed to set the guest's routes")?;
        }
        Ok(())
    };
    tokio::try_join!(sandbox, interfaces).map(drop)
}

async fn create_sandbox(
    agent: &Agent,
    order: &Order,
    network: &PodNetwork,
    has_share: bool,
) -> Result<()> {
    let mut request = CreateSandboxRequest::new();
    request.sandbox_id.clone_from(&order.id);
    // The kernel's limit (gethostname(2)).
    request.hostname = order.hostname.chars().take(64).collect();
    request.dns.clone_from(match order.resolv_conf.is_empty() {
        true => &network.resolv_conf,
        false => &order.resolv_conf,
    });
    request.guest_hook_path.clone_from(&order.config.hypervisor.guest_hook_path);
    for line in &order.config.agent.kernel_modules {
        let mut words = line.split_ascii_whitespace().map(str::to_owned);
        let mut module = KernelModule::new();
        module.name = words.next().unwrap_or_default();
        module.parameters = words.collect();
        request.kernel_modules.push(module);
    }
    if has_share {
        let mut storage = Storage::new();
        storage.driver = "virtio-fs".to_owned();
        storage.source = share::TAG.to_owned();
        storage.fstype = "virtiofs".to_owned();
        storage.mount_point = share::GUEST.to_owned();
        request.storages.push(storage);
    }
    let mut shm = Storage::new();
    shm.driver = "ephemeral".to_owned();
    shm.source = "shm".to_owned();
    shm.fstype = "tmpfs".to_owned();
    shm.mount_point = SHM.to_owned();
    shm.options = ["noexec", "nosuid", "nodev", "mode=1777"].map(str::to_owned).to_vec();
    shm.options.push(format!("size={SHM_BYTES}"));
    request.storages.push(shm);
    agent.create_sandbox(&request).await.context("Failed to create the sandbox in the guest")?;
    Ok(())
}
