//! The frame parser against etherparse.

mod recipe;

use std::net::IpAddr;

use dataplane::flow::{self, Fragment, HEAD_LEN, HashSeed, Network, ParseError, Parsed};
use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice, ip_number};
use proptest::prelude::*;
use recipe::{Recipe, any_recipe};

fn parse(frame: &[u8]) -> Result<Parsed, ParseError> {
    flow::parse(&frame[..frame.len().min(HEAD_LEN)], frame.len() as u32)
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn assert_matches_recipe(parsed: &Parsed, recipe: &Recipe, payload_len: usize) {
    assert_eq!(usize::from(parsed.l2.len), recipe.l3());
    assert_eq!(usize::from(parsed.l2.tags), recipe.tags);
    assert_eq!(usize::from(parsed.l4), recipe.l4());
    assert_eq!(usize::from(parsed.payload), recipe.payload());
    assert_eq!(parsed.l3_end as usize, recipe.payload() + payload_len);
    assert_eq!((parsed.key.src_port, parsed.key.dst_port), (recipe.src_port, recipe.dst_port));
    let (src, dst) = if recipe.is_ipv6 {
        (recipe.src, recipe.dst)
    } else {
        (u128::from(recipe.src as u32), u128::from(recipe.dst as u32))
    };
    assert_eq!((parsed.key.src, parsed.key.dst), (src, dst));
    assert_eq!(parsed.fragment, Fragment::Whole);
}

/// Where both understood a frame, they must have understood the same.
fn assert_agrees_with_etherparse(frame: &[u8], parsed: &Parsed) {
    let theirs = LaxSlicedPacket::from_ethernet(frame).expect("long enough for Ethernet");
    let only_tags =
        theirs.link_exts.iter().all(|ext| matches!(ext, etherparse::LaxLinkExtSlice::Vlan(_)));
    if !only_tags || theirs.link_exts.len() != usize::from(parsed.l2.tags) {
        return; // A third tag, MACsec, or a tag with a vendor's EtherType: payload to us.
    }
    let (src, dst, protocol, is_fragment): (IpAddr, IpAddr, _, _) = match &theirs.net {
        Some(LaxNetSlice::Ipv4(ip)) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
            ip.payload().ip_number,
            ip.payload().fragmented,
        ),
        Some(LaxNetSlice::Ipv6(ip)) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
            ip.payload().ip_number,
            ip.payload().fragmented,
        ),
        _ => {
            assert_eq!(parsed.key.network, Network::Other);
            return;
        }
    };
    assert_eq!((parsed.key.src, parsed.key.dst), (bits(src), bits(dst)));
    if let Some(LaxNetSlice::Ipv4(ip)) = &theirs.net
        && ip.header().protocol() == ip_number::AUTHENTICATION_HEADER
    {
        // It reads on behind IPv4's AH. To us that is the protocol, as the header says.
        assert_eq!(parsed.key.protocol, ip_number::AUTHENTICATION_HEADER.0);
        assert_eq!((parsed.key.src_port, parsed.key.dst_port), (0, 0));
        return;
    }
    if theirs.stop_err.is_some() || is_unknown_extension(protocol.0) {
        return;
    }
    assert_eq!(parsed.fragment != Fragment::Whole, is_fragment);
    if parsed.fragment == Fragment::Later && is_unknown_extension(parsed.key.protocol) {
        return; // It reads extension headers where there are none: in the middle of a datagram.
    }
    assert_eq!(parsed.key.protocol, protocol.0);
    let ports = match &theirs.transport {
        Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port()),
        Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
        // It reads no ports in first fragments, we do.
        _ if parsed.fragment == Fragment::First => return,
        _ => (0, 0),
    };
    assert_eq!((parsed.key.src_port, parsed.key.dst_port), ports);
}

/// Extension headers that etherparse takes for the payload: out of order, or rare ones.
fn is_unknown_extension(protocol: u8) -> bool {
    [0, 43, 44, 51, 60, 135, 139, 140].contains(&protocol)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_recipe_is_read_back_field_by_field(
        recipe in any_recipe(),
        payload_len in 0usize..2000,
        padding in 0usize..40,
    ) {
        let mut frame = recipe.frame(&vec![0x5a; payload_len]);
        frame.resize(frame.len() + padding, 0);
        let parsed = parse(&frame).expect("well formed");
        assert_matches_recipe(&parsed, &recipe, payload_len);
        assert_agrees_with_etherparse(&frame, &parsed);
    }

    #[test]
    fn frame_cut_anywhere_is_truncated(recipe in any_recipe(), payload_len in 0usize..64) {
        let frame = recipe.frame(&vec![0x5a; payload_len]);
        for len in 0..frame.len() {
            prop_assert_eq!(parse(&frame[..len]), Err(ParseError::Truncated), "cut to {}", len);
        }
    }

    #[test]
    fn mangled_frame_is_refused_or_read_as_etherparse_reads_it(
        recipe in any_recipe(),
        payload_len in 0usize..200,
        edits in prop::collection::vec((0usize..128, any::<u8>()), 1..6),
    ) {
        let mut frame = recipe.frame(&vec![0x5a; payload_len]);
        for (at, byte) in edits {
            if let Some(place) = frame.get_mut(at) {
                *place = byte;
            }
        }
        if let Ok(parsed) = parse(&frame) {
            assert_agrees_with_etherparse(&frame, &parsed);
        }
    }

    #[test]
    fn any_bytes_are_read_within_their_bounds(
        frame in prop::collection::vec(any::<u8>(), 0..160),
        ethertype in prop::sample::select(vec![[8, 0], [0x86, 0xdd], [0x81, 0], [0x88, 0xa8], [8, 6]]),
        version in prop::sample::select(vec![0x45, 0x46, 0x4f, 0x60]),
        frame_len in 0u32..70_000,
    ) {
        let mut frame = frame;
        if frame.len() > 14 {
            frame[12..14].copy_from_slice(&ethertype);
            frame[14] = version;
        }
        // The head may be shorter or longer than the frame it is said to be of.
        if let Ok(parsed) = flow::parse(&frame, frame_len) {
            let (l2_len, l4) = (u32::from(parsed.l2.len), u32::from(parsed.l4));
            let payload = u32::from(parsed.payload);
            prop_assert!(l2_len <= l4 && l4 <= payload);
            prop_assert!(payload <= parsed.l3_end && parsed.l3_end <= frame_len);
            parsed.hash(&HashSeed::new(1));
        }
    }

    #[test]
    fn hash_is_of_the_flow_and_not_of_its_bytes(
        recipe in any_recipe(),
        payloads in (0usize..100, 0usize..100),
        seed: u64,
    ) {
        let hash = |recipe: &Recipe, len| {
            parse(&recipe.frame(&vec![1; len])).expect("well formed").hash(&HashSeed::new(seed))
        };
        let later = Recipe { seq: recipe.seq ^ 1, id: recipe.id ^ 1, fin: !recipe.fin, ..recipe.clone() };
        prop_assert_eq!(hash(&recipe, payloads.0), hash(&later, payloads.1));
        let other = Recipe { src_port: recipe.src_port ^ 1, ..recipe.clone() };
        prop_assert_ne!(hash(&recipe, payloads.0), hash(&other, payloads.0));
    }
}
