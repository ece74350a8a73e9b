//! What one front end asks for, done: features, memory, rings.
//!
//! # How it works
//! [`Handler::serve`] takes one message and returns the bytes to answer. Each request is checked
//! first and changes nothing if it is refused. After every change, each ring that has become
//! complete is started; a change of memory or features first stops all rings (the device
//! acknowledges) and then restarts, on the new map and where it stood, each ring that still has
//! its memory. The others wait for memory.
//!
//! # What is offered
//! Protocol features MQ, REPLY_ACK and CONFIGURE_MEM_SLOTS. Not offered, with reason: the in-flight
//! descriptors (a copying device that completes in order can resume from the used index), the dirty
//! log (the copy path would have to mark every page), status, RARP and MTU (nothing in the switch
//! depends on them yet), page faults handled by the VMM (a missing page would stop the PMD and with
//! it every port).
//!
//! # Errors
//! A request that is refused is acknowledged with 1 if the front end asked for an acknowledgement,
//! and the connection stays. [`Ended`] ends it: the bytes were no message, or a request was not
//! offered and has a reply that cannot be given.
//!
//! # Threads
//! The control thread only.

use std::fs::File;
use std::sync::Arc;

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;

use super::device::{Device, LinkEvent, RingError};
use super::error_chain;
use super::eventfd::{EventFd, NotAnEventFd};
use super::mem::{GuestMap, MAX_REGIONS, MemError, RegionSpec};
use super::message::{Header, Malformed, REPLY_LEN, Reply, Request, RingFile, name_of};
use super::setup::{Ring, RingAddr, SetupError};

/// The protocol features offered.
pub const PROTOCOL_FEATURES: u64 = VhostUserProtocolFeatures::MQ.bits()
    | VhostUserProtocolFeatures::REPLY_ACK.bits()
    | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS.bits();

const REPLY_ACK: u64 = VhostUserProtocolFeatures::REPLY_ACK.bits();
const F_PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
const F_VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;

/// Why a request was refused. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Features that were not offered.
    #[error("Features {extra:#x} were chosen but not offered; {offered:#x} are")]
    Features {
        /// The surplus.
        extra: u64,
        /// What there is to choose from.
        offered: u64,
    },
    /// A driver older than virtio 1.0.
    #[error(
        "Features {chosen:#x} lack VIRTIO_F_VERSION_1 (bit 32); legacy drivers are not supported, \
         use disable-legacy=on or a virtio 1.0 driver"
    )]
    Legacy {
        /// The features chosen.
        chosen: u64,
    },
    /// There is no such ring.
    #[error("No ring {index}; this port has {rings}, two a queue pair")]
    Index {
        /// The index asked for.
        index: u32,
        /// How many rings there are.
        rings: usize,
    },
    /// A message of the ring's set-up was wrong.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// A file descriptor of the wrong kind.
    #[error("Ring {index}")]
    Event {
        /// Ring index.
        index: u16,
        /// What it was.
        source: NotAnEventFd,
    },
    /// Memory could not be mapped or found.
    #[error(transparent)]
    Memory(#[from] MemError),
    /// The device would not run the ring.
    #[error("Ring {index} was refused")]
    Device {
        /// Ring index.
        index: u16,
        /// Why.
        source: RingError,
    },
    /// A message without its feature.
    #[error("{} is not offered", name_of(*code))]
    NotOffered {
        /// Request code.
        code: u32,
    },
}

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// The bytes were no message.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// A request that was not offered and cannot be refused by an acknowledgement.
    #[error("{} is not offered, and there is no way to say so", name_of(*code))]
    NotOffered {
        /// Request code.
        code: u32,
    },
}

/// The vhost-user state of one port. It outlives connections; each starts from nothing.
pub struct Handler {
    device: Box<dyn Device>,
    rings: Vec<Ring>,
    map: Arc<GuestMap>,
    /// As chosen by SET_FEATURES.
    features: Option<u64>,
    protocol: u64,
    /// The ring that the device refused, and why.
    broken: Option<(u16, String)>,
    link: LinkEvent,
    refused: u64,
    last_refusal: Option<String>,
}

impl std::fmt::Debug for Handler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handler")
            .field("rings", &self.rings)
            .field("features", &self.features)
            .field("link", &self.link)
            .finish_non_exhaustive()
    }
}

impl Handler {
    /// A port without a front end.
    pub fn new(device: Box<dyn Device>) -> Self {
        Self {
            device,
            rings: Vec::new(),
            map: Arc::default(),
            features: None,
            protocol: 0,
            broken: None,
            link: LinkEvent::Waiting,
            refused: 0,
            last_refusal: None,
        }
    }

    /// A front end connected.
    pub fn connect(&mut self) {
        let rings = self.device.queue_pairs().saturating_mul(2);
        self.rings = (0..rings).map(Ring::new).collect();
        self.set_link(LinkEvent::Negotiating);
    }

    /// The front end is gone: stops its rings, releases its memory.
    pub fn disconnect(&mut self) {
        for index in self.running() {
            self.device.stop_ring(index);
        }
        self.rings.clear();
        self.map = Arc::default();
        self.features = None;
        self.protocol = 0;
        self.broken = None;
        self.set_link(LinkEvent::Waiting);
    }

    /// Requests refused so far, over all connections.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// The latest refusal, over all connections.
    pub fn last_refusal(&self) -> Option<&str> {
        self.last_refusal.as_deref()
    }

    /// The state of the link.
    pub fn link(&self) -> &LinkEvent {
        &self.link
    }

    /// Does what one message asks for; returns the bytes to answer, if any.
    pub fn serve(
        &mut self,
        header: Header,
        payload: &[u8],
        files: Vec<File>,
    ) -> Result<Option<[u8; REPLY_LEN]>, Ended> {
        let request = Request::parse(header.code, payload, files)?;
        // There is no way to refuse GET_VRING_BASE, and silence would hang the front end. A ring
        // that does not exist has not moved.
        let instead = match &request {
            Request::GetVringBase { index } => Some(Reply::VringBase { index: *index, base: 0 }),
            _ => None,
        };
        let outcome = self.handle(request);
        // After the request, as the one that negotiates REPLY_ACK may itself ask for it.
        let acks = header.need_reply && self.protocol & REPLY_ACK != 0;
        let reply = match outcome {
            Ok(Some(reply)) => Some(reply),
            Ok(None) => acks.then_some(Reply::U64(0)),
            Err(refusal) => {
                self.note(&refusal);
                if let Refused::NotOffered { code } = refusal
                    && !acks
                {
                    return Err(Ended::NotOffered { code });
                }
                instead.or(acks.then_some(Reply::U64(1)))
            }
        };
        Ok(reply.map(|reply| reply.encode(header.code)))
    }

    fn note(&mut self, refusal: &Refused) {
        let text = error_chain(refusal);
        tracing::debug!("vhost-user request refused: {text}");
        self.refused += 1;
        self.last_refusal = Some(text);
    }

    fn handle(&mut self, request: Request) -> Result<Option<Reply>, Refused> {
        match request {
            Request::GetFeatures => return Ok(Some(Reply::U64(self.device.features()))),
            Request::GetProtocolFeatures => return Ok(Some(Reply::U64(PROTOCOL_FEATURES))),
            // Some front ends take this for rings, QEMU for pairs of them. The number of rings
            // serves both: the former use all of them, and QEMU only asks that it be no smaller
            // than the pairs it was told to use.
            Request::GetQueueNum => return Ok(Some(Reply::U64(self.rings.len() as u64))),
            Request::GetMaxMemSlots => return Ok(Some(Reply::U64(MAX_REGIONS as u64))),
            Request::GetVringBase { index } => return self.halt(index).map(Some),
            // A front end with several queue pairs may say so once for each.
            Request::SetOwner => {}
            Request::ResetOwner => self.reset_owner(),
            Request::ResetDevice => self.reset_device(),
            Request::SetFeatures(chosen) => self.set_features(chosen)?,
            Request::SetProtocolFeatures(chosen) => {
                self.protocol = subset(chosen, PROTOCOL_FEATURES)?;
            }
            Request::SetMemTable(table) => self.set_map(GuestMap::map(table)?),
            Request::AddMemReg(region, file) => self.add_region(region, file)?,
            Request::RemMemReg(region) => self.remove_region(region)?,
            Request::SetVringNum { index, num } => {
                let index = self.check(index)?;
                self.ring(index).set_num(num)?;
                self.start(index)?;
            }
            Request::SetVringAddr { index, desc, used, avail } => {
                let index = self.check(index)?;
                self.ring(index).set_addr(RingAddr { desc, avail, used })?;
                self.start(index)?;
            }
            Request::SetVringBase { index, base } => {
                let index = self.check(index)?;
                self.ring(index).set_base(base)?;
                self.start(index)?;
            }
            Request::SetVringKick(file) => {
                let (index, kick) = self.event(file)?;
                // The device takes a kick only with a start.
                self.pause(index);
                self.ring(index).set_kick(kick);
                self.start(index)?;
            }
            Request::SetVringCall(file) => {
                let (index, call) = self.event(file)?;
                self.ring(index).set_call(call.clone());
                if self.ring(index).is_running() {
                    self.device.set_call(index, call);
                }
            }
            Request::SetVringErr(file) => {
                let (index, err) = self.event(file)?;
                // As a kick, and a ring may run before this comes.
                self.pause(index);
                self.ring(index).set_err(err);
                self.start(index)?;
            }
            Request::SetVringEnable { index, on } => {
                let index = self.check(index)?;
                self.set_enabled(index, on);
            }
            Request::NotOffered { code } => return Err(Refused::NotOffered { code }),
        }
        Ok(None)
    }

    fn check(&self, index: u32) -> Result<u16, Refused> {
        let known = u16::try_from(index).ok().filter(|&i| usize::from(i) < self.rings.len());
        known.ok_or(Refused::Index { index, rings: self.rings.len() })
    }

    /// A ring that [`Self::check`] found to exist.
    fn ring(&mut self, index: u16) -> &mut Ring {
        &mut self.rings[usize::from(index)]
    }

    fn event(&self, RingFile { index, file }: RingFile) -> Result<(u16, Option<EventFd>), Refused> {
        let index = self.check(index.into())?;
        let event = file.map(EventFd::from_untrusted).transpose();
        Ok((index, event.map_err(|source| Refused::Event { index, source })?))
    }

    fn running(&self) -> Vec<u16> {
        let rings = (0..).zip(&self.rings);
        rings.filter(|(_, ring)| ring.is_running()).map(|(index, _)| index).collect()
    }

    /// Starts a ring if it is complete and stands still.
    fn start(&mut self, index: u16) -> Result<(), Refused> {
        let Some(features) = self.features else { return Ok(()) };
        let map = &self.map;
        let covered = |addr, len| map.slice_by_vmm_addr(addr, len).is_some();
        let Some(setup) = self.rings[usize::from(index)].to_start(features, covered) else {
            return Ok(());
        };
        let outcome = self.device.start_ring(setup, Arc::clone(&self.map));
        if outcome.is_ok() {
            self.ring(index).started();
        }
        self.mend(index);
        if let Err(error) = &outcome {
            self.broken = Some((index, format!("ring {index}: {error}")));
        }
        self.update_link();
        outcome.map_err(|source| Refused::Device { index, source })
    }

    /// Starts every ring that is complete. One that the device refuses shows in the link.
    fn start_all(&mut self) {
        for index in (0..).take(self.rings.len()) {
            if let Err(refusal) = self.start(index) {
                self.note(&refusal);
            }
        }
        self.update_link();
    }

    /// Stops a ring if it runs; it may go on where it stands.
    fn pause(&mut self, index: u16) {
        if self.ring(index).is_running() {
            match self.device.stop_ring(index) {
                Some(next) => self.ring(index).paused(next),
                // The device gave it up by itself: where it stands is not known.
                None => self.ring(index).halted(None),
            }
        }
    }

    fn pause_all(&mut self) {
        for index in self.running() {
            self.pause(index);
        }
    }

    /// GET_VRING_BASE: stops a ring until it is described anew.
    fn halt(&mut self, index: u32) -> Result<Reply, Refused> {
        let at = self.check(index)?;
        let next = if self.ring(at).is_running() { self.device.stop_ring(at) } else { None };
        self.ring(at).halted(next);
        self.mend(at);
        self.update_link();
        Ok(Reply::VringBase { index, base: self.ring(at).stands_at() })
    }

    fn set_features(&mut self, chosen: u64) -> Result<(), Refused> {
        subset(chosen, self.device.features())?;
        if chosen & F_VERSION_1 == 0 {
            return Err(Refused::Legacy { chosen });
        }
        // "If VHOST_USER_F_PROTOCOL_FEATURES has not been negotiated, the ring is enabled"; and
        // choosing it later disables none (vhost-user specification, "Ring states").
        if chosen & F_PROTOCOL_FEATURES == 0 {
            for index in (0..).take(self.rings.len()) {
                self.set_enabled(index, true);
            }
        }
        // Sent again for each queue pair, while the rings of others run.
        if self.features != Some(chosen) {
            self.pause_all();
            self.features = Some(chosen);
            self.start_all();
        }
        Ok(())
    }

    /// Puts a new map in place of the old, which is unmapped when the last ring let go of it.
    fn set_map(&mut self, map: GuestMap) {
        self.pause_all();
        self.map = Arc::new(map);
        self.start_all();
    }

    /// QEMU before 8.0 tells each change of memory once for every queue pair. A region that is there
    /// already, the same bytes of the same file, is such a repetition and disturbs no ring.
    fn add_region(&mut self, region: RegionSpec, file: File) -> Result<(), Refused> {
        if !self.map.holds(region, &file) {
            self.set_map(self.map.with_added(region, file)?);
        }
        Ok(())
    }

    /// As for [`Self::add_region`]: with several queue pairs a region that is not there may be one
    /// that the pair before has taken away.
    fn remove_region(&mut self, region: RegionSpec) -> Result<(), Refused> {
        match self.map.with_removed(region) {
            Ok(map) => self.set_map(map),
            Err(MemError::Unknown { .. }) if self.rings.len() > 2 => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn set_enabled(&mut self, index: u16, on: bool) {
        if self.ring(index).set_enabled(on) && self.ring(index).is_running() {
            self.device.set_ring_enabled(index, on);
        }
    }

    /// "It is recommended that back-ends either ignore this message, or use it to disable all
    /// rings" (vhost-user specification, VHOST_USER_RESET_OWNER). Without protocol features a
    /// front end could not enable them again.
    fn reset_owner(&mut self) {
        if self.features.is_some_and(|features| features & F_PROTOCOL_FEATURES != 0) {
            for index in (0..).take(self.rings.len()) {
                self.set_enabled(index, false);
            }
        }
    }

    /// Back to the state after the connection, except for memory and protocol features.
    fn reset_device(&mut self) {
        self.pause_all();
        self.rings = (0..).take(self.rings.len()).map(Ring::new).collect();
        self.features = None;
        self.broken = None;
        self.update_link();
    }

    fn mend(&mut self, index: u16) {
        self.broken.take_if(|(broken, _)| *broken == index);
    }

    fn update_link(&mut self) {
        let link = match (&self.broken, self.features) {
            (Some((_, reason)), _) => LinkEvent::Broken { reason: reason.clone() },
            (None, Some(features)) if self.rings.iter().any(Ring::is_running) => {
                LinkEvent::Up { features, protocol: self.protocol }
            }
            _ => LinkEvent::Negotiating,
        };
        self.set_link(link);
    }

    fn set_link(&mut self, link: LinkEvent) {
        if self.link != link {
            self.link = link.clone();
            self.device.link(link);
        }
    }
}

fn subset(chosen: u64, offered: u64) -> Result<u64, Refused> {
    match chosen & !offered {
        0 => Ok(chosen),
        extra => Err(Refused::Features { extra, offered }),
    }
}
