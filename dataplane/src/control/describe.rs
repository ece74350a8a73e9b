//! From the description in an explain request to the bytes of a frame.
//!
//! The pipeline judges bytes, so a description becomes the bytes that a guest would have sent:
//! headers with correct lengths and checksums, no payload, padded to the shortest frame.

use std::net::IpAddr;

use etherparse::{PacketBuilder, TcpHeader};
use slipway_api::{ApiError, ExplainRequest, MAX_EXPLAIN_FRAME_BYTES, Mac};

/// Destination, source, EtherType (IEEE 802.3, section 3.1.1).
const ETHERNET_HEADER_BYTES: usize = 14;
/// The shortest frame without its check sequence (IEEE 802.3, section 3.2.8).
const MIN_FRAME_BYTES: usize = 60;
/// IEEE 802 local experimental EtherType 1: nothing parses what follows.
const ETHERTYPE_EXPERIMENTAL: u16 = 0x88b5;
/// Use for experimentation and testing (RFC 3692): nothing parses what follows.
const IP_PROTOCOL_EXPERIMENTAL: u8 = 253;
const IP_PROTOCOL_TCP: u8 = 6;
const IP_PROTOCOL_UDP: u8 = 17;
/// Hop limit of the built header; any value that is not about to expire will do.
const TTL: u8 = 64;

/// The bytes of the frame that `request` describes, from the destination address on.
///
/// # Errors
/// `InvalidValue` for a description that is incomplete or contradicts itself, and for `hex` that is
/// no hex or no frame.
pub fn frame(request: &ExplainRequest) -> Result<Vec<u8>, ApiError> {
    request.check()?;
    if let Some(hex) = &request.hex {
        return from_hex(hex);
    }
    let (Some(src), Some(dst)) = (request.src, request.dst) else {
        unreachable!("`check` refuses a description without addresses")
    };
    let mut frame = match (request.src_ip, request.dst_ip) {
        (Some(src_ip), Some(dst_ip)) => with_ip(request, src, dst, src_ip, dst_ip)?,
        _ => {
            let ethertype = request.ethertype.unwrap_or(ETHERTYPE_EXPERIMENTAL);
            [&dst.0[..], &src.0[..], &ethertype.to_be_bytes()].concat()
        }
    };
    frame.resize(frame.len().max(MIN_FRAME_BYTES), 0);
    Ok(frame)
}

fn with_ip(
    request: &ExplainRequest,
    src: Mac,
    dst: Mac,
    src_ip: IpAddr,
    dst_ip: IpAddr,
) -> Result<Vec<u8>, ApiError> {
    let ethernet = PacketBuilder::ethernet2(src.0, dst.0);
    let ip = match (src_ip, dst_ip) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => ethernet.ipv4(src.octets(), dst.octets(), TTL),
        (IpAddr::V6(src), IpAddr::V6(dst)) => ethernet.ipv6(src.octets(), dst.octets(), TTL),
        _ => unreachable!("`check` refuses addresses of two families"),
    };
    let has_ports = request.src_port.is_some() || request.dst_port.is_some();
    let default_protocol = if has_ports { IP_PROTOCOL_UDP } else { IP_PROTOCOL_EXPERIMENTAL };
    let (src_port, dst_port) = (request.src_port.unwrap_or(0), request.dst_port.unwrap_or(0));
    let mut frame = Vec::with_capacity(MIN_FRAME_BYTES);
    let written = match request.ip_protocol.unwrap_or(default_protocol) {
        IP_PROTOCOL_TCP => {
            let mut opening = TcpHeader::new(src_port, dst_port, 0, u16::MAX);
            opening.syn = true;
            ip.tcp_header(opening).write(&mut frame, &[]).map_err(|e| e.to_string())
        }
        IP_PROTOCOL_UDP => {
            ip.udp(src_port, dst_port).write(&mut frame, &[]).map_err(|e| e.to_string())
        }
        other => ip.write(&mut frame, other.into(), &[]).map_err(|e| e.to_string()),
    };
    match written {
        Ok(()) => Ok(frame),
        Err(why) => Err(ApiError::invalid(
            "ip_protocol",
            request.ip_protocol.unwrap_or(default_protocol),
            format!("No frame can be built from this description: {why}"),
            "Give the frame as `hex`",
        )),
    }
}

/// Octets in hex; blanks and colons are skipped, so that dumps can be pasted.
fn from_hex(hex: &str) -> Result<Vec<u8>, ApiError> {
    let refused = |message: &str, remedy: &str| ApiError::invalid("hex", hex, message, remedy);
    let digits: Vec<u8> = hex
        .bytes()
        .filter(|b| !b.is_ascii_whitespace() && *b != b':')
        .map(|b| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok()))
        .collect::<Option<_>>()
        .ok_or_else(|| refused("`hex` is made of hex digits", "Remove offsets and text"))?;
    let (octets, rest) = digits.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(refused("An octet has two hex digits", "Look for a missing digit"));
    }
    if !(ETHERNET_HEADER_BYTES..=MAX_EXPLAIN_FRAME_BYTES).contains(&octets.len()) {
        return Err(refused(
            "A frame to explain has 14 to 9216 bytes",
            "Begin at the destination address; the first 128 bytes are what is judged",
        ));
    }
    Ok(octets.iter().map(|[high, low]| high << 4 | low).collect())
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    fn described() -> ExplainRequest {
        ExplainRequest {
            port: "a".into(),
            src: Some(Mac([2, 0, 0, 0, 0, 1])),
            dst: Some(Mac([2, 0, 0, 0, 0, 2])),
            ..ExplainRequest::default()
        }
    }

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().expect("address"))
    }

    #[test]
    fn two_addresses_make_the_shortest_frame_of_an_experimental_type() {
        let frame = frame(&described()).expect("builds");
        assert_eq!(frame.len(), 60);
        assert_eq!(frame[..14], [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
    }

    #[test]
    fn a_port_makes_udp_and_protocol_6_makes_an_opening_tcp_segment() {
        for (protocol, addresses) in
            [(None, ("10.0.0.1", "10.0.0.2")), (Some(6), ("fd00::1", "fd00::2"))]
        {
            let request = ExplainRequest {
                src_ip: ip(addresses.0),
                dst_ip: ip(addresses.1),
                dst_port: Some(443),
                ip_protocol: protocol,
                ..described()
            };
            let frame = frame(&request).expect("builds");
            let parsed = SlicedPacket::from_ethernet(&frame).expect("parses");
            match parsed.transport.expect("has a transport header") {
                TransportSlice::Udp(udp) => {
                    assert_eq!((protocol, udp.destination_port()), (None, 443));
                }
                TransportSlice::Tcp(tcp) => {
                    assert!(tcp.syn());
                    assert_eq!((protocol, tcp.destination_port()), (Some(6), 443));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn addresses_alone_make_a_header_with_nothing_to_parse_behind_it() {
        let request =
            ExplainRequest { src_ip: ip("10.0.0.1"), dst_ip: ip("10.0.0.2"), ..described() };
        let frame = frame(&request).expect("builds");
        let parsed = SlicedPacket::from_ethernet(&frame).expect("parses");
        let Some(NetSlice::Ipv4(header)) = parsed.net else { panic!("{:?}", parsed.net) };
        assert_eq!(header.header().protocol().0, IP_PROTOCOL_EXPERIMENTAL);
        assert!(parsed.transport.is_none());
    }

    #[test]
    fn hex_is_taken_as_it_is_pasted() {
        let pasted = "02:00:00:00:00:02 0200 00000001\n88B5";
        let request = ExplainRequest {
            port: "a".into(),
            hex: Some(pasted.into()),
            ..ExplainRequest::default()
        };
        let frame = frame(&request).expect("reads");
        assert_eq!(frame, [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
    }

    #[test]
    fn hex_that_is_no_frame_is_refused() {
        let long = "00".repeat(MAX_EXPLAIN_FRAME_BYTES + 1);
        for hex in ["", "zz", "0", "00000000", "0x0000000000000000000000000000", "ü", &long] {
            assert_eq!(from_hex(hex).expect_err(hex).field.as_deref(), Some("hex"));
        }
    }
}
