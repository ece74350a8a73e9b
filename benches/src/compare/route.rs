//! Messages to rtnetlink (rtnetlink(7)), one after the other, each acknowledged.
//!
//! The arms that the kernel serves are made by these and by nothing else: what they cost is the kernel's
//! cost, not that of a program that parses and prints. A message is written into one buffer;
//! attributes nest by patching their length when they end.
//!
//! # Threads
//! A socket talks to the network namespace that its thread was in when it was opened.

use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

/// Length of `struct nlmsghdr` in bytes (netlink(7)).
const HEADER: usize = 16;

// Not in libc, from linux/if_link.h, linux/veth.h, linux/pkt_cls.h and linux/tc_act/tc_mirred.h.
const VETH_INFO_PEER: u16 = 1;
const IFLA_MACVLAN_MODE: u16 = 1;
const MACVLAN_MODE_BRIDGE: u32 = 4;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_GROUP: u16 = 2;
const IFLA_VXLAN_PORT: u16 = 15;
/// As IANA has it (RFC 7348); the kernel's own preset is older.
const VXLAN_PORT: u16 = 4789;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TCA_U32_TERMINAL: u8 = 1;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
const TCA_EGRESS_REDIR: u32 = 1;
const TCA_INGRESS_REDIR: u32 = 3;
const TC_ACT_STOLEN: u32 = 4;
const TC_H_INGRESS: u32 = 0xffff_fff1;
const INGRESS_HANDLE: u32 = 0xffff_0000;
/// Where the destination is in an IPv4 header, in bytes.
const IPV4_DESTINATION: u32 = 16;

/// A message that is being written.
#[derive(Debug)]
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: i32) -> Self {
        let flags = flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags as u16).to_ne_bytes());
        Self(bytes)
    }

    /// `struct ifinfomsg`.
    fn link_header(&mut self, index: u32, up: bool) {
        let flags = if up { libc::IFF_UP as u32 } else { 0 };
        self.0.extend([0; 4]);
        self.0.extend(index.to_ne_bytes());
        self.0.extend(flags.to_ne_bytes());
        self.0.extend(flags.to_ne_bytes()); // which of them change
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        // A few dozen bytes at most.
        self.0.extend((4 + value.len() as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn text(&mut self, kind: u16, text: &str) {
        let mut value = text.as_bytes().to_vec();
        value.push(0);
        self.attribute(kind, &value);
    }

    fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let at = self.0.len();
        self.attribute(kind, &[]);
        fill(self);
        let length = (self.0.len() - at) as u16;
        self.0[at..at + 2].copy_from_slice(&length.to_ne_bytes());
    }

    fn finish(mut self) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// What a new device is to be.
#[derive(Debug, Clone, Copy)]
pub struct NewLink<'a> {
    /// As the kernel names kinds: `bridge`, `macvlan`, `ipvtap`.
    pub kind: &'a str,
    /// The device's name.
    pub name: &'a str,
    /// Its number, where it must differ from those in other namespaces.
    pub index: Option<u32>,
    /// The device below it.
    pub parent: Option<u32>,
    /// The namespace that it is made in; `None`: that of the socket.
    pub netns: Option<BorrowedFd<'a>>,
}

/// Which packets a filter takes.
#[derive(Debug, Clone, Copy)]
pub enum Match {
    /// All.
    Any,
    /// Those to an address.
    To([u8; 4]),
}

/// How a redirected packet meets the device.
#[derive(Debug, Clone, Copy)]
pub enum Way {
    /// It is sent there.
    Out,
    /// As if it was received there.
    In,
}

/// A socket.
#[derive(Debug)]
pub struct Route(OwnedFd);

impl Route {
    /// To the network namespace of the calling thread.
    ///
    /// # Errors
    /// There is none to be had.
    pub fn open() -> Result<Self> {
        let protocol = SockProtocol::NetlinkRoute;
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol);
        Ok(Self(fd.context("Failed to open an rtnetlink socket")?))
    }

    /// Makes a device. It is down.
    ///
    /// # Errors
    /// The kernel's word, e.g. `EOPNOTSUPP` for a kind that it does not have.
    pub fn add(&self, link: &NewLink<'_>) -> Result<(), Errno> {
        let mut message = new_link(link.index.unwrap_or(0));
        message.text(libc::IFLA_IFNAME, link.name);
        if let Some(parent) = link.parent {
            message.attribute(libc::IFLA_LINK, &parent.to_ne_bytes());
        }
        if let Some(netns) = link.netns {
            message.attribute(libc::IFLA_NET_NS_FD, &netns.as_raw_fd().to_ne_bytes());
        }
        message.nested(libc::IFLA_LINKINFO, |info| {
            info.text(libc::IFLA_INFO_KIND, link.kind);
            if link.kind.starts_with("macv") {
                info.nested(libc::IFLA_INFO_DATA, |data| {
                    data.attribute(IFLA_MACVLAN_MODE, &MACVLAN_MODE_BRIDGE.to_ne_bytes());
                });
            }
        });
        self.request(message)
    }

    /// Makes a pair: `name` here, below `bridge` if there is one, up; `peer` in `netns`, down.
    ///
    /// # Errors
    /// The kernel's word.
    pub fn add_veth(
        &self,
        name: &str,
        bridge: Option<u32>,
        peer: &str,
        netns: Option<BorrowedFd<'_>>,
    ) -> Result<(), Errno> {
        let mut message = new_link(0);
        message.text(libc::IFLA_IFNAME, name);
        message.nested(libc::IFLA_LINKINFO, |info| {
            info.text(libc::IFLA_INFO_KIND, "veth");
            info.nested(libc::IFLA_INFO_DATA, |data| {
                data.nested(VETH_INFO_PEER, |end| {
                    end.link_header(0, false);
                    end.text(libc::IFLA_IFNAME, peer);
                    if let Some(netns) = netns {
                        end.attribute(libc::IFLA_NET_NS_FD, &netns.as_raw_fd().to_ne_bytes());
                    }
                });
            });
        });
        self.request(message)?;
        let mut up = Message::new(libc::RTM_NEWLINK, 0);
        up.link_header(0, true);
        up.text(libc::IFLA_IFNAME, name);
        if let Some(bridge) = bridge {
            up.attribute(libc::IFLA_MASTER, &bridge.to_ne_bytes());
        }
        self.request(up)
    }

    /// Makes one end of a tunnel to `remote`: below `bridge`, up.
    ///
    /// # Errors
    /// The kernel's word.
    pub fn add_vxlan(
        &self,
        name: &str,
        id: u32,
        remote: [u8; 4],
        bridge: u32,
    ) -> Result<(), Errno> {
        let mut message = new_link(0);
        message.text(libc::IFLA_IFNAME, name);
        message.nested(libc::IFLA_LINKINFO, |info| {
            info.text(libc::IFLA_INFO_KIND, "vxlan");
            info.nested(libc::IFLA_INFO_DATA, |data| {
                data.attribute(IFLA_VXLAN_ID, &id.to_ne_bytes());
                data.attribute(IFLA_VXLAN_GROUP, &remote);
                data.attribute(IFLA_VXLAN_PORT, &VXLAN_PORT.to_be_bytes());
            });
        });
        self.request(message)?;
        self.enslave(name, bridge)?;
        self.up(name)
    }

    /// Sets how long a packet a device takes, in bytes.
    ///
    /// # Errors
    /// The kernel's word.
    pub fn set_mtu(&self, name: &str, mtu: u32) -> Result<(), Errno> {
        let mut message = Message::new(libc::RTM_NEWLINK, 0);
        message.link_header(0, true);
        message.text(libc::IFLA_IFNAME, name);
        message.attribute(libc::IFLA_MTU, &mtu.to_ne_bytes());
        self.request(message)
    }

    /// Sets a device up.
    ///
    /// # Errors
    /// The kernel's word.
    pub fn up(&self, name: &str) -> Result<(), Errno> {
        let mut message = Message::new(libc::RTM_NEWLINK, 0);
        message.link_header(0, true);
        message.text(libc::IFLA_IFNAME, name);
        self.request(message)
    }

    /// Puts a device below a bridge.
    ///
    /// # Errors
    /// The kernel's word.
    pub fn enslave(&self, name: &str, bridge: u32) -> Result<(), Errno> {
        let mut message = Message::new(libc::RTM_NEWLINK, 0);
        message.link_header(0, false);
        message.text(libc::IFLA_IFNAME, name);
        message.attribute(libc::IFLA_MASTER, &bridge.to_ne_bytes());
        self.request(message)
    }

    /// Gives a device a hardware address.
    ///
    /// # Errors
    /// The kernel's word.
    pub fn set_mac(&self, name: &str, mac: [u8; 6]) -> Result<(), Errno> {
        let mut message = Message::new(libc::RTM_NEWLINK, 0);
        message.link_header(0, false);
        message.text(libc::IFLA_IFNAME, name);
        message.attribute(libc::IFLA_ADDRESS, &mac);
        self.request(message)
    }

    /// Removes a device.
    ///
    /// # Errors
    /// The kernel's word.
    pub fn delete(&self, name: &str) -> Result<(), Errno> {
        let mut message = Message::new(libc::RTM_DELLINK, 0);
        message.link_header(0, false);
        message.text(libc::IFLA_IFNAME, name);
        self.request(message)
    }

    /// Gives a device an address.
    ///
    /// # Errors
    /// The kernel's word.
    pub fn address(&self, index: u32, address: [u8; 4], prefix: u8) -> Result<(), Errno> {
        let mut message = Message::new(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        message.0.extend([libc::AF_INET as u8, prefix, 0, libc::RT_SCOPE_UNIVERSE]);
        message.0.extend(index.to_ne_bytes());
        message.attribute(libc::IFA_LOCAL, &address);
        message.attribute(libc::IFA_ADDRESS, &address);
        self.request(message)
    }

    /// A default route.
    ///
    /// # Errors
    /// The kernel's word.
    pub fn default_route(&self, index: u32, gateway: [u8; 4]) -> Result<(), Errno> {
        let mut message = Message::new(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        let (table, protocol) = (libc::RT_TABLE_MAIN, libc::RTPROT_BOOT);
        let scope = libc::RT_SCOPE_UNIVERSE;
        message.0.extend([libc::AF_INET as u8, 0, 0, 0, table, protocol, scope, libc::RTN_UNICAST]);
        message.0.extend([0; 4]); // flags
        message.attribute(libc::RTA_GATEWAY, &gateway);
        message.attribute(libc::RTA_OIF, &index.to_ne_bytes());
        self.request(message)
    }

    /// A neighbour that need not be asked for.
    ///
    /// # Errors
    /// The kernel's word.
    pub fn neighbour(&self, index: u32, address: [u8; 4], mac: [u8; 6]) -> Result<(), Errno> {
        let mut message = Message::new(libc::RTM_NEWNEIGH, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        // `struct ndmsg`.
        message.0.extend([libc::AF_INET as u8, 0, 0, 0]);
        message.0.extend(index.to_ne_bytes());
        message.0.extend(libc::NUD_PERMANENT.to_ne_bytes());
        message.0.extend([0, 0]);
        message.attribute(libc::NDA_DST, &address);
        message.attribute(libc::NDA_LLADDR, &mac);
        self.request(message)
    }

    /// A qdisc for what a device receives.
    ///
    /// # Errors
    /// The kernel's word.
    pub fn ingress(&self, index: u32) -> Result<(), Errno> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let mut message = Message::new(libc::RTM_NEWQDISC, flags);
        traffic_header(&mut message, index, INGRESS_HANDLE, TC_H_INGRESS, 0);
        message.text(TCA_KIND, "ingress");
        self.request(message)
    }

    /// Gives what device `from` receives, if it matches, to device `to` (u32 and mirred).
    ///
    /// # Errors
    /// The kernel's word.
    pub fn redirect(&self, from: u32, to: u32, way: Way, which: Match) -> Result<(), Errno> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let mut message = Message::new(libc::RTM_NEWTFILTER, flags);
        let direction = match way {
            Way::Out => TCA_EGRESS_REDIR,
            Way::In => TCA_INGRESS_REDIR,
        };
        let protocol = match which {
            Match::Any => libc::ETH_P_ALL as u16,
            Match::To(_) => libc::ETH_P_IP as u16,
        };
        // Priority above, protocol below, in network order; the kernel picks a free priority for 0,
        // but one list for all packets of a kind is what a router has.
        let info = 1 << 16 | u32::from(protocol.to_be());
        traffic_header(&mut message, from, 0, INGRESS_HANDLE, info);
        message.text(TCA_KIND, "u32");
        message.nested(TCA_OPTIONS, |options| {
            // `struct tc_u32_sel` with one `struct tc_u32_key`.
            let (mask, value, offset) = match which {
                Match::Any => ([0; 4], [0; 4], 0),
                Match::To(address) => ([255; 4], address, IPV4_DESTINATION),
            };
            let mut selector = vec![TCA_U32_TERMINAL, 0, 1, 0];
            selector.extend([0; 12]);
            selector.extend(mask);
            selector.extend(value);
            selector.extend(offset.to_ne_bytes());
            selector.extend([0; 4]);
            options.attribute(TCA_U32_SEL, &selector);
            options.nested(TCA_U32_ACT, |actions| {
                actions.nested(1, |action| {
                    action.text(TCA_ACT_KIND, "mirred");
                    action.nested(TCA_ACT_OPTIONS, |mirred| {
                        // `struct tc_mirred`: index, capab, action, refcnt, bindcnt, eaction, ifindex.
                        let words = [0, 0, TC_ACT_STOLEN, 0, 0, direction, to];
                        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
                        mirred.attribute(TCA_MIRRED_PARMS, &bytes);
                    });
                });
            });
        });
        self.request(message)
    }

    fn request(&self, message: Message) -> Result<(), Errno> {
        let fd = self.0.as_raw_fd();
        sendto(fd, &message.finish(), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut reply = [0; 4096];
        let length = recv(fd, &mut reply, MsgFlags::empty())?;
        acknowledged(&reply[..length])
    }
}

/// Whether this kernel makes devices of `kind`.
///
/// # Errors
/// It does not say, but for another reason than that.
pub fn has_kind(kind: &str) -> Result<bool> {
    let route = Route::open()?;
    let name = "cmp-probe";
    // Its own parent must exist; whether the kind does is judged first.
    let link = NewLink { kind, name, index: None, parent: Some(1), netns: None };
    match route.add(&link) {
        Ok(()) => {
            route.delete(name).context("Failed to remove a device made to try the kernel")?;
            Ok(true)
        }
        Err(Errno::EOPNOTSUPP) => Ok(false),
        Err(Errno::EINVAL | Errno::ENODEV) => Ok(true),
        Err(error) => bail!("Failed to find out whether this kernel has {kind}: {error}"),
    }
}

fn new_link(index: u32) -> Message {
    let mut message = Message::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
    message.link_header(index, false);
    message
}

/// `struct tcmsg`.
fn traffic_header(message: &mut Message, index: u32, handle: u32, parent: u32, info: u32) {
    message.0.extend([0; 4]);
    for word in [index, handle, parent, info] {
        message.0.extend(word.to_ne_bytes());
    }
}

/// An acknowledgement is an NLMSG_ERROR whose error is 0.
fn acknowledged(reply: &[u8]) -> Result<(), Errno> {
    let kind = reply.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let code = reply.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, code) {
        (Some(kind), Some(0)) if i32::from(kind) == libc::NLMSG_ERROR => Ok(()),
        (Some(kind), Some(code)) if i32::from(kind) == libc::NLMSG_ERROR => {
            Err(Errno::from_raw(code.wrapping_neg()))
        }
        _ => Err(Errno::EBADMSG),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_nest_and_are_padded_to_four_bytes() {
        let mut message = Message::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE);
        message.nested(18, |info| {
            info.text(1, "veth");
            info.nested(2, |data| data.attribute(1, &7_u32.to_ne_bytes()));
        });
        let bytes = message.finish();
        assert_eq!(bytes[..4], 44_u32.to_ne_bytes());
        assert_eq!(bytes[6..8], (0x400_u16 | 0x5).to_ne_bytes());
        assert_eq!(bytes[16..20], [28_u16.to_ne_bytes(), 18_u16.to_ne_bytes()].concat());
        assert_eq!(bytes[20..24], [9_u16.to_ne_bytes(), 1_u16.to_ne_bytes()].concat());
        assert_eq!(&bytes[24..32], b"veth\0\0\0\0");
        assert_eq!(bytes[32..36], [12_u16.to_ne_bytes(), 2_u16.to_ne_bytes()].concat());
        assert_eq!(bytes[40..], 7_u32.to_ne_bytes());
    }

    #[test]
    fn an_acknowledgement_is_an_error_of_zero_and_other_errors_have_their_names() {
        let mut reply = [0; 36];
        reply[4..6].copy_from_slice(&2_u16.to_ne_bytes());
        assert_eq!(acknowledged(&reply), Ok(()));
        reply[16..20].copy_from_slice(&(-17_i32).to_ne_bytes());
        assert_eq!(acknowledged(&reply), Err(Errno::EEXIST));
        assert_eq!(acknowledged(&reply[..7]), Err(Errno::EBADMSG));
    }
}
