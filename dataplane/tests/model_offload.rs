//! Offloads: every kind of frame to every kind of receiver, byte for byte against etherparse.

mod recipe;

use dataplane::flow::HEAD_LEN;
use dataplane::offload::{
    self, Abilities, Action, MAX_SEGMENTS, Offload, Segmenter, complete_checksum,
};
use dataplane::wire::VirtioNetHdr;
use dataplane::wire::virtio_net_hdr::{
    F_NEEDS_CSUM, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4,
};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;
use recipe::{Recipe, any_recipe};

// Feature bits by number (virtio 1.3, section 5.1.3).
const CSUM: u64 = 1;
const GUEST_CSUM: u64 = 1 << 1;
const GUEST_TSO4: u64 = 1 << 7;
const GUEST_TSO6: u64 = 1 << 8;
const GUEST_ECN: u64 = 1 << 9;
const HOST_ALL: u64 = CSUM | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 56;
const GUEST_USO4: u64 = 1 << 54;
const GUEST_USO6: u64 = 1 << 55;

/// Every set of receiver features that matters, and one that does not.
fn receivers() -> impl Iterator<Item = u64> {
    let bits = [GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_ECN, GUEST_USO4, GUEST_USO6, HOST_ALL];
    (0..1u32 << bits.len()).map(move |set| {
        (0..bits.len()).filter(|n| set >> n & 1 != 0).fold(0, |features, n| features | bits[n])
    })
}

/// What a receiver must have negotiated to take a frame that is to be segmented.
fn needed(recipe: &Recipe, is_ecn: bool) -> u64 {
    let kind = match (recipe.is_tcp, recipe.is_ipv6) {
        (true, false) => GUEST_TSO4,
        (true, true) => GUEST_TSO6,
        (false, false) => GUEST_USO4,
        (false, true) => GUEST_USO6,
    };
    GUEST_CSUM | kind | if is_ecn { GUEST_ECN } else { 0 }
}

fn checksum_offset(recipe: &Recipe) -> usize {
    if recipe.is_tcp { 16 } else { 6 }
}

/// RFC 1071, a pair of bytes at a time.
fn ones_complement_sum(bytes: &[u8]) -> u16 {
    let words =
        bytes.chunks(2).map(|pair| u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    words.fold(0u32, |sum, word| (sum + u32::from(word)) % 0xffff) as u16
}

/// The frame as a driver leaves it to its device: the checksum field holds the sum over the pseudo
/// header (virtio 1.3, section 5.1.6.2).
fn partial_frame(recipe: &Recipe, payload: &[u8]) -> Vec<u8> {
    let mut frame = recipe.frame(payload);
    let addresses = if recipe.is_ipv6 { 8..40 } else { 12..20 };
    let mut pseudo = frame[recipe.l3()..][addresses].to_vec();
    pseudo.extend([0, if recipe.is_tcp { 6 } else { 17 }]);
    pseudo.extend(((frame.len() - recipe.l4()) as u16).to_be_bytes());
    let at = recipe.l4() + checksum_offset(recipe);
    frame[at..at + 2].copy_from_slice(&ones_complement_sum(&pseudo).to_be_bytes());
    frame
}

fn needs_csum(recipe: &Recipe) -> VirtioNetHdr {
    VirtioNetHdr {
        flags: F_NEEDS_CSUM,
        csum_start: recipe.l4() as u16,
        csum_offset: checksum_offset(recipe) as u16,
        ..VirtioNetHdr::default()
    }
}

/// The header of a frame to be segmented, with a hint and a buffer count that are nonsense.
fn gso(recipe: &Recipe, gso_size: u16) -> VirtioNetHdr {
    let gso_type = match (recipe.is_tcp, recipe.is_ipv6) {
        (true, false) => GSO_TCPV4,
        (true, true) => GSO_TCPV6,
        (false, _) => GSO_UDP_L4,
    };
    let ecn = if recipe.is_tcp && recipe.cwr { GSO_ECN } else { 0 };
    let gso_type = gso_type | ecn;
    VirtioNetHdr { gso_type, gso_size, hdr_len: 0xdead, num_buffers: 9, ..needs_csum(recipe) }
}

fn check(hdr: &VirtioNetHdr, frame: &[u8]) -> Offload {
    let head = &frame[..frame.len().min(HEAD_LEN)];
    offload::check(hdr, head, frame.len() as u32, Abilities::of_sender(HOST_ALL))
        .expect("a sound request")
}

/// What a careful guest would have sent itself, one frame at a time.
fn segments_by_hand(recipe: &Recipe, payload: &[u8], size: usize) -> Vec<Vec<u8>> {
    let last = payload.len().div_ceil(size) - 1;
    let segment = |(n, part): (usize, &[u8])| {
        Recipe {
            id: recipe.id.wrapping_add(n as u16),
            seq: recipe.seq.wrapping_add((n * size) as u32),
            fin: recipe.fin && n == last,
            psh: recipe.psh && n == last,
            cwr: recipe.cwr && n == 0,
            ..recipe.clone()
        }
        .frame(part)
    };
    payload.chunks(size).enumerate().map(segment).collect()
}

fn segments_of(frame: &[u8], work: &offload::Segmentation) -> Vec<Vec<u8>> {
    let mut out = vec![0xee; work.max_segment_len()];
    let mut segmenter = Segmenter::new(frame, work);
    std::iter::from_fn(|| segmenter.next_into(&mut out).map(|len| out[..len].to_vec())).collect()
}

/// Reads a frame as a receiver without any offload would, and returns its payload.
fn receive(frame: &[u8]) -> Vec<u8> {
    let packet = SlicedPacket::from_ethernet(frame).expect("well formed");
    match (packet.net, packet.transport) {
        (Some(NetSlice::Ipv4(ip)), Some(transport)) => {
            let header = ip.header();
            assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum());
            let (src, dst) = (header.source(), header.destination());
            match transport {
                TransportSlice::Tcp(tcp) => {
                    let sum = tcp.calc_checksum_ipv4(src, dst).expect("not too long");
                    assert_eq!(tcp.checksum() % 0xffff, sum % 0xffff);
                    tcp.payload().to_vec()
                }
                TransportSlice::Udp(udp) => {
                    let sum = udp.to_header().calc_checksum_ipv4_raw(src, dst, udp.payload());
                    assert_eq!(udp.checksum(), sum.expect("not too long"));
                    udp.payload().to_vec()
                }
                other => panic!("neither TCP nor UDP: {other:?}"),
            }
        }
        (Some(NetSlice::Ipv6(ip)), Some(transport)) => {
            let (src, dst) = (ip.header().source(), ip.header().destination());
            match transport {
                TransportSlice::Tcp(tcp) => {
                    let sum = tcp.calc_checksum_ipv6(src, dst).expect("not too long");
                    assert_eq!(tcp.checksum() % 0xffff, sum % 0xffff);
                    tcp.payload().to_vec()
                }
                TransportSlice::Udp(udp) => {
                    let sum = udp.to_header().calc_checksum_ipv6_raw(src, dst, udp.payload());
                    assert_eq!(udp.checksum(), sum.expect("not too long"));
                    udp.payload().to_vec()
                }
                other => panic!("neither TCP nor UDP: {other:?}"),
            }
        }
        other => panic!("not an IP frame: {other:?}"),
    }
}

fn payload_of(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + n / 256) as u8).collect()
}

/// A payload and a segment size that the switch takes: up to the largest IP datagram.
fn any_load() -> impl Strategy<Value = (Vec<u8>, u16)> {
    let len = prop_oneof![3 => 2usize..5000, 1 => 5000usize..65_400];
    len.prop_flat_map(|len| {
        let least = len.div_ceil(MAX_SEGMENTS as usize).max(1) as u16;
        (Just(payload_of(len)), least..(len as u16).min(9000))
    })
}

proptest! {
    #[test]
    fn frame_to_segment_passes_or_becomes_what_a_careful_guest_would_send(
        recipe in any_recipe(),
        (payload, size) in any_load(),
        padding in 0usize..8,
    ) {
        let mut frame = partial_frame(&recipe, &payload);
        frame.resize(frame.len() + padding, 0xaa);
        let sent = gso(&recipe, size);
        let offload = check(&sent, &frame);
        let is_ecn = sent.gso_type & GSO_ECN != 0;
        let expected = segments_by_hand(&recipe, &payload, size.into());
        let mut done = None;
        for features in receivers() {
            let can = features & needed(&recipe, is_ecn) == needed(&recipe, is_ecn);
            match offload.for_receiver(Abilities::of_receiver(features)) {
                Action::Pass(hdr) => {
                    prop_assert!(can, "features {:#x}", features);
                    let hdr_len = recipe.payload() as u16;
                    prop_assert_eq!(hdr, VirtioNetHdr { hdr_len, num_buffers: 0, ..sent });
                }
                Action::Segment(work) => {
                    prop_assert!(!can, "features {:#x}", features);
                    done = Some(work);
                }
                Action::Checksum(_) => prop_assert!(false, "a checksum is not enough"),
            }
        }
        let work = done.expect("a receiver without features needs segments");
        prop_assert_eq!(work.segments() as usize, expected.len());
        let segments = segments_of(&frame, &work);
        prop_assert!(segments == expected, "segments differ from those made by hand");
        prop_assert!(segments.iter().map(|segment| receive(segment)).collect::<Vec<_>>().concat() == payload);
    }

    #[test]
    fn frame_to_checksum_passes_or_becomes_what_a_careful_guest_would_send(
        recipe in any_recipe(),
        len in 0usize..3000,
        padding in 0usize..60,
        with_gso_size in prop::option::of(3000u16..),
    ) {
        let payload = payload_of(len);
        let mut frame = partial_frame(&recipe, &payload);
        let mut expected = recipe.frame(&payload);
        frame.resize(frame.len() + padding, 0xaa);
        expected.resize(frame.len(), 0xaa);
        // A GSO frame that fits one segment is no GSO frame.
        let sent = with_gso_size.map_or(needs_csum(&recipe), |size| gso(&recipe, size));
        let offload = check(&sent, &frame);
        for features in receivers() {
            match offload.for_receiver(Abilities::of_receiver(features)) {
                Action::Pass(hdr) => {
                    prop_assert!(features & GUEST_CSUM != 0);
                    prop_assert_eq!(hdr, needs_csum(&recipe));
                }
                Action::Checksum(work) => {
                    prop_assert!(features & GUEST_CSUM == 0);
                    let mut frame = frame.clone();
                    complete_checksum(&mut frame, &work);
                    prop_assert!(frame == expected, "features {:#x}", features);
                    prop_assert_eq!(&receive(&frame), &payload);
                }
                Action::Segment(_) => prop_assert!(false, "one segment is enough"),
            }
        }
    }

    #[test]
    fn hostile_header_is_refused_or_names_places_within_the_frame(
        recipe in any_recipe(),
        len in 0usize..600,
        (flags, gso_type) in (0u8..8, prop::sample::select(vec![GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, 0x80, 0x81, 0x85, 3, 77])),
        (csum_start, csum_offset) in (prop_oneof![0u16..700, any::<u16>()], prop_oneof![0u16..20, any::<u16>()]),
        (hdr_len, gso_size) in (any::<u16>(), prop_oneof![0u16..40, any::<u16>()]),
        is_at_l4: bool,
        edits in prop::collection::vec((0usize..128, any::<u8>()), 0..3),
    ) {
        let mut frame = partial_frame(&recipe, &payload_of(len));
        let mut hdr = VirtioNetHdr { flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers: 1 };
        if is_at_l4 {
            hdr = VirtioNetHdr { csum_start: recipe.l4() as u16, csum_offset: checksum_offset(&recipe) as u16, ..hdr };
        }
        for (at, byte) in edits {
            if let Some(place) = frame.get_mut(at) {
                *place = byte;
            }
        }
        let head = &frame[..frame.len().min(HEAD_LEN)];
        let sender = Abilities::of_sender(HOST_ALL);
        let Ok(offload) = offload::check(&hdr, head, frame.len() as u32, sender) else { return Ok(()) };
        match offload.for_receiver(Abilities::NONE) {
            Action::Pass(hdr) => prop_assert_eq!(hdr, VirtioNetHdr::default()),
            Action::Checksum(work) => complete_checksum(&mut frame.clone(), &work),
            Action::Segment(work) => {
                let segments = segments_of(&frame, &work);
                prop_assert_eq!(segments.len(), work.segments() as usize);
                prop_assert!(segments.len() > 1 && segments.len() <= MAX_SEGMENTS as usize);
            }
        }
        if let Action::Pass(hdr) = offload.for_receiver(Abilities::of_receiver(!0)) {
            let field_end = u32::from(hdr.csum_start) + u32::from(hdr.csum_offset) + 2;
            prop_assert!(hdr.flags & F_NEEDS_CSUM == 0 || field_end as usize <= frame.len());
            prop_assert!(usize::from(hdr.hdr_len) <= frame.len());
        }
    }
}
