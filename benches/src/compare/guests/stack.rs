//! A guest's TCP/IP stack, and what runs on it: one socket that sends, receives, or answers.
//!
//! The stack is smoltcp's: no segmentation offload, an acknowledgement for every second segment, no
//! congestion control (what a receiver has room for is the limit; switches here lose nothing as long as
//! rings have room for that), fast retransmission after three duplicates.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use dataplane::clock;
use dataplane::testing::{Guest, LocalGuest, QueuePair};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr};

use super::nic::{Burst, Nic};
use crate::rig::mac;

/// Room for what is under way, in bytes: fewer frames than a ring has entries, so none is lost there.
const WINDOW: usize = 64 << 10;
/// Room of the other direction.
const SMALL: usize = 8 << 10;
/// Length of the prefix of the network that all guests are in.
const PREFIX: u8 = 16;

/// The hardware below a stack.
#[derive(Debug)]
pub enum Machine {
    /// Its rings are served by a switch behind a vhost-user socket.
    VhostUser(Box<Guest>),
    /// By [a VMM of ours](super::vmm), and a tap.
    Local(Box<LocalGuest>),
}

impl Machine {
    fn rings(&mut self) -> &mut QueuePair {
        match self {
            Self::VhostUser(guest) => guest.pair(0),
            Self::Local(guest) => guest.pair(0),
        }
    }
}

/// What a guest's socket does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Sends a lot.
    Sender,
    /// Receives a lot.
    Receiver,
}

/// A guest.
pub struct Stack {
    machine: Machine,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    /// Its address.
    pub address: Ipv4Addr,
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack").field("address", &self.address).finish_non_exhaustive()
    }
}

/// The time, as the stack counts it.
pub fn now() -> Instant {
    Instant::from_micros((clock::ticks() / clock::ticks_per_us()).cast_signed())
}

impl Stack {
    /// Guest `number`, not zero, which is in its hardware address as well.
    pub fn new(number: u32, role: Role, mut machine: Machine) -> Self {
        let hardware = EthernetAddress(mac(number).0);
        let mut config = Config::new(hardware.into());
        config.random_seed = number.into();
        let mut burst = Burst::default();
        let QueuePair { rx, tx } = machine.rings();
        let mut interface = Interface::new(config, &mut Nic::new(rx, tx, &mut burst), now());
        let [_, _, high, low] = number.to_be_bytes();
        // In the upper half: pods that guests are in, and gateways, have the lower.
        let address = Ipv4Addr::new(10, 88, 0x80 | high, low);
        interface.update_ip_addrs(|addresses| {
            // One of the two that there is room for.
            let _ = addresses.push(IpCidr::new(address.into(), PREFIX));
        });
        let (receive, send) = match role {
            Role::Sender => (SMALL, WINDOW),
            Role::Receiver => (WINDOW, SMALL),
        };
        let buffer = |bytes| tcp::SocketBuffer::new(vec![0; bytes]);
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(tcp::Socket::new(buffer(receive), buffer(send)));
        Self { machine, interface, sockets, handle, address }
    }

    /// Its socket.
    pub fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// Waits for a connection to `port`. What the socket did before is forgotten.
    ///
    /// # Errors
    /// The port is zero.
    pub fn listen(&mut self, port: u16) -> Result<()> {
        let socket = self.socket();
        socket.abort();
        socket.listen(port).with_context(|| format!("Failed to listen on port {port}"))
    }

    /// Begins a connection from `port` to `port` of `peer`. What the socket did before is forgotten.
    ///
    /// # Errors
    /// An address is not one.
    pub fn connect(&mut self, peer: Ipv4Addr, port: u16) -> Result<()> {
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.handle);
        socket.abort();
        let connected = socket.connect(self.interface.context(), (peer, port), port);
        connected.with_context(|| format!("Failed to connect to {peer}:{port}"))
    }

    /// Does what there is to do; returns how many frames came and went.
    ///
    /// # Errors
    /// The switch broke the rules of a ring.
    pub fn poll(&mut self, now: Instant, burst: &mut Burst) -> Result<usize> {
        let QueuePair { rx, tx } = self.machine.rings();
        let mut nic = Nic::new(rx, tx, burst);
        self.interface.poll(now, &mut nic, &mut self.sockets);
        nic.finish().with_context(|| format!("The switch broke a ring of {}", self.address))
    }
}
