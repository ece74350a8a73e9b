//! Each command, as calls of slipwayd.

use std::io::Read;

use serde_json::{Map, Value, json};
use slipway_api::{
    Attachment, AttachmentSpec, DEFAULT_NETWORK, ErrorCode, HealthStatus,
    blocking::{Client, ClientError},
};

use super::{
    CniError, Code, LABEL_NETWORK, LABEL_STARTED_MS, VERSIONS,
    call::{self, Arguments, Command, Environment, Target},
    config::{self, Config, MAX_CONFIG_BYTES},
    reply,
};

/// Does what `environment` says with the configuration that `stdin` gives. `Ok` and `Err` both carry
/// what belongs on stdout; `Ok("")` for the commands that answer nothing.
///
/// # Errors
/// The error document.
pub fn run(environment: Environment, stdin: &mut dyn Read) -> Result<String, String> {
    let started_ms = unix_ms();
    let mut text = Vec::new();
    let read = stdin.take(MAX_CONFIG_BYTES).read_to_end(&mut text);
    let result = match read {
        Ok(_) => answer(&environment, &text, started_ms),
        Err(error) => Err((CniError::io("Failed to read the configuration", error), None)),
    };
    match result {
        Ok(None) => Ok(String::new()),
        Ok(Some(document)) => Ok(format!("{document}\n")),
        Err((error, version)) => Err(error.into_reply(version.as_deref())),
    }
}

/// The failure, and the version that its document is to be in.
type Failure = (CniError, Option<String>);

fn answer(
    environment: &Environment,
    text: &[u8],
    started_ms: u64,
) -> Result<Option<Value>, Failure> {
    let command = call::command(environment).map_err(|error| (error, None))?;
    let document = config::parse(text, command).map_err(|error| (error, None))?;
    let version = config::version(&document).map_err(|error| (error, None))?;
    let with_version = |error| (error, version.map(str::to_owned));
    if command == Command::Version {
        return Ok(Some(versions(version)));
    }
    serve(environment, command, &document, started_ms).map_err(with_version)
}

fn versions(asked_in: Option<&str>) -> Value {
    let newest = VERSIONS[VERSIONS.len() - 1];
    json!({ "cniVersion": asked_in.unwrap_or(newest), "supportedVersions": VERSIONS })
}

fn serve(
    environment: &Environment,
    command: Command,
    document: &Map<String, Value>,
    started_ms: u64,
) -> Result<Option<Value>, CniError> {
    let config = config::judge(document, command)?;
    let client = Client::new(&config.socket);
    match command {
        Command::Add => {
            let target = call::target(environment, command)?;
            let arguments = call::arguments(environment)?;
            let attachment = add(&client, &target, &config, arguments, started_ms)?;
            Ok(Some(reply::added(&config.version, &attachment, target.netns.as_deref())))
        }
        Command::Del => {
            let Target { container, interface, .. } = call::target(environment, command)?;
            client.detach(&container, &interface)?;
            Ok(None)
        }
        Command::Check => {
            let target = call::target(environment, command)?;
            check(&client, &target, &config).map(|()| None)
        }
        Command::Gc => collect(&client, &config).map(|()| None),
        Command::Status => status(&client, &config).map(|()| None),
        Command::Version => Ok(Some(versions(Some(&config.version)))),
    }
}

fn add(
    client: &Client,
    target: &Target,
    config: &Config,
    arguments: Arguments,
    started_ms: u64,
) -> Result<Attachment, CniError> {
    let Arguments { addresses, mac, mut labels } = arguments;
    labels.insert(LABEL_NETWORK.to_owned(), config.name.clone());
    labels.insert(LABEL_STARTED_MS.to_owned(), started_ms.to_string());
    let mut spec = AttachmentSpec {
        network: config.network.clone(),
        // What the engine says through a capability is younger than what its arguments say.
        addresses: if config.addresses.is_empty() { addresses } else { config.addresses.clone() },
        mac: config.mac.or(mac),
        mtu: config.mtu,
        queue_pairs: config.queue_pairs,
        pmds: config.pmds.clone(),
        labels,
        // The policy of a pod is set by its port, by whoever knows it.
        policy: None,
    };
    let Target { container, interface, .. } = target;
    match client.attach(container, interface, &spec) {
        Err(ClientError::Refused(refusal))
            if refusal.code == ErrorCode::Conflict
                && refusal.field.as_deref() == Some(&format!("labels.{LABEL_STARTED_MS}")) =>
        {
            // The engine asks again, later: it is the same request but for its time.
            let existing = client.get_attachment(container, interface)?;
            match existing.labels.get(LABEL_STARTED_MS) {
                Some(first) => spec.labels.insert(LABEL_STARTED_MS.to_owned(), first.clone()),
                None => spec.labels.remove(LABEL_STARTED_MS),
            };
            Ok(client.attach(container, interface, &spec)?.0)
        }
        outcome => Ok(outcome?.0),
    }
}

/// Holds the attachment against what the ADD answered.
fn check(client: &Client, target: &Target, config: &Config) -> Result<(), CniError> {
    let Some(previous) = &config.previous else {
        return Err(CniError::new(
            Code::BadConfig,
            "prevResult is missing",
            "A CHECK is told what the ADD answered",
        ));
    };
    let Target { container, interface, netns } = target;
    let attachment = client.get_attachment(container, interface)?;
    let now = reply::added(&config.version, &attachment, netns.as_deref());
    // Other plugins of the chain may have added interfaces and addresses of theirs.
    let own = |document: &Value| {
        let is_own =
            |entry: &&Value| entry["name"] == interface.as_str() && entry.get("sandbox").is_some();
        let entries = document["interfaces"].as_array().into_iter().flatten().enumerate();
        entries.filter(|(_, entry)| is_own(entry)).map(|(at, e)| (at, e["mac"].clone())).next()
    };
    let Some((index, mac)) = own(previous) else {
        let message = format!("prevResult tells of no interface {interface} in a sandbox");
        return Err(CniError::new(Code::BadConfig, message, "It is not an answer to our ADD"));
    };
    let differs = |what: &str, was: &Value, is: &Value| {
        Err(CniError::new(
            Code::Conflict,
            format!(
                "{interface} of {container} has another {what} than it was given: {was}, now {is}"
            ),
            "Create the pod again",
        ))
    };
    if !is_same_text(&mac, &json!(attachment.mac)) {
        return differs("MAC address", &mac, &json!(attachment.mac));
    }
    let addresses = |document: &Value, index: usize| -> Vec<Value> {
        let ips = document["ips"].as_array().into_iter().flatten();
        ips.filter(|ip| ip["interface"] == index).map(|ip| ip["address"].clone()).collect()
    };
    let (was, is) = (addresses(previous, index), addresses(&now, 0));
    if is.iter().any(|address| !was.contains(address)) {
        return differs("address", &json!(was), &json!(is));
    }
    Ok(())
}

fn is_same_text(a: &Value, b: &Value) -> bool {
    let lower = |value: &Value| value.as_str().map(str::to_ascii_lowercase);
    lower(a).is_some() && lower(a) == lower(b)
}

/// Detaches what this configuration attached and the engine does not know any more. All are tried;
/// the first failure is told.
fn collect(client: &Client, config: &Config) -> Result<(), CniError> {
    let Some(valid) = &config.valid else { return Ok(()) };
    let mut failure = None;
    for attachment in client.list_attachments()?.attachments {
        let is_ours = attachment.labels.get(LABEL_NETWORK) == Some(&config.name);
        let Attachment { owner, interface, .. } = attachment;
        if is_ours && !valid.contains(&(owner.clone(), interface.clone())) {
            let outcome = client.detach(&owner, &interface);
            failure = failure.or(outcome.err());
        }
    }
    failure.map_or(Ok(()), |error| Err(error.into()))
}

/// Whether an ADD could be served.
fn status(client: &Client, config: &Config) -> Result<(), CniError> {
    let health = client.health().map_err(|error| {
        // Without the switch no pod has a network.
        let CniError { message, details, .. } = error.into();
        CniError::new(Code::NotAvailableForAny, message, details)
    })?;
    if health.status == HealthStatus::Degraded {
        return Err(CniError::new(
            Code::NotAvailableForAny,
            format!("slipwayd is not well: {}", health.problems.join("; ")),
            "Look at its log",
        ));
    }
    let wanted = config.network.as_deref().unwrap_or(DEFAULT_NETWORK);
    let networks = client.list_networks()?.networks;
    let Some(network) = networks.iter().find(|network| network.name == wanted) else {
        return Err(CniError::new(
            Code::NotAvailable,
            format!("slipwayd has no network {wanted}"),
            "Add it under [[networks]] in slipwayd.toml, or change `network` of this configuration",
        ));
    };
    if network.used >= network.capacity {
        return Err(CniError::new(
            Code::NotAvailable,
            format!("Network {wanted} has no free address: {} are in use", network.used),
            "Remove pods, or widen `ranges` under [[networks]] in slipwayd.toml",
        ));
    }
    Ok(())
}

fn unix_ms() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "the label says when this process was started")]
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
