//! ICMP (RFC 792) and ICMPv6 (RFC 4443): the part both share.

use super::ParseError;

/// IP protocol number of ICMP for IPv4.
pub const PROTOCOL_V4: u8 = 1;
/// IP protocol number of ICMPv6.
pub const PROTOCOL_V6: u8 = 58;

/// Bytes of the header that every message has.
pub const HEADER_LEN: usize = 8;

/// An ICMP or ICMPv6 header. What a type means depends on which of the two it is.
#[derive(Clone, Copy, Debug)]
pub struct Icmp<'a>(&'a [u8; HEADER_LEN]);

impl<'a> Icmp<'a> {
    /// Views the header at the start of `bytes`; `Truncated` below 8 bytes.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        bytes.first_chunk().map(Self).ok_or(ParseError::Truncated)
    }

    /// Message type (IANA "ICMP Type Numbers").
    pub const fn kind(&self) -> u8 {
        self.0[0]
    }

    /// Code within the type.
    pub const fn code(&self) -> u8 {
        self.0[1]
    }

    /// Identifier of an echo request or reply; of other messages, the same bytes.
    pub const fn echo_id(&self) -> u16 {
        u16::from_be_bytes([self.0[4], self.0[5]])
    }

    /// Sequence number of an echo request or reply; of other messages, the same bytes.
    pub const fn echo_seq(&self) -> u16 {
        u16::from_be_bytes([self.0[6], self.0[7]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_is_read_by_field_and_a_short_one_is_truncated() {
        let icmp = Icmp::parse(&[8, 1, 0, 0, 0x12, 0x34, 0, 9]).expect("valid");
        assert_eq!((icmp.kind(), icmp.code()), (8, 1));
        assert_eq!((icmp.echo_id(), icmp.echo_seq()), (0x1234, 9));
        assert_eq!(Icmp::parse(&[8; 7]).err(), Some(ParseError::Truncated));
    }
}
