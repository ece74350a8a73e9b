//! Boots the image once under emulation, without a network, and measures.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use slipway_agent::client::Agent;
use slipway_agent::image::command_line;
use slipway_agent::protocol::Info;
use tokio::runtime;
use vmm_glue::qemu::Qemu;
use vmm_glue::{Vm as _, VmSpec};

use super::Paths;
use crate::deps::{self, Purpose};
use crate::interrupt;

/// How long a boot may take on a machine that has much else to do.
const LONGEST: Duration = Duration::from_secs(120);
/// How much of the console a failure shows, in lines.
const CONSOLE_LINES: usize = 20;

/// Boots and prints the seconds from QEMU's start to the agent's first reply.
#[expect(clippy::disallowed_methods, reason = "this measures the boot")]
pub fn once(paths: &Paths) -> Result<()> {
    deps::ensure(&[Purpose::Vm])?;
    println!("Booting under emulation");
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let booted: Result<_> = runtime.context("Failed to start a runtime")?.block_on(async {
        let qemu = Qemu::discover().await?;
        let started = Instant::now();
        tokio::select! {
            info = boot(&qemu, paths) => Ok((info?, started.elapsed())),
            interrupted = interrupt::requested() => Err(interrupted.into()),
        }
    });
    let (info, took) = booted?;
    println!("  ready after {:.2} s", took.as_secs_f64());
    println!("  kernel {}, {} ms of them by its own clock", info.kernel, info.ready_ms);
    Ok(())
}

async fn boot(qemu: &Qemu, paths: &Paths) -> Result<Info> {
    let folder = tempfile::tempdir().context("Failed to make a folder for the guest")?;
    // One CPU under TCG, by default.
    let mut spec = VmSpec::new("guest", folder.path());
    spec.kernel = Some(paths.vmlinux.clone());
    spec.initrd = Some(paths.initrd.clone());
    spec.cmdline = command_line(true);
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
