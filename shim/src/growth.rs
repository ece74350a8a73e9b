//! What containers may use, and a VM that grows with it.
//!
//! ```text
//! Create, Update: limits of all containers ---> size_for ---> plug what is missing ---> OnlineCPUMem
//!                        `--- UpdateContainer: the limit itself, inside the guest
//! ```
//! A limit holds in the guest in any case. The VM grows only with `static_sandbox_resource_mgmt = false`,
//! and never shrinks. Where it cannot grow the container gets what there is, as on a node that is full,
//! and the log says so.

use std::sync::PoisonError;

use anyhow::{Context as _, Result};
use kata_agent_protocol::agent::{OnlineCPUMemRequest, UpdateContainerRequest};
use kata_agent_protocol::protobuf::MessageField;
use kata_config::{Limits, size_for};
use oci_spec::runtime::{LinuxResources, Spec};
use vmm_glue::{HOTPLUG_UNIT, Mib};

use crate::container::Container;
use crate::error::TaskResult;
use crate::oci;
use crate::pod::Pod;
use crate::vm;

/// What a container of this specification may use.
pub fn limits_of_spec(spec: &Spec) -> Limits {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    resources.map(limits_of).unwrap_or_default()
}

fn limits_of(resources: &LinuxResources) -> Limits {
    let (cpu, memory) = (resources.cpu().as_ref(), resources.memory().as_ref());
    Limits::new(
        cpu.and_then(|cpu| cpu.quota()).unwrap_or_default(),
        cpu.and_then(|cpu| cpu.period()).unwrap_or(DEFAULT_PERIOD_US),
        memory.and_then(|memory| memory.limit()).unwrap_or_default(),
    )
}

/// The kernel's (`cpu.max` of cgroup v2).
const DEFAULT_PERIOD_US: u64 = 100_000;

/// Makes room in the VM for a container with these limits beside those that there are.
pub async fn grow(pod: &Pod, limits: Limits) {
    let _one = pod.growing.lock().await;
    if let Err(error) = try_to_grow(pod, limits).await {
        tracing::warn!(
            error = format!("{error:#}"),
            "the VM does not grow; its containers' limits hold inside it"
        );
    }
}

async fn try_to_grow(pod: &Pod, limits: Limits) -> Result<()> {
    let config = pod.with_sandbox(|sandbox| Ok(sandbox.config.clone())).await?;
    if config.runtime.static_sandbox_resource_mgmt {
        return Ok(());
    }
    let all = pod.all();
    let limits = all.iter().fold(limits, |sum, container| sum.and(container.limits()));
    let wanted = size_for(&config, limits);
    let machine = pod.vm().await?;
    let now = machine.info().await?;
    let vcpus = u16::try_from(wanted.vcpus).unwrap_or(u16::MAX);
    let more_vcpus = vcpus.saturating_sub(now.vcpus);
    // Whichever fails, the other one is of use.
    let mut outcome = Ok(());
    let mut request = OnlineCPUMemRequest::new();
    if more_vcpus > 0 {
        match machine.set_vcpus(vcpus).await {
            Ok(()) => request.nb_cpus = more_vcpus.into(),
            Err(error) => outcome = Err(error),
        }
    }
    let unit = HOTPLUG_UNIT.get();
    let missing = wanted.memory_mib.saturating_sub(now.memory.get()).next_multiple_of(unit);
    let most = vm::most_memory(config.hypervisor.default_maxmemory_mib).unwrap_or(now.memory);
    let room = most.get().saturating_sub(now.memory.get()) / unit * unit;
    let more_memory = missing.min(room);
    let mut has_memory = false;
    if more_memory > 0 {
        match machine.add_memory(Mib::new(more_memory)).await {
            Ok(()) => has_memory = true,
            Err(error) => outcome = outcome.and(Err(error)),
        }
    }
    if request.nb_cpus > 0 || has_memory {
        // The guest hears of it a moment later.
        request.wait = true;
        request.cpu_only = !has_memory;
        let agent = pod.agent().await?;
        agent.online_cpu_mem(&request).await.context("The guest does not use what was plugged")?;
        tracing::info!(pod = %pod.id, vcpus, more_memory, "the VM has grown");
    }
    Ok(outcome?)
}

impl Container {
    fn limits(&self) -> Limits {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_limits(&self, limits: Limits) {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// Sets new limits inside the guest, after the VM has grown for them.
    ///
    /// # Errors
    /// The agent's refusal; the old limits hold.
    pub async fn update(&self, pod: &Pod, resources: &LinuxResources) -> TaskResult<()> {
        let mut resources = resources.clone();
        resources.set_devices(None);
        if let Some(cpu) = resources.cpu_mut() {
            cpu.set_cpus(None);
            cpu.set_mems(None);
        }
        let request = {
            let mut request = UpdateContainerRequest::new();
            request.container_id.clone_from(&self.id);
            let resources = oci::resources(&resources).map_err(anyhow::Error::from)?;
            request.resources = MessageField::some(resources);
            request
        };
        let (before, told) = (self.limits(), limits_of(&resources));
        // What an update does not speak of stays as it is.
        self.set_limits(Limits {
            cpus: told.cpus.or(before.cpus),
            memory_bytes: told.memory_bytes.or(before.memory_bytes),
        });
        grow(pod, Limits::default()).await;
        let agent = pod.agent().await?;
        let updated = agent.update_container(&request).await;
        Ok(updated
            .map(drop)
            .with_context(|| format!("Failed to set the limits of container {}", self.id))
            .inspect_err(|_| self.set_limits(before))?)
    }
}
