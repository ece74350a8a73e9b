//! Ethernet II: addresses, EtherTypes, the 14-byte header (IEEE 802.3, clause 3).

use std::fmt;
use std::str::FromStr;

use super::ParseError;

/// Bytes of an untagged Ethernet header.
pub const HEADER_LEN: usize = 14;

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// EtherType of a customer VLAN tag (IEEE 802.1Q).
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// EtherType of a service VLAN tag (IEEE 802.1ad, "QinQ").
pub const ETHERTYPE_QINQ: u16 = 0x88a8;

/// The group bit (I/G, IEEE 802, clause 8.2) of an address in its [`Mac::key`] form.
pub const GROUP_BIT: u64 = 1 << 40;

/// All ones in the [`Mac::key`] form: the broadcast address, and the bits an address may use.
pub const MAC_KEY_MASK: u64 = (1 << 48) - 1;

/// An Ethernet address.
///
/// Tables keep it as a number, the *key*: the first byte on the wire is the most significant of 48
/// bits.
#[derive(Clone, Copy, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// ff:ff:ff:ff:ff:ff.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// The address as a 48-bit number, first byte most significant.
    pub const fn key(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }

    /// The address of a 48-bit number; higher bits are ignored.
    pub const fn from_key(key: u64) -> Self {
        let [_, _, a, b, c, d, e, f] = key.to_be_bytes();
        Self([a, b, c, d, e, f])
    }

    /// Whether the address names a group; the broadcast address does.
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether this is ff:ff:ff:ff:ff:ff.
    pub const fn is_broadcast(self) -> bool {
        self.key() == MAC_KEY_MASK
    }

    /// Whether this is 00:00:00:00:00:00, which no station owns.
    pub const fn is_zero(self) -> bool {
        self.key() == 0
    }

    /// Whether the address can be one station's: neither a group nor zero.
    pub const fn is_unicast(self) -> bool {
        !self.is_multicast() && !self.is_zero()
    }
}

impl From<Mac> for u64 {
    fn from(mac: Mac) -> Self {
        mac.key()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not an Ethernet address.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "{text:?} is not an Ethernet address: write six bytes of two hexadecimal digits, \
     separated by colons, e.g. 52:54:00:12:34:56"
)]
pub struct MacTextError {
    /// What was given, cut to a length that is safe to print.
    pub text: String,
}

impl FromStr for Mac {
    type Err = MacTextError;

    fn from_str(text: &str) -> Result<Self, MacTextError> {
        let refuse = || MacTextError { text: text.chars().take(32).collect() };
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(refuse)?;
            // from_str_radix alone would take "+1".
            if part.len() != 2 || !part.bytes().all(|c| c.is_ascii_hexdigit()) {
                return Err(refuse());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| refuse())?;
        }
        if parts.next().is_some() { Err(refuse()) } else { Ok(Self(bytes)) }
    }
}

/// An Ethernet header; what follows may be VLAN tags ([`super::vlan`]).
#[derive(Clone, Copy, Debug)]
pub struct Ethernet<'a>(&'a [u8; HEADER_LEN]);

impl<'a> Ethernet<'a> {
    /// Splits `frame` into its header and what follows.
    pub fn parse(frame: &'a [u8]) -> Result<(Self, &'a [u8]), ParseError> {
        let (header, rest) = frame.split_first_chunk().ok_or(ParseError::Truncated)?;
        Ok((Self(header), rest))
    }

    /// The station or group the frame is for.
    pub const fn dst(&self) -> Mac {
        let [a, b, c, d, e, f, ..] = *self.0;
        Mac([a, b, c, d, e, f])
    }

    /// The station that says it sent the frame.
    pub const fn src(&self) -> Mac {
        let [_, _, _, _, _, _, a, b, c, d, e, f, ..] = *self.0;
        Mac([a, b, c, d, e, f])
    }

    /// The EtherType, or the length of an IEEE 802.2 frame if below 1536.
    pub const fn ethertype(&self) -> u16 {
        u16::from_be_bytes([self.0[12], self.0[13]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_survives_the_way_to_a_key_and_to_text_and_back() {
        let mac = Mac([0x52, 0x54, 0, 0x12, 0xab, 0xff]);
        assert_eq!(mac.key(), 0x5254_0012_abff);
        assert_eq!(Mac::from_key(mac.key()), mac);
        assert_eq!(mac.to_string(), "52:54:00:12:ab:ff");
        assert_eq!("52:54:00:12:AB:ff".parse(), Ok(mac));
    }

    #[test]
    fn text_that_is_not_six_pairs_of_digits_is_refused() {
        for text in [
            "",
            "52",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52:54:00:12:34:5",
            "52:54:00:12:34:+5",
            "52:54:00:12:34:5g",
            "52-54-00-12-34-56",
            "52:54:00:12:34:56 ",
            "５2:54:00:12:34:56",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text:?} was taken for an address");
        }
    }

    #[test]
    fn group_broadcast_and_zero_are_told_from_a_station() {
        let (station, group) = (Mac([2, 0, 0, 0, 0, 1]), Mac([0x33, 0x33, 0, 0, 0, 1]));
        assert!(station.is_unicast() && !station.is_multicast() && !station.is_broadcast());
        assert!(group.is_multicast() && !group.is_broadcast() && !group.is_unicast());
        assert!(Mac::BROADCAST.is_broadcast() && Mac::BROADCAST.is_multicast());
        assert!(Mac::default().is_zero() && !Mac::default().is_unicast());
        assert_eq!(group.key() & GROUP_BIT, GROUP_BIT);
        assert_eq!(station.key() & GROUP_BIT, 0);
    }

    #[test]
    fn header_is_read_by_field_and_a_short_one_is_truncated() {
        let frame = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0x86, 0xdd, 99];
        let (header, rest) = Ethernet::parse(&frame).expect("long enough");
        assert_eq!(header.dst(), Mac([1, 2, 3, 4, 5, 6]));
        assert_eq!(header.src(), Mac([7, 8, 9, 10, 11, 12]));
        assert_eq!((header.ethertype(), rest), (ETHERTYPE_IPV6, &[99][..]));
        assert_eq!(Ethernet::parse(&frame[..13]).err(), Some(ParseError::Truncated));
    }
}
