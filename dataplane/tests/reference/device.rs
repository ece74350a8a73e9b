//! The data path of the reference switch, on `virtio-queue`.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::atomic::{Ordering, fence};

use dataplane::testing::features;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::handler::Device;

/// One vring.
pub struct Ring {
    pub queue: Queue,
    pub kick: Option<File>,
    pub call: Option<File>,
    pub enabled: bool,
    /// Kicked since it was set up (vhost-user, "Ring states").
    started: bool,
    /// Used index when the driver was last considered for a call.
    called_at: u16,
}

impl Ring {
    pub fn new() -> Self {
        let queue = Queue::new(32768).unwrap();
        Self { queue, kick: None, call: None, enabled: false, started: false, called_at: 0 }
    }

    pub fn set_base(&mut self, base: u16) {
        self.queue.set_next_avail(base);
        self.queue.set_next_used(base);
        self.called_at = base;
    }

    /// Takes the kick.
    pub fn start(&mut self) {
        if let Some(mut kick) = self.kick.as_ref() {
            // Not all kicks are there to be read: one may have been taken by the poll before.
            let _ = kick.read(&mut [0; 8]);
            self.started = true;
        }
    }

    pub fn stop(&mut self) -> u16 {
        (self.kick, self.call, self.started) = (None, None, false);
        self.queue.set_ready(false);
        self.queue.next_avail()
    }

    fn runs(&mut self, memory: &GuestMemoryMmap) -> bool {
        if !(self.enabled && self.started) {
            return false;
        }
        self.queue.set_ready(true);
        assert!(self.queue.is_valid(memory), "a ring that leaves guest memory was started");
        true
    }

    /// Publishes the used `entries` together, as the buffers of one frame must be.
    fn publish(&mut self, memory: &GuestMemoryMmap, entries: &[(u16, u32)]) {
        let used = self.queue.used_ring();
        let mut idx = self.queue.next_used();
        for (head, len) in entries {
            let slot = u64::from(idx % self.queue.size());
            let elem = u64::from(*head) | u64::from(*len) << 32;
            memory.write_obj(elem.to_le(), GuestAddress(used + 4 + 8 * slot)).unwrap();
            idx = idx.wrapping_add(1);
        }
        memory.store(idx.to_le(), GuestAddress(used + 2), Ordering::Release).unwrap();
        self.queue.set_next_used(idx);
    }

    /// Calls the driver if it asks for that.
    fn call_if_asked(&mut self, memory: &GuestMemoryMmap) {
        let (old, new) = (self.called_at, self.queue.next_used());
        if old == new {
            return;
        }
        self.called_at = new;
        fence(Ordering::SeqCst);
        let avail = self.queue.avail_ring();
        let load = |at| u16::from_le(memory.load(GuestAddress(at), Ordering::Relaxed).unwrap());
        let asked = if self.queue.event_idx_enabled() {
            let event = load(avail + 4 + 2 * u64::from(self.queue.size()));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            load(avail) & 1 == 0
        };
        if asked && let Some(mut call) = self.call.as_ref() {
            call.write_all(&1u64.to_ne_bytes()).unwrap();
        }
    }
}

impl Device {
    /// Takes everything the guest sent: queue pair, and header with frame.
    pub fn take_frames(&mut self) -> Vec<(usize, Vec<u8>)> {
        let Some(memory) = self.memory.clone() else { return Vec::new() };
        let mut frames = Vec::new();
        for (index, ring) in self.rings.iter_mut().enumerate().filter(|(n, _)| n % 2 == 1) {
            if !ring.runs(&memory) {
                continue;
            }
            ring.queue.disable_notification(&memory).unwrap();
            loop {
                while let Some(chain) = ring.queue.iter(&memory).unwrap().next() {
                    let head = chain.head_index();
                    let mut bytes = Vec::new();
                    chain.reader(&memory).unwrap().read_to_end(&mut bytes).unwrap();
                    frames.push((index / 2, bytes));
                    ring.queue.add_used(&memory, head, 0).unwrap();
                }
                if !ring.queue.enable_notification(&memory).unwrap() {
                    break;
                }
            }
            ring.call_if_asked(&memory);
        }
        frames
    }

    /// Queues a frame for the guest.
    pub fn queue(&mut self, pair: usize, frame: Vec<u8>) {
        self.pending.entry(pair).or_default().push_back(frame);
    }

    /// Gives the guest as many frames as it has buffers for; says whether there were any.
    pub fn deliver(&mut self) -> bool {
        let Some(memory) = self.memory.clone() else { return false };
        let mergeable = self.acked & features::MRG_RXBUF != 0;
        let mut delivered = false;
        for (pair, frames) in &mut self.pending {
            let Some(ring) = self.rings.get_mut(2 * pair) else { continue };
            if !ring.runs(&memory) {
                continue;
            }
            while let Some(frame) = frames.front() {
                if fill(ring, &memory, frame, mergeable) {
                    frames.pop_front();
                    delivered = true;
                } else if !ring.queue.enable_notification(&memory).unwrap() {
                    break;
                }
            }
            ring.call_if_asked(&memory);
        }
        delivered
    }
}

/// Writes `frame` (with its header) into receive buffers; false when there are too few.
fn fill(ring: &mut Ring, memory: &GuestMemoryMmap, frame: &[u8], mergeable: bool) -> bool {
    let mut chains = Vec::new();
    let mut room = 0;
    while room < frame.len() {
        let next = ring.queue.iter(memory).unwrap().next();
        let Some(chain) = next else {
            ring.queue.set_next_avail(ring.queue.next_avail().wrapping_sub(chains.len() as u16));
            return false;
        };
        let writer = chain.clone().writer(memory).unwrap();
        room += writer.available_bytes();
        chains.push((chain.head_index(), writer));
        if !mergeable {
            break;
        }
    }
    if room < frame.len() {
        // Too long for this guest: its buffer goes back unused, the frame is dropped.
        ring.queue.set_next_avail(ring.queue.next_avail().wrapping_sub(1));
        return true;
    }
    let mut frame = frame.to_vec();
    frame[10..12].copy_from_slice(&(chains.len() as u16).to_le_bytes());
    let mut rest = &frame[..];
    let mut entries = Vec::new();
    for (head, mut writer) in chains {
        let (piece, behind) = rest.split_at(writer.available_bytes().min(rest.len()));
        writer.write_all(piece).unwrap();
        entries.push((head, piece.len() as u32));
        rest = behind;
    }
    ring.publish(memory, &entries);
    true
}
