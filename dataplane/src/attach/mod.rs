//! Attachments: pods' interfaces, from the request for one to its address, MAC and port.
//!
//! ```text
//! PUT --check--> addresses --> MAC, port of the switch --> file --> reply
//!                   ipam          PodPorts                store
//!        any step fails: those before it are undone, nothing has changed
//! DELETE --> file --> port --> addresses
//! start  --> files --> addresses, ports: as they were
//! ```
//! The file is there before the caller hears of the attachment, and gone before the address is free.
//! So however the daemon ends, an address belongs to one pod, and a pod that runs finds its port
//! again: its VMM listens on the port's socket, and the new daemon connects to it.
//!
//! # Bounds
//! As many as the switch has ports. All limits of a request are those of `slipway-api`.
//!
//! # Threads
//! One lock, held while a request is worked on. The switch's own lock is taken inside of it, never
//! the other way round.

mod network;
mod port;
mod same;
mod store;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use slipway_api::{
    ApiError, Attachment, AttachmentList, AttachmentSpec, Created, DEFAULT_NETWORK, ErrorCode,
    LinkState, Mac, NetworkList, Policy, Port, PortMode, check_interface, check_owner, gateway_mac,
};

use crate::clock;
use crate::config::NetworkConfig;

use network::{Net, macs_for};
use port::{pod_port, port_name, remove_socket, reopen, user, with_link};
use same::satisfies;
use store::{Record, Store, make_private_folder};

pub use port::{PodPort, PodPorts};
pub use store::StoreError;

/// What attachments are made of; comes from the configuration.
#[derive(Clone, Debug)]
pub struct AttachConfig {
    /// The networks.
    pub networks: Vec<NetworkConfig>,
    /// The folder of the ports' sockets.
    pub socket_dir: PathBuf,
    /// The folder of the records; `None`: nothing outlives the process.
    pub store_dir: Option<PathBuf>,
}

/// All attachments, and the networks they are of.
#[derive(Debug)]
pub struct Attachments {
    socket_dir: PathBuf,
    store: Option<Store>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    networks: Vec<Net>,
    /// By owner and interface.
    records: BTreeMap<(String, String), Record>,
    next_sequence: u64,
}

impl Default for Attachments {
    /// No networks, so no attachments.
    fn default() -> Self {
        Self { socket_dir: PathBuf::new(), store: None, state: Mutex::default() }
    }
}

impl Attachments {
    /// Opens the folders. What was attached before is there after [`Attachments::restore`].
    ///
    /// # Errors
    /// A folder cannot be made.
    pub fn open(config: AttachConfig) -> Result<Self, StoreError> {
        if config.store_dir.is_some() {
            make_private_folder(&config.socket_dir)?;
        }
        let networks = config.networks.into_iter().map(Net::new).collect();
        Ok(Self {
            socket_dir: config.socket_dir,
            store: config.store_dir.map(Store::open).transpose()?,
            state: Mutex::new(State { networks, ..State::default() }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in here leaves an address taken that nobody has, never one that two have.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes everything that the records tell of; for a switch that has just started. A record that
    /// cannot be used is set aside and reported. A port that cannot be made is reported; its pod
    /// keeps its addresses.
    ///
    /// # Errors
    /// The records cannot be read, or a bad one not be set aside.
    pub fn restore(&self, ports: &dyn PodPorts) -> Result<(), StoreError> {
        let Some(store) = &self.store else { return Ok(()) };
        let mut state = self.lock();
        let records = store.load(|record| state.readmit(record))?;
        let count = records.len();
        for record in records {
            let attachment = &record.attachment;
            if let Err(error) = reopen(ports, attachment) {
                tracing::error!(
                    owner = attachment.owner, interface = attachment.interface, %error,
                    "The port of a pod cannot be made again: it has no network until it is restarted"
                );
            }
            state.next_sequence = state.next_sequence.max(record.sequence + 1);
            state.records.insert(key(&attachment.owner, &attachment.interface), record);
        }
        if count > 0 {
            tracing::info!(attachments = count, "Attachments are restored");
        }
        Ok(())
    }

    /// Attaches interface `interface` of `owner`, or finds it attached as `spec` says.
    ///
    /// # Errors
    /// `Conflict` when it is attached otherwise, or an address or MAC is somebody else's;
    /// `InvalidValue`; `LimitReached` when a range or the switch is full; `Internal` when the record
    /// cannot be written. Nothing has changed then.
    pub fn attach(
        &self,
        ports: &dyn PodPorts,
        owner: &str,
        interface: &str,
        spec: &AttachmentSpec,
    ) -> Result<(Attachment, Created), ApiError> {
        check_owner(owner)?;
        check_interface(interface)?;
        spec.check()?;
        let mut state = self.lock();
        let network = spec.network.as_deref().unwrap_or(DEFAULT_NETWORK);
        if let Some(Record { attachment, .. }) = state.records.get(&key(owner, interface)) {
            satisfies(attachment, network, spec)?;
            return Ok((with_link(attachment, ports), Created::Existing));
        }
        let index = state.network(network)?;
        let mtu = state.networks[index].mtu(spec)?;
        let addresses = state.take(index, &spec.addresses)?;
        let made = self.make(ports, &state, index, owner, interface, spec, mtu, &addresses);
        let record = made.inspect_err(|_| state.networks[index].give_back(&addresses))?;
        state.next_sequence += 1;
        let attachment = with_link(&record.attachment, ports);
        tracing::info!(
            owner,
            interface,
            port = attachment.port,
            ?addresses,
            "An interface is attached"
        );
        state.records.insert(key(owner, interface), record);
        Ok((attachment, Created::New))
    }

    /// Port and record of an attachment whose addresses are taken.
    #[expect(clippy::too_many_arguments, reason = "the parts of one attachment, joined here only")]
    fn make(
        &self,
        ports: &dyn PodPorts,
        state: &State,
        index: usize,
        owner: &str,
        interface: &str,
        spec: &AttachmentSpec,
        mtu: u16,
        addresses: &[IpNet],
    ) -> Result<Record, ApiError> {
        let network = &state.networks[index];
        let vni = network.config.vni;
        let name = port_name(owner, interface);
        let mut attachment = Attachment {
            owner: owner.to_owned(),
            interface: interface.to_owned(),
            network: network.config.name.clone(),
            vni,
            socket: self.socket_dir.join(format!("{name}.sock")),
            port: name,
            mode: PortMode::Connect,
            queue_pairs: spec.queue_pairs.unwrap_or(1),
            mac: Mac([0; 6]),
            mtu,
            addresses: addresses.to_vec(),
            routes: network.routes(),
            neighbours: network.neighbours(),
            dns: network.config.dns.clone(),
            labels: spec.labels.clone(),
            policy: spec.policy.clone(),
            pmds: spec.pmds.clone(),
            created_at_ms: clock::unix_ms(),
            link: LinkState::Waiting,
        };
        self.open_with_mac(ports, state, spec.mac, &mut attachment)?;
        let record = Record::new(state.next_sequence, attachment);
        self.keep(&record).inspect_err(|_| ports.close_pod(&record.attachment.port))?;
        Ok(record)
    }

    fn keep(&self, record: &Record) -> Result<(), ApiError> {
        self.store.as_ref().map_or(Ok(()), |store| store.save(record)).map_err(|error| {
            ApiError::new(
                ErrorCode::Internal,
                format!("The attachment cannot be kept: {error}"),
                "Look at the file system of `run_dir` under [ports] in slipwayd.toml: is it full?",
            )
        })
    }

    /// Sets the policy of a port, an attachment's or not, or takes it off; returns the port and the policy
    /// it had. That of an attachment is kept with it.
    ///
    /// # Errors
    /// `NotFound`; `Internal` when the record cannot be written. Nothing has changed then.
    pub fn set_policy(
        &self,
        ports: &dyn PodPorts,
        port: &str,
        policy: Option<Policy>,
    ) -> Result<(Port, Option<Policy>), ApiError> {
        let mut state = self.lock();
        let record = state.records.values_mut().find(|record| record.attachment.port == port);
        let Some(record) = record else { return ports.set_policy(port, policy) };
        // Nobody else removes the port of an attachment, so what is there now stays.
        if ports.pod_link(port).is_none() {
            return Err(ApiError::not_found("port", port));
        }
        let mut changed = record.clone();
        changed.attachment.policy.clone_from(&policy);
        self.keep(&changed)?;
        *record = changed;
        ports.set_policy(port, policy)
    }

    /// Makes the port of `attachment`, with the MAC address wanted or the first that nobody has.
    fn open_with_mac(
        &self,
        ports: &dyn PodPorts,
        state: &State,
        wanted: Option<Mac>,
        attachment: &mut Attachment,
    ) -> Result<(), ApiError> {
        let vni = attachment.vni;
        let has_it = |mac: Mac| {
            state.records.values().find(|r| (r.attachment.vni, r.attachment.mac) == (vni, mac))
        };
        if let Some(mac) = wanted {
            let holder = match has_it(mac) {
                Some(Record { attachment, .. }) => user(&attachment.owner, &attachment.interface),
                None if mac == gateway_mac(vni) => "The gateway".to_owned(),
                None => {
                    attachment.mac = mac;
                    return ports.open_pod(pod_port(attachment));
                }
            };
            return Err(ApiError::new(
                ErrorCode::Conflict,
                format!("{holder} has this MAC address on VNI {vni}"),
                "Ask for another, or for none to be given one",
            )
            .about("mac", mac));
        }
        let addresses = attachment.addresses.clone();
        let mut last = None;
        for mac in macs_for(&addresses).filter(|mac| has_it(*mac).is_none()) {
            attachment.mac = mac;
            match ports.open_pod(pod_port(attachment)) {
                // A port that was made by hand, or a static entry, has it.
                Err(error) if is_about_mac(&error) => last = Some(error),
                outcome => return outcome,
            }
        }
        Err(last.unwrap_or_else(|| {
            ApiError::new(
                ErrorCode::LimitReached,
                format!("All MAC addresses for {addresses:?} are in use on VNI {vni}"),
                "Ask for a `mac`",
            )
        }))
    }

    /// Gives back address and port. What is not attached is detached.
    ///
    /// # Errors
    /// `Internal` when the record cannot be removed; nothing has changed then.
    pub fn detach(
        &self,
        ports: &dyn PodPorts,
        owner: &str,
        interface: &str,
    ) -> Result<(), ApiError> {
        let mut state = self.lock();
        let Some(record) = state.records.get(&key(owner, interface)) else { return Ok(()) };
        let name = &record.attachment.port;
        if let Some(store) = &self.store {
            store.remove(name).map_err(|error| {
                ApiError::new(
                    ErrorCode::Internal,
                    format!("The attachment cannot be forgotten: {error}"),
                    "Look at the file system of `run_dir` under [ports] in slipwayd.toml",
                )
            })?;
        }
        ports.close_pod(name);
        tracing::info!(owner, interface, port = name, "An interface is detached");
        let Some(Record { attachment, .. }) = state.records.remove(&key(owner, interface)) else {
            return Ok(());
        };
        let network = state.networks.iter_mut().find(|net| net.config.name == attachment.network);
        if let Some(network) = network {
            network.give_back(&attachment.addresses);
        }
        remove_socket(&attachment.socket);
        Ok(())
    }

    /// One attachment.
    pub fn get(&self, ports: &dyn PodPorts, owner: &str, interface: &str) -> Option<Attachment> {
        let state = self.lock();
        state.records.get(&key(owner, interface)).map(|record| with_link(&record.attachment, ports))
    }

    /// All attachments, or those of one owner, in the order of their creation.
    pub fn list(&self, ports: &dyn PodPorts, owner: Option<&str>) -> AttachmentList {
        let state = self.lock();
        let mut records: Vec<_> = state
            .records
            .values()
            .filter(|record| owner.is_none_or(|owner| owner == record.attachment.owner))
            .collect();
        records.sort_by_key(|record| record.sequence);
        let attachments = records.iter().map(|r| with_link(&r.attachment, ports)).collect();
        AttachmentList { attachments }
    }

    /// The networks, by name.
    pub fn networks(&self) -> NetworkList {
        let mut networks: Vec<_> = self.lock().networks.iter().map(Net::view).collect();
        networks.sort_by(|a, b| a.name.cmp(&b.name));
        NetworkList { networks }
    }
}

impl State {
    fn network(&self, name: &str) -> Result<usize, ApiError> {
        self.networks.iter().position(|net| net.config.name == name).ok_or_else(|| {
            let names: Vec<_> = self.networks.iter().map(|net| net.config.name.as_str()).collect();
            let remedy = if names.is_empty() {
                "Add [[networks]] to slipwayd.toml".to_owned()
            } else {
                format!("Name one of {}, or add it to slipwayd.toml", names.join(", "))
            };
            ApiError::invalid("network", name, "There is no network of this name", remedy)
        })
    }

    fn take(&mut self, index: usize, wanted: &[IpAddr]) -> Result<Vec<IpNet>, ApiError> {
        let Self { networks, records, .. } = self;
        let network = &mut networks[index];
        let name = network.config.name.clone();
        network.take(wanted, |address| {
            let has_it = |a: &&Attachment| {
                a.network == name && a.addresses.iter().any(|net| net.addr() == address)
            };
            let holder = records.values().map(|record| &record.attachment).find(has_it)?;
            Some(user(&holder.owner, &holder.interface))
        })
    }

    /// Takes the addresses of a record, or says why it cannot be.
    fn readmit(&mut self, record: &Record) -> Result<(), String> {
        let attachment = &record.attachment;
        check_owner(&attachment.owner).map_err(|error| error.to_string())?;
        check_interface(&attachment.interface).map_err(|error| error.to_string())?;
        if attachment.port != port_name(&attachment.owner, &attachment.interface) {
            return Err("its port is not the one of its owner and interface".to_owned());
        }
        let checked = attachment.policy.as_ref().map_or(Ok(()), Policy::check);
        checked.map_err(|error| error.to_string())?;
        let network = self.networks.iter_mut().find(|net| net.config.name == attachment.network);
        match network {
            // The pod runs on; its addresses were never part of what is given now.
            None => Ok(()),
            Some(network) => network
                .take_again(&attachment.addresses)
                .map_err(|address| format!("another attachment has {address}")),
        }
    }
}

fn key(owner: &str, interface: &str) -> (String, String) {
    (owner.to_owned(), interface.to_owned())
}

fn is_about_mac(error: &ApiError) -> bool {
    error.code == ErrorCode::Conflict && error.field.as_deref() == Some("mac")
}
