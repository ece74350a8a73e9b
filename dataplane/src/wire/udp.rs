//! UDP header (RFC 768).

use super::ParseError;

/// IP protocol number of UDP.
pub const PROTOCOL: u8 = 17;

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;

/// Offset of the length.
pub const LEN_AT: usize = 4;
/// Offset of the checksum.
pub const CHECKSUM_AT: usize = 6;

/// A UDP header.
#[derive(Clone, Copy, Debug)]
pub struct Udp<'a>(&'a [u8; HEADER_LEN]);

impl<'a> Udp<'a> {
    /// Views the header at the start of `bytes`.
    ///
    /// # Errors
    /// `Truncated` below 8 bytes, `Malformed` if the length excludes the header. (A jumbogram of
    /// RFC 2675 has length 0; none fits in a frame of this switch.)
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let view = Self(bytes.first_chunk().ok_or(ParseError::Truncated)?);
        if usize::from(view.len()) >= HEADER_LEN { Ok(view) } else { Err(ParseError::Malformed) }
    }

    /// Source port.
    pub const fn src_port(&self) -> u16 {
        u16::from_be_bytes([self.0[0], self.0[1]])
    }

    /// Destination port.
    pub const fn dst_port(&self) -> u16 {
        u16::from_be_bytes([self.0[2], self.0[3]])
    }

    /// Bytes of header and payload together: at least 8.
    #[expect(clippy::len_without_is_empty, reason = "a UDP datagram has at least its header")]
    pub const fn len(&self) -> u16 {
        u16::from_be_bytes([self.0[LEN_AT], self.0[LEN_AT + 1]])
    }

    /// Whether the sender left the checksum out (IPv4 only; RFC 768).
    pub const fn is_without_checksum(&self) -> bool {
        self.0[CHECKSUM_AT] == 0 && self.0[CHECKSUM_AT + 1] == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_is_read_by_field_and_a_bad_one_is_refused() {
        let udp = Udp::parse(&[0, 53, 1, 2, 0, 8, 0, 0]).expect("valid");
        assert_eq!((udp.src_port(), udp.dst_port(), udp.len()), (53, 0x102, 8));
        assert!(udp.is_without_checksum());
        assert_eq!(Udp::parse(&[0; 7]).err(), Some(ParseError::Truncated));
        assert_eq!(Udp::parse(&[0, 53, 1, 2, 0, 7, 0, 0]).err(), Some(ParseError::Malformed));
    }
}
