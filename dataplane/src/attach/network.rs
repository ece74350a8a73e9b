//! One network: its configuration, and who has which of its addresses.

use std::net::IpAddr;

use ipnet::IpNet;
use slipway_api::{
    ApiError, AttachmentRoute, AttachmentSpec, ErrorCode, MIN_MTU_BYTES, Mac, Neighbour, Network,
    gateway_mac,
};

use crate::config::NetworkConfig;
use crate::ipam::{Range, Refused};

/// A network and its addresses.
#[derive(Debug)]
pub(super) struct Net {
    pub config: NetworkConfig,
    gateways: Vec<IpAddr>,
    ranges: Vec<Range>,
}

impl Net {
    pub fn new(config: NetworkConfig) -> Self {
        let gateways = config.gateways_in_force();
        let reserved = || {
            let excluded = config.exclude.iter().map(|excluded| excluded.prefix());
            excluded.chain(gateways.iter().copied().map(IpNet::from))
        };
        let ranges = config.ranges.iter().map(|range| Range::new(*range, reserved())).collect();
        Self { config, gateways, ranges }
    }

    /// As the API shows it.
    pub fn view(&self) -> Network {
        let NetworkConfig { name, vni, mtu, ranges, host_gateway, .. } = &self.config;
        let fullest = self
            .ranges
            .iter()
            .min_by_key(|range| (range.capacity().saturating_sub(range.used()), range.capacity()));
        Network {
            name: name.clone(),
            vni: *vni,
            mtu: *mtu,
            ranges: ranges.clone(),
            gateways: self.gateways.clone(),
            host_gateway: *host_gateway,
            used: fullest.map_or(0, Range::used),
            capacity: fullest.map_or(0, Range::capacity),
        }
    }

    /// The MTU that `spec` comes to.
    pub fn mtu(&self, spec: &AttachmentSpec) -> Result<u16, ApiError> {
        let Some(wanted) = spec.mtu else { return Ok(self.config.mtu) };
        let most = self.config.mtu;
        if (MIN_MTU_BYTES..=most).contains(&wanted) {
            return Ok(wanted);
        }
        Err(ApiError::invalid(
            "mtu",
            wanted,
            format!("An MTU on network {} is {MIN_MTU_BYTES} to {most} bytes", self.config.name),
            "Leave it out for the network's, or raise `mtu` under [[networks]] in slipwayd.toml",
        ))
    }

    /// Takes an address of each range: what is asked for, or the next free one. Takes all or none.
    pub fn take(
        &mut self,
        wanted: &[IpAddr],
        holder: impl Fn(IpAddr) -> Option<String>,
    ) -> Result<Vec<IpNet>, ApiError> {
        self.check_wanted(wanted)?;
        let mut taken = Vec::with_capacity(self.ranges.len());
        for index in 0..self.ranges.len() {
            let range = &mut self.ranges[index];
            let prefix = range.prefix();
            let got = match wanted.iter().find(|address| prefix.contains(*address)) {
                Some(address) => range.take(*address).map(|()| Some(*address)),
                None => Ok(range.take_next()),
            };
            let refused = match got {
                Ok(Some(address)) => {
                    taken.push(with_length(prefix, address));
                    continue;
                }
                Ok(None) => self.exhausted(index),
                Err(refused) => {
                    let asked = wanted.iter().find(|address| prefix.contains(*address));
                    self.unavailable(asked.copied().unwrap_or(prefix.addr()), refused, &holder)
                }
            };
            self.give_back(&taken);
            return Err(refused);
        }
        Ok(taken)
    }

    /// Takes addresses that were given before a restart. Takes all or none; `Err` names the one
    /// that somebody has. What lies in no range any more needs not to be taken.
    pub fn take_again(&mut self, addresses: &[IpNet]) -> Result<(), IpAddr> {
        for (index, net) in addresses.iter().enumerate() {
            let range = self.ranges.iter_mut().find(|range| range.prefix().contains(&net.addr()));
            if range.is_some_and(|range| !range.take_again(net.addr())) {
                self.give_back(&addresses[..index]);
                return Err(net.addr());
            }
        }
        Ok(())
    }

    pub fn give_back(&mut self, addresses: &[IpNet]) {
        for net in addresses {
            for range in &mut self.ranges {
                range.give_back(net.addr());
            }
        }
    }

    /// Routes of its guests: to everywhere through the gateways, then those of the configuration.
    pub fn routes(&self) -> Vec<AttachmentRoute> {
        let everywhere = |gateway: &IpAddr| AttachmentRoute {
            destination: match gateway {
                IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
                IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
            },
            gateway: Some(*gateway),
        };
        let extra = self.config.routes.iter().map(|route| AttachmentRoute {
            destination: route.destination,
            gateway: route.gateway,
        });
        self.gateways.iter().map(everywhere).chain(extra).collect()
    }

    /// The gateways whose MAC address is known: those that this host is.
    pub fn neighbours(&self) -> Vec<Neighbour> {
        let mac = gateway_mac(self.config.vni);
        let gateways = self.gateways.iter().filter(|_| self.config.host_gateway);
        gateways.map(|address| Neighbour { address: *address, mac }).collect()
    }

    fn check_wanted(&self, wanted: &[IpAddr]) -> Result<(), ApiError> {
        let name = &self.config.name;
        let in_range =
            |address: &IpAddr| self.ranges.iter().position(|r| r.prefix().contains(address));
        for (index, address) in wanted.iter().enumerate() {
            let Some(range) = in_range(address) else {
                return Err(self.unavailable(*address, Refused::Outside, &|_| None));
            };
            if wanted[..index].iter().any(|before| in_range(before) == Some(range)) {
                return Err(ApiError::invalid(
                    "addresses",
                    address,
                    format!("An interface has one address of each range of network {name}"),
                    "Ask for one of them",
                ));
            }
        }
        Ok(())
    }

    fn exhausted(&self, index: usize) -> ApiError {
        let (name, range) = (&self.config.name, &self.ranges[index]);
        ApiError::new(
            ErrorCode::LimitReached,
            format!(
                "Network {name} has no free address: {} of the {} of {} are in use",
                range.used(),
                range.capacity(),
                range.prefix()
            ),
            "Remove pods, or widen `ranges` under [[networks]] in slipwayd.toml",
        )
        .about("network", name)
    }

    fn unavailable(
        &self,
        address: IpAddr,
        refused: Refused,
        holder: &impl Fn(IpAddr) -> Option<String>,
    ) -> ApiError {
        let name = &self.config.name;
        let remedy = "Ask for another address, or for none to be given one";
        match refused {
            Refused::Outside => {
                let ranges: Vec<_> = self.config.ranges.iter().map(ToString::to_string).collect();
                let message = format!(
                    "No host of network {name} has it: its ranges are {}",
                    ranges.join(", ")
                );
                ApiError::invalid("addresses", address, message, remedy)
            }
            Refused::Reserved => ApiError::invalid(
                "addresses",
                address,
                format!("It is a gateway of network {name}, or excluded by its configuration"),
                remedy,
            ),
            Refused::Taken => {
                let holder = holder(address).unwrap_or_else(|| "somebody".to_owned());
                let message = format!("{holder} has this address of network {name}");
                ApiError::new(ErrorCode::Conflict, message, remedy).about("addresses", address)
            }
        }
    }
}

fn with_length(prefix: IpNet, address: IpAddr) -> IpNet {
    IpNet::new(address, prefix.prefix_len()).unwrap_or_else(|_| address.into())
}

/// MAC addresses to give a guest of these addresses, the first first. They follow from the address,
/// so that whoever remembers a pair remembers the right one; the others are there for guests of the
/// same segment whose addresses end alike.
pub(super) fn macs_for(addresses: &[IpNet]) -> impl Iterator<Item = Mac> {
    let low = addresses.first().map_or(0, |net| match net.addr() {
        IpAddr::V4(address) => address.to_bits(),
        IpAddr::V6(address) => address.to_bits() as u32,
    });
    let [a, b, c, d] = low.to_be_bytes();
    (0x58..=0x67).map(move |second| Mac([0x0a, second, a, b, c, d]))
}
