//! Ethernet addresses as the API writes them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::ToSchema;

use crate::error::shorten;

/// An Ethernet (EUI-48) address. Written with colons and lower-case hex; read with colons or dashes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ToSchema)]
#[schema(
    value_type = String,
    pattern = "^([0-9a-fA-F]{2}[:-]){5}[0-9a-fA-F]{2}$",
    example = "52:54:00:12:34:56"
)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The address of all stations.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Group addresses have the lowest bit of the first octet set (IEEE 802, section 8.2);
    /// broadcast is one of them.
    #[must_use]
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// Whether the address can belong to one station: not a group, not all zero.
    #[must_use]
    pub fn is_station(self) -> bool {
        !self.is_multicast() && self.0 != [0; 6]
    }
}

/// A text that is no Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MacError(String);

impl fmt::Display for MacError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` is not a MAC address: write six hex octets, as in 52:54:00:12:34:56",
            self.0
        )
    }
}

impl std::error::Error for MacError {}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let refused = || MacError(shorten(text));
        let separator = if text.contains('-') { '-' } else { ':' };
        let mut octets = [0; 6];
        let mut parts = text.split(separator);
        for octet in &mut octets {
            let part = parts.next().ok_or_else(refused)?;
            // from_str_radix alone would take a sign and a single digit.
            let is_octet = part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
            *octet = is_octet
                .then(|| u8::from_str_radix(part, 16).ok())
                .flatten()
                .ok_or_else(refused)?;
        }
        if parts.next().is_some() { Err(refused()) } else { Ok(Self(octets)) }
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

impl From<[u8; 6]> for Mac {
    fn from(octets: [u8; 6]) -> Self {
        Self(octets)
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colons_and_dashes_and_both_cases_are_read_and_written_one_way() {
        for text in ["52:54:00:AB:cd:0f", "52-54-00-ab-CD-0F"] {
            assert_eq!(text.parse::<Mac>().expect("reads").to_string(), "52:54:00:ab:cd:0f");
        }
    }

    #[test]
    fn what_is_no_mac_is_refused() {
        for text in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52:54:00:12:34:5",
            "+2:54:00:12:34:56",
            "52:54:00-12:34:56",
            "gg:54:00:12:34:56",
            "525400123456",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_station_is_neither_a_group_nor_zero() {
        assert!(Mac([0x52, 0x54, 0, 0, 0, 1]).is_station());
        assert!(!Mac::BROADCAST.is_station());
        assert!(!Mac([0; 6]).is_station());
        assert!(!Mac([0x33, 0x33, 0, 0, 0, 1]).is_station());
    }
}
