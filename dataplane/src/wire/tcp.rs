//! TCP header (RFC 9293, section 3.1).

use super::ParseError;

/// IP protocol number of TCP.
pub const PROTOCOL: u8 = 6;

/// Bytes of a header without options.
pub const MIN_HEADER_LEN: usize = 20;

/// Offset of the sequence number.
pub const SEQ_AT: usize = 4;
/// Offset of the flags.
pub const FLAGS_AT: usize = 13;
/// Offset of the checksum.
pub const CHECKSUM_AT: usize = 16;

/// No more data from the sender.
pub const FIN: u8 = 0x01;
/// Opens a connection.
pub const SYN: u8 = 0x02;
/// Resets a connection.
pub const RST: u8 = 0x04;
/// Data to be handed over at once.
pub const PSH: u8 = 0x08;
/// The acknowledgement number counts.
pub const ACK: u8 = 0x10;
/// Congestion window reduced (RFC 3168, section 6.1).
pub const CWR: u8 = 0x80;

/// The fixed part of a TCP header; options, if any, lie between it and [`Tcp::header_len`].
#[derive(Clone, Copy, Debug)]
pub struct Tcp<'a>(&'a [u8; MIN_HEADER_LEN]);

impl<'a> Tcp<'a> {
    /// Views the header at the start of `bytes`.
    ///
    /// # Errors
    /// `Truncated` below 20 bytes, `Malformed` if the header is said to be shorter than that.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let view = Self(bytes.first_chunk().ok_or(ParseError::Truncated)?);
        if view.header_len() >= MIN_HEADER_LEN { Ok(view) } else { Err(ParseError::Malformed) }
    }

    /// Source port.
    pub const fn src_port(&self) -> u16 {
        u16::from_be_bytes([self.0[0], self.0[1]])
    }

    /// Destination port.
    pub const fn dst_port(&self) -> u16 {
        u16::from_be_bytes([self.0[2], self.0[3]])
    }

    /// Sequence number of the first payload byte.
    pub const fn seq(&self) -> u32 {
        u32::from_be_bytes([self.0[4], self.0[5], self.0[6], self.0[7]])
    }

    /// Next sequence number the sender expects.
    pub const fn ack(&self) -> u32 {
        u32::from_be_bytes([self.0[8], self.0[9], self.0[10], self.0[11]])
    }

    /// Bytes of the header with its options: 20 to 60.
    pub const fn header_len(&self) -> usize {
        (self.0[12] >> 4) as usize * 4
    }

    /// [`FIN`], [`SYN`], [`RST`], [`PSH`], [`ACK`], [`CWR`] and others.
    pub const fn flags(&self) -> u8 {
        self.0[FLAGS_AT]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_is_read_by_field_and_a_bad_one_is_refused() {
        let mut bytes = [0, 80, 1, 2, 0, 0, 0, 9, 0, 0, 1, 0, 0xa0, 0x11, 0, 0, 0, 0, 0, 0];
        let tcp = Tcp::parse(&bytes).expect("valid");
        assert_eq!((tcp.src_port(), tcp.dst_port()), (80, 0x102));
        assert_eq!((tcp.seq(), tcp.ack()), (9, 256));
        assert_eq!((tcp.header_len(), tcp.flags()), (40, FIN | ACK));
        assert_eq!(Tcp::parse(&bytes[..19]).err(), Some(ParseError::Truncated));
        bytes[12] = 0x40;
        assert_eq!(Tcp::parse(&bytes).err(), Some(ParseError::Malformed));
    }
}
