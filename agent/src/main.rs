//! The init of slipway's guest image, and its agent.
//!
//! It is the image's only program, in three roles:
//!
//! * As process 1 ([`guest`]) it prepares the guest and serves whoever the machine has channels
//!   for: a runtime that speaks the Kata agent protocol ([`kata`]), and the tests' and demo's own
//!   control channel ([`serve`]).
//! * As `slipway-agent runtime` ([`runtime`]) it makes one container's process.
//! * With the address to serve on in the environment it is an agent without a guest.

use std::io::Write as _;
use std::panic;

use anyhow::{Result, bail};
use kata::Endpoint;
use nix::sys::reboot::{RebootMode, reboot};
use tokio::sync::mpsc::unbounded_channel;

use crate::serve::Power;

/// Names the address to serve on when the agent is no guest's init, as with Kata's agent.
const SERVER_ADDRESS: &str = "KATA_AGENT_SERVER_ADDR";

mod boot;
mod channel;
mod clock;
mod guest;
mod kata;
mod modules;
mod netlink;
mod ping;
mod port;
mod ports;
mod program;
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
    if let Err(error) = guest::run() {
        say(&format!("{error:#}"));
    }
    end(Power::Off);
    Ok(())
}

/// Serves the Kata agent protocol on one address, without being a guest's init.
fn standalone(address: &str) -> Result<()> {
    let (sender, endpoints) = unbounded_channel();
    sender.send(Endpoint::Address(address.to_owned()))?;
    kata::serve(endpoints)
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
