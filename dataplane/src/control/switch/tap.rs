//! The port of the host's gateway: a tap instead of a socket.

use std::net::IpAddr;
use std::sync::Arc;

use slipway_api::{
    ApiError, AppliedPortSpec, ErrorCode, Mac, Port, PortMode, PortSpec, TUN_DEVICE,
};

use crate::gateway::interface::Tap;
use crate::port::tap::TapPort;

use super::Switch;
use super::state::PortEntry;
use crate::control::view;

/// What the port of a tap is.
#[derive(Debug, Clone)]
pub struct TapSpec {
    /// Its segment.
    pub vni: u32,
    /// The Ethernet address of the interface.
    pub mac: Mac,
    /// MTU of the interface, in bytes.
    pub mtu: u16,
    /// Addresses of the interface, which the switch answers for.
    pub addresses: Vec<IpAddr>,
}

impl Switch {
    /// Makes `tap` a port, named as its interface. It lives as long as the switch.
    ///
    /// # Errors
    /// `Conflict` when the name, the Ethernet address or an IP address is taken, `InvalidValue` when
    /// the name can not be a port's, `Internal` when the tap can not be served.
    pub fn add_tap(&self, spec: TapSpec, tap: Tap) -> Result<Port, ApiError> {
        let name = tap.name().to_owned();
        PortSpec::named(&name).check()?;
        let spec = AppliedPortSpec {
            name: name.clone(),
            vni: spec.vni,
            mac: Some(spec.mac),
            socket: TUN_DEVICE.into(),
            mode: PortMode::Tap,
            queue_pairs: 1,
            learning: false,
            mac_quota: self.config.ports.mac_quota,
            // The host routes: what it sends comes from anywhere.
            anti_spoof: false,
            mtu: Some(spec.mtu),
            addresses: spec.addresses,
            policy: None,
            pmds: Vec::new(),
            netns: None,
        };
        let vni = spec.vni;
        let mut state = self.lock();
        if let Some(existing) = state.ports.get(&name) {
            existing.spec.same_as(&spec)?;
            return Err(ApiError::new(
                ErrorCode::Conflict,
                format!("Port {name} exists"),
                "Set gateway.interface to another name",
            ));
        }
        self.check_new(&state, &spec)?;
        let added = self.enter(&mut state, spec, None).and_then(|vport| {
            let tap = TapPort::start(tap, vport, Arc::clone(&self.pmds)).map_err(|error| {
                ApiError::new(
                    ErrorCode::Internal,
                    format!("The tap can not be served: {error}"),
                    "Look at the limits of memory, threads and descriptors of slipwayd",
                )
            });
            tap.inspect_err(|_| self.withdraw(&mut state, &name))
        });
        match added {
            Ok(tap) => {
                let entry = state.ports.get_mut(&name).expect("it was just entered");
                entry.tap = Some(tap);
                Ok(view::port(&entry.spec, &entry.vport))
            }
            Err(error) => {
                self.tidy(&mut state, vni);
                self.publish(&state);
                Err(error)
            }
        }
    }
}

/// Refuses to delete the port of a tap.
pub(super) fn check_deletable(entry: &PortEntry) -> Result<(), ApiError> {
    if entry.spec.mode != PortMode::Tap {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::InUse,
        format!("Port {} is the gateway of the host, and lives as long as slipwayd", entry.spec.name),
        "To do without, set `enabled = false` under [gateway] in slipwayd.toml and restart slipwayd",
    )
    .about("name", &entry.spec.name))
}
