//! vhost-user: the sockets, the messages, and the guest memory that they bring.

pub mod mem;
pub mod sigbus;
