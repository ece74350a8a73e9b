//! A guest without a socket: the memory and rings of a [`super::Guest`], handed to the switch's
//! code by function call, for tests and benches of what lies behind the vhost-user messages.
//!
//! # Threads
//! As a [`super::Guest`], a [`LocalGuest`] belongs to one thread; what it hands out to the switch
//! ([`LiveRing`], [`GuestMap`]) has a mapping of its own and may go to any.

use std::io;
use std::sync::Arc;

use super::config::{GuestConfig, features};
use super::driver::{DriverRing, QueuePair, RxQueue, TxQueue};
use super::memory::{GuestMemory, MemoryError, PAGE_BYTES, Span};
use crate::offload::Abilities;
use crate::port::cell::LiveRing;
use crate::vhost::device::RingSetup;
use crate::vhost::eventfd::EventFd;
use crate::vhost::mem::{GuestMap, MemError, RegionSpec};
use crate::vring::chain::Direction;
use crate::vring::ring::Ring;
use crate::vring::split::SetupError;

/// Why a guest could not be made, or its ring not be started.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The guest's own memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The switch did not map it.
    #[error(transparent)]
    Map(#[from] MemError),
    /// The switch refused the ring.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// No event descriptor.
    #[error("creating an eventfd failed")]
    Event(#[source] io::Error),
}

/// Maps all of `memory` as the switch does when it is sent as a memory table.
///
/// # Errors
/// [`MemError`], among them a region beyond a file that was cut short.
pub fn map(memory: &GuestMemory) -> Result<Arc<GuestMap>, LocalError> {
    let mut table = Vec::new();
    for region in memory.regions() {
        let spec = RegionSpec {
            gpa: region.gpa(),
            size: region.len() as u64,
            vmm_addr: region.user_addr(),
            file_offset: region.file_offset(),
        };
        let dup = |source| MemoryError::System { what: "dup", len: region.len(), source };
        table.push((spec, region.file().try_clone().map_err(dup)?));
    }
    Ok(Arc::new(GuestMap::map(table)?))
}

/// What a front end would say of `ring` as vring `index`, starting at available index `base`.
pub fn ring_setup(ring: &impl DriverRing, index: u16, base: u32, features: u64) -> RingSetup {
    let [desc, avail, used] = ring.areas().map(Span::user_addr);
    RingSetup {
        index,
        size: ring.size(),
        desc,
        avail,
        used,
        base,
        kick: None,
        call: None,
        err: None,
        features,
        enabled: true,
    }
}

/// A guest whose rings are started by function call. Accepts all features of its configuration.
#[derive(Debug)]
pub struct LocalGuest {
    config: GuestConfig,
    memory: GuestMemory,
    map: Arc<GuestMap>,
    pairs: Vec<QueuePair>,
    /// What the switch signals, by vring.
    calls: Vec<EventFd>,
}

impl LocalGuest {
    /// Makes memory and rings, and boots the driver: receive buffers are posted.
    ///
    /// # Errors
    /// [`LocalError`] when the kernel refuses memory or descriptors.
    pub fn new(config: GuestConfig) -> Result<Self, LocalError> {
        let mut memory = GuestMemory::new(&config.layout(), config.backing)?;
        // As for `Guest`: address zero stays free.
        memory.alloc(0, PAGE_BYTES, PAGE_BYTES)?;
        let regions: Vec<usize> = (0..config.regions).collect();
        let (mut pairs, mut calls) = (Vec::new(), Vec::new());
        for _ in 0..config.queue_pairs {
            let size = config.ring_size;
            let mut rx = RxQueue::new(
                &mut memory,
                &regions,
                size,
                config.is_packed(),
                &config.rx_segments,
                config.tx.turns,
            )?;
            rx.set_repost(config.rx_repost);
            let tx = TxQueue::new(&mut memory, &regions, size, config.is_packed(), config.tx)?;
            pairs.push(QueuePair { rx, tx });
            calls.push(EventFd::new().map_err(LocalError::Event)?);
            calls.push(EventFd::new().map_err(LocalError::Event)?);
        }
        let map = map(&memory)?;
        let mut guest = Self { config, memory, map, pairs, calls };
        for pair in 0..guest.pairs.len() {
            guest.boot_rx(pair);
            guest.boot_tx(pair);
        }
        Ok(guest)
    }

    fn has(&self, feature: u64) -> bool {
        self.config.features & feature != 0
    }

    /// The receive ring of `pair` starts anew, as after a reset by the driver. The switch must not
    /// have it.
    pub fn boot_rx(&mut self, pair: usize) {
        let (event_idx, mergeable) = (self.has(features::EVENT_IDX), self.has(features::MRG_RXBUF));
        let (first, interrupts) = (self.config.first_index, self.config.interrupts);
        let rx = &mut self.pairs[pair].rx;
        rx.reset(event_idx, mergeable, first);
        rx.any_ring().set_interrupts(interrupts);
    }

    /// The transmit ring of `pair` starts anew, as after a reset by the driver. The switch must not
    /// have it.
    pub fn boot_tx(&mut self, pair: usize) {
        let (event_idx, indirect) =
            (self.has(features::EVENT_IDX), self.has(features::INDIRECT_DESC));
        let (first, interrupts) = (self.config.first_index, self.config.interrupts);
        let tx = &mut self.pairs[pair].tx;
        tx.reset(event_idx, indirect, first);
        tx.any_ring().set_interrupts(interrupts);
    }

    /// The receive queue of the first pair.
    pub fn rx(&mut self) -> &mut RxQueue {
        &mut self.pairs[0].rx
    }

    /// The transmit queue of the first pair.
    pub fn tx(&mut self) -> &mut TxQueue {
        &mut self.pairs[0].tx
    }

    /// A queue pair.
    pub fn pair(&mut self, pair: usize) -> &mut QueuePair {
        &mut self.pairs[pair]
    }

    /// The guest's memory.
    pub fn memory(&mut self) -> &mut GuestMemory {
        &mut self.memory
    }

    /// The switch's mapping of it.
    pub fn map(&self) -> &Arc<GuestMap> {
        &self.map
    }

    /// The event that the switch signals for vring `index`.
    pub fn call(&self, index: u16) -> &EventFd {
        &self.calls[usize::from(index)]
    }

    /// Starts vring `index` as the switch does, enabled; `base` is where it goes on, or nowhere yet.
    ///
    /// # Errors
    /// [`LocalError::Setup`].
    pub fn start(&mut self, index: u16, base: Option<u32>) -> Result<LiveRing, LocalError> {
        let features = self.config.features;
        let call = self.calls[usize::from(index)].clone();
        let pair = &mut self.pairs[usize::from(index / 2)];
        let is_receive = index.is_multiple_of(2);
        let (ring, direction, abilities) = if is_receive {
            (pair.rx.any_ring(), Direction::Receive, Abilities::of_receiver(features))
        } else {
            (pair.tx.any_ring(), Direction::Transmit, Abilities::of_sender(features))
        };
        let base = base.unwrap_or_else(|| ring.base().into());
        let setup = RingSetup { call: Some(call), ..ring_setup(ring, index, base, features) };
        Ok(LiveRing {
            map: Arc::clone(&self.map),
            ring: Ring::new(&setup, &self.map, direction)?,
            enabled: true,
            abilities,
            mergeable: self.has(features::MRG_RXBUF),
            watch: None,
        })
    }
}
