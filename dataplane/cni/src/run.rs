//! The plugin from its first to its last moment.

use alloc::{format, string::String, vec::Vec};
use core::str;

use rustix::io::{Errno, read, retry_on_intr, write};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    Code, MAX_CONFIG_BYTES, MAX_ENVIRONMENT_BYTES, STARTED_MS, STATUS_DONE, STATUS_FAILED,
    VERSIONS,
    confine::refuse_netlink,
    error::CniError,
    exchange::{Reply, exchange, not_understood},
    stdio::{stdin, stdout},
};

/// slipwayd's socket where the configuration names none.
const DEFAULT_SOCKET: &str = env!("SLIPWAY_SOCKET");

/// What is read of stdin at once, in bytes: a configuration mostly fits in.
const ROOM: usize = 4096;

/// What the plugin itself reads of a configuration; slipwayd judges the rest.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Config<'a> {
    #[serde(borrow)]
    cni_version: Option<&'a RawValue>,
    #[serde(borrow)]
    socket: Option<&'a RawValue>,
}

/// The answer to VERSION.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions<'a> {
    cni_version: &'a str,
    supported_versions: &'static [&'static str],
}

/// What goes to stdout, and how it went.
type Outcome = Result<Vec<u8>, Vec<u8>>;

/// Does what `environment` (each `NAME=VALUE`) and stdin say, writes the answer to stdout, and returns the exit
/// code. `started_ms` is now, in milliseconds since 1970.
pub fn run<'a>(environment: impl Iterator<Item = &'a [u8]>, started_ms: u64) -> i32 {
    // Before anything else: what follows could not touch the host's network if it wanted to.
    let outcome = match refuse_netlink() {
        Ok(()) => answer(environment, started_ms),
        Err(errno) => {
            let message = format!("Failed to confine slipway-cni: os error {errno}");
            Err(CniError::new(Code::Io, message, "The kernel needs CONFIG_SECCOMP_FILTER")
                .into_reply(None)
                .into_bytes())
        }
    };
    let (text, code) = match outcome {
        Ok(text) => (text, 0),
        Err(text) => (text, 1),
    };
    // Nobody reads: the exit code is all that is left to say.
    if write_all(&text).is_ok() { code } else { 1 }
}

fn answer<'a>(environment: impl Iterator<Item = &'a [u8]>, started_ms: u64) -> Outcome {
    let fail = |error: CniError, version: Option<&str>| error.into_reply(version).into_bytes();
    let (mut call, command) = call(environment, started_ms).map_err(|error| fail(error, None))?;
    let config = read_config().map_err(|error| fail(error, None))?;
    let asks_version = command == b"VERSION";
    let network = if asks_version && config.iter().all(u8::is_ascii_whitespace) {
        Ok(Config::default())
    } else {
        parse(&config)
    };
    let network = network.map_err(|error| fail(error, None))?;
    let version = network.cni_version.and_then(text_of);
    let version = version.as_deref();
    if asks_version {
        return versions(version).map_err(|error| fail(error, version));
    }
    let socket = socket(&network).map_err(|error| fail(error, version))?;
    call.extend_from_slice(&config);
    let Reply { status, body } = exchange(&socket, &call).map_err(|error| {
        // Without the switch no pod has a network.
        let code = if command == b"STATUS" { Code::NotAvailableForAny } else { error.code };
        fail(CniError { code, ..error }, version)
    })?;
    match status {
        STATUS_DONE => Ok(body),
        STATUS_FAILED => Err(body),
        _ => Err(fail(refused(status, &body), version)),
    }
}

/// The beginning of what is sent: the container engine's environment and what we add to it. And the command.
fn call<'a>(
    environment: impl Iterator<Item = &'a [u8]>,
    started_ms: u64,
) -> Result<(Vec<u8>, &'a [u8]), CniError> {
    let mut call = Vec::with_capacity(ROOM);
    let mut command: &[u8] = b"";
    for variable in environment.filter(|variable| variable.starts_with(b"CNI_")) {
        if call.len() + variable.len() >= MAX_ENVIRONMENT_BYTES {
            let message = format!("CNI_* has more than {MAX_ENVIRONMENT_BYTES} bytes");
            return Err(CniError::new(Code::BadEnvironment, message, "Shorten CNI_ARGS"));
        }
        command = variable.strip_prefix(b"CNI_COMMAND=").unwrap_or(command);
        call.extend_from_slice(variable);
        call.push(0);
    }
    call.extend_from_slice(format!("{STARTED_MS}={started_ms}\0\0").as_bytes());
    Ok((call, command))
}

fn read_config() -> Result<Vec<u8>, CniError> {
    let mut config = Vec::new();
    loop {
        let got = config.len();
        config.resize(got + ROOM, 0);
        let more = retry_on_intr(|| read(stdin(), &mut config[got..])).map_err(|errno| {
            let message = format!("Failed to read the configuration: {errno}");
            CniError::new(Code::Io, message, "It is expected on stdin")
        })?;
        config.truncate(got + more);
        if more == 0 {
            return Ok(config);
        }
        if config.len() > MAX_CONFIG_BYTES {
            let message = format!("The configuration has more than {MAX_CONFIG_BYTES} bytes");
            return Err(CniError::new(Code::BadConfig, message, "Look at what is on stdin"));
        }
    }
}

fn parse(text: &[u8]) -> Result<Config<'_>, CniError> {
    let bad = |error: &dyn core::fmt::Display| {
        CniError::new(
            Code::Decode,
            format!("The network configuration on stdin is no JSON object: {error}"),
            "Look at the file in the CNI configuration folder",
        )
    };
    // serde would also take the fields of a struct from an array, by their order.
    if text.trim_ascii_start().starts_with(b"[") {
        return Err(bad(&"it is an array"));
    }
    serde_json::from_slice(text).map_err(|error| bad(&error))
}

/// A string; slipwayd says of another value why it cannot be used.
fn text_of(value: &RawValue) -> Option<String> {
    serde_json::from_str(value.get()).ok()
}

fn socket(network: &Config<'_>) -> Result<String, CniError> {
    let Some(value) = network.socket.filter(|value| value.get() != "null") else {
        return Ok(DEFAULT_SOCKET.into());
    };
    match text_of(value) {
        Some(socket) if socket.starts_with('/') => Ok(socket),
        _ => {
            let message = format!("socket = {value} is no absolute path");
            Err(CniError::new(Code::BadConfig, message, "Begin it with /"))
        }
    }
}

fn versions(asked_in: Option<&str>) -> Result<Vec<u8>, CniError> {
    let cni_version = asked_in.unwrap_or(VERSIONS[VERSIONS.len() - 1]);
    let versions = Versions { cni_version, supported_versions: &VERSIONS };
    let mut text = serde_json::to_vec(&versions).map_err(|error| {
        CniError::new(Code::Io, format!("Failed to write the versions: {error}"), "Try again")
    })?;
    text.push(b'\n');
    Ok(text)
}

/// slipwayd did not come so far as to judge the call.
fn refused(status: u16, body: &[u8]) -> CniError {
    let said = str::from_utf8(body).unwrap_or("(no text)");
    let mut refused = not_understood(&format!("HTTP {status}"));
    refused.details = format!("{}; it said: {}", refused.details, said.trim());
    refused
}

fn write_all(mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        let written = retry_on_intr(|| write(stdout(), bytes))?;
        bytes = &bytes[written..];
    }
    Ok(())
}
