//! What the kernel leaves to its first process: file systems, settings, the command line.

use std::fs;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};

use crate::modules;

/// Moves to a root of its own, as `switch_root` does: containers leave their parent's root by
/// `pivot_root`, which cannot be done from the kernel's first one (pivot_root(2)). The modules
/// come along, and the agent's program needs no name to be run again.
pub fn leave_initramfs() -> Result<()> {
    const ROOT: &str = "/newroot";
    let none = None::<&str>;
    let failed = || format!("Failed to make the root file system on {ROOT}");
    fs::create_dir_all(ROOT).with_context(failed)?;
    mount(Some("root"), ROOT, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
        .with_context(failed)?;
    for folder in ["dev", "etc", "modules", "proc", "run", "sys", "tmp"] {
        fs::create_dir(Path::new(ROOT).join(folder)).with_context(failed)?;
    }
    let modules = format!("{ROOT}{}", modules::FOLDER);
    mount(Some(modules::FOLDER), modules.as_str(), none, MsFlags::MS_BIND, none)
        .context("Failed to take the modules along")?;
    chdir(ROOT)?;
    mount(Some(ROOT), "/", none, MsFlags::MS_MOVE, none)
        .with_context(|| format!("Failed to move {ROOT} to /"))?;
    chroot(".").context("Failed to change the root")?;
    chdir("/")?;
    Ok(())
}

/// What is mounted, in this order: type, place, options.
const FILE_SYSTEMS: [(&str, &str, &str); 6] = [
    ("proc", "/proc", ""),
    ("sysfs", "/sys", ""),
    ("devtmpfs", "/dev", ""),
    ("devpts", "/dev/pts", "mode=620,ptmxmode=666"),
    ("tmpfs", "/dev/shm", "mode=1777"),
    ("cgroup2", "/sys/fs/cgroup", ""),
];

/// Mounts what the kernel has to show, and what containers are made of.
pub fn mount_filesystems() -> Result<()> {
    for (kind, target, options) in FILE_SYSTEMS {
        let failed = || format!("Failed to mount {kind} on {target}");
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        if target.starts_with("/dev/") {
            fs::create_dir_all(target).with_context(failed)?;
        }
        let options = (!options.is_empty()).then_some(options);
        mount(Some(kind), target, Some(kind), flags, options).with_context(failed)?;
    }
    Ok(())
}

/// Drivers of devices that only some machines have, by virtio device type (virtio 1.3, 5).
const DRIVERS: [(&str, &str); 2] = [("0x0004", "virtio_rng"), ("0x0013", VSOCK_DRIVER)];
const VSOCK_DRIVER: &str = "vmw_vsock_virtio_transport";

/// Loads the drivers of the devices that are there. What is mounted on demand (virtio-fs, block
/// devices) brings its driver when it is mounted.
pub fn load_drivers() -> Result<()> {
    const DEVICES: &str = "/sys/bus/virtio/devices";
    for device in fs::read_dir(DEVICES).with_context(|| format!("Failed to list {DEVICES}"))? {
        let path = device?.path().join("device");
        let kind = fs::read_to_string(&path)
            .with_context(|| format!("Failed to read {}", path.display()))?;
        if let Some((_, driver)) = DRIVERS.iter().find(|(number, _)| *number == kind.trim_end()) {
            modules::load(driver)?;
        }
    }
    Ok(())
}

/// Keeps a NIC from speaking IPv6 until it is given an IPv6 address: no router solicitations and
/// multicast reports of its own. To be called before there is a NIC.
pub fn keep_ipv6_silent() -> Result<()> {
    const SETTING: &str = "/proc/sys/net/ipv6/conf/default/disable_ipv6";
    match fs::write(SETTING, "1") {
        // A kernel without IPv6 is silent.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        outcome => outcome.with_context(|| format!("Failed to write {SETTING}")),
    }
}

/// Settings of the kernel, below `/proc/sys`.
const SYSCTLS: [(&str, &str); 2] = [
    // Who may open ICMP datagram sockets is a range of group ids, empty at first (icmp(7)).
    ("net/ipv4/ping_group_range", "0 0"),
    // The default holds three of the largest datagrams: a receiver that is slow because it is
    // emulated would lose what the network under test has delivered.
    ("net/core/rmem_default", "8388608"),
];

/// Sets the kernel up for the tests' traffic.
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
    /// `agent.server_addr=vsock://-1:1024`: where to serve the Kata agent protocol. The other
    /// `agent.` words of Kata's agents mean nothing here.
    pub server_address: Option<String>,
}

impl Settings {
    /// Reads the words that begin with `slipway.` and leaves the others to the kernel.
    ///
    /// # Errors
    /// An unknown `slipway.` word, or a value that is not what its word needs.
    pub fn parse(command_line: &str) -> Result<Self> {
        let mut settings = Self::default();
        for word in command_line.split_ascii_whitespace() {
            if let Some(address) = word.strip_prefix("agent.server_addr=") {
                settings.server_address = Some(address.to_owned());
            }
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
        assert_eq!(settings, Settings { mtu: Some(9000), ..Settings::default() });
    }

    #[test]
    fn address_and_prefix_are_read() {
        let settings = Settings::parse("slipway.ip=192.168.1.2/24").unwrap();
        assert_eq!(settings.ip, Some((Ipv4Addr::new(192, 168, 1, 2), 24)));
    }

    #[test]
    fn the_address_to_serve_on_is_read_as_katas_agents_read_it() {
        let settings = Settings::parse("agent.log=debug agent.server_addr=vsock://-1:7").unwrap();
        assert_eq!(settings.server_address.as_deref(), Some("vsock://-1:7"));
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
