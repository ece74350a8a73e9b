//! Ports in network namespaces, with real taps: each test has namespaces of its own, so that nothing
//! touches the machine's network. They need root (or `unshare -rn`) and /dev/net/tun, and say so.

mod daemon;
mod rig;
mod spaces;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::Path;

use daemon::Daemon;
use dataplane::control::Control;
use dataplane::testing::frames::{FrameBuilder, Stream, payload_range};
use dataplane::testing::{GuestConfig, Layout, VirtioNetHdr, features};
use etherparse::{SlicedPacket, TransportSlice};
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use rig::{Rig, Station, TIMEOUT, eventually, mac};
use slipway_api::{ErrorCode, LinkState, NetnsSpec, PortMode, PortSpec};
use spaces::{Space, ip, ping, v4, v6};

/// What a transfer by TCP takes there, and what is at each place of it.
const BYTES: usize = 50 << 20;
const fn byte_at(at: usize) -> u8 {
    (at ^ (at >> 8) ^ (at >> 16)) as u8
}
/// Payload of one segment of a datagram that is sent in segments, and of all of it.
const SEGMENT: usize = 1000;
const WHOLE: usize = 20 * SEGMENT;
/// Where datagrams go.
const UDP_PORT: u16 = 4789;

/// Sends [`BYTES`] by TCP from one namespace to an address in another, and checks each.
fn transfer(from: &Space, to: &Space, address: impl Into<IpAddr>) {
    let address = address.into();
    let (ready, is_ready) = std::sync::mpsc::channel();
    let received = to.begin(move || {
        let listener = TcpListener::bind((address, 9)).unwrap();
        ready.send(()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = Vec::with_capacity(BYTES);
        stream.read_to_end(&mut bytes).unwrap();
        stream.write_all(b"done").unwrap();
        bytes
    });
    is_ready.recv_timeout(TIMEOUT).unwrap();
    let answer = from.run(move || {
        let mut stream = TcpStream::connect((address, 9)).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let bytes: Vec<_> = (0..BYTES).map(byte_at).collect();
        stream.write_all(&bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    assert_eq!(answer, "done");
    let bytes = received.recv_timeout(TIMEOUT).unwrap();
    assert_eq!(bytes.len(), BYTES);
    assert_eq!(bytes.iter().enumerate().find(|&(at, &byte)| byte != byte_at(at)), None);
}

/// Sends one datagram from one namespace to an address in another, which receives it.
fn datagram(from: &Space, to: &Space, address: impl Into<IpAddr>) {
    let to_address = SocketAddr::new(address.into(), UDP_PORT);
    let socket = to.run(move || UdpSocket::bind(to_address).unwrap());
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    from.run(move || {
        let any: IpAddr = if to_address.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        UdpSocket::bind((any, 0)).unwrap().send_to(b"hello", to_address).unwrap();
    });
    let mut bytes = [0; 10];
    assert_eq!(socket.recv(&mut bytes).unwrap(), 5);
    assert_eq!(&bytes[..5], b"hello");
}

/// A guest with the addresses of number `n`.
fn guest(rig: &Rig, n: u8, config: GuestConfig) -> Station {
    let spec = PortSpec {
        mac: Some(slipway_api::Mac(mac(n.into()))),
        addresses: vec![v4(n).into()],
        ..PortSpec::named(format!("guest{n}"))
    };
    rig.station_of(n.into(), spec, config)
}

/// The next datagram that comes to a guest; a namespace also asks for routers and groups.
fn next_datagram(guest: &mut Station) -> (VirtioNetHdr, Vec<u8>) {
    loop {
        let (header, frame) = guest.guest.recv(TIMEOUT).unwrap().expect("a datagram");
        if frame[12..14] == [8, 0] && frame[23] == 17 {
            return (header, frame);
        }
    }
}

fn checksum_is_right(frame: &[u8]) -> bool {
    let packet = SlicedPacket::from_ethernet(frame).expect("whole headers");
    let ip = packet.net.as_ref().and_then(|net| net.ipv4_ref()).expect("IPv4").header().to_header();
    let Some(TransportSlice::Udp(udp)) = packet.transport else { panic!("no UDP") };
    udp.to_header().calc_checksum_ipv4(&ip, udp.payload()).unwrap() == udp.checksum()
}

/// The whole of a datagram that is sent in segments.
fn whole() -> Vec<u8> {
    let mut payload = vec![0; WHOLE];
    Stream(7).fill(0, &mut payload);
    payload
}

/// Sends [`WHOLE`] bytes to a guest by one call, to be cut into segments by whoever has to.
fn send_in_segments(from: &Space, to: Ipv4Addr) {
    from.run(move || {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
        setsockopt(&socket, UdpGsoSegment, &(SEGMENT as i32)).unwrap();
        assert_eq!(socket.send_to(&whole(), (to, UDP_PORT)).unwrap(), WHOLE);
    });
}

fn dropped_at_egress(rig: &Rig, port: &str, reason: &str) -> u64 {
    rig.stats(port).egress.drops.get(reason).copied().unwrap_or(0)
}

/// Asks the slipwayd in `folder` for a port; returns what it answers.
fn ask(folder: &Path, spec: &PortSpec) -> String {
    let body = serde_json::to_string(spec).unwrap();
    let mut stream = UnixStream::connect(folder.join("run/slipwayd.sock")).unwrap();
    let name = &spec.name;
    let request = format!(
        "PUT /v1/ports/{name} HTTP/1.1\r\nhost: slipway\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The PMD that reads the tap of a port.
fn port_owner(rig: &Rig, port: &str) -> u32 {
    rig.show(port).rings.iter().find_map(|ring| ring.pmd).expect("a ring that is read")
}

/// Taps of that name that this process has open.
fn open_taps(interface: &str) -> usize {
    let is_tap = |info: &String| {
        let mut words = info.split_whitespace();
        words.any(|word| word == "iff:") && words.next() == Some(interface)
    };
    let infos = std::fs::read_dir("/proc/self/fdinfo").unwrap().flatten();
    infos.filter_map(|info| std::fs::read_to_string(info.path()).ok()).filter(is_tap).count()
}

mod privileged {
    use super::*;

    #[test]
    fn namespaces_reach_each_other_and_tcp_goes_in_segments_that_nobody_cuts() {
        let rig = Rig::start();
        let (a, b) = (Space::new(), Space::new());
        let ports = [rig.port(a.port(1)), rig.port(b.port(2))];
        for port in &ports {
            assert_eq!((port.link, port.spec.mode), (LinkState::Up, PortMode::Netns));
            assert!(port.features.iter().any(|name| name == "VIRTIO_NET_F_HOST_TSO6"), "{port:?}");
        }
        assert_eq!(a.run(|| ping(v4(2))), b"are you there?");
        transfer(&a, &b, v4(2));
        transfer(&b, &a, v6(1));
        for (from, to) in [("space1", "space2"), ("space2", "space1")] {
            let sent = rig.stats(from).ingress;
            // Acknowledgements of the other transfer are among them.
            let mean = sent.received_bytes / sent.received_frames;
            assert!(mean > 3 * 1514, "{from}: {mean} bytes a frame, so segments were cut");
            // Answers of the switch itself are delivered, too.
            assert!(sent.forwarded_frames <= rig.stats(to).egress.delivered_frames);
        }
        rig.assert_conserved();
        eventually("idle taps leave the rounds", || {
            let pmd = rig.pmd();
            (pmd.polled_rings, pmd.armed_rings) == (0, 2)
        });
        datagram(&a, &b, v4(2));
    }

    #[test]
    fn a_tap_that_goes_from_one_pmd_to_another_and_back_loses_no_wake_up() {
        let rig = Rig::with_pmds(2);
        let (a, b) = (Space::new(), Space::new());
        let ports = [rig.port(a.port(1)), rig.port(b.port(2))];
        let pmds = rig.switch.pmd_threads();
        for round in 0..40 {
            for port in &ports {
                let id = dataplane::port::PortId(port.id);
                let to = 1 - port_owner(&rig, &port.spec.name);
                let moved = pmds.move_ring(id, 0, to).expect("it runs");
                assert_eq!((moved.from, moved.to), (1 - to, to));
            }
            // Frames that came before, between and after the moves all arrive.
            assert_eq!(a.run(|| ping(v4(2))), b"are you there?");
            if round % 2 == 0 {
                eventually("all rings sleep", || {
                    rig.switch.pmds().pmds.iter().all(|pmd| pmd.polled_rings == 0)
                });
            }
        }
        transfer(&a, &b, v4(2));
        rig.assert_conserved();
    }

    #[test]
    fn the_interface_is_what_it_was_asked_to_be_and_goes_with_its_port() {
        let rig = Rig::start();
        let (a, b) = (Space::new(), Space::new());
        let spec = PortSpec { mtu: Some(9000), pmds: vec![0], ..a.port(1) };
        let port = rig.port(spec.clone());
        rig.port(b.port(2));
        let shown = a.run(|| ip(&["-d", "addr", "show", "eth0"]));
        let own = port.spec.mac.unwrap().to_string();
        for wanted in
            ["mtu 9000", &own, "10.91.0.1/24", "fd91::1/64", "UP,LOWER_UP", "tun type tap"]
        {
            assert!(shown.contains(wanted), "{wanted}: {shown}");
        }
        assert_eq!(rig.port(spec).id, port.id, "asking again is asking once");
        datagram(&b, &a, v6(1));
        rig.switch.delete_port("space1").unwrap();
        assert_eq!(a.interfaces(), [""; 0]);
        assert_eq!(b.interfaces(), ["eth0"]);
        rig.port(a.port(1));
        datagram(&b, &a, v4(1));
        drop(rig);
        assert_eq!(b.interfaces(), [""; 0]);
    }

    #[test]
    fn a_guest_gets_a_segmented_datagram_as_it_can_take_it() {
        let rig = Rig::start();
        let a = Space::new();
        rig.port(a.port(1));
        let offloading = GuestConfig::default().features(features::PLAIN | features::RX_OFFLOADS);
        let mut able = guest(&rig, 3, offloading);
        let mut plain = guest(&rig, 4, GuestConfig::default().features(features::PLAIN));
        let sent = whole();

        send_in_segments(&a, v4(3));
        let (header, frame) = next_datagram(&mut able);
        assert_eq!(frame[payload_range(&frame).unwrap()], sent, "one frame, uncut");
        assert_eq!(header.gso_type, VirtioNetHdr::GSO_UDP_L4);
        assert_eq!(usize::from(header.gso_size), SEGMENT);

        send_in_segments(&a, v4(4));
        for expected in sent.chunks(SEGMENT) {
            let (header, frame) = next_datagram(&mut plain);
            assert_eq!((header.gso_type, header.flags), (VirtioNetHdr::GSO_NONE, 0));
            assert!(checksum_is_right(&frame));
            assert_eq!(&frame[payload_range(&frame).unwrap()], expected);
        }
        rig.assert_conserved();
    }

    #[test]
    fn a_namespace_takes_what_guests_leave_to_it() {
        let rig = Rig::start();
        let a = Space::new();
        let port = rig.port(a.port(1));
        let to = port.spec.mac.unwrap().0;
        let able = GuestConfig::default()
            .features(features::PLAIN | features::TX_OFFLOADS)
            .tx_buffers(WHOLE + 100, 4096);
        let mut able = guest(&rig, 3, able);
        let mut plain = guest(&rig, 4, GuestConfig::default().features(features::PLAIN));
        let socket = a.run(|| UdpSocket::bind((v4(1), UDP_PORT)).unwrap());
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        let expect = |from: u8, payload: &[u8]| {
            let mut bytes = [0; 2 * SEGMENT];
            let (n, who) = socket.recv_from(&mut bytes).expect("a datagram");
            assert_eq!((&bytes[..n], who.ip()), (payload, v4(from).into()));
        };
        let frame = |from: u8, payload: &[u8]| {
            FrameBuilder::new(mac(from.into()), to)
                .ipv4(v4(from), v4(1))
                .udp(5, UDP_PORT)
                .payload(payload)
        };
        let sent = whole();
        let (header, segments) = frame(3, &sent).build_gso(SEGMENT as u16);
        able.guest.tx().send_with_header(header, &segments, &Layout::single()).unwrap();
        sent.chunks(SEGMENT).for_each(|segment| expect(3, segment));
        eventually("it is one frame forwarded", || {
            rig.stats("guest3").ingress.forwarded_frames == 1
        });

        let (header, partial) = frame(3, b"checksum left open").build_partial();
        able.guest.tx().send_with_header(header, &partial, &Layout::single()).unwrap();
        expect(3, b"checksum left open");
        plain.guest.send(&frame(4, b"all done").build()).unwrap();
        expect(4, b"all done");
        rig.assert_conserved();
    }

    #[test]
    fn a_namespace_can_use_no_address_but_its_own_and_obeys_its_policy() {
        let rig = Rig::start();
        let (a, b) = (Space::new(), Space::new());
        rig.port(a.port(1));
        let rule = format!("deny ingress protocol udp ports {UDP_PORT}").parse().unwrap();
        let policy = slipway_api::Policy {
            egress_default: slipway_api::PolicyAction::Allow,
            ingress_default: slipway_api::PolicyAction::Allow,
            rules: vec![rule],
        };
        rig.port(PortSpec { policy: Some(policy), ..b.port(2) });
        let send = |from: Ipv4Addr| {
            a.run(move || {
                let socket = UdpSocket::bind((from, 0)).unwrap();
                socket.send_to(b"x", (v4(2), UDP_PORT)).unwrap();
            });
        };
        a.run(|| ip(&["addr", "add", "10.91.0.77/24", "dev", "eth0"]));
        send(v4(77));
        eventually("it is dropped as spoofed", || rig.dropped("space1", "spoofed") > 0);
        send(v4(1));
        eventually("it is dropped by policy", || {
            dropped_at_egress(&rig, "space2", "policy_ingress") == 1
        });
        rig.assert_conserved();
    }

    #[test]
    fn an_interface_that_is_set_down_drops_and_up_again_takes_frames_again() {
        let rig = Rig::start();
        let (a, b) = (Space::new(), Space::new());
        rig.port(a.port(1));
        rig.port(b.port(2));
        datagram(&a, &b, v4(2));
        b.run(|| ip(&["link", "set", "eth0", "down"]));
        let before = dropped_at_egress(&rig, "space2", "link_down");
        a.run(|| {
            UdpSocket::bind((v4(1), 0)).unwrap().send_to(b"x", (v4(2), UDP_PORT)).unwrap();
        });
        eventually("it is dropped by reason", || {
            dropped_at_egress(&rig, "space2", "link_down") > before
        });
        b.run(|| ip(&["link", "set", "eth0", "up"]));
        datagram(&a, &b, v4(2));
        datagram(&b, &a, v4(1));
        rig.assert_conserved();
    }

    #[test]
    fn an_interface_or_a_namespace_that_is_deleted_costs_its_port_and_nothing_else() {
        let rig = Rig::start();
        let (a, b, c, d) = (Space::new(), Space::new(), Space::new(), Space::new());
        rig.port(a.port(1));
        rig.port(b.port(2));
        rig.port(c.port(3));
        let mut last = d.port(4);
        let netns = last.netns.as_mut().unwrap();
        netns.interface = "eth-of-d".to_owned();
        rig.port(last);
        c.run(|| ip(&["link", "delete", "eth0"]));
        assert_eq!(open_taps("eth-of-d"), 1);
        drop(d);
        for (port, what) in [("space3", "the interface eth0 in"), ("space4", "the namespace")] {
            let told = || rig.show(port).reason.is_some_and(|reason| reason.contains(what));
            eventually(&format!("{port}: {what} .. was deleted"), told);
            let port = rig.show(port);
            assert_eq!(port.link, LinkState::Broken);
            let reason = port.reason.unwrap();
            assert!(reason.contains("was deleted; delete the port"), "{reason}");
        }
        eventually("nothing holds the namespace any more", || open_taps("eth-of-d") == 0);
        // Frames for them go nowhere, and nobody looks at their rings.
        a.run(|| {
            UdpSocket::bind((v4(1), 0)).unwrap().send_to(b"x", (v4(4), UDP_PORT)).unwrap();
        });
        eventually("it is dropped by reason", || rig.dropped("space1", "link_down") > 0);
        datagram(&a, &b, v4(2));
        eventually("only the others are left", || {
            let pmd = rig.pmd();
            (pmd.polled_rings, pmd.armed_rings) == (0, 2)
        });
        rig.switch.delete_port("space4").unwrap();
        rig.switch.delete_port("space3").unwrap();
        rig.port(c.port(3));
        datagram(&c, &a, v4(1));
        rig.assert_conserved();
    }

    #[test]
    fn slipwayd_confined_as_it_is_makes_ports_and_leaves_none_when_it_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("slipwayd.toml"), "").unwrap();
        let (a, b) = (Space::new(), Space::new());
        let daemon = Daemon::start(folder.path());
        for (space, n) in [(&a, 1), (&b, 2)] {
            let answer = ask(folder.path(), &space.port(n));
            assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
        }
        datagram(&a, &b, v4(2));
        drop(daemon);
        assert_eq!((a.interfaces(), b.interfaces()), (vec![], vec![]));
    }

    #[test]
    fn without_a_capability_slipwayd_names_it_and_leaves_nothing() {
        for lacking in ["sys_admin", "net_admin"] {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("slipwayd.toml"), "").unwrap();
            let a = Space::new();
            let without = [format!("--bounding-set=-{lacking}"), format!("--inh-caps=-{lacking}")];
            let wrapper = ["setpriv", &without[0], &without[1]];
            let _daemon = Daemon::start_by(&wrapper, folder.path());
            let answer = ask(folder.path(), &a.port(1));
            let capability = format!("CAP_{}", lacking.to_uppercase());
            assert!(answer.starts_with("HTTP/1.1 422"), "{answer}");
            assert!(answer.contains("netns.path") && answer.contains(&capability), "{answer}");
            assert_eq!(a.interfaces(), [""; 0]);
        }
    }

    #[test]
    fn what_can_not_be_is_refused_with_its_value_and_leaves_nothing() {
        let rig = Rig::start();
        let a = Space::new();
        rig.port(a.port(1));
        a.run(|| ip(&["tuntap", "add", "taken", "mode", "tap"]));
        let before = a.interfaces();
        let file = rig.path("file");
        std::fs::write(&file, "").unwrap();
        let at = |path: &Path| NetnsSpec::at(path);
        let own = Path::new("/proc/thread-self/ns/net");
        let uts = Path::new("/proc/self/ns/uts");
        let (invalid, conflict) = (ErrorCode::InvalidValue, ErrorCode::Conflict);
        for (netns, code, field, words) in [
            (at(&rig.path("none")), invalid, "netns.path", "No such file"),
            (at(&file), invalid, "netns.path", "is not a network namespace"),
            (at(uts), invalid, "netns.path", "is not a network namespace"),
            (at(own), invalid, "netns.path", "of slipwayd itself"),
            (
                NetnsSpec { interface: "taken".into(), ..at(a.path()) },
                conflict,
                "netns.interface",
                "an interface taken in",
            ),
            (
                NetnsSpec { interface: "eth0".into(), ..at(a.path()) },
                conflict,
                "netns.interface",
                "eth0",
            ),
        ] {
            let spec = PortSpec { vni: 9, netns: Some(netns), ..PortSpec::named("refused") };
            let error = rig.switch.create_port(spec).unwrap_err();
            assert_eq!((error.code, error.field.as_deref()), (code, Some(field)), "{error:?}");
            assert!(error.message.contains(words) && !error.remedy.is_empty(), "{error:?}");
        }
        assert!(rig.switch.get_port("refused").is_none());
        assert!(rig.switch.list_vnis().vnis.iter().all(|vni| vni.vni != 9));
        assert_eq!(a.interfaces(), before);
        // Its address is somebody's: the interface was made, and is gone again.
        let mac = rig.show("space1").spec.mac;
        let b = Space::new();
        let spec = PortSpec { mac, ..b.port(5) };
        let error = rig.switch.create_port(spec).unwrap_err();
        assert_eq!((error.code, error.field.as_deref()), (conflict, Some("mac")), "{error:?}");
        assert!(rig.switch.get_port("space5").is_none());
        assert_eq!(b.interfaces(), [""; 0]);
    }
}
