//! How the plugin fails: the codes of the specification, and its error document.

use std::fmt;

use serde_json::json;
use slipway_api::{ApiError, ErrorCode, blocking::ClientError};

use super::VERSIONS;

/// Why, for programs (CNI specification 1.1, section 5, "Error"). From 100 on they are ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    /// The plugin does not speak this version, or the version has no such command.
    IncompatibleVersion = 1,
    /// The container is not known to the plugin.
    UnknownContainer = 3,
    /// A variable of the environment is missing or wrong.
    BadEnvironment = 4,
    /// Something cannot be read or written.
    Io = 5,
    /// The configuration is not JSON.
    Decode = 6,
    /// The configuration cannot be used.
    BadConfig = 7,
    /// It will pass.
    TryAgainLater = 11,
    /// Nothing can be added now.
    NotAvailable = 50,
    /// Nothing can be added now, and what was added may have no network.
    NotAvailableForAny = 51,
    /// slipwayd refused for another reason.
    Refused = 100,
    /// All addresses, or all ports, are in use.
    Exhausted = 101,
    /// The container is attached otherwise, or an address is somebody else's.
    Conflict = 102,
}

/// A failure of the plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniError {
    /// Why, for programs.
    pub code: Code,
    /// Why, for people.
    pub message: String,
    /// What to do about it.
    pub details: String,
}

impl CniError {
    /// A failure.
    pub fn new(code: Code, message: impl Into<String>, details: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: details.into() }
    }

    /// Something of the system's failed.
    pub fn io(what: &str, error: impl fmt::Display) -> Self {
        Self::new(Code::Io, format!("{what}: {error}"), "")
    }

    /// The error document, in the version that was asked for if we speak it.
    #[must_use]
    pub fn into_reply(self, version: Option<&str>) -> String {
        let newest = VERSIONS[VERSIONS.len() - 1];
        let version = version.filter(|version| VERSIONS.contains(version)).unwrap_or(newest);
        let Self { code, message, details } = self;
        let document = json!({
            "cniVersion": version, "code": code as u32, "msg": message, "details": details,
        });
        format!("{document}\n")
    }
}

impl From<ClientError> for CniError {
    fn from(error: ClientError) -> Self {
        let message = with_causes(&error);
        match error {
            ClientError::Refused(refusal) => refusal.into(),
            ClientError::NoSocket(_)
            | ClientError::NoListener(_)
            | ClientError::Timeout { .. }
            | ClientError::Broken { .. } => {
                Self::new(Code::TryAgainLater, message, "Start slipwayd, or wait until it is back")
            }
            ClientError::NoAccess(_) | ClientError::Connect { .. } => {
                Self::new(Code::Io, message, "CNI plugins are run by root")
            }
            ClientError::NotUnderstood { .. } => {
                Self::new(Code::Refused, message, "Install slipway-cni and slipwayd of one release")
            }
        }
    }
}

impl From<ApiError> for CniError {
    fn from(refusal: ApiError) -> Self {
        let code = match refusal.code {
            ErrorCode::InvalidValue | ErrorCode::UnknownField => Code::BadConfig,
            ErrorCode::NotFound => Code::UnknownContainer,
            ErrorCode::LimitReached => Code::Exhausted,
            ErrorCode::Conflict => Code::Conflict,
            ErrorCode::Unavailable => Code::TryAgainLater,
            _ => Code::Refused,
        };
        Self::new(code, refusal.to_string(), refusal.remedy)
    }
}

fn with_causes(error: &ClientError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(deeper) = cause {
        text.push_str(&format!(": {deeper}"));
        cause = deeper.source();
    }
    text
}
