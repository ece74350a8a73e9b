//! What many ports cost: a `slipwayd` process of its own, 400 ports, 400 connected guests.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use dataplane::clock;
use dataplane::testing::{Guest, GuestConfig};
use serde::Serialize;
use slipway_api::client::Client;
use slipway_api::{LinkState, PortSpec};

use crate::host::Process;
use crate::rig::{cores, mac};

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct ManyPorts {
    /// How many ports.
    pub ports: u32,
    /// Time to create them all over the API, one request after the other, in milliseconds.
    pub create_ms: f64,
    /// Time for all guests to connect and set up their rings, one after the other, the guests' own
    /// work included, in milliseconds.
    pub connect_ms: f64,
    /// Private memory of slipwayd per port, created and connected, page tables included, in KiB.
    /// Guests' own memory, which slipwayd maps, is not counted.
    pub kib_per_port: f64,
    /// Threads of slipwayd with no port.
    pub threads_before: u64,
    /// Threads of slipwayd with all ports connected.
    pub threads_after: u64,
    /// File descriptors of slipwayd per connected port.
    pub fds_per_port: f64,
    /// CPU time of slipwayd while all ports are idle, in percent of one core.
    pub idle_cpu_percent: f64,
}

/// A process that ends with this value.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // Ours, and not waited for yet: the pid is still its own.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Measures `ports` ports on the program `slipwayd`.
pub fn many_ports(slipwayd: &Path, ports: u32) -> Result<ManyPorts> {
    let (_, pmd) = cores()?;
    let dir = tempfile::tempdir().context("making a folder for sockets")?;
    let child = Command::new(slipwayd)
        .arg("--run-dir")
        .arg(dir.path())
        .args(["--cores", &pmd.to_string()])
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("starting {}", slipwayd.display()))?;
    let daemon = Daemon(child);
    let pid = daemon.0.id();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = Client::new(dir.path().join("slipwayd.sock"));
    runtime.block_on(ready(&client))?;

    let before = Process::of(pid)?;
    let begin = clock::ticks();
    let sockets = runtime.block_on(async {
        let mut sockets = Vec::new();
        for n in 0..ports {
            let spec = PortSpec { mac: Some(mac(n)), ..PortSpec::named(format!("g{n}")) };
            sockets.push(client.create_port(&spec).await?.0.spec.socket);
        }
        anyhow::Ok(sockets)
    })?;
    let create_ms = ms_since(begin);
    let begin = clock::ticks();
    let connect = |path: &std::path::PathBuf| Guest::connect(path, GuestConfig::default());
    let guests: Vec<_> = sockets.iter().map(connect).collect::<Result<_, _>>()?;
    let connect_ms = ms_since(begin);
    let list = runtime.block_on(client.list_ports())?;
    if let Some(port) = list.ports.iter().find(|port| port.link != LinkState::Up) {
        bail!("port {} is {} after its guest connected", port.spec.name, port.link);
    }
    // Past the polling that follows a ring's start, so that all ports are idle.
    std::thread::sleep(Duration::from_millis(500));
    let after = Process::of(pid)?;
    let begin = clock::ticks();
    std::thread::sleep(Duration::from_secs(3));
    let idle = Process::of(pid)?;
    let idle_ms = ms_since(begin);
    drop(guests);
    Ok(ManyPorts {
        ports,
        create_ms,
        connect_ms,
        kib_per_port: (after.private_kib - before.private_kib) as f64 / f64::from(ports),
        threads_before: before.threads,
        threads_after: after.threads,
        fds_per_port: (after.fds - before.fds) as f64 / f64::from(ports),
        idle_cpu_percent: (idle.cpu_ms - after.cpu_ms) / idle_ms * 100.0,
    })
}

async fn ready(client: &Client) -> Result<()> {
    let deadline = clock::ticks() + clock::ticks_per_us() * 10_000_000;
    loop {
        match client.health().await {
            Ok(_) => return Ok(()),
            Err(error) if clock::ticks() > deadline => {
                return Err(error).context("slipwayd did not answer within 10 seconds");
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

fn ms_since(begin: u64) -> f64 {
    (clock::ticks() - begin) as f64 / clock::ticks_per_us() as f64 / 1000.0
}
