//! Ports in network namespaces: a tap there instead of a socket.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use slipway_api::{ApiError, AppliedPortSpec, DEFAULT_MTU_BYTES, ErrorCode, NetnsSpec};

use crate::gateway::interface::InterfaceError;
use crate::namespace::NamespaceError;
use crate::port::netns::{NetnsError, NetnsPort, NetnsTap};
use crate::vhost::socket::VhostThread;
use crate::wire;

use super::Switch;
use super::state::State;

/// How often namespaces are looked for where they were.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The namespace ports there are; shared with the thread that looks after them, which never takes the lock
/// of the state.
#[derive(Debug, Clone, Default)]
pub(super) struct NetnsPorts(Arc<Mutex<Vec<Weak<NetnsPort>>>>);

impl NetnsPorts {
    /// Has `vhost`'s thread look after those that will come.
    pub(super) fn watched_by(vhost: &VhostThread) -> io::Result<Self> {
        let ports = Self::default();
        let watched = ports.clone();
        vhost.add_task(CHECK_INTERVAL, move || watched.check()).map_err(io::Error::other)?;
        Ok(ports)
    }

    fn add(&self, port: &Arc<NetnsPort>) {
        self.lock().push(Arc::downgrade(port));
    }

    fn check(&self) {
        let mut ports = self.lock();
        ports.retain(|port| {
            let Some(port) = port.upgrade() else { return false };
            if let Err(error) = port.check() {
                tracing::warn!(port = %port.vport().name, %error, "its interface was closed at once");
            }
            true
        });
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<NetnsPort>>> {
        // A list of which one is added or left out at a time.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Switch {
    /// Makes the interface and the port; on an error the interface is gone, and the port is withdrawn.
    pub(super) fn add_netns(
        &self,
        state: &mut State,
        spec: AppliedPortSpec,
        netns: &NetnsSpec,
        user: Option<String>,
    ) -> Result<(), ApiError> {
        let mac = spec.mac.map(|mac| wire::Mac(mac.0));
        let mtu = spec.mtu.unwrap_or(DEFAULT_MTU_BYTES);
        let made = NetnsTap::create(netns, mac, mtu).map_err(|error| refusal(netns, &error))?;
        let name = spec.name.clone();
        let vport = self.enter(state, spec, user)?;
        let port = NetnsPort::start(made, vport, Arc::clone(&self.pmds)).map_err(|error| {
            self.withdraw(state, &name);
            refusal(netns, &error)
        })?;
        let port = Arc::new(port);
        self.netns.add(&port);
        state.ports.get_mut(&name).expect("it was just entered").netns = Some(port);
        Ok(())
    }
}

/// What an operator is told.
fn refusal(spec: &NetnsSpec, error: &NetnsError) -> ApiError {
    let (path, interface) = (spec.path.display(), &spec.interface);
    let about_path = |remedy: &str| ApiError::invalid("netns.path", &path, chain(error), remedy);
    match error {
        NetnsError::Namespace(NamespaceError::Open { .. } | NamespaceError::OtherKind(_)) => {
            about_path(
                "Name a network namespace that slipwayd can see: `ip netns add blue` makes /run/netns/blue",
            )
        }
        NetnsError::Namespace(NamespaceError::Own(_)) => about_path(
            "Name another namespace; for slipwayd's own there is the gateway, [gateway] in slipwayd.toml",
        ),
        NetnsError::Namespace(NamespaceError::Enter { .. }) => about_path(
            "Run slipwayd with CAP_SYS_ADMIN and CAP_NET_ADMIN; see slipwayd-netns.conf among the examples",
        ),
        NetnsError::Interface(InterfaceError::Exists { .. }) => ApiError::new(
            ErrorCode::Conflict,
            format!("There is an interface {interface} in {path} already"),
            format!("Choose another `interface`, or remove it: `nsenter --net={path} ip link delete {interface}`"),
        )
        .about("netns.interface", interface),
        NetnsError::Interface(InterfaceError::Forbidden { .. }) => about_path(
            "Making an interface there takes CAP_NET_ADMIN; see slipwayd-netns.conf among the examples",
        ),
        NetnsError::Interface(InterfaceError::Open(_)) => ApiError::new(
            ErrorCode::Internal,
            chain(error),
            "Load the kernel module tun, and give slipwayd the device; see slipwayd-netns.conf",
        )
        .about("netns.interface", interface),
        NetnsError::Interface(InterfaceError::Step { .. }) => ApiError::invalid(
            "netns",
            spec,
            chain(error),
            "Choose another value, or look at what the namespace allows",
        ),
        NetnsError::Buffers(_) | NetnsError::Ring(_) => ApiError::new(
            ErrorCode::Internal,
            format!("The interface can not be served: {}", chain(error)),
            "Look at the limits of memory and descriptors of slipwayd",
        ),
    }
}

/// The error and what it came from, in one line.
fn chain(error: &NetnsError) -> String {
    let first: &dyn std::error::Error = error;
    let causes = std::iter::successors(Some(first), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
