//! A vport whose far side is a network namespace: one tap there, read and written by the PMDs.
//!
//! ```text
//!  container's network stack
//!    | eth0, a tap       receive ring: writev by who delivers      transmit ring: read by its PMD
//!  slipway-pmdN          one system call a frame, virtio-net header included      (vring::tap)
//! ```
//! To the switch it is a vport as any other, with a transmit ring that a PMD polls while it has frames, and
//! that wakes it when it has some again. Unlike the gateway's tap it has no thread and no vrings of its own:
//! a frame is copied by the kernel only.
//!
//! # When the interface or the namespace goes
//! An interface that was deleted says so when it is read, and its rings break. A namespace does not: an open
//! tap keeps it alive though no process and no path leads there. So [`NetnsPort::check`], which the control
//! thread calls now and then, looks whether the path still names it, and closes the tap if not. In both cases
//! the port's link is broken for good and says why; the port stays until it is deleted.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use slipway_api::NetnsSpec;

use crate::gateway::interface::{InterfaceError, Tap};
use crate::namespace::{Namespace, NamespaceError};
use crate::offload::Abilities;
use crate::pmd::Pmds;
use crate::vhost::device::{Device, LinkEvent, RingError};
use crate::vring::driver::DriverError;
use crate::vring::ring::Ring;
use crate::vring::tap::TapRing;
use crate::wire::Mac;

use super::Vport;
use super::cell::LiveRing;
use super::tap::features;
use super::vhost_user::{RingInfo, VhostUserPort};
use super::watch::Wake;

/// vrings by index (virtio 1.3, section 5.1.2).
const TO_NAMESPACE: u16 = 0;
const FROM_NAMESPACE: u16 = 1;

/// Why there is no such port; nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The namespace.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The interface in it.
    #[error(transparent)]
    Interface(#[from] InterfaceError),
    /// The buffers.
    #[error(transparent)]
    Buffers(#[from] DriverError),
    /// The switch refused a ring.
    #[error(transparent)]
    Ring(#[from] RingError),
}

/// An interface that is up in its namespace, and no port yet. Dropping it takes it away.
#[derive(Debug)]
pub struct NetnsTap {
    namespace: Namespace,
    tap: Tap,
}

impl NetnsTap {
    /// Makes the interface that `spec` asks for.
    ///
    /// # Errors
    /// [`NetnsError`].
    pub fn create(spec: &NetnsSpec, mac: Option<Mac>, mtu: u16) -> Result<Self, NetnsError> {
        let (namespace, file) = Namespace::open(&spec.path)?;
        let make = || {
            let tap = Tap::create(&spec.interface)?;
            tap.configure(mac, mtu, &spec.addresses)?;
            Ok::<_, InterfaceError>(tap)
        };
        let tap = namespace.run_in(&file, make)??;
        Ok(Self { namespace, tap })
    }
}

/// The far side of a namespace port. Dropping it stops the rings; the interface goes with it.
#[derive(Debug)]
pub struct NetnsPort {
    namespace: Namespace,
    vport: Arc<Vport>,
    /// Empty once it is closed.
    open: Mutex<Option<Open>>,
}

#[derive(Debug)]
struct Open {
    rings: VhostUserPort,
    /// Kept besides the rings, so that no PMD that breaks one closes the interface: that takes long.
    tap: Arc<Tap>,
}

impl NetnsPort {
    /// Starts the rings of `vport`, which has one queue pair.
    ///
    /// # Errors
    /// [`NetnsError`]; then nothing runs.
    pub fn start(made: NetnsTap, vport: Arc<Vport>, pmds: Arc<Pmds>) -> Result<Self, NetnsError> {
        let NetnsTap { namespace, tap } = made;
        let tap = Arc::new(tap);
        let features = features(&tap);
        let buffers = TapRing::buffers()?;
        let mut rings = VhostUserPort::new(Arc::clone(&vport), pmds);
        let ring = |abilities| LiveRing {
            map: Arc::clone(&buffers),
            ring: Ring::Tap(TapRing::new(Arc::clone(&tap))),
            enabled: true,
            abilities,
            mergeable: false,
            watch: None,
        };
        let receive = ring(Abilities::of_receiver(features));
        rings.adopt(TO_NAMESPACE, receive, None, RingInfo::own(0))?;
        let transmit = ring(Abilities::of_sender(features));
        let wake = Some(Wake::Tap(Arc::clone(&tap)));
        if let Err(error) = rings.adopt(FROM_NAMESPACE, transmit, wake, RingInfo::own(0)) {
            rings.stop_ring(TO_NAMESPACE);
            return Err(error.into());
        }
        rings.link(LinkEvent::Up { features, protocol: 0 });
        let open = Mutex::new(Some(Open { rings, tap }));
        Ok(Self { namespace, vport, open })
    }

    /// The vport.
    pub fn vport(&self) -> &Arc<Vport> {
        &self.vport
    }

    /// Looks whether interface and namespace are still there, and closes the port if not.
    ///
    /// # Errors
    /// The thread that closes the interface can not be started: it is closed here.
    pub fn check(&self) -> io::Result<()> {
        let mut open = self.lock();
        let Some(interface) = open.as_ref().map(|open| open.tap.name().to_owned()) else {
            return Ok(());
        };
        let path = self.namespace.path().display();
        let what = if !self.namespace.is_at_its_path() {
            format!("the namespace {path} was deleted")
        } else if self.vport.link.info().broken_ring().is_some() {
            format!("the interface {interface} in {path} was deleted")
        } else {
            return Ok(());
        };
        let Some(closed) = open.take() else { return Ok(()) };
        tracing::warn!(port = %self.vport.name, "{what}; the port carries nothing any more");
        let reason = format!("{what}; delete the port, and add it again where it is wanted");
        let tap = closed.stop(LinkEvent::Broken { reason });
        // The kernel takes its time, and we are on the thread that serves all ports.
        let thread = std::thread::Builder::new().name("slipway-netns".to_owned());
        thread.spawn(move || drop(tap)).map(drop)
    }

    /// Stops the rings and takes the interface away, if it is there; on return no PMD touches it.
    pub fn close(&self) {
        if let Some(open) = self.lock().take() {
            open.stop(LinkEvent::Waiting);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Open>> {
        // It is replaced as a whole.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for NetnsPort {
    fn drop(&mut self) {
        self.close();
    }
}

impl Open {
    /// Stops the rings; on return no PMD touches the tap.
    fn stop(mut self, event: LinkEvent) -> Arc<Tap> {
        for index in [TO_NAMESPACE, FROM_NAMESPACE] {
            self.rings.stop_ring(index);
        }
        self.rings.link(event);
        self.tap
    }
}
