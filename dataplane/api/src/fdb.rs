//! Forwarding entries: which port an address is behind.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::{ApiError, MAX_VNI, Mac, port};

/// How many entries a list holds unless the caller asks for more.
pub const DEFAULT_FDB_LIST: u32 = 1000;
/// The most entries one list holds.
pub const MAX_FDB_LIST: u32 = 65_536;

/// Where an entry comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FdbKind {
    /// From the API or from a port's `mac`: never ages, never moves.
    Static,
    /// From a frame's source address.
    Learned,
}

impl fmt::Display for FdbKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// One entry of the forwarding database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FdbEntry {
    /// The segment.
    pub vni: u32,
    /// The address.
    pub mac: Mac,
    /// The name of the port it is behind.
    pub port: String,
    /// Where the entry comes from.
    pub kind: FdbKind,
    /// Seconds since the address last sent; absent for static entries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub age_s: Option<u32>,
}

/// Entries by segment and address, perhaps not all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FdbList {
    /// The first entries that match, at most the `limit` asked for.
    pub entries: Vec<FdbEntry>,
    /// How many match in all.
    pub matching: u64,
}

/// Which entries to list. An absent field matches all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct FdbFilter {
    /// Only this segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(nullable = false)]
    pub vni: Option<u32>,
    /// Only this address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(nullable = false)]
    pub mac: Option<Mac>,
    /// Only the port of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(nullable = false)]
    pub port: Option<String>,
    /// Only entries of this kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(nullable = false, inline)]
    pub kind: Option<FdbKind>,
    /// The most entries to return: 1 to 65536, default 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(nullable = false, minimum = 1, maximum = 65536)]
    pub limit: Option<u32>,
}

impl FdbFilter {
    /// Whether `entry` is asked for.
    #[must_use]
    pub fn matches(&self, entry: &FdbEntry) -> bool {
        self.vni.is_none_or(|vni| vni == entry.vni)
            && self.mac.is_none_or(|mac| mac == entry.mac)
            && self.port.as_ref().is_none_or(|port| *port == entry.port)
            && self.kind.is_none_or(|kind| kind == entry.kind)
    }

    /// The most entries to return.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit.unwrap_or(DEFAULT_FDB_LIST).min(MAX_FDB_LIST) as usize
    }

    /// Refuses what is out of range.
    ///
    /// # Errors
    /// [`crate::ErrorCode::InvalidValue`], with the field to blame.
    pub fn check(&self) -> Result<(), ApiError> {
        if let Some(vni) = self.vni.filter(|vni| *vni > MAX_VNI) {
            return Err(crate::vni::refused("vni", vni));
        }
        if let Some(limit) = self.limit.filter(|limit| !(1..=MAX_FDB_LIST).contains(limit)) {
            return Err(ApiError::invalid(
                "limit",
                limit,
                "A list holds 1 to 65536 entries",
                "Filter by `vni` or `port` to see the rest",
            ));
        }
        Ok(())
    }
}

/// The body that adds a static entry; the route names segment and address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StaticEntrySpec {
    /// The name of the port the address is behind; it must belong to the segment.
    pub port: String,
}

/// A static entry to add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticEntry {
    /// The segment.
    pub vni: u32,
    /// The address.
    pub mac: Mac,
    /// The name of the port it is behind.
    pub port: String,
}

impl StaticEntry {
    /// Refuses what is out of range or no address of a station.
    ///
    /// # Errors
    /// [`crate::ErrorCode::InvalidValue`], with the field to blame.
    pub fn check(&self) -> Result<(), ApiError> {
        port::check_port_name("port", &self.port)?;
        if self.vni > MAX_VNI {
            return Err(crate::vni::refused("vni", self.vni));
        }
        if !self.mac.is_station() {
            return Err(port::not_a_station("mac", self.mac));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> FdbEntry {
        FdbEntry {
            vni: 7,
            mac: Mac([2, 0, 0, 0, 0, 1]),
            port: "a".into(),
            kind: FdbKind::Static,
            age_s: None,
        }
    }

    #[test]
    fn an_empty_filter_matches_all_and_each_field_narrows_it() {
        assert!(FdbFilter::default().matches(&entry()));
        let narrowed = [
            FdbFilter { vni: Some(8), ..FdbFilter::default() },
            FdbFilter { mac: Some(Mac([2, 0, 0, 0, 0, 2])), ..FdbFilter::default() },
            FdbFilter { port: Some("b".into()), ..FdbFilter::default() },
            FdbFilter { kind: Some(FdbKind::Learned), ..FdbFilter::default() },
        ];
        for filter in narrowed {
            assert!(!filter.matches(&entry()), "{filter:?}");
        }
    }

    #[test]
    fn a_static_entry_for_a_group_address_is_refused() {
        let wanted = StaticEntry { vni: 7, mac: Mac::BROADCAST, port: "a".into() };
        assert_eq!(wanted.check().expect_err("group").field.as_deref(), Some("mac"));
    }
}
