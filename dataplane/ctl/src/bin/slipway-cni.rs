//! The CNI plugin: confines itself, then does what the environment says.

use std::{
    env,
    io::{self, Write},
    process::ExitCode,
};

use slipway_api::confine::refuse_netlink;
use slipwayctl::cni::{self, CniError};

fn main() -> ExitCode {
    // Before anything else: what follows could not touch the host's network if it wanted to.
    let outcome = match refuse_netlink() {
        Ok(()) => run(),
        Err(error) => Err(CniError::io("Failed to confine slipway-cni", error).into_reply(None)),
    };
    let (text, code) = match outcome {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(text) => (text, ExitCode::FAILURE),
    };
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => code,
        // Nobody reads: the exit code is all that is left to say.
        Err(_) => ExitCode::FAILURE,
    }
}

fn run() -> Result<String, String> {
    let variables = env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value)))
        .filter(|(key, _)| key.starts_with("CNI_"));
    cni::run(variables.collect(), &mut io::stdin().lock())
}
