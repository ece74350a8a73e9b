//! Memory sizes with their unit in the type.

use std::fmt;

/// A memory size in MiB (2^20 bytes). Any `u32` is a valid size, and its bytes fit a `u64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mib(u32);

impl Mib {
    /// `mib` times 2^20 bytes.
    pub const fn new(mib: u32) -> Self {
        Self(mib)
    }

    /// The size in MiB.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        (self.0 as u64) << 20
    }

    /// The size of `bytes`, or `None` if it is no whole number of MiB or beyond 2^32 MiB.
    pub fn from_bytes(bytes: u64) -> Option<Self> {
        bytes.is_multiple_of(1 << 20).then(|| u32::try_from(bytes >> 20).ok())?.map(Self)
    }

    /// The sum, or `None` beyond 2^32 MiB.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    /// Whether the size is a whole number of `unit`s; nothing is a multiple of zero.
    pub const fn is_multiple_of(self, unit: Self) -> bool {
        unit.0 != 0 && self.0.is_multiple_of(unit.0)
    }
}

impl fmt::Display for Mib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_size_still_fits_its_bytes() {
        assert_eq!(Mib::new(u32::MAX).bytes(), u64::from(u32::MAX) * 1024 * 1024);
    }

    #[test]
    fn bytes_that_are_no_whole_mib_are_refused() {
        assert_eq!(Mib::from_bytes(1 << 20), Some(Mib::new(1)));
        assert_eq!(Mib::from_bytes((1 << 20) + 1), None);
        assert_eq!(Mib::from_bytes(u64::MAX - ((1 << 20) - 1)), None);
    }
}
