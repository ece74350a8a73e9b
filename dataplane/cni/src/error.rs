//! How the plugin fails: the codes of the specification, and its error document.

use alloc::{format, string::String};

use serde::Serialize;

use crate::VERSIONS;

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

/// A failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniError {
    /// Why, for programs.
    pub code: Code,
    /// Why, for people.
    pub message: String,
    /// What to do about it.
    pub details: String,
}

/// The error document of the specification.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(rename = "cniVersion")]
    version: &'a str,
    code: u32,
    #[serde(rename = "msg")]
    message: &'a str,
    details: &'a str,
}

impl CniError {
    /// A failure.
    pub fn new(code: Code, message: impl Into<String>, details: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: details.into() }
    }

    /// The error document, in the version that was asked for if we speak it.
    #[must_use]
    pub fn into_reply(self, version: Option<&str>) -> String {
        let newest = VERSIONS[VERSIONS.len() - 1];
        let version = version.filter(|version| VERSIONS.contains(version)).unwrap_or(newest);
        let Self { code, message, details } = &self;
        let document = Document { version, code: *code as u32, message, details };
        // Texts and a number: there is nothing in it that JSON could not say.
        serde_json::to_string(&document).map(|text| format!("{text}\n")).unwrap_or_default()
    }
}
