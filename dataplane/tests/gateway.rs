//! The host's gateway, with real taps: each test has network namespaces of its own, so that nothing
//! touches the machine's network. They need root (or `unshare -rn`), /dev/net/tun and nft(8), and say
//! so.

mod rig;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dataplane::control::Control;
use dataplane::control::switch::Switch;
use dataplane::gateway::{Gateway, GatewaySpec};
use dataplane::testing::frames::{FrameBuilder, Mac, payload_range};
use dataplane::testing::{Guest, GuestConfig, features};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use ipnet::IpNet;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rig::{Rig, TIMEOUT, eventually, mac};
use slipway_api::{ErrorCode, LinkState, PortMode, PortSpec};

const GATEWAY_MAC: Mac = [0x0a, 0x58, 0, 0, 0, 1];
const HOST: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);
const HOST6: Ipv6Addr = Ipv6Addr::new(0xfd88, 0, 0, 0, 0, 0, 0, 1);
const ECHO_PORT: u16 = 7;

/// Moves this thread, and those it starts from now on, to a network namespace of its own.
fn enter_own_netns() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap_or_else(|errno| {
        panic!("no network namespace ({errno}): run as root, or under `unshare -rn`")
    });
    ip(&["link", "set", "lo", "up"]);
}

/// ip(8), in the namespace of this thread.
fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().expect("ip(8), of package iproute2");
    assert!(output.status.success(), "ip {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn net(address: impl Into<IpAddr>) -> IpNet {
    let address = address.into();
    IpNet::new(address, if address.is_ipv4() { 16 } else { 64 }).unwrap()
}

fn spec(interface: &str) -> GatewaySpec {
    GatewaySpec {
        interface: interface.to_owned(),
        vni: 0,
        mtu: 1500,
        mac: slipway_api::Mac(GATEWAY_MAC),
        addresses: vec![net(HOST), net(HOST6)],
        masquerade: false,
    }
}

fn pod_v4(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 88, 1, 0).to_bits() + n)
}

fn pod_v6(n: u32) -> Ipv6Addr {
    Ipv6Addr::from_bits(HOST6.to_bits() + (1 << 16) + u128::from(n))
}

/// Pod `n` of the test: a guest that echoes datagrams and answers nothing else, neither ARP nor
/// neighbour discovery.
struct Pod {
    ended: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<Vec<u16>>>,
}

impl Pod {
    fn start(rig: &Rig, n: u32, config: GuestConfig) -> Self {
        let port = rig.port(PortSpec {
            mac: Some(slipway_api::Mac(mac(n))),
            addresses: vec![pod_v4(n).into(), pod_v6(n).into()],
            ..PortSpec::named(format!("pod{n}"))
        });
        let mut guest = Guest::connect(&port.spec.socket, config).unwrap();
        rig.await_link(&port.spec.name, LinkState::Up);
        let ended = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&ended);
        let thread = std::thread::spawn(move || {
            let mut strange = Vec::new();
            while !until.load(Ordering::Relaxed) {
                let received = guest.recv(Duration::from_millis(20)).unwrap();
                let Some((_, frame)) = received else { continue };
                match echo(&frame) {
                    Some(reply) => guest.send(&reply).unwrap(),
                    None => strange.push(u16::from_be_bytes([frame[12], frame[13]])),
                }
            }
            strange
        });
        Self { ended, thread: Some(thread) }
    }

    /// The EtherTypes of frames that it received and that were no datagrams for it.
    fn end(mut self) -> Vec<u16> {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

/// The reply to a datagram to [`ECHO_PORT`], whose checksum must be right; to nothing else.
fn echo(frame: &[u8]) -> Option<Vec<u8>> {
    let (source, destination, l4): (IpAddr, IpAddr, usize) = match frame[12..14] {
        [8, 0] => {
            let at = |at: usize| Ipv4Addr::from(*frame[at..].first_chunk::<4>().unwrap());
            (at(26).into(), at(30).into(), 34)
        }
        [0x86, 0xdd] if frame[20] == 17 => {
            let at = |at: usize| Ipv6Addr::from(*frame[at..].first_chunk::<16>().unwrap());
            (at(22).into(), at(38).into(), 54)
        }
        _ => return None,
    };
    let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    if word(l4 + 2) != ECHO_PORT {
        return None;
    }
    assert!(is_checksum_right(frame), "{frame:02x?}");
    let to: Mac = frame[6..12].try_into().unwrap();
    let from: Mac = frame[..6].try_into().unwrap();
    let reply = FrameBuilder::new(from, to);
    let reply = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => reply.ipv4(destination, source),
        (IpAddr::V6(source), IpAddr::V6(destination)) => reply.ipv6(destination, source),
        _ => unreachable!("of one family"),
    };
    let payload = &frame[payload_range(frame)?];
    Some(reply.udp(ECHO_PORT, word(l4)).payload(payload).build())
}

/// Whether the checksum of a UDP datagram covers it.
fn is_checksum_right(frame: &[u8]) -> bool {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(TransportSlice::Udp(udp)) = sliced.transport else { return false };
    let (header, payload) = (udp.to_header(), udp.payload());
    let right = match sliced.net {
        Some(NetSlice::Ipv4(ip)) => header.calc_checksum_ipv4(&ip.header().to_header(), payload),
        Some(NetSlice::Ipv6(ip)) => header.calc_checksum_ipv6(&ip.header().to_header(), payload),
        _ => return false,
    };
    right.unwrap() == header.checksum
}

/// Sends a datagram from the host and awaits its echo.
fn call(socket: &UdpSocket, pod: impl Into<IpAddr>, payload: &[u8]) {
    socket.send_to(payload, SocketAddr::new(pod.into(), ECHO_PORT)).unwrap();
    let mut back = vec![0; payload.len() + 1];
    let (n, from) = socket.recv_from(&mut back).expect("an echo");
    assert_eq!((&back[..n], from.port()), (payload, ECHO_PORT));
}

fn socket_of_host(address: impl Into<IpAddr>) -> UdpSocket {
    let socket = UdpSocket::bind((address.into(), 0)).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket
}

/// A guest that leaves nothing to others.
fn plain() -> GuestConfig {
    GuestConfig::default().features(features::PLAIN)
}

fn connect(spec: GatewaySpec, switch: &Switch) -> dataplane::gateway::Connected {
    let name = spec.interface.clone();
    let connected = Gateway::open(spec).unwrap().connect(switch).unwrap();
    // The kernel lets an IPv6 address be used a moment after it was given.
    eventually("addresses that can be used", || {
        !ip(&["addr", "show", &name]).contains("tentative")
    });
    connected
}

/// nft(8), in the namespace of this thread.
fn nft(command: &str) -> String {
    let output = Command::new("nft")
        .args(command.split_whitespace())
        .output()
        .expect("nft(8), of package nftables");
    assert!(output.status.success(), "nft {command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Processes in the namespace of this thread that wait for a slipwayd to end.
fn guards() -> usize {
    let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let is_guard = |process: &Path| {
        let line = std::fs::read(process.join("cmdline")).unwrap_or_default();
        let is_named = line.windows(18).any(|word| word == b"slipway-masquerade");
        is_named && std::fs::read_link(process.join("ns/net")).is_ok_and(|net| net == own)
    };
    let processes = std::fs::read_dir("/proc").unwrap();
    processes.flatten().filter(|process| is_guard(&process.path())).count()
}

/// slipwayd with a gateway, and its folder.
struct Slipwayd {
    child: Child,
    _dir: tempfile::TempDir,
}

/// The command that starts slipwayd with a gateway, all its files in `dir`.
fn slipwayd(dir: &Path, masquerade: bool) -> Command {
    let by = if masquerade { "nftables" } else { "off" };
    let core = core_affinity::get_core_ids().unwrap().last().unwrap().id;
    let config = format!(
        "[pmd]\ncores = [{core}]\n[ports]\nrun_dir = {dir:?}\n[api]\nsocket = {:?}\n\
         [gateway]\nenabled = true\nmasquerade = \"{by}\"\n",
        dir.join("slipwayd.sock")
    );
    let file = dir.join("slipwayd.toml");
    std::fs::write(&file, config).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_slipwayd"));
    command.arg("--config").arg(file);
    command
}

impl Slipwayd {
    /// One that is ready.
    fn start(masquerade: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut child = slipwayd(dir.path(), masquerade).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let ready = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("is ready")));
        assert!(ready.is_some(), "slipwayd ended: {:?}", child.wait());
        // It must not meet a closed pipe; the thread ends with it.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, _dir: dir }
    }
}

impl Drop for Slipwayd {
    fn drop(&mut self) {
        // A test that failed leaves no daemon; one that did not has seen its end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

mod privileged {
    use super::*;

    #[test]
    fn the_host_reaches_pods_that_answer_no_arp_and_no_neighbour_discovery() {
        enter_own_netns();
        let rig = Rig::start();
        let gateway = connect(spec("slipway0"), &rig.switch);
        assert_eq!(gateway.port.link, LinkState::Up);
        assert_eq!(gateway.port.spec.mode, PortMode::Tap);
        let pods: Vec<_> = [1, 2].map(|n| Pod::start(&rig, n, plain())).into_iter().collect();
        let (v4, v6) = (socket_of_host(HOST), socket_of_host(HOST6));
        for n in [1, 2] {
            for len in [1, 100, 1400] {
                call(&v4, pod_v4(n), &vec![n as u8; len]);
                call(&v6, pod_v6(n), &vec![n as u8; len]);
            }
        }
        // The host knows each pod by the address that the switch told it.
        let neighbours = ip(&["neigh", "show", "dev", "slipway0"]);
        for n in [1, 2] {
            let mac = slipway_api::Mac(mac(n)).to_string();
            for address in [IpAddr::from(pod_v4(n)), pod_v6(n).into()] {
                let line = neighbours.lines().find(|l| l.starts_with(&format!("{address} ")));
                assert!(line.is_some_and(|l| l.contains(&mac)), "{address}: {neighbours}");
            }
        }
        let stats = rig.stats("slipway0");
        assert!(stats.ingress.answered_frames >= 4, "{stats:?}");
        // No question reached a pod: only the host's own announcements do.
        for pod in pods {
            assert!(!pod.end().contains(&0x0806), "an ARP request was flooded");
        }
        rig.assert_conserved();
        let refused = rig.switch.delete_port("slipway0").unwrap_err();
        assert_eq!(refused.code, ErrorCode::InUse, "{refused:?}");
    }

    #[test]
    fn the_interface_is_what_it_was_asked_to_be_and_goes_with_the_switch() {
        enter_own_netns();
        let rig = Rig::start();
        let gateway = connect(GatewaySpec { mtu: 1400, ..spec("slipway0") }, &rig.switch);
        let shown = ip(&["-d", "addr", "show", "slipway0"]);
        for wanted in [
            "mtu 1400",
            "0a:58:00:00:00:01",
            "10.88.0.1/16",
            "fd88::1/64",
            "UP,LOWER_UP",
            "tun type tap",
        ] {
            assert!(shown.contains(wanted), "{wanted}: {shown}");
        }
        let routes = ip(&["route"]);
        assert_eq!(routes.lines().count(), 1, "no route of an old address class: {routes}");
        assert!(routes.starts_with("10.88.0.0/16 dev slipway0"), "{routes}");
        drop((gateway, rig));
        assert!(!ip(&["link"]).contains("slipway0"));
    }

    #[test]
    fn an_interface_of_that_name_is_refused_and_left_alone() {
        enter_own_netns();
        ip(&["tuntap", "add", "slipway0", "mode", "tap"]);
        let error = Gateway::open(spec("slipway0")).unwrap_err().to_string();
        assert!(error.contains("already") && error.contains("ip link delete slipway0"), "{error}");
        assert!(!ip(&["addr", "show", "slipway0"]).contains("10.88"));
    }

    #[test]
    fn an_interface_that_is_set_down_and_up_again_carries_traffic_again() {
        enter_own_netns();
        let rig = Rig::start();
        let _gateway = connect(spec("slipway0"), &rig.switch);
        let pod = Pod::start(&rig, 1, plain());
        let mut asking = rig.station_of(
            9,
            PortSpec { mac: Some(slipway_api::Mac(mac(9))), ..PortSpec::named("asking") },
            GuestConfig::default(),
        );
        call(&socket_of_host(HOST), pod_v4(1), b"before");
        ip(&["link", "set", "slipway0", "down"]);
        eventually("the switch knows", || {
            asking.send(GATEWAY_MAC);
            asking.drain();
            rig.show("slipway0").link == LinkState::Broken
        });
        let reason = rig.show("slipway0").reason.unwrap();
        assert!(reason.contains("ip link set slipway0 up"), "{reason}");
        eventually("frames for the host are dropped by reason", || {
            asking.send(GATEWAY_MAC);
            asking.drain();
            rig.dropped("asking", "link_down") > 0
        });
        ip(&["link", "set", "slipway0", "up"]);
        rig.await_link("slipway0", LinkState::Up);
        // IPv4 addresses survive; the kernel forgets IPv6 ones.
        call(&socket_of_host(HOST), pod_v4(1), b"after");
        drop(pod.end());
        rig.assert_conserved();
    }

    #[test]
    fn an_interface_that_is_deleted_costs_its_port_and_nothing_else() {
        enter_own_netns();
        let rig = Rig::start();
        let _gateway = connect(spec("slipway0"), &rig.switch);
        // The host's own multicasts go to its segment.
        let mut asking = rig.station(10, 0, GuestConfig::default());
        let mut a = rig.station(11, 5, GuestConfig::default());
        let mut b = rig.station(12, 5, GuestConfig::default());
        a.talk(&mut b);
        ip(&["link", "delete", "slipway0"]);
        rig.await_link("slipway0", LinkState::Broken);
        let reason = rig.show("slipway0").reason.unwrap();
        assert!(reason.contains("deleted"), "{reason}");
        a.talk(&mut b);
        asking.send(GATEWAY_MAC);
        asking.drain();
        assert_eq!(rig.dropped(&asking.port, "link_down"), 1);
        rig.assert_conserved();
    }

    #[test]
    fn tcp_between_two_hosts_goes_in_segments_larger_than_the_mtu() {
        enter_own_netns();
        let rig = Rig::start();
        let _here = connect(spec("tap-here"), &rig.switch);
        let there: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 2);
        let other = GatewaySpec {
            mac: slipway_api::Mac([0x0a, 0x58, 0, 0, 0, 2]),
            addresses: vec![net(there)],
            ..spec("tap-there")
        };
        const BYTES: usize = 64 << 20;
        let pattern = |at: usize| (at ^ (at >> 8) ^ (at >> 16)) as u8;
        std::thread::scope(|scope| {
            let (ready, is_ready) = std::sync::mpsc::channel();
            let rig = &rig;
            let receiver = scope.spawn(move || {
                enter_own_netns();
                let connected = connect(other, &rig.switch);
                let listener = TcpListener::bind((there, 9)).unwrap();
                ready.send(()).unwrap();
                let (mut stream, _) = listener.accept().unwrap();
                let mut bytes = Vec::with_capacity(BYTES);
                stream.read_to_end(&mut bytes).unwrap();
                assert_eq!(bytes.len(), BYTES);
                let wrong = bytes.iter().enumerate().find(|&(at, &byte)| byte != pattern(at));
                assert_eq!(wrong, None);
                stream.write_all(b"done").unwrap();
                drop(connected);
            });
            is_ready.recv_timeout(TIMEOUT).unwrap();
            let mut stream = TcpStream::connect((there, 9)).unwrap();
            let bytes: Vec<_> = (0..BYTES).map(pattern).collect();
            stream.write_all(&bytes).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, "done");
            receiver.join().unwrap();
        });
        let stats = rig.stats("tap-here").ingress;
        let per_frame = stats.received_bytes / stats.received_frames;
        assert!(per_frame > 3000, "{per_frame} bytes a frame: not segmented by the receiver");
        rig.assert_conserved();
    }

    #[test]
    fn pods_reach_the_world_in_the_name_of_the_host() {
        enter_own_netns();
        let world = Ipv4Addr::new(192, 0, 2, 2);
        let host = Ipv4Addr::new(192, 0, 2, 1);
        let (tell, told) = std::sync::mpsc::channel();
        let (connect_it, connected) = std::sync::mpsc::channel::<()>();
        let far = std::thread::spawn(move || {
            enter_own_netns();
            tell.send(nix::unistd::gettid()).unwrap();
            connected.recv_timeout(TIMEOUT).unwrap();
            ip(&["addr", "add", "192.0.2.2/24", "dev", "far0"]);
            ip(&["link", "set", "far0", "up"]);
            let socket = UdpSocket::bind((world, ECHO_PORT)).unwrap();
            socket.set_read_timeout(Some(TIMEOUT)).unwrap();
            tell.send(nix::unistd::gettid()).unwrap();
            let mut bytes = [0; 100];
            let (n, from) = socket.recv_from(&mut bytes).unwrap();
            socket.send_to(&bytes[..n], from).unwrap();
            from.ip()
        });
        let tid = told.recv_timeout(TIMEOUT).unwrap().to_string();
        ip(&["link", "add", "near0", "type", "veth", "peer", "name", "far0", "netns", &tid]);
        ip(&["addr", "add", "192.0.2.1/24", "dev", "near0"]);
        ip(&["link", "set", "near0", "up"]);
        connect_it.send(()).unwrap();
        told.recv_timeout(TIMEOUT).unwrap();

        // What an earlier slipwayd may have left is replaced.
        nft("add table inet slipway");
        nft("add chain inet slipway old");
        let rig = Rig::start();
        let gateway = connect(GatewaySpec { masquerade: true, ..spec("slipway0") }, &rig.switch);
        assert!(!nft("list table inet slipway").contains("old"));
        let port = rig.port(PortSpec {
            mac: Some(slipway_api::Mac(mac(1))),
            addresses: vec![pod_v4(1).into()],
            ..PortSpec::named("pod1")
        });
        let mut guest = Guest::connect(&port.spec.socket, GuestConfig::default()).unwrap();
        rig.await_link("pod1", LinkState::Up);
        let datagram = FrameBuilder::new(mac(1), GATEWAY_MAC)
            .ipv4(pod_v4(1), world)
            .udp(4000, ECHO_PORT)
            .payload(b"hello, world");
        guest.send(&datagram.build()).unwrap();
        loop {
            let (_, frame) = guest.recv(TIMEOUT).unwrap().expect("an echo");
            // The host's own multicasts come as well.
            if frame[12..14] == [8, 0] && frame[23] == 17 && frame[26..30] == world.octets() {
                assert_eq!(frame[30..34], pod_v4(1).octets());
                assert_eq!(&frame[payload_range(&frame).unwrap()], b"hello, world");
                break;
            }
        }
        assert_eq!(far.join().unwrap(), IpAddr::from(host), "who the world saw");
        drop((guest, gateway));
        assert_eq!(nft("list tables"), "", "the rules go with the gateway");
    }

    #[test]
    fn slipwayd_that_is_killed_leaves_neither_interface_nor_rules() {
        enter_own_netns();
        for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGKILL] {
            let mut daemon = Slipwayd::start(true);
            assert!(ip(&["addr", "show", "slipway0"]).contains("10.88.0.1/16"));
            assert!(nft("list ruleset").contains("10.88.0.0/16"));
            kill(Pid::from_raw(daemon.child.id() as i32), signal).unwrap();
            let status = daemon.child.wait().unwrap();
            assert_eq!(status.success(), signal == Signal::SIGTERM, "{status:?}");
            assert!(!ip(&["link"]).contains("slipway0"), "after {signal}");
            // A guard that outlives slipwayd does this, in its own time.
            eventually("no rules are left", || nft("list tables").is_empty());
        }
    }

    #[test]
    fn slipwayd_that_starts_while_the_rules_of_a_killed_one_go_keeps_its_own() {
        enter_own_netns();
        for _ in 0..5 {
            let mut daemon = Slipwayd::start(true);
            daemon.child.kill().unwrap();
            daemon.child.wait().unwrap();
        }
        let mut daemon = Slipwayd::start(true);
        // By now every guard has seen the end of its slipwayd; only the last one's remains.
        eventually("the guards of the killed are gone", || {
            let tables = nft("--handle list tables");
            assert!(tables.lines().count() == 1, "{tables}");
            guards() == 1
        });
        assert!(nft("list ruleset").contains("10.88.0.0/16"));
        kill(Pid::from_raw(daemon.child.id() as i32), Signal::SIGTERM).unwrap();
        assert!(daemon.child.wait().unwrap().success());
        assert_eq!(nft("list tables"), "");
    }

    #[test]
    fn without_nft_slipwayd_names_the_package_and_leaves_nothing() {
        enter_own_netns();
        let dir = tempfile::tempdir().unwrap();
        let output = slipwayd(dir.path(), true).env("PATH", "/nowhere").output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success());
        assert!(told.contains("install the package nftables"), "{told}");
        assert!(!ip(&["link"]).contains("slipway0"));
    }

    #[test]
    fn without_capability_slipwayd_names_it() {
        enter_own_netns();
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("setpriv");
        let plain = slipwayd(dir.path(), false);
        command.args(["--bounding-set=-net_admin", "--inh-caps=-net_admin"]);
        command.arg(plain.get_program()).args(plain.get_args());
        let output = command.output().expect("setpriv(1), of package util-linux");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success());
        assert!(told.contains("CAP_NET_ADMIN") && told.contains("gateway.enabled"), "{told}");
    }

    #[test]
    fn a_guest_without_offloads_gets_whole_checksums() {
        enter_own_netns();
        let rig = Rig::start();
        let _gateway = connect(spec("slipway0"), &rig.switch);
        let pod = Pod::start(&rig, 1, plain());
        // The kernel leaves checksums to the tap, and the guest negotiated none: see `echo`.
        let socket = socket_of_host(HOST);
        for len in 1..200 {
            call(&socket, pod_v4(1), &vec![len as u8; 7 * len]);
        }
        drop(pod.end());
        rig.assert_conserved();
    }
}
