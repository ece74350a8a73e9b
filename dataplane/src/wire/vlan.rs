//! VLAN tags: IEEE 802.1Q, and two of them as IEEE 802.1ad ("QinQ").

use super::ParseError;
use super::ethernet::{ETHERTYPE_QINQ, ETHERTYPE_VLAN};

/// Bytes a tag adds behind the EtherType that announces it.
pub const TAG_LEN: usize = 4;

/// Tags that are looked through; a third one is payload.
pub const MAX_TAGS: usize = 2;

/// Whether `ethertype` announces a tag.
pub const fn is_tag(ethertype: u16) -> bool {
    ethertype == ETHERTYPE_VLAN || ethertype == ETHERTYPE_QINQ
}

/// Tag control information: priority, drop eligibility, VLAN id (IEEE 802.1Q, clause 9.6).
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Tci(pub u16);

impl Tci {
    /// VLAN id, 0 to 4095; 0 means "priority only", 4095 is reserved.
    pub const fn id(self) -> u16 {
        self.0 & 0x0fff
    }

    /// Priority code point, 0 to 7.
    pub const fn priority(self) -> u8 {
        (self.0 >> 13) as u8
    }

    /// Drop-eligible indicator.
    pub const fn is_drop_eligible(self) -> bool {
        self.0 & 0x1000 != 0
    }
}

/// One tag: the four bytes behind the EtherType that announced it.
#[derive(Clone, Copy, Debug)]
pub struct Tag<'a>(&'a [u8; TAG_LEN]);

impl<'a> Tag<'a> {
    /// Splits the bytes behind a tag's EtherType into the tag and what follows.
    pub fn parse(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), ParseError> {
        let (tag, rest) = bytes.split_first_chunk().ok_or(ParseError::Truncated)?;
        Ok((Self(tag), rest))
    }

    /// Priority, drop eligibility and VLAN id.
    pub const fn tci(&self) -> Tci {
        Tci(u16::from_be_bytes([self.0[0], self.0[1]]))
    }

    /// EtherType of what follows: perhaps of another tag.
    pub const fn ethertype(&self) -> u16 {
        u16::from_be_bytes([self.0[2], self.0[3]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tag_is_read_by_field_and_a_short_one_is_truncated() {
        let (tag, rest) = Tag::parse(&[0xb1, 0x23, 0x08, 0x00, 7]).expect("long enough");
        assert_eq!((tag.tci().id(), tag.tci().priority()), (0x123, 5));
        assert!(tag.tci().is_drop_eligible());
        assert_eq!((tag.ethertype(), rest), (0x0800, &[7][..]));
        assert_eq!(Tag::parse(&[0; 3]).err(), Some(ParseError::Truncated));
    }
}
