//! Whether an attachment is what a request asks for.

use std::net::IpAddr;

use slipway_api::{ApiError, Attachment, AttachmentSpec, ErrorCode};

use super::user;

/// Whether `attachment` is what `spec` asks for: what `spec` leaves open was chosen, and stays,
/// whatever would be chosen now. `network` is the one that `spec` comes to.
///
/// # Errors
/// `Conflict` with the first field that differs.
pub(super) fn satisfies(
    attachment: &Attachment,
    network: &str,
    spec: &AttachmentSpec,
) -> Result<(), ApiError> {
    let differs = |field: &str, existing: String, wanted: String| {
        Err(ApiError::new(
            ErrorCode::Conflict,
            format!(
                "{} is attached with another {field}: {existing}",
                user(&attachment.owner, &attachment.interface)
            ),
            "Ask for the same settings, or delete the attachment first",
        )
        .about(field, wanted))
    };
    if attachment.network != network {
        return differs("network", attachment.network.clone(), network.to_owned());
    }
    let has = |address: &&IpAddr| attachment.addresses.iter().any(|net| net.addr() == **address);
    if let Some(wanted) = spec.addresses.iter().find(|address| !has(address)) {
        let existing: Vec<_> = attachment.addresses.iter().map(ToString::to_string).collect();
        return differs("addresses", existing.join(", "), wanted.to_string());
    }
    if let Some(wanted) = spec.mac.filter(|wanted| *wanted != attachment.mac) {
        return differs("mac", attachment.mac.to_string(), wanted.to_string());
    }
    if let Some(wanted) = spec.mtu.filter(|wanted| *wanted != attachment.mtu) {
        return differs("mtu", attachment.mtu.to_string(), wanted.to_string());
    }
    if let Some(wanted) = spec.queue_pairs.filter(|wanted| *wanted != attachment.queue_pairs) {
        return differs("queue_pairs", attachment.queue_pairs.to_string(), wanted.to_string());
    }
    if !spec.pmds.is_empty() && spec.pmds != attachment.pmds {
        let text = |pmds: &[u32]| pmds.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
        let existing =
            if attachment.pmds.is_empty() { "none".into() } else { text(&attachment.pmds) };
        return differs("pmds", existing, text(&spec.pmds));
    }
    if let Some(wanted) = spec.policy.as_ref().filter(|w| Some(*w) != attachment.policy.as_ref()) {
        let existing = attachment.policy.as_ref().map_or("none".into(), ToString::to_string);
        return differs("policy", existing, wanted.to_string());
    }
    let keys = attachment.labels.keys().chain(spec.labels.keys());
    for label in keys {
        let (existing, wanted) = (attachment.labels.get(label), spec.labels.get(label));
        if existing != wanted {
            let or_none = |value: Option<&String>| value.cloned().unwrap_or_else(|| "none".into());
            return differs(&format!("labels.{label}"), or_none(existing), or_none(wanted));
        }
    }
    Ok(())
}
