//! What the kernel leaves to its first process: file systems, settings, the command line.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use nix::mount::{MsFlags, mount};

/// Mounts `/proc`, `/sys` and `/dev`.
pub fn mount_filesystems() -> Result<()> {
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        mount(Some(kind), target, Some(kind), flags, None::<&str>)
            .with_context(|| format!("Failed to mount {kind} on {target}"))?;
    }
    Ok(())
}

/// Settings of the kernel, below `/proc/sys`.
const SYSCTLS: [(&str, &str); 2] = [
    // Who may open ICMP datagram sockets is a range of group ids, empty at first (icmp(7)).
    ("net/ipv4/ping_group_range", "0 0"),
    // The default holds three of the largest datagrams: a receiver that is slow because it is
    // emulated would lose what the network under test has delivered.
    ("net/core/rmem_default", "8388608"),
];

/// Sets the kernel up for what the agent does.
pub fn set_sysctls() -> Result<()> {
    for (name, value) in SYSCTLS {
        fs::write(Path::new("/proc/sys").join(name), value)
            .with_context(|| format!("Failed to set {name} to {value}"))?;
    }
    Ok(())
}

/// What the host tells the guest on the kernel's command line.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// `slipway.ip=192.168.1.2/24`: address and prefix length of the NIC.
    pub ip: Option<(Ipv4Addr, u8)>,
    /// `slipway.mtu=9000`: MTU of the NIC in bytes.
    pub mtu: Option<u32>,
}

impl Settings {
    /// Reads the words that begin with `slipway.` and leaves the others to the kernel.
    ///
    /// # Errors
    /// An unknown `slipway.` word, or a value that is not what its word needs.
    pub fn parse(command_line: &str) -> Result<Self> {
        let mut settings = Self::default();
        for word in command_line.split_ascii_whitespace() {
            let Some(setting) = word.strip_prefix("slipway.") else { continue };
            match setting.split_once('=') {
                Some(("ip", value)) => {
                    settings.ip = Some(parse_ip(value).with_context(|| {
                        format!("{word}: give an address and a prefix length, 192.168.1.2/24")
                    })?);
                }
                Some(("mtu", value)) => match value.parse() {
                    // 68 is the least any IPv4 link carries (RFC 791); 65,535 the most a
                    // virtio NIC can name (virtio 1.3, 5.1.4).
                    Ok(mtu @ 68..=65_535) => settings.mtu = Some(mtu),
                    _ => bail!("{word}: give an MTU from 68 to 65535"),
                },
                _ => bail!("{word}: no such setting; there are slipway.ip= and slipway.mtu="),
            }
        }
        Ok(settings)
    }
}

fn parse_ip(value: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, prefix) = value.split_once('/')?;
    let prefix = prefix.parse().ok().filter(|length| (1..=32).contains(length))?;
    Some((address.parse().ok()?, prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_kernel_are_passed_over() {
        let settings = Settings::parse("quiet console=ttyS0 slipway.mtu=9000\n").unwrap();
        assert_eq!(settings, Settings { ip: None, mtu: Some(9000) });
    }

    #[test]
    fn address_and_prefix_are_read() {
        let settings = Settings::parse("slipway.ip=192.168.1.2/24").unwrap();
        assert_eq!(settings.ip, Some((Ipv4Addr::new(192, 168, 1, 2), 24)));
    }

    #[test]
    fn what_is_no_setting_is_refused_by_name() {
        for word in [
            "slipway.ip=192.168.1.2",
            "slipway.ip=192.168.1.2/33",
            "slipway.ip=host/24",
            "slipway.mtu=67",
            "slipway.mtu=65536",
            "slipway.mtu",
            "slipway.gateway=1",
        ] {
            let error = Settings::parse(&format!("quiet {word}")).expect_err(word);
            assert!(format!("{error:#}").contains(word), "{error:#}");
        }
    }
}
