//! What the shim finds on its host: folders, and the VMM that a configuration names.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use kata_config::{Acceleration, HypervisorKind, KataConfig};
use vmm_glue::Vmm;
use vmm_glue::accel::{self, Accel, AccelChoice, Probe};
use vmm_glue::cloud_hypervisor::{self, CloudHypervisor};
use vmm_glue::qemu::Qemu;

use crate::args::Args;
use crate::{debts, persist, share, vm};

/// Where acceleration that was found by trial is remembered.
const CACHE: &str = "/run/slipway";

/// A host.
#[derive(Clone, Debug)]
pub struct Host {
    /// Folders of sandboxes.
    pub pods: PathBuf,
    /// Folders shared with guests.
    pub shares: PathBuf,
    /// What pods that ended have still attached.
    pub debts: PathBuf,
    /// Which containerd asks, and in which of its namespaces: names are its own there, while pods of
    /// all of them share our folders. `None`: not known.
    pub engine: Option<String>,
    /// A VMM that takes the place of the configured one, in tests.
    pub vmm: Option<Arc<dyn Vmm>>,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            pods: persist::BASE.into(),
            shares: share::BASE.into(),
            debts: debts::BASE.into(),
            engine: None,
            vmm: None,
        }
    }
}

impl Host {
    /// The host as the containerd knows it that called us with `args`.
    pub fn of(args: &Args) -> Self {
        let engine = format!("{} {}", args.address, args.namespace);
        Self { engine: Some(engine), ..Self::default() }
    }

    /// The VMM of `config`.
    ///
    /// # Errors
    /// It is not installed.
    pub async fn vmm(&self, config: &KataConfig) -> Result<Arc<dyn Vmm>> {
        if let Some(vmm) = &self.vmm {
            return Ok(Arc::clone(vmm));
        }
        Ok(match config.hypervisor.kind {
            HypervisorKind::Qemu => Arc::new(qemu(config).await?),
            HypervisorKind::CloudHypervisor => {
                let path = config.hypervisor.path.clone().map(vm::program).transpose()?;
                Arc::new(CloudHypervisor::at(
                    path.unwrap_or_else(|| cloud_hypervisor::PROGRAM.into()),
                ))
            }
        })
    }

    /// Who runs the guest's instructions: found by trial once for each kernel and boot of the host.
    ///
    /// # Errors
    /// KVM is demanded and does not run the guest.
    pub async fn accel(&self, config: &KataConfig) -> Result<Accel> {
        let wanted = match config.slipway.acceleration {
            Acceleration::Tcg => return Ok(Accel::Tcg),
            Acceleration::Kvm => AccelChoice::Kvm,
            Acceleration::Auto => AccelChoice::Auto,
        };
        if self.vmm.is_some() {
            return Ok(Accel::Tcg);
        }
        if config.hypervisor.kind == HypervisorKind::CloudHypervisor {
            // It has no other.
            return Ok(Accel::Kvm);
        }
        let kernel = config.hypervisor.kernel.clone().context(vm::NO_KERNEL)?;
        let probe = Probe {
            kernel,
            initrd: config.hypervisor.initrd.clone(),
            machine: vm::machine(config.hypervisor.machine_type),
            cmdline: config.hypervisor.kernel_params.clone(),
            ready: None,
            deadline: accel::DEFAULT_DEADLINE,
            dir: Path::new(CACHE).to_owned(),
        };
        std::fs::create_dir_all(CACHE).context("Failed to make the folder /run/slipway")?;
        let chosen = accel::probe(&qemu(config).await?, &probe, wanted).await?;
        tracing::info!(accel = %chosen.accel, reason = chosen.reason, "acceleration");
        Ok(chosen.accel)
    }
}

async fn qemu(config: &KataConfig) -> Result<Qemu> {
    Ok(match &config.hypervisor.path {
        Some(path) => Qemu::at(vm::program(path.clone())?).await?,
        None => Qemu::discover().await?,
    })
}
