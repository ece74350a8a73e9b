//! MicroVMs as endpoints: the same guest in every arm, a virtio driver with a TCP stack on it.
//!
//! ```text
//!  generator core                                         switch core
//!  all guests, in turn, never asleep                      slipwayd's PMD | OVS-DPDK's PMD
//!    flow    what they send each other     == vrings ==     behind vhost-user sockets
//!    stack   smoltcp                                      or
//!    nic     driver's side of two vrings   == vrings ==   VMMs of ours -- taps -- the kernel
//! ```
//! So what differs between arms is the switch core's work alone. A VMM without vhost-net takes
//! frames out of the guest's rings and writes them to a tap, one system call each, and the kernel
//! carries them on in that call: the other core's work of the arms with taps, all of it, as a polling thread's
//! is of the others. Work and idleness of that core are counted in every arm, so that a generator that
//! was too slow is seen. Where the kernel has vhost-net, [its threads](vhost_net) take the VMMs' place.

pub mod attach;
pub mod fleet;
pub mod nic;
pub mod stack;
pub mod vhost_net;
pub mod vmm;
