//! What is refused, and edges; `tests/model_offload.rs` compares whole frames.

use super::*;
use crate::wire::checksum::Sum;
use crate::wire::ethernet::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use crate::wire::virtio_net_hdr::GSO_UDP;

const L4: u16 = 34;
const FULL: Abilities = Abilities::of_sender(u64::MAX);

/// An IPv4 frame of this protocol with 100 bytes behind the IP header.
fn ipv4(protocol: u8) -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend(ETHERTYPE_IPV4.to_be_bytes());
    frame.extend([0x45, 0, 0, 120, 0, 0, 0, 0, 64, protocol, 0, 0]);
    frame.resize(134, 0);
    frame[usize::from(L4) + 4..][..2].copy_from_slice(&100u16.to_be_bytes()); // UDP length
    frame[usize::from(L4) + 12] = 0x50; // TCP header length
    frame
}

fn partial(offset: usize) -> VirtioNetHdr {
    VirtioNetHdr {
        flags: F_NEEDS_CSUM,
        csum_start: L4,
        csum_offset: offset as u16,
        ..VirtioNetHdr::default()
    }
}

fn tso(gso_type: u8, gso_size: u16) -> VirtioNetHdr {
    VirtioNetHdr { gso_type, gso_size, ..partial(tcp::CHECKSUM_AT) }
}

fn judge(hdr: VirtioNetHdr, frame: &[u8], sender: Abilities) -> Result<Offload, OffloadError> {
    check(&hdr, frame, frame.len() as u32, sender)
}

#[test]
fn ordinary_frame_passes_behind_an_all_zero_header_whatever_the_rest_said() {
    let hdr = VirtioNetHdr {
        flags: 0xfc,
        hdr_len: 1,
        gso_size: 2,
        csum_start: 3,
        csum_offset: 4,
        num_buffers: 5,
        ..VirtioNetHdr::default()
    };
    let offload = check(&hdr, &[], 0, Abilities::NONE).expect("nothing to refuse");
    for receiver in [Abilities::NONE, Abilities::of_receiver(u64::MAX)] {
        assert_eq!(offload.for_receiver(receiver), Action::Pass(VirtioNetHdr::default()));
    }
}

#[test]
fn data_valid_reaches_only_who_negotiated_the_checksum() {
    let hdr = VirtioNetHdr { flags: F_DATA_VALID, ..VirtioNetHdr::default() };
    let offload = check(&hdr, &[], 0, Abilities::NONE).expect("nothing to refuse");
    let to_willing = offload.for_receiver(Abilities::of_receiver(u64::MAX));
    assert_eq!(to_willing, Action::Pass(hdr));
    let to_others = offload.for_receiver(Abilities::NONE);
    assert_eq!(to_others, Action::Pass(VirtioNetHdr::default()));
}

#[test]
fn segmentation_counts_as_negotiated_only_together_with_the_checksum() {
    let all_but = |bit: u32| Abilities::of_sender(!(1 << bit));
    assert_eq!(all_but(feature::VIRTIO_NET_F_CSUM), Abilities::NONE);
    let receiver = Abilities::of_receiver(!(1 << feature::VIRTIO_NET_F_GUEST_CSUM));
    assert_eq!(receiver, Abilities::NONE);
    assert_ne!(Abilities::of_receiver(u64::MAX), Abilities::NONE);
}

#[test]
fn what_a_driver_did_not_negotiate_is_refused_by_name() {
    let frame = ipv4(tcp::PROTOCOL);
    assert_eq!(
        judge(partial(tcp::CHECKSUM_AT), &frame, Abilities::NONE),
        Err(OffloadError::ChecksumNotNegotiated)
    );
    let only_checksum = Abilities::of_sender(1 << feature::VIRTIO_NET_F_CSUM);
    assert!(judge(partial(tcp::CHECKSUM_AT), &frame, only_checksum).is_ok());
    let no_ecn = Abilities::of_sender(!(1 << feature::VIRTIO_NET_F_HOST_ECN));
    assert!(judge(tso(GSO_TCPV4, 40), &frame, no_ecn).is_ok());
    for (gso_type, sender) in [(GSO_TCPV4, only_checksum), (GSO_TCPV4 | GSO_ECN, no_ecn)] {
        assert_eq!(
            judge(tso(gso_type, 40), &frame, sender),
            Err(OffloadError::SegmentationNotNegotiated { gso_type })
        );
    }
}

#[test]
fn segmentation_type_must_exist_and_be_that_of_the_frame() {
    let frame = ipv4(tcp::PROTOCOL);
    for gso_type in [GSO_UDP, 2, 6, GSO_ECN, GSO_UDP_L4 | GSO_ECN] {
        assert_eq!(
            judge(tso(gso_type, 40), &frame, FULL),
            Err(OffloadError::UnknownGsoType { gso_type })
        );
    }
    for gso_type in [GSO_TCPV6, GSO_TCPV6 | GSO_ECN, GSO_UDP_L4] {
        assert_eq!(
            judge(tso(gso_type, 40), &frame, FULL),
            Err(OffloadError::SegmentationMismatch { gso_type })
        );
    }
    let hdr = VirtioNetHdr { flags: 0, ..tso(GSO_TCPV4, 40) };
    assert_eq!(judge(hdr, &frame, FULL), Err(OffloadError::SegmentationWithoutChecksum));
}

#[test]
fn segment_size_must_be_sane() {
    let frame = ipv4(tcp::PROTOCOL); // 80 bytes of payload
    let refused = Err(OffloadError::SegmentSize { gso_size: 0 });
    assert_eq!(judge(tso(GSO_TCPV4, 0), &frame, FULL), refused);
    for (size, is_segmented) in [(1, true), (79, true), (80, false), (u16::MAX, false)] {
        let offload = judge(tso(GSO_TCPV4, size), &frame, FULL).expect("sane");
        assert_eq!(matches!(offload, Offload::Segment(_)), is_segmented, "{size}");
    }
    let mut long = frame;
    long[16..18].copy_from_slice(&1000u16.to_be_bytes()); // 960 bytes of payload
    long.resize(1014, 0);
    assert!(judge(tso(GSO_TCPV4, 4), &long, FULL).is_ok());
    let refused = Err(OffloadError::SegmentSize { gso_size: 3 });
    assert_eq!(judge(tso(GSO_TCPV4, 3), &long, FULL), refused);
}

#[test]
fn checksum_must_be_that_of_the_l4_header_or_lie_in_its_payload() {
    let frame = ipv4(tcp::PROTOCOL);
    let places = [
        (L4, 16, true),
        (L4, 6, false),       // the acknowledgement number
        (L4 - 1, 17, false),  // starts in the IP header
        (L4 + 4, 12, false),  // starts in the TCP header
        (L4 + 20, 0, true),   // the first bytes of the payload, as in a tunnel
        (L4 + 20, 78, true),  // its last bytes
        (L4 + 20, 79, false), // one byte beyond
        (0xffff, 0xffff, false),
    ];
    for (csum_start, csum_offset, is_sound) in places {
        let hdr = VirtioNetHdr { csum_start, csum_offset, ..partial(0) };
        let refused = OffloadError::ChecksumPlace { start: csum_start, offset: csum_offset };
        let expected = if is_sound { None } else { Some(refused) };
        assert_eq!(judge(hdr, &frame, FULL).err(), expected, "{csum_start}+{csum_offset}");
    }
    let in_payload = VirtioNetHdr { csum_start: L4 + 20, csum_offset: 0, ..tso(GSO_TCPV4, 40) };
    assert_eq!(
        judge(in_payload, &frame, FULL),
        Err(OffloadError::SegmentationMismatch { gso_type: GSO_TCPV4 })
    );
}

#[test]
fn checksum_of_another_protocol_may_be_anywhere_in_its_datagram() {
    let frame = ipv4(47);
    assert!(judge(partial(4), &frame, FULL).is_ok());
    assert!(judge(partial(99), &frame, FULL).is_err());
}

#[test]
fn offloads_of_fragments_and_of_what_is_not_ip_are_refused() {
    let mut fragment = ipv4(udp::PROTOCOL);
    fragment[20] = 0x20;
    let mut arp = ipv4(udp::PROTOCOL);
    arp[12..14].copy_from_slice(&ETHERTYPE_ARP.to_be_bytes());
    for frame in [fragment, arp] {
        let refused = Err(OffloadError::NotWholeIp);
        assert_eq!(judge(partial(udp::CHECKSUM_AT), &frame, FULL), refused);
    }
    let mut malformed = ipv4(udp::PROTOCOL);
    malformed[14] = 0x44;
    let refused = Err(OffloadError::Headers(ParseError::Malformed));
    assert_eq!(judge(partial(udp::CHECKSUM_AT), &malformed, FULL), refused);
}

#[test]
fn checksum_that_comes_out_as_zero_is_written_as_all_ones() {
    let mut frame = ipv4(udp::PROTOCOL);
    frame[usize::from(L4)..].fill(0);
    frame[usize::from(L4) + udp::LEN_AT + 1] = 100;
    // The sum so far is 100; this makes it 0xffff, whose complement is 0.
    frame[usize::from(L4) + udp::HEADER_LEN..][..2]
        .copy_from_slice(&(0xffff - 100u16).to_be_bytes());
    let offload = judge(partial(udp::CHECKSUM_AT), &frame, FULL).expect("sound");
    let Action::Checksum(work) = offload.for_receiver(Abilities::NONE) else {
        panic!("not to be checksummed: {offload:?}");
    };
    complete_checksum(&mut frame, &work);
    assert_eq!(frame[usize::from(L4) + udp::CHECKSUM_AT..][..2], [0xff, 0xff]);

    // The same for segments: the datagram's length is taken out, the segment's put in.
    let field = usize::from(L4) + udp::CHECKSUM_AT;
    frame[field..field + 2].copy_from_slice(&100u16.to_be_bytes());
    frame[usize::from(L4) + udp::HEADER_LEN..][..2]
        .copy_from_slice(&(0xffff - 2 * 54u16).to_be_bytes());
    let hdr = VirtioNetHdr { csum_offset: udp::CHECKSUM_AT as u16, ..tso(GSO_UDP_L4, 46) };
    let offload = judge(hdr, &frame, FULL).expect("sound");
    let Action::Segment(work) = offload.for_receiver(Abilities::NONE) else {
        panic!("not to be segmented: {offload:?}");
    };
    let mut segment = [0; 200];
    let len = Segmenter::new(&frame, &work).next_into(&mut segment);
    assert_eq!((len, &segment[field..field + 2]), (Some(88), &[0xff, 0xff][..]));
}

#[test]
fn segments_behind_a_routing_header_keep_the_pseudo_header_of_the_final_destination() {
    // Destination of the IP header: the next hop, all 1. Of the routing header: all 9.
    let mut frame = vec![2; 12];
    frame.extend(ETHERTYPE_IPV6.to_be_bytes());
    frame.extend([0x60, 0, 0, 0, 0, 24 + 8 + 50, 43, 64]);
    frame.extend([[5; 16], [1; 16]].concat());
    frame.extend([udp::PROTOCOL, 2, 0, 1, 0, 0, 0, 0]);
    frame.extend([9; 16]);
    frame.extend([0, 1, 0, 2, 0, 58]);
    let l4 = frame.len() - 6;
    let pseudo = |len: usize| {
        let mut sum = Sum::pseudo_ipv6([5; 16].into(), [9; 16].into(), udp::PROTOCOL, 0);
        sum.add_word(len as u16);
        sum
    };
    frame.extend(pseudo(58).partial().to_be_bytes());
    frame.extend([0xab; 50]);

    let hdr = VirtioNetHdr {
        csum_start: l4 as u16,
        csum_offset: udp::CHECKSUM_AT as u16,
        ..tso(GSO_UDP_L4, 21)
    };
    let offload = judge(hdr, &frame, FULL).expect("sound");
    let Action::Segment(work) = offload.for_receiver(Abilities::NONE) else {
        panic!("not to be segmented: {offload:?}");
    };
    let mut segmenter = Segmenter::new(&frame, &work);
    let mut out = [0; 200];
    let mut lengths = Vec::new();
    while let Some(len) = segmenter.next_into(&mut out) {
        let mut sum = pseudo(len - l4);
        sum.add(&out[l4..len]);
        assert_eq!(sum.finish(), 0, "checksum of the segment after {lengths:?}");
        lengths.push(len - l4 - udp::HEADER_LEN);
    }
    assert_eq!(lengths, [21, 21, 8]);
}
