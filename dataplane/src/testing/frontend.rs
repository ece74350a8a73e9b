//! The vhost-user front end: what a VMM does on behalf of its guest.
//!
//! [`Guest::connect`] takes the road QEMU takes: features, protocol features, owner, memory,
//! rings, enable, kick. Vring `2 i` is the receive ring of pair `i`, vring `2 i + 1` its transmit
//! ring. The guest's life afterwards, each arrow a method:
//!
//! ```text
//!            connect / accept            stop -> bases
//!   (no one) ----------------> Running <---------------> Stopped
//!                               |  ^ reboot   resume(bases)
//!                    disconnect |  | reconnect (bases = used indexes)
//!                               v  |
//!                             Detached: memory and rings stay, as in a VMM whose switch died
//! ```
//!
//! Set-up ends with one more round trip, so that when a method returns the back end has handled
//! everything it was sent, acknowledged or not.

mod error;
mod listener;

pub use error::GuestError;
pub use listener::GuestListener;

use std::fmt;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};

use super::config::{GuestConfig, features};
use super::driver::{
    AnyVring, Deadline, DriverRing as _, QueuePair, RxQueue, TxError, TxQueue, VirtioNetHdr,
};
use super::memory::{GuestMemory, Region, RegionSpec};
use error::Named;

/// How long [`Guest::send`] waits for room in the ring.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

type Result<T, E = GuestError> = std::result::Result<T, E>;

/// A guest with its VMM: memory, rings, and (usually) a connection to a switch.
pub struct Guest {
    config: GuestConfig,
    memory: GuestMemory,
    pairs: Vec<QueuePair>,
    frontend: Option<Frontend>,
    offered: u64,
    acked: u64,
    protocol: VhostUserProtocolFeatures,
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guest")
            .field("connected", &self.frontend.is_some())
            .field("acked", &format_args!("{:#x}", self.acked))
            .field("pairs", &self.pairs.len())
            .field("regions", &self.memory.regions().len())
            .finish_non_exhaustive()
    }
}

impl Guest {
    /// Connects to the switch's socket at `path` and sets the guest up.
    ///
    /// # Errors
    /// [`GuestError`] of the step that failed.
    pub fn connect(path: &Path, config: GuestConfig) -> Result<Self> {
        Self::over(connect_stream(path)?, config)
    }

    /// Sets a guest up over a connected stream.
    ///
    /// # Errors
    /// [`GuestError`] of the step that failed.
    pub fn over(stream: UnixStream, config: GuestConfig) -> Result<Self> {
        let mut memory = GuestMemory::new(&config.layout(), config.backing)?;
        // Address zero stays free: to some device models a ring there is a ring not set up.
        memory.alloc(0, super::memory::PAGE_BYTES, super::memory::PAGE_BYTES)?;
        let regions: Vec<usize> = (0..config.regions).collect();
        let mut pairs = Vec::new();
        for _ in 0..config.queue_pairs {
            let (size, is_packed) = (config.ring_size, config.is_packed());
            let segments = &config.rx_segments;
            let turns = config.tx.turns;
            let mut rx = RxQueue::new(&mut memory, &regions, size, is_packed, segments, turns)?;
            rx.set_repost(config.rx_repost);
            let tx = TxQueue::new(&mut memory, &regions, size, is_packed, config.tx)?;
            pairs.push(QueuePair { rx, tx });
        }
        let mut guest = Self {
            config,
            memory,
            pairs,
            frontend: None,
            offered: 0,
            acked: 0,
            protocol: VhostUserProtocolFeatures::empty(),
        };
        guest.attach(stream)?;
        guest.acked = guest.offered & guest.config.features;
        guest.boot()?;
        Ok(guest)
    }

    /// Opens the session: features offered, protocol features, owner. Sets nothing else.
    fn attach(&mut self, stream: UnixStream) -> Result<()> {
        let vrings = 2 * u64::from(self.config.queue_pairs);
        let mut frontend = Frontend::from_stream(stream, vrings);
        self.offered = frontend.get_features().named("GET_FEATURES")?;
        // The layout of the rings was chosen before anything was offered.
        let needed = features::VERSION_1 | self.config.features & features::RING_PACKED;
        let missing = needed & !self.offered;
        if missing != 0 {
            return Err(GuestError::MissingFeatures { offered: self.offered, missing });
        }
        self.protocol = VhostUserProtocolFeatures::empty();
        if self.offered & self.config.features & features::PROTOCOL != 0 {
            let offered = frontend.get_protocol_features().named("GET_PROTOCOL_FEATURES")?;
            self.protocol = offered & self.config.protocol;
            frontend.set_protocol_features(self.protocol).named("SET_PROTOCOL_FEATURES")?;
            if self.protocol.contains(VhostUserProtocolFeatures::MQ) {
                let offered = frontend.get_queue_num().named("GET_QUEUE_NUM")?;
                if offered < vrings {
                    return Err(GuestError::TooFewVrings { offered, wanted: vrings });
                }
            }
        }
        frontend.set_owner().named("SET_OWNER")?;
        self.frontend = Some(frontend);
        self.ask_for_acks(!self.config.acks_as_qemu)
    }

    /// Whether the requests from here on ask for an acknowledgement.
    fn ask_for_acks(&mut self, on: bool) -> Result<()> {
        let on = on && self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK);
        let need = VhostUserHeaderFlag::NEED_REPLY;
        self.session()?.set_hdr_flags(if on { need } else { VhostUserHeaderFlag::empty() });
        Ok(())
    }

    /// The driver starts: empty rings, memory and rings announced.
    fn boot(&mut self) -> Result<()> {
        let event_idx = self.acked & features::EVENT_IDX != 0;
        let mergeable = self.acked & features::MRG_RXBUF != 0;
        let indirect = self.acked & features::INDIRECT_DESC != 0;
        let first_index = self.config.first_index;
        for pair in &mut self.pairs {
            pair.rx.reset(event_idx, mergeable, first_index);
            pair.tx.reset(event_idx, indirect, first_index);
            pair.rx.any_ring().set_interrupts(self.config.interrupts);
            pair.tx.any_ring().set_interrupts(self.config.interrupts);
        }
        self.announce()?;
        let bases: Vec<u16> = vrings(&mut self.pairs).map(|(_, ring)| ring.base()).collect();
        self.resume(&bases)
    }

    /// Sends features and memory.
    fn announce(&mut self) -> Result<()> {
        let acked = self.acked;
        self.session()?.set_features(acked).named("SET_FEATURES")?;
        let infos: Vec<_> = self.memory.regions().iter().map(|region| info(region)).collect();
        let slots = self.config.memory_slots;
        self.ask_for_acks(true)?;
        let session = self.session()?;
        if slots {
            for info in &infos {
                session.add_mem_region(info).named("ADD_MEM_REG")?;
            }
        } else {
            session.set_mem_table(&infos).named("SET_MEM_TABLE")?;
        }
        self.ask_for_acks(!self.config.acks_as_qemu)
    }

    /// Starts all rings, ring `n` from available index `bases[n]`, and kicks each once.
    ///
    /// # Errors
    /// [`GuestError::Request`] of the request that failed.
    ///
    /// # Panics
    /// When there is not one base for each vring.
    pub fn resume(&mut self, bases: &[u16]) -> Result<()> {
        assert_eq!(bases.len(), 2 * self.pairs.len(), "one base for each vring");
        let Self { frontend, pairs, .. } = self;
        let session = frontend.as_mut().ok_or(GuestError::Detached)?;
        for ((index, ring), base) in vrings(pairs).zip(bases) {
            start_ring(session, index, ring, *base)?;
        }
        if self.acked & features::PROTOCOL != 0 {
            self.ask_for_acks(true)?;
            for index in 0..bases.len() {
                self.session()?.set_vring_enable(index, true).named("SET_VRING_ENABLE")?;
            }
            self.ask_for_acks(!self.config.acks_as_qemu)?;
        }
        for (_, ring) in vrings(&mut self.pairs) {
            ring.kick();
        }
        self.sync()
    }

    /// Stops all rings, and returns the available index at which the device stopped, by vring.
    ///
    /// # Errors
    /// [`GuestError::Request`] of the request that failed.
    pub fn stop(&mut self) -> Result<Vec<u16>> {
        let count = 2 * self.pairs.len();
        let disable = self.acked & features::PROTOCOL != 0;
        let session = self.session()?;
        let mut bases = Vec::with_capacity(count);
        for index in 0..count {
            if disable {
                session.set_vring_enable(index, false).named("SET_VRING_ENABLE")?;
            }
            bases.push(session.get_vring_base(index).named("GET_VRING_BASE")? as u16);
        }
        Ok(bases)
    }

    /// Enables or disables both rings of `pair`, which stay set up.
    ///
    /// # Errors
    /// [`GuestError::Request`].
    pub fn set_enabled(&mut self, pair: usize, enabled: bool) -> Result<()> {
        let session = self.session()?;
        for index in [2 * pair, 2 * pair + 1] {
            session.set_vring_enable(index, enabled).named("SET_VRING_ENABLE")?;
        }
        self.sync()
    }

    /// The guest reboots: rings stop, and a driver that accepts `features` (if offered) starts
    /// with empty rings.
    ///
    /// # Errors
    /// [`GuestError`] of the step that failed.
    pub fn reboot(&mut self, features: u64) -> Result<()> {
        self.stop()?;
        self.acked = self.offered & (features | features::VERSION_1);
        if self.config.memory_slots {
            for region in self.memory.regions().to_vec() {
                self.session()?.remove_mem_region(&info(&region)).named("REM_MEM_REG")?;
            }
        }
        self.boot()
    }

    /// Adds a memory region while the guest runs, and announces it; returns its index.
    ///
    /// # Errors
    /// [`GuestError::Memory`] or [`GuestError::Request`].
    pub fn hot_add(&mut self, spec: RegionSpec) -> Result<usize> {
        let index = self.memory.add(spec, self.config.backing)?;
        if self.protocol.contains(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS) {
            let info = info(&self.memory.regions()[index]);
            self.session()?.add_mem_region(&info).named("ADD_MEM_REG")?;
        } else {
            let infos: Vec<_> = self.memory.regions().iter().map(|region| info(region)).collect();
            self.session()?.set_mem_table(&infos).named("SET_MEM_TABLE")?;
        }
        self.sync()?;
        Ok(index)
    }

    /// Takes region `index` away from the device, with REM_MEM_REG.
    ///
    /// # Errors
    /// [`GuestError::Request`].
    ///
    /// # Panics
    /// When there is no such region.
    pub fn hot_remove(&mut self, index: usize) -> Result<()> {
        let info = info(&self.memory.regions()[index]);
        self.session()?.remove_mem_region(&info).named("REM_MEM_REG")?;
        self.memory.remove(index);
        self.sync()
    }

    /// Hangs up. Memory and rings stay as they are.
    pub fn disconnect(&mut self) {
        self.frontend = None;
    }

    /// Connects to the switch at `path` anew, as after its restart; see [`Self::reconnect_over`].
    ///
    /// # Errors
    /// [`GuestError`] of the step that failed.
    pub fn reconnect(&mut self, path: &Path) -> Result<()> {
        self.reconnect_over(connect_stream(path)?)
    }

    /// Sets the running guest up over a new connection: same features, rings from their used
    /// indexes, so that what the former switch did not finish is done again.
    ///
    /// # Errors
    /// [`GuestError::MissingFeatures`] when the new switch offers less than the guest has
    /// accepted; otherwise of the step that failed.
    pub fn reconnect_over(&mut self, stream: UnixStream) -> Result<()> {
        self.frontend = None;
        self.attach(stream)?;
        let missing = self.acked & !self.offered;
        if missing != 0 {
            return Err(GuestError::MissingFeatures { offered: self.offered, missing });
        }
        let bases: Vec<u16> = vrings(&mut self.pairs).map(|(_, ring)| ring.base()).collect();
        self.announce()?;
        self.resume(&bases)
    }

    /// Waits until the back end has handled all requests so far.
    ///
    /// # Errors
    /// [`GuestError::Request`] when the connection is gone.
    pub fn sync(&mut self) -> Result<()> {
        self.session()?.get_features().named("GET_FEATURES").map(drop)
    }

    /// The message layer, for requests beyond those above.
    ///
    /// # Errors
    /// [`GuestError::Detached`].
    pub fn session(&mut self) -> Result<&mut Frontend> {
        self.frontend.as_mut().ok_or(GuestError::Detached)
    }

    /// Feature bits the back end offered.
    pub fn offered(&self) -> u64 {
        self.offered
    }

    /// Feature bits negotiated.
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// Protocol features negotiated.
    pub fn protocol(&self) -> VhostUserProtocolFeatures {
        self.protocol
    }

    /// Guest memory.
    pub fn memory(&mut self) -> &mut GuestMemory {
        &mut self.memory
    }

    /// Queue pair `index`.
    ///
    /// # Panics
    /// When there is no such pair.
    pub fn pair(&mut self, index: usize) -> &mut QueuePair {
        &mut self.pairs[index]
    }

    /// All queue pairs, for threads to share.
    pub fn pairs(&mut self) -> &mut [QueuePair] {
        &mut self.pairs
    }

    /// The transmit queue of the first pair.
    pub fn tx(&mut self) -> &mut TxQueue {
        &mut self.pairs[0].tx
    }

    /// The receive queue of the first pair.
    pub fn rx(&mut self) -> &mut RxQueue {
        &mut self.pairs[0].rx
    }

    /// Sends one frame on the first pair, waiting a bounded time for room.
    ///
    /// # Errors
    /// [`GuestError::Tx`]; with [`TxError::Full`] when the device takes nothing any more.
    pub fn send(&mut self, frame: &[u8]) -> Result<()> {
        let deadline = Deadline::after(SEND_TIMEOUT);
        let tx = self.tx();
        loop {
            match tx.send(frame) {
                Err(TxError::Full { .. }) if tx.any_ring().wait(deadline)? => {}
                outcome => return Ok(outcome?),
            }
        }
    }

    /// The next frame on the first pair, waiting for it up to `timeout`; `None` when none came.
    ///
    /// # Errors
    /// [`GuestError::Device`].
    pub fn recv(&mut self, timeout: Duration) -> Result<Option<(VirtioNetHdr, Vec<u8>)>> {
        Ok(self.rx().recv(timeout)?)
    }
}

fn connect_stream(path: &Path) -> Result<UnixStream> {
    UnixStream::connect(path).map_err(|source| GuestError::Socket { path: path.into(), source })
}

/// All rings with their vring index, in its order.
fn vrings(pairs: &mut [QueuePair]) -> impl Iterator<Item = (usize, &mut AnyVring)> {
    pairs.iter_mut().flat_map(|pair| [pair.rx.any_ring(), pair.tx.any_ring()]).enumerate()
}

fn start_ring(session: &Frontend, index: usize, ring: &AnyVring, base: u16) -> Result<()> {
    let [desc, avail, used] = ring.areas();
    let addresses = VringConfigData {
        queue_max_size: ring.size(),
        queue_size: ring.size(),
        flags: 0,
        desc_table_addr: desc.user_addr(),
        used_ring_addr: used.user_addr(),
        avail_ring_addr: avail.user_addr(),
        log_addr: None,
    };
    session.set_vring_num(index, ring.size()).named("SET_VRING_NUM")?;
    session.set_vring_base(index, base).named("SET_VRING_BASE")?;
    session.set_vring_addr(index, &addresses).named("SET_VRING_ADDR")?;
    session.set_vring_kick(index, ring.kick_fd()).named("SET_VRING_KICK")?;
    session.set_vring_call(index, ring.call_fd()).named("SET_VRING_CALL")
}

/// A region as the messages describe it.
pub fn info(region: &Region) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: region.gpa(),
        memory_size: region.len() as u64,
        userspace_addr: region.user_addr(),
        mmap_offset: region.file_offset(),
        mmap_handle: region.file().as_raw_fd(),
    }
}
