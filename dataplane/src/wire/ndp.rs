//! Neighbour discovery for IPv6 (RFC 4861, section 4): the two messages that name a neighbour.

use std::net::Ipv6Addr;

use super::{Mac, ParseError};

/// ICMPv6 type of a router solicitation.
pub const ROUTER_SOLICITATION: u8 = 133;
/// ICMPv6 type of a router advertisement.
pub const ROUTER_ADVERTISEMENT: u8 = 134;
/// ICMPv6 type of a neighbour solicitation: who has the target?
pub const SOLICITATION: u8 = 135;
/// ICMPv6 type of a neighbour advertisement: the target is here.
pub const ADVERTISEMENT: u8 = 136;
/// ICMPv6 type of a redirect.
pub const REDIRECT: u8 = 137;

/// The hop limit of every message: it came from no further than the link (section 7.1).
pub const HOP_LIMIT: u8 = 255;

/// Bytes of both messages without options: ICMPv6 header, flags, target.
pub const MESSAGE_LEN: usize = 24;
/// Bytes of an option with an Ethernet address.
pub const ADDRESS_OPTION_LEN: usize = 8;

/// Option: the Ethernet address of the sender.
pub const SOURCE_ADDRESS: u8 = 1;
/// Option: the Ethernet address of the target.
pub const TARGET_ADDRESS: u8 = 2;

/// Flag of an advertisement: it answers a solicitation.
pub const SOLICITED: u8 = 0x40;
/// Flag of an advertisement: it replaces what is cached.
pub const OVERRIDE: u8 = 0x20;

/// A neighbour solicitation or advertisement with its options, from the ICMPv6 header on.
#[derive(Clone, Copy, Debug)]
pub struct Ndp<'a> {
    message: &'a [u8; MESSAGE_LEN],
    options: &'a [u8],
}

impl<'a> Ndp<'a> {
    /// Takes all of an ICMPv6 message; the checksum is not looked at.
    ///
    /// # Errors
    /// `Truncated` if shorter than [`MESSAGE_LEN`]; `Malformed` if it is neither of the two, its
    /// target is a group (section 7.1), or its options do not end where it does.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let (message, options) = bytes.split_first_chunk().ok_or(ParseError::Truncated)?;
        let ndp = Self { message, options };
        let is_known = matches!(ndp.kind(), SOLICITATION | ADVERTISEMENT) && message[1] == 0;
        if !is_known || ndp.target().is_multicast() {
            return Err(ParseError::Malformed);
        }
        let mut rest = options;
        while !rest.is_empty() {
            // In units of eight bytes; none has length zero (section 4.6).
            let len = rest.get(1).map_or(0, |units| usize::from(*units) * 8);
            rest = rest.get(len..).filter(|_| len > 0).ok_or(ParseError::Malformed)?;
        }
        Ok(ndp)
    }

    /// [`SOLICITATION`] or [`ADVERTISEMENT`].
    pub const fn kind(&self) -> u8 {
        self.message[0]
    }

    /// The address that is asked for, or that is announced.
    pub fn target(&self) -> Ipv6Addr {
        let octets: &[u8; 16] = self.message.last_chunk().expect("16 of 24 bytes");
        Ipv6Addr::from(*octets)
    }

    /// The Ethernet addresses that its options name, of the sender or of the target.
    pub fn addresses(&self) -> impl Iterator<Item = Mac> + use<'a> {
        let mut rest = self.options;
        std::iter::from_fn(move || {
            let units = *rest.get(1)?;
            let (option, after) = rest.split_at_checked(usize::from(units) * 8)?;
            rest = after;
            Some(option)
        })
        .filter(|option| matches!(option[0], SOURCE_ADDRESS | TARGET_ADDRESS))
        .filter_map(|option| option.get(2..)?.first_chunk().copied().map(Mac))
    }
}

/// The link-local address that belongs to an Ethernet address (RFC 4291, appendix A).
pub fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    let id = [a ^ 2, b, c, 0xff, 0xfe, d, e, f];
    Ipv6Addr::from_bits(0xfe80_u128 << 112 | u128::from(u64::from_be_bytes(id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, target: &str, options: &[u8]) -> Vec<u8> {
        let target: Ipv6Addr = target.parse().expect("an address");
        [&[kind, 0, 0, 0, 0, 0, 0, 0], &target.octets()[..], options].concat()
    }

    #[test]
    fn target_and_addresses_are_read() {
        let options = [14, 1, 9, 9, 9, 9, 9, 9, 1, 1, 2, 0, 0, 0, 0, 7];
        let bytes = message(SOLICITATION, "fd00::1", &options);
        let ndp = Ndp::parse(&bytes).expect("valid");
        assert_eq!(ndp.target(), "fd00::1".parse::<Ipv6Addr>().expect("an address"));
        assert_eq!(ndp.addresses().collect::<Vec<_>>(), [Mac([2, 0, 0, 0, 0, 7])]);
    }

    #[test]
    fn what_is_no_such_message_is_refused() {
        let good = message(ADVERTISEMENT, "fd00::1", &[]);
        assert_eq!(Ndp::parse(&good[..23]).err(), Some(ParseError::Truncated));
        let bad = [
            message(ROUTER_ADVERTISEMENT, "fd00::1", &[]),
            message(ADVERTISEMENT, "ff02::1", &[]),
            message(ADVERTISEMENT, "fd00::1", &[2]),
            message(ADVERTISEMENT, "fd00::1", &[2, 0, 0, 0, 0, 0, 0, 0]),
            message(ADVERTISEMENT, "fd00::1", &[2, 2, 0, 0, 0, 0, 0, 0]),
        ];
        for bytes in bad {
            assert_eq!(Ndp::parse(&bytes).err(), Some(ParseError::Malformed), "{bytes:?}");
        }
    }

    #[test]
    fn link_local_address_is_that_of_the_standard() {
        // RFC 4291, appendix A: 34-56-78-9A-BC-DE.
        let mac = Mac([0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde]);
        assert_eq!(link_local(mac).to_string(), "fe80::3656:78ff:fe9a:bcde");
    }
}
