//! The port of an attachment: how the switch is asked for it, and what it is called.

use std::io;
use std::net::IpAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use ipnet::IpNet;
use slipway_api::{ApiError, Attachment, LinkState, Policy, Port, PortSpec};

/// How many characters of an owner a port's name shows: as many as container tools do.
const SHOWN_OWNER_BYTES: usize = 12;

/// A port for a pod, as the switch is asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPort {
    /// The port.
    pub spec: PortSpec,
    /// Whose it is, for people.
    pub user: String,
    /// The addresses of the guest behind it.
    pub addresses: Vec<IpAddr>,
}

/// What attachments need of the switch.
pub trait PodPorts {
    /// Makes a port that no request but [`PodPorts::close_pod`] removes.
    ///
    /// # Errors
    /// As for any port; also when there is a port of this name, whatever its settings.
    fn open_pod(&self, port: PodPort) -> Result<(), ApiError>;

    /// Removes such a port; one that is not there is removed.
    fn close_pod(&self, name: &str);

    /// Sets the policy of any port, or takes it off; returns the port and the policy it had. In force with
    /// the next burst of each PMD.
    ///
    /// # Errors
    /// `NotFound`.
    fn set_policy(
        &self,
        name: &str,
        policy: Option<Policy>,
    ) -> Result<(Port, Option<Policy>), ApiError>;

    /// How the link of a port is; `None` when there is none of this name.
    fn pod_link(&self, name: &str) -> Option<LinkState>;
}

/// Whose a port is, for people.
pub(super) fn user(owner: &str, interface: &str) -> String {
    format!("{interface} of {owner}")
}

/// Makes the port of a restored attachment: where the switch has not the PMDs any more that it is pinned
/// to, on any. The record keeps them for a switch that has.
pub(super) fn reopen(ports: &dyn PodPorts, attachment: &Attachment) -> Result<(), ApiError> {
    let mut port = pod_port(attachment);
    match ports.open_pod(port.clone()) {
        Err(error) if error.field.as_deref() == Some("pmds") => {
            tracing::warn!(port = port.spec.name, %error, "The vrings of a pod are not pinned");
            port.spec.pmds.clear();
            ports.open_pod(port)
        }
        outcome => outcome,
    }
}

pub(super) fn pod_port(attachment: &Attachment) -> PodPort {
    PodPort {
        spec: PortSpec {
            vni: attachment.vni,
            mac: Some(attachment.mac),
            socket: Some(attachment.socket.clone()),
            mode: attachment.mode,
            queue_pairs: attachment.queue_pairs,
            learning: Some(false),
            anti_spoof: Some(true),
            mtu: Some(attachment.mtu),
            policy: attachment.policy.clone(),
            pmds: attachment.pmds.clone(),
            ..PortSpec::named(attachment.port.clone())
        },
        user: user(&attachment.owner, &attachment.interface),
        addresses: attachment.addresses.iter().map(IpNet::addr).collect(),
    }
}

pub(super) fn with_link(attachment: &Attachment, ports: &dyn PodPorts) -> Attachment {
    // Without a port there is no network for the pod: see `restore`.
    let link = ports.pod_link(&attachment.port).unwrap_or(LinkState::Broken);
    Attachment { link, ..attachment.clone() }
}

/// The name of the port of an attachment: short enough for a socket's path whatever the owner, the
/// same for the same names, and different for different ones.
pub(super) fn port_name(owner: &str, interface: &str) -> String {
    let shown = &owner[..owner.len().min(SHOWN_OWNER_BYTES)];
    // FNV-1a, 64 bits. No name contains the separator.
    let hash = owner
        .bytes()
        .chain([b'/'])
        .chain(interface.bytes())
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    format!("{shown}-{hash:016x}")
}

/// Removes the socket that a VMM may have left when it was killed. Nothing depends on it: the next
/// VMM of this name replaces it.
pub(super) fn remove_socket(path: &Path) {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    if is_socket
        && let Err(error) = std::fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, socket = %path.display(), "A pod's socket cannot be removed");
    }
}
