//! Brings up an interface over rtnetlink (rtnetlink(7)): this is inside the guest, whose kernel
//! nobody else waits for.
//!
//! Two kinds of message are all there is to send, so they are written here, byte by byte, rather
//! than by a library ten times the size of the agent. Each asks for an acknowledgement.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

/// Length of `struct nlmsghdr` in bytes (netlink(7)).
const HEADER: usize = 16;

/// Sets the interface up and, if they are given, its MTU and address.
pub fn configure(name: &str, mtu: Option<u32>, ip: Option<(Ipv4Addr, u8)>) -> Result<()> {
    let index = if_nametoindex(name).with_context(|| format!("There is no interface {name}"))?;
    let netlink = Netlink::open().context("Failed to open an rtnetlink socket")?;
    netlink
        .request(libc::RTM_NEWLINK, 0, &link_up(index, mtu))
        .with_context(|| format!("Failed to set {name} up with MTU {mtu:?}"))?;
    if let Some((address, prefix)) = ip {
        let flags = (libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16;
        netlink
            .request(libc::RTM_NEWADDR, flags, &new_address(index, address, prefix))
            .with_context(|| format!("Failed to give {name} the address {address}/{prefix}"))?;
    }
    Ok(())
}

struct Netlink(OwnedFd);

impl Netlink {
    fn open() -> Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let protocol = SockProtocol::NetlinkRoute;
        Ok(Self(socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?))
    }

    /// Sends one message and waits for its acknowledgement.
    fn request(&self, kind: u16, flags: u16, body: &[u8]) -> Result<()> {
        let message = with_header(kind, flags, body);
        sendto(self.0.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut reply = [0; 512];
        let length = recv(self.0.as_raw_fd(), &mut reply, MsgFlags::empty())?;
        acknowledged(&reply[..length])
    }
}

fn with_header(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let flags = flags | (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let mut message = Vec::with_capacity(HEADER + body.len());
    // A header and two attributes: the length fits.
    message.extend(((HEADER + body.len()) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]); // sequence number and port: one question at a time needs neither
    message.extend(body);
    message
}

/// An acknowledgement is an NLMSG_ERROR whose error is 0.
fn acknowledged(reply: &[u8]) -> Result<()> {
    let kind = reply.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let code = reply.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, code) {
        (Some(kind), Some(0)) if i32::from(kind) == libc::NLMSG_ERROR => Ok(()),
        (Some(kind), Some(code)) if i32::from(kind) == libc::NLMSG_ERROR => {
            Err(Errno::from_raw(code.wrapping_neg()).into())
        }
        _ => bail!("The kernel's reply is no acknowledgement: {reply:02x?}"),
    }
}

/// `struct ifinfomsg` with IFF_UP, then the MTU.
fn link_up(index: u32, mtu: Option<u32>) -> Vec<u8> {
    let up = libc::IFF_UP as u32;
    let mut body = vec![0; 4]; // family, padding, device type
    body.extend(index.to_ne_bytes());
    body.extend(up.to_ne_bytes()); // flags
    body.extend(up.to_ne_bytes()); // which of them change
    if let Some(mtu) = mtu {
        attribute(&mut body, libc::IFLA_MTU, mtu.to_ne_bytes());
    }
    body
}

/// `struct ifaddrmsg`, then the address as both local and peer.
fn new_address(index: u32, address: Ipv4Addr, prefix: u8) -> Vec<u8> {
    let mut body = vec![libc::AF_INET as u8, prefix, 0, libc::RT_SCOPE_UNIVERSE];
    body.extend(index.to_ne_bytes());
    attribute(&mut body, libc::IFA_LOCAL, address.octets());
    attribute(&mut body, libc::IFA_ADDRESS, address.octets());
    body
}

/// Appends `struct rtattr` and its four bytes of value, which need no padding.
fn attribute(body: &mut Vec<u8>, kind: u16, value: [u8; 4]) {
    body.extend(8u16.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_message_names_its_length_kind_index_and_mtu() {
        let message = with_header(libc::RTM_NEWLINK, 0, &link_up(2, Some(9000)));
        assert_eq!(message.len(), 40);
        assert_eq!(message[..4], 40u32.to_ne_bytes());
        assert_eq!(message[4..6], 16u16.to_ne_bytes());
        assert_eq!(message[6..8], 5u16.to_ne_bytes());
        assert_eq!(message[20..24], 2u32.to_ne_bytes());
        assert_eq!(message[32..36], [8u16.to_ne_bytes(), 4u16.to_ne_bytes()].concat());
        assert_eq!(message[36..], 9000u32.to_ne_bytes());
    }

    #[test]
    fn an_acknowledgement_is_an_error_of_zero() {
        let mut reply = [0; 36];
        reply[4..6].copy_from_slice(&2u16.to_ne_bytes());
        assert!(acknowledged(&reply).is_ok());
        reply[16..20].copy_from_slice(&(-17i32).to_ne_bytes());
        let error = acknowledged(&reply).unwrap_err();
        assert_eq!(error.downcast_ref(), Some(&Errno::EEXIST));
    }

    #[test]
    fn a_reply_cut_short_is_no_acknowledgement() {
        assert!(acknowledged(&[0; 7]).is_err());
    }
}
