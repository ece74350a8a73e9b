//! The virtio-net header, as VERSION_1 lays it out: 12 bytes, little-endian.

use virtio_bindings::virtio_net as bindings;

/// `struct virtio_net_hdr` (virtio 1.3, section 5.1.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VirtioNetHdr {
    /// `VIRTIO_NET_HDR_F_*`.
    pub flags: u8,
    /// `VIRTIO_NET_HDR_GSO_*`.
    pub gso_type: u8,
    /// Bytes of headers in front of the payload to be segmented.
    pub hdr_len: u16,
    /// Payload bytes per segment.
    pub gso_size: u16,
    /// Where in the frame checksumming starts.
    pub csum_start: u16,
    /// Where after `csum_start` the checksum is stored.
    pub csum_offset: u16,
    /// Receive buffers the frame is spread over; zero on transmission.
    pub num_buffers: u16,
}

impl VirtioNetHdr {
    /// Bytes in front of every frame when VERSION_1 is negotiated.
    pub const BYTES: usize = 12;
    /// `flags`: the checksum is partial (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
    pub const NEEDS_CSUM: u8 = bindings::VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
    /// `flags`: the checksum was verified (`VIRTIO_NET_HDR_F_DATA_VALID`).
    pub const DATA_VALID: u8 = bindings::VIRTIO_NET_HDR_F_DATA_VALID as u8;
    /// `gso_type`: not a super-frame.
    pub const GSO_NONE: u8 = bindings::VIRTIO_NET_HDR_GSO_NONE as u8;
    /// `gso_type`: TCP over IPv4.
    pub const GSO_TCPV4: u8 = bindings::VIRTIO_NET_HDR_GSO_TCPV4 as u8;
    /// `gso_type`: TCP over IPv6.
    pub const GSO_TCPV6: u8 = bindings::VIRTIO_NET_HDR_GSO_TCPV6 as u8;
    /// `gso_type`: UDP datagrams (USO).
    pub const GSO_UDP_L4: u8 = bindings::VIRTIO_NET_HDR_GSO_UDP_L4 as u8;

    /// The header as it lies in memory.
    #[inline(always)]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let [hdr_len, gso_size, start, offset, buffers] =
            [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset, self.num_buffers]
                .map(u16::to_le_bytes);
        [
            self.flags,
            self.gso_type,
            hdr_len[0],
            hdr_len[1],
            gso_size[0],
            gso_size[1],
            start[0],
            start[1],
            offset[0],
            offset[1],
            buffers[0],
            buffers[1],
        ]
    }

    /// The header that lies in `b`.
    #[inline(always)]
    pub fn from_bytes(b: [u8; Self::BYTES]) -> Self {
        let word = |at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
        Self {
            flags: b[0],
            gso_type: b[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
            num_buffers: word(10),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_lies_in_memory_as_virtio_lays_it_out() {
        let header = VirtioNetHdr {
            flags: 1,
            gso_type: 4,
            hdr_len: 0x0102,
            gso_size: 0x0304,
            csum_start: 0x0506,
            csum_offset: 0x0708,
            num_buffers: 0x090a,
        };
        let bytes = [1, 4, 2, 1, 4, 3, 6, 5, 8, 7, 0x0a, 9];
        assert_eq!(header.to_bytes(), bytes);
        assert_eq!(VirtioNetHdr::from_bytes(bytes), header);
    }
}
