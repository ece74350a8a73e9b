//! Pods reach the world in the name of the host: one nftables table, `inet slipway`.
//!
//! The rules are handed to nft(8) once, as one transaction that replaces whatever table of that name
//! there was. The kernel forwards; slipwayd has nothing to do with a packet here.
//!
//! ```text
//! slipwayd --pipe--> guard: sh, waits for the end of the pipe
//!    | ends, however             '--> nft delete table inet handle N
//! ```
//! Nothing that slipwayd does when it ends could be relied on, after `kill -9` or once it may not use
//! netlink any more. So a small process waits for its end. It deletes the table by the handle it was made with:
//! that of a slipwayd that started meanwhile has another.
//!
//! # Bounds
//! What is set up is not watched: who deletes the table, or has rules of their own that drop what is
//! forwarded, has the last word.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use ipnet::IpNet;

/// What the guard runs; `$1` is the handle of the table. What ends slipwayd may be meant for all of
/// its processes, so the guard does not heed it.
const GUARD: &str =
    r#"trap "" HUP INT TERM; cat >/dev/null; exec nft delete table inet handle "$1""#;

/// Why pods are not masqueraded; nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum MasqueradeError {
    /// nft(8) could not be run.
    #[error(
        "Failed to run nft for gateway.masquerade = \"nftables\"; install the package nftables, \
         or set it to \"off\""
    )]
    NoNft(#[source] io::Error),
    /// nft(8) did not do it.
    #[error(
        "nft did not take the rules of gateway.masquerade = \"nftables\": {said}; slipwayd needs \
         CAP_NET_ADMIN and a kernel with nf_tables, nft_masq and nft_nat, or set it to \"off\""
    )]
    Refused {
        /// What it said.
        said: String,
    },
    /// No process that waits for our end.
    #[error("Failed to start sh, which removes the rules when slipwayd ends")]
    NoGuard(#[source] io::Error),
    /// The kernel does not forward.
    #[error("Failed to write 1 to {}, so that the host forwards for pods", .file.display())]
    Forwarding {
        /// The setting.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Rules in force; they go when this is dropped, and when the process ends.
#[derive(Debug)]
pub struct Masquerade {
    guard: Child,
}

impl Masquerade {
    /// Masquerades what comes from `networks` and leaves the host by another interface than
    /// `interface`, and has the host forward.
    ///
    /// # Errors
    /// [`MasqueradeError`].
    pub fn start(interface: &str, networks: &[IpNet]) -> Result<Self, MasqueradeError> {
        let output = nft(&rules(interface, networks)).map_err(MasqueradeError::NoNft)?;
        let told = String::from_utf8_lossy(&output.stdout);
        let handle = handle_in(&told).filter(|_| output.status.success());
        let Some(handle) = handle else {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.lines().next().unwrap_or("it said nothing").to_owned();
            return Err(MasqueradeError::Refused { said });
        };
        let guard = Command::new("sh")
            .args(["-c", GUARD, "slipway-masquerade", &handle.to_string()])
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn();
        let masquerade = match guard {
            Ok(guard) => Self { guard },
            Err(error) => {
                // Best effort: the error to tell is that of the guard.
                let _ = nft(&format!("delete table inet handle {handle}\n"));
                return Err(MasqueradeError::NoGuard(error));
            }
        };
        forward(networks)?;
        Ok(masquerade)
    }
}

impl Drop for Masquerade {
    fn drop(&mut self) {
        // The end of its pipe is what it waits for.
        drop(self.guard.stdin.take());
        match self.guard.wait() {
            Ok(status) if status.success() => {}
            Ok(status) => tracing::warn!(%status, "the table inet slipway could not be removed"),
            Err(error) => tracing::warn!(%error, "the table inet slipway may still be there"),
        }
    }
}

/// The whole table; `add` before `delete`, so that there is one to delete.
fn rules(interface: &str, networks: &[IpNet]) -> String {
    let rule = |network: &IpNet| {
        let family = if network.addr().is_ipv4() { "ip" } else { "ip6" };
        format!("    {family} saddr {} oifname != \"{interface}\" masquerade\n", network.trunc())
    };
    let rules: String = networks.iter().map(rule).collect();
    format!(
        "add table inet slipway\n\
         delete table inet slipway\n\
         table inet slipway {{\n  chain postrouting {{\n    \
         type nat hook postrouting priority srcnat; policy accept;\n\
         {rules}  }}\n}}\n"
    )
}

/// Runs nft(8) with `script` as its input; it says what it made, with handles.
fn nft(script: &str) -> io::Result<Output> {
    let mut child = Command::new("nft")
        .args(["--echo", "--handle", "--file", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read its input has something to say about it.
        let _ = stdin.write_all(script.as_bytes());
    }
    child.wait_with_output()
}

/// The handle of the table that nft(8) says it made.
fn handle_in(told: &str) -> Option<u64> {
    let made = told.lines().rev().find_map(|line| line.strip_prefix("add table inet slipway"))?;
    made.trim().strip_prefix("# handle ")?.trim().parse().ok()
}

fn forward(networks: &[IpNet]) -> Result<(), MasqueradeError> {
    let settings = [
        (true, "/proc/sys/net/ipv4/ip_forward"),
        // A host that forwards IPv6 takes no router advertisements, unless accept_ra is 2.
        (false, "/proc/sys/net/ipv6/conf/all/forwarding"),
    ];
    for (is_ipv4, file) in settings {
        let file = PathBuf::from(file);
        if networks.iter().any(|network| network.addr().is_ipv4() == is_ipv4) {
            let written = std::fs::write(&file, "1");
            written.map_err(|source| MasqueradeError::Forwarding { file, source })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_name_every_network_and_replace_the_table() {
        let networks = ["10.88.0.1/16", "fd88::1/64"].map(|net| net.parse().expect("a network"));
        assert_eq!(
            rules("slipway0", &networks),
            "add table inet slipway\n\
             delete table inet slipway\n\
             table inet slipway {\n\
             \x20 chain postrouting {\n\
             \x20   type nat hook postrouting priority srcnat; policy accept;\n\
             \x20   ip saddr 10.88.0.0/16 oifname != \"slipway0\" masquerade\n\
             \x20   ip6 saddr fd88::/64 oifname != \"slipway0\" masquerade\n\
             \x20 }\n\
             }\n"
        );
    }

    #[test]
    fn the_handle_is_that_of_the_table_made_last() {
        let told = "add table inet slipway # handle 3\n\
                    delete table inet slipway # handle 3\n\
                    add table inet slipway # handle 4\n\
                    add rule inet slipway postrouting ip saddr 10.0.0.0/8 masquerade # handle 2\n\
                    # new generation 4 by process 77 (nft)\n";
        assert_eq!(handle_in(told), Some(4));
        assert_eq!(handle_in("add table inet slipway\n"), None);
        assert_eq!(handle_in(""), None);
    }
}
