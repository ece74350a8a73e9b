//! The guest of the tests and benches: everything on the far side of a vhost-user socket, in process.
//!
//! ```text
//!   test or bench thread                                            switch
//!   frames, schedule   what to send, reproducibly
//!   driver             split rings, TX and RX  ==== memfd ====>     vrings
//!   frontend           vhost-user set-up       ---- socket ---->    message handler
//!   raw                any bytes, any fds      ---- socket ---->    message handler
//!   memory             the memfd itself, mapped a second time in the same process
//!   local              the same guest without socket, for tests of rings and pipeline alone
//! ```
//!
//! [`Guest`] is the usual entrance: it connects, negotiates, builds the rings and then sends and
//! receives frames. Its rings are driven without allocation and without system calls (but for the
//! kicks the device asks for), so that one core saturates the switch of another; the same rings
//! take raw descriptors, so that a test can be as hostile as a guest can be.
//!
//! The guest is also a witness: whatever a device must not do (a used index that jumps, an id that
//! is not outstanding, a length beyond the buffer, a frame in too few buffers) comes back as a
//! [`DeviceFault`] instead of passing unseen.
//!
//! # Bounds
//! Memory is what [`GuestConfig`] says, all of it allocated when the guest is made. Waiting is
//! bounded by a deadline given by the caller. Set-up messages are not: the message layer blocks
//! until the back end answers or hangs up.
//!
//! # Threads
//! A [`Guest`] belongs to one thread at a time; its queue pairs can be driven by a thread each.

pub mod config;
pub mod driver;
pub mod frames;
pub mod frontend;
pub mod local;
pub mod memory;
pub mod raw;
pub mod schedule;

pub use config::{GuestConfig, features};
pub use driver::{
    AnyVring, Deadline, Desc, DeviceFault, DriverRing, Layout, QueuePair, RxFrame, RxQueue,
    TxError, TxQueue, TxSlot, VirtioNetHdr, Vring,
};
pub use frontend::{Guest, GuestError, GuestListener};
pub use local::LocalGuest;
pub use memory::GuestMemory;
pub use schedule::Rng;
