//! The agent as the first process of a guest.
//!
//! It mounts the kernel's file systems, loads the drivers, brings up the NIC with the address of
//! the kernel's command line ([`boot::Settings`]), if there is one, and serves every channel that
//! the machine has:
//!
//! | channel | what is served |
//! | --- | --- |
//! | vsock, or what `agent.server_addr=` says | Kata agent protocol |
//! | virtio-serial port [`AGENT_PORT`] | the same |
//! | virtio-serial port `org.slipway.ctl` | control channel (`slipway_agent::protocol`) |
//!
//! When something fails it says so on the console and powers off: a guest that cannot be talked
//! to is of no use.
//!
//! # Threads
//! The main thread waits for ports. Each protocol has a thread of its own, once it has a channel.

use std::fs::File;
use std::path::Path;
use std::thread;

use anyhow::{Context as _, Result, bail};
use nix::poll::PollTimeout;
use slipway_agent::image::AGENT_PORT;
use slipway_agent::protocol::{PORT_NAME, Ready};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::kata::{self, Endpoint};
use crate::ports::Ports;
use crate::serve::{Power, Server};
use crate::{boot, channel, clock, end, modules, netlink, say, system};

/// How long a channel may take to appear after its driver was loaded, in milliseconds.
const APPEARS_WITHIN_MS: u16 = 10_000;
/// Where runtimes expect the agent (port 1024, any CID).
const VSOCK: &str = "vsock://-1:1024";
/// There if the kernel has vsock.
const VSOCK_NODE: &str = "/dev/vsock";

/// Prepares the guest and serves it.
pub fn run() -> Result<()> {
    boot::leave_initramfs()?;
    boot::mount_filesystems()?;
    let command_line = std::fs::read_to_string("/proc/cmdline").context("No command line")?;
    let settings = boot::Settings::parse(&command_line)?;
    boot::keep_ipv6_silent()?;
    modules::load_all()?;
    boot::load_drivers()?;
    netlink::configure("lo", None, None)?;
    if system::has_nic() {
        netlink::configure(system::NIC, settings.mtu, settings.ip)?;
    }

    let mut agent = None;
    if settings.server_address.is_some() || Path::new(VSOCK_NODE).exists() {
        let address = settings.server_address.clone().unwrap_or_else(|| VSOCK.to_owned());
        serve_kata(&mut agent, Endpoint::Address(address))?;
    }
    let mut ports = Ports::watch([AGENT_PORT, PORT_NAME])?;
    let mut is_served = agent.is_some();
    loop {
        let within =
            if is_served { PollTimeout::NONE } else { PollTimeout::from(APPEARS_WITHIN_MS) };
        match ports.next(within)? {
            Some((AGENT_PORT, port)) => serve_kata(&mut agent, Endpoint::Port(port))?,
            Some((_, port)) => serve_control(port, &settings)?,
            None => bail!(
                "There is neither vsock nor a virtio-serial port named {AGENT_PORT} or \
                 {PORT_NAME}; add one to the VM"
            ),
        }
        is_served = true;
    }
}

/// Has the Kata agent serve on one more endpoint. It is started with the first.
fn serve_kata(agent: &mut Option<UnboundedSender<Endpoint>>, endpoint: Endpoint) -> Result<()> {
    let sender = agent.get_or_insert_with(|| {
        let (sender, endpoints) = unbounded_channel();
        thread::spawn(move || {
            if let Err(error) = kata::serve(endpoints) {
                say(&format!("{error:#}"));
            }
            end(Power::Off);
        });
        sender
    });
    sender.send(endpoint).context("The Kata agent has ended")
}

/// Serves the control channel.
fn serve_control(port: File, settings: &boot::Settings) -> Result<()> {
    boot::set_sysctls()?;
    let ready_ms = clock::since_boot()?.as_millis() as u64;
    let ready = Ready { boot_id: system::boot_id()?, ready_ms };
    let writer = port.try_clone().context("Failed to share the control channel")?;
    let server = Server::new(ready, settings.ip, Box::new(writer), end);
    say(&format!("ready in {ready_ms} ms"));
    server.announce();
    thread::spawn(move || {
        if let Err(error) = channel::serve(port, &server) {
            say(&format!("{error:#}"));
        }
        end(Power::Off);
    });
    Ok(())
}
