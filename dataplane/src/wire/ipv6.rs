//! IPv6 header and a bounded walk over its extension headers (RFC 8200, sections 3 and 4).

use std::net::Ipv6Addr;

use super::{Fragment, ParseError};

/// Bytes of the fixed header.
pub const HEADER_LEN: usize = 40;

/// Offset of the payload length.
pub const PAYLOAD_LEN_AT: usize = 4;

/// Extension headers that are followed before a frame is called too deep. RFC 8200, section 4.1
/// recommends at most seven.
pub const MAX_EXTENSIONS: usize = 8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HOST_IDENTITY: u8 = 139;
const SHIM6: u8 = 140;

/// The fixed IPv6 header.
#[derive(Clone, Copy, Debug)]
pub struct Ipv6<'a>(&'a [u8; HEADER_LEN]);

impl<'a> Ipv6<'a> {
    /// Views the header at the start of `bytes`.
    ///
    /// # Errors
    /// `Truncated` below 40 bytes, `Malformed` if the version is not 6.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let header: &[u8; HEADER_LEN] = bytes.first_chunk().ok_or(ParseError::Truncated)?;
        if header[0] >> 4 == 6 { Ok(Self(header)) } else { Err(ParseError::Malformed) }
    }

    /// Differentiated services and ECN bits.
    pub const fn traffic_class(&self) -> u8 {
        self.0[0] << 4 | self.0[1] >> 4
    }

    /// Bytes behind the fixed header, extension headers included.
    pub const fn payload_len(&self) -> u16 {
        u16::from_be_bytes([self.0[PAYLOAD_LEN_AT], self.0[PAYLOAD_LEN_AT + 1]])
    }

    /// Protocol number of what follows: an extension header, or the payload.
    pub const fn next_header(&self) -> u8 {
        self.0[6]
    }

    /// Hops left.
    pub const fn hop_limit(&self) -> u8 {
        self.0[7]
    }

    /// Source address.
    pub const fn src(&self) -> Ipv6Addr {
        self.address_at(8)
    }

    /// Destination address.
    pub const fn dst(&self) -> Ipv6Addr {
        self.address_at(24)
    }

    const fn address_at(&self, at: usize) -> Ipv6Addr {
        let mut bits = 0;
        let mut i = 0;
        while i < 16 {
            bits = bits << 8 | self.0[at + i] as u128;
            i += 1;
        }
        Ipv6Addr::from_bits(bits)
    }
}

/// Where the extension headers end, and what follows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Upper {
    /// Protocol number of the payload.
    pub protocol: u8,
    /// Bytes of extension headers before it.
    pub offset: usize,
    /// Whether the datagram is a piece of a larger one. Of a later piece, `offset` is where its
    /// share of the payload starts.
    pub fragment: Fragment,
}

/// Follows the extension headers behind the fixed header.
///
/// `bytes` is what is at hand of the payload, `payload_len` how much of it the frame has; the two
/// differ when only the head of a frame is looked at. `next_header` is from the fixed header.
///
/// # Errors
/// `Truncated` if a header reaches beyond `payload_len`; `TooDeep` if it reaches beyond `bytes`
/// only, or there are more than [`MAX_EXTENSIONS`].
pub fn walk_extensions(
    bytes: &[u8],
    payload_len: usize,
    next_header: u8,
) -> Result<Upper, ParseError> {
    let mut upper = Upper { protocol: next_header, offset: 0, fragment: Fragment::Whole };
    for _ in 0..=MAX_EXTENSIONS {
        let unit = match upper.protocol {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | MOBILITY | HOST_IDENTITY | SHIM6 => 8,
            AUTHENTICATION => 4,
            FRAGMENT => 0,
            _ => return Ok(upper),
        };
        if upper.offset + 8 > payload_len {
            return Err(ParseError::Truncated);
        }
        let header: &[u8; 8] = bytes
            .get(upper.offset..)
            .and_then(|rest| rest.first_chunk())
            .ok_or(ParseError::TooDeep)?;
        upper.protocol = header[0];
        upper.offset += match unit {
            0 => 8,
            // RFC 4302, section 2.2: 4-byte units less two; the others: 8-byte units less one.
            4 => (usize::from(header[1]) + 2) * 4,
            _ => (usize::from(header[1]) + 1) * 8,
        };
        if upper.offset > payload_len {
            return Err(ParseError::Truncated);
        }
        if unit == 0 {
            let field = u16::from_be_bytes([header[2], header[3]]);
            upper.fragment = Fragment::new(field >> 3, field & 1 != 0);
            if upper.fragment == Fragment::Later {
                return Ok(upper);
            }
        }
    }
    Err(ParseError::TooDeep)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_is_read_by_field() {
        let mut bytes = [0; 40];
        bytes[..8].copy_from_slice(&[0x6a, 0xb0, 0, 0, 0x12, 0x34, 17, 64]);
        (bytes[8], bytes[23], bytes[24], bytes[39]) = (0xfe, 1, 0xfd, 2);
        let ip = Ipv6::parse(&bytes).expect("valid");
        assert_eq!((ip.traffic_class(), ip.payload_len()), (0xab, 0x1234));
        assert_eq!((ip.next_header(), ip.hop_limit()), (17, 64));
        assert_eq!(ip.src(), Ipv6Addr::new(0xfe00, 0, 0, 0, 0, 0, 0, 1));
        assert_eq!(ip.dst(), Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2));
        bytes[0] = 0x40;
        assert_eq!(Ipv6::parse(&bytes).err(), Some(ParseError::Malformed));
        assert_eq!(Ipv6::parse(&bytes[..39]).err(), Some(ParseError::Truncated));
    }

    #[test]
    fn walk_passes_options_authentication_and_a_first_fragment() {
        let mut bytes = [0; 44];
        bytes[..2].copy_from_slice(&[51, 1]); // hop-by-hop, 16 bytes, then authentication
        bytes[16..18].copy_from_slice(&[44, 4]); // 24 bytes, then fragment
        bytes[40..44].copy_from_slice(&[6, 0, 0, 1]); // offset 0, more to come, then TCP
        let mut bytes = bytes.to_vec();
        bytes.resize(48, 0);
        let upper = walk_extensions(&bytes, 48, 0).expect("valid");
        assert_eq!(upper, Upper { protocol: 6, offset: 48, fragment: Fragment::First });
    }

    #[test]
    fn walk_stops_at_a_later_fragment_as_what_follows_is_no_header() {
        let later = [0, 0, 0x05, 0xa8, 0, 0, 0, 1]; // says hop-by-hop follows: it does not
        let upper = walk_extensions(&later, 8, 44).expect("valid");
        assert_eq!(upper, Upper { protocol: 0, offset: 8, fragment: Fragment::Later });
    }

    #[test]
    fn walk_tells_a_short_frame_from_headers_beyond_what_is_at_hand() {
        let options = [60, 1, 0, 0, 0, 0, 0, 0];
        assert_eq!(walk_extensions(&options, 7, 60), Err(ParseError::Truncated));
        assert_eq!(walk_extensions(&options, 8, 60), Err(ParseError::Truncated));
        assert_eq!(walk_extensions(&options, 1000, 60), Err(ParseError::TooDeep));
    }

    #[test]
    fn walk_gives_up_behind_the_eighth_extension() {
        let mut bytes = [0; 80];
        for header in bytes.chunks_exact_mut(8) {
            header[0] = DESTINATION_OPTIONS;
        }
        assert_eq!(walk_extensions(&bytes, 80, 60), Err(ParseError::TooDeep));
        bytes[56] = 17;
        let upper = walk_extensions(&bytes, 80, 60).expect("eight are allowed");
        assert_eq!((upper.protocol, upper.offset), (17, 64));
    }
}
