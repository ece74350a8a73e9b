//! One microVM whose only NIC is a port of the switch, and the agent in it.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use slipway_agent::client::Agent;
use slipway_agent::image::command_line;
use slipway_agent::protocol::{Claim, Info, Ping, PingReport, Receive, TcpSend, Transfer};
use vmm_glue::accel::Accel;
use vmm_glue::qemu::{Qemu, QemuVm};
use vmm_glue::{MacAddr, Mib, NicSpec, Vm as _, VmSpec};

use crate::guest::Paths;

/// The segment of all guests.
pub const VNI: u32 = 7;
/// How long a guest may take to boot on a busy machine, most of it in emulation.
pub const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// How long a guest may take to say what it knows.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// Kernel and initial RAM disk.
#[derive(Debug, Clone)]
pub struct Image {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: PathBuf,
}

impl Image {
    /// The image that `cargo xtask guest` made: in `SLIPWAY_GUEST_DIR` if that is set, otherwise below
    /// cargo's target directory.
    ///
    /// # Errors
    /// It is not there.
    pub fn find() -> Result<Self> {
        let Paths { vmlinux: kernel, initrd, .. } = Paths::find();
        for file in [&kernel, &initrd] {
            if !file.is_file() {
                bail!(
                    "There is no {}. Run: cargo xtask guest (or set SLIPWAY_GUEST_DIR)",
                    file.display()
                );
            }
        }
        Ok(Self { kernel, initrd })
    }
}

/// What a guest shall be. Its name is also the name of its port.
#[derive(Debug, Clone)]
pub struct GuestPlan {
    /// The name.
    pub name: String,
    /// The last octet of its MAC and IP addresses.
    pub number: u8,
    /// Who runs its instructions.
    pub accel: Accel,
    /// Virtual CPUs.
    pub vcpus: u16,
    /// See [`VmSpec::memory_max`].
    pub memory_max: Option<Mib>,
    /// Of its NIC and its port.
    pub queue_pairs: u16,
    /// See [`NicSpec::receives_segments`].
    pub receives_segments: bool,
    /// See [`VmSpec::wrapper`].
    pub wrapper: Vec<String>,
    /// The folder of its files and sockets is made in here.
    pub run_dir: PathBuf,
}

impl GuestPlan {
    /// A guest of one CPU, one queue pair and all offloads.
    pub fn new(number: u8, accel: Accel, run_dir: impl Into<PathBuf>) -> Self {
        Self {
            name: format!("vm{number}"),
            number,
            accel,
            vcpus: 1,
            memory_max: None,
            queue_pairs: 1,
            receives_segments: true,
            wrapper: Vec::new(),
            run_dir: run_dir.into(),
        }
    }

    /// Locally administered and unicast (IEEE 802, section 8.2).
    pub fn mac(&self) -> MacAddr {
        MacAddr([0x52, 0x54, 0, 0, 0, self.number])
    }

    /// Known in the segment only.
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, 77, self.number)
    }

    /// Bound by the VMM; the switch connects.
    pub fn nic_socket(&self) -> PathBuf {
        self.folder().join("nic.sock")
    }

    fn folder(&self) -> PathBuf {
        self.run_dir.join(&self.name)
    }

    fn spec(&self, image: &Image) -> VmSpec {
        let mut spec = VmSpec::new(self.name.clone(), self.folder());
        spec.accel = self.accel;
        spec.vcpus = self.vcpus;
        spec.memory = Mib::new(128 * u32::from(self.vcpus));
        spec.memory_max = self.memory_max;
        spec.kernel = Some(image.kernel.clone());
        spec.initrd = Some(image.initrd.clone());
        let own = command_line(self.accel == Accel::Tcg);
        spec.cmdline = format!("{own} slipway.ip={}/24", self.address());
        spec.nics.push(NicSpec {
            queue_pairs: self.queue_pairs,
            receives_segments: self.receives_segments,
            ..NicSpec::new(self.nic_socket(), self.mac())
        });
        spec.control_socket = Some(self.folder().join("control.sock"));
        spec.wrapper.clone_from(&self.wrapper);
        spec.boot_timeout = BOOT_LIMIT;
        spec
    }
}

/// A booted guest. Dropping it kills its VMM.
#[derive(Debug)]
pub struct Guest {
    plan: GuestPlan,
    vm: QemuVm,
    agent: Agent,
    info: Info,
    boot_time: Duration,
}

impl Guest {
    /// Boots a guest and returns once its agent answers. Its port must be there, or be added
    /// meanwhile: the VMM waits for the switch.
    ///
    /// # Errors
    /// It did not boot in time; with the end of its console.
    #[expect(clippy::disallowed_methods, reason = "this measures the boot")]
    pub async fn boot(qemu: &Qemu, image: &Image, plan: GuestPlan) -> Result<Self> {
        let started = Instant::now();
        let spec = plan.spec(image);
        let booted = qemu.boot(&spec).await;
        let vm = booted.with_context(|| format!("Guest {} did not boot", plan.name))?;
        let agent = Agent::new(plan.folder().join("control.sock"));
        let ready = tokio::select! {
            ready = agent.wait_ready(BOOT_LIMIT) => ready.map_err(anyhow::Error::from),
            report = vm.wait() => Err(anyhow::anyhow!("{report}")),
        };
        let info = ready.with_context(|| {
            format!("Guest {} did not come up; its console:\n{}", plan.name, console_of(&vm))
        })?;
        Ok(Self { plan, vm, agent, info, boot_time: started.elapsed() })
    }

    /// What it was to be.
    pub fn plan(&self) -> &GuestPlan {
        &self.plan
    }

    /// Its VMM.
    pub fn vm(&self) -> &QemuVm {
        &self.vm
    }

    /// Its agent.
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// What the agent told after the first boot.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// From the start of the VMM to the agent's first answer.
    pub fn boot_time(&self) -> Duration {
        self.boot_time
    }

    /// The last lines of its serial console.
    pub fn console_tail(&self) -> String {
        console_of(&self.vm)
    }

    /// Sends `count` echoes to `peer`, one after the other.
    ///
    /// # Errors
    /// The agent does not answer. Lost echoes are none.
    pub async fn ping(&self, peer: &Self, count: u32) -> Result<PingReport> {
        let dst = peer.plan.address();
        // Emulated guests on a busy machine may be late, but are not lost.
        let ping = Ping { dst, count, interval_ms: 10, size_bytes: 56, timeout_ms: 10_000 };
        Ok(self.agent.ping(ping).await?)
    }

    /// Sends one echo to `peer` and waits for the answer for `limit` at most.
    ///
    /// # Errors
    /// The agent does not answer. A lost echo is none.
    pub async fn ping_within(&self, peer: &Self, limit: Duration) -> Result<PingReport> {
        let timeout_ms = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
        let dst = peer.plan.address();
        let ping = Ping { dst, count: 1, interval_ms: 0, size_bytes: 56, timeout_ms };
        Ok(self.agent.ping(ping).await?)
    }

    /// Sends `bytes` to `peer` in one TCP stream and returns what each end says of it: sender, then
    /// receiver.
    ///
    /// # Errors
    /// It did not arrive within `limit`.
    pub async fn send(
        &self,
        peer: &Self,
        bytes: u64,
        limit: Duration,
    ) -> Result<(Transfer, Transfer)> {
        let timeout_ms = ANSWER_LIMIT.as_millis() as u32;
        let ticket = peer.agent.tcp_recv(Receive { port: 0, timeout_ms }).await?;
        let dst = peer.plan.address();
        let send = TcpSend { dst, port: ticket.port, bytes, seed: 2026, timeout_ms };
        let sent = self.agent.tcp_send(send, limit).await?;
        let claim = Claim { ticket: ticket.ticket, timeout_ms };
        Ok((sent, peer.agent.tcp_result(claim).await?))
    }

    /// Ends it.
    ///
    /// # Errors
    /// Its VMM is stuck in the kernel.
    pub async fn stop(self) -> Result<()> {
        self.vm.stop(Duration::ZERO).await?;
        Ok(())
    }
}

fn console_of(vm: &QemuVm) -> String {
    const LINES: usize = 20;
    vm.console().tail(LINES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vmm_and_agent_mean_the_same_port() {
        assert_eq!(vmm_glue::CONTROL_PORT, slipway_agent::protocol::PORT_NAME);
    }

    #[test]
    fn a_planned_guest_is_one_that_can_be_booted() {
        let image = Image { kernel: "/image/vmlinux".into(), initrd: "/image/initrd.img".into() };
        for accel in [Accel::Kvm, Accel::Tcg] {
            let spec = GuestPlan::new(1, accel, "/tmp/run").spec(&image);
            assert!(spec.check().is_ok(), "{spec:?}");
            assert!(spec.cmdline.ends_with(" slipway.ip=192.168.77.1/24"), "{}", spec.cmdline);
        }
    }
}
