//! A virtio-net driver: split and packed rings, driver side, for full speed and for full malice.
//!
//! [`TxQueue`] and [`RxQueue`] own a ring and its buffers, one buffer per descriptor, all memory
//! allocated when they are made. In the steady state a burst costs one load of the used index, one
//! store of the available index, and a kick only if the device asks for it.
//!
//! Both are strict witnesses of the device: see [`DeviceFault`].

mod any;
mod buffers;
mod header;
mod layout;
mod packed;
mod ring;
mod rx;
mod tx;
mod wait;

pub use any::{AnyVring, DriverRing};
pub(super) use buffers::stride;
pub use header::VirtioNetHdr;
pub use layout::Layout;
pub use packed::PackedVring;
pub use ring::{Desc, Vring};
pub use rx::{RxFrame, RxQueue};
pub use tx::{INDIRECT_TABLE_ENTRIES, TxError, TxOptions, TxQueue, TxSlot};

use std::io;
use std::time::{Duration, Instant};

/// What a device must not do, and did.
#[derive(Debug, thiserror::Error)]
pub enum DeviceFault {
    /// The used index moved by more than the ring's size.
    #[error("used index moved from {expected} to {found}, further than the ring is long")]
    UsedIndex {
        /// The index last seen.
        expected: u16,
        /// The index the device stored.
        found: u16,
    },
    /// A used entry names a chain the driver did not make available.
    #[error("used entry {at} names chain {id}, which is not outstanding")]
    UsedId {
        /// The id of the entry.
        id: u32,
        /// Its used index.
        at: u16,
    },
    /// A used entry says that more or fewer bytes were written than can be.
    #[error("used length {len} of chain {head} is not within {min}..={max}")]
    UsedLength {
        /// Head of the chain.
        head: u16,
        /// Bytes the device says it wrote.
        len: u32,
        /// Fewest bytes that make sense.
        min: usize,
        /// Room of the chain.
        max: usize,
    },
    /// `num_buffers` is zero, or not one without MRG_RXBUF (virtio 1.3, section 5.1.6.4).
    #[error("num_buffers is {found}, mergeable buffers negotiated: {mergeable}")]
    NumBuffers {
        /// The field.
        found: u16,
        /// Whether MRG_RXBUF was negotiated.
        mergeable: bool,
    },
    /// The frame's first buffer was shown before the others were.
    #[error("a frame of {need} buffers was shown with {found} of them used")]
    MissingBuffers {
        /// `num_buffers`.
        need: u16,
        /// Buffers used so far, the first included.
        found: u16,
    },
    /// Waiting for the device failed.
    #[error("waiting on the call eventfd failed")]
    Wait(#[source] io::Error),
}

/// A moment by which waiting ends.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    /// `timeout` from now.
    #[expect(
        clippy::disallowed_methods,
        reason = "a bound on waiting in tests, not the switch's clock"
    )]
    pub fn after(timeout: Duration) -> Self {
        Self(Instant::now() + timeout)
    }

    /// Time left; zero once passed.
    #[expect(
        clippy::disallowed_methods,
        reason = "a bound on waiting in tests, not the switch's clock"
    )]
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Milliseconds left, rounded up, as poll and epoll take them.
    pub fn left_ms(self) -> i32 {
        i32::try_from(self.left().as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
    }

    /// Whether the moment has passed.
    pub fn passed(self) -> bool {
        self.left().is_zero()
    }
}

/// A receive and a transmit queue.
#[derive(Debug)]
pub struct QueuePair {
    /// The device writes here.
    pub rx: RxQueue,
    /// The device reads here.
    pub tx: TxQueue,
}
