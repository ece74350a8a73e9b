//! Container endpoints: kernel TCP and UDP in network namespaces, pairs of a client and a server.

mod figures;

pub use figures::EXPERIMENTS;
