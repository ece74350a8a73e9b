//! Segments: what a VNI does with frames nobody has claimed, and how much it remembers.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ApiError;

/// The largest network identifier: 24 bits on the wire (RFC 7348, section 5).
pub const MAX_VNI: u32 = (1 << 24) - 1;
/// The longest ageing time, in seconds (IEEE 802.1Q, table 8-6).
pub const MAX_AGEING_S: u32 = 1_000_000;

/// What happens to a unicast frame whose destination is not in the FDB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum UnknownUnicast {
    /// Dropped when every port of the segment has its one address and learns nothing, so that an
    /// unknown address cannot exist; flooded otherwise.
    #[default]
    Auto,
    /// Dropped and counted.
    Drop,
    /// Sent to every other port of the segment.
    Flood,
}

impl fmt::Display for UnknownUnicast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// Settings of a segment as they are asked for. `PUT` sets all of them: what is left out goes back
/// to its default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VniSpec {
    /// The segment. The route names it, so a body may leave it out; one that names another is
    /// refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, maximum = 16_777_215)]
    pub vni: Option<u32>,
    /// What happens to frames for unknown addresses.
    #[serde(default)]
    pub unknown_unicast: UnknownUnicast,
    /// How long a learned entry lives without traffic, in seconds; default from the configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 1, maximum = 1_000_000)]
    pub ageing_s: Option<u32>,
}

impl VniSpec {
    /// Refuses what is out of range.
    ///
    /// # Errors
    /// [`crate::ErrorCode::InvalidValue`], with the field to blame.
    pub fn check(&self) -> Result<(), ApiError> {
        if let Some(vni) = self.vni.filter(|vni| *vni > MAX_VNI) {
            return Err(refused("vni", vni));
        }
        if let Some(ageing) = self.ageing_s.filter(|s| !(1..=MAX_AGEING_S).contains(s)) {
            return Err(ApiError::invalid(
                "ageing_s",
                ageing,
                "Learned entries age out after 1 to 1000000 seconds",
                "Leave it out for the configured default; 300 is usual",
            ));
        }
        Ok(())
    }
}

/// A segment: one that has settings, or ports, or both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Vni {
    /// Its number.
    pub vni: u32,
    /// The policy set for frames to unknown addresses.
    pub unknown_unicast: UnknownUnicast,
    /// What that policy comes to with the ports there are now: whether such frames are flooded.
    pub floods_unknown: bool,
    /// How long a learned entry lives without traffic, in seconds.
    pub ageing_s: u32,
    /// How many ports it has.
    pub ports: u32,
    /// How many FDB entries it has.
    pub fdb_entries: u32,
}

/// The segments, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VniList {
    /// The segments.
    pub vnis: Vec<Vni>,
}

pub(crate) fn refused(field: &str, vni: u32) -> ApiError {
    ApiError::invalid(
        field,
        vni,
        "A VNI has 24 bits: 0 to 16777215",
        "Choose a smaller number; 0 is the default segment",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_out_of_range_is_refused_by_the_name_of_its_field() {
        let cases = [
            ("vni", VniSpec { vni: Some(1 << 24), ..VniSpec::default() }),
            ("ageing_s", VniSpec { ageing_s: Some(0), ..VniSpec::default() }),
            ("ageing_s", VniSpec { ageing_s: Some(1_000_001), ..VniSpec::default() }),
        ];
        for (field, spec) in cases {
            let error = spec.check().expect_err(field);
            assert_eq!(error.field.as_deref(), Some(field));
        }
    }

    #[test]
    fn an_empty_body_asks_for_the_defaults() {
        let spec: VniSpec = serde_json::from_str("{}").expect("reads");
        assert_eq!(spec, VniSpec::default());
        assert_eq!(spec.check(), Ok(()));
    }
}
