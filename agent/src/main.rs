//! The init of slipway's guest image.
//!
//! It is the only program of the guest. As process 1 it mounts the kernel's file systems, loads
//! the drivers, brings up the NIC with the address of the kernel's command line
//! ([`boot::Settings`]) and serves the control channel (`slipway_agent::protocol`) until it is
//! told to reboot or power off. When something fails it says so on the console and powers off:
//! a guest that cannot be talked to is of no use.
//!
//! # Threads
//! The main thread reads the channel; see [`serve`] for the others.

use std::io::Write as _;
use std::panic;

use anyhow::{Context as _, Result, bail};
use nix::sys::reboot::{RebootMode, reboot};
use slipway_agent::protocol::Ready;
use ttrpc::r#async::transport::Listener;

use crate::serve::{Power, Server};

/// Names the address to serve on when the agent is no guest's init, as with Kata's agent.
const SERVER_ADDRESS: &str = "KATA_AGENT_SERVER_ADDR";

mod boot;
mod channel;
mod clock;
mod kata;
mod modules;
mod netlink;
mod ping;
mod runtime;
mod serve;
mod system;
mod tcp;
mod udp;

fn main() -> Result<()> {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == runtime::ARGUMENT) {
        return runtime::main();
    }
    if let Some(address) = std::env::var_os(SERVER_ADDRESS) {
        return standalone(&address.to_string_lossy());
    }
    if std::process::id() != 1 {
        bail!("This is the init of a guest image, to be run by the guest's kernel");
    }
    panic::set_hook(Box::new(|panic| {
        say(&format!("{panic}"));
        end(Power::Off);
    }));
    if let Err(error) = run() {
        say(&format!("{error:#}"));
    }
    end(Power::Off);
    Ok(())
}

/// Serves the Kata agent protocol on one address, without being a guest's init.
fn standalone(address: &str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener =
            Listener::bind(address).with_context(|| format!("Failed to listen on {address}"))?;
        kata::serve(vec![listener]).await
    })
}

fn run() -> Result<()> {
    boot::mount_filesystems()?;
    let command_line = std::fs::read_to_string("/proc/cmdline").context("No command line")?;
    let settings = boot::Settings::parse(&command_line)?;
    modules::load_all()?;
    boot::set_sysctls()?;
    netlink::configure("lo", None, None)?;
    if system::has_nic() {
        netlink::configure(system::NIC, settings.mtu, settings.ip)?;
    }

    let port = channel::open()?;
    let ready_ms = clock::since_boot()?.as_millis() as u64;
    let ready = Ready { boot_id: system::boot_id()?, ready_ms };
    let writer = port.try_clone().context("Failed to share the control channel")?;
    let server = Server::new(ready, settings.ip, Box::new(writer), end);
    say(&format!("ready in {ready_ms} ms"));
    server.announce();
    channel::serve(port, &server)
}

/// Prints a line on the console. Standard output is the console if the kernel had one to give;
/// without one there is nobody to tell.
fn say(message: &str) {
    drop(writeln!(std::io::stdout(), "slipway: {message}"));
}

/// Ends the guest. Nothing is mounted that would need to be written back.
fn end(power: Power) {
    let mode = match power {
        Power::Reboot => RebootMode::RB_AUTOBOOT,
        Power::Off => RebootMode::RB_POWER_OFF,
    };
    // On success the call does not return.
    let Err(error) = reboot(mode);
    say(&format!("Failed to end the guest by {mode:?}: {error}"));
}
