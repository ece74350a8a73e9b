//! What a guest is made of: queues, buffers, memory, features.

use vhost::vhost_user::VhostUserProtocolFeatures;

use super::driver::stride;
use super::driver::{INDIRECT_TABLE_ENTRIES, TxOptions, VirtioNetHdr};
use super::memory::{Backing, HUGE_PAGE_BYTES, PAGE_BYTES, RegionSpec};

/// Feature bits of virtio-net devices (virtio 1.3, sections 5.1.3 and 6).
pub mod features {
    use vhost::vhost_user::VhostUserVirtioFeatures;
    use virtio_bindings::{virtio_config, virtio_net, virtio_ring};

    /// The modern interface; this driver speaks no other.
    pub const VERSION_1: u64 = 1 << virtio_config::VIRTIO_F_VERSION_1;
    /// Frames may be spread over several receive buffers.
    pub const MRG_RXBUF: u64 = 1 << virtio_net::VIRTIO_NET_F_MRG_RXBUF;
    /// Chains may lie in indirect tables.
    pub const INDIRECT_DESC: u64 = 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
    /// Notifications are asked for by index.
    pub const EVENT_IDX: u64 = 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX;
    /// Rings are packed, not split.
    pub const RING_PACKED: u64 = 1 << virtio_config::VIRTIO_F_RING_PACKED;
    /// Several queue pairs.
    pub const MQ: u64 = 1 << virtio_net::VIRTIO_NET_F_MQ;
    /// The vhost-user transport has protocol features.
    pub const PROTOCOL: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
    /// The device takes frames with partial checksums.
    pub const CSUM: u64 = 1 << virtio_net::VIRTIO_NET_F_CSUM;
    /// The driver takes frames with partial checksums.
    pub const GUEST_CSUM: u64 = 1 << virtio_net::VIRTIO_NET_F_GUEST_CSUM;
    /// The device takes TCP super-frames, IPv4.
    pub const HOST_TSO4: u64 = 1 << virtio_net::VIRTIO_NET_F_HOST_TSO4;
    /// The device takes TCP super-frames, IPv6.
    pub const HOST_TSO6: u64 = 1 << virtio_net::VIRTIO_NET_F_HOST_TSO6;
    /// The device takes UDP super-frames.
    pub const HOST_USO: u64 = 1 << virtio_net::VIRTIO_NET_F_HOST_USO;
    /// The driver takes TCP super-frames, IPv4.
    pub const GUEST_TSO4: u64 = 1 << virtio_net::VIRTIO_NET_F_GUEST_TSO4;
    /// The driver takes TCP super-frames, IPv6.
    pub const GUEST_TSO6: u64 = 1 << virtio_net::VIRTIO_NET_F_GUEST_TSO6;
    /// The driver takes UDP super-frames, IPv4.
    pub const GUEST_USO4: u64 = 1 << virtio_net::VIRTIO_NET_F_GUEST_USO4;
    /// The driver takes UDP super-frames, IPv6.
    pub const GUEST_USO6: u64 = 1 << virtio_net::VIRTIO_NET_F_GUEST_USO6;

    /// What a driver without offloads asks for.
    pub const PLAIN: u64 = VERSION_1 | MRG_RXBUF | INDIRECT_DESC | EVENT_IDX | MQ | PROTOCOL;
    /// Sending with offloads.
    pub const TX_OFFLOADS: u64 = CSUM | HOST_TSO4 | HOST_TSO6 | HOST_USO;
    /// Receiving with offloads.
    pub const RX_OFFLOADS: u64 = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_USO4 | GUEST_USO6;
}

/// Distance between the regions' guest-physical addresses is a multiple of this, and leaves a hole.
const REGION_SPACING: u64 = 16 << 20;

/// What a guest is made of. Start with [`GuestConfig::default`], change with the methods.
///
/// The default: one queue pair, rings of 256, frames of up to 2036 bytes in one descriptor with
/// their header, receive buffers of 2048 bytes, all features but offloads, one sealed region set
/// by SET_MEM_TABLE, interrupts suppressed except while waiting.
#[derive(Debug, Clone)]
pub struct GuestConfig {
    pub(super) queue_pairs: u16,
    pub(super) ring_size: u16,
    pub(super) features: u64,
    pub(super) protocol: VhostUserProtocolFeatures,
    pub(super) acks_as_qemu: bool,
    pub(super) tx: TxOptions,
    pub(super) rx_segments: Vec<usize>,
    pub(super) rx_repost: bool,
    pub(super) interrupts: bool,
    pub(super) first_index: u16,
    pub(super) backing: Backing,
    pub(super) regions: usize,
    pub(super) spare_bytes: usize,
    pub(super) memory_slots: bool,
}

impl Default for GuestConfig {
    fn default() -> Self {
        let capacity = 2048 - VirtioNetHdr::BYTES;
        Self {
            queue_pairs: 1,
            ring_size: 256,
            features: features::PLAIN,
            protocol: VhostUserProtocolFeatures::MQ
                | VhostUserProtocolFeatures::REPLY_ACK
                | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS,
            acks_as_qemu: false,
            tx: TxOptions {
                capacity,
                segment: 2048,
                header_apart: false,
                indirect: false,
                turns: 1,
            },
            rx_segments: vec![2048],
            rx_repost: true,
            interrupts: false,
            first_index: 0,
            backing: Backing::default(),
            regions: 1,
            spare_bytes: 64 << 10,
            memory_slots: false,
        }
    }
}

impl GuestConfig {
    /// Queue pairs, each a receive and a transmit ring.
    #[must_use]
    pub fn queue_pairs(self, queue_pairs: u16) -> Self {
        Self { queue_pairs, ..self }
    }

    /// Entries of each ring; a power of two.
    #[must_use]
    pub fn ring_size(self, ring_size: u16) -> Self {
        Self { ring_size, ..self }
    }

    /// Features to accept, if offered. VERSION_1 is always among them, or there is no guest.
    #[must_use]
    pub fn features(self, features: u64) -> Self {
        Self { features: features | features::VERSION_1, ..self }
    }

    /// With packed rings, or not (the default).
    #[must_use]
    pub fn packed(self, on: bool) -> Self {
        let others = self.features & !features::RING_PACKED;
        self.features(others | if on { features::RING_PACKED } else { 0 })
    }

    pub(super) fn is_packed(&self) -> bool {
        self.features & features::RING_PACKED != 0
    }

    /// Leaves `features` out of those to accept.
    #[must_use]
    pub fn without(self, features: u64) -> Self {
        let features = self.features & !features;
        self.features(features)
    }

    /// Protocol features to accept, if offered.
    #[must_use]
    pub fn protocol(self, protocol: VhostUserProtocolFeatures) -> Self {
        Self { protocol, ..self }
    }

    /// Whether every request asks for an acknowledgement (needs REPLY_ACK); on by default.
    #[must_use]
    pub fn reply_ack(self, on: bool) -> Self {
        let mut protocol = self.protocol;
        protocol.set(VhostUserProtocolFeatures::REPLY_ACK, on);
        self.protocol(protocol)
    }

    /// Whether acknowledgements are asked for where QEMU (from 8.2 on) does so, which is for memory and to enable
    /// rings, and not for every request as in rust-vmm's VMMs (the default).
    #[must_use]
    pub fn acks_as_qemu(self, on: bool) -> Self {
        Self { acks_as_qemu: on, ..self }
    }

    /// Bytes a frame to send may have; longest descriptor, in bytes.
    #[must_use]
    pub fn tx_buffers(self, capacity: usize, segment: usize) -> Self {
        let tx = TxOptions { capacity, segment, ..self.tx };
        Self { tx, ..self }
    }

    /// In bursts, the virtio-net header has a descriptor of its own.
    #[must_use]
    pub fn tx_header_apart(self, header_apart: bool) -> Self {
        let tx = TxOptions { header_apart, ..self.tx };
        Self { tx, ..self }
    }

    /// In bursts, chains lie in indirect tables (if negotiated).
    #[must_use]
    pub fn tx_indirect(self, indirect: bool) -> Self {
        let tx = TxOptions { indirect, ..self.tx };
        Self { tx, ..self }
    }

    /// Lengths of the descriptors of every receive chain, virtio-net header included.
    #[must_use]
    pub fn rx_buffers(self, segments: &[usize]) -> Self {
        Self { rx_segments: segments.to_vec(), ..self }
    }

    /// Buffers of each descriptor, used in turn: `turns` times the memory, which so does not stay
    /// in caches. One is the default.
    #[must_use]
    pub fn buffer_turns(self, turns: u16) -> Self {
        assert!(turns > 0, "a descriptor has a buffer");
        Self { tx: TxOptions { turns, ..self.tx }, ..self }
    }

    /// Whether receive buffers go to the device by themselves, at first and after use; on by
    /// default. Off: [`super::RxQueue::post`] does it.
    #[must_use]
    pub fn rx_repost(self, rx_repost: bool) -> Self {
        Self { rx_repost, ..self }
    }

    /// Whether interrupts are asked for all the time, or only while waiting (the default).
    #[must_use]
    pub fn interrupts(self, interrupts: bool) -> Self {
        Self { interrupts, ..self }
    }

    /// Where all ring indexes start, instead of at zero.
    #[must_use]
    pub fn first_index(self, first_index: u16) -> Self {
        Self { first_index, ..self }
    }

    /// How the memfds are made.
    #[must_use]
    pub fn backing(self, backing: Backing) -> Self {
        Self { backing, ..self }
    }

    /// Memory regions, with holes between them; a power of two, up to eight for SET_MEM_TABLE.
    /// Rings are in the first, buffers are dealt over all.
    #[must_use]
    pub fn regions(self, regions: usize) -> Self {
        Self { regions, ..self }
    }

    /// Memory in the first region for the test's own use, in bytes.
    #[must_use]
    pub fn spare_bytes(self, spare_bytes: usize) -> Self {
        Self { spare_bytes, ..self }
    }

    /// Regions are announced one by one with ADD_MEM_REG (needs CONFIGURE_MEM_SLOTS), not by
    /// SET_MEM_TABLE.
    #[must_use]
    pub fn memory_slots(self, memory_slots: bool) -> Self {
        Self { memory_slots, ..self }
    }

    /// Unit of region sizes.
    pub(super) fn page(&self) -> usize {
        if self.backing.huge { HUGE_PAGE_BYTES } else { PAGE_BYTES }
    }

    /// The regions this configuration needs.
    pub(super) fn layout(&self) -> Vec<RegionSpec> {
        let entries = usize::from(self.ring_size);
        let pairs = usize::from(self.queue_pairs);
        // Descriptor table, avail and used ring, each rounded up to a line.
        let ring = (16 + 2 + 8) * entries + 4 * 64;
        let tables = entries * stride(16 * INDIRECT_TABLE_ENTRIES) + 64;
        let buffers = |capacity| {
            entries.div_ceil(self.regions) * stride(capacity) * usize::from(self.tx.turns) + 64
        };
        let tx = buffers(VirtioNetHdr::BYTES + self.tx.capacity);
        let rx = buffers(self.rx_segments.iter().sum());
        let first = PAGE_BYTES + self.spare_bytes + pairs * (2 * ring + tables);
        let mut gpa = 0;
        let mut regions = Vec::new();
        for index in 0..self.regions {
            let bytes = pairs * (tx + rx) + if index == 0 { first } else { 0 };
            let len = bytes.next_multiple_of(self.page());
            regions.push(RegionSpec { gpa, len });
            gpa = (gpa + len as u64 + 1).next_multiple_of(REGION_SPACING);
        }
        regions
    }
}
