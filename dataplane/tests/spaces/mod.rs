//! Network namespaces that threads of a test are in.
//!
//! They have a path as long as their thread lives (`/proc/self/task/N/ns/net`), need no file under
//! /run/netns, and go with the test.
#![allow(dead_code, reason = "every test file uses a part of it")]

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread::JoinHandle;

use ipnet::IpNet;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto,
    setsockopt, socket, sockopt::ReceiveTimeout,
};
use nix::sys::time::TimeVal;
use slipway_api::{NetnsSpec, PortSpec};

use super::rig::TIMEOUT;

type Work = Box<dyn FnOnce() + Send>;

/// ip(8), in the namespace of this thread.
pub fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().expect("ip(8), of package iproute2");
    assert!(output.status.success(), "ip {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Sends an echo request (RFC 792) from the namespace of this thread; returns what came back in the reply.
pub fn ping(to: Ipv4Addr) -> Vec<u8> {
    const TEXT: &[u8] = b"are you there?";
    const HEADER: [u8; 8] = [8, 0, 0, 0, 0x51, 0x17, 0, 1];
    let mut request = [&HEADER, TEXT].concat();
    let words = request.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    request[2..4].copy_from_slice(&checksum.to_be_bytes());
    let icmp = Some(SockProtocol::Icmp);
    let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, icmp).unwrap();
    setsockopt(&raw, ReceiveTimeout, &TimeVal::new(TIMEOUT.as_secs() as i64, 0)).unwrap();
    let address = SockaddrIn::from(SocketAddrV4::new(to, 0));
    sendto(raw.as_raw_fd(), &request, &address, MsgFlags::empty()).unwrap();
    loop {
        let mut packet = [0; 100];
        let n = recv(raw.as_raw_fd(), &mut packet, MsgFlags::empty()).expect("a reply");
        // Behind an IP header of 20 bytes: an echo reply with our identifier.
        if packet[12..16] == to.octets() && packet[20] == 0 && packet[24..26] == HEADER[4..6] {
            return packet[28..n].to_vec();
        }
    }
}

/// A namespace, and the thread in it.
#[derive(Debug)]
pub struct Space {
    path: PathBuf,
    work: Option<mpsc::Sender<Work>>,
    thread: Option<JoinHandle<()>>,
}

impl Space {
    pub fn new() -> Self {
        let (work, works) = mpsc::channel::<Work>();
        let (ready, is_ready) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap_or_else(|errno| {
                panic!("no network namespace ({errno}): run as root, or under `unshare -rn`")
            });
            ip(&["link", "set", "lo", "up"]);
            ready.send(nix::unistd::gettid()).unwrap();
            works.into_iter().for_each(|work| work());
        });
        let tid = is_ready.recv().expect("a thread in a namespace");
        let path = PathBuf::from(format!("/proc/{}/task/{tid}/ns/net", std::process::id()));
        Self { path, work: Some(work), thread: Some(thread) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Begins `work` there; the result comes through the channel.
    pub fn begin<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> mpsc::Receiver<R> {
        let (tell, told) = mpsc::channel();
        let work = move || {
            // Nobody waits any more when the test has failed.
            let _ = tell.send(work());
        };
        self.work.as_ref().unwrap().send(Box::new(work)).unwrap();
        told
    }

    /// Does `work` there.
    pub fn run<R: Send + 'static>(&self, work: impl FnOnce() -> R + Send + 'static) -> R {
        self.begin(work).recv().expect("the work in the namespace ended well")
    }

    /// The interfaces there, besides the loopback.
    pub fn interfaces(&self) -> Vec<String> {
        let lines = self.run(|| ip(&["-o", "link"]));
        let names = lines.lines().filter_map(|line| line.split(": ").nth(1)).map(str::to_owned);
        names.filter(|name| name != "lo").collect()
    }

    /// A port here, with the addresses of number `n`.
    pub fn port(&self, n: u8) -> PortSpec {
        let mut netns = NetnsSpec::at(&self.path);
        netns.addresses = vec![net(v4(n)), net(v6(n))];
        PortSpec { netns: Some(netns), ..PortSpec::named(format!("space{n}")) }
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.work.take();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the thread in the namespace panicked");
        }
    }
}

pub fn v4(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 91, 0, n)
}

pub fn v6(n: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd91, 0, 0, 0, 0, 0, 0, n.into())
}

fn net(address: impl Into<std::net::IpAddr>) -> IpNet {
    let address = address.into();
    IpNet::new(address, if address.is_ipv4() { 24 } else { 64 }).unwrap()
}
