//! ARP for IPv4 over Ethernet (RFC 826).

use std::net::Ipv4Addr;

use super::{Mac, ParseError};

/// Bytes of an ARP packet for IPv4 over Ethernet.
pub const PACKET_LEN: usize = 28;

/// Operation "who has".
pub const REQUEST: u16 = 1;
/// Operation "is at".
pub const REPLY: u16 = 2;

/// Hardware type 1 (Ethernet), protocol 0x0800, address lengths 6 and 4.
const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// An ARP packet for IPv4 over Ethernet.
#[derive(Clone, Copy, Debug)]
pub struct Arp<'a>(&'a [u8; PACKET_LEN]);

impl<'a> Arp<'a> {
    /// Takes the bytes behind the Ethernet header; trailing padding is ignored.
    ///
    /// # Errors
    /// `Truncated` if shorter than [`PACKET_LEN`], `Malformed` if not for IPv4 over Ethernet.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let packet: &[u8; PACKET_LEN] = bytes.first_chunk().ok_or(ParseError::Truncated)?;
        if packet[..6] == ETHERNET_IPV4 { Ok(Self(packet)) } else { Err(ParseError::Malformed) }
    }

    /// [`REQUEST`], [`REPLY`], or another number the sender chose.
    pub const fn operation(&self) -> u16 {
        u16::from_be_bytes([self.0[6], self.0[7]])
    }

    /// Ethernet address of the sender, as the packet says.
    pub const fn sender_mac(&self) -> Mac {
        self.mac_at(8)
    }

    /// IPv4 address of the sender, as the packet says.
    pub const fn sender_ip(&self) -> Ipv4Addr {
        self.ip_at(14)
    }

    /// Ethernet address of the target; zero in a request.
    pub const fn target_mac(&self) -> Mac {
        self.mac_at(18)
    }

    /// IPv4 address that is asked for, or that is answered.
    pub const fn target_ip(&self) -> Ipv4Addr {
        self.ip_at(24)
    }

    const fn mac_at(&self, at: usize) -> Mac {
        let p = self.0;
        Mac([p[at], p[at + 1], p[at + 2], p[at + 3], p[at + 4], p[at + 5]])
    }

    const fn ip_at(&self, at: usize) -> Ipv4Addr {
        Ipv4Addr::new(self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST_PACKET: [u8; 28] =
        [0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2];

    #[test]
    fn request_is_read_by_field() {
        let arp = Arp::parse(&REQUEST_PACKET).expect("valid");
        assert_eq!(arp.operation(), REQUEST);
        assert_eq!(arp.sender_mac(), Mac([2, 0, 0, 0, 0, 1]));
        assert_eq!(arp.sender_ip(), Ipv4Addr::new(10, 0, 0, 1));
        assert!(arp.target_mac().is_zero());
        assert_eq!(arp.target_ip(), Ipv4Addr::new(10, 0, 0, 2));
    }

    #[test]
    fn short_packets_and_other_address_families_are_refused() {
        assert_eq!(Arp::parse(&REQUEST_PACKET[..27]).err(), Some(ParseError::Truncated));
        for at in 0..6 {
            let mut packet = REQUEST_PACKET;
            packet[at] ^= 0x40;
            assert_eq!(Arp::parse(&packet).err(), Some(ParseError::Malformed));
        }
    }
}
