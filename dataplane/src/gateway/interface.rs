//! The tap interface: made, given its addresses and brought up, all by ioctl.
//!
//! There is no netlink socket of ours: the calls are those of netdevice(7) and of the kernel's
//! `tuntap` documentation. They are few, happen once at start, and each failure names the interface
//! and the value.
//!
//! # Bounds
//! The interface lives as long as the descriptor of its [`Tap`] (no TUNSETPERSIST): however slipwayd
//! ends, the kernel takes it away.
#![expect(unsafe_code, reason = "an ioctl takes a pointer whose meaning is known by its number")]

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use ipnet::IpNet;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use slipway_api::TUN_DEVICE;

use crate::vring::VNET_HDR;
use crate::wire::Mac;

/// What every kernel since 2.6 leaves to who reads a tap: checksums and TCP segmentation.
const OFFLOADS: u32 = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
/// UDP segmentation, which Linux 6.2 added. Both or none.
const USO: u32 = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// Why the interface could not be made; nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum InterfaceError {
    /// The kernel has no taps, or not for us.
    #[error("Failed to open {TUN_DEVICE}; load the kernel module tun, or give slipwayd the device")]
    Open(#[source] io::Error),
    /// There is an interface of that name.
    #[error(
        "There is an interface {name} already, and it is not this slipwayd's: stop what made it, \
         remove it with `ip link delete {name}`, or set gateway.interface to another name"
    )]
    Exists {
        /// Its name.
        name: String,
    },
    /// Not allowed.
    #[error(
        "Failed to make the interface {name}: it takes CAP_NET_ADMIN; run slipwayd with that \
         capability, or set gateway.enabled = false"
    )]
    Forbidden {
        /// Its name.
        name: String,
    },
    /// A step of the set-up.
    #[error("Failed to set {what} of the interface {name} to {value}")]
    Step {
        /// The interface.
        name: String,
        /// Which property.
        what: &'static str,
        /// The value wanted.
        value: String,
        /// Why not.
        source: io::Error,
    },
}

/// `struct ifreq` (netdevice(7)): a name of 16 bytes, and 24 that mean what the call says.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct IfReq([u8; IfReq::BYTES]);

impl IfReq {
    const BYTES: usize = 40;
    const NAME: usize = libc::IFNAMSIZ;

    /// For `name`, which has at most 15 bytes, with `value` behind it.
    fn new(name: &str, value: &[u8]) -> Self {
        let mut bytes = [0; Self::BYTES];
        let n = name.len().min(Self::NAME - 1);
        bytes[..n].copy_from_slice(&name.as_bytes()[..n]);
        bytes[Self::NAME..Self::NAME + value.len()].copy_from_slice(value);
        Self(bytes)
    }

    /// The value as a number.
    fn int(&self) -> i32 {
        let at = &self.0[Self::NAME..];
        i32::from_ne_bytes([at[0], at[1], at[2], at[3]])
    }
}

const _: () = assert!(size_of::<IfReq>() == size_of::<libc::ifreq>());

/// An ioctl whose argument is a `struct ifreq`.
fn ioctl_ifreq(fd: impl AsFd, request: libc::c_ulong, ifreq: &mut IfReq) -> Result<(), Errno> {
    let fd = fd.as_fd().as_raw_fd();
    let at: *mut IfReq = ifreq;
    // SAFETY: the callers pass requests of netdevice(7) and TUNSETIFF, which read and write at most
    // a `struct ifreq`; `ifreq` is one by size (checked above) and alignment.
    let result = unsafe { libc::ioctl(fd, request as libc::Ioctl, at) };
    Errno::result(result).map(drop)
}

/// A tap whose descriptor does not block. Its interface goes with the last clone of the descriptor.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
    offloads: u32,
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Tap {
    /// Makes the interface `name`, which must not exist. It is down and has no address.
    ///
    /// # Errors
    /// [`InterfaceError`].
    pub fn create(name: &str) -> Result<Self, InterfaceError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
        let file = options.open(TUN_DEVICE).map_err(InterfaceError::Open)?;
        // EXCL: without it a tap that somebody left would be taken over with all its settings.
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
        let mut ifreq = IfReq::new(name, &(flags as u16).to_ne_bytes());
        let name = name.to_owned();
        match ioctl_ifreq(&file, libc::TUNSETIFF, &mut ifreq) {
            Ok(()) => {}
            Err(Errno::EBUSY) => return Err(InterfaceError::Exists { name }),
            Err(Errno::EPERM) => return Err(InterfaceError::Forbidden { name }),
            Err(errno) => return Err(failed(&name, "the kind", "tap", errno)),
        }
        Self::over(file, name)
    }

    /// The queue that `file` is of the interface `name`: of a tap with virtio-net headers, or of a
    /// macvtap. It must not block.
    ///
    /// # Errors
    /// [`InterfaceError::Step`].
    pub fn over(file: File, name: String) -> Result<Self, InterfaceError> {
        let mut tap = Self { file, name, offloads: 0 };
        tap.set_int(libc::TUNSETVNETHDRSZ, "the virtio-net header length", VNET_HDR as i32)?;
        tap.set_int(libc::TUNSETVNETLE, "little-endian headers", 1)?;
        tap.offloads = match tap.set_offloads(OFFLOADS | USO) {
            Ok(()) => OFFLOADS | USO,
            Err(_before_6_2) => {
                tap.set_offloads(OFFLOADS)
                    .map_err(|errno| failed(&tap.name, "the offloads", OFFLOADS, errno))?;
                OFFLOADS
            }
        };
        Ok(tap)
    }

    /// One that any descriptor plays: a socket that keeps messages apart, mostly.
    #[cfg(test)]
    pub(crate) fn played_by(fd: std::os::fd::OwnedFd) -> Self {
        Self { file: fd.into(), name: "played".to_owned(), offloads: 0 }
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the kernel segments UDP, and leaves it to us (Linux 6.2).
    pub fn has_uso(&self) -> bool {
        self.offloads & USO == USO
    }

    fn set_int(
        &self,
        request: libc::c_ulong,
        what: &'static str,
        value: i32,
    ) -> Result<(), InterfaceError> {
        let fd = self.file.as_raw_fd();
        // SAFETY: the callers pass tuntap requests that read one `int`.
        let result = unsafe { libc::ioctl(fd, request as libc::Ioctl, &raw const value) };
        Errno::result(result).map(drop).map_err(|errno| failed(&self.name, what, value, errno))
    }

    fn set_offloads(&self, offloads: u32) -> Result<(), Errno> {
        let fd = self.file.as_raw_fd();
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        let result = unsafe { libc::ioctl(fd, libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads)) };
        Errno::result(result).map(drop)
    }

    /// Gives the interface what it needs and brings it up; without `mac` it keeps the one that the kernel
    /// chose. Call it in the namespace of the interface. Order matters: an IPv4 address that is
    /// set while the interface is down makes no route for the prefix of its old class, and IPv6
    /// looks at its settings when the interface comes up.
    ///
    /// # Errors
    /// [`InterfaceError::Step`].
    pub fn configure(
        &self,
        mac: Option<Mac>,
        mtu: u16,
        addresses: &[IpNet],
    ) -> Result<(), InterfaceError> {
        let control = |family| {
            socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
                .map_err(|errno| failed(&self.name, "anything", "a socket", errno))
        };
        let inet = control(AddressFamily::Inet)?;
        let set = |request, what, value: &dyn fmt::Display, bytes: &[u8]| {
            ioctl_ifreq(&inet, request, &mut IfReq::new(&self.name, bytes))
                .map_err(|errno| failed(&self.name, what, value, errno))
        };
        if let Some(mac) = mac {
            let mut hardware = libc::ARPHRD_ETHER.to_ne_bytes().to_vec();
            hardware.extend_from_slice(&mac.0);
            set(libc::SIOCSIFHWADDR, "the MAC address", &mac, &hardware)?;
        }
        set(libc::SIOCSIFMTU, "the MTU", &mtu, &i32::from(mtu).to_ne_bytes())?;
        let has_ipv6 = addresses.iter().any(|net| matches!(net, IpNet::V6(_)));
        self.distrust(has_ipv6)?;
        for net in addresses {
            if let IpNet::V4(net) = net {
                let address = |address: Ipv4Addr| {
                    let mut bytes = (libc::AF_INET as u16).to_ne_bytes().to_vec();
                    bytes.extend_from_slice(&[0, 0]); // no port
                    bytes.extend_from_slice(&address.octets());
                    bytes
                };
                set(libc::SIOCSIFADDR, "the IPv4 address", net, &address(net.addr()))?;
                set(libc::SIOCSIFNETMASK, "the netmask", &net.netmask(), &address(net.netmask()))?;
            }
        }
        let flags = (libc::IFF_UP | libc::IFF_RUNNING) as u16;
        set(libc::SIOCSIFFLAGS, "the state", &"up", &flags.to_ne_bytes())?;
        if has_ipv6 {
            self.add_ipv6(&inet, &control(AddressFamily::Inet6)?, addresses)?;
        }
        Ok(())
    }

    fn add_ipv6(
        &self,
        inet: impl AsFd,
        inet6: &impl AsFd,
        addresses: &[IpNet],
    ) -> Result<(), InterfaceError> {
        let mut ifreq = IfReq::new(&self.name, &[]);
        ioctl_ifreq(inet, libc::SIOCGIFINDEX, &mut ifreq)
            .map_err(|errno| failed(&self.name, "an address", "(no index)", errno))?;
        for net in addresses {
            let IpNet::V6(v6) = net else { continue };
            let mut request = libc::in6_ifreq {
                ifr6_addr: libc::in6_addr { s6_addr: v6.addr().octets() },
                ifr6_prefixlen: v6.prefix_len().into(),
                ifr6_ifindex: ifreq.int(),
            };
            let fd = inet6.as_fd().as_raw_fd();
            let request_at: *mut libc::in6_ifreq = &raw mut request;
            // SAFETY: on an AF_INET6 socket, SIOCSIFADDR reads a `struct in6_ifreq`.
            let result = unsafe { libc::ioctl(fd, libc::SIOCSIFADDR as libc::Ioctl, request_at) };
            Errno::result(result)
                .map_err(|errno| failed(&self.name, "the IPv6 address", v6, errno))?;
        }
        Ok(())
    }

    /// Pods are behind the interface: none of them may tell the host what its routes are.
    fn distrust(&self, has_ipv6: bool) -> Result<(), InterfaceError> {
        let mut settings = vec![("ipv4", "accept_redirects", "0")];
        if has_ipv6 {
            // The address is ours by configuration; nobody is asked whether it is in use.
            let v6 = [("accept_ra", "0"), ("accept_redirects", "0"), ("accept_dad", "0")];
            settings.extend(v6.map(|(key, value)| ("ipv6", key, value)));
        }
        for (family, key, value) in settings {
            let file = PathBuf::from(format!("/proc/sys/net/{family}/conf/{}/{key}", self.name));
            std::fs::write(&file, value).map_err(|source| InterfaceError::Step {
                name: self.name.clone(),
                what: key,
                value: format!("{value} in {}", file.display()),
                source,
            })?;
        }
        if !has_ipv6 {
            // Then the host has no business with IPv6 here; a kernel without it has no such file.
            let off = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", self.name);
            match std::fs::write(&off, "1") {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    let value = format!("1 in {off}");
                    let (name, what) = (self.name.clone(), "disable_ipv6");
                    return Err(InterfaceError::Step { name, what, value, source: error });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn failed(
    name: &str,
    what: &'static str,
    value: impl fmt::Display,
    errno: Errno,
) -> InterfaceError {
    let (name, value) = (name.to_owned(), value.to_string());
    InterfaceError::Step { name, what, value, source: errno.into() }
}
