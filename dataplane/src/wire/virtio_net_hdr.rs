//! The header before every frame in a virtio-net ring (virtio 1.3, section 5.1.6).
//!
//! Always the 12-byte form: `num_buffers` is there with or without `VIRTIO_NET_F_MRG_RXBUF` once
//! `VIRTIO_F_VERSION_1` is negotiated. Little endian.

/// Bytes of the header.
pub const LEN: usize = 12;

/// Flag: the checksum at `csum_start + csum_offset` is partial and wants to be completed.
pub const F_NEEDS_CSUM: u8 = 1;
/// Flag: the checksum was found right; only from device to driver.
pub const F_DATA_VALID: u8 = 2;

/// One ordinary frame.
pub const GSO_NONE: u8 = 0;
/// TCP over IPv4, to be segmented.
pub const GSO_TCPV4: u8 = 1;
/// UDP, to be fragmented (UFO); this switch never offers it.
pub const GSO_UDP: u8 = 3;
/// TCP over IPv6, to be segmented.
pub const GSO_TCPV6: u8 = 4;
/// UDP over either, to be segmented (USO).
pub const GSO_UDP_L4: u8 = 5;
/// Bit beside a TCP type: the segment carries CWR (RFC 3168).
pub const GSO_ECN: u8 = 0x80;

/// What sender and receiver tell each other about one frame.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct VirtioNetHdr {
    /// [`F_NEEDS_CSUM`], [`F_DATA_VALID`]; unknown bits are to be ignored.
    pub flags: u8,
    /// One of the `GSO_` types, perhaps with [`GSO_ECN`].
    pub gso_type: u8,
    /// Bytes of all headers before the payload to segment; only a hint.
    pub hdr_len: u16,
    /// Payload bytes of each segment.
    pub gso_size: u16,
    /// Offset in the frame where the checksummed part starts.
    pub csum_start: u16,
    /// Offset of the checksum field behind `csum_start`.
    pub csum_offset: u16,
    /// Receive buffers the frame was spread over; set by whoever fills them.
    pub num_buffers: u16,
}

impl VirtioNetHdr {
    /// Reads the header; any twelve bytes are one.
    #[inline]
    pub const fn parse(bytes: &[u8; LEN]) -> Self {
        let b = bytes;
        Self {
            flags: b[0],
            gso_type: b[1],
            hdr_len: u16::from_le_bytes([b[2], b[3]]),
            gso_size: u16::from_le_bytes([b[4], b[5]]),
            csum_start: u16::from_le_bytes([b[6], b[7]]),
            csum_offset: u16::from_le_bytes([b[8], b[9]]),
            num_buffers: u16::from_le_bytes([b[10], b[11]]),
        }
    }

    /// The header as it stands in the ring.
    #[inline]
    pub const fn to_bytes(self) -> [u8; LEN] {
        let [h0, h1] = self.hdr_len.to_le_bytes();
        let [g0, g1] = self.gso_size.to_le_bytes();
        let [s0, s1] = self.csum_start.to_le_bytes();
        let [o0, o1] = self.csum_offset.to_le_bytes();
        let [n0, n1] = self.num_buffers.to_le_bytes();
        [self.flags, self.gso_type, h0, h1, g0, g1, s0, s1, o0, o1, n0, n1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_is_twelve_little_endian_bytes() {
        let bytes = [1, 0x81, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
        let hdr = VirtioNetHdr {
            flags: F_NEEDS_CSUM,
            gso_type: GSO_TCPV4 | GSO_ECN,
            hdr_len: 0x0302,
            gso_size: 0x0504,
            csum_start: 0x0706,
            csum_offset: 0x0908,
            num_buffers: 0x0b0a,
        };
        assert_eq!(VirtioNetHdr::parse(&bytes), hdr);
        assert_eq!(hdr.to_bytes(), bytes);
    }
}
