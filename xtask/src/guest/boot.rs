//! Boots the image once under emulation, without a network, and measures.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use slipway_agent::image::{TCG_CPU, Tcg, host_tsc_khz};
use slipway_agent::protocol::{
    Answer, Call, Info, Line, Outcome, PORT_NAME, Reply, Request, to_line,
};

use super::Paths;
use crate::deps::{self, Purpose};

/// How long a boot may take on a machine that has much else to do.
const LONGEST: Duration = Duration::from_secs(120);
/// How much of the console a failure shows, in lines.
const CONSOLE_LINES: usize = 20;

/// A QEMU that ends with us.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Boots and prints the seconds from QEMU's start to the agent's first reply.
#[expect(clippy::disallowed_methods, reason = "this measures the boot")]
pub fn once(paths: &Paths) -> Result<()> {
    deps::ensure(&[Purpose::Vm])?;
    println!("Booting under emulation");
    let folder = tempfile::tempdir().context("Failed to make a folder for the guest")?;
    let started = Instant::now();
    let info =
        start(paths, folder.path()).and_then(|mut guest| first_reply(&mut guest, folder.path()));
    let took = started.elapsed();
    let info = info.with_context(|| format!("The console's end:\n{}", console(folder.path())))?;
    println!("  ready after {:.2} s", took.as_secs_f64());
    println!("  kernel {}, {} ms of them by its own clock", info.kernel, info.ready_ms);
    Ok(())
}

fn start(paths: &Paths, folder: &Path) -> Result<Guest> {
    let socket = folder.join("ctl.sock");
    let console = folder.join("console");
    let tcg = Tcg::new(1, host_tsc_khz());
    let child = Command::new("qemu-system-x86_64")
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-machine", tcg.machine, "-accel", "tcg,thread=single", "-cpu", TCG_CPU])
        .args(["-m", "128M", "-append", &tcg.command_line])
        .arg("-kernel")
        .arg(&paths.vmlinux)
        .arg("-initrd")
        .arg(&paths.initrd)
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .arg("-chardev")
        .arg(format!("socket,id=ctl,path={},server=on,wait=off", socket.display()))
        .args(["-device", "virtio-serial-pci,max_ports=2,vectors=0"])
        .args(["-device", &format!("virtserialport,chardev=ctl,name={PORT_NAME}")])
        .stdin(Stdio::null())
        .spawn()
        .context("Failed to run qemu-system-x86_64")?;
    Ok(Guest(child))
}

/// Asks for the guest's description; the question waits in the socket until the guest is ready.
#[expect(clippy::disallowed_methods, reason = "this measures the boot")]
fn first_reply(guest: &mut Guest, folder: &Path) -> Result<Info> {
    let deadline = Instant::now() + LONGEST;
    let mut channel = loop {
        if let Ok(channel) = UnixStream::connect(folder.join("ctl.sock")) {
            break channel;
        }
        if let Some(status) = guest.0.try_wait()? {
            bail!("QEMU ended: {status}");
        }
        if Instant::now() > deadline {
            bail!("QEMU did not open the control channel within {LONGEST:?}");
        }
        thread::sleep(Duration::from_millis(1));
    };
    channel.write_all(&to_line(&Request { id: 1, call: Call::Info }))?;
    channel.set_read_timeout(Some(LONGEST))?;
    for line in BufReader::new(channel).lines() {
        let line = line.with_context(|| format!("No word of the guest within {LONGEST:?}"))?;
        match serde_json::from_str(&line)? {
            Line::Ready(_) => {}
            Line::Reply(Reply { outcome: Outcome::Ok(Answer::Info(info)), .. }) => return Ok(info),
            other => bail!("The guest answered {other:?}"),
        }
    }
    bail!("QEMU closed the control channel")
}

fn console(folder: &Path) -> String {
    let text = fs::read(folder.join("console")).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n")
}
