//! IPv4 header (RFC 791, section 3.1).

use std::net::Ipv4Addr;

use super::{Fragment, ParseError};

/// Bytes of a header without options.
pub const MIN_HEADER_LEN: usize = 20;

/// Offset of the total length.
pub const TOTAL_LEN_AT: usize = 2;
/// Offset of the identification.
pub const ID_AT: usize = 4;
/// Offset of the header checksum.
pub const CHECKSUM_AT: usize = 10;

/// The fixed part of an IPv4 header; options, if any, lie between it and [`Ipv4::header_len`].
#[derive(Clone, Copy, Debug)]
pub struct Ipv4<'a>(&'a [u8; MIN_HEADER_LEN]);

impl<'a> Ipv4<'a> {
    /// Views the header at the start of `bytes`.
    ///
    /// # Errors
    /// `Truncated` below 20 bytes; `Malformed` if the version is not 4, the header is said to be
    /// shorter than 20 bytes, or the datagram shorter than its header. Whether options and payload
    /// are all there is for the caller to compare.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let view = Self(bytes.first_chunk().ok_or(ParseError::Truncated)?);
        let header_is_sound = view.0[0] >> 4 == 4
            && view.header_len() >= MIN_HEADER_LEN
            && usize::from(view.total_len()) >= view.header_len();
        if header_is_sound { Ok(view) } else { Err(ParseError::Malformed) }
    }

    /// Bytes of the header with its options: 20 to 60.
    pub const fn header_len(&self) -> usize {
        (self.0[0] & 0x0f) as usize * 4
    }

    /// Bytes of header and payload together.
    pub const fn total_len(&self) -> u16 {
        u16::from_be_bytes([self.0[TOTAL_LEN_AT], self.0[TOTAL_LEN_AT + 1]])
    }

    /// Identification: what the pieces of one datagram share.
    pub const fn id(&self) -> u16 {
        u16::from_be_bytes([self.0[ID_AT], self.0[ID_AT + 1]])
    }

    /// Differentiated services and ECN bits.
    pub const fn traffic_class(&self) -> u8 {
        self.0[1]
    }

    /// Whether the datagram is a piece of a larger one.
    pub const fn fragment(&self) -> Fragment {
        let field = u16::from_be_bytes([self.0[6], self.0[7]]);
        Fragment::new(field & 0x1fff, field & 0x2000 != 0)
    }

    /// Hops left.
    pub const fn ttl(&self) -> u8 {
        self.0[8]
    }

    /// Protocol number of the payload (IANA "Protocol Numbers").
    pub const fn protocol(&self) -> u8 {
        self.0[9]
    }

    /// Source address.
    pub const fn src(&self) -> Ipv4Addr {
        Ipv4Addr::new(self.0[12], self.0[13], self.0[14], self.0[15])
    }

    /// Destination address.
    pub const fn dst(&self) -> Ipv4Addr {
        Ipv4Addr::new(self.0[16], self.0[17], self.0[18], self.0[19])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: [u8; 20] =
        [0x46, 3, 0, 30, 0xab, 0xcd, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];

    fn with(at: usize, byte: u8) -> [u8; 20] {
        let mut header = HEADER;
        header[at] = byte;
        header
    }

    #[test]
    fn header_is_read_by_field() {
        let ip = Ipv4::parse(&HEADER).expect("valid");
        assert_eq!((ip.header_len(), ip.total_len(), ip.id()), (24, 30, 0xabcd));
        assert_eq!((ip.traffic_class(), ip.ttl(), ip.protocol()), (3, 64, 17));
        assert_eq!(ip.src(), Ipv4Addr::new(10, 0, 0, 1));
        assert_eq!(ip.dst(), Ipv4Addr::new(10, 0, 0, 2));
    }

    #[test]
    fn header_that_contradicts_itself_is_malformed() {
        for (at, byte) in [(0, 0x66), (0, 0x44), (3, 23)] {
            assert_eq!(Ipv4::parse(&with(at, byte)).err(), Some(ParseError::Malformed));
        }
        assert_eq!(Ipv4::parse(&HEADER[..19]).err(), Some(ParseError::Truncated));
    }

    #[test]
    fn fragments_are_told_from_whole_datagrams() {
        let fragment_of = |at, byte| Ipv4::parse(&with(at, byte)).expect("valid").fragment();
        assert_eq!(fragment_of(6, 0x40), Fragment::Whole);
        assert_eq!(fragment_of(6, 0x20), Fragment::First);
        assert_eq!(fragment_of(7, 1), Fragment::Later);
        assert_eq!(fragment_of(6, 0x3f), Fragment::Later);
    }
}
