//! One guest, and what it is asked over its control channel: lines of JSON (`slipway_agent::protocol`).

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use vmm_glue::accel::Accel;
use vmm_glue::qemu::{Qemu, QemuVm};
use vmm_glue::{Mib, Vm as _, VmSpec};

use super::Image;
use super::segment::{Nic, Segment};
use crate::peer::number;

/// How long a guest may take to boot or to answer: under emulation, on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);
const MEMORY: Mib = Mib::new(192);
/// How much of the console a failure shows, in lines.
const LINES: usize = 20;
/// Where `cargo xtask compare` puts iperf3 into the image: with its libraries, and what links them.
const TOOLS: &str = "/modules/tools";
/// A shell that becomes the VMM, with more arguments and perhaps a file.
const SHELL: [&str; 2] = ["sh", "-ec"];

/// A running guest. Dropping it ends it.
pub struct Guest {
    vm: QemuVm,
    control: BufReader<UnixStream>,
    calls: u64,
    /// Of its NIC.
    pub address: String,
}

impl Guest {
    /// Starts guest `n`; it boots meanwhile.
    pub async fn boot(
        qemu: &Qemu,
        image: &Image,
        segment: &Segment,
        n: usize,
        nic: Nic,
    ) -> Result<Self> {
        let folder = segment.folder(n);
        let control = folder.join("control.sock");
        let address = format!("10.88.0.{}", number(n));
        let mut spec = VmSpec::new(format!("vm{n}"), &folder);
        (spec.accel, spec.memory) = (image.accel, MEMORY);
        (spec.kernel, spec.initrd) = (Some(image.kernel.clone()), Some(image.initrd.clone()));
        spec.cmdline = format!("{} slipway.ip={address}/24", image.command_line);
        spec.control_socket = Some(control.clone());
        spec.boot_timeout = LIMIT;
        spec.wrapper = ["taskset", "--cpu-list", &segment.guest_cores()?].map(String::from).into();
        match nic {
            Nic::VhostUser(nic) => spec.nics.push(nic),
            Nic::Tap { arguments, file } => {
                let vectors = if image.accel == Accel::Tcg { ",vectors=0" } else { "" };
                let file = file.map(|file| format!(" 3<>{}", file.display()));
                let file = file.unwrap_or_default();
                spec.wrapper.extend(SHELL.map(String::from));
                spec.wrapper.push(format!("exec \"$@\" {arguments}{vectors}{file}"));
                // The shell's own name.
                spec.wrapper.push("sh".to_owned());
            }
        }
        let vm = qemu.boot(&spec).await.with_context(|| format!("Guest {n} does not start"))?;
        let stream = UnixStream::connect(&control);
        let stream = stream.with_context(|| format!("Failed to reach {}", control.display()))?;
        stream.set_read_timeout(Some(LIMIT))?;
        Ok(Self { vm, control: BufReader::new(stream), calls: 0, address })
    }

    /// Waits until it has booted.
    pub fn wait_until_ready(&mut self) -> Result<()> {
        while self.line()?.get("ready").is_none() {}
        Ok(())
    }

    /// Starts iperf3 in it.
    pub fn begin_iperf3(&mut self, arguments: &[&str]) -> Result<()> {
        let [linker, program] = ["ld.so", "iperf3"].map(|name| format!("{TOOLS}/{name}"));
        let mut words = vec![linker.as_str(), "--library-path", TOOLS, &program];
        words.extend(arguments);
        self.calls += 1;
        let timeout_ms = LIMIT.as_millis() as u64;
        let call = json!({"run": {"words": words, "timeout_ms": timeout_ms}});
        let line = format!("{}\n", json!({"id": self.calls, "call": call}));
        let written = self.control.get_mut().write_all(line.as_bytes());
        written.with_context(|| format!("The guest does not listen:\n{}", self.console()))
    }

    /// Waits for its end; returns its exit code and what it printed.
    pub fn end_iperf3(&mut self) -> Result<(i64, String)> {
        let reply = self.line()?;
        let reply = &reply["reply"];
        ensure!(reply["id"] == self.calls, "The guest answers another call: {reply}");
        let ran = &reply["outcome"]["ok"]["ran"];
        match (ran["status"].as_i64(), ran["output"].as_str()) {
            (Some(status), Some(output)) => Ok((status, output.to_owned())),
            _ => bail!("The guest does not run iperf3: {reply}"),
        }
    }

    /// The guest's next line.
    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        let read = self.control.read_line(&mut line);
        let bytes = read.with_context(|| format!("The guest is silent:\n{}", self.console()))?;
        ensure!(bytes > 0, "The guest has ended:\n{}", self.console());
        serde_json::from_str(&line).with_context(|| format!("The guest says {line:?}"))
    }

    fn console(&self) -> String {
        self.vm.console().tail(LINES)
    }

    /// Ends it.
    pub async fn stop(self) -> Result<()> {
        self.vm.stop(Duration::ZERO).await?;
        Ok(())
    }
}
