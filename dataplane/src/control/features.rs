//! Names of the virtio features that the switch may negotiate.

use virtio_bindings::virtio_config::{VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_net as net;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// By bit, as virtio 1.3, sections 5.1.3 and 6 name them.
const NAMES: &[(u32, &str)] = &[
    (net::VIRTIO_NET_F_CSUM, "VIRTIO_NET_F_CSUM"),
    (net::VIRTIO_NET_F_GUEST_CSUM, "VIRTIO_NET_F_GUEST_CSUM"),
    (net::VIRTIO_NET_F_GUEST_TSO4, "VIRTIO_NET_F_GUEST_TSO4"),
    (net::VIRTIO_NET_F_GUEST_TSO6, "VIRTIO_NET_F_GUEST_TSO6"),
    (net::VIRTIO_NET_F_GUEST_ECN, "VIRTIO_NET_F_GUEST_ECN"),
    (net::VIRTIO_NET_F_HOST_TSO4, "VIRTIO_NET_F_HOST_TSO4"),
    (net::VIRTIO_NET_F_HOST_TSO6, "VIRTIO_NET_F_HOST_TSO6"),
    (net::VIRTIO_NET_F_HOST_ECN, "VIRTIO_NET_F_HOST_ECN"),
    (net::VIRTIO_NET_F_MRG_RXBUF, "VIRTIO_NET_F_MRG_RXBUF"),
    (net::VIRTIO_NET_F_GUEST_ANNOUNCE, "VIRTIO_NET_F_GUEST_ANNOUNCE"),
    (net::VIRTIO_NET_F_MQ, "VIRTIO_NET_F_MQ"),
    (VIRTIO_RING_F_INDIRECT_DESC, "VIRTIO_F_INDIRECT_DESC"),
    (VIRTIO_RING_F_EVENT_IDX, "VIRTIO_F_EVENT_IDX"),
    (VIRTIO_F_VERSION_1, "VIRTIO_F_VERSION_1"),
    (VIRTIO_F_RING_PACKED, "VIRTIO_F_RING_PACKED"),
    (net::VIRTIO_NET_F_GUEST_USO4, "VIRTIO_NET_F_GUEST_USO4"),
    (net::VIRTIO_NET_F_GUEST_USO6, "VIRTIO_NET_F_GUEST_USO6"),
    (net::VIRTIO_NET_F_HOST_USO, "VIRTIO_NET_F_HOST_USO"),
];

/// The names of the virtio features set in `features`; the vhost-user bit is not one.
pub fn names(features: u64) -> Vec<String> {
    let set = |&&(bit, _): &&(u32, &str)| features & (1 << bit) != 0;
    NAMES.iter().filter(set).map(|&(_, name)| name.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::vhost_user::FEATURES;
    use vhost::vhost_user::message::VhostUserVirtioFeatures;

    #[test]
    fn every_feature_that_a_port_offers_has_a_name() {
        let offered = FEATURES & !VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        assert_eq!(names(offered).len(), offered.count_ones() as usize);
    }
}
