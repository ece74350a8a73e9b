//! The only place of the shim that reads time.

#![expect(clippy::disallowed_methods, reason = "the shim's own clock")]

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use kata_agent_protocol::protobuf::well_known_types::timestamp::Timestamp;

/// Now, for measuring how long something takes.
pub fn instant() -> Instant {
    Instant::now()
}

/// Now, as protobuf has it.
pub fn timestamp() -> Timestamp {
    SystemTime::now().into()
}

/// Now, in milliseconds since 1970.
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
