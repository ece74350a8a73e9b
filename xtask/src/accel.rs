//! Who runs the guests' instructions: found by trial with the real guest, and remembered beside its image.

use anyhow::{Context as _, Result};
use slipway_agent::image::command_line;
use vmm_glue::Machine;
use vmm_glue::accel::{AccelChoice, Chosen, DEFAULT_DEADLINE, Probe, probe};
use vmm_glue::qemu::Qemu;

use crate::progress::Progress;
use crate::rig::Image;

/// Chooses, and says why.
///
/// # Errors
/// There is no QEMU, or KVM is demanded and does not run the guest.
pub async fn choose(
    image: &Image,
    wanted: AccelChoice,
    progress: &Progress,
) -> Result<(Qemu, Chosen)> {
    let qemu = Qemu::discover().await?;
    let outcome_beside_image = image.kernel.parent().context("The kernel has no folder")?;
    let trial = Probe {
        kernel: image.kernel.clone(),
        initrd: Some(image.initrd.clone()),
        machine: Machine::Q35,
        cmdline: command_line(false),
        // The agent's first words.
        ready: Some("slipway: ready".to_owned()),
        deadline: DEFAULT_DEADLINE,
        dir: outcome_beside_image.to_owned(),
    };
    let chosen = probe(&qemu, &trial, wanted).await?;
    progress.say(&format!("  {}: {}", chosen.accel, chosen.reason));
    Ok((qemu, chosen))
}
