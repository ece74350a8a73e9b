//! How a request is refused: one form for every refusal, whatever refused it.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The longest offending value that is repeated to the caller, in characters.
const MAX_VALUE_CHARS: usize = 80;

/// Why a request was refused. Programs branch on this; people read the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The body is not JSON, or ended early.
    MalformedJson,
    /// The body or the query names a field this version does not know.
    UnknownField,
    /// A value has the wrong type, lies outside its range, or contradicts another.
    InvalidValue,
    /// The peer of the UNIX socket may not use the API.
    Forbidden,
    /// No such port, VNI or FDB entry.
    NotFound,
    /// No such route.
    NoSuchRoute,
    /// The route exists, but not with this method.
    MethodNotAllowed,
    /// The body did not arrive in time.
    RequestTimeout,
    /// The name is taken by something with other settings.
    Conflict,
    /// It cannot be removed while something else uses it.
    InUse,
    /// The body is longer than [`crate::MAX_REQUEST_BYTES`].
    BodyTooLarge,
    /// The body is not announced as `application/json`.
    UnsupportedMediaType,
    /// A configured limit is reached (ports, FDB entries, file descriptors).
    LimitReached,
    /// The switch is starting or shutting down.
    Unavailable,
    /// The switch failed at something that the request did not cause.
    Internal,
    /// Never sent: what a client reads when a newer server sends a code it does not know.
    #[serde(other)]
    Unrecognised,
}

impl ErrorCode {
    /// The HTTP status that goes with the code (RFC 9110, section 15; 507 is RFC 4918, 11.5).
    #[must_use]
    pub const fn http_status(self) -> u16 {
        match self {
            Self::MalformedJson => 400,
            Self::Forbidden => 403,
            Self::NotFound | Self::NoSuchRoute => 404,
            Self::MethodNotAllowed => 405,
            Self::RequestTimeout => 408,
            Self::Conflict | Self::InUse => 409,
            Self::BodyTooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::UnknownField | Self::InvalidValue => 422,
            Self::Internal | Self::Unrecognised => 500,
            Self::Unavailable => 503,
            Self::LimitReached => 507,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// One refusal: what was wrong, with which value, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApiError {
    /// Why, for programs.
    pub code: ErrorCode,
    /// Why, for people: one sentence.
    pub message: String,
    /// The field of the request that is to blame, as a path (`mac`, `frame.dst`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub field: Option<String>,
    /// The offending value, shortened when it is long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub value: Option<String>,
    /// What the caller can do.
    pub remedy: String,
}

impl ApiError {
    /// A refusal that blames no field.
    pub fn new(code: ErrorCode, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { code, message: message.into(), field: None, value: None, remedy: remedy.into() }
    }

    /// A value out of its range, of the wrong form, or in contradiction to another.
    pub fn invalid(
        field: &str,
        value: impl fmt::Display,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(ErrorCode::InvalidValue, message, remedy).about(field, value)
    }

    /// Nothing called `name`; `kind` is a word such as `port`.
    pub fn not_found(kind: &str, name: impl fmt::Display) -> Self {
        let shown = shorten(&name.to_string());
        Self::new(
            ErrorCode::NotFound,
            format!("There is no {kind} {shown}"),
            "List what there is; what was deleted is gone",
        )
        .about(kind, name)
    }

    /// Adds the field to blame and its value, shortened when it is long.
    #[must_use]
    pub fn about(mut self, field: &str, value: impl fmt::Display) -> Self {
        self.field = Some(field.to_owned());
        self.value = Some(shorten(&value.to_string()));
        self
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        match (&self.field, &self.value) {
            (Some(field), Some(value)) => write!(f, " ({field}: {value})"),
            (Some(field), None) => write!(f, " ({field})"),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for ApiError {}

/// The body of every reply whose status is 4xx or 5xx.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorReply {
    /// The refusal.
    pub error: ApiError,
}

/// Repeats a value without letting it flood a terminal or a log: long ones are cut at a character,
/// control characters are escaped.
pub(crate) fn shorten(value: &str) -> String {
    let mut shown = String::new();
    for (count, c) in value.chars().enumerate() {
        if count == MAX_VALUE_CHARS {
            shown.push_str(&format!("... ({} bytes)", value.len()));
            break;
        }
        if c.is_control() {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_value_is_cut_at_a_character_and_its_length_told() {
        let error = ApiError::not_found("port", "ü".repeat(5000));
        let value = error.value.expect("value is given");
        assert!(value.starts_with("üü") && value.ends_with("(10000 bytes)"), "{value}");
        assert!(error.message.chars().count() < 200, "{}", error.message);
    }

    #[test]
    fn control_characters_are_shown_escaped() {
        assert_eq!(shorten("a\x1b[31m\n"), "a\\u{1b}[31m\\n");
    }

    #[test]
    fn a_code_reads_the_same_in_text_and_in_json() {
        assert_eq!(ErrorCode::MethodNotAllowed.to_string(), "method_not_allowed");
        let json = serde_json::to_string(&ErrorCode::MethodNotAllowed).expect("serialises");
        assert_eq!(json, "\"method_not_allowed\"");
    }

    #[test]
    fn a_code_of_a_newer_server_is_read_as_unrecognised() {
        let code: ErrorCode = serde_json::from_str("\"too_many_cooks\"").expect("reads");
        assert_eq!(code, ErrorCode::Unrecognised);
    }
}
