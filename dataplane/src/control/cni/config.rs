//! Which network, from the configuration on stdin (CNI specification 1.1, section 1 and 2).

use std::{collections::BTreeSet, net::IpAddr};

use serde::Deserialize;
use serde_json::{Map, Value};
use slipway_api::Mac;
use slipway_cni::{CniError, Code, VERSIONS};

use super::call::{Command, address};

/// What the configuration says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The version of the specification to answer in.
    pub version: String,
    /// The name of this configuration; attachments are labelled with it.
    pub name: String,
    /// slipwayd's network; its default one if absent.
    pub network: Option<String>,
    /// MTU of the interface, in bytes.
    pub mtu: Option<u16>,
    /// Vring pairs of the port.
    pub queue_pairs: Option<u16>,
    /// PMD threads that the vrings stay on; none to have them where there is least load.
    pub pmds: Vec<u32>,
    /// MAC address that the engine asks for.
    pub mac: Option<Mac>,
    /// Addresses that the engine asks for.
    pub addresses: Vec<IpAddr>,
    /// What was answered to the ADD, for a CHECK.
    pub previous: Option<Value>,
    /// What is to stay, for a GC: container and interface.
    pub valid: Option<BTreeSet<(String, String)>>,
}

/// Keys that are ours; the plugin itself reads `socket`.
const OURS: [&str; 7] = ["name", "socket", "network", "mtu", "queuePairs", "pmds", "runtimeConfig"];
/// Keys that container engines and libraries read, write or leave in.
const THEIRS: [&str; 8] = [
    "cniVersion",
    "cniVersions",
    "type",
    "capabilities",
    "args",
    "prevResult",
    "disableCheck",
    "disableGC",
];
/// Keys of the specification's own name space.
const RESERVED: &str = "cni.dev/";
const VALID_ATTACHMENTS: &str = "cni.dev/valid-attachments";

/// The values that we read, by their types.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Raw {
    name: String,
    network: Option<String>,
    mtu: Option<u16>,
    queue_pairs: Option<u16>,
    pmds: Vec<u32>,
    runtime_config: RuntimeConfig,
    prev_result: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid: Option<Vec<Valid>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RuntimeConfig {
    mac: Option<Mac>,
    ips: Vec<String>,
    port_mappings: Vec<Value>,
    bandwidth: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
struct Valid {
    #[serde(rename = "containerID")]
    container: String,
    ifname: String,
}

fn bad(message: impl Into<String>, details: impl Into<String>) -> CniError {
    CniError::new(Code::BadConfig, message, details)
}

/// The document as it came.
pub fn parse(text: &[u8]) -> Result<Map<String, Value>, CniError> {
    serde_json::from_slice(text).map_err(|error| {
        CniError::new(
            Code::Decode,
            format!("The network configuration on stdin is no JSON object: {error}"),
            "Look at the file in the CNI configuration folder",
        )
    })
}

/// The version that the document is of.
pub fn version(document: &Map<String, Value>) -> Result<Option<&str>, CniError> {
    match document.get("cniVersion") {
        None => Ok(None),
        Some(Value::String(version)) => Ok(Some(version)),
        Some(other) => Err(bad(format!("cniVersion = {other} is no string"), "Write \"1.0.0\"")),
    }
}

/// Judges the document for `command`.
pub fn judge(document: &Map<String, Value>, command: Command) -> Result<Config, CniError> {
    let version = spoken(version(document)?, command)?;
    check_keys(document)?;
    let raw: Raw = typed(document)?;
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    let begins = raw.name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !begins || !raw.name.bytes().all(allowed) {
        return Err(bad(
            format!("name = {:?} cannot be used", raw.name),
            "A name is made of A-Z a-z 0-9 _ . - and begins with a letter or a digit",
        ));
    }
    if command == Command::Add && raw.prev_result.is_some() {
        return Err(bad(
            "slipway-cni cannot be chained behind another plugin (prevResult is given)",
            "Put it first in `plugins`: it attaches the pod to the switch",
        ));
    }
    if !raw.runtime_config.port_mappings.is_empty() {
        return Err(bad(
            "slipway-cni maps no ports (runtimeConfig.portMappings is given)",
            "Remove `portMappings` from its `capabilities`; use a Service, or hostPort of a proxy",
        ));
    }
    if !raw.runtime_config.bandwidth.is_empty() {
        return Err(bad(
            "slipway-cni limits no bandwidth (runtimeConfig.bandwidth is given)",
            "Remove `bandwidth` from its `capabilities`, and the annotation from the pod",
        ));
    }
    let ips = &raw.runtime_config.ips;
    let addresses = ips.iter().map(|text| {
        address(text).ok_or_else(|| {
            let message = format!("runtimeConfig.ips: {text:?} is no address");
            bad(message, "Write addresses, as in 10.88.0.7/16")
        })
    });
    let valid = raw.valid.map(|valid| {
        valid.into_iter().map(|valid| (valid.container, valid.ifname)).collect::<BTreeSet<_>>()
    });
    if command == Command::Gc && valid.is_none() {
        return Err(bad(
            format!("{VALID_ATTACHMENTS} is missing"),
            "Without it a GC would detach every pod: the container engine must give it",
        ));
    }
    Ok(Config {
        version,
        name: raw.name,
        network: raw.network,
        mtu: raw.mtu,
        queue_pairs: raw.queue_pairs,
        pmds: raw.pmds,
        mac: raw.runtime_config.mac,
        addresses: addresses.collect::<Result<_, _>>()?,
        previous: raw.prev_result,
        valid,
    })
}

/// The version, if we speak it and it has this command.
fn spoken(version: Option<&str>, command: Command) -> Result<String, CniError> {
    let refused = |message: String| {
        let details = format!("slipway-cni speaks {}", VERSIONS.join(", "));
        Err(CniError::new(Code::IncompatibleVersion, message, details))
    };
    let Some(version) = version else {
        return refused("cniVersion is missing from the configuration".to_owned());
    };
    let place = |wanted: &str| VERSIONS.iter().position(|version| *version == wanted);
    match (place(version), place(command.since())) {
        (None, _) => refused(format!("cniVersion {version:?} is not spoken")),
        (Some(this), Some(since)) if this < since => {
            refused(format!("CNI {version} has no such command: it came with {}", command.since()))
        }
        _ => Ok(version.to_owned()),
    }
}

/// Refuses keys that nobody reads: most of them are meant to be one that somebody does.
fn check_keys(document: &Map<String, Value>) -> Result<(), CniError> {
    if document.contains_key("ipam") {
        return Err(bad(
            "slipway-cni uses no IPAM plugin (ipam is given)",
            "slipwayd gives addresses: set `ranges` under [[networks]] in slipwayd.toml",
        ));
    }
    let is_known =
        |key: &str| OURS.contains(&key) || THEIRS.contains(&key) || key.starts_with(RESERVED);
    match document.keys().find(|key| !is_known(key)) {
        None => Ok(()),
        Some(key) => Err(bad(
            format!("The configuration has a key {key:?} that slipway-cni does not know"),
            format!("Its keys are {}", OURS.join(", ")),
        )),
    }
}

fn typed(document: &Map<String, Value>) -> Result<Raw, CniError> {
    // Each known key by itself, so that the message names the one that is wrong.
    for (key, value) in document {
        let alone = Map::from_iter([(key.clone(), value.clone())]);
        if let Err(error) = Raw::deserialize(Value::Object(alone)) {
            return Err(bad(format!("{key} cannot be used: {error}"), "See the CNI specification"));
        }
    }
    Raw::deserialize(Value::Object(document.clone()))
        .map_err(|error| bad(error.to_string(), "See the CNI specification"))
}
