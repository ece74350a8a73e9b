//! TCP's congestion control, which each network namespace has its own choice of (tcp(7)).
//!
//! It decides more than who yields: a segment is no longer than what a flow's pacing rate sends in about a millisecond
//! (`tcp_tso_autosize`), and the pacing rate is the congestion control's.

use std::fs;

use anyhow::{Context as _, Result};

const CHOICE: &str = "/proc/sys/net/ipv4/tcp_congestion_control";
const ALLOWED: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";

/// What connections of the calling thread's network namespace have.
///
/// # Errors
/// The kernel does not tell.
pub fn preset() -> Result<String> {
    let name = fs::read_to_string(CHOICE).with_context(|| format!("Failed to read {CHOICE}"))?;
    Ok(name.trim().to_owned())
}

/// Chooses it for new connections of the calling thread's network namespace.
///
/// # Errors
/// There is none of that name, or not for namespaces; the error names all that there are.
pub fn choose(name: &str) -> Result<()> {
    fs::write(CHOICE, name).with_context(|| {
        let all = fs::read_to_string(ALLOWED).unwrap_or_default();
        format!("Namespaces have no congestion control {name:?}; they have {} (net.ipv4.tcp_allowed_congestion_control)", all.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_the_kernel_has_not_is_refused_by_name_and_others_are_named() {
        let error = choose("no-such-control").unwrap_err().to_string();
        assert!(error.contains("no-such-control") && error.contains("reno"), "{error}");
        assert!(!preset().unwrap().is_empty());
    }
}
