//! Directly attachable networks: NICs that another CNI plugin made, from the file it left.
//!
//! The plugin writes `DAN_CONF/SANDBOX.json` before the shim is called; if it is there, it says all
//! NICs of the pod, and nothing else is asked. The format is Kata's, read as it is. `vhost-user`
//! devices are what slipway is made for; the other kinds are refused by name. One field is our own:
//! `device.mode`, who listens on the socket. Without it the VMM does, as with Kata.
//!
//! # Bounds
//! A file of at most 1 MiB, 28 NICs (as many as a machine has slots for), 1024 addresses, routes and
//! neighbours each per NIC. Unknown fields are left alone: plugins add their own.

use std::{
    fs::File,
    io::{self, Read},
    net::IpAddr,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use serde::Deserialize;

use crate::error::{ConfigError, Place};

const MAX_FILE_BYTES: u64 = 1 << 20;
const MAX_DEVICES: usize = 28;
const MAX_ITEMS: usize = 1024;
const MAX_QUEUE_PAIRS: u32 = 64;
/// Linux's `IFNAMSIZ` without its terminating zero.
const MAX_INTERFACE_BYTES: usize = 15;
/// `sun_path` of unix(7) without its terminating zero.
const MAX_SOCKET_PATH_BYTES: usize = 107;
/// What every IPv4 host takes (RFC 791).
const MIN_MTU: u32 = 68;
const DEFAULT_MTU: u32 = 1500;

/// All NICs of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DanConfig {
    /// A network namespace that the devices belong to. vhost-user needs none.
    pub netns: Option<PathBuf>,
    /// The NICs, in the order in which the guest finds them.
    pub devices: Vec<DanDevice>,
}

/// A NIC behind a vhost-user socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DanDevice {
    /// The interface's name in the guest.
    pub name: String,
    /// The guest's MAC address; `None`: the runtime chooses.
    pub guest_mac: Option<[u8; 6]>,
    /// The vhost-user socket.
    pub socket: PathBuf,
    /// Who listens on it.
    pub mode: DanMode,
    /// Queue pairs; `None`: `network_queues`.
    pub queue_pairs: Option<u32>,
    /// Descriptors per queue; `None`: 256.
    pub queue_size: Option<u32>,
    /// MTU of the guest's interface.
    pub mtu: u16,
    /// The guest's addresses.
    pub addresses: Vec<IpNet>,
    /// The guest's routes.
    pub routes: Vec<DanRoute>,
    /// Neighbours that need no ARP or ND.
    pub neighbours: Vec<DanNeighbour>,
}

/// Who listens on a vhost-user socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DanMode {
    /// The VMM listens, and the switch connects.
    #[default]
    Server,
    /// The switch listens, and the VMM connects.
    Client,
}

/// A route of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DanRoute {
    /// Where to: `0.0.0.0/0` or `::/0` for everywhere.
    pub destination: IpNet,
    /// Through whom; on the link itself if `None`.
    pub gateway: Option<IpAddr>,
    /// The address to send from.
    pub source: Option<IpAddr>,
    /// As in rtnetlink: 0 everywhere, 253 on the link.
    pub scope: u8,
    /// As in rtnetlink.
    pub flags: u32,
    /// MTU of this route.
    pub mtu: Option<u32>,
}

/// A neighbour of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DanNeighbour {
    /// Its address.
    pub address: IpAddr,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// As in rtnetlink: 128 is permanent.
    pub state: u16,
    /// As in rtnetlink.
    pub flags: u32,
}

/// Reads a DAN file; `None`: there is none, and the pod's NICs are found another way.
///
/// # Errors
/// [`ConfigError`], with the field at fault.
pub fn load(path: &Path) -> Result<Option<DanConfig>, ConfigError> {
    let unreadable = |source| ConfigError::Read { file: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    let mut text = String::new();
    file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        let why = format!("it is longer than {MAX_FILE_BYTES} bytes");
        return Err(unreadable(io::Error::new(io::ErrorKind::FileTooLarge, why)));
    }
    parse(&text, path).map(Some)
}

/// Judges the text of a DAN file; `file` is its name in errors.
///
/// # Errors
/// See [`load`].
pub fn parse(text: &str, file: &Path) -> Result<DanConfig, ConfigError> {
    let file_text: FileText = serde_json::from_str(text).map_err(|error| ConfigError::Syntax {
        place: Place::Line { file: file.to_owned(), line: error.line() },
        language: "a DAN file in JSON",
        message: error.to_string(),
    })?;
    let judge = Judge { file };
    let FileText { netns, devices } = file_text;
    judge.at_most("devices", devices.len(), MAX_DEVICES)?;
    let devices: Vec<_> = devices
        .into_iter()
        .enumerate()
        .map(|(index, device)| judge.device(&format!("devices[{index}]"), device))
        .collect::<Result<_, _>>()?;
    for (index, device) in devices.iter().enumerate() {
        let earlier = &devices[..index];
        if earlier.iter().any(|other| other.name == device.name) {
            let key = format!("devices[{index}].name");
            return judge.bad(&key, &device.name, "a name is given to one device");
        }
        if earlier.iter().any(|other| other.socket == device.socket) {
            let key = format!("devices[{index}].device.path");
            return judge.bad(&key, &device.socket.display(), "a socket serves one device");
        }
    }
    let netns = netns.filter(|path| !path.is_empty()).map(PathBuf::from);
    Ok(DanConfig { netns, devices })
}

/// The file as it is written.
#[derive(Deserialize)]
struct FileText {
    #[serde(default)]
    netns: Option<String>,
    devices: Vec<DeviceText>,
}

#[derive(Deserialize)]
struct DeviceText {
    name: String,
    #[serde(default)]
    guest_mac: Option<String>,
    device: KindText,
    #[serde(default)]
    network_info: NetworkText,
}

#[derive(Deserialize)]
struct KindText {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: String,
    #[serde(default)]
    mode: DanMode,
    #[serde(default)]
    queue_num: u32,
    #[serde(default)]
    queue_size: u32,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NetworkText {
    interface: InterfaceText,
    routes: Vec<RouteText>,
    neighbors: Vec<NeighbourText>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct InterfaceText {
    ip_addresses: Vec<String>,
    mtu: u32,
}

#[derive(Deserialize)]
struct RouteText {
    #[serde(default)]
    dest: String,
    #[serde(default)]
    gateway: String,
    #[serde(default)]
    source: String,
    #[serde(default)]
    scope: u8,
    #[serde(default)]
    flags: u32,
    #[serde(default)]
    mtu: u32,
}

#[derive(Deserialize)]
struct NeighbourText {
    #[serde(default)]
    ip_address: Option<String>,
    #[serde(default)]
    hardware_addr: String,
    #[serde(default)]
    state: u16,
    #[serde(default)]
    flags: u32,
}

struct Judge<'a> {
    file: &'a Path,
}

impl Judge<'_> {
    fn bad<T>(
        &self,
        key: &str,
        value: &dyn std::fmt::Display,
        remedy: &str,
    ) -> Result<T, ConfigError> {
        Err(ConfigError::BadValue {
            place: Place::File { file: self.file.to_owned() },
            key: key.to_owned(),
            value: value.to_string(),
            remedy: remedy.to_owned(),
        })
    }

    fn at_most(&self, key: &str, count: usize, most: usize) -> Result<(), ConfigError> {
        if count > most {
            return self.bad(key, &format!("{count} items"), &format!("at most {most} are read"));
        }
        Ok(())
    }

    fn device(&self, at: &str, text: DeviceText) -> Result<DanDevice, ConfigError> {
        let DeviceText { name, guest_mac, device, network_info } = text;
        let kind = &device.kind;
        let refuse = |reason: &str| {
            Err(ConfigError::Refused {
                place: Place::File { file: self.file.to_owned() },
                key: format!("{at}.device.type"),
                value: format!("{kind:?}"),
                reason: reason.to_owned(),
            })
        };
        match kind.as_str() {
            "vhost-user" => {}
            "host-tap" => {
                return refuse(
                    "taps cost the host's RTNL lock for each pod: let the plugin make a vhost-user port, or use slipway-cni",
                );
            }
            "vfio" => {
                return refuse(
                    "host devices are not passed through: let the plugin make a vhost-user port, or use slipway-cni",
                );
            }
            _ => return refuse("it is vhost-user"),
        }
        if name.is_empty()
            || name.len() > MAX_INTERFACE_BYTES
            || name == "."
            || name == ".."
            || name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control())
        {
            let remedy = "an interface has 1 to 15 characters, without blanks, '/' and ':'";
            return self.bad(&format!("{at}.name"), &format!("{name:?}"), remedy);
        }
        let socket = PathBuf::from(&device.path);
        if !socket.is_absolute() || device.path.len() > MAX_SOCKET_PATH_BYTES {
            let (key, value) = (format!("{at}.device.path"), format!("{:?}", device.path));
            return self.bad(&key, &value, "it is an absolute path of at most 107 bytes");
        }
        let guest_mac = match guest_mac.as_deref() {
            None | Some("") => None,
            Some(text) => Some(self.mac(&format!("{at}.guest_mac"), text)?),
        };
        if device.queue_num > MAX_QUEUE_PAIRS {
            let key = format!("{at}.device.queue_num");
            return self.bad(&key, &device.queue_num, "it is 1 to 64 pairs, or 0 for the default");
        }
        if !matches!(device.queue_size, 0 | 256 | 512 | 1024) {
            let key = format!("{at}.device.queue_size");
            return self.bad(&key, &device.queue_size, "it is 256, 512 or 1024, or 0 for 256");
        }
        let NetworkText { interface, routes, neighbors } = network_info;
        let network = format!("{at}.network_info");
        let counts = [interface.ip_addresses.len(), routes.len(), neighbors.len()];
        for (key, count) in ["interface.ip_addresses", "routes", "neighbors"].iter().zip(counts) {
            self.at_most(&format!("{network}.{key}"), count, MAX_ITEMS)?;
        }
        let mtu = if interface.mtu == 0 { DEFAULT_MTU } else { interface.mtu };
        let Some(mtu) = u16::try_from(mtu).ok().filter(|mtu| u32::from(*mtu) >= MIN_MTU) else {
            return self.bad(&format!("{network}.interface.mtu"), &mtu, "it is 68 to 65535");
        };
        Ok(DanDevice {
            name,
            guest_mac,
            socket,
            mode: device.mode,
            queue_pairs: (device.queue_num > 0).then_some(device.queue_num),
            queue_size: (device.queue_size > 0).then_some(device.queue_size),
            mtu,
            addresses: each(interface.ip_addresses, |index, text| {
                self.net(&format!("{network}.interface.ip_addresses[{index}]"), &text)
            })?,
            routes: each(routes, |index, route| {
                self.route(&format!("{network}.routes[{index}]"), &route)
            })?,
            neighbours: each(neighbors, |index, neighbour| {
                self.neighbour(&format!("{network}.neighbors[{index}]"), &neighbour)
            })?,
        })
    }

    fn route(&self, at: &str, text: &RouteText) -> Result<DanRoute, ConfigError> {
        let gateway = self.optional_ip(&format!("{at}.gateway"), &text.gateway)?;
        let source = self.optional_ip(&format!("{at}.source"), &text.source)?;
        // Plugins leave the destination out for "everywhere"; the gateway tells the family.
        let destination = match (text.dest.as_str(), gateway.or(source)) {
            ("" | "default", Some(IpAddr::V6(_))) => "::/0".parse().ok(),
            ("" | "default", Some(IpAddr::V4(_))) => "0.0.0.0/0".parse().ok(),
            ("" | "default", None) => None,
            (dest, _) => Some(self.net(&format!("{at}.dest"), dest)?),
        };
        let Some(destination) = destination else {
            let remedy = "a route needs a destination, or a gateway";
            return self.bad(&format!("{at}.dest"), &"\"\"", remedy);
        };
        if gateway.is_some_and(|gateway| gateway.is_ipv6() != destination.addr().is_ipv6()) {
            let remedy = "destination and gateway are of one family";
            return self.bad(&format!("{at}.gateway"), &text.gateway, remedy);
        }
        Ok(DanRoute {
            destination,
            gateway,
            source,
            scope: text.scope,
            flags: text.flags,
            mtu: (text.mtu > 0).then_some(text.mtu),
        })
    }

    fn neighbour(&self, at: &str, text: &NeighbourText) -> Result<DanNeighbour, ConfigError> {
        let address = text.ip_address.as_deref().unwrap_or_default();
        let key = format!("{at}.ip_address");
        let Some(address) = self.optional_ip(&key, address)? else {
            return self.bad(&key, &"\"\"", "a neighbour has an address");
        };
        let mac = self.mac(&format!("{at}.hardware_addr"), &text.hardware_addr)?;
        Ok(DanNeighbour { address, mac, state: text.state, flags: text.flags })
    }

    /// An address with its prefix length; without one it is a single host.
    fn net(&self, key: &str, text: &str) -> Result<IpNet, ConfigError> {
        let host = || text.parse::<IpAddr>().map(IpNet::from);
        match text.parse().or_else(|_| host()) {
            Ok(net) => Ok(net),
            Err(_) => self.bad(key, &format!("{text:?}"), "write it like 10.0.0.7/24"),
        }
    }

    fn optional_ip(&self, key: &str, text: &str) -> Result<Option<IpAddr>, ConfigError> {
        match text.parse() {
            Ok(address) => Ok(Some(address)),
            Err(_) if text.is_empty() => Ok(None),
            Err(_) => self.bad(key, &format!("{text:?}"), "write it like 10.0.0.1"),
        }
    }

    fn mac(&self, key: &str, text: &str) -> Result<[u8; 6], ConfigError> {
        let octet = |part: &str| {
            let is_pair = part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
            is_pair.then(|| u8::from_str_radix(part, 16).ok()).flatten()
        };
        let octets: Option<Vec<u8>> = text.splitn(7, ':').map(octet).collect();
        match octets.and_then(|octets| <[u8; 6]>::try_from(octets).ok()) {
            Some(mac) if mac[0] & 1 == 0 && mac != [0; 6] => Ok(mac),
            Some(_) => self.bad(key, &format!("{text:?}"), "it is an address of one station"),
            None => self.bad(key, &format!("{text:?}"), "write it like 02:00:00:00:00:01"),
        }
    }
}

fn each<T, U>(
    items: Vec<T>,
    judge: impl Fn(usize, T) -> Result<U, ConfigError>,
) -> Result<Vec<U>, ConfigError> {
    items.into_iter().enumerate().map(|(index, item)| judge(index, item)).collect()
}
