//! Kata's configuration, read as Kata reads it: files, drop-ins, annotations, DAN files.
//!
//! ```text
//! configuration.toml, config.d/*.toml --load--> KataConfig --apply_annotations--> what a pod is
//! the pod's annotations ------------------------------^          `--pod_size--> its VM's size
//! DAN_CONF/SANDBOX.json --dan::load--> NICs that another plugin made
//! ```
//! Both dialects are read, that of Kata's Rust runtime and that of its Go runtime, in one file even.
//! What is known of them is one table ([`table()`]): it drives the parser and is printed as
//! `docs/kata-compat.md`, so the document cannot say other than what happens.
//!
//! # Bounds
//! Files up to 1 MiB, drop-ins and DAN files alike. Nothing but the files asked for is read, besides
//! the number of processors and the size of the memory that defaults depend on ([`Host`]).
//!
//! # Errors
//! A setting that changes what a pod is, and that slipway cannot give it, is refused: see
//! [`ConfigError::Refused`]. A key that nobody knows is a [`Warning`]. Bad input changes nothing.

mod annotations;
pub mod dan;
mod error;
mod host;
mod judge;
mod keys;
mod load;
mod model;
mod size;
mod table;
mod value;

pub use annotations::{apply_annotations, apply_annotations_on};
pub use error::{ConfigError, Place, Warning};
pub use host::Host;
pub use keys::{Dialect, Standing};
pub use load::{DEFAULT_FILES, FILE_VARIABLE, Loaded, load, parse};
pub use model::{
    Acceleration, AgentChannel, AgentConfig, CacheMode, Hypervisor, HypervisorKind,
    InternetworkingModel, KataConfig, LogLevel, MachineType, RootfsType, RuntimeConfig, SharedFs,
    SlipwayConfig,
};
pub use size::{Limits, PodSize, pod_size, size_for};
pub use table::{Entry, markdown, table};
