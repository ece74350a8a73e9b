//! A pod's interfaces: what slipwayd has for the sandbox, or a DAN file says, as NICs of the VM and
//! as interfaces, routes and neighbours of its guest.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use ipnet::IpNet;
use kata_agent_protocol::agent::{ARPNeighbors, Routes};
use kata_agent_protocol::protobuf::{EnumOrUnknown, MessageField};
use kata_agent_protocol::types::{ARPNeighbor, IPAddress, IPFamily, Interface, Route};
use kata_config::dan::{DanDevice, DanMode};
use slipway_api::client::{Client, ClientError};
use slipway_api::{Attachment, AttachmentSpec, PortMode};
use vmm_glue::{MacAddr, NicSpec, SocketMode};

/// `NUD_PERMANENT` of rtnetlink(7).
const PERMANENT: i32 = 0x80;
/// The interface of a pod without a CNI plugin.
pub const OWN_INTERFACE: &str = "eth0";

/// What a VM and its guest need of one pod's network.
#[derive(Clone, Debug, Default)]
pub struct PodNetwork {
    /// NICs in the order of the guest's interfaces.
    pub nics: Vec<NicSpec>,
    /// The guest's interfaces, found by their MAC addresses.
    pub interfaces: Vec<Interface>,
    /// All its routes.
    pub routes: Routes,
    /// Neighbours that need no ARP.
    pub neighbours: ARPNeighbors,
    /// Lines of its resolv.conf, unless the engine gives it one.
    pub resolv_conf: Vec<String>,
}

/// Where a pod's network comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// The engine made a network namespace and ran CNI plugins: they must have been ours.
    Cni {
        /// The namespace.
        netns: PathBuf,
    },
    /// The engine does no networking (ctr): the shim attaches the pod itself.
    Own,
    /// The configuration wants none.
    None,
}

/// What the specification says of the pod's network.
///
/// # Errors
/// The host's own network, which a VM cannot join.
pub fn wish(spec: &oci_spec::runtime::Spec, model_is_none: bool) -> Result<Wish> {
    use oci_spec::runtime::LinuxNamespaceType;
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    let network = namespaces.into_iter().flatten();
    let network = network.into_iter().find(|n| n.typ() == LinuxNamespaceType::Network);
    if model_is_none {
        return Ok(Wish::None);
    }
    match network.map(|namespace| namespace.path()) {
        // No network namespace in the list: the container shares the host's.
        None => bail!(
            "The pod asks for the host's network (hostNetwork), which a VM cannot join; run it with \
             another runtime class, or without hostNetwork"
        ),
        Some(Some(path)) if is_host_netns(path) => bail!(
            "The pod's network namespace {} is the host's, which a VM cannot join",
            path.display()
        ),
        Some(Some(path)) if !path.as_os_str().is_empty() => Ok(Wish::Cni { netns: path.clone() }),
        Some(_) => Ok(Wish::Own),
    }
}

fn is_host_netns(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |path: &Path| std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let host = identity(Path::new("/proc/1/ns/net"));
    host.is_some() && identity(path) == host
}

/// The attachments that the CNI plugin made for `sandbox`.
///
/// # Errors
/// None, or a switch that does not answer; both with what to do.
pub async fn attachments(switch: &Client, sandbox: &str, netns: &Path) -> Result<Vec<Attachment>> {
    let list = switch.list_attachments(Some(sandbox)).await.map_err(away)?;
    if list.attachments.is_empty() {
        bail!(
            "slipwayd has no port for sandbox {sandbox}: the CNI configuration that set up {} does \
             not use slipway-cni. Set cni_conf_dir = \"/etc/slipway/cni\" for this runtime in \
             containerd's configuration, or choose another runtime class for this pod",
            netns.display()
        );
    }
    Ok(list.attachments)
}

/// Attaches a pod that no CNI plugin was run for.
///
/// # Errors
/// slipwayd's refusal, or that it is away.
pub async fn attach(
    switch: &Client,
    sandbox: &str,
    network: Option<String>,
    queue_pairs: Option<u16>,
) -> Result<Attachment, AttachError> {
    let labels = [("made-by".to_owned(), "containerd-shim-slipway-v2".to_owned())].into();
    let spec = AttachmentSpec { network, queue_pairs, labels, ..AttachmentSpec::default() };
    let attached = switch.attach(sandbox, OWN_INTERFACE, &spec).await;
    let (attachment, _) = attached.map_err(|error| AttachError {
        is_undone: !matches!(
            error,
            ClientError::Timeout { .. }
                | ClientError::Broken { .. }
                | ClientError::NotUnderstood { .. }
        ),
        error: away(error),
    })?;
    Ok(attachment)
}

/// Why a pod was not attached.
#[derive(Debug)]
pub struct AttachError {
    /// The cause, with what to look at.
    pub error: anyhow::Error,
    /// The switch has certainly not attached it: there is nothing to give back.
    pub is_undone: bool,
}

/// A failed call to the switch, with what to look at.
fn away(error: ClientError) -> anyhow::Error {
    let hint = match &error {
        ClientError::Refused(_) => "slipwayd refuses to attach the pod",
        _ => "The switch cannot be asked for the pod's network; see `systemctl status slipwayd`",
    };
    anyhow::Error::new(error).context(hint)
}

impl PodNetwork {
    /// What `attachments` mean to VM and guest.
    pub fn of(attachments: &[Attachment]) -> Self {
        let mut network = Self::default();
        for attachment in attachments {
            network.add(attachment);
        }
        network
    }

    fn add(&mut self, attachment: &Attachment) {
        let mac = MacAddr(attachment.mac.0);
        let mut nic = NicSpec::new(&attachment.socket, mac);
        nic.queue_pairs = attachment.queue_pairs;
        nic.mode = match attachment.mode {
            PortMode::Listen => SocketMode::SwitchListens,
            // The mode of all attachments; a tap is never one.
            PortMode::Connect | PortMode::Tap | PortMode::Netns => SocketMode::VmmListens,
        };
        self.nics.push(nic);

        let name = &attachment.interface;
        self.interfaces.push(interface(name, mac, attachment.mtu.into(), &attachment.addresses));
        for given in &attachment.routes {
            let mut route = route(name, given.destination, given.gateway);
            // Scope: 0 beyond a gateway, 253 on the link (rtnetlink(7)).
            route.scope = if given.gateway.is_some() { 0 } else { 253 };
            self.routes.Routes.push(route);
        }
        for given in &attachment.neighbours {
            let mut neighbour = neighbour(name, given.address, MacAddr(given.mac.0));
            neighbour.state = PERMANENT;
            self.neighbours.ARPNeighbors.push(neighbour);
        }
        let dns = &attachment.dns;
        let mut lines: Vec<_> =
            dns.nameservers.iter().map(|ip| format!("nameserver {ip}")).collect();
        lines.extend(dns.domain.iter().map(|domain| format!("domain {domain}")));
        if !dns.search.is_empty() {
            lines.push(format!("search {}", dns.search.join(" ")));
        }
        if !dns.options.is_empty() {
            lines.push(format!("options {}", dns.options.join(" ")));
        }
        self.resolv_conf.extend(lines);
    }
}

/// The network that another CNI plugin describes in the sandbox's DAN file, if there is one. It goes
/// before everything else, as with Kata.
///
/// # Errors
/// A file that is none, or a device that is not served, with its name.
pub fn dan(folder: &Path, sandbox: &str, queue_pairs: u32) -> Result<Option<PodNetwork>> {
    let path = folder.join(format!("{sandbox}.json"));
    let Some(dan) = kata_config::dan::load(&path)? else { return Ok(None) };
    let mut network = PodNetwork::default();
    for (index, mut device) in dan.devices.into_iter().enumerate() {
        device.queue_pairs.get_or_insert(queue_pairs);
        network.add_dan(sandbox, index, device);
    }
    Ok(Some(network))
}

impl PodNetwork {
    fn add_dan(&mut self, sandbox: &str, index: usize, device: DanDevice) {
        let mac = MacAddr(device.guest_mac.unwrap_or_else(|| private_mac(sandbox, index)));
        let mut nic = NicSpec::new(&device.socket, mac);
        nic.mode = match device.mode {
            DanMode::Client => SocketMode::SwitchListens,
            DanMode::Server => SocketMode::VmmListens,
        };
        let small = |n: u32| u16::try_from(n).ok();
        if let Some(pairs) = device.queue_pairs.and_then(small) {
            nic.queue_pairs = pairs;
        }
        if let Some(size) = device.queue_size.and_then(small) {
            nic.ring_size = size;
        }
        self.nics.push(nic);

        let name = &device.name;
        self.interfaces.push(interface(name, mac, device.mtu.into(), &device.addresses));
        for given in device.routes {
            let mut route = route(name, given.destination, given.gateway);
            route.source = given.source.map(|ip| ip.to_string()).unwrap_or_default();
            route.scope = given.scope.into();
            route.flags = given.flags;
            route.mtu = given.mtu.unwrap_or_default();
            self.routes.Routes.push(route);
        }
        for given in device.neighbours {
            let mut neighbour = neighbour(name, given.address, MacAddr(given.mac));
            neighbour.state = given.state.into();
            // Eight bits of the kernel's; the file's type is wider than its values.
            neighbour.flags = i32::try_from(given.flags).unwrap_or_default();
            self.neighbours.ARPNeighbors.push(neighbour);
        }
    }
}

/// A locally administered address for a device whose file names none: the same for the same device
/// of the same sandbox.
fn private_mac(sandbox: &str, index: usize) -> [u8; 6] {
    use sha2::{Digest as _, Sha256};
    let digest = Sha256::digest(format!("{sandbox}/{index}"));
    let mut mac = [0; 6];
    mac.copy_from_slice(&digest[..6]);
    // Bit 1: locally administered, bit 0: not a group (IEEE 802, section 8.2).
    mac[0] = (mac[0] & 0xfc) | 0x02;
    mac
}

/// An interface of the guest, which finds it by its MAC address.
fn interface(name: &str, mac: MacAddr, mtu: u64, addresses: &[IpNet]) -> Interface {
    let mut message = Interface::new();
    message.device = name.to_owned();
    message.name = name.to_owned();
    message.mtu = mtu;
    message.hwAddr = mac.to_string();
    let address = |net: &IpNet| address_of(net.addr(), &net.prefix_len().to_string());
    message.IPAddresses = addresses.iter().map(address).collect();
    message
}

fn route(device: &str, destination: IpNet, gateway: Option<IpAddr>) -> Route {
    let mut message = Route::new();
    let is_default = destination.prefix_len() == 0;
    message.dest = if is_default { String::new() } else { destination.to_string() };
    message.gateway = gateway.map(|gateway| gateway.to_string()).unwrap_or_default();
    message.device = device.to_owned();
    message.family = EnumOrUnknown::new(family(destination.addr()));
    message
}

fn neighbour(device: &str, address: IpAddr, mac: MacAddr) -> ARPNeighbor {
    let mut message = ARPNeighbor::new();
    message.toIPAddress = MessageField::some(address_of(address, ""));
    message.device = device.to_owned();
    message.lladdr = mac.to_string();
    message
}

fn family(address: IpAddr) -> IPFamily {
    if address.is_ipv4() { IPFamily::v4 } else { IPFamily::v6 }
}

fn address_of(address: IpAddr, mask: &str) -> IPAddress {
    let mut message = IPAddress::new();
    message.family = EnumOrUnknown::new(family(address));
    message.address = address.to_string();
    message.mask = mask.to_owned();
    message
}

/// Gives back what [`attach`] took.
///
/// # Errors
/// The switch is away, or refuses.
pub async fn detach(switch: &Client, sandbox: &str, interface: &str) -> Result<()> {
    switch
        .detach(sandbox, interface)
        .await
        .map_err(away)
        .with_context(|| format!("Failed to give back {interface} of sandbox {sandbox}"))
}
