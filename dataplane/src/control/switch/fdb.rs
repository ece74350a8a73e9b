//! Forwarding entries as the API sees them: with names in place of numbers.

use slipway_api::{
    ApiError, Created, ErrorCode, FdbEntry, FdbFilter, FdbKind, FdbList, Mac, StaticEntry,
};

use crate::clock;
use crate::fdb::{Entry, Kind, Refused};
use crate::wire;

use super::Switch;
use super::state::State;

impl Switch {
    pub(super) fn fdb_list(&self, filter: &FdbFilter) -> FdbList {
        let state = self.lock();
        let now_s = clock::seconds();
        let mut entries: Vec<_> = self
            .shared
            .fdb
            .entries()
            .filter_map(|entry| view_of(&state, &entry, now_s))
            .filter(|entry| filter.matches(entry))
            .collect();
        entries.sort_by_key(|entry| (entry.vni, entry.mac));
        let matching = entries.len() as u64;
        entries.truncate(filter.limit());
        FdbList { entries, matching }
    }

    pub(super) fn fdb_add(&self, wanted: &StaticEntry) -> Result<(FdbEntry, Created), ApiError> {
        let state = self.lock();
        let port = state.ports.get(&wanted.port);
        let port = port.ok_or_else(|| ApiError::not_found("port", &wanted.port))?;
        if port.spec.vni != wanted.vni {
            return Err(ApiError::invalid(
                "port",
                &wanted.port,
                format!("Port {} belongs to VNI {}", wanted.port, port.spec.vni),
                "Name a port of the same VNI",
            ));
        }
        let (segment, id) = (port.vport.rules.segment, port.vport.id);
        let added = self.shared.fdb.insert_static(segment, wire::Mac(wanted.mac.0), id);
        let new = added.map_err(|refused| refused_static(&state, refused, wanted.mac))?;
        let entry = FdbEntry {
            vni: wanted.vni,
            mac: wanted.mac,
            port: wanted.port.clone(),
            kind: FdbKind::Static,
            age_s: None,
        };
        Ok((entry, if new { Created::New } else { Created::Existing }))
    }

    pub(super) fn fdb_delete(&self, vni: u32, mac: Mac) -> Result<(), ApiError> {
        let state = self.lock();
        let not_found = || ApiError::not_found("mac", mac);
        let segment = state.vnis.get(&vni).ok_or_else(not_found)?.segment;
        if let Some(owner) = state.members(vni).find(|entry| entry.spec.mac == Some(mac)) {
            return Err(ApiError::new(
                ErrorCode::InUse,
                format!("It is the address of port {}", owner.spec.name),
                "Delete the port, or create it again with another address",
            )
            .about("mac", mac));
        }
        let wanted = |entry: &Entry| entry.segment == segment && entry.mac.0 == mac.0;
        if self.shared.fdb.remove_where(wanted) == 0 { Err(not_found()) } else { Ok(()) }
    }
}

fn view_of(state: &State, entry: &Entry, now_s: u32) -> Option<FdbEntry> {
    let learned = entry.kind == Kind::Learned;
    Some(FdbEntry {
        vni: state.vni_of(entry.segment)?,
        mac: Mac(entry.mac.0),
        port: state.name_of(entry.port)?.to_owned(),
        kind: if learned { FdbKind::Learned } else { FdbKind::Static },
        age_s: learned.then(|| now_s.saturating_sub(entry.last_seen_s)),
    })
}

/// Why an address cannot be pinned to a port.
pub(super) fn refused_static(state: &State, refused: Refused, mac: Mac) -> ApiError {
    match refused {
        Refused::Held { by } => ApiError::new(
            ErrorCode::Conflict,
            format!("Port {} of this VNI has this address", state.name_of(by).unwrap_or("?")),
            "Give each guest of a VNI an address of its own, or remove that entry first",
        ),
        Refused::NotUnicast { .. } => ApiError::new(
            ErrorCode::InvalidValue,
            "A group or zero address can not belong to a port",
            "Use a locally administered unicast address, such as 52:54:00:12:34:56",
        ),
        Refused::NoQuota | Refused::Full => ApiError::new(
            ErrorCode::LimitReached,
            "The forwarding table has no room for this address",
            "Raise `capacity` under [fdb] in slipwayd.toml",
        ),
    }
    .about("mac", mac)
}
