//! What is wrong, where, and what to do about it.

use std::{fmt, io, path::PathBuf};

use serde::Serialize;

/// Where a setting stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Place {
    /// A line of a file.
    Line {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// A file in which lines say little.
    File {
        /// The file.
        file: PathBuf,
    },
    /// An annotation of the pod.
    Annotation {
        /// Its whole name.
        annotation: String,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { file, line } => write!(f, "{}:{line}", file.display()),
            Self::File { file } => write!(f, "{}", file.display()),
            Self::Annotation { annotation } => write!(f, "annotation {annotation}"),
        }
    }
}

/// Something that does not stop a pod, and that an operator may want to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// Where; `None` if it is about no single setting.
    pub place: Option<Place>,
    /// What.
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// Why a configuration, an annotation or a DAN file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read, or is not text.
    #[error("Failed to read {}: {source}", .file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not TOML or JSON.
    #[error("{place}: this is not {language}: {message}")]
    Syntax {
        /// Where.
        place: Place,
        /// `TOML` or `JSON`.
        language: &'static str,
        /// What is wrong.
        message: String,
    },
    /// A value of the wrong type, out of its range, or in contradiction to another.
    #[error("{place}: `{key}` = {value} cannot be used: {remedy}")]
    BadValue {
        /// Where.
        place: Place,
        /// The key with its table.
        key: String,
        /// Its value.
        value: String,
        /// What would do.
        remedy: String,
    },
    /// A setting of Kata's that changes what a pod is, and that slipway cannot give it.
    #[error("{place}: `{key}` = {value} is not supported: {reason}")]
    Refused {
        /// Where.
        place: Place,
        /// The key with its table.
        key: String,
        /// Its value.
        value: String,
        /// Why, and what to do.
        reason: String,
    },
    /// An annotation that the operator does not let pods use.
    #[error(
        "annotation {annotation} is not enabled: no pattern of enable_annotations = {enabled} in {file} matches `{name}`; add it there, or take the annotation from the pod"
    )]
    NotEnabled {
        /// Its whole name.
        annotation: String,
        /// What the patterns are matched with.
        name: String,
        /// The patterns.
        enabled: String,
        /// The file that has them.
        file: String,
    },
    /// The value of an annotation that the operator does not allow.
    #[error(
        "annotation {annotation} = \"{value}\" is not allowed: no pattern of {list} = {allowed} in {file} matches it"
    )]
    NotAllowed {
        /// Its whole name.
        annotation: String,
        /// Its value.
        value: String,
        /// The key of the list of patterns.
        list: &'static str,
        /// The patterns.
        allowed: String,
        /// The file that has them.
        file: String,
    },
}
