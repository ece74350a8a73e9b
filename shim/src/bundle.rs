//! A container's bundle: the folder with its OCI specification, and the files that containerd
//! expects a shim to write there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

use crate::kind::{Kind, KindError};

/// The largest specification that is read, in bytes.
const MAX_SPEC_BYTES: u64 = 16 << 20;

/// A bundle that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// No specification.
    #[error("Failed to read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A specification that is none.
    #[error("{path} is no OCI runtime specification: {reason}")]
    Spec {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Annotations that contradict themselves.
    #[error(transparent)]
    Kind(#[from] KindError),
}

/// Reads the specification of the bundle in `folder`.
///
/// # Errors
/// [`BundleError`]
pub fn read_spec(folder: &Path) -> Result<Spec, BundleError> {
    let path = folder.join("config.json");
    let failed = |source| BundleError::Read { path: path.clone(), source };
    if fs::metadata(&path).map_err(failed)?.len() > MAX_SPEC_BYTES {
        return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, "more than 16 MiB")));
    }
    let text = fs::read(&path).map_err(failed)?;
    serde_json::from_slice(&text)
        .map_err(|error| BundleError::Spec { path, reason: error.to_string() })
}

/// What the container of `spec` is to its pod.
///
/// # Errors
/// [`KindError`]
pub fn kind_of(spec: &Spec) -> Result<Kind, KindError> {
    static NONE: std::sync::LazyLock<std::collections::HashMap<String, String>> =
        std::sync::LazyLock::new(Default::default);
    Kind::of(spec.annotations().as_ref().unwrap_or(&NONE))
}

/// Writes a small file as a whole: readers see the old text or the new one.
///
/// # Errors
/// The file's system.
pub fn write_whole(path: &Path, text: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    fs::write(&fresh, text)?;
    fs::rename(&fresh, path)
}
