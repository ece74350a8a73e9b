//! Boots the image once, without a network, and measures.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use slipway_agent::client::Agent;
use slipway_agent::image::command_line;
use slipway_agent::protocol::Info;
use tokio::runtime;
use vmm_glue::accel::Accel;
use vmm_glue::qemu::Qemu;
use vmm_glue::{Vm as _, VmSpec};

use super::Paths;
use crate::deps::{self, Purpose};
use crate::interrupt;

/// How long a boot may take on a machine that has much else to do.
const LONGEST: Duration = Duration::from_secs(120);
/// How much of the console a failure shows, in lines.
const CONSOLE_LINES: usize = 20;

/// A boot that was measured.
#[derive(Debug)]
pub struct Boot {
    /// From QEMU's start to the agent's first reply.
    pub took: Duration,
    /// What the agent says of its guest.
    pub info: Info,
}

/// Boots under emulation and prints the seconds from QEMU's start to the agent's first reply.
pub fn once(paths: &Paths) -> Result<()> {
    deps::ensure(&[Purpose::Vm])?;
    println!("Booting under emulation");
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let booted: Result<_> = runtime.context("Failed to start a runtime")?.block_on(async {
        let qemu = Qemu::discover().await?;
        tokio::select! {
            boot = measure(&qemu, paths, Accel::Tcg) => boot,
            interrupted = interrupt::requested() => Err(interrupted.into()),
        }
    });
    let Boot { took, info } = booted?;
    println!("  ready after {:.2} s", took.as_secs_f64());
    println!("  kernel {}, {} ms of them by its own clock", info.kernel, info.ready_ms);
    Ok(())
}

/// Boots the image once, with one CPU and no network, and ends it.
///
/// # Errors
/// It does not boot, with the end of its console.
#[expect(clippy::disallowed_methods, reason = "this measures the boot")]
pub async fn measure(qemu: &Qemu, paths: &Paths, accel: Accel) -> Result<Boot> {
    let started = Instant::now();
    let info = boot(qemu, paths, accel).await?;
    Ok(Boot { took: started.elapsed(), info })
}

async fn boot(qemu: &Qemu, paths: &Paths, accel: Accel) -> Result<Info> {
    let folder = tempfile::tempdir().context("Failed to make a folder for the guest")?;
    let mut spec = VmSpec::new("guest", folder.path());
    spec.accel = accel;
    spec.kernel = Some(paths.vmlinux.clone());
    spec.initrd = Some(paths.initrd.clone());
    spec.cmdline = command_line(accel == Accel::Tcg);
    let control = folder.path().join("control.sock");
    spec.control_socket = Some(control.clone());
    spec.boot_timeout = LONGEST;
    let vm = qemu.boot(&spec).await?;
    let agent = Agent::new(control);
    let ready = tokio::select! {
        ready = agent.wait_ready(LONGEST) => ready.map_err(anyhow::Error::from),
        report = vm.wait() => Err(anyhow!("{report}")),
    };
    ready.with_context(|| format!("The console's end:\n{}", vm.console().tail(CONSOLE_LINES)))
}
