//! Where things are in the guest, and which names may become paths.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::error::Refusal;

/// Bundles, one folder per container, and everything else below that Kata's runtimes name.
pub const KATA: &str = "/run/kata-containers";
/// What the host shares, and the only place for copied files.
pub const SHARED: &str = "/run/kata-containers/shared/containers";
/// What belongs to the sandbox.
pub const SANDBOX: &str = "/run/kata-containers/sandbox";
/// What no one but the agent looks at: libcontainer's state, sockets, namespaces.
pub const OWN: &str = "/run/slipway-agent";

/// The bundle of a container: `config.json` and `rootfs`.
pub fn bundle(container: &str) -> PathBuf {
    Path::new(KATA).join(container)
}

/// Where libcontainer keeps its state of all containers.
pub fn state() -> PathBuf {
    Path::new(OWN).join("state")
}

/// Checks a name that becomes part of a path, by Kata's rule.
///
/// # Errors
/// A name that is shorter than two characters, begins with neither letter nor digit, or holds
/// anything but letters, digits, `.`, `-` and `_`; also one of more than 64 characters: the
/// paths of sockets are short.
pub fn check_id(kind: &str, id: &str) -> Result<()> {
    let is_inner = |c: u8| c.is_ascii_alphanumeric() || b".-_".contains(&c);
    let is_good = matches!(id.as_bytes(), [first, rest @ ..]
        if first.is_ascii_alphanumeric()
            && (1..64).contains(&rest.len())
            && rest.iter().all(|&c| is_inner(c)));
    if is_good {
        return Ok(());
    }
    Err(Refusal::invalid(format!(
        "The {kind} '{}' must be 2 to 64 letters, digits, '.', '-' or '_', beginning with a \
         letter or digit",
        id.chars().take(80).collect::<String>().escape_debug()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_kata_allows_are_allowed() {
        for id in ["ab", "a.b-c_d", "0123456789abcdef", &"a".repeat(64)] {
            check_id("container", id).unwrap();
        }
    }

    #[test]
    fn names_that_could_leave_their_folder_are_refused() {
        for id in ["", "a", ".", "..", "../x", "a/b", "-ab", "a b", "ä1", "a\0b", &"a".repeat(65)]
        {
            assert!(check_id("container", id).is_err(), "{id}");
        }
    }
}
