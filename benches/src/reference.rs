//! The crates' own way to write a vhost-user switch, to compare with: `vhost-user-backend` for the
//! protocol and its threads, `virtio-queue` for the rings, one chain at a time, one copy.
//!
//! Two ports, whatever one sends goes to the other. No lookup, no offloads, no counters: all that
//! it lacks is in its favour.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;

use anyhow::{Context, Result};
use vhost::vhost_user::{Listener, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon, VringMutex, VringT};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;
type Vring = VringMutex<Memory>;

/// What a port's thread needs of the other port.
#[derive(Default)]
struct Shared {
    memory: Mutex<Option<Memory>>,
    receive: OnceLock<Vring>,
}

struct Port {
    own: Arc<Shared>,
    other: Arc<Shared>,
    core: usize,
}

impl VhostUserBackend for Port {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        2
    }

    fn max_queue_size(&self) -> usize {
        1024
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_NET_F_MRG_RXBUF
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn set_event_idx(&self, _enabled: bool) {}

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        // Without one the daemon's end would wait for its worker for ever.
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        *self.own.memory.lock().expect("no panic while held") = Some(memory);
        Ok(())
    }

    fn handle_event(
        &self,
        event: u16,
        _set: EventSet,
        vrings: &[Vring],
        _thread: usize,
    ) -> io::Result<()> {
        self.own.receive.get_or_init(|| vrings[0].clone());
        if event == 1 {
            // The thread is the daemon's own, so it can only pin itself.
            core_affinity::set_for_current(core_affinity::CoreId { id: self.core });
            // The rings reach the device only here, so it polls from here, as a switch would.
            while self.forward(&vrings[1])? {}
        }
        Ok(())
    }
}

impl Port {
    /// One round over the transmit ring; `false` once the guest is gone.
    fn forward(&self, transmit: &Vring) -> io::Result<bool> {
        let Some(receive) = self.other.receive.get() else { return Ok(false) };
        let memory = |shared: &Shared| {
            let memory = shared.memory.lock().expect("no panic while held");
            memory.as_ref().map(GuestAddressSpace::memory)
        };
        let (Some(from), Some(to)) = (memory(&self.own), memory(&self.other)) else {
            return Ok(false);
        };
        let mut source = transmit.get_mut();
        let mut sink = receive.get_mut();
        if !source.get_queue().ready() || !sink.get_queue().ready() {
            return Ok(false);
        }
        let mut bounce = [0_u8; 2048];
        let mut iter = source.get_queue_mut().iter(from.clone()).map_err(io::Error::other)?;
        let mut used = Vec::with_capacity(32);
        for chain in iter.by_ref().take(32) {
            let head = chain.head_index();
            let mut len = 0;
            for desc in chain.readable() {
                let n = (desc.len() as usize).min(bounce.len() - len);
                from.read_slice(&mut bounce[len..len + n], desc.addr())
                    .map_err(io::Error::other)?;
                len += n;
            }
            used.push(head);
            let Some(buffer) = sink.get_queue_mut().pop_descriptor_chain(to.clone()) else {
                continue;
            };
            let head = buffer.head_index();
            let mut at = 0;
            bounce[10..12].copy_from_slice(&1_u16.to_le_bytes());
            for desc in buffer.writable() {
                let n = (desc.len() as usize).min(len - at);
                to.write_slice(&bounce[at..at + n], desc.addr()).map_err(io::Error::other)?;
                at += n;
            }
            let queue = sink.get_queue_mut();
            queue.add_used(&*to, head, at as u32).map_err(io::Error::other)?;
        }
        for head in used {
            source.get_queue_mut().add_used(&*from, head, 0).map_err(io::Error::other)?;
        }
        Ok(true)
    }
}

/// Serves two ports at `sockets` until their front ends stop their rings and hang up. What the
/// first port's guest sends is forwarded on `core`.
pub fn start(sockets: [&Path; 2], core: usize) -> Result<Vec<thread::JoinHandle<()>>> {
    let shared = [Arc::new(Shared::default()), Arc::new(Shared::default())];
    let serve = |(n, path): (usize, &Path)| {
        let port = Port { own: Arc::clone(&shared[n]), other: Arc::clone(&shared[1 - n]), core };
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let mut daemon = VhostUserDaemon::new(format!("reference{n}"), Arc::new(port), memory)
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        let mut listener = Listener::new(path, true).context("binding the reference's socket")?;
        Ok(thread::spawn(move || {
            // Ends when the front end hangs up.
            let _ = daemon.start(&mut listener);
            let _ = daemon.wait();
        }))
    };
    sockets.into_iter().enumerate().map(serve).collect()
}
