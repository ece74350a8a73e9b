//! What the switch refuses, in the codes of the specification.

use slipway_api::{ApiError, ErrorCode};
use slipway_cni::{CniError, Code};

/// A refusal of the switch, as the plugin tells it.
pub fn of(refusal: ApiError) -> CniError {
    let code = match refusal.code {
        ErrorCode::InvalidValue | ErrorCode::UnknownField => Code::BadConfig,
        ErrorCode::NotFound => Code::UnknownContainer,
        ErrorCode::LimitReached => Code::Exhausted,
        ErrorCode::Conflict => Code::Conflict,
        ErrorCode::Unavailable => Code::TryAgainLater,
        _ => Code::Refused,
    };
    CniError::new(code, refusal.to_string(), refusal.remedy)
}
