//! vhost-user: the sockets, the messages, and the guest memory that they bring.
//!
//! # How it works
//! A VMM (the front end) hands its guest's memory and rings to the switch (the back end) over a
//! UNIX socket. One control thread serves all of them:
//!
//! ```text
//! socket      listeners, connections, retries, tasks: one thread, one epoll
//!   stream    bytes and file descriptors of one connection -> whole messages; never blocks
//!     message a message -> a request, or why it is none (pure)
//!       handler the requests of one front end -> memory map, features
//!         setup   the set-up messages of one ring -> a ring, once it is complete (pure)
//!           device the seam: the switch starts and stops polling the ring
//! ```
//! [`mem`] maps guest memory and is the only way to its bytes; [`sigbus`] survives its loss.
//!
//! # Why the messages are decoded here
//! The `vhost` crate's request handler reads blocking, header first, and repeats a read that
//! failed for want of room for file descriptors. Half a header therefore stops every port of the
//! thread, and so, for good, does a header with more than 32 descriptors attached, or with any
//! while our own descriptor table is full: the bytes are gone, the crate reads on for a header
//! that never comes. A look at the socket beforehand excludes the first, not the last. It also
//! fails SET_VRING_ENABLE without an answer before features are set, where QEMU sends it. So the
//! crate lends its message definitions, and tests its front end; the loop that a hostile peer talks
//! to is ours.
//!
//! # Threads
//! Everything but [`mem::GuestMap`] and [`eventfd::EventFd`] lives on the control thread.

pub mod device;
mod event_loop;
pub mod eventfd;
pub mod handler;
mod listener;
pub mod mem;
pub mod message;
mod port;
pub mod setup;
pub mod sigbus;
pub mod socket;
pub mod stream;
mod timers;
pub mod unblock;
mod watch;

/// An error and its causes in one line.
fn error_chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
