//! Each command, as calls of the switch.

use serde_json::{Map, Value, json};
use slipway_api::{ApiError, Attachment, AttachmentSpec, DEFAULT_NETWORK, ErrorCode, HealthStatus};
use slipway_cni::{CniError, Code};

use super::{
    super::Control,
    LABEL_NETWORK, LABEL_STARTED_MS,
    call::{self, Arguments, Command, Environment, Target},
    config::{self, Config},
    error, reply, request,
};

/// Does what `body`, a call as the plugin sends it, says. `Ok` and `Err` both carry what belongs on the plugin's
/// stdout; `Ok("")` for the commands that answer nothing.
///
/// # Errors
/// The error document.
pub fn answer(control: &dyn Control, body: &[u8]) -> Result<String, String> {
    let unversioned = |error: CniError| error.into_reply(None);
    let (environment, text) = request::split(body).map_err(unversioned)?;
    let command = call::command(&environment).map_err(unversioned)?;
    let document = config::parse(text).map_err(unversioned)?;
    let version = config::version(&document).map_err(unversioned)?;
    match serve(control, &environment, command, &document) {
        Ok(None) => Ok(String::new()),
        Ok(Some(document)) => Ok(format!("{document}\n")),
        Err(error) => Err(error.into_reply(version)),
    }
}

fn serve(
    control: &dyn Control,
    environment: &Environment,
    command: Command,
    document: &Map<String, Value>,
) -> Result<Option<Value>, CniError> {
    let config = config::judge(document, command)?;
    match command {
        Command::Add => {
            let target = call::target(environment, command)?;
            let arguments = call::arguments(environment)?;
            let started_ms = call::started_ms(environment)?;
            let attachment = add(control, &target, &config, arguments, started_ms)?;
            Ok(Some(reply::added(&config.version, &attachment, target.netns.as_deref())))
        }
        Command::Del => {
            let Target { container, interface, .. } = call::target(environment, command)?;
            control.detach(&container, &interface).map_err(error::of)?;
            Ok(None)
        }
        Command::Check => {
            let target = call::target(environment, command)?;
            check(control, &target, &config).map(|()| None)
        }
        Command::Gc => collect(control, &config).map(|()| None),
        Command::Status => status(control, &config).map(|()| None),
    }
}

fn add(
    control: &dyn Control,
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
    spec.check().map_err(error::of)?;
    let Target { container, interface, .. } = target;
    let is_asked_again = |refusal: &ApiError| {
        refusal.code == ErrorCode::Conflict
            && refusal.field.as_deref() == Some(&format!("labels.{LABEL_STARTED_MS}"))
    };
    let outcome = match control.attach(container, interface, &spec) {
        Err(refusal) if is_asked_again(&refusal) => {
            // The engine asks again, later: it is the same request but for its time.
            let existing = control.get_attachment(container, interface);
            match existing.and_then(|existing| existing.labels.get(LABEL_STARTED_MS).cloned()) {
                Some(first) => spec.labels.insert(LABEL_STARTED_MS.to_owned(), first),
                None => spec.labels.remove(LABEL_STARTED_MS),
            };
            control.attach(container, interface, &spec)
        }
        outcome => outcome,
    };
    outcome.map(|(attachment, _)| attachment).map_err(error::of)
}

/// Holds the attachment against what the ADD answered.
fn check(control: &dyn Control, target: &Target, config: &Config) -> Result<(), CniError> {
    let Some(previous) = &config.previous else {
        return Err(CniError::new(
            Code::BadConfig,
            "prevResult is missing",
            "A CHECK is told what the ADD answered",
        ));
    };
    let Target { container, interface, netns } = target;
    let Some(attachment) = control.get_attachment(container, interface) else {
        let name = format_args!("{container}/{interface}");
        return Err(error::of(ApiError::not_found("attachment", name)));
    };
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
fn collect(control: &dyn Control, config: &Config) -> Result<(), CniError> {
    let Some(valid) = &config.valid else { return Ok(()) };
    let mut failure = None;
    for attachment in control.list_attachments(None).attachments {
        let is_ours = attachment.labels.get(LABEL_NETWORK) == Some(&config.name);
        let Attachment { owner, interface, .. } = attachment;
        if is_ours && !valid.contains(&(owner.clone(), interface.clone())) {
            let outcome = control.detach(&owner, &interface);
            failure = failure.or(outcome.err());
        }
    }
    failure.map_or(Ok(()), |refusal| Err(error::of(refusal)))
}

/// Whether an ADD could be served.
fn status(control: &dyn Control, config: &Config) -> Result<(), CniError> {
    let health = control.health();
    if health.status == HealthStatus::Degraded {
        return Err(CniError::new(
            Code::NotAvailableForAny,
            format!("slipwayd is not well: {}", health.problems.join("; ")),
            "Look at its log",
        ));
    }
    let wanted = config.network.as_deref().unwrap_or(DEFAULT_NETWORK);
    let networks = control.list_networks().networks;
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
