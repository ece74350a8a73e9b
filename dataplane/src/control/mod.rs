//! The control surface: HTTP and JSON on a UNIX socket, for slipwayctl, the CNI plugin and the shim.
//!
//! ```text
//! peer --UNIX socket--> server   who may ask (peer credentials), how long, how much
//!                         |
//!                       routes   method and path; body and query -> checked slipway-api types
//!                         |
//!                       Control  the switch's side of the conversation (trait below)
//! ```
//! The document at `/openapi.json` is derived from the same types and handlers (`openapi`);
//! `/metrics` reads the switch's counters when it is asked (`metrics`).
//!
//! # Bounds
//! Bodies, headers, connections and the time each may take are bounded; a peer that sends half a
//! request delays nobody else. What is refused changes nothing.
//!
//! # Threads
//! One thread with a tokio runtime of its own serves all connections. It calls [`Control`] directly,
//! so calls come one at a time, and an implementation that takes long holds up the whole API, though
//! never a PMD.

mod cni;
mod describe;
mod explain;
#[cfg(any(test, feature = "testing"))]
pub mod fake;
mod features;
mod housekeeping;
mod metrics;
mod openapi;
pub mod peer;
mod refusal;
mod routes;
pub mod server;
pub mod socket;
pub mod switch;
#[cfg(test)]
mod tests;
mod view;

use slipway_api::{
    ApiError, Attachment, AttachmentList, AttachmentSpec, Created, ExplainReply, FdbEntry,
    FdbFilter, FdbList, Health, Mac, NetworkList, PmdList, Policy, Port, PortList, PortSpec,
    Rebalanced, StaticEntry, Stats, Version, Vni, VniList, VniSpec,
};

use crate::attach::{Attachments, PodPorts};

/// What the API needs of a switch.
///
/// Arguments have passed the `check` of their types. Methods return when the change is in force:
/// once `delete_port` has returned, no PMD holds a frame or a mapping of that port. They are called
/// from the API's thread, one at a time, and should take milliseconds at most.
pub trait Control: Send + Sync + 'static {
    /// Creates a port and its socket.
    ///
    /// # Errors
    /// `Conflict` when the name is taken by a port with other settings
    /// ([`slipway_api::AppliedPortSpec::same_as`]) or the socket or address by another port,
    /// `InvalidValue` when a setting is out of the configured range, `LimitReached`.
    fn create_port(&self, spec: PortSpec) -> Result<(Port, Created), ApiError>;

    /// All ports, by name.
    fn list_ports(&self) -> PortList;

    /// One port; `None` when there is none of this name.
    fn get_port(&self, name: &str) -> Option<Port>;

    /// Removes a port, its socket and its FDB entries.
    ///
    /// # Errors
    /// `NotFound`, or `InUse` when it is the port of an attachment.
    fn delete_port(&self, name: &str) -> Result<(), ApiError>;

    /// Sets the policy of a port, which goes on meanwhile; in force with the next burst of each PMD.
    /// [`Created::Existing`] when it had one before, the same or another.
    ///
    /// # Errors
    /// `NotFound`, or `Internal` when the record of its attachment cannot be written.
    fn put_policy(&self, port: &str, policy: Policy) -> Result<(Port, Created), ApiError> {
        let (attachments, ports) = self.attachments();
        let (port, before) = attachments.set_policy(ports, port, Some(policy))?;
        Ok((port, if before.is_some() { Created::Existing } else { Created::New }))
    }

    /// Takes the policy off a port: its guest may send and receive everything.
    ///
    /// # Errors
    /// `NotFound` when there is no such port, or it has no policy; `Internal` as above.
    fn delete_policy(&self, port: &str) -> Result<(), ApiError> {
        let (attachments, ports) = self.attachments();
        let (_, before) = attachments.set_policy(ports, port, None)?;
        before.map(drop).ok_or_else(|| ApiError::not_found("policy", port))
    }

    /// Every segment that has settings or ports, by number.
    fn list_vnis(&self) -> VniList;

    /// Sets all settings of segment `vni`; what `spec` leaves out goes back to its default.
    /// [`Created::Existing`] when it had settings before, the same or others.
    ///
    /// # Errors
    /// `LimitReached`.
    fn put_vni(&self, vni: u32, spec: VniSpec) -> Result<(Vni, Created), ApiError>;

    /// Forgets a segment's settings.
    ///
    /// # Errors
    /// `NotFound` when it has none, `InUse` while it has ports.
    fn delete_vni(&self, vni: u32) -> Result<(), ApiError>;

    /// The entries that match, by segment and address, at most [`FdbFilter::limit`] of them.
    fn list_fdb(&self, filter: &FdbFilter) -> FdbList;

    /// Adds a static entry, in place of a learned one if there is one.
    ///
    /// # Errors
    /// `NotFound` when there is no such port, `InvalidValue` when the port belongs to another
    /// segment, `Conflict` when a static entry points elsewhere, `LimitReached`.
    fn add_fdb(&self, entry: &StaticEntry) -> Result<(FdbEntry, Created), ApiError>;

    /// Removes an entry, static or learned.
    ///
    /// # Errors
    /// `NotFound`, or `InUse` when it is the address that the port itself was created with.
    fn delete_fdb(&self, vni: u32, mac: Mac) -> Result<(), ApiError>;

    /// The attachments, and whoever makes their ports.
    fn attachments(&self) -> (&Attachments, &dyn PodPorts);

    /// The networks that attachments may join, by name.
    fn list_networks(&self) -> NetworkList {
        self.attachments().0.networks()
    }

    /// All attachments, or those of one owner, in the order of their creation.
    fn list_attachments(&self, owner: Option<&str>) -> AttachmentList {
        let (attachments, ports) = self.attachments();
        attachments.list(ports, owner)
    }

    /// One attachment; `None` when there is none.
    fn get_attachment(&self, owner: &str, interface: &str) -> Option<Attachment> {
        let (attachments, ports) = self.attachments();
        attachments.get(ports, owner, interface)
    }

    /// Attaches an interface, or finds it attached as `spec` says.
    ///
    /// # Errors
    /// See [`Attachments::attach`].
    fn attach(
        &self,
        owner: &str,
        interface: &str,
        spec: &AttachmentSpec,
    ) -> Result<(Attachment, Created), ApiError> {
        let (attachments, ports) = self.attachments();
        attachments.attach(ports, owner, interface, spec)
    }

    /// Gives back address and port of an attachment; one that is not there is no error.
    ///
    /// # Errors
    /// `Internal` when its record cannot be removed.
    fn detach(&self, owner: &str, interface: &str) -> Result<(), ApiError> {
        let (attachments, ports) = self.attachments();
        attachments.detach(ports, owner, interface)
    }

    /// The counters of every port, by name.
    fn stats(&self) -> Stats;

    /// The polling threads, their vrings and counters.
    fn pmds(&self) -> PmdList;

    /// Moves vrings between the polling threads where that pays.
    fn rebalance(&self) -> Rebalanced;

    /// Sends `frame`, bytes from the destination address on, through the pipeline's functions as if
    /// it came from `port`; nothing is forwarded, learned or counted.
    ///
    /// # Errors
    /// `NotFound` when there is no such port.
    fn explain(&self, port: &str, frame: &[u8]) -> Result<ExplainReply, ApiError>;

    /// Whether the switch does its work.
    fn health(&self) -> Health;

    /// Which switch this is.
    fn version(&self) -> Version {
        Version {
            name: "slipwayd".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            api: "v1".to_owned(),
        }
    }
}
